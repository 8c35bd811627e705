//! governor.

use std::{num::NonZeroU32, sync::Arc};

use ::governor::{Quota, RateLimiter};
use tower::service_fn;

use crate::inner::{Client, Inner};

pub fn rate(inner: impl Inner<()>) -> impl Client {
    // A call per nanosecond is more than anything here makes.
    let quota = Quota::per_second(NonZeroU32::new(1_000_000_000).unwrap());
    let limiter = Arc::new(RateLimiter::direct(quota));
    service_fn(move |req| {
        let (mut inner, allowed) = (inner, limiter.check().is_ok());
        async move { if allowed { inner.call(req).await } else { Err(()) } }
    })
}
