//! Counting calls, and refusing them once nothing new is admitted.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project::pin_project;
use tower::{Layer, Service};

use super::{Handle, handle::Call, state::Shared};
use crate::{Reject, Rejection, call::send};

/// What a protocol knows of a request.
pub trait Look<Req> {
    /// Looks at it.
    fn look(&self, req: &Req) -> Seen;
}

/// What was seen of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Neither counted nor refused.
    pub(super) exempt: bool,
    /// The response is to say that its connection is not kept.
    #[cfg(feature = "http")]
    pub(super) closes: bool,
}

/// What a protocol makes of a response.
pub trait Respond<Res> {
    /// The response, with the call if it lasts longer than that.
    type Response;

    /// The call has its response; what stays in `call` is let go of now.
    fn respond(seen: Seen, call: &mut Call, res: Res) -> Self::Response;
}

/// Any protocol: a call ends with its future.
///
/// ```
/// use buttress::shutdown::{Calls, InFlightLayer};
/// # fn of(handle: &buttress::shutdown::Handle) {
/// let layer: InFlightLayer<Calls> = handle.layer();
/// # let _ = layer; }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls;

impl<Req> Look<Req> for Calls {
    #[inline]
    fn look(&self, _: &Req) -> Seen {
        Seen::default()
    }
}

impl<Res> Respond<Res> for Calls {
    type Response = Res;

    #[inline]
    fn respond(_: Seen, _: &mut Call, res: Res) -> Res {
        res
    }
}

/// A tower layer that counts what is in flight, so that it can be waited for, and refuses what comes once nothing new is
/// admitted: with a [`Rejection`] for [`ShuttingDown`](crate::Reason::ShuttingDown), which in an axum `Router` is a 503.
///
/// Made by [`Handle::layer`], and for HTTP by `Handle::in_flight_layer`. Admission is tried in `call`. Layers of one
/// handle, and their services, count together.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), tower::BoxError> {
/// use tower::{Layer, Service, ServiceExt, service_fn};
/// let shutdown = buttress::Shutdown::builder().build()?;
/// let double = service_fn(async |n: u32| Ok::<_, tower::BoxError>(2 * n));
/// let mut service = shutdown.handle().layer().layer(double);
/// assert_eq!(service.ready().await?.call(21).await?, 42);
///
/// shutdown.handle().trigger("deploy");
/// shutdown.handle().stopping().await;
/// let refused = service.ready().await?.call(21).await.unwrap_err();
/// assert_eq!(refused.to_string(), "`calls` is shutting down: nothing new is admitted; retry after 1.0s");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct InFlightLayer<P> {
    gate: Gated<P>,
}

#[derive(Clone, Debug)]
struct Gated<P> {
    handle: Handle,
    name: &'static str,
    retry_after: Duration,
    protocol: P,
}

impl<P> InFlightLayer<P> {
    pub(super) fn new(handle: Handle, protocol: P) -> Self {
        let retry_after = Duration::from_secs(1);
        Self { gate: Gated { handle, name: "calls", retry_after, protocol } }
    }

    /// The name that the report and the rejections give to these calls. Default `calls`: a name of its own for routes whose
    /// calls last long, such as `events`, tells at once what held the shutdown up.
    pub fn named(mut self, name: &'static str) -> Self {
        self.gate.name = name;
        self
    }

    /// What a refused caller is told. Default 1 s: by then another instance, or the next one, is there to be asked.
    pub fn retry_after(mut self, time: Duration) -> Self {
        self.gate.retry_after = time;
        self
    }

    #[cfg(feature = "http")]
    pub(super) fn map<Q>(self, map: impl FnOnce(P) -> Q) -> InFlightLayer<Q> {
        let Gated { handle, name, retry_after, protocol } = self.gate;
        InFlightLayer { gate: Gated { handle, name, retry_after, protocol: map(protocol) } }
    }
}

impl<S, P: Clone> Layer<S> for InFlightLayer<P> {
    type Service = InFlightService<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        InFlightService { inner, gate: self.gate.clone() }
    }
}

/// The service of [`InFlightLayer`].
///
/// ```
/// # use buttress::shutdown::{Calls, Handle, InFlightService};
/// # use tower::Layer;
/// # #[derive(Clone)] struct Client;
/// fn counted(handle: &Handle, client: Client) -> InFlightService<Client, Calls> {
///     handle.layer().layer(client)
/// }
/// # let _ = counted;
/// ```
#[derive(Clone)]
pub struct InFlightService<S, P> {
    inner: S,
    gate: Gated<P>,
}

