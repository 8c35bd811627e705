//! When retry asks again, for how long it waits, and what comes back when it gives up.
#![allow(clippy::disallowed_methods)] // the stories tell at what time an attempt was made

mod numbers;
mod refused;
mod service;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use buttress::{
    Classify, Deadline, Error, Jitter, Kind, Policy, Reason, Retry, RetryBuilder, Verdict, classify,
    retry::{Budget, CloneRequest},
};
use tokio::time::{Duration, Instant, advance};
use tower::{Layer, service_fn};

use crate::support::{Counts, ms, secs};

/// Nothing left to chance, and no budget that could end a story early.
fn every(delay: Duration, attempts: u32) -> RetryBuilder {
    Retry::constant(delay).jitter(Jitter::None).max_attempts(attempts).without_budget()
}

fn budget(ratio: f64, min_per_second: u32) -> Budget {
    Budget::builder().ratio(ratio).min_per_second(min_per_second).build().unwrap()
}

/// Judges the first answer by the first verdict, and so on.
fn judged(verdicts: &'static [Verdict]) -> impl Classify<usize, ()> {
    classify::from_fn(move |answer: Result<&usize, &()>| answer.map_or(Verdict::TRANSIENT, |n| verdicts[n - 1]))
}

/// Calls a service through `retry` that answers 1, then 2, then 3; judged by `verdicts` in turn. The answer, and
/// at which milliseconds the service was asked.
async fn answers(retry: RetryBuilder, verdicts: &'static [Verdict]) -> (usize, Vec<u128>) {
    let start = Instant::now();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let diary = Arc::clone(&asked);
    let service = service_fn(move |(): ()| {
        let mut diary = diary.lock().unwrap();
        diary.push(start.elapsed().as_millis());
        std::future::ready(Ok::<_, Error<()>>(diary.len()))
    });
    let layer = retry.build().unwrap().layer_with(Kind::new(judged(verdicts), CloneRequest));
    let answer = layer.layer(service).send(()).await.unwrap();
    let asked = asked.lock().unwrap().clone();
    (answer, asked)
}

// ---------------------------------------------------------------- how often

