//! What a gRPC status means, wherever it is said.

use std::{error::Error, time::Duration};

use http::{HeaderMap, Response, StatusCode};

use super::{Trailers, UntilBody, unsent::failed};
use crate::{Classify, Kind, Verdict, retry::Once};

/// What [`Policy::grpc`](crate::Policy::grpc) makes: judges by [`ByGrpcStatus`], and by the status in the trailers when the
/// body ends; gives the permit back with the headers, as a stream may last for days; sends each request once, as all of
/// gRPC is POST, and its bodies are streams. `policy.call_as(|| client.clone().get(request.clone()))` repeats, as does a
/// [strategy](crate::PolicyBuilder::repeat) of yours.
pub type Grpc = Kind<ByGrpcStatus, Once, UntilBody<ByGrpcTrailers>>;

/// Judges by the `grpc-status`, in the headers (of an answer that is nothing but trailers) or of a `tonic::Status`.
///
/// | status | verdict | because |
/// | --- | --- | --- |
/// | OK | success | |
/// | UNAVAILABLE | transient | what gRPC itself retries |
/// | RESOURCE_EXHAUSTED | throttled, and not retried unless the server says when | a quota does not come back in milliseconds; [`retry_throttled`](crate::RetryBuilder::retry_throttled) tries all the same |
/// | DEADLINE_EXCEEDED | failed | the deadline spans all attempts: there is no time for another |
/// | UNKNOWN, INTERNAL, DATA_LOSS | failed | broken, and perhaps half done |
/// | CANCELLED | ignored | somebody on this side gave up |
/// | ABORTED | permanent | to be tried again from the start of the transaction, which only the caller knows |
/// | all others | permanent | the request is at fault, the service is alive |
///
/// `grpc-retry-pushback-ms` is the server's hint, and never undercut; below zero, or unreadable, it means not to try again.
/// An answer that is no gRPC at all counts by its HTTP status, as gRPC maps it: 429, 502, 503 and 504 as UNAVAILABLE. An
/// error instead of an answer is transient, or [unsent](Verdict::Unsent) if it never reached the server.
///
/// ```
/// use buttress::{Classify, Verdict, http::ByGrpcStatus};
/// use std::convert::Infallible;
/// let down = http::Response::builder().header("grpc-status", "14").body(())?;
/// assert_eq!(ByGrpcStatus.classify(Ok::<_, &Infallible>(&down)), Verdict::TRANSIENT);
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByGrpcStatus;

impl<B, E: Error + 'static> Classify<Response<B>, E> for ByGrpcStatus {
    const RETRIES_THROTTLED: bool = false;

    fn classify(&self, outcome: Result<&Response<B>, &E>) -> Verdict {
        outcome.map_or_else(|error| failed(error, true), |res| by_headers(res.status(), res.headers()))
    }
}

/// Over [`BoxError`](tower::BoxError).
impl<B> Classify<Response<B>, dyn Error + Send + Sync> for ByGrpcStatus {
    const RETRIES_THROTTLED: bool = false;

    fn classify(&self, outcome: Result<&Response<B>, &(dyn Error + Send + Sync + 'static)>) -> Verdict {
        outcome.map_or_else(|error| failed(error, true), |res| by_headers(res.status(), res.headers()))
    }
}

fn by_headers(http: StatusCode, headers: &HeaderMap) -> Verdict {
    let code = match status(headers) {
        Some(code) => code,
        // The status comes with the trailers.
        None if http == StatusCode::OK => return Verdict::Success,
        None => of_http(http),
    };
    judge(code, pushback(headers))
}

pub(super) const STATUS: &str = "grpc-status";
pub(super) const PUSHBACK: &str = "grpc-retry-pushback-ms";

const OK: i32 = 0;
const UNKNOWN: i32 = 2;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;

/// As gRPC's `http-grpc-status-mapping` has it.
fn of_http(http: StatusCode) -> i32 {
    match http.as_u16() {
        400 => INTERNAL,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// What the server says about trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushback {
    Nothing,
    After(Duration),
    /// Below zero, or unreadable.
    Never,
}

pub(super) fn judge(code: i32, pushback: Pushback) -> Verdict {
    match (code, pushback) {
        (OK, _) => Verdict::Success,
        (1, _) => Verdict::Ignored,
        (3 | 5 | 6 | 7 | 9 | 10 | 11 | 12 | 16, _) => Verdict::Permanent,
        (8, Pushback::Nothing) => Verdict::THROTTLED,
        // Longer than anybody waits.
        (8, Pushback::Never) => Verdict::Throttled { retry_after: Some(Duration::MAX) },
        (8, Pushback::After(time)) => Verdict::Throttled { retry_after: Some(time) },
        (UNAVAILABLE, Pushback::Nothing) => Verdict::TRANSIENT,
        (UNAVAILABLE, Pushback::After(time)) => Verdict::Transient { retry_after: Some(time) },
        _ => Verdict::Failed,
    }
}

/// The `grpc-status`; one that cannot be read is UNKNOWN.
fn status(headers: &HeaderMap) -> Option<i32> {
    let value = headers.get(STATUS)?;
    Some(value.to_str().ok().and_then(|value| value.parse().ok()).unwrap_or(UNKNOWN))
}

fn pushback(headers: &HeaderMap) -> Pushback {
    headers.get(PUSHBACK).map_or(Pushback::Nothing, |value| read_pushback(value.as_bytes()))
}

pub(super) fn read_pushback(value: &[u8]) -> Pushback {
    let ms = std::str::from_utf8(value).ok().and_then(|value| value.parse::<i32>().ok());
    match ms.map(u64::try_from) {
        Some(Ok(ms)) => Pushback::After(Duration::from_millis(ms)),
        _ => Pushback::Never,
    }
}

/// What the trailers of a gRPC response say. One without a status was broken off.
///
/// ```
/// use buttress::{CircuitBreaker, Policy, http::{ByGrpcStatus, ByGrpcTrailers, UntilBody}};
/// # fn main() -> Result<(), buttress::ConfigError> {
/// // What `Policy::grpc` does, for requests of your own kind.
/// let policy = Policy::plain("routes")
///     .circuit_breaker(CircuitBreaker::builder())
///     .classify(ByGrpcStatus)
///     .hold(UntilBody::<ByGrpcTrailers>::default())
///     .build()?;
/// # let _ = policy;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByGrpcTrailers {
    said: Option<Verdict>,
}

impl Trailers for ByGrpcTrailers {
    fn begin(&mut self, http: StatusCode, headers: &HeaderMap) {
        if http != StatusCode::OK || headers.contains_key(STATUS) {
            self.said = Some(by_headers(http, headers));
        }
    }

    fn came(&mut self, trailers: &HeaderMap) {
        if let Some(code) = status(trailers) {
            self.said = Some(judge(code, pushback(trailers)));
        }
    }

    fn verdict(&self) -> Option<Verdict> {
        Some(self.said.unwrap_or(Verdict::Failed))
    }
}

impl Default for UntilBody<ByGrpcTrailers> {
    fn default() -> Self {
        Self::with(ByGrpcTrailers { said: None }).release_at_headers()
    }
}
