//! [`Lift`]: gives a service whose error cannot be constructed one that can carry a rejection.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project::pin_project;
use tower::{Layer, Service};

use crate::Error;

/// Turns a service's error `E` into [`Error<E>`], at no cost. Put it innermost.
///
/// [`Policy::wrap`](crate::Policy::wrap) does so by itself; single layers over a client such as
/// `reqwest::Client` need it.
///
/// ```
/// use buttress::{LiftLayer, Timeout};
/// use tower::ServiceBuilder;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let client = ServiceBuilder::new()
///     .layer(Timeout::new(std::time::Duration::from_secs(1)).layer())
///     .layer(LiftLayer)
///     .service_fn(|n: u32| async move { n.checked_sub(1).ok_or("below zero") });
/// assert_eq!(client.send(2).await, Ok(1));
/// assert_eq!(client.send(0).await, Err(buttress::Error::Inner("below zero")));
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Lift<S> {
    inner: S,
}

impl<S> Lift<S> {
    /// Lifts `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner }
    }

    /// The service below.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service below.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

/// The layer of [`Lift`].
///
/// ```
/// # use tower::Layer;
/// let lifted = buttress::LiftLayer.layer(tower::service_fn(|(): ()| async { Ok::<_, std::fmt::Error>(()) }));
/// # let _: buttress::Lift<_> = lifted;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct LiftLayer;

impl<S> Layer<S> for LiftLayer {
    type Service = Lift<S>;

    fn layer(&self, inner: S) -> Lift<S> {
        Lift::new(inner)
    }
}

impl<S: Service<Req>, Req> Service<Req> for Lift<S> {
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = LiftFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Inner)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        LiftFuture { inner: self.inner.call(req) }
    }
}

/// The future of [`Lift`]. Cancel safe if the service's is: dropping it drops that.
#[pin_project]
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct LiftFuture<F> {
    #[pin]
    pub(crate) inner: F,
}

impl<F: Future<Output = Result<T, E>>, T, E> Future for LiftFuture<F> {
    type Output = Result<T, Error<E>>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx).map_err(Error::Inner)
    }
}
