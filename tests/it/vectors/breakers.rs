//! VECTORS.md, section B: what moves a circuit.

use std::{collections::HashSet, time::Duration};

use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, Jitter, Rule, Verdict,
    circuit_breaker::{Permit, State},
};
use tokio::time::advance;
use tower::Layer;

use crate::{
    circuit_breaker::{fixed, heard, play, prompt, refused, touchy},
    support::{ms, secs},
};

/// One row of a table: what it asserts holds for us too, or we differ and assert what we do, and say why.
#[derive(Clone, Copy, Debug)]
pub enum Row<T> {
    Same(T),
    Differs(T, &'static str),
}

use Row::{Differs, Same};

impl<T> Row<T> {
    /// What we do, and what a failed assertion should add.
    pub fn ours(self) -> (T, &'static str) {
        match self {
            Same(ours) => (ours, "as in the table"),
            Differs(ours, why) => (ours, why),
        }
    }
}

const NEVER_BY_SUCCESS: &str = "a success never opens a circuit: the next failure does";

/// How long each opening was to last, in milliseconds.
fn open_times(list: &std::sync::Mutex<Vec<buttress::circuit_breaker::Transition>>) -> Vec<u128> {
    list.lock().unwrap().iter().filter_map(|t| t.open_for).map(|time| time.as_millis()).collect()
}

fn took(breaker: &CircuitBreaker, verdict: Verdict, time: Duration) {
    breaker.try_acquire().unwrap().settle_after(verdict, time);
}

/// Waits until the circuit lets a probe in.
async fn wait_until_due(breaker: &CircuitBreaker) {
    advance(refused(breaker).retry_after().unwrap()).await;
}

// VECTOR: B1
#[tokio::test(start_paused = true)]
async fn b1_resilience4j_closed_to_open() {
    let breaker = CircuitBreaker::builder().window(secs(20)).failure_rate(0.5).min_calls(5).build().unwrap();
    for row in [
        Same(("FFFS", State::Closed, 3, 4)),
        Differs(("S", State::Closed, 3, 5), NEVER_BY_SUCCESS),
        Differs(("F", State::Open, 0, 0), NEVER_BY_SUCCESS),
    ] {
        let ((calls, state, failures, total), why) = row.ours();
        play(&breaker, calls);
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.failures, seen.calls), (state, failures, total), "{calls}: {why}");
    }
    assert_eq!(refused(&breaker).measured(), Some(4.0 / 6.0));
    assert_eq!(breaker.snapshot().rejected, 1);
}

// VECTOR: B3
#[tokio::test(start_paused = true)]
async fn b3_resilience4j_slow_calls_open() {
    let breaker = CircuitBreaker::builder()
        .window(secs(20))
        .failure_rate(0.5)
        .slow_call_rate(0.5)
        .slow_call(secs(4))
        .min_calls(5)
        .build()
        .unwrap();
    for (verdict, time) in [
        (Verdict::TRANSIENT, secs(5)),
        (Verdict::Success, secs(5)),
        (Verdict::TRANSIENT, ms(100)),
        (Verdict::Success, ms(100)),
        (Verdict::Success, secs(5)),
    ] {
        assert_eq!(breaker.state(), State::Closed);
        took(&breaker, verdict, time);
    }
    let no = refused(&breaker);
    assert_eq!((no.rule(), no.measured()), (Rule::SlowCallRate, Some(0.6)));
}

// VECTOR: B5
#[tokio::test(start_paused = true)]
async fn b5_resilience4j_exponential_open_time() {
    let backoff = Backoff::exponential(secs(5)).factor(1.5).jitter(Jitter::None);
    let breaker = touchy().open_time(backoff).build().unwrap();
    for (open_for, early, late) in [(ms(5_000), secs(3), secs(6)), (ms(7_500), secs(6), secs(11))] {
        play(&breaker, "F");
        assert_eq!(refused(&breaker).retry_after(), Some(open_for));
        advance(early).await;
        assert_eq!(refused(&breaker).retry_after(), Some(open_for - early));
        advance(late - early).await;
        drop(breaker.try_acquire().expect("permitted"));
    }
}

// VECTOR: B7
#[tokio::test(start_paused = true)]
async fn b7_resilience4j_half_open_permits() {
    let breaker = touchy().probes(4).build().unwrap();
    play(&breaker, "F");
    wait_until_due(&breaker).await;
    let mut granted: Vec<Permit> = (0..4).map(|_| breaker.try_acquire().unwrap()).collect();
    assert_eq!(refused(&breaker).rule(), Rule::ProbesOut);
    drop(granted.pop());
    granted.push(breaker.try_acquire().unwrap());
    assert_eq!(refused(&breaker).rule(), Rule::ProbesOut);
}

