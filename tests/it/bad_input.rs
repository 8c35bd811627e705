//! What cannot work is refused when it is built, by name, value and range; what is merely extreme works.

use std::{io, time::Duration};

use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, ConcurrencyLimit, ConcurrencyLimitBuilder, ConfigError, Deadline,
    DeadlineLayer, Error, Jitter, Kind, LagGuard, Plain, Policy, Reason, Retry, RetryBuilder, Rule, Timeout, Verdict,
    circuit_breaker::{State, WhenOpen},
    retry::{Budget, BudgetBuilder},
};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::support::{Boxed, Counts, Echo, ms, secs};

const ZERO: Duration = Duration::ZERO;
const FOREVER: Duration = Duration::MAX;
const NOT_A_RATE: [(f64, &str); 8] = [
    (0.0, "0.0"),
    (-0.0, "-0.0"),
    (-0.5, "-0.5"),
    (1.000_001, "1.000001"),
    (f64::MAX, "1.7976931348623157e308"),
    (f64::INFINITY, "inf"),
    (f64::NEG_INFINITY, "-inf"),
    (f64::NAN, "NaN"),
];

fn refusal<T>(built: Result<T, ConfigError>) -> String {
    built.err().map_or_else(|| "accepted".to_owned(), |error| error.to_string())
}

fn assert_refusals<T>(part: &str, table: impl IntoIterator<Item = (Result<T, ConfigError>, String)>) {
    for (built, problem) in table {
        assert_eq!(refusal(built), format!("invalid configuration: {part}.{problem}"));
    }
}

// HAZARD: B3
#[test]
fn a_breaker_refuses_rates_that_are_none() {
    let new = CircuitBreaker::builder;
    type Set = fn(CircuitBreakerBuilder, f64) -> CircuitBreakerBuilder;
    let settings: [(&str, Set); 3] = [
        ("failure_rate", CircuitBreakerBuilder::failure_rate),
        ("slow_call_rate", CircuitBreakerBuilder::slow_call_rate),
        ("probe_failure_rate", CircuitBreakerBuilder::probe_failure_rate),
    ];
    for (setting, set) in settings {
        let rows = NOT_A_RATE.map(|(rate, shown)| {
            (set(new(), rate).build(), format!("{setting} = {shown}: must be above 0 and at most 1"))
        });
        assert_refusals("circuit_breaker", rows);
        for rate in [f64::MIN_POSITIVE, 1.0] {
            assert!(set(new(), rate).build().is_ok(), "{setting} = {rate}");
        }
    }
}

// HAZARD: B3
#[test]
fn a_breaker_refuses_counts_and_times_that_cannot_work() {
    let new = CircuitBreaker::builder;
    let table = [
        (new().window(ZERO), "window = 0ns: must be between 100 ms and 1 h"),
        (new().window(Duration::from_micros(99_999)), "window = 99.999ms: must be between 100 ms and 1 h"),
        (new().window(secs(3_601)), "window = 3601s: must be between 100 ms and 1 h"),
        (new().window(FOREVER), "window = 18446744073709551615.999999999s: must be between 100 ms and 1 h"),
        (new().window_calls(1_048_576), "window_calls = 1048576: must be between 1 and 1048575"),
        (new().window_calls(usize::MAX), "window_calls = 18446744073709551615: must be between 1 and 1048575"),
        (new().window_calls(19), "min_calls = 20: must be at most window_calls, or no rate could ever be reached"),
        (
            new().window_calls(0),
            "window_calls = 0: must be between 1 and 1048575; \
             circuit_breaker.min_calls = 20: must be at most window_calls, or no rate could ever be reached",
        ),
        (new().min_calls(0), "min_calls = 0: must be at least 1"),
        (new().consecutive_failures(0), "consecutive_failures = 0: must be at least 1"),
        (new().slow_call(ZERO), "slow_call = 0ns: must be longer than zero"),
        (new().probes(0), "probes = 0: must be between 1 and 1000000"),
        (new().then_probes([3, 0]), "then_probes = 0: must each be between 1 and 1000000"),
        (new().probes(1_000_001), "probes = 1000001: must be between 1 and 1000000"),
        (new().probes(u32::MAX), "probes = 4294967295: must be between 1 and 1000000"),
        (new().probe_lease(ZERO), "probe_lease = 0ns: must be longer than zero"),
        (new().open_time(Backoff::constant(ZERO)), "open_time = 0ns: must be longer than zero"),
        (
            new().open_time(Backoff::exponential(secs(1)).factor(0.5)),
            "open_time.factor = 0.5: must be a finite number of at least 1",
        ),
        (
            new().open_time(Backoff::constant(secs(1)).max_delay(ZERO)),
            "open_time.max_delay = 0ns: must be longer than zero",
        ),
        (
            new().without_failure_rate(),
            "failure_rate = None: at least one of failure_rate, slow_call_rate and consecutive_failures must be set, \
             or it never opens",
        ),
    ];
    assert_refusals("circuit_breaker", table.map(|(builder, problem)| (builder.build(), problem.to_owned())));
}

