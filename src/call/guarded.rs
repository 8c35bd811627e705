//! The one layer and the one service of this crate.

use std::{
    fmt,
    future::{Future, poll_fn},
    task::{Context, Poll},
};

use tower::{Layer, Service};

use super::{
    For, Handle, Holds, Parts, ResponseFuture,
    attempts::{Again, Resend},
    core::{Claims, Core, Entry},
    future::State,
    hold::Hold,
    slot::Slot,
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
    pub(crate) fn into_handle(self) -> H {
        self.handle
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
        Guarded { inner, handle: self.handle.clone() }
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
    /// What `tower::ServiceExt::oneshot` does, with errors that name the way out when something does not fit. As with any
    /// tower service, the wait for readiness comes before the call, so no part of this guard bounds it: a service below
    /// that may never get ready wants a deadline around this.
    ///
    /// # Errors
    /// The service's error, which is also where a rejection shows up.
    pub fn send<Req>(&self, req: Req) -> impl Future<Output = Result<HeldOf<S, Req, H>, S::Error>> + use<S, H, Req>
    where
        S: Service<Req> + Clone,
        S::Error: Reject<S::Response>,
        H: For<Req>,
        AgainOf<H>: Again<S, Req>,
        HoldOf<H>: Hold<S::Response, H::Local>,
        ClassifyOf<H>: Classify<S::Response, <S::Error as Reject<S::Response>>::Cause>,
    {
        send(self.clone(), req)
    }
}

/// Waits until the service is ready, then calls it.
pub(crate) async fn send<S: Service<Req>, Req>(mut service: S, req: Req) -> Result<S::Response, S::Error> {
    poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(req).await
}

type PartsOf<H> = <<H as Handle>::Local as Holds>::Parts;
type AgainOf<H> = <PartsOf<H> as Parts>::Again;
type ClassifyOf<H> = <PartsOf<H> as Parts>::Classify;
type HoldOf<H> = <PartsOf<H> as Parts>::Hold;
/// The response of a [`Guarded`].
type HeldOf<S, Req, H> = <HoldOf<H> as Hold<<S as Service<Req>>::Response, <H as Handle>::Local>>::Response;

impl<S, Req, H> Service<Req> for Guarded<S, H>
where
    S: Service<Req>,
    S::Error: Reject<S::Response>,
    H: For<Req>,
    AgainOf<H>: Again<S, Req>,
    HoldOf<H>: Hold<S::Response, H::Local>,
    ClassifyOf<H>: Classify<S::Response, <S::Error as Reject<S::Response>>::Cause>,
{
    type Response = HeldOf<S, Req, H>;
    type Error = S::Error;
    type Future = ResponseFuture<Resend<S, Req>, S::Future, H::Local>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if self.handle.poll_ready(cx).is_pending() {
            // Nobody is called while this waits, so nothing stays reserved below.
            self.unready::<Req>();
            return Poll::Pending;
        }
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let held = self.handle.local(&req);
        let parts = held.parts();
        let mut claims = Claims::default();
        match claims.begin(parts).and_then(|()| claims.admit(parts)) {
            Ok(Entry::Admitted) => {
                let on_panic = claims.unless_forgotten(parts);
                let copy = if claims.is_last(parts) { None } else { parts.again().repeat(&req) };
                let attempts = copy.and_then(|req| {
                    let service = <AgainOf<H> as Again<S, Req>>::fresh(&self.inner)?;
                    Some(Resend { service, req: Some(req) })
                });
                // Wrapped where it is made, so that it is made in its final place: moving it costs as much as all
                // that is done with it.
                let state = State::Running { attempt: claims.run(parts, |_, _| self.inner.call(req)) };
                std::mem::forget(on_panic);
                ResponseFuture { state, core: Core::new(held, claims), slot: Slot::Empty, attempts }
            }
            Ok(Entry::Queued) => self.queued(Core::new(held, claims), req),
            Err(rejection) => self.rejected(Core::new(held, claims), req, rejection),
        }
    }
}

/// The future of a [`Guarded`].
type FutureOf<S, Req, H> = ResponseFuture<Resend<S, Req>, <S as Service<Req>>::Future, <H as Handle>::Local>;

impl<S, H: Handle> Guarded<S, H> {
    #[cold]
    fn queued<Req>(&mut self, core: Core<H::Local>, req: Req) -> FutureOf<S, Req, H>
    where
        S: Service<Req>,
        AgainOf<H>: Again<S, Req>,
    {
        match self.later(req) {
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
    fn rejected<Req>(&mut self, core: Core<H::Local>, req: Req, rejection: Rejection) -> FutureOf<S, Req, H>
    where
        S: Service<Req>,
        AgainOf<H>: Again<S, Req>,
    {
        let attempts = if core.claims.retries(core.parts(), rejection.reason()) {
            self.later(req)
        } else {
            self.unready::<Req>();
            None
        };
        ResponseFuture::rejected(core, attempts, rejection)
    }

    /// Gives back the readiness that `self.inner` has reserved, and prepares to call a fresh clone later.
    fn later<Req>(&mut self, req: Req) -> Option<Resend<S, Req>>
    where
        AgainOf<H>: Again<S, Req>,
    {
        self.unready::<Req>();
        let service = <AgainOf<H> as Again<S, Req>>::fresh(&self.inner)?;
        Some(Resend { service, req: Some(req) })
    }

    /// Gives back the readiness that `self.inner` has reserved.
    fn unready<Req>(&mut self)
    where
        AgainOf<H>: Again<S, Req>,
    {
        if let Some(fresh) = <AgainOf<H> as Again<S, Req>>::fresh(&self.inner) {
            self.inner = fresh;
        }
    }
}

impl<S: fmt::Debug, H: fmt::Debug> fmt::Debug for Guarded<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("by", &self.handle).field("inner", &self.inner).finish()
    }
}
