//! The circuit breaker, first part: what is counted, what opens the circuit, and for how long.

use std::{
    future::{Future, pending, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, ConcurrencyLimit, Deadline, Error, Jitter, Policy, Reason,
    Rejection, Rule, Timeout, Verdict,
    circuit_breaker::{State, Transition},
};
use tokio::{
    runtime::Handle,
    time::{advance, timeout},
};
use tower::{Layer, Service, service_fn};

use crate::support::{ms, secs};

pub type Answer = Result<(), &'static str>;

/// Opens at the first failure, for ten seconds, and asks one probe.
pub fn touchy() -> CircuitBreakerBuilder {
    CircuitBreaker::builder().without_failure_rate().consecutive_failures(1).open_time(fixed(secs(10))).probes(1)
}

/// The same open time each time, to the nanosecond.
pub fn fixed(time: Duration) -> Backoff {
    Backoff::constant(time).jitter(Jitter::None)
}

/// Calls by hand, one after the other: `S`uccess, `F`ailure, `I`gnored, `P`ermanent, `T`hrottled; a small letter
/// is a call that took an hour.
pub fn play(breaker: &CircuitBreaker, calls: &str) {
    for call in calls.chars() {
        let took = if call.is_lowercase() { secs(3600) } else { Duration::ZERO };
        let verdict = match call.to_ascii_uppercase() {
            'S' => Verdict::Success,
            'F' => Verdict::TRANSIENT,
            'P' => Verdict::Permanent,
            'T' => Verdict::THROTTLED,
            _ => Verdict::Ignored,
        };
        breaker.try_acquire().expect("admitted").settle_after(verdict, took);
    }
}

pub fn refused(breaker: &CircuitBreaker) -> Rejection {
    breaker.try_acquire().expect_err("refused")
}

/// A breaker, and everything that its listener hears.
pub fn heard(builder: CircuitBreakerBuilder) -> (CircuitBreaker, Arc<Mutex<Vec<Transition>>>) {
    let list = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&list);
    let breaker = builder.on_transition(move |t| told.lock().unwrap().push(*t)).build().unwrap();
    (breaker, list)
}

/// A service that is ready at once and answers at once, with what it was asked for.
pub fn prompt() -> impl Service<Answer, Response = (), Error = Error<&'static str>, Future: Send> + Clone + Send {
    service_fn(|answer: Answer| ready(answer.map_err(Error::Inner)))
}

/// A future that never ends.
pub fn hung() -> impl Future<Output = Answer> + Send {
    pending()
}

// ------------------------------------------------------------------ windows

// HAZARD: B1
#[test]
fn a_count_window_forgets_ten_thousand_successes_within_its_length() {
    let breaker = CircuitBreaker::builder().window_calls(100).build().unwrap();
    play(&breaker, &"S".repeat(10_000));
    play(&breaker, &"F".repeat(49));
    assert_eq!((breaker.state(), breaker.snapshot().calls), (State::Closed, 100));
    play(&breaker, "F");
    assert_eq!(breaker.state(), State::Open);
}

// HAZARD: B1
#[tokio::test(start_paused = true)]
async fn a_time_window_forgets_ten_thousand_successes_within_its_span() {
    let breaker = CircuitBreaker::builder().window(secs(10)).build().unwrap();
    play(&breaker, &"S".repeat(10_000));
    advance(secs(10)).await;
    play(&breaker, &"F".repeat(19));
    assert_eq!((breaker.state(), breaker.snapshot().calls), (State::Closed, 19));
    play(&breaker, "F");
    assert_eq!(breaker.state(), State::Open);
}

// HAZARD: B1, B14
#[tokio::test(start_paused = true)]
async fn a_time_window_counts_again_after_an_idle_time_of_any_length() {
    // In tenths of the window: around what a byte and what five bytes can count to, and twenty years.
    for idle in [10, 99, 127, 128, 129, 200, 250, 255, 256, 257, 511, 512, 1279, 1280, 1281, 2560, 630_720_000] {
        let breaker = CircuitBreaker::builder().window(secs(10)).build().unwrap();
        play(&breaker, "FsFsF");
        advance(secs(idle)).await;
        assert_eq!(breaker.snapshot().calls, 0, "idle for {idle} s, read");
        play(&breaker, "fff");
        let seen = breaker.snapshot();
        assert_eq!((seen.calls, seen.failures, seen.slow_calls), (3, 3, 3), "idle for {idle} s, recorded");
    }
}