#[test]
fn a_limit_refuses_counts_and_times_that_cannot_work() {
    let new = ConcurrencyLimit::builder;
    let table = [
        (new(), "max_in_flight = not set: must be set: it has no default"),
        (new().max_in_flight(0), "max_in_flight = 0: must be between 1 and 2^30"),
        (new().max_in_flight((1 << 30) + 1), "max_in_flight = 1073741825: must be between 1 and 2^30"),
        (
            new().max_in_flight(usize::MAX).max_queue(0),
            "max_in_flight = 18446744073709551615: must be between 1 and 2^30",
        ),
        (new().max_in_flight(1).max_queue((1 << 30) + 1), "max_queue = 1073741825: must be at most 2^30"),
        (new().max_in_flight(1).max_queue(usize::MAX), "max_queue = 18446744073709551615: must be at most 2^30"),
        (new().max_in_flight(1).max_wait(ZERO), "max_wait = 0ns: must be longer than zero"),
    ];
    assert_refusals("concurrency_limit", table.map(|(builder, problem)| (builder.build(), problem.to_owned())));
}

#[test]
fn a_retry_refuses_counts_and_backoffs_that_cannot_work() {
    let attempts = |attempts| Retry::constant(ms(1)).max_attempts(attempts);
    let with = |backoff: Backoff| Retry::with(backoff);
    let table = [
        (attempts(0), "max_attempts = 0: must be between 1 (no retry) and 1000"),
        (attempts(1001), "max_attempts = 1001: must be between 1 (no retry) and 1000"),
        (attempts(u32::MAX), "max_attempts = 4294967295: must be between 1 (no retry) and 1000"),
        (attempts(1).max_delay(ZERO), "backoff.max_delay = 0ns: must be longer than zero"),
        (with(Backoff::decorrelated(ZERO)), "backoff.base = 0ns: must be longer than zero, or it would never grow"),
    ];
    assert_refusals("retry", table.map(|(builder, problem)| (builder.build(), problem.to_owned())));

    let factors = NOT_A_RATE.into_iter().filter(|(factor, _)| !(1.0..f64::INFINITY).contains(factor));
    let factors = factors.chain([(0.999, "0.999")]).map(|(factor, shown)| {
        let retry = with(Backoff::exponential(ms(1)).factor(factor)).build();
        (retry, format!("backoff.factor = {shown}: must be a finite number of at least 1"))
    });
    assert_refusals("retry", factors);
}

#[test]
fn a_budget_refuses_what_bounds_nothing() {
    let ratios = [
        (-f64::MIN_POSITIVE, "-2.2250738585072014e-308"),
        (-1.0, "-1.0"),
        (10.000_001, "10.000001"),
        (f64::MAX, "1.7976931348623157e308"),
        (f64::INFINITY, "inf"),
        (f64::NEG_INFINITY, "-inf"),
        (f64::NAN, "NaN"),
    ];
    let ratio =
        |(ratio, shown)| (Budget::builder().ratio(ratio).build(), format!("ratio = {shown}: must be between 0 and 10"));
    assert_refusals("budget", ratios.map(ratio));
    let floor = |retries| {
        let problem = format!("min_per_second = {retries}: must be at most 100000, or it bounds nothing");
        (Budget::builder().min_per_second(retries).build(), problem)
    };
    assert_refusals("budget", [100_001, u32::MAX].map(floor));
}

#[test]
fn a_policy_refuses_an_empty_name_and_times_of_zero() {
    let table = [
        (Policy::plain(""), "name = \"\": must not be empty: logs and rejections carry it"),
        (Policy::plain("stock").deadline(ZERO), "deadline = 0ns: must be longer than zero"),
        (Policy::plain("stock").timeout(ZERO), "timeout = 0ns: must be longer than zero"),
    ];
    assert_refusals("policy", table.map(|(builder, problem)| (builder.build(), problem.to_owned())));
}

