//! Servers: from headers into the deadline.

use std::{
    future::Future,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderName};
use tower::{Layer, Service};

use super::{GRPC_TIMEOUT, HasHeaders, parse_grpc, parse_millis, shortest};
#[cfg(doc)]
use crate::Reason;
use crate::{Deadline, DeadlineLayer, DeadlineService, Reject, call::send};

/// For servers: how long the caller waits, as its headers say, becomes the [`Deadline`] of the call.
///
/// Read are `grpc-timeout`, and a [header in milliseconds](Self::header) if you name one. The shortest time that any of
/// them says counts, from when the request comes to this layer. Values that cannot be read count as if they were not there.
/// Zero is a time that is past.
///
/// Everything inside sees the deadline as [`Deadline::current`], and policies inside never wait past it. It is enforced: a
/// call that is still running then is dropped, and one whose time is past is answered without being run, both with
/// [`DeadlineExceeded`](Reason::DeadlineExceeded). From an axum `Router` that is a 504. By itself it ends with
/// the head of the response; a policy inside that holds [until the body](crate::http::UntilBody), such as
/// [`Policy::http_server`](crate::Policy::http_server), takes it on into the body, and cuts that off.
///
/// The caller decides how short the time is. At the edge of a system set [`max`](Self::max), so that it does not also
/// decide how long, and [`default`](Self::default), as most callers say nothing. Without them a request without
/// headers has no deadline of this layer's. Nothing here can fail, so there is no `build()`: a `max` of zero answers
/// everything without running it, if it says so on purpose.
///
/// For a deadline that needs no header use [`DeadlineLayer`]; under it, or in any scope, the earlier one counts. It
/// goes outside of policies; only [`RespondLayer`](crate::http::RespondLayer) goes outside of it.
///
/// ```
/// use axum::{Router, routing::get};
/// use buttress::{Deadline, http::ReadDeadlineLayer};
/// use http::HeaderName;
/// use std::time::Duration;
///
/// let app: Router = Router::new().route("/", get(async || format!("{:?}", Deadline::current()))).layer(
///     ReadDeadlineLayer::new()
///         .header(HeaderName::from_static("x-envoy-expected-rq-timeout-ms"))
///         .max(Duration::from_secs(30))
///         .default(Duration::from_secs(10)),
/// );
/// # let _ = app;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ReadDeadlineLayer {
    guard: DeadlineLayer,
    read: Read,
}

/// What to make of headers.
#[derive(Clone, Debug)]
struct Read {
    millis: Option<HeaderName>,
    max: Duration,
    default: Option<Duration>,
}

impl Read {
    fn time(&self, headers: &HeaderMap) -> Option<Duration> {
        let grpc = shortest(headers, &GRPC_TIMEOUT, parse_grpc);
        let millis = self.millis.as_ref().and_then(|name| shortest(headers, name, parse_millis));
        let told = grpc.into_iter().chain(millis).min();
        told.or(self.default).map(|time| time.min(self.max))
    }
}

impl ReadDeadlineLayer {
    /// Reads `grpc-timeout`; no longest time, no default. The name in rejections and logs is `deadline`.
    #[allow(clippy::new_without_default)] // `default` is a setting
    pub fn new() -> Self {
        let read = Read { millis: None, max: Duration::MAX, default: None };
        Self { guard: DeadlineLayer::inherited(), read }
    }

    /// Reads this header too: whole milliseconds, in digits. Envoy, for one, tells a service how long it waits for it in
    /// `x-envoy-expected-rq-timeout-ms`.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.read.millis = Some(name);
        self
    }

    /// The longest time that a call gets, whatever it asks for. Default: none.
    pub fn max(mut self, time: Duration) -> Self {
        self.read.max = time;
        self
    }

    /// The time for a call that says nothing that can be read; [`max`](Self::max) holds for it too. Default: none, so
    /// that such a call has no deadline of this layer's.
    pub fn default(mut self, time: Duration) -> Self {
        self.read.default = Some(time);
        self
    }

    /// The name that rejections and logs carry.
    pub fn name(mut self, name: &'static str) -> Self {
        self.guard = self.guard.name(name);
        self
    }
}

impl<S> Layer<S> for ReadDeadlineLayer {
    type Service = ReadDeadlineService<S>;

    fn layer(&self, inner: S) -> ReadDeadlineService<S> {
        ReadDeadlineService { inner: self.guard.layer(inner), read: self.read.clone() }
    }
}

/// The service of [`ReadDeadlineLayer`].
///
/// ```
/// # use buttress::http::{ReadDeadlineLayer, ReadDeadlineService};
/// # use tower::Layer;
/// # #[derive(Clone)] struct Server;
/// fn bounded(server: Server) -> ReadDeadlineService<Server> {
///     ReadDeadlineLayer::new().layer(server)
/// }
/// # let _ = bounded;
/// ```
#[derive(Clone, Debug)]
pub struct ReadDeadlineService<S> {
    inner: DeadlineService<S>,
    read: Read,
}

impl<S> ReadDeadlineService<S> {
    /// The service below.
    pub fn get_ref(&self) -> &S {
        self.inner.get_ref()
    }

    /// Sends one request through a clone of this service: waits until it is ready, then calls it.
    ///
    /// Cancel safe if the call is: dropped before the service is ready, the request is not sent.
    ///
    /// # Errors
    /// The service's error, which is also where a rejection shows up.
    pub fn send<Req>(&self, req: Req) -> impl Future<Output = Result<S::Response, S::Error>> + use<S, Req>
    where
        Req: HasHeaders,
        S: Service<Req> + Clone,
        S::Error: Reject<S::Response>,
    {
        send(self.clone(), req)
    }
}

impl<S, Req> Service<Req> for ReadDeadlineService<S>
where
    Req: HasHeaders,
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = <DeadlineService<S> as Service<Req>>::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        match self.read.time(req.headers()) {
            // The call keeps the deadline that it was made under, wherever it is polled.
            Some(time) => Deadline::after(time).enter(|| self.inner.call(req)),
            None => self.inner.call(req),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn no_headers_give_more_than_the_max_or_less_than_the_shortest(
            grpc in vec("[0-9]{0,9}[HMSmunx]?", 0..3),
            millis in vec("[0-9]{0,22}", 0..3),
            max in 0..100_000_u64,
        ) {
            let name = HeaderName::from_static("x-timeout-ms");
            let mut headers = HeaderMap::new();
            for value in &grpc {
                headers.append(&GRPC_TIMEOUT, value.parse().unwrap());
            }
            for value in &millis {
                headers.append(&name, value.parse().unwrap());
            }
            let max = Duration::from_millis(max);
            let read = Read { millis: Some(name), max, default: None };
            let said = grpc.iter().filter_map(|value| parse_grpc(value.as_bytes()));
            let said: Vec<_> = said.chain(millis.iter().filter_map(|value| parse_millis(value.as_bytes()))).collect();
            prop_assert_eq!(read.time(&headers), said.into_iter().min().map(|time| time.min(max)));
        }
    }
}
