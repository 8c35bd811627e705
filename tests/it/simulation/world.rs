//! One run of a plan: takes its steps, lets everybody who was woken run, and looks whether all is as it [must](must) be.

mod must;

use std::{
    cell::Cell,
    collections::BTreeSet,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use buttress::{
    Classify, Deadline, Error, Hedge, Kind, Lift, Policy, PolicyService, Shutdown, Verdict,
    circuit_breaker::Transition,
    retry::CloneRequest,
    shutdown,
    testing::{Act, Scripted},
};
use tokio::{
    select,
    sync::Notify,
    task::unconstrained,
    time::{Instant, advance, sleep_until},
};
use tower::{Service, ServiceExt};

use self::must::require;
use super::{
    plan::{Deed, End, Force, HALF, Plan, Step, THIRD, Way},
    watch::{Watch, Watched},
};
use crate::support::{ms, secs};

/// What an error of the service says.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Of the service's call.
    number: u64,
    end: End,
}

/// Held by everything that a run makes, so that what is left of it shows.
#[derive(Clone, Debug)]
struct Token(#[allow(dead_code, reason = "it is counted")] Arc<()>);

#[derive(Clone, Debug)]
struct Judge(#[allow(dead_code, reason = "it is counted")] Token);

impl Classify<u64, Fault> for Judge {
    fn classify(&self, outcome: Result<&u64, &Fault>) -> Verdict {
        let Err(fault) = outcome else { return Verdict::Success };
        match fault.end {
            End::Busy(after) => Verdict::Throttled { retry_after: after.map(ms) },
            End::Wrong => Verdict::Permanent,
            End::Ignored => Verdict::Ignored,
            _ => Verdict::TRANSIENT,
        }
    }
}

type Simulated = Kind<Judge, CloneRequest>;
type Inner = Watched<Scripted<u64, Fault>>;
type Outcome = Result<u64, Error<Fault>>;

struct Call {
    number: usize,
    way: Way,
    future: Pin<Box<dyn Future<Output = Outcome>>>,
    woken: Arc<Woken>,
    /// When the policy first heard of it, if it did.
    since: Rc<Cell<Option<Instant>>>,
    polled: bool,
    /// Polls at this instant.
    polls: usize,
}

struct Woken {
    woken: AtomicBool,
    bell: Arc<Notify>,
}

impl Woken {
    fn new(bell: &Arc<Notify>) -> Self {
        Self { woken: AtomicBool::new(false), bell: bell.clone() }
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, SeqCst);
        self.bell.notify_one();
    }
}

/// No call is polled more often while the clock stands.
const MOST_POLLS: usize = 100;

pub struct World {
    plan: Plan,
    token: Token,
    watch: Arc<Watch>,
    service: Scripted<u64, Fault>,
    watched: Inner,
    policy: Policy<Simulated>,
    shutdown: Option<shutdown::Handle>,
    kept: PolicyService<Lift<Inner>, Simulated>,
    calls: Vec<Call>,
    /// The futures of calls that have ended, which must hold nothing.
    ended: Vec<Call>,
    /// When each call began.
    begun: Vec<Instant>,
    outcomes: usize,
    dropped: usize,
    in_flight: usize,
    /// The most that the limit was ever to let in flight.
    most: usize,
    bell: Arc<Notify>,
    reached: Reached,
}

/// What has come about in a run.
pub type Reached = BTreeSet<String>;

/// Runs it. What is wrong, if anything is.
pub async fn run(plan: &Plan) -> Result<Reached, String> {
    let mut world = World::new(plan.clone());
    let steps = async {
        for (number, step) in plan.steps.iter().enumerate() {
            world.take(step).await.map_err(|wrong| format!("step {number}, {step:?}: {wrong}"))?;
        }
        Ok::<_, String>(())
    };
    unconstrained(steps).await?;
    unconstrained(world.outlast()).await?;
    world.finish()
}

impl World {
    fn new(plan: Plan) -> Self {
        let token = Token(Arc::default());
        let watch = Arc::new(Watch::default());
        let deeds = plan.deeds.clone();
        let service = Scripted::by(move |number| act(deeds[number as usize % deeds.len()], number));
        let service = service.ready_after(ms(plan.ready_after));

        let mut policy = Policy::cloned("simulated").classify(Judge(token.clone())).seed(plan.seed);
        if let Some(deadline) = plan.deadline {
            policy = policy.deadline(ms(deadline));
        }
        if let Some(retry) = &plan.retry {
            policy = policy.retry(retry.builder());
        }
        if let Some(breaker) = &plan.breaker {
            // Weak, as the watch holds the breaker.
            let listener = Arc::downgrade(&watch);
            let tell = move |moved: &Transition| listener.upgrade().expect("somebody watches").moved(moved);
            policy = policy.circuit_breaker(breaker.builder().on_transition(tell));
        }
        if let Some(throttle) = &plan.throttle {
            policy = policy.throttle(throttle.builder());
        }
        if let Some(limit) = &plan.limit {
            policy = policy.concurrency_limit(limit.builder());
        }
        if let Some(timeout) = plan.timeout {
            policy = policy.timeout(ms(timeout));
        }
        if let Some(delay) = plan.hedge {
            policy = policy.hedge(Hedge::after(ms(delay)));
            watch.uncounted.store(plan.retry.is_none(), SeqCst);
        }
        let shutdown = plan.drains.then(|| Shutdown::builder().build().unwrap().handle());
        if let Some(shutdown) = &shutdown {
            policy = policy.shutdown(shutdown);
        }
        let policy = policy.build().expect("plans are of valid settings");
        if let Some(breaker) = policy.circuit_breaker().filter(|_| plan.ready_after == 0) {
            watch.breaker.set(breaker.clone()).unwrap();
        }
        if let Some(limit) = policy.concurrency_limit() {
            watch.limit.set(limit.clone()).unwrap();
        }
        let watched = Watched { inner: service.clone(), watch: watch.clone(), deeds: plan.deeds.clone().into() };
        let kept = policy.wrap(watched.clone());
        let most = plan.limit.as_ref().map_or(0, |limit| limit.max);
        Self {
            plan,
            token,
            watch,
            service,
            watched,
            policy,
            shutdown,
            kept,
            calls: Vec::new(),
            ended: Vec::new(),
            begun: Vec::new(),
            outcomes: 0,
            dropped: 0,
            in_flight: 0,
            most,
            bell: Arc::default(),
            reached: Reached::new(),
        }
    }

    fn reach(&mut self, what: impl Into<String>) {
        self.reached.insert(what.into());
    }

    async fn take(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Start(way) => {
                if let Some(call) = self.make(*way) {
                    self.poll(call)?;
                }
            }
            Step::Prepare(way) => drop(self.make(*way)),
            Step::Poll(which) if !self.calls.is_empty() => self.poll(which % self.calls.len())?,
            Step::Drop(which) if !self.calls.is_empty() => {
                let call = self.calls.swap_remove(which % self.calls.len());
                let runs = self.watch.seen().of(call.number).any(|attempt| attempt.runs());
                self.reach(if runs { "dropped: in flight" } else { "dropped: elsewhere" });
                drop(call);
                self.dropped += 1;
            }
            Step::Poll(_) | Step::Drop(_) => {}
            Step::Jump(by) => {
                advance(ms(*by)).await;
                self.forget_polls();
            }
            Step::Flow(by) => self.flow(ms(*by)).await?,
            Step::Resize(max) => {
                if let Some(limit) = self.policy.concurrency_limit() {
                    limit.resize(*max);
                    self.most = self.most.max(*max);
                    self.in_flight = self.in_flight.max(limit.in_flight());
                }
            }
            Step::Force(force) => self.force(*force),
            Step::Drain => {
                if let Some(shutdown) = &self.shutdown {
                    shutdown.trigger("simulated");
                }
            }
            Step::Sweep => {
                self.check_probes()?;
                self.ended.clear();
            }
        }
        self.settle()?;
        self.check()
    }

    /// Makes a call without polling it. `None`: the service that was to take it was not ready.
    fn make(&mut self, way: Way) -> Option<usize> {
        let (number, since) = (self.begun.len(), Rc::new(Cell::new(None)));
        let (policy, token) = (self.policy.clone(), self.token.clone());
        let inner = self.watched.clone();
        let future: Pin<Box<dyn Future<Output = Outcome>>> = match way {
            Way::Call => Box::pin(async move { policy.call(|| inner.clone().oneshot(token.clone())).await }),
            Way::CallAs => Box::pin(async move {
                let attempt = || {
                    let attempt = inner.clone().oneshot(token.clone());
                    async { attempt.await.map_err(Error::Inner) }
                };
                policy.call_as(attempt).await
            }),
            Way::Send => {
                let (mut service, since) = (self.kept.clone(), since.clone());
                Box::pin(async move {
                    // Waiting for the service to be ready is not the policy's.
                    let ready = poll_fn(|cx| Service::<Token>::poll_ready(&mut service, cx)).await;
                    assert!(ready.is_ok(), "what `poll_ready` returns is the service's own: {ready:?}");
                    since.set(Some(Instant::now()));
                    service.call(token).await
                })
            }
            Way::Kept => {
                let mut nobody = Context::from_waker(Waker::noop());
                let Poll::Ready(ready) = Service::<Token>::poll_ready(&mut self.kept, &mut nobody) else { return None };
                assert!(ready.is_ok(), "what `poll_ready` returns is the service's own: {ready:?}");
                self.watch.seen().current = Some(number);
                let made = catch_unwind(AssertUnwindSafe(|| self.kept.call(token)));
                self.watch.seen().current = None;
                let Ok(future) = made else {
                    self.reach("panicked in `call`");
                    self.begun.push(Instant::now());
                    self.outcomes += 1;
                    return None;
                };
                Box::pin(future)
            }
        };
        let future = match self.plan.outer_deadline {
            Some(deadline) => Box::pin(Deadline::after(ms(deadline)).scope(future)),
            None => future,
        };
        // Of those that are asked for when they are called, the first attempt is in none.
        let future: Pin<Box<dyn Future<Output = Outcome>>> = match number % 3 {
            0 => Box::pin(HALF.scope(future)),
            1 => Box::pin(THIRD.scope(future)),
            _ => future,
        };
        let woken = Arc::new(Woken::new(&self.bell));
        self.begun.push(Instant::now());
        self.calls.push(Call { number, way, future, woken, since, polled: false, polls: 0 });
        Some(self.calls.len() - 1)
    }

    fn force(&mut self, force: Force) {
        let Some(breaker) = self.policy.circuit_breaker() else { return };
        self.watch.seen().by_hand = true;
        match force {
            Force::Open => breaker.force_open(),
            Force::Closed => breaker.force_closed(),
            Force::Shadow => breaker.shadow(),
            Force::Reset => breaker.reset(),
        }
        self.watch.seen().by_hand = false;
    }

    async fn flow(&mut self, by: Duration) -> Result<(), String> {
        let end = Instant::now() + by;
        while Instant::now() < end {
            let before = Instant::now();
            let bell = self.bell.clone();
            select! {
                biased;
                () = bell.notified() => {}
                () = sleep_until(end) => {}
            }
            if Instant::now() > before {
                self.forget_polls();
            }
            self.settle()?;
            self.check()?;
        }
        Ok(())
    }

    fn forget_polls(&mut self) {
        self.calls.iter_mut().for_each(|call| call.polls = 0);
    }

    /// Polls whoever was woken, until nobody is.
    fn settle(&mut self) -> Result<(), String> {
        while let Some(at) = self.calls.iter().position(|call| call.woken.woken.load(SeqCst)) {
            self.poll(at)?;
        }
        Ok(())
    }

    fn poll(&mut self, at: usize) -> Result<(), String> {
        let panicked = self.panicked();
        let now = Instant::now();
        let call = &mut self.calls[at];
        let number = call.number;
        call.polled = true;
        if call.since.get().is_none() && !matches!(call.way, Way::Send) {
            call.since.set(Some(now));
        }
        call.polls += 1;
        require(call.polls <= MOST_POLLS, || format!("call {number} wakes itself again and again"))?;
        // Another one each time: whoever keeps an old waker wakes nobody.
        call.woken = Arc::new(Woken::new(&self.bell));
        let waker = Waker::from(call.woken.clone());
        self.watch.seen().current = Some(number);
        let polled = catch_unwind(AssertUnwindSafe(|| call.future.as_mut().poll(&mut Context::from_waker(&waker))));
        self.watch.seen().current = None;
        match &polled {
            Ok(Poll::Pending) => return Ok(()),
            Ok(Poll::Ready(outcome)) => {
                self.reach(match outcome {
                    Ok(_) => "answered".into(),
                    Err(Error::Inner(_)) => "failed".into(),
                    Err(Error::Rejected(no)) => format!("rejected: {:?}", no.rule()),
                });
                self.check_outcome(at, outcome)?;
            }
            Err(_) => require(self.panicked() > panicked, || format!("call {number} panicked"))?,
        }
        self.outcomes += 1;
        let call = self.calls.swap_remove(at);
        if polled.is_err() {
            self.reach("panicked");
            // As a runtime does: what panicked has not returned, and holds what it had until it is dropped.
            drop(call);
            return Ok(());
        }
        self.check_call(&call, &self.watch.seen())?;
        let left = self.watch.seen().of(number).any(|attempt| attempt.runs());
        self.ended.push(call);
        require(!left, || format!("call {number} has ended, and an attempt of it runs on"))
    }

    /// How often the service has.
    fn panicked(&self) -> u64 {
        self.service.calls().counted().panicked + self.watch.seen().panics
    }

    /// Nobody waits for what does not hang: given time, each call has ended, but for those whose attempt hangs, and those that
    /// these keep in the queue.
    async fn outlast(&mut self) -> Result<(), String> {
        self.flow(secs(3600)).await?;
        let seen = self.watch.seen();
        let queues = self
            .policy
            .concurrency_limit()
            .is_some_and(|limit| limit.in_flight() >= limit.max_in_flight().min(self.most));
        for call in self.calls.iter().filter(|call| call.polled) {
            let hangs = |attempt: usize| matches!(self.plan.deeds[attempt % self.plan.deeds.len()].end, End::Hang);
            let attempt = seen.attempts.iter().rposition(|attempt| attempt.call == call.number && attempt.runs());
            let waits = attempt.map_or(queues, hangs);
            require(waits, || format!("call {} never ends, and nothing hangs", call.number))?;
        }
        Ok(())
    }

    /// Drops everything, and looks what is left.
    fn finish(mut self) -> Result<Reached, String> {
        // From the front, as nobody promises an order.
        while !self.calls.is_empty() {
            drop(self.calls.swap_remove(0));
        }
        self.check_probes()?;
        let Self { token, watch, service, watched, policy, kept, ended, mut reached, .. } = self;
        reached.extend(watch.seen().moves.iter().map(|(_, moved)| format!("{:?} -> {:?}", moved.from, moved.to)));
        reached.extend(watch.seen().attempts.iter().map(|attempt| format!("attempt {}", attempt.number)));
        if watch.seen().attempts.iter().any(|attempt| attempt.beside) {
            reached.insert("hedged".into());
        }
        let limit = policy.concurrency_limit().cloned();
        drop(ended);
        let counted = service.calls().counted();
        require(counted.in_flight == 0 && watch.seen().running() == 0, || format!("attempts are left: {counted:?}"))?;
        if let Some(limit) = limit {
            let left = (limit.in_flight(), limit.waiting());
            require(left == (0, 0), || format!("permits are left: {left:?}"))?;
            let left = (limit.in_flight_of(HALF), limit.in_flight_of(THIRD));
            require(left == (0, 0), || format!("shares are left: {left:?}"))?;
        }
        drop((policy, kept, watched, service));
        let left = Arc::strong_count(&token.0) - 1;
        require(left == 0, || format!("{left} of policies, requests and calls are left"))?;
        require(Arc::strong_count(&watch) == 1, || "a service is left".into())?;
        Ok(reached)
    }
}

fn act(deed: Deed, number: u64) -> Act<u64, Fault> {
    let act = match deed.end {
        End::Answer => Act::answer(number),
        End::Hang => Act::hang(),
        End::Panic => Act::panic(),
        end => Act::error(Fault { number, end }),
    };
    act.after(ms(deed.after))
}
