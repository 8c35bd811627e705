//! A call that lasts as long as the body of its response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::BoxError;

use super::{Held, Keep};
use crate::{
    Verdict,
    call::{BodyLimit, Ending, Hold, Holds, Rest},
    clock::{after, now},
};

/// Holds the permit until the response's body ends or is dropped, and takes the deadline, and the latency that a
/// breaker sees, on into the body. All presets for HTTP have it; those for clients give the permit back with the
/// [headers](Self::release_at_headers).
///
/// - A body that fails, or is cut off for being too long or silent, is a failure to the circuit breaker.
/// - One that is dropped early counts as its headers said: its reader may have seen enough. Unless it was silent just
///   then, or not asked for again, for longer than the breaker's
///   [slow threshold](crate::CircuitBreakerBuilder::slow_call).
/// - An [adaptive](crate::ConcurrencyLimitBuilder::adaptive) limit has its permit back with the headers, as it goes by how long these
///   take: bodies that go on for days would fill it, and then it would hear of nothing. Bound those by a limit of a fixed number.
/// - A half-open circuit takes the headers of its probes for an answer: a stream may go on for days.
/// - A body that is cut off fails with the [`Rejection`](crate::Rejection) as its error.
/// - A reader that does not ask for more is not timed, but by the deadline.
///
/// ```
/// use buttress::{ConcurrencyLimit, Policy, http::UntilBody};
/// let policy = Policy::http_client("files")
///     .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(8))
///     .hold(UntilBody::new())
///     .body_idle_timeout(std::time::Duration::from_secs(10))
///     .build()?;
/// # let _ = policy;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UntilBody<T = ByHeaders> {
    trailers: T,
    permit: bool,
}

impl UntilBody {
    pub(crate) const fn of_a_client() -> Self {
        Self::new().release_at_headers()
    }

    /// Everything lasts until the body ends.
    #[must_use]
    pub const fn new() -> Self {
        Self { trailers: ByHeaders, permit: true }
    }
}

impl<T> UntilBody<T> {
    pub(super) const fn with(trailers: T) -> Self {
        Self { trailers, permit: true }
    }

    /// The permit is given back with the headers; deadline, time-outs and the breaker's result go on into the body.
    #[must_use]
    pub const fn release_at_headers(mut self) -> Self {
        self.permit = false;
        self
    }
}

impl Default for UntilBody {
    fn default() -> Self {
        Self::new()
    }
}

/// What the end of a body says: [`ByHeaders`] and [`ByGrpcTrailers`](super::ByGrpcTrailers) know.
pub trait Trailers: Clone {
    /// The response begins.
    fn begin(&mut self, status: StatusCode, headers: &HeaderMap);

    /// These came.
    fn came(&mut self, trailers: &HeaderMap);

    /// At the end of the body: what is to be counted instead of what the headers said.
    fn verdict(&self) -> Option<Verdict>;
}

/// The headers have said it all: what [`UntilBody`] goes by, unless it says otherwise.
///
/// ```
/// use buttress::http::{ByHeaders, UntilBody};
/// let hold: UntilBody<ByHeaders> = UntilBody::new();
/// # let _ = hold;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByHeaders;

impl Trailers for ByHeaders {
    fn begin(&mut self, _: StatusCode, _: &HeaderMap) {}

    fn came(&mut self, _: &HeaderMap) {}

    fn verdict(&self) -> Option<Verdict> {
        None
    }
}

impl<B: Body, H: Holds + Clone, T: Trailers> Hold<Response<B>, H> for UntilBody<T> {
    type Response = Response<Held<B, Tail<H, T>>>;
    const BEYOND: bool = true;

    fn bare(res: Response<B>) -> Self::Response {
        res.map(|body| Held::new(body, None))
    }

    fn hold(&self, res: Response<B>, ending: Ending<'_, H>) -> Self::Response {
        let tail = self.rest(ending).and_then(|rest| self.tail(rest, &res));
        res.map(|body| Held::new(body, tail))
    }
}

impl<T: Trailers> UntilBody<T> {
    /// What is left of the call, if anything.
    fn rest<H: Holds + Clone>(&self, ending: Ending<'_, H>) -> Option<Rest<H>> {
        let mut rest = ending.rest();
        if !self.permit || rest.is_counted_until_headers() {
            rest.release();
        }
        if rest.is_empty() { None } else { Some(rest) }
    }

    /// What its body is to keep, unless that is over already.
    fn tail<B: Body, H: Holds>(&self, mut rest: Rest<H>, res: &Response<B>) -> Option<Tail<H, T>> {
        let mut trailers = self.trailers.clone();
        trailers.begin(res.status(), res.headers());
        if rest.run(|| res.body().is_end_stream()) {
            rest.end(trailers.verdict());
            return None;
        }
        Some(Tail::new(rest, trailers))
    }
}

