//! Who is admitted, who waits, who is refused, and in which order.

use std::{
    future::pending,
    io,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use buttress::{CircuitBreaker, Error, Policy, Reason, Rule};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service};

use super::{Way, limit, work};
use crate::support::{Boxed, Counts, Echo};

// HAZARD: L2
#[test]
fn the_queue_is_bounded_and_the_rest_is_refused() {
    for way in Way::ALL {
        let (limit, counts) = (limit(4, 16), Counts::default());
        let mut calls: Vec<_> = (0..20_000).map(|_| way.start(&limit, work(&counts).1)).collect();
        let refused = calls.iter_mut().filter_map(|call| match call.poll() {
            Poll::Ready(outcome) => Some(outcome.unwrap_err().rule()),
            Poll::Pending => None,
        });
        assert_eq!(refused.filter(|rule| *rule == Rule::QueueFull).count(), 19_980, "{way:?}");
        assert_eq!((limit.in_flight(), limit.waiting(), counts.running()), (4, 16, 4), "{way:?}");
        drop(calls);
        assert_eq!((limit.in_flight(), limit.waiting()), (0, 0), "{way:?}");
    }
}

// Outside of a runtime there is no timer to wait with, so whatever is ready in the first poll took no time.
// HAZARD: L3
#[test]
fn without_a_queue_a_full_limit_refuses_at_once_and_says_why() {
    for way in Way::ALL {
        let limit = limit(2, 0);
        let _full = (limit.try_acquire().unwrap(), limit.try_acquire().unwrap());
        let no = assert_ready_err!(way.start(&limit, async {}).poll());
        assert_eq!((no.reason(), no.rule()), (Reason::Overloaded, Rule::LimitReached), "{way:?}");
        assert_eq!((no.measured(), no.threshold(), no.retry_after()), (Some(2.0), Some(2.0), None), "{way:?}");
        assert!(no.to_string().ends_with("is overloaded: 2 in flight, 2 allowed"), "{way:?}: {no}");
        assert_eq!((limit.in_flight(), limit.waiting()), (2, 0), "{way:?}");
    }
}

// HAZARD: L3
#[test]
fn a_full_queue_refuses_at_once_and_says_why() {
    for way in Way::ALL {
        let limit = limit(1, 3);
        let _full = limit.try_acquire().unwrap();
        let mut waiters: Vec<_> = (0..3).map(|_| Way::Call.start(&limit, async {})).collect();
        waiters.iter_mut().for_each(|waiter| assert_pending!(waiter.poll()));
        let no = assert_ready_err!(way.start(&limit, async {}).poll());
        assert_eq!((no.reason(), no.rule()), (Reason::Overloaded, Rule::QueueFull), "{way:?}");
        assert_eq!((no.measured(), no.threshold(), no.retry_after()), (Some(3.0), Some(3.0), None), "{way:?}");
        assert!(no.to_string().ends_with("is overloaded: 3 waiting, 3 allowed"), "{way:?}: {no}");
    }
}

// Who does not want to wait is not told about a queue in which there is room.
// HAZARD: L3
#[test]
fn trying_says_that_the_limit_is_reached_whatever_the_queue() {
    let limit = limit(1, 8);
    let _full = limit.try_acquire().unwrap();
    let no = limit.try_acquire().unwrap_err();
    assert_eq!((no.reason(), no.rule()), (Reason::Overloaded, Rule::LimitReached));
    assert_eq!((no.measured(), no.threshold()), (Some(1.0), Some(1.0)));
}

// HAZARD: L4, C3
#[test]
fn clones_layers_services_and_policies_share_one_count() {
    let limit = limit(7, 0);
    let layer = limit.layer();
    let service = layer.layer(Echo);
    let policy = || Policy::plain("shared").concurrency_limit(limit.clone()).build().unwrap();
    let mut shares = Vec::new();
    for way in Way::ALL {
        let mut share = way.start(&limit.clone(), pending());
        assert_pending!(share.poll());
        shares.push(share);
        assert_eq!(limit.in_flight(), shares.len(), "{way:?}");
    }
    assert_overloaded(task::spawn(service.clone().call(1)).poll());
    assert_overloaded(task::spawn(layer.clone().layer(Echo).call(1)).poll());
    assert_overloaded(task::spawn(policy().layer().layer(Echo).call(1)).poll());
    assert_overloaded(task::spawn(policy().clone().call_as(|| Echo.call(1))).poll());

    shares.clear();
    assert_eq!(assert_ready!(task::spawn(service.clone().call(1)).poll()), Ok(1));
}

fn assert_overloaded<T: std::fmt::Debug, E: std::fmt::Debug>(poll: Poll<Result<T, Error<E>>>) {
    let error = assert_ready_err!(poll);
    assert_eq!(error.rejection().map(|no| no.reason()), Some(Reason::Overloaded));
}