impl<S, P> InFlightService<S, P> {
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
    pub fn send<Req>(&self, req: Req) -> impl Future<Output = Result<P::Response, S::Error>> + use<S, P, Req>
    where
        S: Service<Req> + Clone,
        S::Error: Reject<S::Response>,
        P: Look<Req> + Respond<S::Response> + Clone,
    {
        send(self.clone(), req)
    }
}

impl<S, P, Req> Service<Req> for InFlightService<S, P>
where
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response>,
    P: Look<Req> + Respond<S::Response>,
{
    type Response = P::Response;
    type Error = S::Error;
    type Future = InFlightFuture<S::Future, P>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let Gated { handle, name, protocol, .. } = &self.gate;
        let seen = protocol.look(&req);
        if !seen.exempt && !Call::admit(&handle.shared) {
            // The readiness that was reserved below is given back.
            self.inner = self.inner.clone();
            let state = State::Refused(self.gate.refuse());
            return InFlightFuture { state, seen, call: Call::none(), protocol: PhantomData };
        }
        let shared = Cell::new(Some(Arc::clone(&handle.shared)));
        let _on_panic = OnPanic { shared: &shared, name, exempt: seen.exempt };
        // By pointer, as that of the other layers.
        let running: fn(&mut S, Req, &Cell<_>, &'static str, Seen) -> Self::Future = running;
        running(&mut self.inner, req, &shared, name, seen)
    }
}

/// Counts the call out if the service panics before there is a future that would.
struct OnPanic<'a> {
    shared: &'a Cell<Option<Arc<Shared>>>,
    name: &'static str,
    exempt: bool,
}

impl Drop for OnPanic<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            panicked(shared, self.name, self.exempt);
        }
    }
}

#[cold]
fn panicked(shared: Arc<Shared>, name: &'static str, exempt: bool) {
    drop(Call::admitted(Some(shared), name, exempt));
}

/// Calls the service, and makes the future around it: in a frame of its own, for the reason that the service of the other
/// layers has.
fn running<S: Service<Req>, Req, P>(
    inner: &mut S,
    req: Req,
    shared: &Cell<Option<Arc<Shared>>>,
    name: &'static str,
    seen: Seen,
) -> InFlightFuture<S::Future, P> {
    InFlightFuture {
        state: State::Running { inner: inner.call(req) },
        seen,
        call: Call::admitted(shared.take(), name, seen.exempt),
        protocol: PhantomData,
    }
}

impl<P> Gated<P> {
    #[cold]
    fn refuse(&self) -> Refused {
        self.handle.shared.rejected.fetch_add(1, Relaxed);
        let refused = Refused { name: self.name, retry_after: self.retry_after };
        refused.rejection().log();
        refused
    }
}

/// What the rejection is made of, in less room than it takes.
struct Refused {
    name: &'static str,
    retry_after: Duration,
}

impl Refused {
    #[cold]
    fn rejection(&self) -> Rejection {
        Rejection::stopping(self.name, self.retry_after)
    }
}

impl<S: fmt::Debug, P> fmt::Debug for InFlightService<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlightService")
            .field("name", &self.gate.name)
            .field("shutdown", &self.gate.handle)
            .field("inner", &self.inner)
            .finish()
    }
}

/// The future of [`InFlightService`]. Cancel safe if the service's is: dropping it drops that, and then the call is not in
/// flight any more.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct InFlightFuture<F, P> {
    // In front of the call, so that the work is dropped before it is let go of.
    #[pin]
    state: State<F>,
    seen: Seen,
    /// None if it was refused, and once the response was returned.
    call: Call,
    protocol: PhantomData<fn() -> P>,
}

#[pin_project(project = StateProj)]
enum State<F> {
    Running {
        #[pin]
        inner: F,
    },
    Refused(Refused),
    Done,
}

impl<F, P, Res, E> Future for InFlightFuture<F, P>
where
    F: Future<Output = Result<Res, E>>,
    E: Reject<Res>,
    P: Respond<Res>,
{
    type Output = Result<P::Response, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        match this.state.as_mut().project() {
            StateProj::Running { inner } => {
                let outcome = ready!(inner.poll(cx));
                // The work ends before its call does.
                this.state.set(State::Done);
                let outcome = outcome.map(|res| P::respond(*this.seen, this.call, res));
                this.call.ended = true;
                this.call.let_go();
                Poll::Ready(outcome)
            }
            StateProj::Refused(refused) => {
                let rejection = refused.rejection();
                this.state.set(State::Done);
                Poll::Ready(E::reject(rejection).map(|res| P::respond(*this.seen, this.call, res)))
            }
            StateProj::Done => panic!("a response future was polled after completion"),
        }
    }
}

impl<F, P> fmt::Debug for InFlightFuture<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlightFuture").field("call", &self.call).finish_non_exhaustive()
    }
}
