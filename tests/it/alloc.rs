//! What a call costs in memory: nothing, on every path that is taken often. And in timers: none, until it must wait.
#![allow(unsafe_code)] // an allocator can be written no other way

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    convert::Infallible,
    fmt::Debug,
    future::{poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use buttress::{
    CircuitBreaker, Cloned, ConcurrencyLimit, Deadline, DeadlineLayer, Error, Hedge, Keyed, LagGuard, Lift, Policy,
    Rejection, Retry, Rule, Shutdown, SlowPoll, Throttle, Timeout, Verdict, circuit_breaker::State,
};
use tokio::runtime::Runtime;
use tower::{Layer, Service};
use tracing::{Event, Metadata, Subscriber, span, subscriber::Interest};

use crate::support::{Echo, ms, secs};

/// Counts what this thread allocates; the tests of this binary run on a thread each.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all of it is done by the system's allocator; the count lies in a cell that neither allocates nor is dropped.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }
}

/// Listens to nothing, but wants to be asked each time: as much as an event costs where nobody hears it.
struct Deaf;

impl Subscriber for Deaf {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        false
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// What a hundred calls allocate, after ten to warm up.
#[track_caller]
fn allocates_nothing(mut call: impl FnMut()) {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(ALLOCATIONS.get(), before + 1, "the allocator counts");

    let _listener = tracing::subscriber::set_default(Deaf);
    (0..10).for_each(|_| call());
    let before = ALLOCATIONS.get();
    (0..100).for_each(|_| call());
    assert_eq!(ALLOCATIONS.get() - before, 0, "allocations in 100 calls");
}

/// Polls once, by hand and outside of any runtime.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it should be ready at once"),
    }
}

/// A call as tower makes it.
fn ask<S: Service<u64>>(service: &mut S) -> Result<S::Response, S::Error> {
    now(poll_fn(|cx| service.poll_ready(cx)))?;
    now(service.call(7))
}

fn breaker() -> CircuitBreaker {
    CircuitBreaker::builder().build().unwrap()
}

fn limit(max_in_flight: usize, max_queue: usize) -> ConcurrencyLimit {
    ConcurrencyLimit::builder().max_in_flight(max_in_flight).max_queue(max_queue).build().unwrap()
}

fn retry() -> Retry {
    Retry::exponential(ms(10)).build().unwrap()
}

/// That has learned when to ask once more, and would.
fn hedge() -> Hedge {
    Hedge::percentile(0.95).min_delay(ms(100)).build().unwrap()
}

/// Measured by a runtime that is gone, so that it never refuses; but it looks at the clock as any other.
fn lag_guard() -> LagGuard {
    let runtime = runtime();
    let guard = LagGuard::builder().start_on(runtime.handle()).unwrap();
    // Also within another one, where it cannot be waited for.
    runtime.shutdown_background();
    guard
}

/// Refuses by a chance that is too small to be met.
fn wary_throttle() -> Throttle {
    let throttle = Throttle::google().max_rejection(f64::MIN_POSITIVE).build().unwrap();
    (0..1_000).for_each(|_| _ = now(throttle.call(async { Err::<(), _>("busy") })));
    assert!(throttle.snapshot().rejection_probability > 0.0);
    throttle
}

/// All seven parts, none of which stands in a call's way.
fn policy() -> Policy<Cloned> {
    Policy::cloned("all")
        .deadline(secs(5))
        .retry(retry())
        .hedge(hedge())
        .circuit_breaker(breaker())
        .throttle(Throttle::google())
        .concurrency_limit(limit(8, 8))
        .timeout(secs(1))
        .build()
        .unwrap()
}

/// As `Echo`, but found pending once. A named future, as layers would have it of a client.
#[derive(Clone, Copy)]
struct Slow;

struct PendingOnce(bool);

impl Future for PendingOnce {
    type Output = Result<u64, Error<Infallible>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(Ok(7));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Service<u64> for Slow {
    type Response = u64;
    type Error = Error<Infallible>;
    type Future = PendingOnce;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: u64) -> PendingOnce {
        PendingOnce(false)
    }
}

// ---------------------------------------------------------------- answers

