//! What our own layers refused is not asked for again, unless somebody says so.

use buttress::{
    CircuitBreaker, ConcurrencyLimit, DeadlineLayer, Error, Policy, Reason, Retry, Rule, Timeout, Verdict, classify,
    impl_reject,
};
use tokio::time::{Duration, Instant, sleep, timeout};
use tower::{Layer, service_fn};

use super::every;
use crate::support::{Counts, ms, secs, settle};

/// An application's own error.
#[derive(Debug, PartialEq)]
enum Oops {
    Broken,
    Refused(buttress::Rejection),
}
impl_reject!(Oops, Oops::Refused);

impl Oops {
    fn reason(&self) -> Option<Reason> {
        match self {
            Oops::Broken => None,
            Oops::Refused(rejection) => Some(rejection.reason()),
        }
    }
}

fn full() -> (ConcurrencyLimit, buttress::concurrency_limit::Permit) {
    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
    let permit = limit.try_acquire().unwrap();
    (limit, permit)
}

// HAZARD: R8
#[tokio::test(start_paused = true)]
async fn an_open_circuit_below_is_not_asked_again() {
    let breaker = CircuitBreaker::builder().build().unwrap();
    breaker.force_open();
    let (retry, below, start) = (every(ms(10), 3).build().unwrap(), Counts::default(), Instant::now());
    let refused = retry.run_as(|_| {
        below.enter();
        breaker.call_as(async { Err::<(), _>(Oops::Broken) })
    });
    assert_eq!(refused.await.unwrap_err().reason(), Some(Reason::CircuitOpen));
    assert_eq!((below.calls(), start.elapsed()), (1, Duration::ZERO));
}

// HAZARD: R8
#[tokio::test(start_paused = true)]
async fn a_full_limit_below_is_not_asked_again_unless_asked_for() {
    let (limit, _permit) = full();
    for (retry, attempts) in [(every(ms(10), 3), 1), (every(ms(10), 3).retry_rejected(Reason::Overloaded), 3)] {
        let (retry, below) = (retry.build().unwrap(), Counts::default());
        let refused = retry.run_as(|_| {
            below.enter();
            limit.call_as(async { Ok::<_, Oops>(()) })
        });
        assert_eq!(refused.await.unwrap_err().reason(), Some(Reason::Overloaded));
        assert_eq!(below.calls(), attempts);
    }
}

// HAZARD: R8
#[tokio::test(start_paused = true)]
async fn a_rejection_is_known_as_one_through_layers_and_whatever_the_classifier_says() {
    let (limit, _permit) = full();
    let below = Counts::default();
    let count = below.clone();
    let full = limit.layer().layer(service_fn(async |(): ()| Ok::<_, Error<()>>(())));
    let counted = service_fn(move |req: ()| {
        count.enter();
        full.send(req)
    });

    let always = classify::from_fn(|_: Result<&(), &()>| Verdict::TRANSIENT);
    let kind = buttress::Kind::new(always, buttress::retry::CloneRequest);
    let service = every(ms(10), 3).build().unwrap().layer_with(kind).layer(counted);
    let refused = service.send(()).await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().rule(), Rule::LimitReached);
    assert_eq!(below.calls(), 1);
}

// HAZARD: R8
#[tokio::test(start_paused = true)]
async fn a_nested_call_that_ran_out_of_time_is_never_tried_again() {
    let hour = service_fn(async |(): ()| {
        sleep(secs(3600)).await;
        Ok::<_, Oops>(())
    });
    let nested = DeadlineLayer::new(secs(1)).layer(hour);
    let retry = every(ms(10), 3).retry_rejected(Reason::DeadlineExceeded).build().unwrap();
    let (below, start) = (Counts::default(), Instant::now());
    let refused = retry.run_as(|_| {
        below.enter();
        nested.send(())
    });
    assert_eq!(refused.await.unwrap_err().reason(), Some(Reason::DeadlineExceeded));
    assert_eq!((below.calls(), start.elapsed()), (1, secs(1)));
}

// HAZARD: R8
#[tokio::test(start_paused = true)]
async fn an_attempt_that_timed_out_is_tried_again() {
    let stalls_once = async |attempt: u32| {
        if attempt == 1 {
            sleep(secs(3600)).await;
        }
        Ok::<_, Oops>(attempt)
    };
    let (retry, timeout) = (every(ms(10), 3).build().unwrap(), Timeout::new(ms(100)));
    let start = Instant::now();
    assert_eq!(retry.run_as(|attempt| timeout.call_as(stalls_once(attempt))).await, Ok(2));
    assert_eq!(start.elapsed(), ms(110));

    let policy = Policy::plain("stock").retry(&retry).timeout(ms(100)).build().unwrap();
    let start = Instant::now();
    let attempt = || stalls_once(buttress::retry::current_attempt().unwrap());
    assert_eq!(policy.call_as(attempt).await, Ok(2));
    assert_eq!(start.elapsed(), ms(110));
}

#[tokio::test(start_paused = true)]
async fn every_attempt_has_the_whole_attempt_timeout() {
    let policy = Policy::plain("stock").retry(every(ms(50), 3)).timeout(ms(100)).build().unwrap();
    let start = Instant::now();
    let call = timeout(secs(3600), policy.call(std::future::pending::<Result<(), ()>>));
    let refused = call.await.expect("not for ever").unwrap_err();
    assert_eq!(refused.rejection().unwrap().reason(), Reason::Timeout);
    assert_eq!(start.elapsed(), ms(3 * 100 + 2 * 50));
}

// HAZARD: R8
#[tokio::test(start_paused = true)]
async fn a_policys_own_open_circuit_ends_its_call() {
    // The first failure opens it, so a second attempt would only be refused: the failure itself says more.
    let breaker = CircuitBreaker::builder().consecutive_failures(1);
    let policy = Policy::plain("stock").retry(every(ms(10), 3)).circuit_breaker(breaker).build().unwrap();
    let (counts, start) = (Counts::default(), Instant::now());
    let down = async || {
        counts.enter();
        Err::<(), _>("down")
    };
    assert_eq!(policy.call(down).await, Err(Error::Inner("down")));
    let refused = policy.call(down).await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().reason(), Reason::CircuitOpen);
    assert_eq!((counts.calls(), start.elapsed()), (1, Duration::ZERO));
}

// HAZARD: R8
#[tokio::test(start_paused = true)]
async fn a_policy_told_to_retry_overload_gets_in_once_there_is_room() {
    let (limit, permit) = full();
    let retry = every(ms(100), 3).retry_rejected(Reason::Overloaded);
    let policy = Policy::plain("stock").retry(retry).concurrency_limit(&limit).build().unwrap();
    let service = policy.wrap(service_fn(async |n: u32| Ok::<_, ()>(n)));
    // `Plain` sends a request once; one that was refused has not been sent yet.
    let call = tokio::spawn(service.send(7));
    settle().await;
    drop(permit);
    let start = Instant::now();
    assert_eq!(call.await.unwrap(), Ok(7));
    assert_eq!((start.elapsed(), limit.in_flight()), (ms(100), 0));
}

#[tokio::test(start_paused = true)]
async fn a_function_of_its_own_error_type_keeps_it() {
    let retry: Retry = every(ms(10), 2).build().unwrap();
    assert_eq!(retry.run_as(async |_| Err::<(), _>(Oops::Broken)).await, Err(Oops::Broken));
}