// HAZARD: L9
#[test]
fn a_late_arrival_does_not_barge_past_the_queue() {
    for early in Way::ALL {
        for late in Way::ALL {
            let (limit, counts) = (limit(1, 8), Counts::default());
            let held = limit.try_acquire().unwrap();
            let mut first = early.start(&limit, work(&counts).1);
            assert_pending!(first.poll());
            drop(held);
            // The permit is that of whoever waits, also before it is polled to learn so.
            assert!(first.is_woken(), "{early:?}");
            assert!(limit.try_acquire().is_err(), "{early:?}");
            let mut second = late.start(&limit, work(&counts).1);
            assert_pending!(second.poll());
            assert_eq!((limit.in_flight(), limit.waiting(), counts.running()), (1, 1, 0), "{early:?}, {late:?}");
            assert_pending!(first.poll());
            assert_eq!((limit.in_flight(), limit.waiting(), counts.running()), (1, 1, 1), "{early:?}, {late:?}");
        }
    }
}

// HAZARD: L9
#[test]
fn permits_go_first_in_first_out_one_waker_for_each() {
    let (limit, counts) = (limit(1, 64), Counts::default());
    let mut held = Some(limit.try_acquire().unwrap());
    let mut line = Vec::new();
    for way in Way::ALL.into_iter().cycle().take(50) {
        let (end, work) = work(&counts);
        let mut waiter = way.start(&limit, work);
        assert_pending!(waiter.poll());
        line.push((Some(end), waiter));
    }
    for next in 0..50 {
        held.take();
        let woken: Vec<_> = (next..50).filter(|place| line[*place].1.is_woken()).collect();
        assert_eq!(woken, [next], "the longest waiting, and nobody else");
        let (end, waiter) = &mut line[next];
        assert_pending!(waiter.poll());
        assert_eq!((counts.running(), limit.waiting()), (1, 49 - next));
        end.take().unwrap().send(()).unwrap();
        assert_ready_ok!(waiter.poll());
    }
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

// HAZARD: C7
#[test]
fn a_waiter_that_moves_to_another_task_is_woken_there() {
    for way in Way::ALL {
        let limit = limit(1, 1);
        let held = limit.try_acquire().unwrap();
        let mut call = way.enter(&limit, async {});
        let (mut here, mut there) = (task::spawn(()), task::spawn(()));
        here.enter(|cx, _| assert_pending!(call.as_mut().poll(cx)));
        there.enter(|cx, _| assert_pending!(call.as_mut().poll(cx)));
        drop(held);
        assert_eq!((here.is_woken(), there.is_woken()), (false, true), "{way:?}");
        there.enter(|cx, _| assert_ready_ok!(call.as_mut().poll(cx)));
    }
}

/// Notes down who is cloned, polled and called; ready only when told so.
#[derive(Debug)]
struct Diary {
    me: usize,
    ready: bool,
    pages: Arc<Mutex<Pages>>,
}

#[derive(Debug, Default)]
struct Pages {
    clones: usize,
    open: bool,
    broken: bool,
    lines: Vec<String>,
}

impl Diary {
    fn new() -> (Self, Arc<Mutex<Pages>>) {
        let pages = Arc::new(Mutex::new(Pages { open: true, ..Pages::default() }));
        (Self { me: 0, ready: false, pages: pages.clone() }, pages)
    }
}

impl Clone for Diary {
    fn clone(&self) -> Self {
        let mut pages = self.pages.lock().unwrap();
        pages.clones += 1;
        Self { me: pages.clones, ready: false, pages: self.pages.clone() }
    }
}

impl Service<u32> for Diary {
    type Response = u32;
    type Error = Error<io::Error>;
    type Future = Boxed<Result<u32, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let mut pages = self.pages.lock().unwrap();
        pages.lines.push(format!("{} polled", self.me));
        self.ready = pages.open;
        match (pages.broken, pages.open) {
            (true, _) => Poll::Ready(Err(Error::Inner(io::Error::other("gone")))),
            (false, true) => Poll::Ready(Ok(())),
            (false, false) => Poll::Pending,
        }
    }

    fn call(&mut self, req: u32) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "{} was not polled ready", self.me);
        self.pages.lock().unwrap().lines.push(format!("{} called", self.me));
        Box::pin(async move { Ok(req) })
    }
}

