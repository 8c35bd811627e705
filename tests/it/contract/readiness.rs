//! Being ready, waiting, and refusing.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll, ready},
};

use buttress::{CircuitBreaker, Policy, Reason, circuit_breaker::WhenOpen};
use tokio::{
    task::consume_budget,
    time::{advance, sleep},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{BoxError, Layer, Service, ServiceExt, buffer::Buffer, limit::ConcurrencyLimit as TowersLimit};
use tower_test::{assert_request_eq, mock};

use super::{Ask, Strict, Subject, Svc, rejection, retry};
use crate::support::{Boxed, ms, secs, settle};

pub async fn calls_the_one_that_is_ready(subject: Subject) {
    let strict = Strict::default();
    let mut service = subject.over(strict.clone());
    for _ in 0..10 {
        service.ready().await.unwrap().ready().await.unwrap().call(Ask::Echo).await.unwrap();
        // A clone of a service that is ready is not ready.
        service.ready().await.unwrap().clone().oneshot(Ask::Later).await.unwrap();
    }
    assert_eq!(strict.calls(), 20);
}

pub async fn readies_each_attempt(subject: Subject) {
    let strict = Strict::getting_ready_in(ms(10));
    strict.fail_next(2);
    // Whether it fails or is repeated is the layer's affair: the strict service panics if it is called unready.
    let _ = subject.over(strict.clone()).oneshot(Ask::Later).await;
    assert_eq!((strict.running(), strict.reserved()), (0, 0));
}

pub async fn readies_after_the_queue(subject: Subject) {
    let strict = Strict::getting_ready_in(ms(10));
    subject.crowd();
    let call = tokio::spawn(subject.over(strict.clone()).oneshot(Ask::Later));
    sleep(ms(100)).await;
    subject.resize(1);
    assert_eq!(call.await.unwrap().unwrap(), 1);
    assert!(subject.is_idle());
}

pub async fn keeps_the_mocks_rules(subject: Subject) {
    let (inner, mut handle) = mock::pair();
    let mut service = mock::Spawn::new(subject.over(inner));
    handle.allow(0);
    assert_pending!(service.poll_ready());
    handle.allow(1);
    assert!(service.is_woken());
    assert_ready_ok!(service.poll_ready());
    let mut call = task::spawn(service.call(Ask::Echo));
    assert_pending!(call.poll());
    assert_request_eq!(handle, Ask::Echo).send_response(7);
    assert!(call.is_woken());
    assert_eq!(assert_ready_ok!(call.poll()), 7);
    assert_pending!(service.poll_ready(), "the one readiness was used");
}

pub async fn shares_a_limit_below(subject: Subject) {
    let strict = Strict::default();
    strict.fail_next(4);
    let service = subject.over(TowersLimit::new(strict.clone(), 1));
    let calls: Vec<_> = (0..8).map(|_| tokio::spawn(service.clone().oneshot(Ask::Later))).collect();
    for call in calls {
        let _ = call.await.unwrap();
    }
    assert_eq!(strict.most(), 1);
    assert!(strict.calls() >= 8);
}

pub async fn lets_go_of_readiness_when_refused(subject: Subject) {
    let strict = Strict::default();
    let limited = TowersLimit::new(strict.clone(), 1);
    let mut service = subject.over(limited.clone());
    for refuse in [Subject::refuse, Subject::crowd] {
        service.ready().await.unwrap();
        assert_eq!(strict.reserved(), 1);
        refuse(&subject);
        let mut call = task::spawn(service.call(Ask::Echo));
        assert_eq!(strict.reserved(), 0, "given back in `call` already, before the future is polled");
        let _ = call.poll();
        // The service and the future are both still there, and neither stands in anybody's way.
        assert_ready_ok!(task::spawn(limited.clone().oneshot(Ask::Echo)).poll());
        subject.relent();
    }
}

pub async fn reserves_nothing(subject: Subject) {
    let strict = Strict::default();
    subject.resize(1);
    let mut idle: Vec<_> = (0..5).map(|_| subject.over(strict.clone())).collect();
    for service in &mut idle {
        service.ready().await.unwrap();
    }
    assert!(subject.is_idle());
    subject.over(strict.clone()).oneshot(Ask::Later).await.unwrap();
    subject.half_open().await;
    for service in &mut idle {
        service.ready().await.unwrap();
    }
    assert!(subject.is_idle(), "the one probe is not spent on being ready");
    drop(idle);
    assert!(subject.is_idle());
}

pub async fn holds_nothing_through_a_backoff(subject: Subject) {
    let strict = Strict::default();
    let limited = TowersLimit::new(strict.clone(), 1);
    strict.fail_next(1);
    subject.resize(1);
    let mut call = task::spawn(subject.over(limited.clone()).oneshot(Ask::Echo));
    // Either it failed, or it is waiting to try again.
    let _ = call.poll();
    assert_eq!((strict.calls(), strict.running(), strict.reserved()), (1, 0, 0));
    assert!(subject.is_idle());
    assert_ready_ok!(task::spawn(limited.oneshot(Ask::Echo)).poll());
}

// HAZARD: C2, C6
#[tokio::test(start_paused = true)]
async fn an_attempt_cut_off_while_it_waits_for_readiness_leaves_the_line_below() {
    let strict = Strict::default();
    let limited = TowersLimit::new(strict.clone(), 1);
    let policy = Policy::cloned("cut off").retry(retry()).timeout(ms(100)).build().unwrap();

    strict.fail_next(1);
    let mut call = task::spawn(policy.layer().layer(Svc::new(limited.clone())).oneshot(Ask::Echo));
    assert_pending!(call.poll());
    let mut other = limited.clone();
    other.ready().await.unwrap();
    // The second attempt finds the only place taken, and is cut off while it waits for it.
    advance(ms(50)).await;
    assert_pending!(call.poll());
    advance(ms(100)).await;
    assert_pending!(call.poll(), "in the second backoff");
    drop(other);
    assert_ready_ok!(
        task::spawn(limited.oneshot(Ask::Echo)).poll(),
        "a call that waits to try again keeps no place in a queue below"
    );
}

pub async fn spares_a_buffer_above(subject: Subject) {
    // Something below refuses too, so that there is a rejection whatever the layer: it must not end up in `poll_ready`.
    let patience = buttress::Timeout::new(secs(20)).layer();
    let mut buffer = Buffer::new(subject.over(patience.layer(Strict::default())), 8);
    subject.refuse();
    for _ in 0..3 {
        let refused = buffer.ready().await.expect("alive").call(Ask::Stall).await.unwrap_err();
        rejection(&refused);
    }
    subject.relent();
    assert_eq!(buffer.ready().await.expect("alive").call(Ask::Echo).await.unwrap(), 1);
}

pub async fn serves_a_thousand_in_one_poll(subject: Subject) {
    let mut service = subject.over(Strict::default());
    subject.resize(1);
    poll_fn(|cx| {
        for n in 0..1_000 {
            assert!(service.poll_ready(cx).is_ready(), "call {n} is ready");
            let mut call = pin!(service.call(Ask::Echo));
            assert!(matches!(call.as_mut().poll(cx), Poll::Ready(Ok(1))), "call {n} is served");
        }
        Poll::Ready(())
    })
    .await;
}

/// Spends of the task's cooperative budget to get ready, as whoever waits for a channel or a semaphore does.
#[derive(Clone)]
struct Spends(Strict);

impl Service<Ask> for Spends {
    type Response = u64;
    type Error = BoxError;
    type Future = Boxed<Result<u64, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        ready!(pin!(consume_budget()).poll(cx));
        self.0.poll_ready(cx)
    }

    fn call(&mut self, ask: Ask) -> Self::Future {
        self.0.call(ask)
    }
}

