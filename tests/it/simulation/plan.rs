//! What a run is: a policy, a service, and what befalls them, step by step. All of it shrinks.

use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, ConcurrencyLimit, ConcurrencyLimitBuilder, Jitter, Partition,
    Retry, RetryBuilder, Throttle, ThrottleBuilder,
    concurrency_limit::{Discipline, Headroom},
    retry::Budget,
};
use proptest::{collection::vec, prelude::*};

use crate::support::{ms, secs};

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub deadline: Option<u64>,
    /// Of whoever calls, from when the call is made.
    pub outer_deadline: Option<u64>,
    pub retry: Option<Retries>,
    pub breaker: Option<Breaker>,
    pub throttle: Option<Throttling>,
    pub limit: Option<Limit>,
    pub timeout: Option<u64>,
    /// After how long it asks once more.
    pub hedge: Option<u64>,
    /// Whether it knows of a shutdown.
    pub drains: bool,
    /// What the calls that reach the service do, over and over.
    pub deeds: Vec<Deed>,
    /// How long the service takes to be ready.
    pub ready_after: u64,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub struct Retries {
    pub attempts: u32,
    pub delay: u64,
    /// `ratio` in percent, and the floor per second; `None`: without a budget.
    pub budget: Option<(u32, u32)>,
    pub retries_refused: bool,
}

#[derive(Clone, Debug)]
pub struct Breaker {
    pub consecutive: Option<u32>,
    /// In percent, with `min_calls`.
    pub failure_rate: Option<(u32, u64)>,
    pub slow_rate: bool,
    /// In calls; `None`: ten seconds.
    pub window_calls: Option<usize>,
    pub open: u64,
    pub probes: u32,
    /// Of a second round.
    pub then_probes: Option<u32>,
    pub lease: u64,
    pub shadow: bool,
}

#[derive(Clone, Debug)]
pub struct Throttling {
    pub envoy: bool,
    /// In percent.
    pub most: u32,
    /// In seconds.
    pub window: u64,
}

#[derive(Clone, Debug)]
pub struct Limit {
    pub max: usize,
    pub queue: usize,
    pub max_wait: Option<u64>,
    /// It finds itself, holds back, and goes by deadlines.
    pub adaptive: bool,
    /// Whether some have a guaranteed share.
    pub shared: bool,
}

/// What one call of the service does, after a while.
#[derive(Clone, Copy, Debug)]
pub struct Deed {
    pub after: u64,
    pub end: End,
}

#[derive(Clone, Copy, Debug)]
pub enum End {
    Answer,
    Down,
    /// With the milliseconds after which to come back.
    Busy(Option<u64>),
    /// An error that says that the service is well.
    Wrong,
    /// An error that says nothing.
    Ignored,
    Hang,
    Panic,
    /// In `call`, before there is a future.
    PanicInCall,
}

/// How a call is made.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// `policy.call`.
    Call,
    /// `policy.call_as`.
    CallAs,
    /// A fresh clone of the wrapped service.
    Send,
    /// The one that is kept, if it is ready at once.
    Kept,
}

#[derive(Clone, Debug)]
pub enum Step {
    /// A call, and its first poll.
    Start(Way),
    /// A call, polled later or never.
    Prepare(Way),
    /// Polls a call that was not woken: the one of this number, over and over the line of those that are there.
    Poll(usize),
    Drop(usize),
    /// The clock jumps, as over a worker that was stuck.
    Jump(u64),
    /// The clock goes from one event to the next.
    Flow(u64),
    Resize(usize),
    Force(Force),
    /// The shutdown begins.
    Drain,
    /// Drops the futures of calls that have ended.
    Sweep,
}

/// Those that have a share, where there are shares.
pub const HALF: Partition = Partition::new("half");
pub const THIRD: Partition = Partition::new("third");

#[derive(Clone, Copy, Debug)]
pub enum Force {
    Open,
    Closed,
    Shadow,
    Reset,
}