// HAZARD: B1, B14
#[tokio::test(start_paused = true)]
async fn a_time_window_counts_again_after_an_outage_of_any_length() {
    // Over many windows, and within a tenth of one.
    for open_time in [secs(5), ms(1)] {
        for reopenings in [0, 1, 62, 63, 64, 65, 100, 126, 127, 128, 129, 300] {
            let breaker = CircuitBreaker::builder().open_time(fixed(open_time)).probes(1).build().unwrap();
            play(&breaker, &"F".repeat(20));
            for _ in 0..reopenings {
                advance(open_time).await;
                play(&breaker, "F");
            }
            advance(open_time).await;
            play(&breaker, "S");
            assert_eq!(breaker.state(), State::Closed);
            play(&breaker, &"F".repeat(20));
            assert_eq!(breaker.state(), State::Open, "after {reopenings} times {open_time:?}");
        }
    }
}

// HAZARD: B6
#[tokio::test(start_paused = true)]
async fn a_time_window_keeps_sums_of_tenths_and_no_log_of_calls() {
    let breaker = CircuitBreaker::builder().window(secs(10)).build().unwrap();
    breaker.force_closed();
    play(&breaker, &"S".repeat(26_000));
    advance(ms(999)).await;
    play(&breaker, &"F".repeat(26_000));
    assert_eq!(breaker.snapshot().calls, 52_000);
    // A log would keep the second half for another second; what it takes in memory is measured with the allocations.
    advance(ms(9_001)).await;
    assert_eq!(breaker.snapshot().calls, 0);
}

// HAZARD: B18
#[tokio::test(start_paused = true)]
async fn successes_without_a_clock_stay_in_the_window_for_as_long_as_others() {
    let breaker = CircuitBreaker::builder().window(secs(10)).failure_rate(0.5).build().unwrap();
    let service = breaker.layer().layer(prompt());
    // Fifty in each tenth of the window, in the oldest too.
    for second in 0..10 {
        if second > 0 {
            advance(secs(1)).await;
        }
        for _ in 0..50 {
            service.send(Ok(())).await.unwrap();
        }
    }
    for _ in 0..20 {
        service.send(Err("down")).await.unwrap_err();
    }
    let seen = breaker.snapshot();
    assert_eq!((seen.state, seen.calls, seen.failures), (State::Closed, 520, 20));

    // What has waited for a bucket may be young by up to a bucket: seven a shard, and one shard is in use here.
    advance(secs(1)).await;
    let left = breaker.snapshot().calls;
    assert!((470..=477).contains(&left), "{left}");
    advance(secs(9)).await;
    assert_eq!(breaker.snapshot().calls, 0);
}

// HAZARD: B18
#[tokio::test(start_paused = true)]
async fn a_handful_of_successes_before_a_burst_of_failures_is_weighed_with_them() {
    let breaker = CircuitBreaker::builder().failure_rate(0.8).min_calls(10).build().unwrap();
    let service = breaker.layer().layer(prompt());
    for _ in 0..5 {
        service.send(Ok(())).await.unwrap();
    }
    for _ in 0..19 {
        service.send(Err("down")).await.unwrap_err();
    }
    assert_eq!((breaker.state(), breaker.snapshot().calls), (State::Closed, 24));
    service.send(Err("down")).await.unwrap_err();
    assert_eq!(breaker.state(), State::Open, "20 of 25");
}

// ------------------------------------------------------------------ what counts

#[test]
fn every_verdict_says_what_it_should() {
    for (calls, counted, failures) in [("SS", 2, 0), ("FF", 2, 2), ("PP", 2, 0), ("TT", 2, 2), ("II", 0, 0)] {
        let breaker = CircuitBreaker::builder().build().unwrap();
        play(&breaker, calls);
        let seen = breaker.snapshot();
        assert_eq!((seen.calls, seen.failures), (counted, failures), "{calls}");
    }
}

