//! Clients: from the deadline into headers.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, HeaderName};
use pin_project::pin_project;
use tower::{Layer, Service};

use super::{GRPC_TIMEOUT, HasHeaders, format_grpc, format_millis, parse_grpc, parse_millis, shortest};
use crate::{Deadline, Outcome, Reject, Rejection, call::send};

/// For clients: tells the server how much time is left, as the [current](Deadline::current) deadline has it.
///
/// It writes `grpc-timeout`, and a [header in milliseconds](Self::header) if you name one. Without a current deadline it
/// changes nothing. A value that is there already stays if it says less, else it is replaced. Times are rounded down, so
/// that the server never believes to have more; but for the milliseconds of the very last one, which are 1, since zero
/// often means "no limit".
///
/// A call whose deadline is past is answered with [`DeadlineExceeded`](crate::Reason::DeadlineExceeded) and not sent; and so is one
/// that fails when its time is over, as clients may heed the header, too, and call it by another name. This layer does not
/// cut off what runs: whoever [set the deadline](crate::deadline) does. It knows nothing of an attempt timeout, which may end
/// the attempt before that; the server sees that by its connection or stream.
///
/// Put it inside of a policy or a retry, right around the client, so that each attempt says what is left then. The
/// client's error must be able to carry a rejection; put a [`LiftLayer`](crate::LiftLayer) around one that cannot:
///
/// ```
/// use buttress::{LiftLayer, Policy, http::WriteDeadlineLayer};
/// use http::{Request, Response};
/// use std::time::Duration;
/// use tower::ServiceBuilder;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = tower::service_fn(async |req: Request<String>| {
/// #     Ok::<_, std::fmt::Error>(Response::new(req.headers()["grpc-timeout"].clone()))
/// # });
/// let policy = Policy::plain("users").deadline(Duration::from_secs(5)).build()?;
/// let client = ServiceBuilder::new()
///     .layer(policy.layer())
///     .layer(WriteDeadlineLayer::new())
///     .layer(LiftLayer)
///     .service(client); // such as hyper-util's, or a `reqwest::Client`
/// let response = client.send(Request::new(String::new())).await?;
/// # assert!(response.into_body().to_str()?.ends_with('u'));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct WriteDeadlineLayer {
    write: Write,
}

/// What to write.
#[derive(Clone, Debug)]
struct Write {
    name: &'static str,
    grpc: bool,
    millis: Option<HeaderName>,
}

impl Write {
    fn write(&self, headers: &mut HeaderMap, left: Duration) {
        if self.grpc && shortest(headers, &GRPC_TIMEOUT, parse_grpc).is_none_or(|there| there > left) {
            headers.insert(&GRPC_TIMEOUT, format_grpc(left));
        }
        if let Some(name) = &self.millis {
            if shortest(headers, name, parse_millis).is_none_or(|there| there > left) {
                headers.insert(name, format_millis(left));
            }
        }
    }
}

impl Default for WriteDeadlineLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl WriteDeadlineLayer {
    /// Writes `grpc-timeout`. The name in rejections and logs is `deadline`.
    pub fn new() -> Self {
        Self { write: Write { name: "deadline", grpc: true, millis: None } }
    }

    /// Writes this header too, in whole milliseconds. Envoy, for one, reads `x-envoy-upstream-rq-timeout-ms`.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.write.millis = Some(name);
        self
    }

    /// Leaves `grpc-timeout` alone: for servers that know only the [header](Self::header).
    pub fn without_grpc_timeout(mut self) -> Self {
        self.write.grpc = false;
        self
    }

    /// The name that rejections and logs carry.
    pub fn name(mut self, name: &'static str) -> Self {
        self.write.name = name;
        self
    }
}

impl<S> Layer<S> for WriteDeadlineLayer {
    type Service = WriteDeadlineService<S>;

    fn layer(&self, inner: S) -> WriteDeadlineService<S> {
        WriteDeadlineService { inner, write: self.write.clone() }
    }
}

/// The service of [`WriteDeadlineLayer`].
///
/// ```
/// # use buttress::http::{WriteDeadlineLayer, WriteDeadlineService};
/// # use tower::Layer;
/// # #[derive(Clone)] struct Client;
/// fn telling(client: Client) -> WriteDeadlineService<Client> {
///     WriteDeadlineLayer::new().layer(client)
/// }
/// # let _ = telling;
/// ```
#[derive(Clone, Debug)]
pub struct WriteDeadlineService<S> {
    inner: S,
    write: Write,
}

impl<S> WriteDeadlineService<S> {
    /// The service below.
    pub fn get_ref(&self) -> &S {
        &self.inner
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

impl<S, Req> Service<Req> for WriteDeadlineService<S>
where
    Req: HasHeaders,
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = WriteDeadlineFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut req: Req) -> Self::Future {
        let name = self.write.name;
        let deadline = Deadline::current();
        if let Some(deadline) = deadline {
            let left = deadline.remaining();
            if left.is_zero() {
                // The readiness that was reserved below is given back.
                self.inner = self.inner.clone();
                Rejection::too_late(name).log();
                return WriteDeadlineFuture { state: State::TooLate, name };
            }
            self.write.write(req.headers_mut(), left);
        }
        WriteDeadlineFuture { state: State::Running { inner: self.inner.call(req), deadline }, name }
    }
}

/// The future of [`WriteDeadlineService`]. Cancel safe if the service's is: dropping it drops the call.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct WriteDeadlineFuture<F> {
    #[pin]
    state: State<F>,
    name: &'static str,
}

#[pin_project(project = StateProj)]
enum State<F> {
    Running {
        #[pin]
        inner: F,
        deadline: Option<Deadline>,
    },
    TooLate,
}

/// Whoever heeds the header below us, such as tonic's channel, may give up in the very moment in which whoever set the
/// deadline does, with an error of its own. A timer is exact to a millisecond.
const SAME_MOMENT: Duration = Duration::from_millis(2);

impl<F, T, E> Future for WriteDeadlineFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Reject<T>,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let StateProj::Running { inner, deadline } = this.state.project() else {
            return Poll::Ready(E::reject(Rejection::too_late(this.name)));
        };
        let outcome = ready!(inner.poll(cx));
        let is_over = |deadline: &Deadline| deadline.remaining() < SAME_MOMENT;
        let timed_out = matches!(E::inspect(&outcome), Outcome::Err(_)) && deadline.as_ref().is_some_and(is_over);
        Poll::Ready(if timed_out { E::reject(Rejection::too_late(this.name)) } else { outcome })
    }
}

impl<F> fmt::Debug for WriteDeadlineFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Running { .. } => "running",
            State::TooLate => "too late",
        };
        f.debug_struct("WriteDeadlineFuture").field("state", &state).finish_non_exhaustive()
    }
}
