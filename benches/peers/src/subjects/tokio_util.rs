//! tokio-util.

use ::tokio_util::task::TaskTracker;
use tower::{BoxError, service_fn};

use crate::inner::{Client, Inner};

pub fn in_flight(inner: impl Inner<BoxError>) -> impl Client {
    let tracker = TaskTracker::new();
    service_fn(move |req| {
        let mut inner = inner;
        tracker.track_future(inner.call(req))
    })
}