#[test]
fn a_policy_tells_everything_that_is_wrong_at_once() {
    let error = Policy::plain("")
        .timeout(ZERO)
        .concurrency_limit(ConcurrencyLimit::builder().max_queue(usize::MAX).max_wait(ZERO))
        .circuit_breaker(CircuitBreaker::builder().failure_rate(f64::NAN).slow_call_rate(-1.0).probes(0))
        .retry(Retry::with(Backoff::exponential(ms(1)).factor(f64::INFINITY)).max_attempts(0))
        .deadline(ZERO)
        .build()
        .unwrap_err();
    let settings: Vec<_> = error.problems().iter().map(|problem| (&*problem.setting, &*problem.value)).collect();
    assert_eq!(
        settings,
        [
            ("policy.name", "\"\""),
            ("policy.deadline", "0ns"),
            ("policy.timeout", "0ns"),
            ("retry.max_attempts", "0"),
            ("retry.backoff.factor", "inf"),
            ("circuit_breaker.failure_rate", "NaN"),
            ("circuit_breaker.slow_call_rate", "-1.0"),
            ("circuit_breaker.probes", "0"),
            ("concurrency_limit.max_in_flight", "not set"),
            ("concurrency_limit.max_queue", "18446744073709551615"),
            ("concurrency_limit.max_wait", "0ns"),
        ]
    );
    let listed: Vec<_> = error.problems().iter().map(ToString::to_string).collect();
    assert_eq!(error.to_string(), format!("invalid configuration: {}", listed.join("; ")));
}

#[test]
fn what_is_extreme_but_can_work_is_accepted() {
    let limit = |in_flight, queue| ConcurrencyLimit::builder().max_in_flight(in_flight).max_queue(queue);
    let breaker = CircuitBreaker::builder;
    let retry = |backoff| Retry::with(backoff);
    let limits: [ConcurrencyLimitBuilder; 3] = [limit(1, 0), limit(1 << 30, 1 << 30), limit(1, 1).max_wait(FOREVER)];
    let breakers: [CircuitBreakerBuilder; 9] = [
        breaker().window(ms(100)),
        breaker().window(secs(3_600)),
        breaker().window_calls(1).min_calls(1),
        breaker().window_calls(1_048_575),
        breaker().window_calls(5).without_failure_rate().consecutive_failures(u32::MAX),
        breaker().min_calls(u64::MAX),
        breaker().probes(1_000_000),
        breaker().slow_call(Duration::from_nanos(1)).probe_lease(Duration::from_nanos(1)),
        breaker().open_time(Backoff::constant(Duration::from_nanos(1))),
    ];
    let retries: [RetryBuilder; 4] = [
        retry(Backoff::constant(ZERO)).max_attempts(1),
        retry(Backoff::linear(ZERO, FOREVER)).max_attempts(1000),
        retry(Backoff::exponential(ZERO).factor(1.0)).max_retry_after(ZERO),
        retry(Backoff::exponential(ms(1)).factor(f64::MAX)),
    ];
    let budgets: [BudgetBuilder; 2] =
        [Budget::builder().ratio(0.0).min_per_second(0), Budget::builder().ratio(10.0).min_per_second(100_000)];
    let limits = limits.map(|builder| refusal(builder.build()));
    let breakers = breakers.map(|builder| refusal(builder.build()));
    let retries = retries.map(|builder| refusal(builder.build()));
    let budgets = budgets.map(|builder| refusal(builder.build()));
    for outcome in limits.iter().chain(&breakers).chain(&retries).chain(&budgets) {
        assert_eq!(outcome, "accepted");
    }
}

#[test]
fn no_delay_at_all_stays_none_however_it_grows() {
    let backoff = Backoff::exponential(ZERO).factor(f64::MAX).jitter(Jitter::None);
    assert_eq!(backoff.delay(2, ZERO, 0.5), ZERO);
    assert_eq!(backoff.delay(3, ZERO, 0.5), ZERO, "the factor has grown past what a float can hold");
}

/// Backoffs as long as can be.
fn endless() -> impl Iterator<Item = Backoff> {
    let shapes = [
        Backoff::constant(FOREVER),
        Backoff::linear(FOREVER, FOREVER),
        Backoff::exponential(FOREVER).factor(f64::MAX),
        Backoff::decorrelated(FOREVER),
    ];
    let jitters = [Jitter::None, Jitter::Full, Jitter::Equal];
    shapes.into_iter().flat_map(move |shape| jitters.map(|jitter| shape.max_delay(FOREVER).jitter(jitter)))
}