#[test]
fn counting_a_call_for_the_shutdown_allocates_nothing_nor_does_refusing_it() {
    let runtime = runtime();
    let shutdown = runtime.block_on(async { Shutdown::builder().build() }).unwrap();
    let handle = shutdown.handle();
    let mut service = handle.layer().layer(Echo);
    allocates_nothing(|| assert!(matches!(ask(&mut service), Ok(7))));
    assert_eq!(handle.in_flight(), 0);
    handle.force();
    allocates_nothing(|| {
        let refused = ask(&mut service).unwrap_err();
        assert_eq!(refused.rejection().map(Rejection::rule), Some(Rule::Stopping));
    });
}

/// Each layer of the crate over the service, and the whole policy, lent to `$check`.
macro_rules! for_each_layer {
    ($inner:expr, $check:ident) => {
        $check!("timeout", Timeout::new(secs(1)).layer().layer($inner));
        $check!("deadline", DeadlineLayer::new(secs(1)).layer($inner));
        $check!("retry", retry().layer().layer($inner));
        $check!("hedge", hedge().layer().layer($inner));
        $check!("lag guard", lag_guard().layer().layer($inner));
        $check!("circuit breaker, time", breaker().layer().layer($inner));
        let of_calls = CircuitBreaker::builder().window_calls(100).slow_call_rate(0.5).build().unwrap();
        $check!("circuit breaker, calls", of_calls.layer().layer($inner));
        $check!("throttle", Throttle::google().build().unwrap().layer().layer($inner));
        $check!("throttle, of a service that fails", wary_throttle().layer().layer($inner));
        $check!("concurrency limit", limit(8, 8).layer().layer($inner));
        $check!("policy", policy().layer().layer($inner));
        $check!("policy of a lifted service", policy().wrap($inner));
        $check!("lift", Lift::new($inner));
        $check!("slow poll", SlowPoll::new("all", secs(3_600)).layer().layer($inner));
    };
}

// HAZARD: C10, T1
#[test]
fn an_answer_that_is_there_at_once_allocates_nothing_in_any_layer_and_needs_no_runtime() {
    macro_rules! check {
        ($name:literal, $service:expr) => {
            let mut service = $service;
            allocates_nothing(|| assert!(matches!(ask(&mut service), Ok(7)), $name));
        };
    }
    for_each_layer!(Echo, check);
}

// HAZARD: C10
#[test]
fn an_answer_that_must_be_waited_for_allocates_nothing_in_any_layer() {
    runtime().block_on(async {
        macro_rules! check {
            ($name:literal, $service:expr) => {
                let mut service = $service;
                let mut worst = 0;
                for round in 0..50 {
                    let before = ALLOCATIONS.get();
                    poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
                    assert_eq!(service.call(7).await.unwrap(), 7);
                    if round >= 10 {
                        worst = worst.max(ALLOCATIONS.get() - before);
                    }
                }
                assert_eq!(worst, 0, $name);
            };
        }
        for_each_layer!(Slow, check);
    });
}

// On a thread that made none of the handles, too.
#[test]
fn a_key_that_is_kept_allocates_nothing_to_be_found() {
    let breakers: Keyed<String, _> = Keyed::each(CircuitBreaker::builder()).build().unwrap();
    let limits: Keyed<u64, _> = Keyed::each(ConcurrencyLimit::builder().max_in_flight(8)).build().unwrap();
    let retries: Keyed<u64, _> = Keyed::each(Retry::exponential(ms(10))).build().unwrap();
    let policies = Keyed::each(Policy::cloned("all").circuit_breaker(CircuitBreaker::builder()).timeout(secs(1)));
    let policies: Keyed<u64, _> = policies.build().unwrap();
    let check = || {
        allocates_nothing(|| drop(breakers.get("example.org")));
        allocates_nothing(|| assert_eq!(now(policies.get(&7).call(|| ready(Ok::<u64, ()>(7)))), Ok(7)));
        macro_rules! check {
            ($keyed:ident) => {
                let mut service = $keyed.layer(|key: &u64| *key).layer(Echo);
                allocates_nothing(|| assert!(matches!(ask(&mut service), Ok(7))));
            };
        }
        check!(limits);
        check!(retries);
        check!(policies);
    };
    check();
    std::thread::scope(|scope| (0..3).for_each(|_| scope.spawn(check).join().unwrap()));
}

