//! The budget: what all who share it may retry together.
#![allow(clippy::disallowed_methods)] // makes sure that no time has passed

use std::{
    cell::Cell,
    pin::pin,
    sync::{
        Barrier,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use buttress::{Deadline, Error, Policy, Reason, Retry, retry::Budget};
use proptest::prelude::*;
use tokio::{
    runtime::Runtime,
    time::{Instant, advance},
};

use crate::support::{ms, secs};

fn budget(ratio: f64, min_per_second: u32) -> Budget {
    Budget::builder().ratio(ratio).min_per_second(min_per_second).build().unwrap()
}

fn attempts(number: u32, budget: &Budget) -> Retry {
    Retry::constant(Duration::ZERO).max_attempts(number).budget(budget.clone()).build().unwrap()
}

fn paused() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// So many calls that all fail: how many retries were made.
async fn retries(retry: &Retry, calls: u64) -> u64 {
    let made = Cell::new(0);
    for _ in 0..calls {
        let failed: Result<(), _> = retry
            .run(|_| {
                made.set(made.get() + 1);
                async { Err("down") }
            })
            .await;
        assert_eq!(failed, Err(Error::Inner("down")), "on giving up, the last error");
    }
    made.get() - calls
}

async fn successes(retry: &Retry, calls: u64) {
    for _ in 0..calls {
        retry.run(|_| async { Ok::<_, ()>(()) }).await.unwrap();
    }
}

// ---------------------------------------------------------------- the bound

// HAZARD: R3
#[tokio::test(start_paused = true)]
async fn retries_are_bounded_by_the_ratio_and_the_reserve_however_many_attempts_there_are() {
    for (ratio, min_per_second, calls, most) in [
        (0.2, 1, 1_000, 210),
        (0.6, 0, 1_000, 600),
        (0.1, 0, 30, 3),
        (0.0, 3, 1_000, 30),
        (0.0, 0, 1_000, 0),
        (2.0, 0, 100, 200),
    ] {
        let began = Instant::now();
        let made = retries(&attempts(10, &budget(ratio, min_per_second)), calls).await;
        assert_eq!(made, most, "{ratio} of {calls} calls and {min_per_second} a second");
        assert_eq!(Instant::now(), began, "all within one moment");
    }
}

// HAZARD: R3
#[tokio::test(start_paused = true)]
async fn a_ratio_is_not_rounded_to_whole_tokens() {
    let budget = budget(0.6, 0);
    let retry = attempts(2, &budget);
    let mut made = Vec::new();
    for _ in 0..10 {
        made.push(retries(&retry, 1).await);
    }
    assert_eq!(made, [0, 1, 0, 1, 1, 0, 1, 0, 1, 1], "the n-th call finds 0.6 n, less what was spent");
    assert_eq!(budget.balance(), 0);
}

/// The service was not asked, so nobody may ask it once more for that.
#[tokio::test(start_paused = true)]
async fn a_call_that_comes_too_late_pays_nothing() {
    let budget = budget(1.0, 0);
    let policy = Policy::plain("late").retry(attempts(3, &budget)).build().unwrap();
    let past = Deadline::at(Instant::now());
    for _ in 0..10 {
        let late = past.scope(policy.call(|| async { Ok::<_, ()>(()) })).await;
        assert_eq!(late.unwrap_err().rejection().unwrap().reason(), Reason::DeadlineExceeded);
    }
    assert_eq!(budget.balance(), 0);
    policy.call(|| async { Ok::<_, ()>(()) }).await.unwrap();
    assert_eq!(budget.balance(), 1);
}

// HAZARD: R3
#[tokio::test(start_paused = true)]
async fn a_call_that_succeeds_pays_as_one_that_fails() {
    let budget = budget(0.5, 0);
    let retry = attempts(3, &budget);
    successes(&retry, 100).await;
    assert_eq!(budget.balance(), 50);
    assert_eq!(retries(&retry, 40).await, 70, "half of 140 calls");
    assert_eq!(budget.balance(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_rarely_called_has_the_floor() {
    let budget = budget(0.2, 1);
    let retry = attempts(3, &budget);
    assert_eq!(budget.balance(), 10);
    for _ in 0..20 {
        assert_eq!(retries(&retry, 1).await, 2, "two retries every five seconds are under one a second");
        advance(secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_default_is_a_fifth_of_the_calls_and_one_a_second() {
    let retry = Retry::constant(Duration::ZERO).max_attempts(3).build().unwrap();
    assert_eq!(retry.budget().unwrap().balance(), 10);
    assert_eq!(retries(&retry, 500).await, 110);
    let unbound = Retry::constant(Duration::ZERO).max_attempts(3).without_budget().build().unwrap();
    assert!(unbound.budget().is_none());
    assert_eq!(retries(&unbound, 500).await, 1_000);
}

// HAZARD: R3
#[tokio::test(start_paused = true)]
async fn clones_and_layers_and_other_policies_share_one_budget() {
    let budget = budget(0.1, 1);
    let (one, other) = (attempts(2, &budget), attempts(5, &budget));
    let made = retries(&one, 100).await + retries(&one.clone(), 100).await + retries(&other, 100).await;
    assert_eq!(made, 40, "a tenth of 300 calls, and ten");
    assert_eq!(budget.clone().balance(), 0);
    assert_eq!(other.budget().unwrap().balance(), 0);
}

// ---------------------------------------------------------------- time

// HAZARD: R3
#[tokio::test(start_paused = true)]
async fn what_is_not_spent_expires_after_ten_seconds() {
    let budget = budget(0.5, 1);
    successes(&attempts(2, &budget), 1_000).await;
    assert_eq!(budget.balance(), 510);
    advance(ms(9_999)).await;
    assert_eq!(budget.balance(), 510);
    advance(ms(1)).await;
    assert_eq!(budget.balance(), 10, "the floor remains");
}

// HAZARD: R3
#[tokio::test(start_paused = true)]
async fn what_is_spent_comes_back_after_ten_seconds() {
    let budget = budget(0.0, 2);
    let retry = attempts(3, &budget);
    assert_eq!(retries(&retry, 100).await, 20);
    advance(ms(9_999)).await;
    assert_eq!((budget.balance(), retries(&retry, 100).await), (0, 0));
    advance(ms(1)).await;
    assert_eq!((budget.balance(), retries(&retry, 100).await), (20, 20));
}

// HAZARD: R3
#[tokio::test(start_paused = true)]
async fn idling_saves_nothing_up_and_is_not_caught_up_with() {
    for idle in (10..600).step_by(7).chain([128, 1_280, 3_600, 86_400, 365 * 86_400]) {
        let budget = budget(0.2, 1);
        let retry = attempts(3, &budget);
        retries(&retry, 100).await;
        advance(secs(idle)).await;
        assert_eq!(budget.balance(), 10, "after {idle} s");
        assert_eq!(retries(&retry, 100).await, 30, "after {idle} s");
        assert_eq!(budget.balance(), 0, "after {idle} s");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// A log of (second, calls, retries) says the same, where up to 63 calls wait for somebody who knows the time.
    // HAZARD: R3
    #[test]
    fn a_budget_is_what_a_log_of_ten_seconds_says(
        hundredths in 0u64..300,
        min_per_second in 0u32..5,
        steps in prop::collection::vec((0u64..40, 1u32..5, prop_oneof![4 => 0u64..3_000, 1 => 0u64..400_000]), 1..40),
    ) {
        paused().block_on(async {
            let budget = budget(hundredths as f64 / 100.0, min_per_second);
            let (began, mut log, mut waiting) = (Instant::now(), Vec::new(), 0);
            for (calls, most, pause) in steps {
                let second = began.elapsed().as_secs();
                let retry = attempts(most, &budget);
                for _ in 0..calls {
                    waiting += 1;
                    if waiting == 64 || most > 1 {
                        log.push((second, std::mem::take(&mut waiting), 0));
                    }
                    let present = log.iter().filter(|entry| entry.0 + 10 > second);
                    let (calls, spent) = present.fold((0, 0), |sum, entry| (sum.0 + entry.1, sum.1 + entry.2));
                    let allowed = calls * hundredths / 100 + u64::from(min_per_second) * 10;
                    let left = allowed.saturating_sub(spent);
                    let made = retries(&retry, 1).await;
                    prop_assert_eq!(made, left.min(u64::from(most - 1)), "of {} at {} s", left, second);
                    log.push((second, 0, made));
                }
                advance(ms(pause)).await;
            }
            Ok(())
        })?;
    }
}

// ---------------------------------------------------------------- together

/// Runs `retry` on this thread, by hand: whoever never waits needs no runtime of its own.
fn fails_at_once(retry: &Retry, made: &AtomicU64) {
    let mut call = pin!(retry.run(|_| {
        made.fetch_add(1, SeqCst);
        async { Err::<(), _>("down") }
    }));
    match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => assert_eq!(outcome, Err(Error::Inner("down"))),
        Poll::Pending => panic!("a backoff of zero is over at once"),
    }
}

// HAZARD: R3
#[test]
fn eight_threads_never_overdraw_a_budget_and_lose_nothing_of_it() {
    const THREADS: usize = 8;
    const CALLS: usize = 2_000;
    const ALL: u64 = (THREADS * CALLS) as u64;
    // One paused clock for all of them.
    let runtime = paused();
    for (ratio, min_per_second, most) in [(0.25, 1, 4_010), (0.6, 0, 9_600), (0.0, 7, 70), (1.5, 100, 25_000)] {
        let _clock = runtime.enter();
        let (budget, made) = (budget(ratio, min_per_second), AtomicU64::new(0));
        let together = Barrier::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let _clock = runtime.enter();
                    let retry = attempts(10, &budget);
                    together.wait();
                    (0..CALLS).for_each(|_| fails_at_once(&retry, &made));
                });
            }
        });
        // Calls after the last withdrawal have paid for what nobody spent.
        let retries = made.load(SeqCst) - ALL;
        assert_eq!(
            retries + budget.balance(),
            most,
            "{ratio} of {} calls and {min_per_second} a second",
            THREADS * CALLS
        );
    }
}

// HAZARD: R3
#[test]
fn eight_threads_that_reach_for_the_last_token_at_once_get_it_once() {
    const THREADS: usize = 8;
    let runtime = paused();
    let _clock = runtime.enter();
    let purses: Vec<_> = (0..6_000).map(|_| (budget(0.0, 1), AtomicU64::new(0))).collect();
    let arrived = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let _clock = runtime.enter();
                for (round, (budget, made)) in (1..).zip(&purses) {
                    let retry = attempts(10, budget);
                    // Spinning, as whoever wakes from a `Barrier` comes too late to meet anybody.
                    arrived.fetch_add(1, SeqCst);
                    while arrived.load(SeqCst) < round * THREADS {
                        thread::yield_now();
                    }
                    fails_at_once(&retry, made);
                }
            });
        }
    });
    for (budget, made) in purses {
        assert_eq!((made.into_inner(), budget.balance()), (8 + 10, 0), "eight calls, and ten retries");
    }
}