/// The response stays one of `reqwest`; its body is boxed once more.
#[cfg(feature = "reqwest")]
impl<H, T> Hold<reqwest::Response, H> for UntilBody<T>
where
    H: Holds + Clone + Send + Sync + 'static,
    T: Trailers + Send + Sync + 'static,
{
    type Response = reqwest::Response;
    const BEYOND: bool = true;

    fn bare(res: reqwest::Response) -> reqwest::Response {
        res
    }

    fn hold(&self, res: reqwest::Response, ending: Ending<'_, H>) -> reqwest::Response {
        let Some(rest) = self.rest(ending) else { return res };
        let url = res.url().clone();
        let res = Response::<reqwest::Body>::from(res);
        let tail = self.tail(rest, &res);
        let mut res = res.map(|body| match tail {
            Some(tail) => reqwest::Body::wrap(Held::new(body, Some(tail))),
            None => body,
        });
        // The conversion drops the URL, and takes it from here.
        let told = reqwest::ResponseBuilderExt::url(Response::builder(), url).body(());
        res.extensions_mut().extend(told.map(|told| told.into_parts().0.extensions).unwrap_or_default());
        res.into()
    }
}

/// What is left of a call while its body is sent.
pub struct Tail<H: Holds, T> {
    rest: Rest<H>,
    trailers: T,
    /// Since when it has been waited for, if it is.
    quiet: Option<Instant>,
    /// When to cut it off unless something comes, and why.
    until: Option<(Instant, BodyLimit)>,
    /// Boxed, so that the body can be moved as it could without; and made only for a body that has a time, and is not there.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<H: Holds, T> Tail<H, T> {
    fn new(rest: Rest<H>, trailers: T) -> Self {
        Self { rest, trailers, quiet: None, until: None, timer: None }
    }

    /// A wait is over, if there was one.
    fn stop_waiting(&mut self) {
        if let Some(quiet) = self.quiet.take() {
            self.rest.add(now().saturating_duration_since(quiet));
        }
    }

    /// What ends a wait that begins now, unless something comes.
    fn next_limit(&mut self, now: Instant) -> Option<(Instant, BodyLimit)> {
        let times = self.rest.times();
        let whole = times.whole.map(|time| after(now, time.saturating_sub(self.rest.waited())));
        let idle = times.idle.map(|time| after(now, time));
        let deadline = self.rest.deadline(now);
        let limits = [(deadline, BodyLimit::Deadline), (whole, BodyLimit::Whole), (idle, BodyLimit::Idle)];
        limits.into_iter().filter_map(|(at, limit)| Some((at?, limit))).min_by_key(|(at, _)| *at)
    }
}

impl<H: Holds, T: Trailers, E> Keep<E> for Tail<H, T>
where
    BoxError: From<E>,
{
    type Error = BoxError;
    type Over = BodyLimit;

    fn run<R>(&mut self, poll: impl FnOnce() -> R) -> R {
        self.rest.run(poll)
    }

    fn came(&mut self, trailers: Option<&HeaderMap>) {
        self.stop_waiting();
        if let Some(trailers) = trailers {
            self.trailers.came(trailers);
        }
    }

    fn end(&mut self, failed: bool) {
        self.stop_waiting();
        let verdict = if failed { Some(Verdict::TRANSIENT) } else { self.trailers.verdict() };
        self.rest.end(verdict);
    }

    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<BodyLimit> {
        if self.quiet.is_none() {
            let now = now();
            self.quiet = Some(now);
            self.until = self.next_limit(now);
        }
        let Some((until, limit)) = self.until else { return Poll::Pending };
        let timer = match &mut self.timer {
            // One of an earlier wait is left alone until it fires: bodies come in many pieces.
            Some(timer) if timer.deadline() <= until => timer,
            timer => timer.insert(Box::pin(sleep_until(until))),
        };
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= until {
                return Poll::Ready(limit);
            }
            timer.as_mut().reset(until);
        }
    }

    fn cut_off(&mut self, limit: BodyLimit) -> BoxError {
        self.stop_waiting();
        self.rest.cut_off(limit).into()
    }
}

impl<H: Holds, T> Drop for Tail<H, T> {
    fn drop(&mut self) {
        self.rest.leave(self.quiet);
    }
}

impl<H: Holds, T> fmt::Debug for Tail<H, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").field("name", &self.rest.name()).finish_non_exhaustive()
    }
}
