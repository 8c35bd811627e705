//! A circuit breaker through anything that can happen to it, against a model that keeps a log of the calls that ended and
//! derives all else from it.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use arbitrary::Arbitrary;
use buttress::{
    Backoff, CircuitBreaker, Error, Jitter, Reason, Rejection, Rule, Verdict,
    circuit_breaker::{Permit, State, Transition},
    classify,
};
use tokio::time::advance;

use crate::{Share, Span, paused, with};

#[derive(Arbitrary, Debug)]
struct Input {
    rules: Rules,
    events: Vec<Event>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Rules {
    window: Window,
    failure_rate: Option<Share>,
    slow_call_rate: Option<Share>,
    consecutive: Option<u8>,
    min_calls: u8,
    slow_call: Span,
    ignores_throttled: bool,
    open_time: OpenTime,
    probes: u8,
    probe_failure_rate: Share,
    lease: Span,
    begins_in_shadow: bool,
    seed: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Window {
    /// So many milliseconds, and so many nanoseconds.
    Time(u16, u16),
    Calls(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct OpenTime {
    shape: Shape,
    first: Span,
    longest: Span,
    jitter: Chance,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Shape {
    Constant,
    Adding(Span),
    Times(u8),
    Decorrelated,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Chance {
    None,
    Full,
    Equal,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Event {
    /// A call begins: one that is settled by hand, or a future.
    Begin {
        by_hand: bool,
    },
    /// One of those that have begun ends; by hand it can say how long it took.
    End {
        which: u8,
        says: Says,
        took: Option<Took>,
    },
    /// One of those that have begun is dropped.
    Forget {
        which: u8,
    },
    /// A future that ends at its first poll.
    AtOnce(Says),
    /// So many of these.
    Burst {
        says: Says,
        calls: u8,
        by_hand: bool,
    },
    Wait(Span),
    /// Until the circuit lets probes in or their lease ends, or a nanosecond less.
    WaitForIt {
        nearly: bool,
    },
    /// So many times: until probes are let in, and they fail.
    Relapse {
        times: u8,
    },
    Force(By),
    Look,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Took {
    Any(Span),
    /// As long as a call may take without being slow, or a nanosecond more.
    TheMost {
        and_more: bool,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum By {
    Open,
    Closed,
    Shadow,
    Reset,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Says {
    Success,
    Transient(Option<Hint>),
    Unsent,
    Failed,
    Throttled(Option<Hint>),
    Permanent,
    Ignored,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Hint {
    After(Span),
    /// The longest time there is: do not ask again.
    Never,
}

impl From<Says> for Verdict {
    fn from(says: Says) -> Self {
        let hint = |hint: Option<Hint>| {
            hint.map(|hint| match hint {
                Hint::After(Span(time)) => time,
                Hint::Never => Duration::MAX,
            })
        };
        match says {
            Says::Success => Verdict::Success,
            Says::Transient(after) => Verdict::Transient { retry_after: hint(after) },
            Says::Unsent => Verdict::Unsent,
            Says::Failed => Verdict::Failed,
            Says::Throttled(after) => Verdict::Throttled { retry_after: hint(after) },
            Says::Permanent => Verdict::Permanent,
            Says::Ignored => Verdict::Ignored,
        }
    }
}

impl Rules {
    fn span(self) -> Option<Duration> {
        match self.window {
            Window::Time(millis, nanos) => {
                Some(Duration::new(0, nanos.into()) + Duration::from_millis(100 + u64::from(millis) * 50))
            }
            Window::Calls(_) => None,
        }
    }

    fn calls(self) -> Option<usize> {
        match self.window {
            Window::Time(..) => None,
            Window::Calls(calls) => Some(usize::from(calls) + 1),
        }
    }

    /// Not past what is "for ever" to the clock: how long a call took is not told from longer there.
    fn slow_call(self) -> Duration {
        self.slow_call.or_a_nano().min(Duration::from_secs(86_400))
    }

    /// Rules that can be met.
    fn sensible(mut self) -> Self {
        if self.failure_rate.is_none() && self.slow_call_rate.is_none() && self.consecutive.is_none() {
            self.failure_rate = Some(Share { part: 1, whole: 2 });
        }
        self.consecutive = self.consecutive.map(|failures| failures.max(1));
        self.min_calls = self.min_calls.max(1);
        if let Window::Calls(calls) = self.window {
            self.min_calls = self.min_calls.min(calls.saturating_add(1));
        }
        self.probes = self.probes % 8 + 1;
        self
    }

    fn build(self, heard: &Heard) -> CircuitBreaker {
        let heard = Arc::clone(heard);
        let mut builder = CircuitBreaker::builder()
            .min_calls(self.min_calls.into())
            .slow_call(self.slow_call())
            .open_time(self.open_time.backoff())
            .probes(self.probes.into())
            .probe_failure_rate(self.probe_failure_rate.rate())
            .probe_lease(self.lease.or_a_nano())
            .seed(self.seed.into())
            .on_transition(move |transition| heard.lock().unwrap().push(*transition));
        builder = match (self.span(), self.calls()) {
            (Some(span), _) => builder.window(span),
            (_, calls) => builder.window_calls(calls.unwrap_or(1)),
        };
        builder = match self.failure_rate {
            Some(share) => builder.failure_rate(share.rate()),
            None => builder.without_failure_rate(),
        };
        if let Some(share) = self.slow_call_rate {
            builder = builder.slow_call_rate(share.rate());
        }
        if let Some(failures) = self.consecutive {
            builder = builder.consecutive_failures(failures.into());
        }
        if self.ignores_throttled {
            builder = builder.ignore_throttled();
        }
        if self.begins_in_shadow {
            builder = builder.shadow();
        }
        builder.build().expect("sensible rules")
    }
}

impl OpenTime {
    fn backoff(self) -> Backoff {
        let first = self.first.or_a_nano();
        let backoff = match self.shape {
            Shape::Constant => Backoff::constant(first),
            Shape::Adding(Span(step)) => Backoff::linear(first, step),
            Shape::Times(factor) => Backoff::exponential(first).factor(f64::from(factor.max(1))),
            Shape::Decorrelated => Backoff::decorrelated(first),
        };
        backoff.max_delay(self.longest()).jitter(match self.jitter {
            Chance::None => Jitter::None,
            Chance::Full => Jitter::Full,
            Chance::Equal => Jitter::Equal,
        })
    }

    fn longest(self) -> Duration {
        self.longest.or_a_nano()
    }

    /// The shortest and the longest that the opening of this number takes, the one before having taken up to `previous`.
    fn bounds(self, opening: u32, previous: Duration) -> (Duration, Duration) {
        let (first, again) = (self.first.or_a_nano(), u128::from(opening - 1));
        let full = match self.shape {
            Shape::Constant => first.as_nanos(),
            Shape::Adding(Span(step)) => first.as_nanos() + step.as_nanos() * again,
            Shape::Times(factor) => (0..again.min(128))
                .fold(first.as_nanos(), |time, _| time.saturating_mul(u128::from(factor.max(1))).min(1 << 90)),
            Shape::Decorrelated => first.max(previous).as_nanos() * 3,
        };
        let longest = full.min(self.longest().as_nanos());
        let shortest = match (self.shape, self.jitter) {
            (Shape::Decorrelated, _) => first.as_nanos().min(longest),
            (_, Chance::None) => longest,
            _ => longest / 2,
        };
        // What floats lose.
        let lost = longest / 1_000_000_000_000 + 1;
        (of_nanos(shortest.saturating_sub(lost)), of_nanos(longest + lost).min(self.longest()))
    }
}

fn of_nanos(nanos: u128) -> Duration {
    Duration::new((nanos / 1_000_000_000) as u64, (nanos % 1_000_000_000) as u32)
}

/// As far as nanoseconds go in a word.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

type Heard = Arc<Mutex<Vec<Transition>>>;

// ---------------------------------------------------------------- the model

/// A call that ended and counts.
#[derive(Debug)]
struct Entry {
    /// A quick success is given the time when somebody next looks at the clock.
    at: Option<u64>,
    failed: bool,
    slow: bool,
}

/// What an admitted call remembers.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    generation: u64,
    /// When it was admitted.
    since: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Round {
    Open { until: u64 },
    Probing { lease_ends: u64, out: u64, succeeded: u64, failed: u64 },
    None,
}

/// A transition that is to be heard of.
#[derive(Debug)]
struct Move {
    from: State,
    to: State,
    rule: Option<Rule>,
    measured: Option<f32>,
    rejected: u64,
    /// The number of the opening, and the server's hint.
    opens: Option<(u32, Option<Duration>)>,
}

/// Successes that may wait for somebody who looks at the clock.
const UNTIMED: usize = 7;

struct Model {
    rules: Rules,
    now: Duration,
    state: State,
    round: Round,
    /// In Shadow: until when it would be open.
    quiet_until: u64,
    generation: u64,
    /// Of this generation.
    log: Vec<Entry>,
    openings: u32,
    previous: Duration,
    why: Option<(Rule, f32)>,
    rejected: u64,
    rejected_before: u64,
}

impl Model {
    fn new(rules: Rules) -> Self {
        Self {
            rules,
            now: Duration::ZERO,
            state: if rules.begins_in_shadow { State::Shadow } else { State::Closed },
            round: Round::None,
            quiet_until: 0,
            generation: 0,
            log: Vec::new(),
            openings: 0,
            previous: Duration::ZERO,
            why: None,
            rejected: 0,
            rejected_before: 0,
        }
    }

    fn nanos(&self) -> u64 {
        nanos(self.now)
    }

    /// When something changes by itself.
    fn until(&self) -> Option<u64> {
        match self.round {
            Round::Open { until } => Some(until),
            Round::Probing { lease_ends, .. } => Some(lease_ends),
            Round::None => None,
        }
    }

    fn left(&self) -> Option<Duration> {
        self.until().map(|until| Duration::from_nanos(until.saturating_sub(self.nanos())))
    }

    fn is_current(&self, ticket: Ticket) -> bool {
        ticket.generation == self.generation
    }

    fn enter(&mut self, to: State, round: Round) -> Move {
        let from = std::mem::replace(&mut self.state, to);
        self.round = round;
        self.generation += 1;
        self.log.clear();
        let rejected = self.rejected - std::mem::replace(&mut self.rejected_before, self.rejected);
        Move { from, to, rule: None, measured: None, rejected, opens: None }
    }

    /// `until` is yet to be told.
    fn open(&mut self, rule: Rule, measured: f32, hint: Option<Duration>) -> Move {
        self.openings += 1;
        self.why = Some((rule, measured));
        let opens = Some((self.openings, hint));
        Move { rule: Some(rule), measured: Some(measured), opens, ..self.enter(State::Open, Round::Open { until: 0 }) }
    }

    fn close(&mut self) -> Move {
        self.openings = 0;
        self.previous = Duration::ZERO;
        self.enter(State::Closed, Round::None)
    }

    fn lease_from_now(&self) -> u64 {
        self.nanos().saturating_add(nanos(self.rules.lease.or_a_nano()))
    }

    fn admit(&mut self) -> (Result<Ticket, Rule>, Option<Move>) {
        let (now, probes) = (self.nanos(), u64::from(self.rules.probes));
        let mut moved = None;
        let admitted = match &mut self.round {
            Round::None => self.state != State::ForcedOpen,
            Round::Open { until } if now < *until => false,
            Round::Open { .. } => {
                let lease_ends = self.lease_from_now();
                let round = Round::Probing { lease_ends, out: 1, succeeded: 0, failed: 0 };
                moved = Some(self.enter(State::HalfOpen, round));
                true
            }
            Round::Probing { lease_ends, out, succeeded, failed } if now >= *lease_ends && *out > 0 => {
                let answered = (*succeeded + *failed) as f32;
                moved = Some(self.open(Rule::ProbeLease, answered, None));
                false
            }
            Round::Probing { lease_ends, out, succeeded, failed } => {
                let admitted = *out + *succeeded + *failed < probes;
                if admitted {
                    *out += 1;
                    *lease_ends = now.saturating_add(nanos(self.rules.lease.or_a_nano()));
                }
                admitted
            }
        };
        if admitted {
            return (Ok(Ticket { generation: self.generation, since: self.now }), moved);
        }
        self.rejected += 1;
        let rule = match self.state {
            State::ForcedOpen => Rule::Forced,
            State::HalfOpen => Rule::ProbesOut,
            _ => self.why.expect("it opened for a reason").0,
        };
        (Err(rule), moved)
    }

    /// A call says this, having been seen to take `took`; `timed` if the clock is read for it in any case.
    fn settle(&mut self, ticket: Ticket, verdict: Verdict, took: Duration, timed: bool) -> Option<Move> {
        if !self.is_current(ticket) {
            return None;
        }
        let failed = match verdict {
            Verdict::Success | Verdict::Permanent => false,
            Verdict::Throttled { .. } if self.rules.ignores_throttled => return self.forget_probe(),
            Verdict::Ignored => return self.forget_probe(),
            _ => true,
        };
        let hint = verdict.retry_after().filter(|hint| *hint != Duration::MAX);
        let slow = took > self.rules.slow_call();
        if let Round::Probing { .. } = self.round {
            return self.settle_probe(failed || slow && self.rules.slow_call_rate.is_some(), hint);
        }
        let waiting = self.log.iter().filter(|entry| entry.at.is_none()).count();
        if !failed && !timed && (waiting < UNTIMED || self.rules.calls().is_some()) {
            let at = self.rules.calls().map(|_| self.nanos());
            self.log.push(Entry { at, failed: false, slow: false });
            return None;
        }
        self.look_at_the_clock();
        self.log.push(Entry { at: Some(self.nanos()), failed, slow });
        self.trip(failed, slow, hint)
    }

    fn forget_probe(&mut self) -> Option<Move> {
        if let Round::Probing { out, .. } = &mut self.round {
            *out -= 1;
        }
        None
    }

    fn settle_probe(&mut self, failure: bool, hint: Option<Duration>) -> Option<Move> {
        let Round::Probing { out, succeeded, failed, .. } = &mut self.round else { unreachable!("a probe's round") };
        *out -= 1;
        *(if failure { &mut *failed } else { &mut *succeeded }) += 1;
        let (succeeded, failed, probes) = (*succeeded, *failed, u64::from(self.rules.probes));
        let share = self.rules.probe_failure_rate;
        // If all others were to fail, would it be too many?
        if share.is_reached_by(failed, probes) {
            Some(self.open(Rule::ProbesFailed, (failed as f64 / probes as f64) as f32, hint))
        } else if !share.is_reached_by(probes - succeeded, probes) {
            Some(self.close())
        } else {
            None
        }
    }

    fn look_at_the_clock(&mut self) {
        let now = self.nanos();
        self.log.iter_mut().for_each(|entry| {
            entry.at.get_or_insert(now);
        });
    }

    /// The part of the log that is in the window.
    fn window(&mut self) -> &[Entry] {
        self.look_at_the_clock();
        let first = match (self.rules.span(), self.rules.calls()) {
            (Some(span), _) => {
                // It slides in tenths, counted from when the breaker was made.
                let tenth = |at: u64| at / (nanos(span) / 10);
                let now = tenth(self.nanos());
                self.log.partition_point(|entry| entry.at.is_some_and(|at| tenth(at) + 10 <= now))
            }
            (_, calls) => self.log.len().saturating_sub(calls.unwrap_or(0)),
        };
        &self.log[first..]
    }

    fn totals(&mut self) -> (u64, u64, u64) {
        let window = self.window();
        let count = |of: fn(&Entry) -> bool| window.iter().filter(|entry| of(entry)).count() as u64;
        (count(|_| true), count(|entry| entry.failed), count(|entry| entry.slow))
    }

    fn streak(&self) -> usize {
        self.log.iter().rev().take_while(|entry| entry.failed).count()
    }

    fn trip(&mut self, failed: bool, slow: bool, hint: Option<Duration>) -> Option<Move> {
        if !failed && !slow || self.state == State::ForcedClosed {
            return None;
        }
        let (rule, measured) = self.broken_rule(failed, slow)?;
        match self.state {
            State::Closed => Some(self.open(rule, measured, hint)),
            State::Shadow if self.nanos() >= self.quiet_until => {
                let rejected = self.rejected - std::mem::replace(&mut self.rejected_before, self.rejected);
                let (from, to) = (State::Shadow, State::Shadow);
                Some(Move { from, to, rule: Some(rule), measured: Some(measured), rejected, opens: Some((1, None)) })
            }
            _ => None,
        }
    }

    fn broken_rule(&mut self, failed: bool, slow: bool) -> Option<(Rule, f32)> {
        let rules = self.rules;
        let streak = self.streak();
        if failed && rules.consecutive.is_some_and(|most| streak >= usize::from(most)) {
            return Some((Rule::ConsecutiveFailures, streak as f32));
        }
        let (calls, failures, slow_calls) = self.totals();
        if calls < u64::from(rules.min_calls) {
            return None;
        }
        let reached = |share: Option<Share>, part: u64| share.is_some_and(|share| share.is_reached_by(part, calls));
        let rate = |part: u64| (part as f64 / calls as f64) as f32;
        if failed && reached(rules.failure_rate, failures) {
            Some((Rule::FailureRate, rate(failures)))
        } else if slow && reached(rules.slow_call_rate, slow_calls) {
            Some((Rule::SlowCallRate, rate(slow_calls)))
        } else {
            None
        }
    }

    fn force(&mut self, by: By) -> Option<Move> {
        let to = match by {
            By::Reset => return Some(self.close()),
            By::Open => State::ForcedOpen,
            By::Closed => State::ForcedClosed,
            By::Shadow => State::Shadow,
        };
        if self.state == to {
            return None;
        }
        self.quiet_until = 0;
        let rule = (to == State::ForcedOpen).then_some(Rule::Forced);
        Some(Move { rule, ..self.enter(to, Round::None) })
    }
}

// ---------------------------------------------------------------- both, side by side

/// A call that is under way.
enum Call {
    ByHand(Permit),
    Future { says: Rc<Cell<Option<Verdict>>>, future: Pin<Box<dyn Future<Output = Told>>> },
}

type Told = Result<Verdict, Error<Infallible>>;

struct Pair {
    breaker: CircuitBreaker,
    heard: Heard,
    watch: tokio::sync::watch::Receiver<State>,
    model: Model,
    calls: Vec<(Call, Ticket)>,
}

fn poll(future: Pin<&mut dyn Future<Output = Told>>) -> Poll<Told> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// A future through the breaker that ends with what it finds, once it finds something.
fn through(breaker: &CircuitBreaker, says: Rc<Cell<Option<Verdict>>>) -> Pin<Box<dyn Future<Output = Told>>> {
    let breaker = breaker.clone();
    Box::pin(async move {
        let judge = classify::from_fn(|told: Result<&Verdict, &Infallible>| match told {
            Ok(verdict) => *verdict,
            Err(never) => match *never {},
        });
        breaker
            .call_with(judge, poll_fn(|_| says.take().map_or(Poll::Pending, |verdict| Poll::Ready(Ok(verdict)))))
            .await
    })
}

impl Pair {
    fn new(rules: Rules) -> Self {
        let heard = Heard::default();
        let breaker = rules.build(&heard);
        let watch = breaker.watch();
        Self { watch, breaker, heard, model: Model::new(rules), calls: Vec::new() }
    }

    async fn step(&mut self, event: Event) {
        match event {
            Event::Begin { by_hand } => {
                let _ = self.begin(by_hand);
            }
            Event::End { which, says, took } => {
                if let Some((call, ticket)) = self.pick(which) {
                    let took = took.map(|took| match took {
                        Took::Any(Span(time)) => time,
                        Took::TheMost { and_more } => {
                            self.model.rules.slow_call() + Duration::from_nanos(and_more.into())
                        }
                    });
                    self.end(call, ticket, says.into(), took);
                }
            }
            Event::Forget { which } => {
                if let Some((call, ticket)) = self.pick(which) {
                    // A call that has outrun the slow threshold has failed, else it says nothing.
                    let took = self.model.now - ticket.since;
                    let slow = took > self.model.rules.slow_call();
                    let verdict = if slow { Verdict::TRANSIENT } else { Verdict::Ignored };
                    let moved = self.model.settle(ticket, verdict, took, true);
                    drop(call);
                    self.hear(moved);
                }
            }
            Event::AtOnce(says) => self.at_once(says.into()),
            Event::Burst { says, calls, by_hand } => {
                for _ in 0..calls % 32 {
                    if !by_hand {
                        self.at_once(says.into());
                    } else if self.begin(true) {
                        let (call, ticket) = self.calls.pop().expect("it has begun");
                        self.end(call, ticket, says.into(), None);
                    }
                }
            }
            Event::Wait(Span(time)) => self.wait(time).await,
            Event::WaitForIt { nearly } => {
                let left = self.model.left().unwrap_or_default();
                self.wait(left.saturating_sub(Duration::from_nanos(nearly.into()))).await;
            }
            Event::Relapse { times } => {
                for _ in 0..times {
                    let State::Open = self.model.state else { break };
                    self.wait(self.model.left().unwrap_or_default()).await;
                    for _ in 0..self.model.rules.probes {
                        if self.begin(true) {
                            self.look();
                            let (call, ticket) = self.calls.pop().expect("it has begun");
                            self.end(call, ticket, Verdict::TRANSIENT, None);
                        }
                    }
                }
            }
            Event::Force(by) => {
                let moved = self.model.force(by);
                match by {
                    By::Open => self.breaker.force_open(),
                    By::Closed => self.breaker.force_closed(),
                    By::Shadow => self.breaker.shadow(),
                    By::Reset => self.breaker.reset(),
                }
                self.hear(moved);
            }
            Event::Look => self.look(),
        }
        self.agree();
    }

    fn pick(&mut self, which: u8) -> Option<(Call, Ticket)> {
        let of = self.calls.len();
        (of > 0).then(|| self.calls.swap_remove(usize::from(which) % of))
    }

    async fn wait(&mut self, time: Duration) {
        advance(time).await;
        self.model.now += time;
    }

    /// Whether it was admitted.
    fn begin(&mut self, by_hand: bool) -> bool {
        let (expected, moved) = self.model.admit();
        let admitted = if by_hand {
            self.breaker.try_acquire().map(Call::ByHand)
        } else {
            let says = Rc::default();
            let mut future = through(&self.breaker, Rc::clone(&says));
            match poll(future.as_mut()) {
                Poll::Pending => Ok(Call::Future { says, future }),
                Poll::Ready(Err(Error::Rejected(rejection))) => Err(rejection),
                Poll::Ready(told) => panic!("it has said nothing, but {told:?}"),
            }
        };
        self.hear(moved);
        match (admitted, expected) {
            (Ok(call), Ok(ticket)) => {
                self.calls.push((call, ticket));
                true
            }
            (Err(rejection), Err(rule)) => {
                self.refused(rejection, rule);
                false
            }
            (admitted, expected) => panic!("admitted: {}, expected: {expected:?}", admitted.is_ok()),
        }
    }

    fn refused(&self, rejection: Rejection, rule: Rule) {
        assert_eq!((rejection.reason(), rejection.rule()), (Reason::CircuitOpen, rule));
        assert_eq!(rejection.retry_after(), self.model.left());
    }

    fn end(&mut self, call: Call, ticket: Ticket, verdict: Verdict, took: Option<Duration>) {
        let seen = self.model.now - ticket.since;
        let timed = self.model.rules.slow_call_rate.is_some();
        let moved = match call {
            Call::ByHand(permit) => {
                let moved = self.model.settle(ticket, verdict, took.unwrap_or(seen), true);
                match took {
                    Some(took) => permit.settle_after(verdict, took),
                    None => permit.settle(verdict),
                }
                moved
            }
            Call::Future { says, mut future } => {
                let moved = self.model.settle(ticket, verdict, seen, timed);
                says.set(Some(verdict));
                assert_eq!(poll(future.as_mut()), Poll::Ready(Ok(verdict)), "it ends as it wants to");
                moved
            }
        };
        self.hear(moved);
    }

    /// A future that is never found pending, and so takes no time.
    fn at_once(&mut self, verdict: Verdict) {
        let (expected, moved) = self.model.admit();
        let told = poll(through(&self.breaker, Rc::new(Cell::new(Some(verdict)))).as_mut());
        match (told, expected) {
            (Poll::Ready(Ok(told)), Ok(ticket)) => {
                assert_eq!(told, verdict);
                let timed = verdict != Verdict::Success && self.model.rules.slow_call_rate.is_some();
                // Its admission may have been a move, and its end is another.
                let settled = self.model.settle(ticket, verdict, Duration::ZERO, timed);
                self.hear(moved.into_iter().chain(settled));
            }
            (Poll::Ready(Err(Error::Rejected(rejection))), Err(rule)) => {
                self.hear(moved);
                self.refused(rejection, rule);
            }
            (told, expected) => panic!("told: {told:?}, expected: {expected:?}"),
        }
    }

    /// What is heard is what is expected; how long the circuit is open, within its bounds, is taken from there.
    fn hear(&mut self, moves: impl IntoIterator<Item = Move>) {
        let heard = std::mem::take(&mut *self.heard.lock().unwrap());
        let moves: Vec<Move> = moves.into_iter().collect();
        assert_eq!(heard.len(), moves.len(), "{heard:?} for {moves:?}");
        for (heard, expected) in heard.iter().zip(moves) {
            assert_eq!(
                (heard.from, heard.to, heard.rule, heard.rejected),
                (expected.from, expected.to, expected.rule, expected.rejected),
                "{heard:?}"
            );
            assert_eq!(Some(heard.measured).filter(|figure| !figure.is_nan()), expected.measured, "{heard:?}");
            let Some((opening, hint)) = expected.opens else {
                assert_eq!(heard.open_for, None);
                continue;
            };
            let open_for = heard.open_for.expect("it says how long");
            let times = self.model.rules.open_time;
            let (shortest, longest) = times.bounds(opening, self.model.previous);
            let hint = hint.unwrap_or_default().min(times.longest());
            assert!(
                shortest.max(hint) <= open_for && open_for <= longest.max(hint) && !open_for.is_zero(),
                "{open_for:?}, not in {shortest:?}..={longest:?} with {hint:?}"
            );
            let until = self.model.nanos().saturating_add(nanos(open_for));
            if expected.to == State::Shadow {
                self.model.quiet_until = until;
            } else {
                self.model.previous = open_for;
                if let Round::Open { until: told } = &mut self.model.round {
                    *told = until;
                }
            }
        }
    }

    fn agree(&mut self) {
        assert_eq!(self.breaker.state(), self.model.state);
        assert_eq!(*self.watch.borrow_and_update(), self.model.state);
        let probes = self.calls.iter().filter(|(_, ticket)| self.model.is_current(*ticket)).count();
        let half_open = self.breaker.state() == State::HalfOpen;
        assert!(!half_open || probes <= self.model.rules.probes.into(), "{probes} probes are out");
    }

    fn look(&mut self) {
        let seen = self.breaker.snapshot();
        let totals = self.model.totals();
        assert_eq!((seen.calls, seen.failures, seen.slow_calls), totals);
        assert_eq!(seen.consecutive_failures as usize, self.model.streak());
        assert_eq!(seen.state, self.model.state);
        assert_eq!(seen.rejected, self.model.rejected);
        assert_eq!(seen.retry_after, self.model.left());
        assert_eq!(self.model.left().is_some(), matches!(seen.state, State::Open | State::HalfOpen));
    }

    /// Whatever has happened, and though calls hang, a service that works again is called again.
    async fn gets_well(&mut self) {
        if matches!(self.model.state, State::ForcedOpen) {
            self.breaker.reset();
            let moved = self.model.force(By::Reset);
            self.hear(moved);
        }
        // A lease that ends, an open time, and the probes; one of a round before may be in the way for as long again.
        let most = 6 + 2 * usize::from(self.model.rules.probes);
        for _ in 0..most {
            if !matches!(self.breaker.state(), State::Open | State::HalfOpen) {
                return;
            }
            if self.begin(true) {
                let (call, ticket) = self.calls.pop().expect("it has begun");
                self.end(call, ticket, Verdict::Success, Some(Duration::ZERO));
            } else {
                let left = self.breaker.snapshot().retry_after.expect("it says when");
                self.wait(left).await;
            }
            self.agree();
        }
        panic!("stuck: {:?}", self.breaker.snapshot());
    }
}

pub fn run(data: &[u8]) {
    with(data, |Input { rules, events }: Input| {
        paused(async {
            let mut pair = Pair::new(rules.sensible());
            for event in events {
                pair.step(event).await;
            }
            pair.look();
            pair.gets_well().await;
            // Late ones too.
            while let Some((call, ticket)) = pair.pick(0) {
                pair.end(call, ticket, Verdict::TRANSIENT, None);
                pair.agree();
            }
            pair.look();
        });
    });
}