pub async fn waits_for_the_budget(subject: Subject) {
    let service = subject.over(Spends(Strict::default()));
    let mut calls: Vec<Option<Boxed<Result<u64, BoxError>>>> =
        (0..1_000).map(|_| Some::<Boxed<_>>(Box::pin(service.clone().oneshot(Ask::Thrifty)))).collect();
    let mut polls = 0;
    let poll_all = |cx: &mut Context<'_>| {
        polls += 1;
        for slot in &mut calls {
            let Some(call) = slot else { continue };
            if let Poll::Ready(answer) = call.as_mut().poll(cx) {
                assert_eq!(answer.expect("never refused"), 1);
                *slot = None;
            }
        }
        if calls.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    };
    poll_fn(poll_all).await;
    assert!(polls > 1, "the budget did run out");
}

pub async fn wakes_all_who_wait(subject: Subject) {
    let strict = Strict::default();
    let mut limited = TowersLimit::new(strict.clone(), 1);
    limited.ready().await.unwrap();
    let service = subject.over(limited.clone());
    let mut callers: Vec<_> = (0..4).map(|_| task::spawn(service.clone().oneshot(Ask::Echo))).collect();
    for caller in &mut callers {
        assert_pending!(caller.poll());
    }
    // Each that is served lets the next one in.
    drop(limited);
    for (n, mut caller) in callers.into_iter().enumerate() {
        assert!(caller.is_woken(), "caller {n}");
        assert_ready_ok!(caller.poll());
    }
}

