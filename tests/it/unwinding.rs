//! Panics of code that is not ours, between the taking and the giving back.
#![allow(clippy::disallowed_methods)] // a thread waits for another one in a call

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, Ready, pending, ready},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, RawWaker, RawWakerVTable, Wake, Waker},
};

use buttress::{
    CircuitBreaker, ConcurrencyLimit, Deadline, Error, Policy, Retry, circuit_breaker::State, retry::current_attempt,
};
use tokio_test::task;
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::support::{ms, secs, settle};

thread_local!(static ARMED: Cell<bool> = const { Cell::new(false) });

/// Its `Clone` panics while this thread is armed.
#[derive(Debug)]
struct Mine;

impl Clone for Mine {
    fn clone(&self) -> Self {
        assert!(!ARMED.get(), "a clone that panics, as asked");
        Mine
    }
}

fn armed<R>(code: impl FnOnce() -> R) -> std::thread::Result<R> {
    ARMED.set(true);
    let result = catch_unwind(AssertUnwindSafe(code));
    ARMED.set(false);
    result
}

fn retry() -> Retry {
    Retry::constant(ms(10)).max_attempts(3).without_budget().build().unwrap()
}

fn limit(most: usize, queue: usize) -> ConcurrencyLimit {
    ConcurrencyLimit::builder().max_in_flight(most).max_queue(queue).build().unwrap()
}

// HAZARD: L5
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_clone_of_a_request_gives_the_permit_back() {
    let limit = limit(1, 0);
    let policy = Policy::cloned("mine").retry(retry()).concurrency_limit(&limit).build().unwrap();
    let mut service = policy.layer().layer(service_fn(|_: Mine| ready(Ok::<_, Error<Infallible>>(()))));
    service.ready().await.unwrap();
    assert!(armed(|| drop(service.call(Mine))).is_err());
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

// HAZARD: B2
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_clone_of_a_request_ends_its_probe() {
    let breaker = CircuitBreaker::builder()
        .consecutive_failures(1)
        .probes(1)
        .open_time(buttress::Backoff::constant(secs(1)))
        .build()
        .unwrap();
    let policy = Policy::cloned("mine").retry(retry()).circuit_breaker(&breaker).build().unwrap();
    let mut service = policy.layer().layer(service_fn(|_: Mine| ready(Ok::<_, Error<Infallible>>(()))));
    let _ = breaker.call(ready(Err::<(), _>(io::Error::other("down")))).await;
    assert_eq!(breaker.state(), State::Open);
    tokio::time::advance(secs(5)).await;
    service.ready().await.unwrap();
    assert!(armed(|| drop(service.call(Mine))).is_err());
    assert_eq!(breaker.state(), State::Open, "the probe panicked, and so has failed");
}

// HAZARD: B5
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_clone_of_a_request_is_counted() {
    let breaker = CircuitBreaker::builder().consecutive_failures(2).build().unwrap();
    let policy = Policy::cloned("mine").retry(retry()).circuit_breaker(&breaker).build().unwrap();
    let mut service = policy.layer().layer(service_fn(|_: Mine| ready(Ok::<_, Error<Infallible>>(()))));
    for _ in 0..2 {
        service.ready().await.unwrap();
        assert!(armed(|| drop(service.call(Mine))).is_err());
    }
    assert_eq!(breaker.state(), State::Open);
}

/// A service whose `Clone` panics while this thread is armed.
#[derive(Clone, Debug)]
struct Below(#[allow(dead_code)] Mine);

impl Service<u32> for Below {
    type Response = u32;
    type Error = Error<Infallible>;
    type Future = Ready<Result<u32, Error<Infallible>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, n: u32) -> Self::Future {
        ready(Ok(n))
    }
}

// HAZARD: L5
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_clone_of_a_service_gives_the_permit_back() {
    let limit = limit(1, 0);
    let policy = Policy::cloned("mine").retry(retry()).concurrency_limit(&limit).build().unwrap();
    let mut service = policy.layer().layer(Below(Mine));
    service.ready().await.unwrap();
    assert!(armed(|| drop(service.call(1))).is_err());
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

// HAZARD: C6, L6
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_clone_of_a_service_leaves_the_queue() {
    for whole in [false, true] {
        let limit = limit(1, 4);
        let policy = Policy::plain("mine").concurrency_limit(&limit).build().unwrap();
        let permit = limit.try_acquire().unwrap();
        let panicked = if whole {
            let mut service = policy.layer().layer(Below(Mine));
            service.ready().await.unwrap();
            armed(|| drop(service.call(1)))
        } else {
            let mut service = limit.layer().layer(Below(Mine));
            service.ready().await.unwrap();
            armed(|| drop(service.call(1)))
        };
        assert!(panicked.is_err());
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 0), "policy: {whole}");
        drop(permit);
        assert_eq!((limit.in_flight(), limit.waiting()), (0, 0), "nobody is given what nobody takes; policy: {whole}");
    }
}

