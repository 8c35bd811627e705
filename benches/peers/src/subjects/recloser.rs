//! recloser.

use ::recloser::{AsyncRecloser, Recloser};
use tower::{BoxError, service_fn};

use super::{CALLS, HOUR};
use crate::inner::{Client, Inner};

pub fn breaker(inner: impl Inner<BoxError>) -> impl Client {
    breaker_of(CALLS, 0.5, inner)
}

/// Over so many calls, and opens at this rate.
pub fn breaker_of(calls: usize, rate: f32, inner: impl Inner<BoxError>) -> impl Client {
    guarded(inner, Recloser::custom().error_rate(rate).closed_len(calls).build())
}

pub fn open(inner: impl Inner<BoxError>) -> impl Client {
    let breaker = Recloser::custom().error_rate(0.5).closed_len(1).open_wait(HOUR).build();
    // It judges with the first call after its window is full.
    for _ in 0..2 {
        assert!(breaker.call(|| Err::<(), ()>(())).is_err());
    }
    assert!(breaker.call(|| Ok::<(), ()>(())).is_err());
    guarded(inner, breaker)
}

fn guarded(inner: impl Inner<BoxError>, breaker: Recloser) -> impl Client {
    let breaker = AsyncRecloser::from(breaker);
    service_fn(move |req| {
        let mut inner = inner;
        breaker.call(inner.call(req))
    })
}
