//! Builders with any numbers: `build()` refuses what is out of its range, names it, and what it takes works.

use std::time::Duration;

use arbitrary::Arbitrary;
use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, ConcurrencyLimit, ConfigError, Error, Hedge, HedgeBuilder, Keyed,
    Partition, Policy, Retry, Throttle, ThrottleBuilder, Timeout, Verdict, classify, concurrency_limit::Headroom,
    retry::Budget,
};

use crate::{Span, paused, with};

#[derive(Arbitrary, Debug)]
struct Input {
    breaker: Breaker,
    limit: (Option<Count>, Option<Count>, Option<Time>),
    retry: Attempts,
    budget: Option<(Number, Count)>,
    timeout: Option<Time>,
    deadline: Option<Time>,
    keys: Option<Count>,
    throttle: Throttling,
    hedge: (Number, Number),
    /// Whether it is adaptive, and how far it may fall.
    adaptive: (bool, Option<Number>),
    partitions: Vec<(bool, Number)>,
    answers: Vec<bool>,
}

#[derive(Arbitrary, Debug)]
struct Throttling {
    envoy: bool,
    window: Option<Time>,
    multiplier: Option<Number>,
    accept_rate: Option<Number>,
    aggression: Option<Number>,
    max_rejection: Option<Number>,
    min_calls: Count,
}

#[derive(Arbitrary, Debug)]
struct Breaker {
    window: Option<Window>,
    failure_rate: Option<Number>,
    slow_call_rate: Option<Number>,
    consecutive: Option<Count>,
    min_calls: Option<Count>,
    slow_call: Option<Time>,
    open_time: Option<Time>,
    probes: Option<Count>,
    then_probes: Option<[Count; 2]>,
    probe_failure_rate: Option<Number>,
    lease: Option<Time>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Window {
    Time(Time),
    Calls(Count),
}

#[derive(Arbitrary, Debug)]
struct Attempts {
    most: Count,
    first: Time,
    longest: Option<Time>,
    hint: Option<Time>,
}

/// The bits of one, or one that is likely to be in its range.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Bits(u64),
    Hundredths(u8),
}

impl From<Number> for f64 {
    fn from(number: Number) -> Self {
        match number {
            Number::Bits(bits) => f64::from_bits(bits),
            Number::Hundredths(count) => f64::from(count) / 100.0,
        }
    }
}

/// Any, or one at the edge of some range.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Count {
    Any(u32),
    Edge { which: u8, past: bool },
}

/// What some setting takes at most, or has by default.
const EDGES: [u32; 9] = [0, 1, 20, 1_000, 100_000, 1_000_000, 1_048_575, 1 << 24, 1 << 30];

impl From<Count> for u32 {
    fn from(count: Count) -> Self {
        match count {
            Count::Any(count) => count,
            Count::Edge { which, past } => EDGES[usize::from(which) % EDGES.len()] + u32::from(past),
        }
    }
}

