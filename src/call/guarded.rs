//! The one layer and the one service of this crate.

use std::{
    fmt,
    future::{Future, poll_fn},
    task::{Context, Poll, ready},
};

use tower::{Layer, Service};

use super::{
    Handle, Holds, Parts, ResponseFuture,
    attempts::{Again, Resend},
    core::{Core, Entry},
};
use crate::{Classify, Reason, Reject, Rejection, Rule};

/// The layer of every pattern: `H` says which. Made by `layer()` of a handle, such as
/// [`CircuitBreaker::layer`](crate::CircuitBreaker::layer).
///
/// The state is the handle's: services made by one layer, or by clones of it, share it, however often
/// [`Layer::layer`] is called.
///
/// ```
/// use buttress::{ConcurrencyLimit, ConcurrencyLimitLayer};
/// let limit = ConcurrencyLimit::builder().max_in_flight(8).build().unwrap();
/// let layer: ConcurrencyLimitLayer = limit.layer();
/// # let _ = layer;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Guard<H> {
    handle: H,
}

impl<H> Guard<H> {
    pub(crate) fn handle(&self) -> &H {
        &self.handle
    }

    pub(crate) fn into_handle(self) -> H {
        self.handle
    }

    /// Guards `service`.
    pub(crate) fn over<S>(self, inner: S) -> Guarded<S, H> {
        Guarded { inner, handle: self.handle }
    }
}

impl<H> From<H> for Guard<H> {
    fn from(handle: H) -> Self {
        Self { handle }
    }
}

impl<S, H: Handle> Layer<S> for Guard<H> {
    type Service = Guarded<S, H>;

    fn layer(&self, inner: S) -> Guarded<S, H> {
        self.clone().over(inner)
    }
}

/// The service of every pattern: `S`, guarded by what `H` holds.
///
/// `poll_ready` is that of the service below: it reserves nothing of ours and never returns a rejection. Admission
/// is tried in `call`, which calls the very service that was polled ready; a call that must wait, or a further
/// attempt, takes a fresh clone and polls its readiness after admission.
///
/// ```
/// use buttress::{Timeout, TimeoutService};
/// use tower::Layer;
/// # #[derive(Clone)] struct Client;
/// let guarded: TimeoutService<Client> = Timeout::new(std::time::Duration::from_secs(1)).layer().layer(Client);
/// # let _ = guarded.get_ref();
/// ```
#[derive(Clone)]
pub struct Guarded<S, H> {
    inner: S,
    handle: H,
}

impl<S, H> Guarded<S, H> {
    /// The service below.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service below.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service below.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Sends one request through a clone of this service: waits until it is ready, then calls it.
    ///
    /// What `tower::ServiceExt::oneshot` does, with errors that name the way out when something does not fit.
    ///
    /// # Errors
    /// The service's error, which is also where a rejection shows up.
    pub fn send<Req>(&self, req: Req) -> impl Future<Output = Result<S::Response, S::Error>> + use<S, H, Req>
    where
        S: Service<Req> + Clone,
        S::Error: Reject<S::Response>,
        H: Handle,
        AgainOf<H>: Again<S, Req>,
        ClassifyOf<H>: Classify<S::Response, <S::Error as Reject<S::Response>>::Cause>,
    {
        let mut service = self.clone();
        async move {
            poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(req).await
        }
    }
}

type PartsOf<H> = <<H as Handle>::Local as Holds>::Parts;
type AgainOf<H> = <PartsOf<H> as Parts>::Again;
type ClassifyOf<H> = <PartsOf<H> as Parts>::Classify;

impl<S, Req, H> Service<Req> for Guarded<S, H>
where
    S: Service<Req>,
    S::Error: Reject<S::Response>,
    H: Handle,
    AgainOf<H>: Again<S, Req>,
    ClassifyOf<H>: Classify<S::Response, <S::Error as Reject<S::Response>>::Cause>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<Resend<S, Req>, S::Future, H::Local>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        ready!(self.handle.poll_ready(cx));
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let mut core = Core::new(self.handle.local());
        match core.begin().and_then(|()| core.admit()) {
            Ok(Entry::Admitted) => {
                let copy = if core.is_last() { None } else { core.parts().again().repeat(&req) };
                let further = copy.and_then(|req| {
                    let service = core.parts().again().fresh(&self.inner)?;
                    Some(Resend { service, req: Some(req) })
                });
                let attempt = core.run(|_, _| self.inner.call(req));
                ResponseFuture::running(core, attempt, further)
            }
            Ok(Entry::Queued) => self.queued(core, req),
            Err(rejection) => self.rejected(core, req, rejection),
        }
    }
}

impl<S, H: Handle> Guarded<S, H> {
    #[cold]
    fn queued<Req>(&mut self, core: Core<H::Local>, req: Req) -> ResponseFuture<Resend<S, Req>, S::Future, H::Local>
    where
        S: Service<Req>,
        AgainOf<H>: Again<S, Req>,
    {
        match self.later(&core, req) {
            Some(attempts) => ResponseFuture::queued(core, attempts),
            // No layer of ours has a queue and no way to call later; if one had, it would be full.
            None => {
                let name = core.parts().name();
                let full = Rejection::new(name, Reason::Overloaded, Rule::QueueFull, f32::NAN, f32::NAN);
                ResponseFuture::rejected(core, None, full)
            }
        }
    }

    #[cold]
    fn rejected<Req>(
        &mut self,
        core: Core<H::Local>,
        req: Req,
        rejection: Rejection,
    ) -> ResponseFuture<Resend<S, Req>, S::Future, H::Local>
    where
        S: Service<Req>,
        AgainOf<H>: Again<S, Req>,
    {
        let later = self.later(&core, req).filter(|_| core.retries(rejection.reason()));
        ResponseFuture::rejected(core, later, rejection)
    }

    /// Gives back the readiness that `self.inner` has reserved, and prepares to call a fresh clone later.
    fn later<Req>(&mut self, core: &Core<H::Local>, req: Req) -> Option<Resend<S, Req>>
    where
        AgainOf<H>: Again<S, Req>,
    {
        let again = core.parts().again();
        self.inner = Again::<S, Req>::fresh(again, &self.inner)?;
        let service = Again::<S, Req>::fresh(again, &self.inner)?;
        Some(Resend { service, req: Some(req) })
    }
}

impl<S: fmt::Debug, H: fmt::Debug> fmt::Debug for Guarded<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("by", &self.handle).field("inner", &self.inner).finish()
    }
}
