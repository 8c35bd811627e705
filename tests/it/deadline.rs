//! One point in time that a whole call, and every call nested in it, must not outlive.
#![allow(clippy::disallowed_methods)] // the stories tell at what time a call ended

mod ends;
mod starts;

use std::{
    future::ready,
    panic::{AssertUnwindSafe, catch_unwind},
};

use buttress::{Deadline, DeadlineLayer, Error, Policy, Reason, Rule};
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
    time::{Duration, Instant, advance, sleep},
};
use tokio_test::task;
use tower::{Layer, Service, service_fn};

use crate::support::{ms, secs};

/// What is left for whoever asks, in a form that layers and policies can pass on.
async fn left() -> Result<Option<Duration>, Error<()>> {
    Ok(Deadline::current().map(Deadline::remaining))
}

/// Takes so long.
async fn takes<E>(time: Duration) -> Result<(), E> {
    sleep(time).await;
    Ok(())
}

// ---------------------------------------------------------------- who sees which

#[tokio::test(start_paused = true)]
async fn whoever_runs_inside_sees_it() {
    assert_eq!(left().await, Ok(None));
    let layered = DeadlineLayer::new(secs(1)).layer(service_fn(|(): ()| left()));
    assert_eq!(layered.send(()).await, Ok(Some(secs(1))));
    let policy = Policy::plain("whole").deadline(secs(2)).timeout(ms(1)).build().unwrap();
    assert_eq!(policy.layer().layer(service_fn(|(): ()| left())).send(()).await, Ok(Some(secs(2))));
    assert_eq!(policy.wrap(service_fn(|(): ()| left())).send(()).await, Ok(Some(secs(2))));
    assert_eq!(policy.call(left).await, Ok(Some(secs(2))));
    assert_eq!(Deadline::after(secs(3)).scope(left()).await, Ok(Some(secs(3))));
    assert_eq!(Deadline::after(secs(4)).enforce(left()).await, Ok(Some(secs(4))));
    assert_eq!(left().await, Ok(None), "and nobody outside");
}

