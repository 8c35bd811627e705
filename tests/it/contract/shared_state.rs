//! The state is the handle's: axum makes a service for each connection or for each request.

use std::{sync::Barrier, thread};

use buttress::{Backoff, Jitter, Policy, Reason, Retry, circuit_breaker::State, retry::Budget};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt};

use super::{Ask, Strict, Subject, Svc, rejection};
use crate::support::ms;

pub async fn refuses_through_every_service(subject: Subject) {
    let strict = Strict::default();
    if let Some(limit) = &subject.limit {
        limit.resize(1);
        let mut first = task::spawn(subject.over(strict.clone()).oneshot(Ask::Stall));
        let mut second = task::spawn(subject.over(strict.clone()).oneshot(Ask::Echo));
        assert_pending!(first.poll());
        assert_pending!(second.poll());
        assert_eq!((limit.in_flight(), limit.waiting(), strict.running()), (1, 1, 1));
        drop(first);
        assert_ready_ok!(second.poll());
    }
    if let Some(breaker) = &subject.breaker {
        for _ in 0..100 {
            subject.over(strict.clone()).oneshot(Ask::Fail).await.unwrap_err();
        }
        assert_eq!(breaker.state(), State::Open);
        let refused = subject.over(strict.clone()).oneshot(Ask::Echo).await.unwrap_err();
        assert_eq!(rejection(&refused).reason(), Reason::CircuitOpen);
    }
    assert!(subject.over(strict.clone()).oneshot(Ask::Echo).await.is_ok() || subject.breaker.is_some());
}

/// Each of a hundred calls, through a service of its own, would be made three times if the purse were not shared.
async fn spends_one_purse(
    layer: impl Layer<Svc, Service: tower::Service<Ask, Response = u64, Error = tower::BoxError>>,
) {
    let strict = Strict::default();
    for _ in 0..100 {
        let service = layer.layer(Svc::new(strict.clone()));
        service.oneshot(Ask::Fail).await.expect_err("it fails");
    }
    assert_eq!(strict.calls(), 110, "ten seconds' reserve of one retry a second");
}

fn with_a_small_purse() -> buttress::RetryBuilder {
    let budget = Budget::builder().ratio(0.0).min_per_second(1).build().unwrap();
    Retry::with(Backoff::constant(ms(1)).jitter(Jitter::None)).max_attempts(3).budget(budget)
}

// HAZARD: C3
#[tokio::test(start_paused = true)]
async fn a_budget_is_one_however_many_services_there_are() {
    spends_one_purse(with_a_small_purse().build().unwrap().layer()).await;
    spends_one_purse(Policy::cloned("p").retry(with_a_small_purse()).build().unwrap().layer()).await;
}

// HAZARD: C3
#[tokio::test(start_paused = true)]
async fn layers_made_twice_of_one_handle_share_its_state() {
    let policy = Policy::cloned("p").circuit_breaker(super::breaker()).build().unwrap();
    policy.clone().circuit_breaker().unwrap().force_open();
    for layer in [policy.layer(), policy.layer(), policy.clone().layer()] {
        let refused = layer.clone().layer(Svc::new(Strict::default())).oneshot(Ask::Echo).await.unwrap_err();
        assert_eq!(rejection(&refused).reason(), Reason::CircuitOpen);
    }
}

// HAZARD: C3
#[test]
fn services_that_move_to_other_threads_share_their_state() {
    let limit = buttress::ConcurrencyLimit::builder().max_in_flight(8).max_queue(0).build().unwrap();
    let service = limit.layer().layer(Svc::new(Strict::default()));
    let (mut clones, all) = (vec![service; 8], Barrier::new(8));
    // All of them alive at once, so that they do not take each other's place.
    thread::scope(|scope| {
        for service in &mut clones {
            let (limit, all) = (&limit, &all);
            scope.spawn(move || {
                assert_ready_ok!(task::spawn(()).enter(|cx, _| service.poll_ready(cx)));
                let mut call = task::spawn(service.call(Ask::Stall));
                assert_pending!(call.poll());
                all.wait();
                assert_eq!(limit.in_flight(), 8);
                assert!(limit.try_acquire().is_err());
                all.wait();
                drop(call);
            });
        }
    });
    assert_eq!(limit.in_flight(), 0);
}
