//! Our layers beside tower's own: what one call costs over the service alone. `cargo bench --bench layers`
//!
//! The inner service answers at once, or is pending once; calls are polled by hand, so that nothing but the layers
//! is measured. Each group is one row of the README's table.

#![allow(missing_docs, reason = "criterion's macros make items of their own")]

use std::{
    future::{Future, Ready, ready},
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use buttress::{
    Backoff, CircuitBreaker, ConcurrencyLimit, Keyed, Policy, PolicyBuilder, Retry, Shutdown, Timeout,
    circuit_breaker::State,
};
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tower::{
    BoxError, Layer, Service, ServiceBuilder,
    retry::budget::{Budget, TpsBudget},
};

const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(500);

/// Answers at once.
#[derive(Clone, Copy)]
struct AtOnce;

impl Service<u64> for AtOnce {
    type Response = u64;
    type Error = BoxError;
    type Future = Ready<Result<u64, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, req: u64) -> Self::Future {
        ready(Ok(black_box(req)))
    }
}

/// Is pending once.
#[derive(Clone, Copy)]
struct PendingOnce;

struct OncePending {
    answer: u64,
    polled: bool,
}

impl Service<u64> for PendingOnce {
    type Response = u64;
    type Error = BoxError;
    type Future = OncePending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, req: u64) -> OncePending {
        OncePending { answer: black_box(req), polled: false }
    }
}

impl Future for OncePending {
    type Output = Result<u64, BoxError>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if std::mem::replace(&mut self.polled, true) { Poll::Ready(Ok(self.answer)) } else { Poll::Pending }
    }
}

/// tower's retry wants a policy of the user's: retries errors while its budget lasts.
#[derive(Clone)]
struct TowerRetry(std::sync::Arc<TpsBudget>);

impl<T, E> tower::retry::Policy<u64, T, E> for TowerRetry {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut u64, result: &mut Result<T, E>) -> Option<Self::Future> {
        match result {
            Ok(_) => {
                self.0.deposit();
                None
            }
            Err(_) => self.0.withdraw().then(|| ready(())),
        }
    }

    fn clone_request(&mut self, req: &u64) -> Option<u64> {
        Some(*req)
    }
}

fn tower_retry() -> TowerRetry {
    TowerRetry(std::sync::Arc::new(TpsBudget::default()))
}

/// A service whose calls are tracked as one would by hand.
struct Tracked<S> {
    inner: S,
    tracker: TaskTracker,
}

struct TrackedFuture<F> {
    inner: F,
    _token: TaskTrackerToken,
}

impl<S: Service<u64, Future: Unpin>> Service<u64> for Tracked<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = TrackedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: u64) -> Self::Future {
        let token = self.tracker.token();
        TrackedFuture { inner: self.inner.call(req), _token: token }
    }
}

impl<F: Future + Unpin> Future for TrackedFuture<F> {
    type Output = F::Output;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

/// One call, polled until it is answered.
#[inline(never)]
fn one<S: Service<u64>>(service: &mut S, req: u64) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut call = pin!(service.call(req));
    loop {
        if let Poll::Ready(outcome) = call.as_mut().poll(&mut cx) {
            return outcome.is_ok();
        }
    }
}

fn bench<S: Service<u64>>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, mut service: S, answers: bool) {
    group.bench_function(name, |b| {
        b.iter(|| assert_eq!(one(&mut service, black_box(7)), answers));
    });
}

fn settings() -> PolicyBuilder<buttress::Cloned> {
    Policy::cloned("bench")
        .deadline(LONG)
        .retry(Retry::exponential(SHORT))
        .circuit_breaker(CircuitBreaker::builder())
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(64))
        .timeout(SHORT)
}

fn policy() -> Policy<buttress::Cloned> {
    settings().build().unwrap()
}

fn limit(calls: usize) -> ConcurrencyLimit {
    ConcurrencyLimit::builder().max_in_flight(calls).max_queue(0).build().unwrap()
}

fn towers<S: Service<u64, Response = u64, Error = BoxError> + Clone>(
    inner: S,
) -> impl Service<u64, Response = u64, Error = BoxError> {
    ServiceBuilder::new().retry(tower_retry()).concurrency_limit(64).timeout(SHORT).service(inner)
}

