//! One attempt takes only so long.
#![allow(clippy::disallowed_methods)] // the stories tell when an attempt was cut off

use std::{
    future::{pending, poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
};

use buttress::{
    CircuitBreaker, ConcurrencyLimit, Deadline, DeadlineLayer, Error, Policy, Reason, Rejection, Retry, Rule, Timeout,
    TimeoutLayer,
};
use tokio::time::{Duration, Instant, advance, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{BoxError, Layer, Service, ServiceBuilder, service_fn};

use crate::support::{Boxed, Counts, ms, secs, settle};

type Outcome<T> = Result<T, Error<&'static str>>;

fn rejection<T: std::fmt::Debug>(outcome: Outcome<T>) -> Rejection {
    *outcome.unwrap_err().rejection().expect("a rejection")
}

fn stalled() -> impl Future<Output = Result<(), &'static str>> {
    pending()
}

/// Answers after so long; its error can carry a rejection.
fn takes(time: Duration) -> impl Service<(), Response = &'static str, Error = Error<()>, Future: Send> + Clone {
    service_fn(move |(): ()| async move {
        sleep(time).await;
        Ok("answer")
    })
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_cut_off_and_says_so() {
    let start = Instant::now();
    let no = rejection(Timeout::new(ms(250)).name("stock").call(stalled()).await);
    assert_eq!(start.elapsed(), ms(250));
    assert_eq!((no.name(), no.reason(), no.rule()), ("stock", Reason::Timeout, Rule::AttemptTimeout));
    assert_eq!((no.measured(), no.threshold(), no.retry_after()), (Some(0.25), Some(0.25), None));
    assert_eq!(no.to_string(), "attempt of `stock` timed out: 0.250 s, 0.250 s allowed");
}

#[tokio::test(start_paused = true)]
async fn what_was_measured_is_how_long_it_really_took() {
    // The task is polled late: three times the time had passed.
    let mut call = task::spawn(Timeout::new(ms(100)).call(stalled()));
    assert_pending!(call.poll());
    advance(ms(300)).await;
    let no = rejection(assert_ready!(call.poll()));
    assert_eq!(no.to_string(), "attempt of `timeout` timed out: 0.300 s, 0.100 s allowed");
}

#[tokio::test(start_paused = true)]
async fn an_error_that_can_carry_it_is_kept() {
    let refused: Result<(), BoxError> = Timeout::new(ms(1)).call_as(pending()).await;
    assert!(refused.unwrap_err().is::<Rejection>());
    let refused: std::io::Result<()> = Timeout::new(ms(1)).call_as(pending()).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn the_time_is_counted_from_the_first_poll_that_is_pending() {
    let call = TimeoutLayer::new(ms(100)).layer(takes(ms(50))).call(());
    advance(secs(10)).await;
    assert_eq!(call.await, Ok("answer"));
}

// HAZARD: T1
#[test]
fn an_answer_that_is_there_at_once_needs_no_timer_and_so_no_runtime() {
    let timeout = Timeout::new(ms(1));
    assert_eq!(assert_ready!(task::spawn(timeout.call(ready(Ok::<_, ()>(1)))).poll()), Ok(1));
    let service = service_fn(|n: u32| ready(Ok::<_, Error<()>>(n)));
    assert_eq!(assert_ready!(task::spawn(timeout.layer().layer(service).call(2)).poll()), Ok(2));
    assert_eq!(assert_ready!(task::spawn(DeadlineLayer::new(secs(1)).layer(service).call(3)).poll()), Ok(3));

    let policy = Policy::cloned("whole")
        .deadline(secs(1))
        .retry(Retry::exponential(ms(1)))
        .circuit_breaker(CircuitBreaker::builder())
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(1))
        .timeout(ms(1))
        .build()
        .unwrap();
    assert_eq!(assert_ready!(task::spawn(policy.call(|| ready(Ok::<_, ()>(4)))).poll()), Ok(4));
    assert_eq!(assert_ready!(task::spawn(policy.layer().layer(service).call(5)).poll()), Ok(5));
}

// HAZARD: T2
#[tokio::test(start_paused = true)]
async fn a_queue_in_a_layer_below_counts() {
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let _permit = limit.try_acquire().unwrap();
    let service =
        ServiceBuilder::new().layer(TimeoutLayer::new(ms(100))).layer(limit.layer()).service(takes(Duration::ZERO));
    let start = Instant::now();
    let no = service.send(()).await.unwrap_err();
    assert_eq!(no.rejection().unwrap().reason(), Reason::Timeout);
    assert_eq!((start.elapsed(), limit.waiting(), limit.in_flight()), (ms(100), 0, 1));
}

#[tokio::test(start_paused = true)]
async fn in_a_policy_the_queue_does_not_count() {
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let policy = Policy::plain("stock").concurrency_limit(&limit).timeout(ms(100)).build().unwrap();
    let permit = limit.try_acquire().unwrap();
    let call = tokio::spawn(policy.wrap(takes(ms(99))).send(()));
    settle().await;
    advance(ms(500)).await;
    drop(permit);
    assert_eq!(call.await.unwrap(), Ok("answer"));
}

// HAZARD: T3
#[tokio::test(start_paused = true)]
async fn if_answer_and_end_meet_in_one_poll_the_answer_wins() {
    assert_eq!(TimeoutLayer::new(ms(100)).layer(takes(ms(100))).send(()).await, Ok("answer"));
    assert_eq!(DeadlineLayer::new(ms(100)).layer(takes(ms(100))).send(()).await, Ok("answer"));

    // Nor does it matter by how much the end is past when somebody looks.
    for layered in [true, false] {
        let mut call = task::spawn(match layered {
            true => Box::pin(TimeoutLayer::new(ms(50)).layer(takes(ms(100))).call(())) as Boxed<_>,
            false => Box::pin(DeadlineLayer::new(ms(50)).layer(takes(ms(100))).call(())),
        });
        assert_pending!(call.poll());
        advance(secs(1)).await;
        assert_eq!(assert_ready!(call.poll()), Ok("answer"));
    }
}

// HAZARD: T4
#[tokio::test(start_paused = true)]
async fn the_longest_time_of_all_never_fires_and_never_overflows() {
    let slow = async || {
        sleep(secs(365 * 86_400)).await;
        Ok::<_, &str>("answer")
    };
    assert_eq!(Timeout::new(Duration::MAX).call(slow()).await, Ok("answer"));
    assert_eq!(DeadlineLayer::new(Duration::MAX).layer(takes(secs(86_400))).send(()).await, Ok("answer"));
    let policy = Policy::plain("patient")
        .deadline(Duration::MAX)
        .retry(Retry::constant(Duration::MAX).max_delay(Duration::MAX).max_retry_after(Duration::MAX))
        .circuit_breaker(CircuitBreaker::builder().slow_call(Duration::MAX))
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(1).max_wait(Duration::MAX))
        .timeout(Duration::MAX)
        .build()
        .unwrap();
    assert_eq!(policy.call(slow).await, Ok("answer"));
}