/// Every time that can be set, set to the longest there is.
fn eternal(backoff: Backoff) -> buttress::PolicyBuilder {
    Policy::plain("eternal")
        .deadline(FOREVER)
        .timeout(FOREVER)
        .retry(Retry::with(backoff).max_retry_after(FOREVER).retry_rejected(Reason::Overloaded).seed(7))
        .circuit_breaker(
            CircuitBreaker::builder()
                .slow_call(FOREVER)
                .slow_call_rate(1.0)
                .consecutive_failures(1)
                .open_time(backoff)
                .probe_lease(FOREVER)
                .seed(7),
        )
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(1).max_queue(1).max_wait(FOREVER))
}

// HAZARD: T4, B14, R2
#[tokio::test(start_paused = true)]
async fn a_policy_whose_times_never_end_succeeds_waits_fails_opens_and_refuses() {
    for backoff in endless() {
        let policy = eternal(backoff).build().unwrap();
        let limit = policy.concurrency_limit().unwrap();
        let answer = |outcome: Result<u8, &'static str>| policy.call(move || async move { outcome });
        assert_eq!(answer(Ok(1)).await, Ok(1));

        let mut running = task::spawn(policy.call(std::future::pending::<Result<u8, &str>>));
        let mut queued = task::spawn(answer(Ok(2)));
        let mut refused = task::spawn(answer(Ok(3)));
        assert_pending!(running.poll());
        assert_pending!(queued.poll());
        // Overload is to be retried here, but the backoff would outlast the deadline.
        assert_eq!(assert_ready_err!(refused.poll()).rejection().unwrap().rule(), Rule::QueueFull);
        tokio::time::advance(secs(86_400 * 365)).await;
        assert_pending!(running.poll());
        assert_pending!(queued.poll());
        drop(running);
        assert_eq!(assert_ready_ok!(queued.poll()), 2);
        assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));

        assert_eq!(answer(Err("no")).await, Err(Error::Inner("no")));
        assert_eq!(policy.circuit_breaker().unwrap().state(), State::Open);
        let no = *answer(Ok(4)).await.unwrap_err().rejection().unwrap();
        assert_eq!(no.reason(), Reason::CircuitOpen);
        assert!(no.retry_after() > Some(secs(86_400 * 365 * 250)), "{no}");
    }
}

// HAZARD: T4, B14
#[tokio::test(start_paused = true)]
async fn an_open_time_and_a_lease_that_never_end_can_be_looked_at_waited_for_and_reset() {
    let forever = CircuitBreaker::builder()
        .consecutive_failures(1)
        .open_time(Backoff::constant(FOREVER).jitter(Jitter::None))
        .build()
        .unwrap();
    forever.try_acquire().unwrap().settle_after(Verdict::TRANSIENT, FOREVER);
    assert_eq!(forever.state(), State::Open);
    let mut waiting = forever.layer().when_open(WhenOpen::Wait).layer(Echo);
    let mut ready = task::spawn(waiting.ready());
    assert_pending!(ready.poll());
    tokio::time::advance(secs(86_400 * 365)).await;
    assert_pending!(ready.poll());
    let no = forever.try_acquire().unwrap_err();
    assert!(no.retry_after() > Some(secs(86_400 * 365 * 500)));
    forever.reset();
    assert_ready_ok!(ready.poll());

    let half_open = CircuitBreaker::builder()
        .consecutive_failures(1)
        .open_time(Backoff::constant(ms(1)))
        .probes(1)
        .probe_lease(FOREVER)
        .build()
        .unwrap();
    half_open.try_acquire().unwrap().settle(Verdict::Throttled { retry_after: Some(FOREVER) });
    tokio::time::advance(secs(60)).await;
    let probe = half_open.try_acquire().unwrap();
    let no = half_open.try_acquire().unwrap_err();
    assert_eq!(no.rule(), Rule::ProbesOut);
    assert!(no.retry_after() > Some(secs(86_400 * 365 * 500)));
    probe.settle(Verdict::Success);
    assert_eq!(half_open.state(), State::Closed);
}

// HAZARD: R2, R7
#[tokio::test(start_paused = true)]
async fn a_hint_that_never_ends_is_waited_for_if_nothing_forbids_it() {
    let hint = |_: Result<&(), &io::Error>| Verdict::Transient { retry_after: Some(FOREVER) };
    let retry = || Retry::constant(ms(1)).max_attempts(2).max_retry_after(FOREVER);
    let counts = Counts::default();
    let attempt = || async {
        counts.enter();
        Err::<(), _>(io::Error::other("come back at the end of time"))
    };
    let bounded = Policy::plain("stock").deadline(secs(9)).retry(retry()).classify(hint).build().unwrap();
    assert!(assert_ready_err!(task::spawn(bounded.call(attempt)).poll()).inner().is_some());
    assert_eq!(counts.calls(), 1);

    let patient = Policy::plain("stock").retry(retry()).classify(hint).build().unwrap();
    let mut call = task::spawn(patient.call(attempt));
    assert_pending!(call.poll());
    tokio::time::advance(secs(86_400 * 365)).await;
    assert_pending!(call.poll());
    assert_eq!(counts.calls(), 2, "of two calls the first attempt each");
}