// Not the attempt's: who listens to transitions stands outside of it.
#[tokio::test(start_paused = true)]
async fn a_listener_that_hears_of_a_panic_in_call_is_not_inside_of_the_attempt() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let breaker = {
        let seen = seen.clone();
        CircuitBreaker::builder()
            .consecutive_failures(1)
            .on_transition(move |_| seen.lock().unwrap().push((Deadline::current().is_some(), current_attempt())))
            .build()
            .unwrap()
    };
    let policy = Policy::cloned("mine").deadline(secs(9)).retry(retry()).circuit_breaker(&breaker).build().unwrap();
    let panics = |_: u32| -> Ready<Result<(), Error<Infallible>>> { panic!("as it should") };
    let mut service = policy.layer().layer(service_fn(panics));
    service.ready().await.unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| drop(service.call(1)))).is_err());
    assert_eq!(*seen.lock().unwrap(), [(false, None)]);
}

#[test]
fn a_call_that_panics_after_it_was_forced_is_reported_by_its_name() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let shutdown = runtime.block_on(async { buttress::Shutdown::builder().build().unwrap() });
    let handle = shutdown.handle();
    let (at_work, forced) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
    let service = {
        let (at_work, forced) = (at_work.clone(), forced.clone());
        handle.layer().layer(service_fn(move |(): ()| -> Ready<Result<(), Error<Infallible>>> {
            at_work.wait();
            while !forced.load(SeqCst) {
                std::thread::yield_now();
            }
            panic!("as it should")
        }))
    };
    let worker = std::thread::spawn(move || task::spawn(service.send(())).poll().is_ready());
    at_work.wait();
    let report = runtime.block_on(async {
        let waits = tokio::spawn(async move { shutdown.wait().await });
        settle().await;
        handle.force();
        handle.forced().await;
        forced.store(true, SeqCst);
        waits.await.unwrap()
    });
    assert!(worker.join().is_err());
    assert!(report.cut.iter().all(|(name, _)| *name == "calls"), "{:?}", report.cut);
}

// A deadline that a caller brings between polls is heeded by a layer that has none.
// HAZARD: T6
#[tokio::test(start_paused = true)]
async fn a_deadline_brought_between_polls_reaches_a_layer_that_was_pending_without() {
    let retry = retry();
    let mut service = retry.layer().layer(service_fn(|_: u32| pending::<Result<(), Error<Infallible>>>()));
    service.ready().await.unwrap();
    let mut call = Box::pin(service.call(1));
    std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending())).await;
    let began = tokio::time::Instant::now();
    let ended = Deadline::after(ms(50)).scope(call).await;
    assert!(ended.is_err());
    assert!(began.elapsed() < ms(60));
}

#[tokio::test(start_paused = true)]
async fn a_rejected_future_polled_again_says_so() {
    let limit = limit(1, 0);
    let _permit = limit.try_acquire().unwrap();
    let mut service = limit.layer().layer(Below(Mine));
    service.ready().await.unwrap();
    let mut call = task::spawn(service.call(1));
    assert!(call.poll().is_ready());
    let again = catch_unwind(AssertUnwindSafe(|| call.poll().is_ready())).unwrap_err();
    assert_eq!(again.downcast_ref::<&str>(), Some(&"a response future was polled after completion"));
}

/// A waker that is not to be woken.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics, as asked");
    }
}

// HAZARD: L5
#[test]
fn a_waker_that_panics_costs_nobody_else_the_permit() {
    let limit = limit(1, 10);
    let held = limit.try_acquire().unwrap();
    let mut first = Box::pin(limit.acquire());
    let waker = Waker::from(Arc::new(Panics));
    assert!(first.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let mut second = task::spawn(limit.acquire());
    assert!(second.poll().is_pending());
    limit.resize(3);
    assert!(second.is_woken(), "there is room for all three");
    let permit = tokio_test::assert_ready!(second.poll());
    assert_eq!((limit.in_flight(), limit.waiting()), (3, 0));
    drop((first, permit, held));
    assert_eq!(limit.in_flight(), 0);
}

/// A waker whose drop panics while this thread is armed.
#[allow(unsafe_code)] // what is safe only counts references down
fn brittle() -> Waker {
    const TABLE: RawWakerVTable =
        RawWakerVTable::new(|_| RAW, |_| {}, |_| {}, |_| assert!(!ARMED.get(), "a drop that panics, as asked"));
    const RAW: RawWaker = RawWaker::new(std::ptr::null(), &TABLE);
    // SAFETY: it points to nothing, and does nothing but panic.
    unsafe { Waker::from_raw(RAW) }
}

// HAZARD: L5
#[test]
fn a_waker_that_panics_when_it_is_dropped_costs_nobody_the_permit() {
    let limit = limit(1, 10);
    let held = limit.try_acquire().unwrap();
    let mut call = Box::pin(limit.acquire());
    let waker = brittle();
    assert!(call.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(held);
    let granted = armed(|| call.as_mut().poll(&mut Context::from_waker(&waker)).map(|granted| granted.is_ok()));
    assert!(matches!(granted, Ok(Poll::Ready(true))), "{granted:?}");
    drop(call);
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}