// HAZARD: C10, T1
#[test]
fn plain_functions_allocate_nothing_either() {
    let answer = || ready(Ok::<u64, Infallible>(7));
    let (timeout, retry, breaker, limit, policy) = (Timeout::new(secs(1)), retry(), breaker(), limit(8, 8), policy());
    let deadline = Deadline::after(secs(1));
    allocates_nothing(|| assert_eq!(now(timeout.call(answer())), Ok(7)));
    allocates_nothing(|| assert_eq!(now(deadline.enforce(answer())), Ok(7)));
    allocates_nothing(|| assert_eq!(now(retry.run(|_| answer())), Ok(7)));
    allocates_nothing(|| assert_eq!(now(breaker.call(answer())), Ok(7)));
    allocates_nothing(|| breaker.try_acquire().unwrap().settle(Verdict::Success));
    allocates_nothing(|| assert_eq!(now(limit.call(answer())), Ok(7)));
    allocates_nothing(|| drop(limit.try_acquire().unwrap()));
    allocates_nothing(|| drop(now(limit.acquire()).unwrap()));
    allocates_nothing(|| assert_eq!(now(policy.call(answer)), Ok(7)));

    runtime().block_on(async {
        for round in 0..50 {
            let before = ALLOCATIONS.get();
            assert_eq!(timeout.call(PendingOnce(false)).await, Ok(7));
            assert_eq!(breaker.call(PendingOnce(false)).await, Ok(7));
            assert_eq!(policy.call(|| PendingOnce(false)).await, Ok(7));
            assert!(round < 10 || ALLOCATIONS.get() == before, "found pending once");
        }
    });
}

// HAZARD: T1
#[test]
fn only_a_call_that_must_wait_arms_a_timer() {
    macro_rules! check {
        ($name:literal, $service:expr) => {
            let mut service = $service;
            // Outside of a runtime a timer cannot be made, so this is how one shows.
            let asked = catch_unwind(AssertUnwindSafe(|| {
                let mut call = pin!(service.call(7));
                let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
            }));
            let timed = ["timeout", "deadline", "policy", "policy of a lifted service"].contains(&$name);
            assert_eq!(asked.ok(), if timed { None } else { Some(true) }, $name);
        };
    }
    for_each_layer!(Slow, check);
}

// ---------------------------------------------------------------- rejections

fn rejects<T: Debug, E: Debug>(outcome: Result<T, Error<E>>, rule: Rule) {
    assert_eq!(outcome.unwrap_err().rejection().map(Rejection::rule), Some(rule));
}

// HAZARD: C10
#[test]
fn a_throttle_allocates_nothing_to_say_no() {
    for builder in [Throttle::google().multiplier(f64::MAX), Throttle::envoy()] {
        let throttle = builder.aggression(1e300).max_rejection(1.0).build().unwrap();
        assert!(now(throttle.call(ready(Err::<(), _>("busy")))).is_err());
        allocates_nothing(|| rejects(now(throttle.call(ready(Ok::<_, &str>(7)))), Rule::AcceptRate));
        let mut service = throttle.layer().layer(Echo);
        allocates_nothing(|| rejects(ask(&mut service), Rule::AcceptRate));
    }
}

// HAZARD: C10, B16
#[test]
fn an_open_circuit_allocates_nothing_to_say_no() {
    // Its clock is paused, so the circuit stays open.
    let runtime = runtime();
    let _clock = runtime.enter();
    let breaker = CircuitBreaker::builder().consecutive_failures(1).build().unwrap();
    let all = Policy::plain("all").circuit_breaker(&breaker).timeout(secs(1)).deadline(secs(5)).build().unwrap();
    let (mut service, mut policy) = (breaker.layer().layer(Echo), all.layer().layer(Echo));

    breaker.force_open();
    allocates_nothing(|| rejects(ask(&mut service), Rule::Forced));
    breaker.reset();
    breaker.try_acquire().unwrap().settle(Verdict::TRANSIENT);
    allocates_nothing(|| rejects(ask(&mut service), Rule::ConsecutiveFailures));
    allocates_nothing(|| rejects(ask(&mut policy), Rule::ConsecutiveFailures));
    allocates_nothing(|| rejects(now(breaker.call(ready(Ok::<u64, Infallible>(7)))), Rule::ConsecutiveFailures));
    allocates_nothing(|| assert!(breaker.try_acquire().is_err()));
}

