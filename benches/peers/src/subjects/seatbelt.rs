//! seatbelt, in both ways of using it: as tower services, which box every layer's future, and as services of its own
//! kind, which do not.

use std::sync::Arc;

use ::seatbelt::{
    RecoveryInfo, ResilienceContext,
    breaker::{Breaker, BreakerLayer},
    retry::{Retry, RetryLayer},
    timeout::{Timeout, TimeoutLayer},
};
use layered::Execute;
use tick::Clock;
use tokio::runtime::Handle;
use tower::{Layer, service_fn};

use super::{HOUR, MIN_CALLS, SHORT, WINDOW};
use crate::inner::{Client, Inner};

/// What the user of the library is to make of its refusals.
pub enum Error {
    TimedOut,
    Open,
}

type Answer = Result<u64, Error>;

pub fn timeout(inner: impl Inner<Error>) -> impl Client {
    timeouts(&context()).layer(inner)
}

pub fn timeout_layered(inner: impl Inner<Error>) -> impl Client {
    client(timeouts(&context()).layer(operation(inner)))
}

pub fn retry(inner: impl Inner<Error>) -> impl Client {
    retries(&context()).layer(inner)
}

pub fn retry_layered(inner: impl Inner<Error>) -> impl Client {
    client(retries(&context()).layer(operation(inner)))
}

pub fn breaker(inner: impl Inner<Error>) -> impl Client {
    breakers(&context()).layer(inner)
}

pub fn breaker_layered(inner: impl Inner<Error>) -> impl Client {
    client(breakers(&context()).layer(operation(inner)))
}

pub fn open(inner: impl Inner<Error>) -> impl Client {
    opened(breakers_to_open().layer(inner))
}

pub fn open_layered(inner: impl Inner<Error>) -> impl Client {
    opened(client(breakers_to_open().layer(operation(inner))))
}

pub fn policy(inner: impl Inner<Error>) -> impl Client {
    let context = context();
    retries(&context).layer(breakers(&context).layer(timeouts(&context).layer(inner)))
}

pub fn policy_layered(inner: impl Inner<Error>) -> impl Client {
    let context = context();
    client(retries(&context).layer(breakers(&context).layer(timeouts(&context).layer(operation(inner)))))
}

/// Its clock's task is not run: as all timers here that do not fire, those of tokio in calls by hand too.
fn context() -> ResilienceContext<u64, Answer> {
    ResilienceContext::new(Clock::new_tokio())
}

fn timeouts(context: &ResilienceContext<u64, Answer>) -> TimeoutLayer<u64, Answer> {
    Timeout::layer("timeout", context).timeout_error(|_| Error::TimedOut).timeout(SHORT)
}

fn retries(context: &ResilienceContext<u64, Answer>) -> RetryLayer<u64, Answer> {
    let retry = Retry::layer("retry", context).clone_input().recovery_with(|answer, _| recovery(answer));
    retry.max_retry_attempts(2).base_delay(SHORT)
}

fn breakers(context: &ResilienceContext<u64, Answer>) -> BreakerLayer<u64, Answer> {
    let breaker = Breaker::layer("breaker", context)
        .recovery_with(|answer, _| recovery(answer))
        .rejected_input_error(|_, _| Error::Open);
    breaker.failure_threshold(0.5).min_throughput(MIN_CALLS as u32).sampling_duration(WINDOW)
}

/// Opens for an hour with its first call, which it takes for a failure.
fn breakers_to_open() -> BreakerLayer<u64, Answer> {
    let breaker = breakers(&context()).recovery_with(|_, _| RecoveryInfo::retry());
    breaker.min_throughput(1).break_duration(HOUR)
}

fn opened<C: Client>(mut client: C) -> C {
    for ends_well in [true, false] {
        assert_eq!(Handle::current().block_on(client.call(1)).is_ok(), ends_well);
    }
    client
}

fn recovery(answer: &Answer) -> RecoveryInfo {
    if answer.is_ok() { RecoveryInfo::never() } else { RecoveryInfo::retry() }
}

fn operation(inner: impl Inner<Error>) -> impl layered::Service<u64, Out = Answer> + 'static {
    Execute::new(move |req| {
        let mut inner = inner;
        inner.call(req)
    })
}

/// One count of references for a call, as a caller has it that does not borrow.
fn client(service: impl layered::Service<u64, Out = Answer> + 'static) -> impl Client {
    let service = Arc::new(service);
    service_fn(move |req| {
        let service = service.clone();
        async move { service.execute(req).await }
    })
}