#[tokio::test(start_paused = true)]
async fn it_is_seen_when_the_service_is_called_and_at_each_of_its_polls() {
    let service = service_fn(|(): ()| {
        let called = Deadline::current();
        async move {
            for _ in 0..3 {
                assert_eq!(Deadline::current(), called);
                yield_now().await;
            }
            Ok::<_, Error<()>>(called)
        }
    });
    assert!(DeadlineLayer::new(secs(1)).layer(service).send(()).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn of_two_the_earlier_one_counts_whichever_is_inside() {
    for (outer, inner) in [(1, 2), (2, 1)] {
        let layer = DeadlineLayer::new(secs(inner));
        let policy = Policy::plain("inner").deadline(secs(inner)).build().unwrap();
        let all = async || {
            [
                layer.layer(service_fn(|(): ()| left())).send(()).await,
                policy.call_as(left).await,
                Deadline::after(secs(inner)).scope(left()).await,
                Deadline::after(secs(inner)).enforce(left()).await.map_err(|_| Error::Inner(())),
            ]
        };
        let nearest = [Ok(Some(secs(1))); 4];
        assert_eq!(Deadline::after(secs(outer)).scope(all()).await, nearest, "{inner} in a scope of {outer}");
        let outer_layer =
            DeadlineLayer::new(secs(outer)).layer(service_fn(|(): ()| async { Ok::<_, Error<()>>(all().await) }));
        assert_eq!(outer_layer.send(()).await, Ok(nearest), "{inner} in a layer of {outer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_scope_in_a_layer_that_has_yet_to_start_is_not_longer_than_it() {
    // Nobody has asked for the layer's deadline yet when the scope is entered.
    let inside = service_fn(|(): ()| Deadline::after(secs(5)).scope(left()));
    assert_eq!(DeadlineLayer::new(secs(1)).layer(inside).send(()).await, Ok(Some(secs(1))));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_made_outside_sees_the_scope_that_it_is_polled_in() {
    // `deadline.scope(self.inner.call(req))` is how a middleware sets a deadline that came with a request.
    let service = service_fn(|(): ()| async {
        let first = left().await;
        yield_now().await;
        assert_eq!(left().await, first, "at the first poll and later");
        first
    });
    let bare = Policy::plain("bare").timeout(secs(60)).build().unwrap().layer();
    let own = Policy::plain("own").deadline(secs(60)).build().unwrap().layer();
    for layer in [bare, own] {
        let call = layer.layer(service).call(());
        assert_eq!(Deadline::after(secs(1)).scope(call).await, Ok(Some(secs(1))), "{layer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_side_by_side_in_one_task_do_not_see_each_others() {
    let [short, long] = [1, 2].map(|time| Policy::plain("side").deadline(secs(time)).build().unwrap());
    let watch = async |time| {
        for step in 0..4 {
            assert_eq!(left().await, Ok(Some(secs(time) - ms(100) * step)));
            sleep(ms(100)).await;
        }
        Ok::<_, Error<()>>(time)
    };
    let outside = async {
        for _ in 0..4 {
            assert_eq!(left().await, Ok(None));
            sleep(ms(100)).await;
        }
    };
    let (one, two, ()) = tokio::join!(short.call_as(|| watch(1)), long.call_as(|| watch(2)), outside);
    assert_eq!((one, two), (Ok(1), Ok(2)));

    let first = tokio::select! {
        one = short.call_as(|| watch(1)) => one,
        two = long.call_as(|| watch(2)) => two,
    };
    assert!(first.is_ok());
    assert_eq!(left().await, Ok(None), "nor does the one that was dropped half-way leave anything behind");
}

#[tokio::test(start_paused = true)]
async fn a_panic_inside_leaves_the_outer_one_in_place() {
    let outer = Deadline::after(secs(9));
    let inner = Policy::plain("inner").deadline(secs(1)).build().unwrap();
    let panics = async || -> Result<(), ()> { panic!("within") };
    outer
        .scope(async {
            let mut scoped = task::spawn(Deadline::after(secs(1)).scope(panics()));
            let mut called = task::spawn(inner.call(panics));
            catch_unwind(AssertUnwindSafe(|| scoped.poll())).unwrap_err();
            assert_eq!(Deadline::current(), Some(outer));
            catch_unwind(AssertUnwindSafe(|| called.poll())).unwrap_err();
            assert_eq!(Deadline::current(), Some(outer));
        })
        .await;
    assert_eq!(Deadline::current(), None);
}

#[tokio::test(start_paused = true)]
async fn a_task_of_its_own_leaves_it_behind_unless_it_is_carried() {
    let deadline = Deadline::after(secs(1));
    let spawned = async || (tokio::spawn(left()).await.unwrap(), tokio::spawn(Deadline::carry(left())).await.unwrap());
    assert_eq!(deadline.scope(spawned()).await, (Ok(None), Ok(Some(secs(1)))));
    assert_eq!(tokio::spawn(Deadline::carry(left())).await.unwrap(), Ok(None), "nothing to carry");

    // A scope is bounded by the one that it was made in, and takes that along too.
    let longer = async || tokio::spawn(Deadline::after(secs(5)).scope(left())).await.unwrap();
    assert_eq!(deadline.scope(longer()).await, Ok(Some(secs(1))));

    // What is carried is a point in time: it does not start anew over there.
    let policy = Policy::plain("parent").deadline(secs(2)).build().unwrap();
    let child = policy.call_as(async || {
        let child = Deadline::carry(left());
        sleep(ms(500)).await;
        tokio::spawn(child).await.unwrap()
    });
    assert_eq!(child.await, Ok(Some(ms(1_500))));
}

// ---------------------------------------------------------------- enforce, and the value itself

#[tokio::test(start_paused = true)]
async fn a_scope_tells_and_does_not_enforce() {
    let start = Instant::now();
    Deadline::after(secs(1)).scope(sleep(secs(2))).await;
    assert_eq!(start.elapsed(), secs(2));
}

#[tokio::test(start_paused = true)]
async fn enforce_passes_answers_and_errors_on_and_cuts_off_the_rest() {
    let deadline = Deadline::after(secs(1));
    assert_eq!(deadline.enforce(async { Ok::<_, ()>(42) }).await, Ok(42));
    assert_eq!(deadline.enforce(async { Err::<(), _>("down") }).await, Err(Error::Inner("down")));
    let start = Instant::now();
    let no = deadline.enforce(takes::<()>(secs(2))).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(1));
    let no = no.rejection().unwrap();
    assert_eq!((no.name(), no.reason(), no.rule()), ("deadline", Reason::DeadlineExceeded, Rule::Deadline));
    assert_eq!(no.to_string(), "deadline of `deadline` exceeded: no time left", "nobody said of how much");
}

#[tokio::test(start_paused = true)]
async fn what_remains_runs_out() {
    let deadline = Deadline::after(secs(1));
    assert_eq!((deadline.remaining(), deadline.is_past()), (secs(1), false));
    advance(ms(999)).await;
    assert_eq!((deadline.remaining(), deadline.is_past()), (ms(1), false));
    assert_eq!(format!("{deadline:?}"), "Deadline(1ms left)");
    advance(ms(1)).await;
    assert_eq!((deadline.remaining(), deadline.is_past()), (Duration::ZERO, true));
    advance(secs(1)).await;
    assert_eq!((deadline.remaining(), deadline.is_past()), (Duration::ZERO, true));
    assert_eq!(Deadline::at(deadline.instant()), deadline);
    assert!(deadline < Deadline::after(Duration::ZERO));
}

// HAZARD: T4
#[tokio::test(start_paused = true)]
async fn the_longest_is_far_away_and_does_not_overflow() {
    let far = Deadline::after(Duration::MAX);
    assert!(far.remaining() > secs(20 * 365 * 86_400));
    assert_eq!(far.scope(async { Deadline::current() }).await, Some(far));
    let nested = DeadlineLayer::new(Duration::MAX).layer(service_fn(|(): ()| left()));
    assert_eq!(far.scope(nested.send(())).await, Ok(Some(far.remaining())));
    assert_eq!(far.enforce(takes::<()>(secs(86_400))).await, Ok(()));
}

// ---------------------------------------------------------------- more clocks than one

fn paused() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// The whole story of a deadline, in whatever runtime it is told.
async fn a_deadline_is_right() {
    let start = Instant::now();
    let deadline = Deadline::after(secs(2));
    assert_eq!(deadline.scope(left()).await, Ok(Some(secs(2))));
    assert_eq!(deadline.scope(async { Deadline::current() }).await, Some(deadline));
    let slow = service_fn(|(): ()| takes::<Error<()>>(secs(60)));
    let late = DeadlineLayer::new(secs(3)).layer(slow).send(());
    let no = deadline.scope(late).await.unwrap_err();
    assert_eq!((no.rejection().unwrap().reason(), start.elapsed()), (Reason::DeadlineExceeded, secs(2)));
    let no = DeadlineLayer::new(secs(3)).layer(slow).send(()).await.unwrap_err();
    assert_eq!((no.rejection().unwrap().reason(), start.elapsed()), (Reason::DeadlineExceeded, secs(5)));
}

// HAZARD: C13
#[test]
fn two_runtimes_whose_clocks_are_a_year_apart_each_have_it_right() {
    let (ahead, behind) = (paused(), paused());
    ahead.block_on(async {
        advance(secs(365 * 86_400)).await;
        a_deadline_is_right().await;
    });
    behind.block_on(a_deadline_is_right());
    ahead.block_on(a_deadline_is_right());
}

// HAZARD: C13
#[tokio::test(start_paused = true)]
async fn a_point_in_time_before_the_first_that_the_process_saw_is_one_too() {
    // Whatever clock was read first, this one stands before it.
    let Some(long_ago) = Instant::now().checked_sub(secs(365 * 86_400)) else { return };
    let [past, earlier] = [Deadline::at(long_ago), Deadline::at(long_ago - ms(1))];
    assert_eq!(past.scope(async { Deadline::current() }).await, Some(past));
    assert_eq!(past.scope(earlier.scope(async { Deadline::current() })).await, Some(earlier));
    assert_eq!(earlier.scope(async { past.scope(async { Deadline::current() }).await }).await, Some(earlier));
    let no = past.enforce(ready(Ok::<_, ()>(()))).await.unwrap_err();
    assert_eq!(no.rejection().unwrap().reason(), Reason::DeadlineExceeded);
}
