//! tower-resilience.

use std::time::Duration;

use ::tower_resilience::{
    adaptive::{AdaptiveLimiterLayer, Aimd},
    bulkhead::BulkheadLayer,
    circuitbreaker::{CircuitBreakerConfigBuilder, CircuitBreakerLayer, DefaultClassifier, SlidingWindowType},
    ratelimiter::RateLimiterLayer,
    retry::{ExponentialRandomBackoff, RetryBudgetBuilder, RetryLayer},
    timelimiter::TimeLimiterLayer,
};
use futures_util::FutureExt;
use tower::{BoxError, Layer, Service, ServiceBuilder, service_fn};

use super::{AMPLE, CALLS, HOUR, LONG, MIN_CALLS, SCARCE, SHORT, WINDOW};
use crate::inner::{Client, Inner};

pub fn timeout(inner: impl Inner<BoxError>) -> impl Client {
    time_limiter(SHORT).layer(inner)
}

pub fn limit(inner: impl Inner<BoxError>) -> impl Client {
    bulkhead(AMPLE).layer(inner)
}

pub fn full(inner: impl Inner<BoxError>) -> impl Client {
    let (layer, handle) =
        BulkheadLayer::builder().max_concurrent_calls(1).reject_when_full().build_with_handle().unwrap();
    // A call that never ends has the permit.
    let mut parked = layer.layer(service_fn(|()| std::future::pending::<Result<(), BoxError>>()));
    let mut call = parked.call(());
    assert!((&mut call).now_or_never().is_none());
    assert_eq!(handle.available_permits(), 0);
    std::mem::forget(call);
    layer.layer(inner)
}

pub fn saturated(inner: impl Inner<BoxError>) -> impl Client {
    bulkhead(SCARCE).layer(inner)
}

pub fn retry(inner: impl Inner<BoxError>) -> impl Client {
    retries().layer(inner)
}

/// Counts since it closed: it does not slide, whatever it is called.
pub fn breaker_of_calls(inner: impl Inner<BoxError>) -> impl Client {
    breaker().sliding_window_size(CALLS).build().unwrap().layer(inner)
}

/// Remembers every call of the window, and goes through all of them in each.
pub fn breaker_of_time(inner: impl Inner<BoxError>) -> impl Client {
    breaker_of_time_at(0.5, inner)
}

/// Opens at this rate.
pub fn breaker_of_time_at(rate: f64, inner: impl Inner<BoxError>) -> impl Client {
    let window = SlidingWindowType::TimeBased;
    breaker()
        .failure_rate_threshold(rate)
        .sliding_window_type(window)
        .sliding_window_duration(WINDOW)
        .build()
        .unwrap()
        .layer(inner)
}

pub fn adaptive(inner: impl Inner<BoxError>) -> impl Client {
    let aimd = Aimd::builder().initial_limit(AMPLE).min_limit(AMPLE).max_limit(AMPLE).build().unwrap();
    AdaptiveLimiterLayer::new(aimd).layer(inner)
}

pub fn open(inner: impl Inner<BoxError>) -> impl Client {
    let (layer, handle) = breaker().wait_duration_in_open(HOUR).build_with_handle().unwrap();
    handle.force_open().now_or_never().unwrap();
    assert!(handle.is_open());
    layer.layer(inner)
}

pub fn policy(inner: impl Inner<BoxError>) -> impl Client {
    ServiceBuilder::new()
        .layer(time_limiter(LONG))
        .layer(retries())
        .layer(breaker().sliding_window_size(CALLS).build().unwrap())
        .layer(bulkhead(AMPLE))
        .layer(time_limiter(SHORT))
        .service(inner)
}

pub fn rate(inner: impl Inner<BoxError>) -> impl Client {
    RateLimiterLayer::builder().limit_for_period(usize::MAX).build().unwrap().layer(inner)
}

fn time_limiter(timeout: Duration) -> TimeLimiterLayer {
    TimeLimiterLayer::builder().timeout_duration(timeout).build()
}

fn bulkhead(calls: usize) -> BulkheadLayer {
    BulkheadLayer::builder().max_concurrent_calls(calls).build().unwrap()
}

fn breaker() -> CircuitBreakerConfigBuilder<DefaultClassifier> {
    CircuitBreakerLayer::builder().failure_rate_threshold(0.5).minimum_number_of_calls(MIN_CALLS)
}

fn retries<E>() -> RetryLayer<u64, u64, E> {
    let budget = RetryBudgetBuilder::new().token_bucket().build().unwrap();
    RetryLayer::builder().backoff(ExponentialRandomBackoff::new(SHORT, 0.5).unwrap()).budget(budget).build()
}