/// A plan is made of numbers, and the smaller they are, the simpler it is: so it shrinks, and is made in no time.
pub fn plan() -> impl Strategy<Value = Plan> {
    (vec(any::<u32>(), 64), vec(any::<u32>(), 1..28), vec(any::<u32>(), 8)).prop_map(|(numbers, steps, more)| {
        let mut draws = Draws(&numbers);
        // Each draws what it draws, whether it is there or not, so that leaving it out leaves the others as they are.
        let mut plan = Plan {
            seed: draws.below(1000),
            deadline: draws.maybe(60, |draws| draws.between(5, 200)),
            outer_deadline: draws.maybe(25, |draws| draws.between(3, 150)),
            timeout: draws.maybe(60, |draws| draws.between(3, 60)),
            hedge: None,
            drains: draws.is(25),
            ready_after: draws.maybe(20, |draws| draws.between(1, 20)).unwrap_or(0),
            retry: draws.maybe(70, retries),
            breaker: draws.maybe(70, breaker),
            throttle: None,
            limit: draws.maybe(70, limit),
            deeds: (0..=draws.below(5)).map(|_| deed(&mut draws)).collect(),
            steps: steps.into_iter().map(step).collect(),
        };
        // The last to be drawn, so that seeds of old stand for what they stood for.
        let adaptive = draws.is(30);
        plan.limit.iter_mut().for_each(|limit| limit.adaptive = adaptive);
        plan.hedge = draws.maybe(30, |draws| draws.below(40));
        let mut draws = Draws(&more);
        plan.throttle = draws.maybe(30, throttle);
        let (shared, then_probes) = (draws.is(30), draws.maybe(30, |draws| draws.between(1, 4) as u32));
        plan.limit.iter_mut().for_each(|limit| limit.shared = shared);
        plan.breaker.iter_mut().for_each(|breaker| breaker.then_probes = then_probes);
        plan
    })
}

/// Numbers that are used up one by one.
struct Draws<'a>(&'a [u32]);

impl Draws<'_> {
    fn below(&mut self, end: u64) -> u64 {
        let (first, rest) = self.0.split_first().expect("there are enough");
        self.0 = rest;
        u64::from(*first) % end
    }

    fn between(&mut self, start: u64, end: u64) -> u64 {
        start + self.below(end - start)
    }

    fn is(&mut self, percent: u64) -> bool {
        self.below(100) >= 100 - percent
    }

    fn maybe<T>(&mut self, percent: u64, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let is = self.is(percent);
        let made = make(self);
        is.then_some(made)
    }
}

fn retries(draws: &mut Draws<'_>) -> Retries {
    Retries {
        attempts: draws.between(1, 5) as u32,
        delay: draws.below(30),
        budget: draws.maybe(50, |draws| (draws.below(101) as u32, draws.below(3) as u32)),
        retries_refused: draws.is(20),
    }
}

fn breaker(draws: &mut Draws<'_>) -> Breaker {
    Breaker {
        consecutive: draws.maybe(60, |draws| draws.between(1, 4) as u32),
        failure_rate: draws.maybe(60, |draws| (draws.between(1, 101) as u32, draws.between(1, 5))),
        slow_rate: draws.is(20),
        window_calls: draws.maybe(40, |draws| draws.between(5, 12) as usize),
        open: draws.between(1, 80),
        probes: draws.between(1, 4) as u32,
        then_probes: None,
        lease: draws.between(1, 60),
        shadow: draws.is(10),
    }
}

fn throttle(draws: &mut Draws<'_>) -> Throttling {
    Throttling { envoy: draws.is(50), most: draws.between(1, 101) as u32, window: draws.between(1, 10) }
}

fn limit(draws: &mut Draws<'_>) -> Limit {
    Limit {
        max: draws.between(1, 4) as usize,
        queue: draws.below(4) as usize,
        max_wait: draws.maybe(40, |draws| draws.between(1, 50)),
        adaptive: false,
        shared: false,
    }
}