// HAZARD: C10, L3
#[test]
fn a_full_limit_allocates_nothing_to_say_no() {
    let without_queue = limit(1, 0);
    let _held = without_queue.try_acquire().unwrap();
    let mut service = without_queue.layer().layer(Echo);
    allocates_nothing(|| rejects(ask(&mut service), Rule::LimitReached));
    allocates_nothing(|| rejects(now(without_queue.call(ready(Ok::<u64, Infallible>(7)))), Rule::LimitReached));
    allocates_nothing(|| assert!(without_queue.try_acquire().is_err()));

    let with_queue = limit(1, 1);
    let _held = with_queue.try_acquire().unwrap();
    let mut service = with_queue.layer().layer(Echo);
    let mut waits = pin!(service.call(7));
    assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    allocates_nothing(|| rejects(ask(&mut service), Rule::QueueFull));
    allocates_nothing(|| assert!(now(with_queue.acquire()).is_err()));
}

// HAZARD: C10
#[test]
fn waiters_allocate_nothing_once_the_queue_has_grown_to_hold_them() {
    let limit = limit(1, 3);
    let mut service = limit.layer().layer(Echo);
    allocates_nothing(|| {
        let cx = &mut Context::from_waker(Waker::noop());
        let held = limit.try_acquire().unwrap();
        let (mut first, mut second) = (pin!(service.call(1)), pin!(service.call(2)));
        let mut third = pin!(limit.acquire());
        assert!(first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending());
        assert!(third.as_mut().poll(cx).is_pending());
        assert_eq!(limit.waiting(), 3);
        drop(held);
        assert!(matches!(first.poll(cx), Poll::Ready(Ok(1))));
        assert!(matches!(second.poll(cx), Poll::Ready(Ok(2))));
        assert!(matches!(third.poll(cx), Poll::Ready(Ok(_))));
    });
    assert_eq!((limit.waiting(), limit.in_flight()), (0, 0));
}

// HAZARD: T6
#[test]
fn a_deadline_that_is_past_allocates_nothing_to_say_no() {
    let policy = policy();
    let past = Deadline::after(Duration::ZERO);
    allocates_nothing(|| {
        let call = past.scope(policy.call(|| ready(Ok::<u64, Infallible>(7))));
        rejects(now(call), Rule::Deadline);
    });
}

// ---------------------------------------------------------------- HTTP

#[cfg(feature = "http")]
#[test]
fn reading_a_deadline_and_being_ready_to_answer_a_rejection_allocate_nothing() {
    use axum::http::{HeaderName, Request, Response};
    use buttress::http::{ReadDeadlineLayer, RespondLayer};

    let request = || Request::get("/").header("grpc-timeout", "5S").header("x-timeout-ms", "4000").body(()).unwrap();
    let mut requests: Vec<_> = (0..110).map(|_| request()).collect();
    let mut service = tower::ServiceBuilder::new()
        .layer(RespondLayer::new().with(|_, response| response))
        .layer(ReadDeadlineLayer::new().header(HeaderName::from_static("x-timeout-ms")).max(secs(9)))
        .service_fn(|_: Request<()>| {
            assert!(Deadline::current().is_some_and(|deadline| deadline.remaining() <= secs(4)));
            ready(Ok::<_, Infallible>(Response::new(String::new())))
        });
    let runtime = runtime();
    let _context = runtime.enter();
    allocates_nothing(|| {
        let Ok(response) = now(service.call(requests.pop().unwrap()));
        assert_eq!(response.status(), 200);
    });
}

// ---------------------------------------------------------------- at rest

// HAZARD: B6
#[test]
fn ten_million_calls_take_no_memory_in_a_breaker() {
    let over_time = CircuitBreaker::builder().build().unwrap();
    let over_calls = CircuitBreaker::builder().window_calls(1_000).build().unwrap();
    for (breaker, calls) in [(over_time, 10_000_000), (over_calls, 1_000_000)] {
        let call = |number: u32| {
            let failed = number % 16 == 0;
            let outcome = now(breaker.call(ready(if failed { Err(()) } else { Ok(()) })));
            assert_eq!(outcome.is_err(), failed);
        };
        call(0);
        let before = ALLOCATIONS.get();
        (0..calls).for_each(call);
        assert_eq!(ALLOCATIONS.get(), before);
        assert_eq!(breaker.state(), State::Closed);
    }
}