fn layers(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _in_runtime = runtime.enter();

    let mut group = c.benchmark_group("service alone");
    bench(&mut group, "ready at once", AtOnce, true);
    bench(&mut group, "pending once", PendingOnce, true);
    group.finish();

    let mut group = c.benchmark_group("timeout");
    bench(&mut group, "ours", Timeout::new(SHORT).layer().layer(AtOnce), true);
    bench(&mut group, "tower", tower::timeout::Timeout::new(AtOnce, SHORT), true);
    bench(&mut group, "ours, pending once", Timeout::new(SHORT).layer().layer(PendingOnce), true);
    bench(&mut group, "tower, pending once", tower::timeout::Timeout::new(PendingOnce, SHORT), true);
    group.finish();

    let mut group = c.benchmark_group("concurrency limit");
    bench(&mut group, "ours", limit(64).layer().layer(AtOnce), true);
    bench(&mut group, "tower", tower::limit::ConcurrencyLimit::new(AtOnce, 64), true);
    group.finish();

    let mut group = c.benchmark_group("retry with a budget");
    let retry = Retry::exponential(SHORT).build().unwrap();
    bench(&mut group, "ours", retry.layer().layer(AtOnce), true);
    bench(&mut group, "tower", tower::retry::Retry::new(tower_retry(), AtOnce), true);
    group.finish();

    // tower has none.
    let mut group = c.benchmark_group("circuit breaker");
    let breaker = CircuitBreaker::builder().build().unwrap();
    bench(&mut group, "ours, 10 s window", breaker.layer().layer(AtOnce), true);
    let counting = CircuitBreaker::builder().window_calls(100).build().unwrap();
    bench(&mut group, "ours, last 100 calls", counting.layer().layer(AtOnce), true);
    let hour = Duration::from_secs(3_600);
    let open = CircuitBreaker::builder()
        .consecutive_failures(1)
        .open_time(Backoff::constant(hour).max_delay(hour))
        .build()
        .unwrap();
    let _ = runtime.block_on(open.call(async { Err::<(), ()>(()) }));
    assert_eq!(open.state(), State::Open);
    let refusing = ServiceBuilder::new()
        .layer(open.layer())
        .service(tower::service_fn(|n: u64| ready(Ok::<_, buttress::Error<()>>(n))));
    bench(&mut group, "ours, refusing", refusing, false);
    group.finish();

    let mut group = c.benchmark_group("limit full");
    let full = limit(1);
    let _held = full.try_acquire().unwrap();
    let shedding = ServiceBuilder::new()
        .layer(full.layer())
        .service(tower::service_fn(|n: u64| ready(Ok::<_, buttress::Error<()>>(n))));
    bench(&mut group, "ours, shedding", shedding, false);
    let tower_full = tower::limit::ConcurrencyLimit::new(AtOnce, 1);
    let mut holder = tower_full.clone();
    assert!(holder.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready());
    bench(&mut group, "tower, shedding", tower::load_shed::LoadShed::new(tower_full), false);
    group.finish();

    // Counting calls, so that a shutdown can wait for them. tower has none; tokio-util's tracker is what one would take.
    let mut group = c.benchmark_group("in flight");
    let shutdown = runtime.block_on(async { Shutdown::builder().build() }).unwrap();
    bench(&mut group, "ours", shutdown.handle().layer().layer(AtOnce), true);
    bench(&mut group, "tokio-util's TaskTracker", Tracked { inner: AtOnce, tracker: TaskTracker::new() }, true);
    group.finish();

    // The handle of a key that is kept: what it costs on top of the handle's own layer.
    let mut group = c.benchmark_group("keyed");
    let breakers = Keyed::each(CircuitBreaker::builder()).build().unwrap();
    (0..1_000).for_each(|key: u64| drop(breakers.get(&key)));
    bench(&mut group, "ours, circuit breaker of 1000", breakers.layer(|key: &u64| *key).layer(AtOnce), true);
    let policies = Keyed::each(settings()).build().unwrap();
    (0..1_000).for_each(|key: u64| drop(policies.get(&key)));
    bench(&mut group, "ours, all five of 1000", policies.layer(|key: &u64| *key).layer(AtOnce), true);
    group.finish();

    let mut group = c.benchmark_group("whole policy");
    bench(&mut group, "ours, all five", policy().layer().layer(AtOnce), true);
    bench(&mut group, "tower's three", towers(AtOnce), true);
    bench(&mut group, "ours, all five, pending once", policy().layer().layer(PendingOnce), true);
    bench(&mut group, "tower's three, pending once", towers(PendingOnce), true);
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = layers
}
criterion_main!(benches);