// VECTOR: B9
#[tokio::test(start_paused = true)]
async fn b9_resilience4j_special_states() {
    let (breaker, heard) = heard(CircuitBreaker::builder().failure_rate(0.5).min_calls(5).shadow());
    for row in [
        Differs(("FFFSS", 0), NEVER_BY_SUCCESS),
        Differs(("F", 1), NEVER_BY_SUCCESS),
        // Once for an outage.
        Same(("FFFF", 1)),
    ] {
        let ((calls, told), why) = row.ours();
        play(&breaker, calls);
        assert_eq!((breaker.state(), heard.lock().unwrap().len()), (State::Shadow, told), "{calls}: {why}");
    }

    breaker.force_open();
    advance(secs(6)).await;
    assert_eq!(refused(&breaker).rule(), Rule::Forced);

    breaker.force_closed();
    let ((calls, counted), why) =
        Differs(("FFFSS", 5), "what passes by force is counted, so that one can see when to stop forcing").ours();
    play(&breaker, calls);
    assert_eq!((breaker.state(), breaker.snapshot().calls), (State::ForcedClosed, counted), "{why}");

    let ((), _) = Differs((), "that CLOSED cannot become HALF_OPEN is no error of ours: nothing can ask for it").ours();
}

// VECTOR: B11
#[test]
fn b11_polly_should_break() {
    for (throughput, min, failures, threshold, breaks) in [
        (10, 10, 0_usize, 0.1, false),
        (10, 10, 1, 0.1, true),
        (10, 10, 2, 0.1, true),
        // A fifth of eleven is no count: two come nearest.
        (11, 10, 2, 0.1, true),
        (9, 10, 1, 0.1, false),
    ] {
        let breaker = CircuitBreaker::builder().failure_rate(threshold).min_calls(min).build().unwrap();
        // A failure last, so that it is the whole that is weighed.
        let (first, last) = ("F".repeat(failures.saturating_sub(1)), "F".repeat(failures.min(1)));
        play(&breaker, &format!("{first}{}{last}", "S".repeat(throughput - failures)));
        assert_eq!(breaker.state() == State::Open, breaks, "{failures} of {throughput}");
    }
}

// VECTOR: B13
#[tokio::test(start_paused = true)]
async fn b13_polly_break_duration_attempts() {
    // A linear open time shows which number it was asked for.
    let (breaker, heard) = heard(touchy().open_time(Backoff::linear(secs(1), secs(1)).jitter(Jitter::None)));
    play(&breaker, "F");
    for probe in "FFFFSFFF".chars() {
        if breaker.state() == State::Open {
            wait_until_due(&breaker).await;
        }
        play(&breaker, &probe.to_string());
    }
    let attempts: Vec<_> = open_times(&heard).into_iter().map(|millis| millis / 1000 - 1).collect();
    assert_eq!(attempts, [0, 1, 2, 3, 4, 0, 1, 2]);
}

// VECTOR: B15
#[tokio::test(start_paused = true)]
async fn b15_polly_manual_control() {
    let (rule, why) =
        Differs(Rule::Forced, "a breaker is its own control: what is to be isolated together shares it").ours();
    let breaker = touchy().build().unwrap();
    let services = [breaker.layer().layer(prompt()), breaker.layer().layer(prompt())];
    breaker.force_open();
    for service in &services {
        let no = service.send(Ok(())).await.unwrap_err();
        assert_eq!(no.rejection().unwrap().rule(), rule, "{why}");
    }
    breaker.reset();
    for service in &services {
        service.send(Ok(())).await.unwrap();
    }
}

// VECTOR: B17
#[tokio::test(start_paused = true)]
async fn b17_failsafe_go_half_open() {
    // Their success and failure thresholds are one ratio of ours: the share of failures that makes success impossible.
    let table = [
        ("default", 1, 1, "F", State::Open),
        ("fail 3", 3, 3, "FFF", State::Open),
        ("fail 3", 3, 3, "FS", State::Closed),
        ("fail 2/3", 3, 2, "FSF", State::Open),
        ("fail 2/3", 3, 2, "FSS", State::Closed),
        ("succ 3 + fail 2", 3, 1, "SSF", State::Open),
        ("succ 3", 3, 1, "SF", State::Open),
        ("succ 3/4", 4, 2, "SFSF", State::Open),
        ("succ 3/4", 4, 2, "SFSS", State::Closed),
        ("succ 2/3", 3, 2, "FSF", State::Open),
        ("succ 2/3", 3, 2, "FSS", State::Closed),
        ("succ 2/4", 4, 3, "SFFF", State::Open),
    ];
    for (config, probes, failures, answers, state) in table {
        let rate = f64::from(failures) / f64::from(probes);
        let breaker = touchy().probes(probes).probe_failure_rate(rate).build().unwrap();
        play(&breaker, "F");
        wait_until_due(&breaker).await;
        let (before, last) = answers.split_at(answers.len() - 1);
        for answer in before.chars() {
            play(&breaker, &answer.to_string());
            assert_eq!(breaker.state(), State::HalfOpen, "{config}: {answers}, too early");
        }
        play(&breaker, last);
        assert_eq!(breaker.state(), state, "{config}: {answers}");
    }
}