fn guards() -> [(&'static str, buttress::ConcurrencyLimit, Guard); 2] {
    let (alone, joined) = (limit(1, 4), limit(1, 4));
    let policy = Policy::plain("policy").concurrency_limit(&joined).build().unwrap();
    let layer = alone.layer();
    [
        ("layer", alone, Box::new(move |diary| Box::new(layer.layer(diary)))),
        ("policy", joined, Box::new(move |diary| Box::new(policy.layer().layer(diary)))),
    ]
}

type Guard = Box<dyn Fn(Diary) -> Box<dyn Ask>>;

/// Polls a service ready and calls it.
trait Ask {
    fn ask(&mut self) -> task::Spawn<Boxed<Result<u32, Error<io::Error>>>>;
}

impl<S: Service<u32, Response = u32, Error = Error<io::Error>>> Ask for S
where
    S::Future: Send + 'static,
{
    fn ask(&mut self) -> task::Spawn<Boxed<Result<u32, Error<io::Error>>>> {
        assert_ready_ok!(task::spawn(()).enter(|cx, _| self.poll_ready(cx)));
        task::spawn(Box::pin(self.call(7)))
    }
}

// HAZARD: C1, C2
#[test]
fn an_admitted_call_uses_the_readied_service_a_queued_one_a_fresh_clone_once_it_is_admitted() {
    for (which, limit, guard) in guards() {
        let (diary, pages) = Diary::new();
        let mut service = guard(diary);
        assert_eq!(assert_ready_ok!(service.ask().poll()), 7);
        assert_eq!(std::mem::take(&mut pages.lock().unwrap().lines), ["0 polled", "0 called"], "{which}");

        let held = limit.try_acquire().unwrap();
        let mut queued = service.ask();
        assert_pending!(queued.poll());
        assert_eq!(std::mem::take(&mut pages.lock().unwrap().lines), ["0 polled"], "{which}: nothing while it waits");
        drop(held);
        pages.lock().unwrap().open = false;
        assert_pending!(queued.poll());
        pages.lock().unwrap().open = true;
        assert_eq!(assert_ready_ok!(queued.poll()), 7);
        let lines = std::mem::take(&mut pages.lock().unwrap().lines);
        let (me, _) = lines[0].split_once(' ').unwrap();
        assert_ne!(me, "0", "{which}: a fresh clone");
        assert_eq!(lines, ["polled", "polled", "called"].map(|did| format!("{me} {did}")), "{which}");
        assert_ready_ok!(service.ask().poll());
        assert_ne!(
            pages.lock().unwrap().lines[0],
            "0 polled",
            "{which}: what was reserved for the queued call is given back"
        );
    }
}

#[test]
fn a_service_that_fails_or_hangs_while_it_gets_ready_gives_the_permit_back() {
    for (which, limit, guard) in guards() {
        let (diary, pages) = Diary::new();
        let mut service = guard(diary);
        let held = limit.try_acquire().unwrap();
        let (mut failing, mut hanging) = (service.ask(), service.ask());
        assert_pending!(failing.poll());
        assert_pending!(hanging.poll());
        drop(held);
        pages.lock().unwrap().broken = true;
        assert!(assert_ready_err!(failing.poll()).inner().is_some(), "{which}");
        *pages.lock().unwrap() = Pages::default();
        assert_pending!(hanging.poll());
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 0), "{which}");
        drop(hanging);
        assert_eq!((limit.in_flight(), limit.waiting()), (0, 0), "{which}");
    }
}

#[test]
fn a_queued_call_asks_the_breaker_again_once_it_has_a_permit_and_gives_that_on() {
    let limit = limit(1, 8);
    let policy = Policy::plain("stock")
        .circuit_breaker(CircuitBreaker::builder().consecutive_failures(1))
        .concurrency_limit(&limit)
        .build()
        .unwrap();
    let (fail, failed) = tokio::sync::oneshot::channel::<()>();
    let mut failed = Some(failed);
    let mut failing = task::spawn(policy.call(|| {
        let failed = failed.take().unwrap();
        async move { failed.await.map_err(io::Error::other) }
    }));
    assert_pending!(failing.poll());
    let counts = Counts::default();
    let mut called = task::spawn(policy.call(|| async { Ok::<_, io::Error>(counts.enter()) }));
    assert_pending!(called.poll());
    let mut service = policy.wrap(tower::service_fn(|(): ()| async { Ok::<_, io::Error>(counts.enter()) }));
    let mut wrapped = task::spawn(service.call(()));
    assert_pending!(wrapped.poll());
    let mut without_breaker = Way::Call.start(&limit, async {});
    assert_pending!(without_breaker.poll());

    drop(fail);
    assert!(assert_ready_err!(failing.poll()).inner().is_some());
    // Each is granted the permit only to find the circuit open.
    assert_eq!((called.is_woken(), wrapped.is_woken(), without_breaker.is_woken()), (true, false, false));
    assert_circuit_open(called.poll());
    assert_eq!((wrapped.is_woken(), without_breaker.is_woken()), (true, false));
    assert_circuit_open(wrapped.poll());
    assert!(without_breaker.is_woken());
    assert_ready_ok!(without_breaker.poll());
    assert_eq!((limit.in_flight(), limit.waiting(), counts.calls()), (0, 0, 0));
}

fn assert_circuit_open<T>(poll: Poll<Result<T, Error<io::Error>>>) {
    let reason = poll.map(|outcome| outcome.err().and_then(|error| error.rejection().map(|no| no.reason())));
    assert_eq!(reason, Poll::Ready(Some(Reason::CircuitOpen)));
}
