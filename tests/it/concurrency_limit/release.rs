//! When a permit is given back, and what a change of the limit does to those that are out.

use std::{
    future::{pending, ready},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use buttress::{CircuitBreaker, ConcurrencyLimit, Policy, Rule};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, service_fn};

use super::{Way, limit, work};
use crate::support::Counts;

/// A policy with all its parts around `limit`.
fn whole(limit: &ConcurrencyLimit) -> Policy<buttress::Cloned> {
    Policy::cloned("whole")
        .deadline(crate::support::secs(5))
        .retry(buttress::Retry::constant(crate::support::ms(1)).max_attempts(1))
        .circuit_breaker(CircuitBreaker::builder())
        .concurrency_limit(limit)
        .timeout(crate::support::secs(1))
        .build()
        .unwrap()
}

// HAZARD: L5
#[test]
fn the_permit_is_given_back_with_the_answer_though_the_future_is_kept() {
    for outcome in [Ok(1), Err("no")] {
        let limit = limit(1, 0);
        let lifted = service_fn(|answer: Result<u32, &'static str>| ready(answer.map_err(buttress::Error::Inner)));
        let plain = service_fn(|answer: Result<u32, &'static str>| ready(answer));
        let (policy, mut layered) = (whole(&limit), limit.layer().layer(lifted));
        let mut wrapped = policy.wrap(plain);

        let mut kept = (
            task::spawn(limit.call(ready(outcome))),
            task::spawn(layered.call(outcome)),
            task::spawn(policy.call(|| ready(outcome))),
        );
        let expected = Poll::Ready(outcome.map_err(buttress::Error::Inner));
        // The layer was admitted when it was called; it is the one that holds the permit.
        assert_eq!(limit.in_flight(), 1);
        assert_eq!(kept.1.poll(), expected);
        assert_eq!(limit.in_flight(), 0, "the layer's future is kept");
        assert_eq!(kept.0.poll(), expected);
        assert_eq!(limit.in_flight(), 0, "the function's future is kept");
        assert_eq!(kept.2.poll(), expected);
        assert_eq!(limit.in_flight(), 0, "the policy's future is kept");
        let mut fourth = task::spawn(wrapped.call(outcome));
        assert_eq!(limit.in_flight(), 1);
        assert_eq!(fourth.poll(), expected);
        assert_eq!(limit.in_flight(), 0, "the future of the policy's service is kept");
    }
}

// HAZARD: L5
#[test]
fn the_permit_is_given_back_with_a_refusal_though_the_future_is_kept() {
    let limit = limit(1, 1);
    let breaker = CircuitBreaker::builder().build().unwrap();
    let policy = Policy::plain("stock").circuit_breaker(&breaker).concurrency_limit(&limit).build().unwrap();
    let held = limit.try_acquire().unwrap();
    let mut kept = task::spawn(policy.call(|| ready(Ok::<_, io::Error>(()))));
    assert_pending!(kept.poll());
    breaker.force_open();
    drop(held);
    assert_ready_err!(kept.poll());
    assert_eq!(limit.in_flight(), 0);
}

/// Looks at the limit when it is dropped, as a connection that goes back to its pool would.
struct Nosy {
    limit: ConcurrencyLimit,
    ready: bool,
    saw: Arc<AtomicUsize>,
}

impl Future for Nosy {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if self.ready { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        self.saw.fetch_add(self.limit.in_flight(), SeqCst);
    }
}

// HAZARD: L1, T7
#[tokio::test(start_paused = true)]
async fn the_work_is_gone_before_its_permit_is_given_back() {
    let (limit, saw) = (limit(1, 0), Arc::new(AtomicUsize::new(0)));
    let policy = whole(&limit);
    let nosy = |ready| Nosy { limit: limit.clone(), ready, saw: saw.clone() };
    let service = service_fn(nosy);

    for (ready, ends) in [(true, "by itself"), (false, "by being dropped")] {
        drop(task::spawn(limit.call_as(nosy(ready))).poll());
        assert_eq!(saw.swap(0, SeqCst), 1, "function, {ends}");
        drop(task::spawn(policy.call_as(|| nosy(ready))).poll());
        assert_eq!(saw.swap(0, SeqCst), 1, "policy's function, {ends}");
        drop(task::spawn(limit.layer().layer(service).call(ready)).poll());
        assert_eq!(saw.swap(0, SeqCst), 1, "layer, {ends}");
        drop(task::spawn(policy.layer().layer(service).call(ready)).poll());
        assert_eq!(saw.swap(0, SeqCst), 1, "policy, {ends}");
    }
    assert!(policy.layer().layer(service).call(false).await.is_err());
    assert_eq!(saw.swap(0, SeqCst), 1, "policy, by its time-out");
}

/// Where it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Call,
    Poll,
    Drop,
}

struct Grenade(Fault);

impl Future for Grenade {
    type Output = Result<(), buttress::Error<io::Error>>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        assert_ne!(self.0, Fault::Poll, "as it should");
        Poll::Pending
    }
}