#[test]
fn throttled_calls_can_be_left_out() {
    let breaker = touchy().ignore_throttled().build().unwrap();
    play(&breaker, "TTT");
    assert_eq!((breaker.state(), breaker.snapshot().calls), (State::Closed, 0));
    play(&breaker, "F");
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn a_permanent_error_shows_a_live_service_and_ends_a_streak() {
    let breaker = touchy().consecutive_failures(3).build().unwrap();
    play(&breaker, "FFPFF");
    assert_eq!((breaker.state(), breaker.snapshot().consecutive_failures), (State::Closed, 2));
    play(&breaker, "IF");
    assert_eq!(breaker.state(), State::Open, "what says nothing ends no streak");
}

// HAZARD: B5
#[tokio::test(start_paused = true)]
async fn twenty_panics_open_the_circuit() {
    let breaker = CircuitBreaker::builder().build().unwrap();
    let service = breaker.layer().layer(service_fn(|late: bool| async move {
        if late {
            tokio::task::yield_now().await;
        }
        panic!("a bug in the client") as Result<(), Error<&str>>
    }));
    for i in 0..20 {
        assert_eq!(breaker.state(), State::Closed);
        assert!(tokio::spawn(service.send(i % 2 == 0)).await.unwrap_err().is_panic());
    }
    assert_eq!(breaker.state(), State::Open);
}

// HAZARD: B5
#[test]
fn a_permit_that_a_panic_drops_is_a_failure() {
    let breaker = touchy().build().unwrap();
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _permit = breaker.try_acquire().unwrap();
        panic!("while the call runs");
    }));
    assert!(unwound.is_err());
    assert_eq!(breaker.state(), State::Open);
}

// HAZARD: B5
#[tokio::test(start_paused = true)]
async fn twenty_calls_that_an_outer_timeout_drops_open_the_circuit() {
    let breaker = CircuitBreaker::builder().window(secs(60)).slow_call(secs(1)).build().unwrap();
    for _ in 0..20 {
        assert_eq!(breaker.state(), State::Closed);
        timeout(ms(1001), breaker.call(hung())).await.unwrap_err();
    }
    assert_eq!(breaker.state(), State::Open);
}

// HAZARD: B5
#[tokio::test(start_paused = true)]
async fn a_deadline_cuts_off_and_never_blinds_the_breaker() {
    let deadline = || Policy::plain("stalls").deadline(ms(200)).circuit_breaker(CircuitBreaker::builder());
    for policy in [deadline().timeout(secs(5)).build().unwrap(), deadline().build().unwrap()] {
        let breaker = policy.circuit_breaker().unwrap();
        for _ in 0..20 {
            assert_eq!(breaker.state(), State::Closed, "{policy:?}");
            let cut = policy.call(hung).await.unwrap_err();
            assert_eq!(cut.rejection().unwrap().reason(), Reason::DeadlineExceeded);
        }
        assert_eq!(breaker.state(), State::Open, "{policy:?}");
    }
}

// HAZARD: B5
#[tokio::test(start_paused = true)]
async fn a_callers_deadline_counts_against_a_breaker_that_stands_alone() {
    for (allowed, state) in [(ms(1000), State::Closed), (ms(1001), State::Open)] {
        let breaker = touchy().slow_call(secs(1)).build().unwrap();
        let cut = Deadline::after(allowed).enforce(breaker.call(hung())).await.unwrap_err();
        assert_eq!(cut.rejection().unwrap().reason(), Reason::DeadlineExceeded);
        assert_eq!(breaker.state(), state, "{allowed:?}");
    }
}

// HAZARD: B17
#[tokio::test(start_paused = true)]
async fn what_our_own_limit_refuses_is_no_failure() {
    let full = ConcurrencyLimit::builder().max_in_flight(1);
    // At once, or after a wait that would be slow for an answer.
    for limit in [full.clone().max_queue(0), full.max_queue(1).max_wait(secs(2))] {
        let limit = limit.build().unwrap();
        let policy = Policy::plain("small").circuit_breaker(touchy()).concurrency_limit(&limit).build().unwrap();
        let alone = touchy().slow_call(secs(5)).build().unwrap();
        let stacked = alone.layer().layer(limit.layer().layer(prompt()));

        let held = limit.try_acquire().unwrap();
        for _ in 0..50 {
            let no = policy.call(|| async { Ok::<(), &str>(()) }).await.unwrap_err();
            assert_eq!(no.rejection().unwrap().reason(), Reason::Overloaded);
            let no = stacked.send(Ok(())).await.unwrap_err();
            assert_eq!(no.rejection().unwrap().reason(), Reason::Overloaded);
        }
        for breaker in [policy.circuit_breaker().unwrap(), &alone] {
            let seen = breaker.snapshot();
            assert_eq!((seen.state, seen.calls, seen.consecutive_failures), (State::Closed, 0, 0));
        }
        drop(held);
    }
}