/// Two layers of three attempts above a service that is down: how many requests it gets for 1,000 calls.
async fn requests_through_two_layers(outer: Retry, inner: Retry) -> u64 {
    let requests = Cell::new(0);
    let inner = &inner;
    for _ in 0..1_000 {
        let request = || {
            requests.set(requests.get() + 1);
            async { Err::<(), _>("down") }
        };
        let failed = outer.run(|_| async move { inner.run(|_| request()).await.map_err(|_| "down") }).await;
        assert!(failed.is_err());
    }
    requests.get()
}

// HAZARD: R10
#[tokio::test(start_paused = true)]
async fn two_layers_of_three_attempts_multiply_an_outage_by_9_and_with_one_budget_by_1_41() {
    let three = || Retry::constant(Duration::ZERO).max_attempts(3);
    let unbound = || three().without_budget().build().unwrap();
    assert_eq!(requests_through_two_layers(unbound(), unbound()).await, 9_000);

    let own = || three().build().unwrap();
    assert_eq!(
        requests_through_two_layers(own(), own()).await,
        1_462,
        "a budget for each: 1.2 to the power of the depth"
    );

    // A fifth of the 1,000 calls of each layer, and the reserve of ten: the depth adds instead of multiplying.
    let shared = budget(0.2, 1);
    assert_eq!(requests_through_two_layers(attempts(3, &shared), attempts(3, &shared)).await, 1_410);
}