fn deed(draws: &mut Draws<'_>) -> Deed {
    let after = draws.maybe(60, |draws| draws.between(1, 50)).unwrap_or(0);
    let come_back = draws.maybe(50, |draws| draws.below(40));
    let end = match draws.below(16) {
        0..6 => End::Answer,
        6..10 => End::Down,
        10 => End::Busy(come_back),
        11 => End::Wrong,
        12 => End::Ignored,
        13 => End::Hang,
        14 => End::Panic,
        _ => End::PanicInCall,
    };
    Deed { after, end }
}

fn step(number: u32) -> Step {
    let (kind, which) = (number % 32, (number / 32) as usize);
    let way = [Way::Call, Way::CallAs, Way::Send, Way::Kept][which % 4];
    let time = match which % 6 {
        0..4 => 1 + which as u64 / 6 % 30,
        4 => 30 + which as u64 / 6 % 270,
        _ => 300 + which as u64 / 6 % 15_000,
    };
    let force = [Force::Reset, Force::Open, Force::Closed, Force::Reset, Force::Shadow][which % 5];
    match kind {
        0..11 => Step::Start(way),
        11 => Step::Prepare(way),
        12..14 => Step::Poll(which),
        14..18 => Step::Drop(which),
        18..21 => Step::Jump(time),
        21..27 => Step::Flow(time),
        27 => Step::Resize(which % 5),
        28 => Step::Force(force),
        29 => Step::Drain,
        _ => Step::Sweep,
    }
}

impl Retries {
    pub fn builder(&self) -> RetryBuilder {
        let backoff = Backoff::exponential(ms(self.delay)).jitter(Jitter::Full);
        let retry = Retry::with(backoff).max_attempts(self.attempts);
        let retry = match self.retries_refused {
            true => retry.retry_rejected(buttress::Reason::CircuitOpen).retry_rejected(buttress::Reason::Overloaded),
            false => retry,
        };
        match self.budget {
            Some((percent, floor)) => {
                let budget = Budget::builder().ratio(f64::from(percent) / 100.0).min_per_second(floor);
                retry.budget(budget.build().unwrap())
            }
            None => retry.without_budget(),
        }
    }
}

impl Breaker {
    pub fn builder(&self) -> CircuitBreakerBuilder {
        let breaker = CircuitBreaker::builder()
            .open_time(Backoff::exponential(ms(self.open)).max_delay(ms(self.open * 8)))
            .probes(self.probes)
            .then_probes(self.then_probes)
            .probe_lease(ms(self.lease));
        let breaker = match self.window_calls {
            Some(calls) => breaker.window_calls(calls),
            None => breaker,
        };
        let breaker = match self.failure_rate {
            Some((percent, min_calls)) => breaker.failure_rate(f64::from(percent) / 100.0).min_calls(min_calls),
            // There is always one rule.
            None => breaker.without_failure_rate().min_calls(1).consecutive_failures(3),
        };
        let breaker = self.consecutive.map_or(breaker.clone(), |failures| breaker.consecutive_failures(failures));
        let breaker = if self.slow_rate { breaker.slow_call_rate(0.5).slow_call(ms(4)) } else { breaker };
        if self.shadow { breaker.shadow() } else { breaker }
    }
}

impl Throttling {
    pub fn builder(&self) -> ThrottleBuilder {
        let throttle = if self.envoy { Throttle::envoy() } else { Throttle::google() };
        throttle.max_rejection(f64::from(self.most) / 100.0).window(secs(self.window))
    }
}

impl Limit {
    pub fn builder(&self) -> ConcurrencyLimitBuilder {
        let limit = ConcurrencyLimit::builder().max_in_flight(self.max).max_queue(self.queue);
        let limit = self.max_wait.map_or(limit.clone(), |wait| limit.max_wait(ms(wait)));
        let limit = if self.shared { limit.partition(HALF, 0.5).partition(THIRD, 1.0 / 3.0) } else { limit };
        if self.adaptive {
            limit.adaptive(Headroom::default()).hold_back(true).discipline(Discipline::Deadline)
        } else {
            limit
        }
    }
}