// HAZARD: B17
#[tokio::test(start_paused = true)]
async fn of_what_our_own_layers_say_only_a_timeout_is_a_failure() {
    let down = touchy().build().unwrap();
    down.force_open();
    let outer = touchy().consecutive_failures(2).build().unwrap();
    let over_open = outer.layer().layer(down.layer().layer(prompt()));
    over_open.send(Ok(())).await.unwrap_err();
    assert_eq!(outer.snapshot().calls, 0);

    let stalls = service_fn(|()| pending::<Result<(), Error<&str>>>());
    let over_timeout = outer.layer().layer(Timeout::new(ms(10)).layer().layer(stalls));
    over_timeout.send(()).await.unwrap_err();
    assert_eq!(outer.snapshot().failures, 1);
}

// ------------------------------------------------------------------ trip rules

// HAZARD: B11
#[test]
fn a_rate_trips_as_soon_as_it_is_reached() {
    for (calls, state) in [
        ("FFF", State::Closed),
        ("SSSF", State::Closed),
        ("SSSFF", State::Closed),
        ("SSFF", State::Open),
        ("SSSFFF", State::Open),
    ] {
        let breaker = CircuitBreaker::builder().failure_rate(0.5).min_calls(4).build().unwrap();
        play(&breaker, calls);
        assert_eq!(breaker.state(), state, "{calls}");
    }
}

#[test]
fn a_success_never_opens_a_circuit_but_a_slow_one_may() {
    let breaker = CircuitBreaker::builder().failure_rate(0.5).slow_call_rate(0.5).min_calls(4).build().unwrap();
    play(&breaker, "FFFS");
    assert_eq!((breaker.state(), breaker.snapshot().failure_rate()), (State::Closed, 0.75));
    breaker.reset();
    play(&breaker, "ssSs");
    assert_eq!(refused(&breaker).rule(), Rule::SlowCallRate);
}

// HAZARD: B11
#[test]
fn n_failures_in_a_row_trip_at_the_nth() {
    for n in [1, 2, 5] {
        let breaker = touchy().consecutive_failures(n).build().unwrap();
        play(&breaker, &"F".repeat(n as usize - 1));
        assert_eq!(breaker.state(), State::Closed);
        play(&breaker, "F");
        assert_eq!(breaker.state(), State::Open);
    }
}

// HAZARD: B11
#[test]
fn a_call_is_slow_when_it_takes_longer_than_allowed() {
    let breaker = CircuitBreaker::builder()
        .without_failure_rate()
        .slow_call_rate(0.5)
        .slow_call(ms(100))
        .min_calls(2)
        .build()
        .unwrap();
    let took = |time| breaker.try_acquire().unwrap().settle_after(Verdict::Success, time);
    (0..3).for_each(|_| took(ms(100)));
    assert_eq!(breaker.snapshot().slow_calls, 0);
    (0..3).for_each(|_| took(ms(100) + Duration::from_nanos(1)));
    assert_eq!(breaker.state(), State::Open, "3 of 6, though all of them answered");
    assert_eq!(refused(&breaker).rule(), Rule::SlowCallRate);
}

// Within one bucket, whose words remember only so many changes apart.
#[tokio::test(start_paused = true)]
async fn after_any_number_of_changes_what_was_counted_is_gone_and_what_comes_counts() {
    for changes in [1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257] {
        let breaker = CircuitBreaker::builder().failure_rate(0.5).min_calls(4).build().unwrap();
        play(&breaker, "FFF");
        for _ in 0..changes {
            breaker.force_closed();
            breaker.reset();
        }
        assert_eq!(breaker.snapshot().failures, 0, "after {changes}");
        play(&breaker, "FFF");
        assert_eq!((breaker.state(), breaker.snapshot().failures), (State::Closed, 3), "after {changes}");
        play(&breaker, "F");
        assert_eq!(breaker.state(), State::Open, "after {changes}");
    }
}

