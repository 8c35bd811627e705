//! Where the attempts of a call come from: a service and a request, a closure, or a future that exists.

use std::{
    future::Future,
    task::{Context, Poll, ready},
};

use tower::Service;

use super::{Parts, hold::UntilHeaders};
use crate::{
    lift::LiftFuture,
    retry::{Once, Repeat},
};

/// How a layer comes by a service for a call that waits, or for a further attempt.
pub trait Again<S, Req> {
    /// A service that has reserved nothing.
    fn fresh(service: &S) -> Option<S>;

    /// The request once more.
    fn repeat(&self, req: &Req) -> Option<Req>;

    /// Whether a copy can and may be sent, after an attempt that may have reached the service.
    fn may_send(&self, copy: &Req, sent: bool) -> bool;

    /// Whether it can be sent beside the attempt before.
    fn may_overlap(&self, copy: &Req) -> bool;

    /// That copy is about to be sent.
    fn take_over(&self, copy: &mut Req) -> bool;
}

/// Neither waits nor repeats, so the service need not be `Clone`.
#[derive(Clone, Copy, Debug)]
pub struct Never;

impl<S, Req> Again<S, Req> for Never {
    #[inline]
    fn fresh(_: &S) -> Option<S> {
        None
    }

    #[inline]
    fn repeat(&self, _: &Req) -> Option<Req> {
        None
    }

    #[inline]
    fn may_send(&self, _: &Req, _: bool) -> bool {
        false
    }

    fn may_overlap(&self, _: &Req) -> bool {
        false
    }

    fn take_over(&self, _: &mut Req) -> bool {
        false
    }
}

/// Clones the service; repeats the request by the strategy `R`.
#[derive(Clone, Copy, Debug)]
pub struct Repeating<R>(pub(crate) R);

/// May wait, but sends each request once.
pub type Unrepeated = Repeating<Once>;

impl Unrepeated {
    pub(crate) const ONCE: Unrepeated = Repeating(Once);
}

impl<S: Clone, Req, R: Repeat<Req>> Again<S, Req> for Repeating<R> {
    #[inline]
    fn fresh(service: &S) -> Option<S> {
        Some(service.clone())
    }

    #[inline]
    fn repeat(&self, req: &Req) -> Option<Req> {
        self.0.repeat(req)
    }

    #[inline]
    fn may_send(&self, copy: &Req, sent: bool) -> bool {
        self.0.may_send(copy, sent)
    }

    fn may_overlap(&self, copy: &Req) -> bool {
        self.0.may_overlap(copy)
    }

    fn take_over(&self, copy: &mut Req) -> bool {
        self.0.take_over(copy)
    }
}

/// The attempts of one call.
pub trait Attempts<P> {
    /// What runs.
    type Future;
    /// What getting ready to run may fail with.
    type Error;
    /// How long a call lasts.
    type Hold;

    /// How long a call lasts.
    fn hold(parts: &P) -> &Self::Hold;

    /// Whether another attempt can be made, after one that may have reached the service.
    fn can_go_on(&self, parts: &P, sent: bool) -> bool;

    /// Whether another attempt can be made beside the present one.
    fn can_overlap(&self, parts: &P) -> bool {
        self.can_go_on(parts, true)
    }

    /// Another attempt is decided on; whether it still can be made.
    fn take_over(&mut self, _: &P) -> bool {
        true
    }

    /// Gives up what a `poll_next` that is still pending has reserved: a place in a line below.
    fn leave(&mut self, _: &P) {}

    /// The next attempt, number `attempt`, once the service is ready; `last` if none may follow it.
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        parts: &P,
        attempt: u32,
        last: bool,
    ) -> Poll<Result<Self::Future, Self::Error>>;
}

/// A service that was never polled ready, and the request for the next attempt.
#[derive(Debug)]
pub struct Resend<S, Req> {
    pub(super) service: S,
    pub(super) req: Option<Req>,
}

impl<P, S, Req> Attempts<P> for Resend<S, Req>
where
    P: Parts,
    P::Again: Again<S, Req>,
    S: Service<Req>,
{
    type Future = S::Future;
    type Error = S::Error;
    type Hold = P::Hold;

    #[inline]
    fn hold(parts: &P) -> &P::Hold {
        parts.hold()
    }

    fn take_over(&mut self, parts: &P) -> bool {
        self.req.as_mut().is_some_and(|copy| Again::<S, Req>::take_over(parts.again(), copy))
    }

    fn can_go_on(&self, parts: &P, sent: bool) -> bool {
        self.req.as_ref().is_some_and(|copy| Again::<S, Req>::may_send(parts.again(), copy, sent))
    }

    fn can_overlap(&self, parts: &P) -> bool {
        let overlaps = |copy| Again::<S, Req>::may_overlap(parts.again(), copy);
        self.can_go_on(parts, true) && self.req.as_ref().is_some_and(overlaps)
    }

    fn leave(&mut self, _: &P) {
        if let Some(fresh) = <P::Again as Again<S, Req>>::fresh(&self.service) {
            self.service = fresh;
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, parts: &P, _: u32, last: bool) -> Poll<Result<S::Future, S::Error>> {
        ready!(self.service.poll_ready(cx))?;
        let req = self.req.take().expect("an attempt follows only where `can_go_on` says so");
        if !last {
            self.req = parts.again().repeat(&req);
        }
        Poll::Ready(Ok(self.service.call(req)))
    }
}

/// A closure that makes a future for each attempt, told its number.
#[derive(Debug)]
pub struct Calls<F>(pub(crate) F);

impl<P, F: FnMut(u32) -> Fut, Fut: Future<Output = Result<T, E>>, T, E> Attempts<P> for Calls<F> {
    type Future = Fut;
    type Error = E;
    type Hold = UntilHeaders;

    #[inline]
    fn hold(_: &P) -> &UntilHeaders {
        &UntilHeaders::HERE
    }

    fn can_go_on(&self, _: &P, _: bool) -> bool {
        true
    }

    fn poll_next(&mut self, _: &mut Context<'_>, _: &P, attempt: u32, _: bool) -> Poll<Result<Fut, E>> {
        Poll::Ready(Ok((self.0)(attempt)))
    }
}

/// A future that exists already: one attempt.
#[derive(Debug)]
pub struct Given<F>(Option<F>);

impl<F> Given<F> {
    pub(crate) fn new(future: F) -> Self {
        Given(Some(future))
    }
}

impl<F> Given<LiftFuture<F>> {
    pub(crate) fn lifted(future: F) -> Self {
        Given::new(LiftFuture { inner: future })
    }
}

impl<P, F: Future<Output = Result<T, E>>, T, E> Attempts<P> for Given<F> {
    type Future = F;
    type Error = E;
    type Hold = UntilHeaders;

    #[inline]
    fn hold(_: &P) -> &UntilHeaders {
        &UntilHeaders::HERE
    }

    fn can_go_on(&self, _: &P, _: bool) -> bool {
        self.0.is_some()
    }

    fn poll_next(&mut self, _: &mut Context<'_>, _: &P, _: u32, _: bool) -> Poll<Result<F, E>> {
        Poll::Ready(Ok(self.0.take().expect("a given future is run once")))
    }
}
