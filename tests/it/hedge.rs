//! Asking once more before the first answer is late.

#![allow(clippy::disallowed_methods, reason = "a story looks at the clock, which is paused")]

use std::{
    cell::RefCell,
    future::{Future, pending},
    panic::AssertUnwindSafe,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use buttress::{
    CircuitBreaker, Cloned, ConcurrencyLimit, Error, Hedge, Jitter, Policy, Reason, Retry, Verdict,
    retry::{Budget, current_attempt},
};
use futures_util::{
    FutureExt,
    future::{LocalBoxFuture, join_all},
};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::support::{Counts, ms, secs};

/// A service that answers each call as the script has it: after so many milliseconds, with so much.
#[derive(Clone)]
struct Script {
    lines: Rc<[(u64, Result<u32, &'static str>)]>,
    begun: Rc<RefCell<Vec<(u128, Option<u32>)>>>,
    counts: Counts,
    base: Instant,
}

impl Script {
    fn new(lines: &[(u64, Result<u32, &'static str>)]) -> Self {
        Self { lines: lines.into(), begun: Rc::default(), counts: Counts::default(), base: Instant::now() }
    }

    fn ask(&self) -> impl Future<Output = Result<u32, &'static str>> + use<> {
        let running = self.counts.enter();
        let (after, answer) = self.lines[self.begun.borrow().len()];
        self.begun.borrow_mut().push((self.base.elapsed().as_millis(), current_attempt()));
        async move {
            let _running = running;
            sleep(ms(after)).await;
            answer
        }
    }

    /// When each call began.
    fn begun(&self) -> Vec<u128> {
        self.begun.borrow().iter().map(|(at, _)| *at).collect()
    }

    fn attempts(&self) -> Vec<Option<u32>> {
        self.begun.borrow().iter().map(|(_, number)| *number).collect()
    }
}

const ANY: Duration = Duration::from_millis(50);

fn after(delay: Duration) -> Hedge {
    Hedge::after(delay).build().unwrap()
}

/// What a script comes to, by a hedge after 50 ms, and when.
async fn hedged(lines: &[(u64, Result<u32, &'static str>)]) -> (Result<u32, &'static str>, u128, Vec<u128>) {
    let script = Script::new(lines);
    let outcome = after(ANY).call(|| script.ask()).await.map_err(|error| error.into_inner().unwrap());
    assert_eq!(script.counts.running(), 0, "nothing goes on after the answer");
    (outcome, script.base.elapsed().as_millis(), script.begun())
}

#[tokio::test(start_paused = true)]
async fn whichever_answers_first_wins_and_the_other_is_dropped() {
    assert_eq!(hedged(&[(10, Ok(1))]).await, (Ok(1), 10, vec![0]));
    assert_eq!(hedged(&[(90, Ok(1)), (90, Ok(2))]).await, (Ok(1), 90, vec![0, 50]));
    assert_eq!(hedged(&[(900, Ok(1)), (10, Ok(2))]).await, (Ok(2), 60, vec![0, 50]));
}

#[tokio::test(start_paused = true)]
async fn a_fast_failure_of_the_hedge_never_beats_a_healthy_first_call() {
    assert_eq!(hedged(&[(200, Ok(1)), (1, Err("hedge"))]).await, (Ok(1), 200, vec![0, 50]));
}

#[tokio::test(start_paused = true)]
async fn if_the_first_fails_the_hedge_is_waited_for() {
    assert_eq!(hedged(&[(60, Err("first")), (90, Ok(2))]).await, (Ok(2), 140, vec![0, 50]));
    assert_eq!(hedged(&[(60, Err("first")), (90, Err("hedge"))]).await, (Err("hedge"), 140, vec![0, 50]));
}

// VECTOR: H1, Polly's `HedgingResilienceStrategyTests.cs`
#[tokio::test(start_paused = true)]
async fn h1_if_all_fail_and_the_first_is_the_slowest_its_outcome_is_returned() {
    for delay in [0, 1_000] {
        let script = Script::new(&[(5_000, Err("primary")), (1, Err("secondary"))]);
        let outcome = after(ms(delay)).call(|| script.ask()).await;
        assert_eq!(outcome.unwrap_err().into_inner(), Some("primary"));
        assert_eq!(script.begun(), [0, u128::from(delay)], "at once, if there is no delay");
    }
}

// VECTOR: H3, Finagle's `BackupRequestFilter`
#[tokio::test(start_paused = true)]
async fn h3_what_fails_before_its_time_is_returned_not_sent_again_and_not_learned_from() {
    assert_eq!(hedged(&[(40, Err("first"))]).await, (Err("first"), 40, vec![0]));
    let hedge = Hedge::percentile(0.95).build().unwrap();
    for _ in 0..50 {
        let failed = hedge.call(|| async {
            sleep(ms(10)).await;
            Err::<(), _>("no")
        });
        assert!(failed.await.is_err());
    }
    assert_eq!(hedge.delay(), None);
}

/// Finagle, ibid.: the backup is sent at the percentile.
#[tokio::test(start_paused = true)]
async fn h3_the_delay_is_a_percentile_of_what_was_answered() {
    let hedge = Hedge::percentile(0.9).build().unwrap();
    let twice = Hedge::percentile(0.9).times(2.0).build().unwrap();
    for number in 0..1_000u64 {
        // Of ten calls, one takes 100 ms and the others 10 to 18.
        let took = if number % 10 == 9 { 100 } else { 10 + number % 10 };
        for hedge in [&hedge, &twice] {
            let call = hedge.call(|| async {
                sleep(ms(took)).await;
                Ok::<_, ()>(())
            });
            call.await.unwrap();
        }
    }
    let delay = hedge.delay().unwrap();
    assert!(delay > ms(14) && delay < ms(30), "{delay:?}");
    let script = Script::new(&[(500, Ok(1)), (500, Ok(2))]);
    hedge.call(|| script.ask()).await.unwrap();
    let sent = script.begun()[1];
    assert!(sent.abs_diff(delay.as_millis()) <= 1, "{sent} ms, and not {delay:?}");
    let delay = twice.delay().unwrap();
    assert!(delay > ms(28) && delay < ms(60), "{delay:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_hedged_before_anything_is_known() {
    let hedge = Hedge::percentile(0.5).build().unwrap();
    let script = Script::new(&[(60_000, Ok(1))]);
    assert_eq!(hedge.call(|| script.ask()).await.unwrap(), 1);
    assert_eq!(script.begun(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_percentile_is_not_talked_down_by_the_hedges_that_won() {
    // A quarter of the calls hang. That they are given up after the delay is no answer within it.
    let hedge = Hedge::percentile(0.6).min_delay(ms(1)).budget(generous()).build().unwrap();
    let count = AtomicUsize::new(0);
    for _ in 0..2_000 {
        let call = hedge.call(|| {
            let number = count.fetch_add(1, SeqCst);
            async move {
                if number % 4 == 0 {
                    pending::<()>().await;
                }
                sleep(ms(10)).await;
                Ok::<_, ()>(())
            }
        });
        let _ = timeout(secs(1), call).await;
    }
    assert!(hedge.delay().unwrap() >= ms(9), "{:?}", hedge.delay());
}

fn generous() -> Budget {
    Budget::builder().ratio(10.0).min_per_second(1_000).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_budget_bounds_the_hedges_and_is_shared_with_retries_through_nested_layers() {
    let budget = Budget::builder().ratio(0.0).min_per_second(1).build().unwrap();
    let hedge = Hedge::after(ms(1)).budget(budget.clone()).build().unwrap();
    let retry = Retry::constant(ms(1)).max_attempts(2).budget(budget.clone()).build().unwrap();
    let asked = Counts::default();
    let slow = || {
        let running = asked.enter();
        async move {
            let _running = running;
            sleep(ms(10)).await;
            Err::<(), _>("slow, and no")
        }
    };
    let calls = (0..20).map(|_| retry.run_as(|_| hedge.call(slow)));
    assert!(join_all(calls).await.iter().all(Result::is_err));
    // Ten in ten seconds; but of a budget that is shared a hedge leaves five to the retries.
    assert_eq!(asked.calls(), 20 + 10);
    assert_eq!(budget.balance(), 0);
}

/// How many hedges are sent beside so many calls, one after the other, that take so long.
async fn hedges_of(hedge: &Hedge, calls: usize, each: Duration) -> usize {
    let asked = Counts::default();
    for _ in 0..calls {
        let call = hedge.call(|| {
            let running = asked.enter();
            async move {
                let _running = running;
                sleep(each).await;
                Ok::<_, ()>(())
            }
        });
        call.await.unwrap();
    }
    asked.calls() - calls
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_its_own_is_a_tenth_of_the_calls() {
    let hedge = after(ms(1));
    let hedges = hedges_of(&hedge, 1_000, ms(2)).await;
    assert!((95..=110).contains(&hedges), "{hedges}");
}

/// What lets 50 ms pass and asks once more.
fn policy() -> buttress::PolicyBuilder {
    Policy::plain("users").hedge(Hedge::after(ANY))
}

#[tokio::test(start_paused = true)]
async fn a_hedge_has_a_permit_of_its_own_and_gives_it_back() {
    let policy = policy().concurrency_limit(ConcurrencyLimit::builder().max_in_flight(2)).build().unwrap();
    let limit = policy.concurrency_limit().unwrap();
    let script = Script::new(&[(900, Ok(1)), (100, Ok(2))]);
    let mut call = Box::pin(policy.call(|| script.ask()));
    assert!(timeout(ms(60), &mut call).await.is_err());
    assert_eq!(limit.in_flight(), 2);
    assert_eq!(call.await.unwrap(), 2);
    assert_eq!(limit.in_flight(), 0);
    // Dropped halfway, with two on their way.
    let script = Script::new(&[(900, Ok(1)), (900, Ok(2))]);
    assert!(timeout(ms(60), policy.call(|| script.ask())).await.is_err());
    assert_eq!((limit.in_flight(), script.counts.running(), script.counts.calls()), (0, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_waits_for_nobody_and_takes_nothing_that_somebody_waits_for() {
    let policy = policy().concurrency_limit(ConcurrencyLimit::builder().max_in_flight(1)).build().unwrap();
    let script = Script::new(&[(200, Ok(1))]);
    assert_eq!(policy.call(|| script.ask()).await.unwrap(), 1);
    assert_eq!(script.begun(), [0]);
    let two = Policy::plain("users")
        .hedge(Hedge::after(ANY))
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(2))
        .build()
        .unwrap();
    let script = Script::new(&[(200, Ok(1)), (200, Ok(2)), (10, Ok(3))]);
    let calls = (0..3).map(|_| two.call(|| script.ask()));
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(script.begun(), [0, 0, 200], "the third, and no hedge");
}

#[tokio::test(start_paused = true)]
async fn no_circuit_but_a_closed_one_is_asked_by_a_hedge() {
    let breaker = CircuitBreaker::builder().slow_call(secs(60)).build().unwrap();
    let policy = policy().circuit_breaker(&breaker).build().unwrap();
    breaker.force_open();
    breaker.reset();
    let script = Script::new(&[(200, Ok(1)), (200, Ok(2))]);
    policy.call(|| script.ask()).await.unwrap();
    assert_eq!(script.begun().len(), 2, "closed: it is hedged");
    let script = Script::new(&[(200, Ok(1)), (200, Ok(2))]);
    let call = policy.call(|| script.ask());
    let meanwhile = async {
        sleep(ms(20)).await;
        breaker.force_open();
    };
    let (outcome, ()) = tokio::join!(call, meanwhile);
    assert_eq!((outcome.unwrap(), script.begun()), (1, vec![0]), "open: it is not");
}

#[tokio::test(start_paused = true)]
async fn the_breaker_hears_of_every_answer_and_of_no_loser() {
    let breaker = CircuitBreaker::builder().slow_call(secs(60)).build().unwrap();
    let policy = policy().circuit_breaker(&breaker).build().unwrap();
    let totals = || {
        let snapshot = breaker.snapshot();
        (snapshot.calls, snapshot.failures)
    };
    let script = Script::new(&[(900, Ok(1)), (10, Ok(2))]);
    policy.call(|| script.ask()).await.unwrap();
    assert_eq!(totals(), (1, 0));
    let script = Script::new(&[(900, Ok(1)), (10, Err("hedge"))]);
    policy.call(|| script.ask()).await.unwrap();
    assert_eq!(totals(), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_an_attempt_and_a_retry_follows_both() {
    let policy = policy().retry(Retry::constant(ms(10)).jitter(Jitter::None).max_attempts(3)).build().unwrap();
    let script = Script::new(&[(100, Err("first")), (20, Err("hedge")), (1, Ok(3))]);
    assert_eq!(policy.call(|| script.ask()).await.unwrap(), 3);
    assert_eq!(script.attempts(), [Some(1), Some(2), Some(3)]);
    assert_eq!(script.begun(), [0, 50, 110], "no retry before both have failed");
    let script = Script::new(&[(60, Err("first")), (90, Err("hedge")), (1, Ok(3))]);
    assert_eq!(policy.call(|| script.ask()).await.unwrap(), 3);
    assert_eq!((script.attempts(), script.begun()), (vec![Some(1), Some(2), Some(3)], vec![0, 50, 150]));
    // Three are three.
    let script = Script::new(&[(100, Err("first")), (20, Err("hedge")), (200, Err("third"))]);
    assert!(policy.call(|| script.ask()).await.is_err());
    assert_eq!(script.begun(), [0, 50, 110]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_timeout_cuts_one_attempt_and_the_other_goes_on_for_its_own() {
    let policy = policy().timeout(ms(100)).build().unwrap();
    let script = Script::new(&[(900, Ok(1)), (80, Ok(2))]);
    assert_eq!(policy.call(|| script.ask()).await.unwrap(), 2);
    assert_eq!(script.base.elapsed(), ms(130));
    let script = Script::new(&[(900, Ok(1)), (900, Ok(2))]);
    let error = policy.call(|| script.ask()).await.unwrap_err();
    assert_eq!(error.rejection().map(|no| no.reason()), Some(Reason::Timeout));
    assert_eq!((script.base.elapsed(), script.counts.running()), (ms(150), 0));
    let script = Script::new(&[(900, Ok(1)), (10, Err("hedge"))]);
    let error = policy.call(|| script.ask()).await.unwrap_err();
    assert_eq!(error.rejection().map(|no| no.reason()), Some(Reason::Timeout));
    assert_eq!(script.base.elapsed(), ms(100), "nothing is waited for that has failed");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_that_of_the_call_whoever_runs() {
    let policy = policy().deadline(ms(120)).build().unwrap();
    let script = Script::new(&[(900, Ok(1)), (900, Ok(2))]);
    let error = policy.call(|| script.ask()).await.unwrap_err();
    assert_eq!(error.rejection().map(|no| no.reason()), Some(Reason::DeadlineExceeded));
    assert_eq!((script.base.elapsed(), script.counts.running(), script.counts.calls()), (ms(120), 0, 2));
    let script = Script::new(&[(60, Err("first")), (900, Ok(2))]);
    let error = policy.call(|| script.ask()).await.unwrap_err();
    assert_eq!(error.rejection().map(|no| no.reason()), Some(Reason::DeadlineExceeded));
    assert_eq!(script.base.elapsed(), ms(120));
    let script = Script::new(&[(30, Ok(1))]);
    assert_eq!(policy.call(|| script.ask()).await.unwrap(), 1, "sooner than both");
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_panics_gives_its_permit_back_and_ends_the_call() {
    let policy = policy().concurrency_limit(ConcurrencyLimit::builder().max_in_flight(2)).build().unwrap();
    let asked = AtomicUsize::new(0);
    let call = policy.call(|| {
        let second = asked.fetch_add(1, SeqCst) == 1;
        async move {
            assert!(!second, "on purpose");
            pending::<Result<(), ()>>().await
        }
    });
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    assert_eq!((asked.load(SeqCst), policy.concurrency_limit().unwrap().in_flight()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn requests_are_hedged_as_they_are_repeated() {
    let asked = Counts::default();
    let service = {
        let asked = asked.clone();
        service_fn(move |request: &'static str| {
            let running = asked.enter();
            async move {
                let _running = running;
                sleep(ms(100)).await;
                Ok::<_, Error<std::io::Error>>(request)
            }
        })
    };
    after(ANY).layer().layer(service.clone()).oneshot("get").await.unwrap();
    assert_eq!(asked.calls(), 2);
    policy().build().unwrap().layer().layer(service.clone()).oneshot("once").await.unwrap();
    assert_eq!(asked.calls(), 3, "a plain policy sends each request once");
    let gets =
        policy().repeat(|request: &&'static str| request.starts_with("get").then_some(*request)).build().unwrap();
    gets.layer().layer(service.clone()).oneshot("get").await.unwrap();
    gets.layer().layer(service).oneshot("post").await.unwrap();
    assert_eq!(asked.calls(), 6);
    assert_eq!(asked.running(), 0);
}

/// A service whose clones are not ready until they are told.
#[derive(Clone, Default)]
struct Shy {
    asked: Counts,
    ready: Arc<AtomicBool>,
    clones: bool,
    /// That were polled for readiness and neither called nor dropped.
    polled: Option<Arc<()>>,
    reserved: Arc<()>,
}

impl Service<u32> for Shy {
    type Response = u32;
    type Error = Error<std::io::Error>;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<u32, Self::Error>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.clones && !self.ready.load(SeqCst) {
            self.polled = Some(self.reserved.clone());
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.clones = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, after: u32) -> Self::Future {
        self.polled = None;
        let running = self.asked.enter();
        Box::pin(async move {
            let _running = running;
            sleep(ms(after.into())).await;
            Ok(after)
        })
    }
}

#[tokio::test]
async fn a_hedge_whose_service_does_not_get_ready_is_in_nobodys_way() {
    tokio::time::pause();
    let limit = ConcurrencyLimit::builder().max_in_flight(2).build().unwrap();
    let policy = Policy::cloned("shy").hedge(Hedge::after(ms(5))).concurrency_limit(&limit).build().unwrap();
    let mut service = policy.layer().layer(Shy { clones: false, ..Shy::default() });
    let shy = service.get_ref().clone();
    service.ready().await.unwrap();
    let mut call = Box::pin(service.call(100));
    // It wakes itself all the time, so the clock goes on by hand.
    for _ in 0..9 {
        assert!(futures_util::poll!(&mut call).is_pending());
        tokio::time::advance(ms(10)).await;
    }
    assert_eq!((limit.in_flight(), shy.asked.calls()), (2, 1), "admitted, and not sent");
    tokio::time::advance(ms(20)).await;
    assert!(matches!(futures_util::poll!(&mut call), Poll::Ready(Ok(100))));
    assert_eq!(limit.in_flight(), 0);
    drop(call);
    assert_eq!(Arc::strong_count(&shy.reserved), 2, "nothing is reserved any more");
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_learns_nothing_from_a_call_that_was_given_up_for_another() {
    let policy =
        Policy::standard("users").hedge(Hedge::after(ms(50)).budget(generous())).deadline(secs(1)).build().unwrap();
    let count = AtomicUsize::new(0);
    let quick = |each: usize| {
        let (policy, count) = (&policy, &count);
        async move {
            let calls = (0..each).map(|_| {
                policy.call(|| {
                    let slow = count.fetch_add(1, SeqCst) % 10 == 0;
                    async move {
                        sleep(ms(if slow { 900 } else { 10 })).await;
                        Ok::<_, ()>(())
                    }
                })
            });
            join_all(calls).await.into_iter().filter(Result::is_ok).count()
        }
    };
    for _ in 0..50 {
        assert_eq!(quick(8).await, 8);
    }
    let limit = policy.concurrency_limit().unwrap().max_in_flight();
    assert!(limit >= 8, "{limit}");
}

#[test]
fn bad_input_is_named() {
    let said = |builder: buttress::HedgeBuilder| builder.build().unwrap_err().to_string();
    assert_eq!(
        said(Hedge::percentile(f64::NAN).times(0.5).name("")),
        "invalid configuration: hedge.name = \"\": must not be empty: logs and rejections carry it; \
         hedge.percentile = NaN: must be between 0.5 and 0.999; hedge.times = 0.5: must be between 1 and 100",
    );
    let error = Policy::plain("users").hedge(Hedge::percentile(95.0)).build().unwrap_err();
    assert_eq!(error.to_string(), "invalid configuration: hedge.percentile = 95.0: must be between 0.5 and 0.999",);
}

#[tokio::test(start_paused = true)]
async fn it_shows_what_it_has_come_to() {
    let hedge = Hedge::after(ms(30)).name("users").build().unwrap();
    let shown = format!("{hedge:?}");
    assert!(shown.contains("users") && shown.contains("30ms"), "{shown}");
    let policy = Policy::plain("users").hedge(&hedge).build().unwrap();
    assert_eq!(policy.hedge().unwrap().delay(), Some(ms(30)));
    let _named: buttress::HedgeService<(), Cloned> = hedge.layer().layer(());
}

#[tokio::test(start_paused = true)]
async fn in_a_policy_the_retries_have_the_last_of_the_budget() {
    let budget = Budget::builder().ratio(0.0).min_per_second(1).build().unwrap();
    let policy = policy().retry(Retry::constant(ms(1)).budget(budget.clone())).build().unwrap();
    for _ in 0..20 {
        let script = Script::new(&[(60, Ok(1)), (60, Ok(2))]);
        policy.call(|| script.ask()).await.unwrap();
    }
    assert_eq!(budget.balance(), 5, "ten in ten seconds, of which hedges take five");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_says_whose_it_is() {
    let hedge = Hedge::after(ms(30)).name("users").build().unwrap();
    let mut service = hedge.layer().layer(service_fn(|(): ()| pending::<Result<(), Error<std::io::Error>>>()));
    let call = service.ready().await.unwrap().call(());
    assert_eq!(format!("{call:?}"), "ResponseFuture { name: \"users\", state: \"running\", .. }");
}

/// A hedge after 50 ms over whatever refuses or fails the second in a way that no retry repeats.
#[tokio::test(start_paused = true)]
async fn nothing_but_an_answer_of_the_hedge_beats_a_first_that_is_on_its_way() {
    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
    let first = || async {
        sleep(ms(90)).await;
        Ok::<_, Error<&str>>(1)
    };
    assert_eq!(after(ANY).call_as(|| limit.call_as(first())).await.unwrap(), 1, "refused by the limit below");
    let verdicts = [Verdict::Throttled { retry_after: None }, Verdict::Failed, Verdict::Ignored];
    for verdict in verdicts {
        let judge = move |outcome: Result<&u32, &&str>| if outcome.is_ok() { Verdict::Success } else { verdict };
        let policy = policy().classify(buttress::classify::from_fn(judge)).build().unwrap();
        let script = Script::new(&[(90, Ok(1)), (10, Err("hedge"))]);
        assert_eq!(policy.call(|| script.ask()).await.unwrap(), 1, "{verdict:?}");
        let script = Script::new(&[(60, Err("first")), (90, Ok(2))]);
        assert_eq!(policy.call(|| script.ask()).await.unwrap(), 2, "{verdict:?}: and the other way round");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_goes_on_if_a_layer_below_cuts_the_first_off() {
    let timeout = buttress::Timeout::new(ms(100));
    let script = Script::new(&[(900, Ok(1)), (60, Ok(2))]);
    let outcome = after(ANY).call_as(|| timeout.call(script.ask())).await;
    assert_eq!((outcome.unwrap(), script.base.elapsed()), (2, ms(110)));
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_given_is_paid_into() {
    let budget = Budget::builder().ratio(0.5).min_per_second(0).build().unwrap();
    let hedge = Hedge::after(ms(5)).budget(budget).build().unwrap();
    let hedges = hedges_of(&hedge, 500, ms(10)).await;
    assert!((200..=250).contains(&hedges), "{hedges}");
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_hedge_said_of_when_to_come_back_is_not_undercut() {
    let judge = |outcome: Result<&u32, &&str>| match outcome {
        Ok(_) => Verdict::Success,
        Err(&"later") => Verdict::Transient { retry_after: Some(secs(10)) },
        Err(_) => Verdict::TRANSIENT,
    };
    for timeout in [None, Some(ms(100))] {
        let policy = policy().retry(Retry::constant(ms(1))).classify(buttress::classify::from_fn(judge));
        let policy = timeout.map_or(policy.clone(), |time| policy.timeout(time)).build().unwrap();
        let first = if timeout.is_some() { 900 } else { 90 };
        let script = Script::new(&[(first, Err("first")), (10, Err("later")), (1, Ok(3))]);
        assert_eq!(policy.call(|| script.ask()).await.unwrap(), 3);
        assert!(script.begun()[2] >= 10_090, "{:?}", script.begun());
    }
}

#[tokio::test(start_paused = true)]
async fn while_it_drains_nothing_is_sent_twice() {
    let shutdown = buttress::Shutdown::builder().build().unwrap();
    let policy = policy().shutdown(&shutdown.handle()).build().unwrap();
    shutdown.handle().trigger("test");
    let script = Script::new(&[(90, Ok(1))]);
    assert_eq!(policy.call(|| script.ask()).await.unwrap(), 1);
    assert_eq!(script.begun(), [0]);
}

// A place in a line below would be granted to somebody who is not there any more.
#[tokio::test(start_paused = true)]
async fn a_call_that_has_its_answer_stands_in_no_line_below() {
    let slow = service_fn(|(): ()| async {
        sleep(ms(90)).await;
        Ok::<_, Error<std::io::Error>>(())
    });
    let limited = tower::limit::ConcurrencyLimit::new(slow, 1);
    let mut service = after(ANY).layer().layer(limited);
    let mut call = std::pin::pin!(service.ready().await.unwrap().call(()));
    (&mut call).await.unwrap();
    timeout(secs(1), service.ready()).await.expect("nobody else waits for the permit").unwrap();
}

/// Gets ready a millisecond after it was first asked to, each clone of it anew.
struct Drowsy {
    wakes: Option<Pin<Box<Sleep>>>,
    script: Script,
}

impl Clone for Drowsy {
    fn clone(&self) -> Self {
        Self { wakes: None, script: self.script.clone() }
    }
}

impl Service<()> for Drowsy {
    type Response = u32;
    type Error = &'static str;
    type Future = LocalBoxFuture<'static, Result<u32, &'static str>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        self.wakes.get_or_insert_with(|| Box::pin(sleep(ms(1)))).as_mut().poll(cx).map(Ok)
    }

    fn call(&mut self, (): ()) -> Self::Future {
        self.script.ask().boxed_local()
    }
}

// By an attempt that waits for its service, as those in a queue and all retries may, the timer is in use already.
#[tokio::test(start_paused = true)]
async fn an_attempt_whose_service_was_not_ready_at_once_is_hedged_as_any_other() {
    let retry = Retry::constant(ms(1)).max_attempts(3).without_budget();
    let policy = Policy::cloned("drowsy").hedge(after(ms(50))).retry(retry);
    for policy in [policy.clone().build().unwrap(), policy.timeout(secs(1)).build().unwrap()] {
        let script = Script::new(&[(0, Err("no")), (5_000, Ok(1)), (10, Ok(2))]);
        let drowsy = Drowsy { wakes: None, script: script.clone() };
        let began = Instant::now();
        assert_eq!(policy.wrap(drowsy).send(()).await.unwrap(), 2);
        assert!(began.elapsed() < ms(100), "{:?}", script.begun());
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_hedges_and_retries_is_paid_into_once_by_each_call() {
    let budget = Budget::builder().ratio(0.1).min_per_second(0).build().unwrap();
    let retry = Retry::constant(ms(1)).max_attempts(2).budget(budget.clone()).build().unwrap();
    let hedge = Hedge::after(secs(5)).budget(budget);
    let policy = Policy::plain("once").retry(&retry);
    for policy in [policy.clone().hedge(hedge.clone()), policy.hedge(hedge.build().unwrap())] {
        let (policy, asked) = (policy.build().unwrap(), Counts::default());
        for _ in 0..100 {
            let fails = || {
                drop(asked.enter());
                async { Err::<(), _>("no") }
            };
            assert!(policy.call(fails).await.is_err());
        }
        assert_eq!(asked.calls(), 110);
    }
}