// HAZARD: B11
#[tokio::test(start_paused = true)]
async fn answers_that_come_late_open_the_circuit_through_the_layer() {
    let rule = CircuitBreaker::builder().without_failure_rate().slow_call_rate(0.5).slow_call(ms(100));
    let breaker = rule.min_calls(4).build().unwrap();
    let service = breaker.layer().layer(service_fn(async |took: Duration| {
        tokio::time::sleep(took).await;
        Ok::<_, Error<&str>>(())
    }));
    for took in [ms(10), ms(100), ms(101)] {
        service.send(took).await.unwrap();
    }
    assert_eq!((breaker.state(), breaker.snapshot().slow_calls), (State::Closed, 1));
    service.send(ms(101)).await.unwrap();
    let no = refused(&breaker);
    assert_eq!((no.rule(), no.measured()), (Rule::SlowCallRate, Some(0.5)), "though all of them answered");
}

// HAZARD: B15
#[tokio::test(start_paused = true)]
async fn two_rules_do_not_hide_each_other() {
    let both = || CircuitBreaker::builder().failure_rate(0.5).consecutive_failures(5).build().unwrap();
    // Through the layer, where a success is counted on the short path.
    for (name, answers, rule) in [
        (
            "in a row, far below the rate",
            [vec![Ok(()); 1000], vec![Err("down"); 5]].concat(),
            Rule::ConsecutiveFailures,
        ),
        ("at the rate, never in a row", [Ok(()), Err("down")].repeat(10), Rule::FailureRate),
    ] {
        let breaker = both();
        let service = breaker.layer().layer(prompt());
        let (last, before) = answers.split_last().unwrap();
        for answer in before {
            let _ = service.send(*answer).await;
        }
        assert_eq!(breaker.state(), State::Closed, "{name}");
        service.send(*last).await.unwrap_err();
        assert_eq!(refused(&breaker).rule(), rule, "{name}");
    }
}

#[test]
fn a_refusal_says_by_which_rule_and_figures() {
    type Set = fn(CircuitBreakerBuilder) -> CircuitBreakerBuilder;
    let rules: [(Set, &str, Rule, f32, f32); 3] = [
        (|b| b.failure_rate(0.6), "SFF", Rule::FailureRate, 2.0 / 3.0, 0.6),
        (|b| b.slow_call_rate(0.25).without_failure_rate(), "SSs", Rule::SlowCallRate, 1.0 / 3.0, 0.25),
        (|b| b.consecutive_failures(2).without_failure_rate(), "SFF", Rule::ConsecutiveFailures, 2.0, 2.0),
    ];
    for (set, calls, rule, measured, threshold) in rules {
        let open = CircuitBreaker::builder().name("stock").min_calls(3).open_time(fixed(secs(7)));
        let (breaker, heard) = heard(set(open));
        play(&breaker, calls);
        let no = refused(&breaker);
        assert_eq!((no.name(), no.reason(), no.rule()), ("stock", Reason::CircuitOpen, rule));
        assert_eq!((no.measured(), no.threshold()), (Some(measured), Some(threshold)));
        let told = heard.lock().unwrap()[0];
        assert_eq!((told.rule, told.measured, told.threshold), (Some(rule), measured, threshold));
        assert_eq!((told.name, told.from, told.to), ("stock", State::Closed, State::Open));
        assert_eq!(told.open_for, Some(secs(7)));
    }
}