// VECTOR: B19
#[tokio::test(start_paused = true)]
async fn b19_gobreaker_default() {
    let breaker = touchy().consecutive_failures(6).open_time(fixed(secs(60))).build().unwrap();
    let lazy = "an open circuit waits for its first caller: nothing of ours runs by itself";
    // Their successes in a row are not kept: nothing asks for them.
    let table = [
        Same((0, "FFFFF", (5, 0, 5, 5), State::Closed)),
        Same((0, "S", (6, 1, 5, 0), State::Closed)),
        Same((0, "F", (7, 1, 6, 1), State::Closed)),
        Same((0, "FFFFF", (0, 0, 0, 0), State::Open)),
        Same((59, "", (0, 0, 0, 0), State::Open)),
        Differs((1, "", (0, 0, 0, 0), State::Open), lazy),
        Differs((0, "I", (0, 0, 0, 0), State::HalfOpen), lazy),
        Same((0, "F", (0, 0, 0, 0), State::Open)),
        Same((60, "S", (0, 0, 0, 0), State::Closed)),
    ];
    for row in table {
        let ((wait, calls, counts, state), why) = row.ours();
        advance(secs(wait)).await;
        play(&breaker, calls);
        let seen = breaker.snapshot();
        let seen_counts = (seen.calls, seen.calls - seen.failures, seen.failures, seen.consecutive_failures);
        assert_eq!((seen_counts, seen.state), (counts, state), "{row:?}: {why}");
    }
}

// VECTOR: B21
#[tokio::test(start_paused = true)]
async fn b21_gobreaker_generation_and_panic() {
    let why =
        "our window slides and no interval rolls: a call counts when it ends, and is late only if the state moved";
    let breaker = CircuitBreaker::builder().window(secs(10)).build().unwrap();
    for row in [Differs((false, 1), why), Same((true, 0))] {
        let ((state_moves, counted), why) = row.ours();
        breaker.reset();
        let call = breaker.try_acquire().unwrap();
        advance(secs(60)).await;
        if state_moves {
            breaker.force_open();
            breaker.reset();
        }
        call.settle(Verdict::Success);
        assert_eq!(breaker.snapshot().calls, counted, "{why}");
    }

    breaker.reset();
    let service = breaker
        .layer()
        .layer(tower::service_fn(|()| async { panic!("rethrown") as Result<(), buttress::Error<&str>> }));
    assert!(tokio::spawn(service.send(())).await.unwrap_err().is_panic());
    let seen = breaker.snapshot();
    assert_eq!((seen.calls, seen.failures, seen.consecutive_failures), (1, 1, 1));
}

/// Plays `calls` one by one, `pause` apart, and returns the number of the one that opens.
async fn opens_at(breaker: &CircuitBreaker, calls: &str, pause: Duration) -> Option<usize> {
    for (i, call) in calls.chars().enumerate() {
        advance(pause).await;
        play(breaker, &call.to_string());
        if breaker.state() == State::Open {
            return Some(i + 1);
        }
    }
    None
}

// VECTOR: B23
#[tokio::test(start_paused = true)]
async fn b23_linkerd_success_rate() {
    let one_calls = "a minimum of no calls is refused: one call says the same";
    for row in [
        Same((5, 0.5, "FFFF", secs(0), None)),
        Same((5, 0.5, "FFFFF", secs(0), Some(5))),
        Same((5, 0.5, "FFFFF", secs(1), Some(5))),
        // Every success must be one: any share of failures is too much.
        Same((4, f64::MIN_POSITIVE, "SSSF", secs(0), Some(4))),
        Differs((1, 0.5, "F", secs(0), Some(1)), one_calls),
    ] {
        let ((min, rate, calls, pause, opens), why) = row.ours();
        let breaker = CircuitBreaker::builder().window(secs(10)).failure_rate(rate).min_calls(min).build().unwrap();
        assert_eq!(opens_at(&breaker, calls, pause).await, opens, "{calls}: {why}");
    }
    CircuitBreaker::builder().min_calls(0).build().expect_err(one_calls);
}