// HAZARD: T4
#[tokio::test(start_paused = true)]
async fn single_layers_and_functions_wait_for_ever_if_told_so() {
    let pending = || std::future::pending::<Result<u64, Error<io::Error>>>();
    let stalled = service_fn(move |(): ()| pending());
    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_wait(FOREVER).build().unwrap();
    let _held = limit.try_acquire().unwrap();
    let (timeout, deadline) = (Timeout::new(FOREVER), Deadline::after(FOREVER));
    let calls: [Boxed<Result<u64, Error<io::Error>>>; 5] = [
        Box::pin(timeout.layer().layer(stalled).call(())),
        Box::pin(async move { timeout.call_as(pending()).await }),
        Box::pin(DeadlineLayer::new(FOREVER).layer(stalled).call(())),
        Box::pin(deadline.scope(DeadlineLayer::new(FOREVER).layer(stalled).call(()))),
        Box::pin(async move { limit.acquire().await.map(|_| 1).map_err(Error::Rejected) }),
    ];
    let mut calls = calls.map(task::spawn);
    for years in 0..3 {
        for call in &mut calls {
            assert_pending!(call.poll(), "after {years} years");
        }
        tokio::time::advance(secs(86_400 * 365)).await;
    }
    assert!(deadline.remaining() > secs(86_400 * 365 * 26));
    assert_eq!(timeout.call(async { Ok::<_, io::Error>(1) }).await.unwrap(), 1);
}

/// Not `Clone`.
struct Upload;

// HAZARD: R6, C15
#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_repeated_is_sent_once() {
    let counts = Counts::default();
    let failing = service_fn(|_: Upload| {
        counts.enter();
        async { Err::<(), _>(io::Error::other("no")) }
    });
    let retry = Retry::constant(ms(1)).max_attempts(5).build().unwrap();
    let plain = Policy::plain("storage").retry(&retry).build().unwrap();
    let asked = Policy::cloned("storage").retry(&retry).repeat(|_: &Upload| None).build().unwrap();
    let alone = retry.layer_with(Plain::default()).layer(buttress::Lift::new(failing));

    assert!(plain.wrap(failing).send(Upload).await.unwrap_err().inner().is_some());
    assert_eq!(counts.calls(), 1, "plain");
    assert!(asked.wrap(failing).send(Upload).await.unwrap_err().inner().is_some());
    assert_eq!(counts.calls(), 2, "asked");
    assert!(alone.send(Upload).await.unwrap_err().inner().is_some());
    assert_eq!(counts.calls(), 3, "alone");
}

// HAZARD: R6
#[tokio::test(start_paused = true)]
async fn a_request_is_repeated_for_as_long_as_its_strategy_says_so() {
    let counts = Counts::default();
    let failing = service_fn(|_: u32| {
        counts.enter();
        async { Err::<(), _>(io::Error::other("no")) }
    });
    let repeat_twice = |left: &u32| left.checked_sub(1);
    let retry = Retry::constant(ms(1)).max_attempts(5).build().unwrap();
    let layer = retry.layer_with(Kind::new(buttress::ByResult, repeat_twice));
    assert!(layer.layer(buttress::Lift::new(failing)).send(2).await.unwrap_err().inner().is_some());
    assert_eq!(counts.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_lag_guard_refuses_what_timers_cannot_measure() {
    let new = LagGuard::builder;
    let max_lag = "must be at least 5 ms: timers tick by the millisecond";
    let period = "must be between 1 ms and max_lag";
    assert_refusals(
        "lag_guard",
        [
            (new().name("").start(), "name = \"\": must not be empty: logs and rejections carry it".to_owned()),
            (new().max_lag(ZERO).start(), format!("max_lag = 0ns: {max_lag}")),
            (new().max_lag(ms(4)).start(), format!("max_lag = 4ms: {max_lag}")),
            (new().period(ZERO).start(), format!("period = 0ns: {period}")),
            (new().period(ms(101)).start(), format!("period = 101ms: {period}")),
        ],
    );
    for guard in [
        new().max_lag(ms(5)),
        new().max_lag(FOREVER),
        new().period(ms(1)),
        new().period(ms(100)),
        new().max_lag(FOREVER).period(FOREVER),
    ] {
        assert!(guard.start().unwrap().check().is_ok());
    }
}