// HAZARD: B3
#[test]
fn settings_that_could_never_work_are_refused_by_name() {
    type Set = fn(CircuitBreakerBuilder) -> CircuitBreakerBuilder;
    let settings: [(&str, Set); 15] = [
        ("probes", |b| b.probes(0)),
        ("window", |b| b.window(Duration::ZERO)),
        ("window_calls", |b| b.window_calls(0).without_failure_rate().consecutive_failures(1)),
        ("min_calls", |b| b.min_calls(0)),
        ("min_calls", |b| b.window_calls(10).min_calls(11)),
        ("failure_rate", |b| b.failure_rate(f64::NAN)),
        ("failure_rate", |b| b.failure_rate(0.0)),
        ("failure_rate", |b| b.failure_rate(1.01)),
        ("failure_rate", |b| b.without_failure_rate()),
        ("slow_call_rate", |b| b.slow_call_rate(-0.1)),
        ("probe_failure_rate", |b| b.probe_failure_rate(f64::INFINITY)),
        ("consecutive_failures", |b| b.consecutive_failures(0)),
        ("slow_call", |b| b.slow_call(Duration::ZERO)),
        ("probe_lease", |b| b.probe_lease(Duration::ZERO)),
        ("open_time", |b| b.open_time(fixed(Duration::ZERO))),
    ];
    for (setting, set) in settings {
        let error = set(CircuitBreaker::builder()).build().unwrap_err();
        let named: Vec<_> = error.problems().iter().map(|problem| problem.setting.as_str()).collect();
        let expected = format!("circuit_breaker.{setting}");
        assert!(named.iter().any(|name| name.starts_with(&expected)), "{setting}: {error}");
    }
}

// ------------------------------------------------------------------ open time

// HAZARD: B12
#[tokio::test(start_paused = true)]
async fn retry_after_is_the_truth_to_the_nanosecond() {
    for seed in 0..50 {
        let backoff = Backoff::exponential(ms(100 + 37 * seed)).jitter(Jitter::Equal);
        let breaker = touchy().open_time(backoff).seed(seed).build().unwrap();
        play(&breaker, "F");
        for _ in 0..4 {
            let promised = refused(&breaker).retry_after().unwrap();
            advance(promised / 3).await;
            let left = refused(&breaker).retry_after().unwrap();
            assert_eq!(left, promised - promised / 3);
            advance(left - Duration::from_nanos(1)).await;
            assert_eq!(refused(&breaker).retry_after(), Some(Duration::from_nanos(1)));
            advance(Duration::from_nanos(1)).await;
            play(&breaker, "F");
        }
    }
}

// HAZARD: B14
#[tokio::test(start_paused = true)]
async fn open_times_of_any_size_and_clocks_that_leap_do_no_harm() {
    let smallest = touchy().open_time(fixed(Duration::from_nanos(1))).build().unwrap();
    play(&smallest, "F");
    assert_eq!(refused(&smallest).retry_after(), Some(Duration::from_nanos(1)));
    advance(ms(1)).await;
    play(&smallest, "S");
    assert_eq!(smallest.state(), State::Closed);

    let largest = touchy()
        .open_time(Backoff::exponential(Duration::MAX).max_delay(Duration::MAX).jitter(Jitter::None))
        .slow_call(Duration::MAX)
        .probe_lease(Duration::MAX)
        .build()
        .unwrap();
    // Not at the very beginning of its time, to which anything can be added.
    advance(secs(1)).await;
    largest.try_acquire().unwrap().settle_after(Verdict::TRANSIENT, Duration::MAX);
    for _ in 0..3 {
        // The clock stands still, then leaps.
        assert!(refused(&largest).retry_after().unwrap() > secs(86_400 * 365));
        assert!(!refused(&largest).to_string().is_empty());
        advance(secs(86_400 * 365 * 20)).await;
    }
    largest.reset();
    play(&largest, "S");
}

