//! buttress.

use std::convert::Infallible;

use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, Cloned, ConcurrencyLimit, Error, Hedge, Partition, Policy, Retry,
    Shutdown, Throttle, Timeout, circuit_breaker::State, concurrency_limit::Headroom, partition::PartitionLayer,
};
use tower::{BoxError, Layer};

use super::{AMPLE, CALLS, LONG, SCARCE, SHORT};
use crate::inner::{Client, Inner};

pub fn bare(inner: impl Inner<BoxError>) -> impl Client {
    inner
}

pub fn timeout(inner: impl Inner<BoxError>) -> impl Client {
    Timeout::new(SHORT).layer().layer(inner)
}

pub fn limit(inner: impl Inner<BoxError>) -> impl Client {
    ConcurrencyLimit::builder().max_in_flight(AMPLE).build().unwrap().layer().layer(inner)
}

/// Behind the layer that says whose share it is.
pub fn shared_limit(inner: impl Inner<BoxError>) -> impl Client {
    const PARTITION: Partition = Partition::new("peers");
    let limit = ConcurrencyLimit::builder().max_in_flight(AMPLE).partition(PARTITION, 0.5).build().unwrap();
    PartitionLayer::new(|_: &u64| PARTITION).layer(limit.layer().layer(inner))
}

/// So that nobody waits, and with a limit that learns from each call all the same.
pub fn adaptive(inner: impl Inner<BoxError>) -> impl Client {
    let limit = ConcurrencyLimit::builder().adaptive(Headroom::default()).min_in_flight(AMPLE as f64);
    limit.max_in_flight(AMPLE).build().unwrap().layer().layer(inner)
}

pub fn hedge(inner: impl Inner<BoxError>) -> impl Client {
    Hedge::percentile(0.95).min_delay(SHORT).build().unwrap().layer().layer(inner)
}

pub fn throttle(inner: impl Inner<BoxError>) -> impl Client {
    Throttle::google().build().unwrap().layer().layer(inner)
}

pub fn full(inner: impl Inner<Error<Infallible>>) -> impl Client {
    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
    std::mem::forget(limit.try_acquire().unwrap());
    limit.layer().layer(inner)
}

pub fn saturated(inner: impl Inner<BoxError>) -> impl Client {
    ConcurrencyLimit::builder().max_in_flight(SCARCE).max_queue(1_000).build().unwrap().layer().layer(inner)
}

pub fn retry(inner: impl Inner<BoxError>) -> impl Client {
    Retry::exponential(SHORT).build().unwrap().layer().layer(inner)
}

pub fn breaker(inner: impl Inner<BoxError>) -> impl Client {
    breaker_of(CircuitBreaker::builder(), inner)
}

pub fn breaker_of_calls(inner: impl Inner<BoxError>) -> impl Client {
    breaker_of(CircuitBreaker::builder().window_calls(CALLS), inner)
}

pub fn breaker_of(settings: CircuitBreakerBuilder, inner: impl Inner<BoxError>) -> impl Client {
    settings.build().unwrap().layer().layer(inner)
}

pub fn open(inner: impl Inner<Error<Infallible>>) -> impl Client {
    let hour = std::time::Duration::from_secs(3_600);
    let breaker = CircuitBreaker::builder()
        .consecutive_failures(1)
        .open_time(Backoff::constant(hour).max_delay(hour))
        .build()
        .unwrap();
    let failed = tower::util::Oneshot::new(
        breaker.layer().layer(tower::service_fn(|()| std::future::ready(Err::<(), BoxError>("failed".into())))),
        (),
    );
    assert!(futures_util::FutureExt::now_or_never(failed).unwrap().is_err());
    assert_eq!(breaker.state(), State::Open);
    breaker.layer().layer(inner)
}

pub fn policy(inner: impl Inner<BoxError>) -> impl Client {
    policy_of(AMPLE, inner)
}

/// So many calls at once.
pub fn policy_of(limit: usize, inner: impl Inner<BoxError>) -> impl Client {
    let policy: Policy<Cloned> = Policy::cloned("bench")
        .deadline(LONG)
        .retry(Retry::exponential(SHORT))
        .circuit_breaker(CircuitBreaker::builder())
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(limit))
        .timeout(SHORT)
        .build()
        .unwrap();
    policy.layer().layer(inner)
}

pub fn in_flight(inner: impl Inner<BoxError>) -> impl Client {
    let shutdown = Shutdown::builder().build().unwrap();
    let handle = shutdown.handle();
    std::mem::forget(shutdown);
    handle.layer().layer(inner)
}
