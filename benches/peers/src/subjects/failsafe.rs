//! failsafe.

use ::failsafe::{
    Config, FailurePolicy, StateMachine, backoff,
    failure_policy::{consecutive_failures, success_rate_over_time_window},
    futures::CircuitBreaker,
};
use tower::{BoxError, service_fn};

use super::{HOUR, MIN_CALLS, WINDOW};
use crate::inner::{Client, Inner};

pub fn in_a_row(inner: impl Inner<BoxError>) -> impl Client {
    guarded(inner, closed(consecutive_failures(5, backoff::constant(HOUR))))
}

pub fn average(inner: impl Inner<BoxError>) -> impl Client {
    guarded(inner, closed(success_rate_over_time_window(0.5, MIN_CALLS as u32, WINDOW, backoff::constant(HOUR))))
}

pub fn open(inner: impl Inner<BoxError>) -> impl Client {
    let breaker = closed(consecutive_failures(1, backoff::constant(HOUR)));
    breaker.on_error();
    assert!(!breaker.is_call_permitted());
    guarded(inner, breaker)
}

fn closed<P: FailurePolicy>(policy: P) -> StateMachine<P, ()> {
    Config::new().failure_policy(policy).build()
}

fn guarded<P: FailurePolicy + Send + Sync + 'static>(
    inner: impl Inner<BoxError>,
    breaker: StateMachine<P, ()>,
) -> impl Client {
    service_fn(move |req| {
        let mut inner = inner;
        CircuitBreaker::call(&breaker, inner.call(req))
    })
}