impl Count {
    fn size(self) -> usize {
        u32::from(self) as usize
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Time {
    Span(Span),
    Any(u64, u32),
    /// The shortest and the longest window, and a nanosecond on either side.
    Edge {
        hour: bool,
        past: bool,
        before: bool,
    },
    Longest,
}

impl From<Time> for Duration {
    fn from(time: Time) -> Self {
        match time {
            Time::Span(Span(time)) => time,
            Time::Any(secs, nanos) => Duration::new(secs, nanos % 1_000_000_000),
            Time::Edge { hour, past, before } => {
                let edge = Duration::from_millis(if hour { 3_600_000 } else { 100 });
                edge + Duration::from_nanos(past.into()) - Duration::from_nanos(before.into())
            }
            Time::Longest => Duration::MAX,
        }
    }
}

/// Whether each setting is in its range, as its documentation has it.
type Rules = Vec<(&'static str, bool)>;

/// What `build()` says is what the rules say: it refuses what breaks one, and names all of those.
fn judged<T>(built: Result<T, ConfigError>, rules: &Rules) -> Option<T> {
    let broken: Vec<_> = rules.iter().filter(|(_, holds)| !holds).map(|(setting, _)| *setting).collect();
    match built {
        Ok(value) => {
            assert!(broken.is_empty(), "taken: {broken:?}");
            Some(value)
        }
        Err(error) => {
            let named: Vec<_> = error.problems().iter().map(|problem| problem.setting.as_str()).collect();
            assert_eq!(named, broken, "{error}");
            assert!(error.problems().iter().all(|problem| error.to_string().contains(&problem.to_string())));
            None
        }
    }
}

fn is_rate(rate: Number) -> bool {
    let rate = f64::from(rate);
    rate > 0.0 && rate <= 1.0
}

impl Breaker {
    fn builder(&self) -> CircuitBreakerBuilder {
        let mut builder = CircuitBreaker::builder();
        builder = match self.window {
            Some(Window::Time(span)) => builder.window(span.into()),
            Some(Window::Calls(calls)) => builder.window_calls(calls.size()),
            None => builder,
        };
        builder = match self.failure_rate {
            Some(rate) => builder.failure_rate(rate.into()),
            None => builder.without_failure_rate(),
        };
        if let Some(rate) = self.slow_call_rate {
            builder = builder.slow_call_rate(rate.into());
        }
        if let Some(failures) = self.consecutive {
            builder = builder.consecutive_failures(failures.into());
        }
        if let Some(calls) = self.min_calls {
            builder = builder.min_calls(u32::from(calls).into());
        }
        if let Some(time) = self.slow_call {
            builder = builder.slow_call(time.into());
        }
        if let Some(time) = self.open_time {
            builder = builder.open_time(Backoff::constant(time.into()));
        }
        if let Some(probes) = self.probes {
            builder = builder.probes(probes.into());
        }
        if let Some(rounds) = self.then_probes {
            builder = builder.then_probes(rounds.map(u32::from));
        }
        if let Some(rate) = self.probe_failure_rate {
            builder = builder.probe_failure_rate(rate.into());
        }
        if let Some(time) = self.lease {
            builder = builder.probe_lease(time.into());
        }
        builder
    }

    fn rules(&self) -> Rules {
        let min_calls = self.min_calls.map_or(20, Count::size);
        let rated = self.failure_rate.is_some() || self.slow_call_rate.is_some();
        let not_zero = |time: Option<Time>| time.is_none_or(|time| !Duration::from(time).is_zero());
        let mut rules = match self.window {
            None => vec![],
            Some(Window::Time(span)) => {
                let range = Duration::from_millis(100)..=Duration::from_secs(3_600);
                vec![("circuit_breaker.window", range.contains(&span.into()))]
            }
            Some(Window::Calls(calls)) => vec![
                ("circuit_breaker.window_calls", (1..=1_048_575).contains(&calls.size())),
                ("circuit_breaker.min_calls", !rated || min_calls <= calls.size()),
            ],
        };
        rules.extend([
            ("circuit_breaker.failure_rate", self.failure_rate.is_none_or(is_rate)),
            ("circuit_breaker.slow_call_rate", self.slow_call_rate.is_none_or(is_rate)),
            ("circuit_breaker.consecutive_failures", self.consecutive.is_none_or(|failures| failures.size() > 0)),
            ("circuit_breaker.failure_rate", rated || self.consecutive.is_some()),
            ("circuit_breaker.min_calls", min_calls > 0),
            ("circuit_breaker.slow_call", not_zero(self.slow_call)),
            ("circuit_breaker.open_time", not_zero(self.open_time)),
            ("circuit_breaker.probes", self.probes.is_none_or(is_round)),
        ]);
        let rounds = self.then_probes.into_iter().flatten();
        rules.extend(rounds.map(|probes| ("circuit_breaker.then_probes", is_round(probes))));
        rules.extend([
            ("circuit_breaker.probe_failure_rate", self.probe_failure_rate.is_none_or(is_rate)),
            ("circuit_breaker.probe_lease", not_zero(self.lease)),
        ]);
        rules
    }
}

fn is_round(probes: Count) -> bool {
    (1..=1_000_000).contains(&probes.size())
}

impl Throttling {
    fn builder(&self) -> ThrottleBuilder {
        let mut builder = if self.envoy { Throttle::envoy() } else { Throttle::google() };
        builder = builder.min_calls_per_second(self.min_calls.into());
        if let Some(span) = self.window {
            builder = builder.window(span.into());
        }
        if let Some(multiplier) = self.multiplier {
            builder = builder.multiplier(multiplier.into());
        }
        if let Some(rate) = self.accept_rate {
            builder = builder.accept_rate(rate.into());
        }
        if let Some(aggression) = self.aggression {
            builder = builder.aggression(aggression.into());
        }
        if let Some(share) = self.max_rejection {
            builder = builder.max_rejection(share.into());
        }
        builder
    }

    fn rules(&self) -> Rules {
        let range = Duration::from_millis(100)..=Duration::from_secs(3_600);
        let at_least_one = |number: f64| (1.0..f64::INFINITY).contains(&number);
        let aggression = self.aggression.map_or(1.0, f64::from);
        let mut rules = vec![("throttle.window", self.window.is_none_or(|span| range.contains(&span.into())))];
        // Whichever was set last.
        let (setting, value, multiplier) = match (self.accept_rate, self.multiplier) {
            (Some(rate), _) => ("throttle.accept_rate", (0.01..=1.0).contains(&f64::from(rate)), 1.0 / f64::from(rate)),
            (None, Some(multiplier)) => ("throttle.multiplier", at_least_one(multiplier.into()), multiplier.into()),
            (None, None) => ("throttle.multiplier", true, if self.envoy { 1.0 / 0.95 } else { 2.0 }),
        };
        rules.push((setting, value && (self.envoy || multiplier > 1.0)));
        rules.push(("throttle.aggression", at_least_one(aggression)));
        rules.push((
            "throttle.aggression",
            self.envoy || !(multiplier > 1.0 && (multiplier..f64::INFINITY).contains(&aggression)),
        ));
        rules.push(("throttle.max_rejection", self.max_rejection.is_none_or(is_rate)));
        rules
    }
}

fn hedge((share, times): (Number, Number)) -> (HedgeBuilder, Rules) {
    let (share, times) = (f64::from(share), f64::from(times));
    let rules = vec![
        ("hedge.percentile", (0.5..=0.999).contains(&(share as f32))),
        ("hedge.times", (1.0..=100.0).contains(&(times as f32))),
    ];
    (Hedge::percentile(share).times(times), rules)
}

/// Shares are parts of one, and of each partition there is one.
fn partitions(all: &[(bool, Number)]) -> (Vec<(Partition, f64)>, Rules) {
    let (mut rules, mut sum) = (Rules::new(), 0.0);
    for (at, &(live, share)) in all.iter().enumerate() {
        rules.push(("concurrency_limit.partition", is_rate(share)));
        rules.push(("concurrency_limit.partition", all[..at].iter().all(|(other, _)| *other != live)));
        sum += f64::from(share);
    }
    rules.push(("concurrency_limit.partition", sum.is_nan() || sum <= 1.000_001));
    rules.push(("concurrency_limit.partition", all.len() <= 200));
    let named = |&(live, share): &(bool, Number)| (Partition::new(if live { "live" } else { "batch" }), share.into());
    (all.iter().map(named).collect(), rules)
}

/// Half of what 32 bits hold.
const MOST: usize = 1 << 30;

async fn story(input: Input) {
    let Input { breaker, limit: (in_flight, queue, wait), retry, budget, timeout, deadline, keys, .. } = input;
    let Input { throttle, adaptive: (adaptive, least), answers, .. } = input;

    let rules = breaker.rules();
    let built = judged(breaker.builder().build(), &rules);
    if let Some(breaker) = &built {
        for success in &answers {
            let _ = breaker.call(async { if *success { Ok(()) } else { Err(()) } }).await;
            if let Ok(permit) = breaker.try_acquire() {
                permit.settle(if *success { Verdict::Success } else { Verdict::Failed });
            }
        }
        breaker.reset();
        assert!(breaker.try_acquire().is_ok(), "it works");
    }

    let mut limit = ConcurrencyLimit::builder();
    if let Some(calls) = in_flight {
        limit = limit.max_in_flight(calls.size());
    }
    if let Some(calls) = queue {
        limit = limit.max_queue(calls.size());
    }
    if let Some(time) = wait {
        limit = limit.max_wait(time.into());
    }
    if adaptive {
        limit = limit.adaptive(Headroom::default());
    }
    if let Some(least) = least {
        limit = limit.min_in_flight(least.into());
    }
    let (shares, of_shares) = partitions(&input.partitions);
    limit = shares.iter().fold(limit, |limit, (partition, share)| limit.partition(*partition, *share));
    let is_count = |calls: Count| (1..=MOST).contains(&calls.size());
    let mut of_limit = vec![("concurrency_limit.max_in_flight", in_flight.map_or(adaptive, is_count))];
    if let Some(least) = least.map(f64::from) {
        of_limit.push(("concurrency_limit.min_in_flight", least > 0.0 && least <= MOST as f64));
        of_limit.push(("concurrency_limit.min_in_flight", adaptive));
        let most = in_flight.map_or(1_000, Count::size) as f64;
        of_limit.push(("concurrency_limit.min_in_flight", !adaptive || least.is_nan() || least <= most));
    }
    of_limit.extend(of_shares);
    of_limit.extend([
        ("concurrency_limit.max_queue", queue.is_none_or(|calls| calls.size() <= MOST)),
        ("concurrency_limit.max_wait", wait.is_none_or(|time| !Duration::from(time).is_zero())),
    ]);
    if let Some(limit) = judged(limit.clone().build(), &of_limit) {
        let permit = limit.acquire().await.expect("there is room for one");
        assert_eq!(limit.in_flight(), 1);
        drop(permit);
        assert_eq!(limit.in_flight(), 0);
        assert!(adaptive || Some(limit.max_in_flight()) == in_flight.map(Count::size));
        for (partition, _) in &shares {
            let permit = partition.scope(limit.acquire()).await.expect("there is room for one");
            assert_eq!((limit.in_flight(), limit.in_flight_of(*partition)), (1, 1));
            drop(permit);
        }
    }

    let of_throttle = throttle.rules();
    if let Some(throttle) = judged(throttle.builder().build(), &of_throttle) {
        for success in &answers {
            let _ = throttle.call(async { if *success { Ok(()) } else { Err(()) } }).await;
        }
        let seen = throttle.snapshot();
        assert!((0.0..=1.0).contains(&seen.rejection_probability) && seen.accepts <= seen.requests, "{seen:?}");
    }
    let (hedge, of_hedge) = hedge(input.hedge);
    if let Some(hedge) = judged(hedge.clone().build(), &of_hedge) {
        assert_eq!(hedge.call(|| async { Ok::<_, ()>(1) }).await, Ok(1));
    }

    let purse = budget.and_then(|(ratio, per_second)| {
        let ratio = f64::from(ratio);
        let rules = vec![
            ("budget.ratio", (0.0..=10.0).contains(&ratio)),
            ("budget.min_per_second", per_second.size() <= 100_000),
        ];
        judged(Budget::builder().ratio(ratio).min_per_second(per_second.into()).build(), &rules)
    });
    let mut again = Retry::constant(retry.first.into()).max_attempts(retry.most.into());
    if let Some(time) = retry.longest {
        again = again.max_delay(time.into());
    }
    if let Some(time) = retry.hint {
        again = again.max_retry_after(time.into());
    }
    if let Some(budget) = purse {
        again = again.budget(budget);
    }
    let of_retry = vec![
        ("retry.max_attempts", (1..=1_000).contains(&retry.most.size())),
        ("retry.backoff.max_delay", retry.longest.is_none_or(|time| !Duration::from(time).is_zero())),
    ];
    if let Some(again) = judged(again.clone().build(), &of_retry) {
        assert_eq!(again.run(|number| async move { Ok::<_, ()>(number) }).await, Ok(1));
    }

    // All of it at once: what is wrong with a part is wrong with the whole.
    let not_zero = |time: Option<Duration>| time.is_none_or(|time| !time.is_zero());
    let (timeout, deadline) = (timeout.map(Duration::from), deadline.map(Duration::from));
    let mut policy = Policy::plain("all").circuit_breaker(breaker.builder()).concurrency_limit(limit).retry(again);
    policy = policy.throttle(throttle.builder()).hedge(hedge);
    let mut of_policy = vec![("policy.deadline", not_zero(deadline)), ("policy.timeout", not_zero(timeout))];
    of_policy.extend(of_retry);
    of_policy.extend(rules);
    if let Some(time) = timeout {
        policy = policy.timeout(time);
        assert_eq!(
            Timeout::new(time).call(async { Ok::<_, ()>(()) }).await,
            Ok(()),
            "what is there at once is in time"
        );
    }
    if let Some(time) = deadline {
        policy = policy.deadline(time);
        let in_time = breaker.slow_call.is_none_or(|slow| Duration::from(slow) < time || time == Duration::MAX);
        of_policy.push(("circuit_breaker.slow_call", in_time));
    }
    of_policy.extend(of_throttle);
    of_policy.extend(of_limit);
    of_policy.extend(of_hedge);
    let policy = policy.classify(classify::from_fn(|told: Result<&(), &()>| match told {
        Ok(()) => Verdict::Success,
        Err(()) => Verdict::Permanent,
    }));
    if let Some(policy) = judged(policy.build(), &of_policy) {
        for success in answers {
            // Both say that the service works, so that nothing refuses.
            let answer = if success { Ok(()) } else { Err(()) };
            assert_eq!(policy.call(|| async { answer }).await, answer.map_err(Error::Inner));
        }
    }

    if let Some(keys) = keys {
        let limit = ConcurrencyLimit::builder().max_in_flight(1);
        let keyed = Keyed::each(limit).max_keys(keys.size()).build();
        if let Some(keyed) = judged(keyed, &vec![("keyed.max_keys", (1..=1 << 24).contains(&keys.size()))]) {
            let held = keyed.get("a").try_acquire();
            assert!(held.is_ok() && keyed.get("a").try_acquire().is_err() && keyed.len() == 1);
        }
    }
}

pub fn run(data: &[u8]) {
    with(data, |input: Input| paused(story(input)));
}