/// Is never ready, and counts how often it was asked.
async fn counting(polls: &AtomicUsize) -> Result<(), &'static str> {
    poll_fn(|_| {
        polls.fetch_add(1, SeqCst);
        Poll::Pending
    })
    .await
}

// HAZARD: T4
#[tokio::test(start_paused = true)]
async fn no_time_at_all_gives_one_poll() {
    assert_eq!(Timeout::new(Duration::ZERO).call(ready(Ok::<_, ()>(1))).await, Ok(1));
    // Also between two ticks of the timer, which counts milliseconds.
    for offset in [0, 1, 500, 999].map(Duration::from_micros) {
        advance(offset).await;
        let polls = AtomicUsize::new(0);
        let start = Instant::now();
        let no = rejection(Timeout::new(Duration::ZERO).call(counting(&polls)).await);
        assert_eq!(no.to_string(), "attempt of `timeout` timed out: 0.000 s, 0.000 s allowed", "{offset:?}");
        assert_eq!((polls.into_inner(), start.elapsed()), (1, Duration::ZERO), "{offset:?}");

        let polls = AtomicUsize::new(0);
        let service = service_fn(|(): ()| async { counting(&polls).await.map_err(Error::Inner) });
        let no = rejection(DeadlineLayer::new(Duration::ZERO).layer(service).send(()).await);
        assert_eq!(no.to_string(), "deadline of `deadline` exceeded: no time left of 0.000 s", "{offset:?}");
        assert_eq!(polls.into_inner(), 1, "{offset:?}");
    }
}

// HAZARD: T5
#[tokio::test(start_paused = true)]
async fn a_panic_is_a_panic_and_no_timeout() {
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let policy = Policy::plain("stock").concurrency_limit(&limit).timeout(ms(100)).build().unwrap();
    // Even if the end of the time is seen in the same poll.
    for after in [1, 50, 100, 200].map(ms) {
        let mut call = task::spawn(policy.call(async || -> Result<(), ()> {
            sleep(after).await;
            panic!("the service's own");
        }));
        assert_pending!(call.poll());
        advance(after).await;
        let panic = catch_unwind(AssertUnwindSafe(|| call.poll())).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"the service's own"));
        drop(call);
        assert_eq!(limit.in_flight(), 0);
    }
}