impl Drop for Grenade {
    fn drop(&mut self) {
        assert!(self.0 != Fault::Drop || std::thread::panicking(), "as it should");
    }
}

fn throw(fault: Fault) -> Grenade {
    assert_ne!(fault, Fault::Call, "as it should");
    Grenade(fault)
}

// HAZARD: L5
#[test]
fn a_panic_in_call_poll_or_drop_gives_the_permit_back() {
    for fault in [Fault::Call, Fault::Poll, Fault::Drop] {
        let limit = limit(1, 0);
        let (layer, policy) = (limit.layer(), whole(&limit));
        // Each makes the call, polls it once, and drops it.
        let services: [(&str, &dyn Fn()); 4] = [
            ("layer", &|| drop(task::spawn(layer.layer(service_fn(throw)).call(fault)).poll())),
            ("policy", &|| drop(task::spawn(policy.layer().layer(service_fn(throw)).call(fault)).poll())),
            ("function", &|| drop(task::spawn(limit.call_as(async { throw(fault).await })).poll())),
            ("policy's function", &|| drop(task::spawn(policy.call_as(|| throw(fault))).poll())),
        ];
        for (which, service) in services {
            assert!(catch_unwind(AssertUnwindSafe(service)).is_err(), "{which} {fault:?}");
            assert_eq!((limit.in_flight(), limit.waiting()), (0, 0), "{which} {fault:?}");
        }
    }
}

// HAZARD: L5
#[test]
fn a_panicking_classifier_gives_the_permit_back() {
    let limit = limit(1, 0);
    let policy = Policy::plain("stock")
        .circuit_breaker(CircuitBreaker::builder())
        .concurrency_limit(&limit)
        .classify(|_: Result<&(), &io::Error>| panic!("as it should"))
        .build()
        .unwrap();
    let call = || task::spawn(policy.call(|| ready(Ok::<_, io::Error>(())))).poll().is_ready();
    assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    assert_eq!(limit.in_flight(), 0);
}

// HAZARD: L5
#[tokio::test]
async fn a_task_that_is_aborted_or_panics_gives_its_permit_to_the_next_in_line() {
    for way in Way::ALL {
        let (limit, counts) = (limit(1, 4), Counts::default());
        let aborted = tokio::spawn(way.enter(&limit, work(&counts).1));
        let panicking = tokio::spawn(way.enter(&limit, async { panic!("as it should") }));
        let last = tokio::spawn(way.enter(&limit, async {}));
        while counts.running() == 0 || limit.waiting() < 2 {
            tokio::task::yield_now().await;
        }
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled(), "{way:?}");
        assert!(panicking.await.unwrap_err().is_panic(), "{way:?}");
        assert_eq!(last.await.unwrap(), Ok(()), "{way:?}");
        assert_eq!((limit.in_flight(), limit.waiting()), (0, 0), "{way:?}");
    }
}

