//! The one layer and the one service of this crate.

use std::{
    cell::Cell,
    fmt,
    future::{Future, poll_fn},
    task::{Context, Poll},
};

use tower::{Layer, Service};

use super::{
    For, Handle, Holds, Near, Parts, ResponseFuture,
    attempts::{Again, Resend},
    core::{Admitted, Claims, Core, Entry},
    future::State,
    hold::Hold,
    slot::Slot,
};
use crate::{Classify, Reject, Rejection, Rule};

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
    /// that may never get ready wants a deadline around this. Cancel safe if the call is: dropped before the service is
    /// ready, the request is not sent.
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
            unready::<S, Req, AgainOf<H>>(&mut self.inner);
            return Poll::Pending;
        }
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let near = self.handle.near(&req);
        let parts = near.parts();
        let mut claims = Claims::default();
        let in_time = claims.begin(parts);
        claims.next_attempt(parts);
        if in_time && claims.admit_at_once(parts) {
            admitted(&mut self.inner, req, near, claims)
        } else {
            asked(&mut self.inner, req, near, claims, in_time)
        }
    }
}

type PartsBy<N> = <<N as Near>::Local as Holds>::Parts;
/// What a [`Guarded`] does with a request that passes through `N`.
type FutureBy<S, Req, N> = ResponseFuture<Resend<S, Req>, <S as Service<Req>>::Future, <N as Near>::Local>;

#[inline]
fn admitted<S, Req, N>(inner: &mut S, req: Req, near: N, mut claims: Claims) -> FutureBy<S, Req, N>
where
    S: Service<Req>,
    N: Near,
    <PartsBy<N> as Parts>::Again: Again<S, Req>,
{
    let attempts =
        Cell::new(if claims.is_sent_once(near.parts()) { None } else { further(inner, &req, &near, claims) });
    let admitted = Admitted::new(near.local());
    let _on_panic = admitted.unless_taken(claims);
    // Dropped first: who hears of a panic is not inside of the attempt.
    let _scope = claims.enter::<PartsBy<N>>();
    // By pointer, so that rustc leaves it a frame of its own; LLVM sees through that once it has looked at both.
    let running: fn(&mut S, Req, &Admitted<_>, Claims, &Cell<_>) -> _ = running;
    running(inner, req, &admitted, claims, &attempts)
}

/// What further attempts are made of: clones, which are user code.
fn further<S, Req, N>(inner: &S, req: &Req, near: &N, claims: Claims) -> Option<Resend<S, Req>>
where
    N: Near,
    <PartsBy<N> as Parts>::Again: Again<S, Req>,
{
    let parts = near.parts();
    let on_panic = claims.unless_forgotten(parts);
    let further = parts.again().repeat(req).and_then(|req| {
        let service = <<PartsBy<N> as Parts>::Again as Again<S, Req>>::fresh(inner)?;
        Some(Resend { service, req: Some(req) })
    });
    std::mem::forget(on_panic);
    further
}

/// What cannot be admitted at once. A future that is refused for good holds nothing.
#[cold]
#[inline(never)]
fn asked<S, Req, N>(inner: &mut S, req: Req, near: N, mut claims: Claims, in_time: bool) -> FutureBy<S, Req, N>
where
    S: Service<Req>,
    N: Near,
    <PartsBy<N> as Parts>::Again: Again<S, Req>,
{
    let parts = near.parts();
    let entry = if in_time { claims.admit(parts) } else { Err(Claims::too_late(parts)) };
    match entry {
        Ok(Entry::Admitted) => admitted(inner, req, near, claims),
        Ok(Entry::Queued) => {
            let name = parts.name();
            // Before the service is cloned, which may panic.
            let core = Core::new(near.local(), claims);
            match later::<S, Req, N>(inner, req) {
                Some(attempts) => ResponseFuture::queued(core, attempts),
                // No layer of ours has a queue and no way to call later; if one had, it would be full.
                None => ResponseFuture::rejected(Rejection::new(name, Rule::QueueFull, f32::NAN, f32::NAN)),
            }
        }
        Err(rejection) if claims.retries(parts, rejection.reason()) => {
            let attempts = later::<S, Req, N>(inner, req);
            ResponseFuture::refused(Core::new(near.local(), claims), attempts, rejection)
        }
        Err(rejection) => {
            unready::<S, Req, <PartsBy<N> as Parts>::Again>(inner);
            ResponseFuture::rejected(rejection)
        }
    }
}

/// Gives back the readiness that `inner` has reserved, and prepares to call a fresh clone later.
fn later<S, Req, N: Near>(inner: &mut S, req: Req) -> Option<Resend<S, Req>>
where
    <PartsBy<N> as Parts>::Again: Again<S, Req>,
{
    unready::<S, Req, <PartsBy<N> as Parts>::Again>(inner);
    let service = <<PartsBy<N> as Parts>::Again as Again<S, Req>>::fresh(inner)?;
    Some(Resend { service, req: Some(req) })
}

/// Gives back the readiness that `inner` has reserved.
fn unready<S, Req, A: Again<S, Req>>(inner: &mut S) {
    if let Some(fresh) = A::fresh(inner) {
        *inner = fresh;
    }
}

/// Calls the service, and makes the future of the call around it.
///
/// It owns nothing that would have to be dropped if the service panics; whoever calls it does. So the service writes its
/// future to where it stays: one that is written and moved at once makes the processor wait for longer than all the rest
/// of a call takes.
fn running<S, Req, H>(
    inner: &mut S,
    req: Req,
    admitted: &Admitted<H>,
    claims: Claims,
    attempts: &Cell<Option<Resend<S, Req>>>,
) -> ResponseFuture<Resend<S, Req>, S::Future, H>
where
    S: Service<Req>,
    H: Holds,
{
    ResponseFuture {
        state: State::Running { attempt: inner.call(req) },
        core: admitted.take(claims.called::<H::Parts>()),
        slot: Slot::Empty,
        attempts: attempts.take(),
    }
}

impl<S: fmt::Debug, H: fmt::Debug> fmt::Debug for Guarded<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("by", &self.handle).field("inner", &self.inner).finish()
    }
}