// HAZARD: R9
#[tokio::test(start_paused = true)]
async fn attempts_are_counted_and_not_retries() {
    for attempts in 1..=4 {
        let retry = every(ms(10), attempts).build().unwrap();
        let policy = Policy::plain("stock").retry(&retry).build().unwrap();
        let (by_run, by_policy) = (Counts::default(), Counts::default());

        let last = retry
            .run(async |number| {
                by_run.enter();
                Err::<(), _>(number)
            })
            .await;
        assert_eq!(last, Err(Error::Inner(attempts)));
        let last = policy
            .call(async || {
                by_policy.enter();
                Err::<(), _>("no")
            })
            .await;
        assert_eq!(last, Err(Error::Inner("no")));
        assert_eq!((by_run.calls(), by_policy.calls()), (attempts as usize, attempts as usize));
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_may_pass_is_asked_again() {
    static CASES: [([Verdict; 2], usize); 5] = [
        ([Verdict::TRANSIENT, Verdict::Success], 2),
        ([Verdict::THROTTLED, Verdict::Success], 2),
        ([Verdict::Success, Verdict::Success], 1),
        ([Verdict::Permanent, Verdict::Success], 1),
        ([Verdict::Ignored, Verdict::Success], 1),
    ];
    for (verdicts, attempts) in &CASES {
        let (answer, asked) = answers(every(ms(10), 3), verdicts).await;
        assert_eq!((answer, asked.len()), (*attempts, *attempts), "{:?}", verdicts[0]);
    }
}

#[tokio::test(start_paused = true)]
async fn on_giving_up_the_last_answer_comes_back_unchanged() {
    static DOWN: [Verdict; 3] = [Verdict::TRANSIENT; 3];
    // An answer that was judged a failure is an answer still: it must not turn into an error of ours.
    assert_eq!(answers(every(ms(10), 3), &DOWN).await, (3, vec![0, 10, 20]));
}

// HAZARD: R10
#[tokio::test(start_paused = true)]
async fn a_spent_budget_ends_the_call_with_the_outcome_it_has() {
    // Ten retries for the ten seconds that the floor looks back, and nothing for calls.
    let retry = Retry::constant(ms(1)).max_attempts(1000).budget(budget(0.0, 1)).build().unwrap();
    assert_eq!(retry.run(|number| async move { Err::<(), _>(number) }).await, Err(Error::Inner(11)));
    assert_eq!(retry.budget().unwrap().balance(), 0);

    let start = Instant::now();
    assert_eq!(retry.run(|number| async move { Err::<(), _>(number) }).await, Err(Error::Inner(1)));
    assert_eq!(start.elapsed(), Duration::ZERO, "whoever may not ask again does not wait either");
}

// HAZARD: R10, R3
#[tokio::test(start_paused = true)]
async fn three_retries_one_above_the_other_on_one_budget_at_most_double_the_load() {
    async fn load(budget: Option<Budget>) -> usize {
        let retry = || {
            let retry = every(ms(1), 3);
            budget.iter().cloned().fold(retry, RetryBuilder::budget).build().unwrap()
        };
        let (outer, middle, inner) = (retry(), retry(), retry());
        let counts = Counts::default();
        for _ in 0..100 {
            let down = async |_| {
                counts.enter();
                Err::<(), _>("down")
            };
            let call = outer.run_as(|_| middle.run_as(|_| inner.run(down)));
            assert_eq!(call.await, Err(Error::Inner("down")));
        }
        counts.calls()
    }
    assert_eq!(load(None).await, 2_700, "the storm: 3^3 for each of the hundred");
    // With r retries there are 300 + 2r calls at the three levels to pay for them: r <= 0.2 * (300 + 2r), so r <= 100.
    let calls = load(Some(budget(0.2, 0))).await;
    assert!((101..=200).contains(&calls), "{calls}");
}

// ---------------------------------------------------------------- how long

#[tokio::test(start_paused = true)]
async fn the_waits_of_an_exponential_backoff_are_exact() {
    static DOWN: [Verdict; 6] = [Verdict::TRANSIENT; 6];
    let retry = Retry::exponential(ms(100)).max_delay(ms(700)).jitter(Jitter::None).max_attempts(6).without_budget();
    assert_eq!(answers(retry, &DOWN).await, (6, vec![0, 100, 300, 700, 1400, 2100]));
}

// HAZARD: R7
#[tokio::test(start_paused = true)]
async fn a_servers_hint_is_never_undercut() {
    // Among them such as lie between two ticks of the timer, which counts milliseconds.
    for hint in [1, 999, 1_000, 1_001, 20_500, 1_499_999, 1_500_000, 1_500_001].map(Duration::from_micros) {
        for seed in 0..20 {
            let hinted = classify::from_fn(move |_: Result<&(), &()>| Verdict::Throttled { retry_after: Some(hint) });
            let retry = Retry::constant(ms(20)).max_attempts(2).without_budget().seed(seed);
            let policy = Policy::plain("stock").retry(retry).classify(hinted).build().unwrap();
            let start = Instant::now();
            policy.call(async || Ok::<_, ()>(())).await.unwrap();
            assert!(start.elapsed() >= hint, "{hint:?}: asked again after {:?}", start.elapsed());
            assert!(start.elapsed() <= hint.max(ms(20)) + ms(1), "{hint:?}: {:?}", start.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_shorter_than_the_backoff_does_not_shorten_it() {
    static HINTED: [Verdict; 2] = [Verdict::Transient { retry_after: Some(ms(30)) }, Verdict::Success];
    assert_eq!(answers(every(ms(40), 2), &HINTED).await, (2, vec![0, 40]));
    assert_eq!(answers(every(ms(20), 2), &HINTED).await, (2, vec![0, 30]));
}

// HAZARD: R7
#[tokio::test(start_paused = true)]
async fn a_hint_beyond_what_we_would_wait_ends_the_call_at_once() {
    static HINTED: [Verdict; 2] = [Verdict::Throttled { retry_after: Some(secs(60)) }, Verdict::Success];
    let patient = every(ms(20), 2).max_retry_after(secs(60));
    assert_eq!(answers(patient, &HINTED).await, (2, vec![0, 60_000]));

    let start = Instant::now();
    let impatient = every(ms(20), 2).max_retry_after(secs(60) - Duration::from_nanos(1));
    assert_eq!(answers(impatient, &HINTED).await, (1, vec![0]));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

// ---------------------------------------------------------------- the deadline

/// Fails every time with the attempt's number, through a retry that waits one second, within `left`.
async fn within(left: Duration) -> (u32, Duration) {
    let policy = Policy::plain("stock").deadline(left).retry(every(secs(1), 2)).build().unwrap();
    let start = Instant::now();
    let number = AtomicU32::new(0);
    let last = policy.call(async || Err::<(), _>(number.fetch_add(1, SeqCst) + 1)).await;
    (last.unwrap_err().into_inner().expect("the last outcome, not a rejection"), start.elapsed())
}

// HAZARD: R7
#[tokio::test(start_paused = true)]
async fn a_backoff_that_would_reach_the_deadline_is_not_begun() {
    assert_eq!(within(ms(1_001)).await, (2, secs(1)));
    assert_eq!(within(ms(1_000)).await, (1, Duration::ZERO));
    assert_eq!(within(ms(10)).await, (1, Duration::ZERO));
}

// HAZARD: R7
#[tokio::test(start_paused = true)]
async fn a_hint_beyond_the_deadline_ends_the_call_at_once() {
    static HINTED: [Verdict; 2] = [Verdict::Throttled { retry_after: Some(secs(5)) }, Verdict::Success];
    let start = Instant::now();
    assert_eq!(Deadline::after(secs(5)).scope(answers(every(ms(1), 2), &HINTED)).await, (1, vec![0]));
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(Deadline::after(ms(5_001)).scope(answers(every(ms(1), 2), &HINTED)).await, (2, vec![0, 5_000]));
}

// HAZARD: R7
#[tokio::test(start_paused = true)]
async fn time_that_an_attempt_took_is_gone_for_the_backoff() {
    let retry = every(secs(1), 5).build().unwrap();
    let start = Instant::now();
    let call = retry.run(|number| async move {
        tokio::time::sleep(secs(2)).await;
        Err::<(), _>(number)
    });
    // 2 s, 1 s of backoff, 2 s: one more second of backoff would end at 6 s.
    assert_eq!(Deadline::after(ms(6_000)).scope(call).await, Err(Error::Inner(2)));
    assert_eq!(start.elapsed(), secs(5));
}

// HAZARD: R7
#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_not_made_spends_nothing_of_the_budget() {
    let budget = budget(0.0, 1);
    let retry = Retry::constant(secs(1)).jitter(Jitter::None).max_attempts(3).budget(budget.clone()).build().unwrap();
    let down = || retry.run(async |number| Err::<(), _>(number));
    assert_eq!(Deadline::after(ms(500)).scope(down()).await, Err(Error::Inner(1)));
    assert_eq!(budget.balance(), 10);
    assert_eq!(down().await, Err(Error::Inner(3)));
    assert_eq!(budget.balance(), 8, "two retries; the last attempt asks for no third");
}

// HAZARD: R7, T6
#[tokio::test(start_paused = true)]
async fn a_deadline_that_is_past_leaves_nothing_to_try() {
    let retry = every(ms(1), 3).retry_rejected(Reason::DeadlineExceeded).build().unwrap();
    let deadline = Deadline::after(secs(1));
    advance(secs(1)).await;
    let counts = Counts::default();
    let call = retry.run(async |_| {
        counts.enter();
        Err::<(), _>("down")
    });
    let refused = deadline.scope(call).await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().reason(), Reason::DeadlineExceeded);
    assert_eq!(counts.calls(), 0);
}
