//! The services that are guarded: one that answers at once, and one that is pending once.

use std::{
    fmt,
    future::{Future, Ready, ready},
    hint::black_box,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use tower::{BoxError, Service};

/// What a subject guards. Its error is whatever the subject's library asks for; it never occurs.
pub trait Inner<E>:
    Service<u64, Response = u64, Error = E, Future: Send + Unpin> + Copy + Send + Sync + 'static
{
}

impl<E, S> Inner<E> for S where
    S: Service<u64, Response = u64, Error = E, Future: Send + Unpin> + Copy + Send + Sync + 'static
{
}

/// What is measured: a service around an [`Inner`].
pub trait Client: Service<u64, Response = u64, Error: Send, Future: Send> + Clone + Send + 'static {}

impl<S> Client for S where S: Service<u64, Response = u64, Error: Send, Future: Send> + Clone + Send + 'static {}

/// Answers at once.
pub struct AtOnce<E>(PhantomData<fn() -> E>);

/// Is pending once, and wakes whoever polled it.
pub struct PendingOnce<E>(PhantomData<fn() -> E>);

impl<E> AtOnce<E> {
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E> PendingOnce<E> {
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E> Clone for AtOnce<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for AtOnce<E> {}

impl<E> Clone for PendingOnce<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for PendingOnce<E> {}

impl<E: Send + 'static> Service<u64> for AtOnce<E> {
    type Response = u64;
    type Error = E;
    type Future = Ready<Result<u64, E>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, req: u64) -> Self::Future {
        ready(Ok(black_box(req)))
    }
}

impl<E: Send + 'static> Service<u64> for PendingOnce<E> {
    type Response = u64;
    type Error = E;
    type Future = OncePending<E>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, req: u64) -> OncePending<E> {
        OncePending { answer: black_box(req), polled: false, error: PhantomData }
    }
}

pub struct OncePending<E> {
    answer: u64,
    polled: bool,
    error: PhantomData<fn() -> E>,
}

impl<E> Future for OncePending<E> {
    type Output = Result<u64, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if std::mem::replace(&mut self.polled, true) {
            return Poll::Ready(Ok(self.answer));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Answers even requests at once, and fails those that are odd.
#[derive(Clone, Copy)]
pub struct FailsOdd;

impl Service<u64> for FailsOdd {
    type Response = u64;
    type Error = BoxError;
    type Future = Ready<Result<u64, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, req: u64) -> Self::Future {
        ready(if black_box(req).is_multiple_of(2) { Ok(req) } else { Err(Box::new(Failed)) })
    }
}

/// Of no size, so that boxing it allocates nothing.
#[derive(Debug)]
struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for Failed {}
