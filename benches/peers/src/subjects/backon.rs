//! backon.

use ::backon::{ExponentialBuilder, Retryable};
use tower::{BoxError, service_fn};

use super::SHORT;
use crate::inner::{Client, Inner};

pub fn retry(inner: impl Inner<BoxError>) -> impl Client {
    let backoff = ExponentialBuilder::new().with_min_delay(SHORT).with_max_times(2).with_jitter();
    service_fn(move |req| {
        let mut inner = inner;
        (move || inner.call(req)).retry(backoff)
    })
}