// Without a body there is only one end: that of the response future. Whoever wants more takes the permit by hand.
// HAZARD: L8
#[test]
fn a_permit_taken_by_hand_lasts_for_as_long_as_it_is_held() {
    let limit = limit(1, 0);
    let call = async {
        let permit = limit.acquire().await.unwrap();
        ("headers", permit)
    };
    let (_, body) = assert_ready!(task::spawn(call).poll());
    assert_eq!(limit.in_flight(), 1, "the body streams");
    assert!(limit.try_acquire().is_err());
    std::thread::spawn(move || drop(body)).join().unwrap();
    assert_eq!(limit.in_flight(), 0);
}

// HAZARD: L7
#[test]
fn shrinking_lets_those_in_flight_finish_and_admits_nobody_until_there_is_room() {
    for way in Way::ALL {
        let (limit, counts) = (limit(3, 8), Counts::default());
        let mut running = Vec::new();
        for _ in 0..3 {
            let (end, work) = work(&counts);
            let mut call = way.start(&limit, work);
            assert_pending!(call.poll());
            running.push((end, call));
        }
        let mut waiter = way.start(&limit, work(&counts).1);
        assert_pending!(waiter.poll());
        limit.resize(1);
        assert_eq!((limit.max_in_flight(), limit.in_flight(), limit.waiting()), (1, 3, 1), "{way:?}");
        for left in [2, 1] {
            let (end, mut call) = running.pop().unwrap();
            end.send(()).unwrap();
            assert_ready_ok!(call.poll());
            assert!(!waiter.is_woken(), "{way:?}");
            assert_eq!((limit.in_flight(), limit.waiting(), counts.running()), (left, 1, left), "{way:?}");
        }
        drop(running);
        assert!(waiter.is_woken(), "{way:?}");
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 0), "{way:?}");
    }
}

// HAZARD: L7
#[test]
fn a_limit_of_zero_admits_nobody_until_it_is_raised_again() {
    for way in Way::ALL {
        let limit = limit(2, 1);
        limit.resize(0);
        assert_eq!(limit.try_acquire().unwrap_err().reason(), buttress::Reason::Overloaded);
        let mut waiter = way.start(&limit, async {});
        assert_pending!(waiter.poll());
        assert_eq!(assert_ready_err!(way.start(&limit, async {}).poll()).rule(), Rule::QueueFull, "{way:?}");
        limit.resize(1);
        assert!(waiter.is_woken(), "{way:?}");
        assert_ready_ok!(waiter.poll());
        assert_eq!((limit.in_flight(), limit.waiting()), (0, 0), "{way:?}");
    }
}

// HAZARD: L7, L3
#[test]
fn a_limit_of_zero_without_a_queue_says_that_none_may_be_in_flight() {
    let limit = limit(2, 0);
    limit.resize(0);
    let no = assert_ready_err!(Way::Call.start(&limit, pending()).poll());
    assert_eq!((no.rule(), no.measured(), no.threshold()), (Rule::LimitReached, Some(0.0), Some(0.0)));
}

// HAZARD: L7
#[test]
fn growing_admits_as_many_of_those_who_wait_as_there_is_room_for_in_their_order() {
    for way in Way::ALL {
        let (limit, counts) = (limit(1, 8), Counts::default());
        let _held = limit.try_acquire().unwrap();
        let mut line: Vec<_> = (0..5).map(|_| way.start(&limit, work(&counts).1)).collect();
        line.iter_mut().for_each(|waiter| assert_pending!(waiter.poll()));
        limit.resize(4);
        let woken: Vec<_> = line.iter().map(|waiter| waiter.is_woken()).collect();
        assert_eq!(woken, [true, true, true, false, false], "{way:?}");
        assert_eq!((limit.in_flight(), limit.waiting()), (4, 2), "{way:?}");
        line.iter_mut().for_each(|waiter| assert_pending!(waiter.poll()));
        assert_eq!((counts.running(), counts.most()), (3, 3), "{way:?}");
        limit.resize(usize::MAX);
        assert!(line[3].is_woken() && line[4].is_woken(), "{way:?}");
        assert_eq!((limit.max_in_flight(), limit.in_flight(), limit.waiting()), (1 << 30, 6, 0), "{way:?}");
    }
}
