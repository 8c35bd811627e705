//! D: retry budgets. D5 is ours; the others bound something else, and the rows say what ours does on the same events.

use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use buttress::{Backoff, Jitter, Retry, retry::Budget};
use tokio::task::JoinSet;

use crate::support::{Counts, ms, secs};

fn budget(ratio: f64, min_per_second: u32) -> Budget {
    Budget::builder().ratio(ratio).min_per_second(min_per_second).build().unwrap()
}

fn one_retry(budget: &Budget) -> Retry {
    Retry::constant(Duration::ZERO).max_attempts(2).budget(budget.clone()).build().unwrap()
}

/// A call whose first attempt fails: whether it was tried again. What became of that is `last`.
async fn retried(retry: &Retry, last: Result<(), ()>) -> bool {
    let attempts = AtomicU64::new(0);
    let _ = retry
        .run(|number| {
            attempts.store(u64::from(number), SeqCst);
            async move { if number == 1 { Err(()) } else { last } }
        })
        .await;
    attempts.into_inner() == 2
}

async fn success(retry: &Retry) {
    retry.run(|_| async { Ok::<_, ()>(()) }).await.unwrap();
}

/// A difference: gRPC's throttle counts attempts that fail against those that succeed and stops all retries below half
/// of a purse of four, so that a few failures in a row, at any rate of calls, end them. Ours bounds retries by a share
/// of the calls: at 1.6 for each call nothing is ever refused, at 0.2 every fifth call finds a retry.
// VECTOR: D1
#[tokio::test(start_paused = true)]
async fn grpc_throttle() {
    #[rustfmt::skip]
    let rows = [
        // event, retry allowed by gRPC, by ours at a ratio of 1.6, of 0.2
        ('F', true,  true, false), ('S', false, false, false), ('F', true,  true, false), ('F', false, true, false),
        ('F', false, true, true),  ('F', false, true, false),  ('F', false, true, false), ('S', false, false, false),
        ('S', false, false, false), ('F', true, true, true),   ('F', false, true, false), ('S', false, false, false),
        ('F', false, true, false), ('S', false, false, false), ('F', true,  true, true),
    ];
    let (much, little) = (one_retry(&budget(1.6, 0)), one_retry(&budget(0.2, 0)));
    let mut purse = 4_000;
    for (number, (event, grpc, at_much, at_little)) in (1..).zip(rows) {
        if event == 'S' {
            purse = 4_000.min(purse + 1_600);
            success(&much).await;
            success(&little).await;
        } else {
            purse = 0.max(purse - 1_000);
            assert_eq!(purse > 2_000, grpc, "the row itself, event {number}");
            assert_eq!(retried(&much, Err(())).await, at_much, "event {number} at 1.6");
            assert_eq!(retried(&little, Err(())).await, at_little, "event {number} at 0.2");
        }
    }
}

/// A difference: botocore pays 14 for a retry (5 if throttled) out of 500 and gives it back once that succeeds, which is
/// kind to retries that help. Ours pays one for each, whatever became of it, as each is load; time gives it back.
// VECTOR: D3
#[tokio::test(start_paused = true)]
async fn botocore_quota() {
    let budget = budget(0.0, 50);
    let retry = one_retry(&budget);
    assert!(retried(&retry, Ok(())).await);
    assert_eq!(budget.balance(), 499, "a retry, and it succeeds; theirs: 486, then 500");
    assert!(retried(&retry, Ok(())).await);
    assert_eq!(budget.balance(), 498, "a throttled one; theirs: 495, then 500");
    assert!(retried(&retry, Err(())).await);
    assert_eq!(budget.balance(), 497, "a retry that fails; theirs: 486");
    success(&retry).await;
    assert_eq!(budget.balance(), 497, "a success without a retry; theirs: 487");
    tokio::time::advance(secs(10)).await;
    assert_eq!(budget.balance(), 500, "ten seconds; theirs: 487");

    let fourteen = one_retry(&self::budget(0.5, 0));
    success(&fourteen).await;
    let (first, second) = (retried(&fourteen, Err(())).await, retried(&fourteen, Err(())).await);
    assert_eq!((first, second), (true, false), "one retry in the purse, none for the second");

    let dynamo = Backoff::exponential(ms(25)).max_delay(secs(20));
    assert_eq!([1, 2, 3].map(|attempt| dynamo.delay(attempt, Duration::ZERO, 1.0)), [ms(25), ms(50), ms(100)]);
    let counts = Counts::default();
    let retry = Retry::with(dynamo.jitter(Jitter::None)).max_attempts(4).budget(budget.clone()).build().unwrap();
    let attempt = |_| {
        counts.enter();
        async { Err::<(), _>(()) }
    };
    let _ = retry.run(attempt).await;
    assert_eq!((counts.calls(), budget.balance()), (4, 497), "no fourth retry");
}

// VECTOR: D5
#[tokio::test(start_paused = true)]
async fn finagle_retry_budget() {
    // A reserve of ten: theirs of one second's 10, or of two seconds' 5; ours of ten seconds' 1.
    for (percent, most) in [(1, 110), (10, 1_010), (25, 2_510), (50, 5_010), (75, 7_510), (99, 9_910)] {
        let retry = one_retry(&budget(f64::from(percent) / 100.0, 1));
        let mut retries = 0;
        for _ in 0..10_000 {
            retries += u64::from(retried(&retry, Err(())).await);
        }
        assert_eq!(retries, most, "{percent} %");
    }
    let budget = budget(2.0, 0);
    let retry = one_retry(&budget);
    for _ in 0..10_000 {
        success(&retry).await;
    }
    assert_eq!(budget.balance(), 20_000);
}

/// A difference: Envoy bounds the retries that are in flight at one moment by a share of the requests in flight. Ours
/// bounds those of ten seconds, so that retries that fail fast, and leave no trace in flight, are bounded too.
// VECTOR: D7
#[tokio::test(start_paused = true)]
async fn envoy_retry_budget() {
    let budget = budget(0.2, 1);
    let (counts, mut calls) = (Counts::default(), JoinSet::new());
    for _ in 0..30 {
        let (retry, counts) = (one_retry(&budget), counts.clone());
        calls.spawn(async move {
            let attempt = |number| {
                let running = (number > 1).then(|| counts.enter());
                async move {
                    if running.is_some() {
                        tokio::time::sleep(secs(1)).await;
                    }
                    Err::<(), _>(())
                }
            };
            let _ = retry.run(attempt).await;
        });
    }
    while calls.join_next().await.is_some() {}
    assert_eq!(
        counts.most(),
        16,
        "from idle: ten, and a fifth of 30 calls, where Envoy has five, or a fifth, at a time"
    );
    assert!(
        !retried(&one_retry(&budget), Err(())).await,
        "and none while those are remembered, though none is in flight"
    );
}
