//! VECTORS.md, section A: what a window holds, read through the snapshot of a breaker that is forced closed, so that
//! it counts and never moves.

use std::time::Duration;

use buttress::{CircuitBreaker, CircuitBreakerBuilder, Verdict, circuit_breaker::State};
use tokio::time::advance;

use super::breakers::Row;
use crate::{
    circuit_breaker::play,
    support::{ms, secs},
};

fn counting(builder: CircuitBreakerBuilder) -> CircuitBreaker {
    let breaker = builder.build().unwrap();
    breaker.force_closed();
    breaker
}

/// Two decimals, as the tables have them.
fn hundredths(rate: f64) -> u32 {
    (rate * 100.0).round() as u32
}

/// Calls, successes and failures.
fn counts(breaker: &CircuitBreaker) -> (u64, u64, u64) {
    let seen = breaker.snapshot();
    (seen.calls, seen.calls - seen.failures, seen.failures)
}

/// One in five succeeds, the first of each five.
fn mixed(calls: usize) -> String {
    (0..calls).map(|i| if i % 5 == 0 { 'S' } else { 'F' }).collect()
}

// VECTOR: A1
#[test]
fn a1_resilience4j_count_window_of_four() {
    let breaker = counting(CircuitBreaker::builder().window_calls(4).min_calls(1));
    for (row, call, percent) in [(1, "F", 100.0), (2, "S", 50.0), (3, "S", 33.33), (4, "S", 25.0), (5, "S", 0.0)] {
        play(&breaker, call);
        let measured = breaker.snapshot().failure_rate() * 100.0;
        assert!((measured - percent).abs() < 0.01, "row {row}: {measured}");
    }
}

// VECTOR: A3
#[test]
fn a3_resilience4j_slow_calls_in_a_count_window_of_five() {
    let breaker = counting(CircuitBreaker::builder().window_calls(5).min_calls(1).slow_call(secs(4)));
    let took = |verdict, time| breaker.try_acquire().unwrap().settle_after(verdict, time);
    took(Verdict::Success, secs(10));
    took(Verdict::TRANSIENT, secs(10));
    (0..3).for_each(|_| took(Verdict::Success, ms(100)));

    let no_average = "no rule of ours weighs an average duration, so of a call only whether it was slow is kept";
    for row in [Row::Same(("slow rate", 0.4)), Row::Differs(("average of 4060 ms", 0.4), no_average)] {
        let ((column, slow_rate), why) = row.ours();
        let seen = breaker.snapshot();
        assert_eq!((seen.calls, seen.slow_call_rate()), (5, slow_rate), "{column}: {why}");
    }
}

// VECTOR: A5
#[tokio::test(start_paused = true)]
async fn a5_resilience4j_time_window_expires_when_it_is_read() {
    let breaker = counting(CircuitBreaker::builder().window(secs(5)));
    for (wait, call, total) in [(0, "F", 1), (100, "S", 2), (700, "f", 3), (4_000, "", 3), (1_000, "", 0)] {
        advance(ms(wait)).await;
        play(&breaker, call);
        assert_eq!(breaker.snapshot().calls, total, "{wait} ms later: {call}");
    }
    assert_eq!(breaker.snapshot().slow_calls, 0);
}

// VECTOR: A7
#[tokio::test(start_paused = true)]
async fn a7_polly_short_window() {
    let breaker = counting(CircuitBreaker::builder().window(ms(100)));
    play(&breaker, "SS");
    assert_eq!(breaker.snapshot().calls, 2);
    advance(ms(100)).await;
    assert_eq!(breaker.snapshot().calls, 0);
}

// VECTOR: A9
#[tokio::test(start_paused = true)]
async fn a9_failsafe_go_timed_statistics() {
    // Theirs are 4 buckets of 1 s, ours 10 of 0.4 s: at the moments of this table both hold the same.
    let breaker = counting(CircuitBreaker::builder().window(secs(4)));
    let table = [
        (900, mixed(50), 10, 40, 20),
        (1_000, "S".repeat(10), 20, 40, 33),
        (2_500, "F".repeat(20), 20, 60, 25),
        (3_100, mixed(25), 25, 80, 24),
        (5_400, "S".repeat(8), 13, 40, 25),
        (7_300, "F".repeat(5), 8, 5, 62),
        (22_500, String::new(), 0, 0, 0),
        (23_100, "S".repeat(3), 3, 0, 100),
    ];
    let mut clock = 0;
    for (at, calls, successes, failures, success_rate) in table {
        advance(ms(at - clock)).await;
        clock = at;
        play(&breaker, &calls);
        let seen = breaker.snapshot();
        assert_eq!(counts(&breaker), (successes + failures, successes, failures), "at {at} ms");
        let measured = if seen.calls == 0 { 0.0 } else { 1.0 - seen.failure_rate() };
        assert_eq!(hundredths(measured), success_rate, "at {at} ms");
    }
}

// VECTOR: A11
#[tokio::test(start_paused = true)]
async fn a11_gobreaker_rolling_window() {
    let breaker = CircuitBreaker::builder().window(secs(30)).min_calls(3).failure_rate(0.6).build().unwrap();
    let mut table = vec![
        (0, "SFSFSFSFSF", (10, 5, 5)),
        (3, "S", (11, 6, 5)),
        (2, "S", (12, 7, 5)),
        (2, "S", (13, 8, 5)),
        (2, "F", (14, 8, 6)),
    ];
    table.extend((0..6).map(|i| (3, "SF", (16 + 2 * i, 9 + i, 7 + i))));
    table.extend([(3, "F", (17, 9, 8)), (0, "FFFFF", (22, 9, 13))]);
    for (i, (wait, calls, expected)) in table.into_iter().enumerate() {
        advance(Duration::from_secs(wait)).await;
        play(&breaker, calls);
        assert_eq!((counts(&breaker), breaker.state()), (expected, State::Closed), "step {i}");
    }
    play(&breaker, "F");
    assert_eq!(breaker.state(), State::Open, "14 of 23");
}
