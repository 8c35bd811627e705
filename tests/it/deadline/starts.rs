//! A deadline starts when somebody waits, or asks.

use buttress::{ConcurrencyLimit, Deadline, DeadlineLayer, Error, Policy, Reason, Retry};
use tokio::time::{Instant, advance, sleep};
use tokio_test::{assert_pending, task};
use tower::{Layer, Service, service_fn};

use super::{left, takes};
use crate::support::{Echo, ms, secs};

#[tokio::test(start_paused = true)]
async fn it_starts_when_its_call_is_first_found_pending() {
    let slow = service_fn(|(): ()| takes::<Error<()>>(secs(60)));
    let call = DeadlineLayer::new(secs(1)).layer(slow).call(());
    let policy = Policy::plain("late").deadline(secs(1)).build().unwrap();
    let plain = policy.call(|| takes::<()>(secs(60)));
    advance(secs(3600)).await;
    let start = Instant::now();
    assert_eq!(call.await.unwrap_err().rejection().unwrap().reason(), Reason::DeadlineExceeded);
    assert_eq!(start.elapsed(), secs(1));
    assert_eq!(plain.await.unwrap_err().rejection().unwrap().reason(), Reason::DeadlineExceeded);
    assert_eq!(start.elapsed(), secs(2));
}

#[tokio::test(start_paused = true)]
async fn or_when_somebody_asks_for_it() {
    // The service asks as soon as it is called; only an hour later is it polled.
    let asks = service_fn(|(): ()| {
        let asked = Deadline::current().unwrap();
        async move { Ok::<_, Error<()>>(asked) }
    });
    let start = Instant::now();
    let call = DeadlineLayer::new(secs(7200)).layer(asks).call(());
    advance(secs(3600)).await;
    assert_eq!(call.await, Ok(Deadline::at(start + secs(7200))));
}

#[tokio::test(start_paused = true)]
async fn once_started_it_stays_where_it_is() {
    let policy = Policy::plain("whole").deadline(secs(10)).retry(Retry::constant(secs(1))).build().unwrap();
    let start = Instant::now();
    let attempt = async || {
        sleep(secs(2)).await;
        assert_eq!(Deadline::current(), Some(Deadline::at(start + secs(10))));
        Err::<(), _>("down")
    };
    // Also across attempts.
    assert_eq!(policy.call(attempt).await, Err(Error::Inner("down")));
}

#[tokio::test(start_paused = true)]
async fn with_a_childs_its_parents_start() {
    let asks = service_fn(|(): ()| {
        let _ = Deadline::current();
        async { Ok::<_, Error<()>>(()) }
    });
    let child = DeadlineLayer::new(secs(10)).layer(asks);
    let parent = service_fn(move |(): ()| {
        // It is the child that asks, here and now.
        let called = child.clone().call(());
        async move {
            called.await?;
            Ok::<_, Error<()>>(Deadline::current())
        }
    });
    let mut grandparent = DeadlineLayer::new(secs(7)).layer(DeadlineLayer::new(secs(8)).layer(parent));
    let start = Instant::now();
    let call = grandparent.call(());
    advance(secs(4)).await;
    assert_eq!(call.await, Ok(Some(Deadline::at(start + secs(7)))));
}

#[tokio::test(start_paused = true)]
async fn a_wait_in_the_child_starts_the_parents_too() {
    let child = Policy::plain("child").deadline(secs(10)).build().unwrap();
    let parent = Policy::plain("parent").deadline(secs(20)).build().unwrap();
    let both = parent.call_as(async || {
        child.call_as(|| takes::<Error<()>>(secs(3))).await?;
        left().await
    });
    assert_eq!(both.await, Ok(Some(secs(17))));
}

#[tokio::test(start_paused = true)]
async fn a_child_made_before_its_parent_started_and_polled_after_is_bounded_by_it() {
    let parent = Policy::plain("parent").deadline(secs(5)).build().unwrap();
    for child in [None, Some(secs(4)), Some(secs(60))] {
        let mut policy = Policy::plain("child").timeout(secs(60));
        if let Some(own) = child {
            policy = policy.deadline(own);
        }
        let service = policy.build().unwrap().layer().layer(service_fn(|(): ()| left()));
        let seen = parent.call_as(async || {
            let made = service.clone().call(());
            sleep(secs(3)).await;
            made.await
        });
        assert_eq!(seen.await, Ok(Some(secs(2))), "{child:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn such_a_child_is_bounded_also_if_it_had_to_queue() {
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let child = Policy::plain("child").deadline(secs(60)).concurrency_limit(&limit).build().unwrap();
    let parent = Policy::plain("parent").deadline(secs(5)).build().unwrap();
    let service = child.layer().layer(service_fn(|(): ()| left()));
    let seen = parent.call_as(async || {
        let permit = limit.try_acquire().unwrap();
        let mut queued = task::spawn(service.clone().call(()));
        sleep(secs(3)).await;
        assert_pending!(queued.poll());
        drop(permit);
        queued.await
    });
    assert_eq!(seen.await, Ok(Some(secs(2))));
}

// HAZARD: T1
#[test]
fn an_answer_at_once_starts_nothing() {
    // Outside of a runtime a timer would panic.
    let mut service = DeadlineLayer::new(ms(1)).layer(DeadlineLayer::new(ms(2)).layer(Echo));
    assert_eq!(tokio_test::assert_ready!(task::spawn(service.call(7)).poll()), Ok(7));
}