// HAZARD: C6, C7
#[tokio::test(start_paused = true)]
async fn a_permit_goes_to_the_next_in_line_whatever_became_of_those_before() {
    let subject = super::policy();
    let strict = Strict::default();
    subject.resize(1);
    let holder = subject.limit.as_ref().unwrap().try_acquire().unwrap();
    let service = subject.over(strict.clone());
    let mut callers: Vec<_> = (0..4).map(|_| task::spawn(service.clone().oneshot(Ask::Echo))).collect();
    for caller in &mut callers {
        assert_pending!(caller.poll());
    }
    // The first gives up, the second is granted the permit and gives up before it hears of it.
    drop(callers.remove(0));
    drop(holder);
    assert!(callers[0].is_woken());
    drop(callers.remove(0));
    for (n, mut caller) in callers.into_iter().enumerate() {
        assert!(caller.is_woken(), "caller {n}");
        assert_ready_ok!(caller.poll());
    }
    assert!(subject.is_idle());
}

// HAZARD: C4, C7
#[tokio::test(start_paused = true)]
async fn services_that_wait_for_an_open_circuit_are_all_woken_when_it_closes() {
    let breaker = CircuitBreaker::builder().build().unwrap();
    let layer = breaker.layer().when_open(WhenOpen::Wait);
    let mut services: Vec<_> = (0..4).map(|_| task::spawn(layer.layer(Svc::new(Strict::default())))).collect();
    breaker.force_open();
    for service in &mut services {
        assert_pending!(service.enter(|cx, mut service| service.poll_ready(cx)));
        assert!(!service.is_woken());
    }
    advance(secs(3_600)).await;
    assert!(services.iter().all(|service| !service.is_woken()), "nothing to do as long as it is forced open");
    breaker.reset();
    for (n, service) in services.iter_mut().enumerate() {
        assert!(service.is_woken(), "service {n}");
        assert_ready_ok!(service.enter(|cx, mut service| service.poll_ready(cx)));
    }
}

pub async fn sleeps_while_it_waits(subject: Subject) {
    let strict = Strict::default();
    let mut running = task::spawn(subject.over(strict.clone()).oneshot(Ask::Stall));
    assert_pending!(running.poll());
    advance(secs(9)).await;
    assert!(!running.is_woken(), "a pending call is left alone");
    assert_eq!(strict.polls(), 1, "and is polled once where it is found pending");
    drop(running);

    // In the queue, if there is one; else it is served.
    subject.crowd();
    let mut queued = task::spawn(subject.over(strict.clone()).oneshot(Ask::Echo));
    if queued.poll().is_pending() {
        advance(ms(999)).await;
        assert!(!queued.is_woken(), "a queued call is left alone");
        subject.relent();
        assert!(queued.is_woken());
        assert_ready_ok!(queued.poll());
    }
    subject.relent();

    // In a backoff, if it is repeated; else it has failed.
    strict.fail_next(1);
    let mut again = task::spawn(subject.over(strict.clone()).oneshot(Ask::Echo));
    if again.poll().is_pending() {
        advance(ms(49)).await;
        assert!(!again.is_woken(), "a call in its backoff is left alone");
        advance(ms(1)).await;
        assert!(again.is_woken());
        assert_ready_ok!(again.poll());
    }
}

pub async fn follows_a_paused_clock(subject: Subject) {
    let patience = buttress::Timeout::new(secs(20)).layer();
    let service = subject.over(patience.layer(Strict::default()));
    // With any other clock this would wait for half a minute, or for ever.
    rejection(&service.clone().oneshot(Ask::Stall).await.unwrap_err());

    subject.half_open().await;
    assert_eq!(service.clone().oneshot(Ask::Echo).await.unwrap(), 1, "half-open once the open time has passed");

    subject.crowd();
    let mut queued = task::spawn(service.clone().oneshot(Ask::Echo));
    if queued.poll().is_pending() {
        advance(secs(1)).await;
        let refused = rejection(&assert_ready!(queued.poll()).unwrap_err());
        assert_eq!(refused.reason(), Reason::Overloaded);
    }
    settle().await;
    assert!(subject.is_idle());
}