#[tokio::test(start_paused = true)]
async fn the_open_time_grows_with_each_reopening_and_starts_again_once_closed() {
    let backoff = Backoff::exponential(secs(5)).max_delay(secs(60)).jitter(Jitter::None);
    let (breaker, heard) = heard(touchy().open_time(backoff));
    play(&breaker, "F");
    for _ in 0..5 {
        advance(refused(&breaker).retry_after().unwrap()).await;
        play(&breaker, "F");
    }
    advance(refused(&breaker).retry_after().unwrap()).await;
    play(&breaker, "SF");
    let open_for: Vec<_> = heard.lock().unwrap().iter().filter_map(|t| t.open_for).map(|t| t.as_secs()).collect();
    assert_eq!(open_for, [5, 10, 20, 40, 60, 60, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_servers_hint_stretches_the_open_time_up_to_the_cap_and_never_shortens_it() {
    let hinted =
        |hint| [Verdict::Transient { retry_after: Some(hint) }, Verdict::Throttled { retry_after: Some(hint) }];
    for (hint, open_for) in [(secs(2), secs(10)), (secs(25), secs(25)), (secs(3600), secs(30))] {
        for verdict in hinted(hint) {
            let breaker = touchy().open_time(fixed(secs(10)).max_delay(secs(30))).build().unwrap();
            breaker.try_acquire().unwrap().settle(verdict);
            assert_eq!(refused(&breaker).retry_after(), Some(open_for), "{verdict:?}");
            // A failed probe's hint too.
            advance(open_for).await;
            breaker.try_acquire().unwrap().settle(verdict);
            assert_eq!(refused(&breaker).retry_after(), Some(open_for), "{verdict:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_that_says_never_is_no_time_to_come_back() {
    let never = Verdict::Throttled { retry_after: Some(Duration::MAX) };
    let by_hand = touchy().build().unwrap();
    by_hand.try_acquire().unwrap().settle(never);
    assert_eq!(refused(&by_hand).retry_after(), Some(secs(10)));
    let called = touchy().build().unwrap();
    let judge = buttress::classify::from_fn(|_: Result<&(), &()>| never);
    let _ = called.call_with(judge, ready(Ok(()))).await;
    assert_eq!(refused(&called).retry_after(), Some(secs(10)));
}

// HAZARD: B13
#[tokio::test(start_paused = true)]
async fn a_half_open_circuit_shows_nothing_of_what_opened_it_however_often_it_has_opened() {
    let breaker = touchy().window(secs(3600)).open_time(fixed(ms(1))).build().unwrap();
    play(&breaker, "F");
    for relapse in 0..300 {
        advance(ms(1)).await;
        let probe = breaker.try_acquire().unwrap();
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.calls, seen.failures), (State::HalfOpen, 0, 0), "relapse {relapse}");
        probe.settle(Verdict::TRANSIENT);
        assert_eq!(breaker.snapshot().calls, 0, "relapse {relapse}");
    }
}

#[tokio::test(start_paused = true)]
async fn full_jitter_leaves_at_least_half_of_the_open_time() {
    for seed in 0..200 {
        let breaker = touchy().open_time(Backoff::constant(secs(10))).seed(seed).build().unwrap();
        play(&breaker, "F");
        let open_for = refused(&breaker).retry_after().unwrap();
        assert!((secs(5)..=secs(10)).contains(&open_for), "{open_for:?}");
    }
}

// ------------------------------------------------------------------ many at once

// HAZARD: B16
#[tokio::test(start_paused = true)]
async fn an_open_circuit_refuses_many_threads_at_once() {
    let breaker = touchy().build().unwrap();
    play(&breaker, "F");
    let (clock, start) = (Handle::current(), Barrier::new(8));
    let ask = || {
        let _paused = clock.enter();
        start.wait();
        (0..10_000).filter(|_| breaker.try_acquire().is_err_and(|no| no.rule() == Rule::ConsecutiveFailures)).count()
    };
    let refused: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((refused, breaker.snapshot().rejected), (80_000, 80_000));
}

// HAZARD: B16
#[test]
fn a_listener_that_takes_its_time_parks_nobody() {
    let slot = Arc::new(OnceLock::<CircuitBreaker>::new());
    let (seen, counted) = (Arc::clone(&slot), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&counted);
    let breaker = touchy()
        .on_transition(move |_| {
            // While the listener is busy, another thread is refused, looks, and settles.
            let breaker = seen.get().unwrap();
            let other = || (refused(breaker).rule(), breaker.snapshot().state, breaker.state());
            let seen = std::thread::scope(|scope| scope.spawn(other).join().unwrap());
            assert_eq!(seen, (Rule::ConsecutiveFailures, State::Open, State::Open));
            count.fetch_add(1, SeqCst);
        })
        .build()
        .unwrap();
    slot.set(breaker.clone()).unwrap();
    play(&breaker, "F");
    assert_eq!(counted.load(SeqCst), 1);
}
