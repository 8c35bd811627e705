//! Whatever a call waits for, it waits no longer than until the deadline, and not a moment less.

use buttress::{ConcurrencyLimit, Deadline, DeadlineLayer, Error, Jitter, Policy, Reason, Retry, Rule};
use proptest::{collection::vec, prelude::*, test_runner::Config};
use tokio::time::{Duration, Instant, advance, sleep, timeout};
use tower::{Layer, service_fn, util::BoxCloneService};

use super::{paused, takes};
use crate::support::{Counts, ms, secs};

fn full(max_wait: Option<Duration>) -> (ConcurrencyLimit, buttress::concurrency_limit::Permit) {
    let limit = ConcurrencyLimit::builder().max_in_flight(1);
    let limit = max_wait.into_iter().fold(limit, |limit, wait| limit.max_wait(wait)).build().unwrap();
    let permit = limit.try_acquire().unwrap();
    (limit, permit)
}

#[tokio::test(start_paused = true)]
async fn a_wait_in_the_queue_ends_with_it() {
    let (limit, _permit) = full(Some(secs(60)));
    let counts = Counts::default();
    let ask = async || {
        counts.enter();
        Err::<(), _>("was asked")
    };
    let own = Policy::plain("own").deadline(secs(1)).concurrency_limit(&limit).build().unwrap();
    let bare = Policy::plain("bare").concurrency_limit(&limit).build().unwrap();
    let (start, scope) = (Instant::now(), || Deadline::after(secs(1)));
    for (wait, outcome) in
        [own.call(ask).await, scope().scope(bare.call(ask)).await, scope().scope(limit.call(ask())).await]
            .into_iter()
            .enumerate()
    {
        let no = *outcome.unwrap_err().rejection().unwrap();
        assert_eq!((no.reason(), no.rule()), (Reason::DeadlineExceeded, Rule::Deadline), "wait {wait}");
    }
    assert_eq!((start.elapsed(), limit.waiting(), counts.calls()), (secs(3), 0, 0));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_permit_by_hand_ends_with_it() {
    let start = Instant::now();
    for max_wait in [None, Some(secs(60))] {
        let (limit, _permit) = full(max_wait);
        let waits = timeout(secs(3600), Deadline::after(secs(1)).scope(limit.acquire()));
        let no = waits.await.expect("not for ever").unwrap_err();
        assert_eq!((no.reason(), limit.waiting()), (Reason::DeadlineExceeded, 0));
    }
    let (limit, _permit) = full(Some(ms(500)));
    let no = Deadline::after(secs(1)).scope(limit.acquire()).await.unwrap_err();
    assert_eq!((no.rule(), start.elapsed()), (Rule::MaxWait, ms(2_500)));

    // One that has yet to start begins with the wait.
    let (limit, _permit) = full(None);
    let policy = Policy::plain("late").deadline(secs(1)).build().unwrap();
    let start = Instant::now();
    let no = policy.call(async || limit.acquire().await.map(drop)).await.unwrap_err();
    assert_eq!(start.elapsed(), secs(1));
    assert_eq!((*no.inner().or(no.rejection()).unwrap()).reason(), Reason::DeadlineExceeded);
    assert_eq!(limit.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_permit_in_time_is_worth_having_and_the_rest_of_the_time_is_left() {
    let (limit, permit) = full(None);
    let policy = Policy::plain("own").deadline(secs(2)).concurrency_limit(&limit).build().unwrap();
    let give_back = async {
        sleep(ms(1_500)).await;
        drop(permit);
    };
    let start = Instant::now();
    let (outcome, ()) = tokio::join!(policy.call(|| takes::<()>(secs(60))), give_back);
    assert_eq!(outcome.unwrap_err().rejection().unwrap().reason(), Reason::DeadlineExceeded);
    assert_eq!((start.elapsed(), limit.in_flight()), (secs(2), 0));
}

// HAZARD: R7
#[tokio::test(start_paused = true)]
async fn a_call_that_was_made_outside_does_not_sleep_past_the_scope_that_it_is_polled_in() {
    let retry = Retry::constant(secs(5)).jitter(Jitter::None).build().unwrap();
    let start = Instant::now();
    let mut service = retry.layer().layer(service_fn(async |(): ()| Err::<(), _>(Error::Inner("down"))));
    let call = tower::Service::call(&mut service, ());
    assert_eq!(Deadline::after(secs(1)).scope(call).await, Err(Error::Inner("down")));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

// HAZARD: R7
#[tokio::test(start_paused = true)]
async fn a_scope_in_a_layer_that_has_yet_to_start_does_not_let_a_retry_sleep_past_it() {
    let retry = Retry::constant(secs(2)).jitter(Jitter::None).build().unwrap();
    let inside = service_fn(move |(): ()| {
        let retry = retry.clone();
        async move { Deadline::after(secs(5)).scope(retry.run(async |_| Err::<(), _>("down"))).await }
    });
    let start = Instant::now();
    let last = DeadlineLayer::new(secs(1)).layer(inside).send(()).await;
    assert_eq!((last, start.elapsed()), (Err(Error::Inner("down")), Duration::ZERO));
}

/// One of the ways to bound what is inside, in milliseconds.
#[derive(Clone, Copy, Debug)]
enum Bound {
    Layer(u64),
    Policy(u64),
    Scope(u64),
    Nothing,
}

fn bound() -> impl Strategy<Value = Bound> {
    prop_oneof![
        3 => (1..2_000_u64).prop_map(Bound::Layer),
        2 => (1..2_000_u64).prop_map(Bound::Policy),
        1 => (1..2_000_u64).prop_map(Bound::Scope),
        1 => Just(Bound::Nothing),
    ]
}

type Nested = BoxCloneService<(), Duration, Error<()>>;

impl Bound {
    fn time(self) -> Option<u64> {
        match self {
            Bound::Layer(time) | Bound::Policy(time) | Bound::Scope(time) => Some(time),
            Bound::Nothing => None,
        }
    }

    fn around(self, inner: Nested) -> Nested {
        let policy = Policy::plain("nested").retry(Retry::constant(ms(1)).max_attempts(1));
        match self {
            Bound::Layer(time) => Nested::new(DeadlineLayer::new(ms(time)).layer(inner)),
            Bound::Policy(time) => Nested::new(policy.deadline(ms(time)).build().unwrap().layer().layer(inner)),
            Bound::Nothing => Nested::new(policy.build().unwrap().layer().layer(inner)),
            Bound::Scope(time) => Nested::new(service_fn(move |()| {
                let inner = inner.clone();
                Deadline::after(ms(time)).scope(tower::util::ServiceExt::oneshot(inner, ()))
            })),
        }
    }
}

proptest! {
    #![proptest_config(Config { cases: 512, failure_persistence: None, ..Config::default() })]

    /// Everybody inside sees the nearest of all; and whoever enforces cuts off at the nearest of its own and those
    /// around it, as a scope only tells.
    #[test]
    fn however_they_are_nested_the_nearest_counts_to_the_millisecond(
        bounds in vec(bound(), 1..7), offset in 0..1_000_u64, works in 0..2_000_u64,
    ) {
        let nearest = bounds.iter().filter_map(|bound| bound.time()).min().map_or(Duration::MAX, ms);
        let mut around = u64::MAX;
        let enforced = bounds.iter().rev().filter_map(|bound| {
            around = around.min(bound.time().unwrap_or(u64::MAX));
            (!matches!(bound, Bound::Scope(_))).then_some(around)
        });
        let end = ms(enforced.min().unwrap_or(u64::MAX));
        paused().block_on(async {
            // Wherever the clock stands within a tick of the timer, which counts milliseconds and rounds up.
            advance(Duration::from_micros(offset)).await;
            let inner = service_fn(move |()| async move {
                let left = Deadline::current().map_or(Duration::MAX, Deadline::remaining);
                sleep(ms(works)).await;
                Ok(left)
            });
            let service = bounds.iter().fold(Nested::new(inner), |inner, bound| bound.around(inner));
            let start = Instant::now();
            let outcome = tower::util::ServiceExt::oneshot(service, ()).await;
            let took = start.elapsed();
            if end < ms(works) {
                prop_assert_eq!(outcome.unwrap_err().rejection().unwrap().reason(), Reason::DeadlineExceeded);
                prop_assert!(took >= end && took < end + ms(2), "{took:?}, not {end:?}");
            } else {
                prop_assert_eq!(outcome, Ok(nearest));
                prop_assert!(took >= ms(works), "{took:?}");
            }
            Ok(())
        })?;
    }
}