// VECTOR: B25
#[tokio::test(start_paused = true)]
async fn b25_finagle_failure_accrual() {
    let share = "a moving average of their own makes it 100 ln 2 + 1: ours is the plain share of the window, 50 of 100";
    let builder = || CircuitBreaker::builder().open_time(fixed(secs(5)));
    let in_a_row = |n| builder().without_failure_rate().consecutive_failures(n);
    let hundred = |failures: usize| format!("{}{}", "S".repeat(100), "F".repeat(failures));
    for row in [
        Same((in_a_row(3), "FFF".to_owned(), secs(0), Some(3))),
        Same((in_a_row(3), "FFSFF".to_owned(), secs(0), None)),
        Same((builder().window_calls(5).min_calls(5), "FFFFF".to_owned(), secs(0), Some(5))),
        Differs((builder().window_calls(100), hundred(69), secs(0), Some(150)), share),
        Differs((builder().window(secs(100)), hundred(69), secs(1), Some(150)), share),
        Same((
            builder().window(secs(30)).failure_rate(f64::MIN_POSITIVE).min_calls(5),
            "FFFF".to_owned(),
            secs(0),
            None,
        )),
    ] {
        let ((builder, calls, pause, opens), why): ((CircuitBreakerBuilder, String, Duration, _), _) = row.ours();
        let breaker = builder.build().unwrap();
        assert_eq!(opens_at(&breaker, &calls, pause).await, opens, "{breaker:?} {calls}: {why}");
        if opens.is_some() {
            assert_eq!(refused(&breaker).retry_after(), Some(secs(5)));
        }
    }
}

// VECTOR: B25
#[tokio::test(start_paused = true)]
async fn b25_finagle_mark_dead_durations() {
    // A streak starts anew once the circuit has closed.
    let breaker = touchy().consecutive_failures(3).build().unwrap();
    play(&breaker, "FFF");
    wait_until_due(&breaker).await;
    play(&breaker, "SFF");
    assert_eq!(breaker.state(), State::Closed);

    // Their list runs out and 300 s remain; our sequence is endless and capped.
    let (breaker, heard) =
        heard(touchy().open_time(Backoff::exponential(secs(5)).max_delay(secs(300)).jitter(Jitter::None)));
    play(&breaker, "F");
    for _ in 0..9 {
        wait_until_due(&breaker).await;
        play(&breaker, "F");
    }
    assert_eq!(open_times(&heard)[5..], [160_000, 300_000, 300_000, 300_000, 300_000]);

    let (open_for, why) = Differs(secs(10), "there is one open time, whichever of the rules trips").ours();
    let breaker = touchy().consecutive_failures(5).failure_rate(0.5).min_calls(5).build().unwrap();
    assert_eq!(opens_at(&breaker, "FFFFF", secs(0)).await, Some(5));
    assert_eq!(refused(&breaker).retry_after(), Some(open_for), "{why}");
}

// VECTOR: B27
#[tokio::test(start_paused = true)]
async fn b27_envoy_ejection_time() {
    let growing = Backoff::linear(secs(10), secs(10)).max_delay(secs(305));
    let (breaker, heard) = heard(touchy().open_time(growing.jitter(Jitter::None)));
    play(&breaker, "F");
    for _ in 1..33 {
        wait_until_due(&breaker).await;
        play(&breaker, "F");
    }
    let tick = "theirs is released by a tick, every 10 s: ours by the first caller from the exact moment on";
    let seconds: Vec<_> = open_times(&heard).into_iter().map(|millis| millis / 1000).collect();
    for ejection in 1..=33 {
        let row = if ejection < 31 { Same(10 * ejection) } else { Differs(305, tick) };
        let (ours, why) = row.ours();
        assert_eq!(seconds[ejection as usize - 1], ours, "{ejection}: {why}");
    }

    let within = "their jitter, 4445 ms for the number of the table, is added: ours takes from the delay, half at most";
    let (jittered, why) = Differs(secs(5)..=secs(10), within).ours();
    let drawn: HashSet<_> = (0..100)
        .map(|seed| {
            let breaker = touchy().open_time(Backoff::constant(secs(10)).jitter(Jitter::Equal)).seed(seed).build();
            let breaker = breaker.unwrap();
            play(&breaker, "F");
            let open_for = refused(&breaker).retry_after().unwrap();
            assert!(jittered.contains(&open_for), "{open_for:?}: {why}");
            open_for
        })
        .collect();
    assert!(drawn.len() > 90, "{} distinct open times", drawn.len());

    let breaker = touchy().consecutive_failures(5).build().unwrap();
    let stragglers: Vec<Permit> = (0..3).map(|_| breaker.try_acquire().unwrap()).collect();
    play(&breaker, "FFFFF");
    stragglers.into_iter().for_each(|late| late.settle(Verdict::TRANSIENT));
    advance(ms(9_999)).await;
    assert_eq!(refused(&breaker).retry_after(), Some(ms(1)));
    let (left, why) = Differs(ms(1), tick).ours();
    advance(left).await;
    assert!(breaker.try_acquire().is_ok(), "{why}");
}