// HAZARD: T6
#[tokio::test(start_paused = true)]
async fn a_longer_timeout_does_not_outlive_the_deadline() {
    let below_a_layer = DeadlineLayer::new(secs(1)).layer(TimeoutLayer::new(secs(10)).layer(takes(secs(60))));
    let start = Instant::now();
    let no = below_a_layer.send(()).await.unwrap_err();
    assert_eq!((no.rejection().unwrap().reason(), start.elapsed()), (Reason::DeadlineExceeded, secs(1)));

    let policy = Policy::plain("stock").deadline(secs(1)).timeout(secs(10)).build().unwrap();
    let no = rejection(policy.call(stalled).await);
    assert_eq!((no.reason(), no.rule(), start.elapsed()), (Reason::DeadlineExceeded, Rule::Deadline, secs(2)));
    assert_eq!(no.to_string(), "deadline of `stock` exceeded: no time left of 1.000 s");

    // A scope enforces nothing by itself, so here it is the timeout that heeds it.
    let no = rejection(Deadline::after(secs(1)).scope(Timeout::new(secs(10)).call(stalled())).await);
    assert_eq!((no.reason(), start.elapsed()), (Reason::DeadlineExceeded, secs(3)));
    assert_eq!(no.to_string(), "deadline of `timeout` exceeded: no time left");
}

// HAZARD: T6
#[tokio::test(start_paused = true)]
async fn a_deadline_that_is_past_already_rejects_without_calling() {
    let counts = Counts::default();
    let ask = async || {
        counts.enter();
        Err::<(), _>("was asked")
    };
    let service = service_fn(|(): ()| async { ask().await.map_err(Error::Inner) });
    let bare = Policy::plain("bare").timeout(secs(1)).build().unwrap();
    let own = Policy::plain("own").deadline(secs(1)).build().unwrap();
    let past = Deadline::after(ms(5));
    advance(ms(5)).await;

    let refused = past
        .scope(async {
            [
                DeadlineLayer::new(secs(1)).layer(service).send(()).await,
                Retry::constant(ms(1)).build().unwrap().layer().layer(service).send(()).await,
                bare.layer().layer(service).send(()).await,
                own.layer().layer(service).send(()).await,
                bare.call(ask).await,
                own.call(ask).await,
            ]
        })
        .await;
    for outcome in refused.into_iter().chain([past.enforce(ask()).await]) {
        assert_eq!(rejection(outcome).reason(), Reason::DeadlineExceeded);
    }
    assert_eq!(counts.calls(), 0);
}

/// Does something on drop.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

// HAZARD: T7
#[tokio::test(start_paused = true)]
async fn what_timed_out_is_gone_before_anybody_hears_of_it() {
    let counts = Counts::default();
    let stalls = async || {
        let _running = counts.enter();
        stalled().await
    };
    // The calls live on after they have answered, so it is not their end that drops what they ran.
    let mut call = task::spawn(Timeout::new(ms(100)).call(stalls()));
    assert_pending!(call.poll());
    assert_eq!(counts.running(), 1);
    advance(ms(100)).await;
    assert_eq!(rejection(assert_ready!(call.poll())).reason(), Reason::Timeout);
    assert_eq!(counts.running(), 0);

    let policy = Policy::plain("stock").deadline(ms(100)).build().unwrap();
    let mut call = task::spawn(policy.call(stalls));
    assert_pending!(call.poll());
    advance(ms(100)).await;
    assert_eq!(rejection(assert_ready!(call.poll())).reason(), Reason::DeadlineExceeded);
    assert_eq!(counts.running(), 0);
}

// HAZARD: T7, L5
#[tokio::test(start_paused = true)]
async fn its_permit_is_given_back_before_the_error_and_after_the_work() {
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let policy = Policy::plain("stock").concurrency_limit(&limit).timeout(ms(100)).build().unwrap();
    let in_flight = Arc::new(AtomicUsize::new(usize::MAX));
    let mut call = task::spawn(policy.call(async || {
        let _last = OnDrop(|| in_flight.store(limit.in_flight(), SeqCst));
        stalled().await
    }));
    assert_pending!(call.poll());
    advance(ms(100)).await;
    assert_eq!(rejection(assert_ready!(call.poll())).reason(), Reason::Timeout);
    assert_eq!(in_flight.load(SeqCst), 1, "while the work was being dropped, its permit was still out");
    assert_eq!(limit.in_flight(), 0);
}
