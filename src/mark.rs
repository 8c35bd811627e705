//! What a task is marked with for the [concurrency limits](crate::ConcurrencyLimit) below: its [`Priority`](crate::Priority), its
//! [`Partition`](crate::Partition).
//!
//! A mark belongs to the task that is being polled, as a [`Deadline`](crate::Deadline) does: whoever runs inside its scope, or behind a
//! [`MarkLayer`], finds it as the current one. Spawning a task leaves it behind.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
    thread::LocalKey,
};

use pin_project::pin_project;
use tower::{Layer, Service};

pub(crate) mod sealed {
    use super::{Cell, LocalKey};

    pub trait Sealed: Copy + 'static {
        /// That of the task that is being polled, if it has one.
        fn current() -> &'static LocalKey<Cell<Option<Self>>>;
    }
}

/// What tasks are marked with: [`Priority`](crate::Priority) and [`Partition`](crate::Partition).
pub trait Mark: sealed::Sealed {}

impl<M: sealed::Sealed> Mark for M {}

fn enter<M: Mark, R>(mark: M, code: impl FnOnce() -> R) -> R {
    // Also if it panics.
    struct Back<M: Mark>(Option<M>);
    impl<M: Mark> Drop for Back<M> {
        fn drop(&mut self) {
            M::current().set(self.0);
        }
    }
    let _back = Back(M::current().replace(Some(mark)));
    code()
}

/// The future of [`Priority::scope`](crate::Priority::scope), of [`Partition::scope`](crate::Partition::scope) and of a
/// [`MarkService`]. Cancel safe if the one within is.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct Marked<M, F> {
    mark: M,
    #[pin]
    future: F,
}

impl<M: Mark, F: Future> Marked<M, F> {
    pub(crate) fn new(mark: M, future: F) -> Self {
        Self { mark, future }
    }
}

impl<M: Mark, F: Future> Future for Marked<M, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        enter(*this.mark, || this.future.poll(cx))
    }
}

impl<M: fmt::Debug, F: fmt::Debug> fmt::Debug for Marked<M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Marked").field("mark", &self.mark).field("future", &self.future).finish()
    }
}

/// Marks each request, for all concurrency limits below. It is [`PriorityLayer`](crate::priority::PriorityLayer) and
/// [`PartitionLayer`](crate::partition::PartitionLayer), by what it is made with.
///
/// ```
/// use buttress::{Partition, Priority, mark::MarkLayer};
/// use tower::ServiceBuilder;
/// # let service = tower::service_fn(|path: &'static str| async move { Ok::<_, std::io::Error>(path) });
/// let service = ServiceBuilder::new()
///     .layer(MarkLayer::new(|_: &&str| Partition::new("reports")))
///     .layer(MarkLayer::new(|_: &&str| Priority::SHEDDABLE))
///     .service(service);
/// # let _ = service;
/// ```
#[must_use]
pub struct MarkLayer<M, P> {
    mark_of: P,
    mark: PhantomData<fn() -> M>,
}

impl<M, P> MarkLayer<M, P> {
    /// With what `mark_of` makes of the request.
    pub fn new<Req>(mark_of: P) -> Self
    where
        P: Fn(&Req) -> M,
    {
        Self { mark_of, mark: PhantomData }
    }
}

impl<M, P: Clone> Clone for MarkLayer<M, P> {
    fn clone(&self) -> Self {
        Self { mark_of: self.mark_of.clone(), mark: PhantomData }
    }
}

impl<S, M, P: Clone> Layer<S> for MarkLayer<M, P> {
    type Service = MarkService<S, M, P>;

    fn layer(&self, inner: S) -> MarkService<S, M, P> {
        MarkService { inner, layer: self.clone() }
    }
}

impl<M, P> fmt::Debug for MarkLayer<M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MarkLayer").finish_non_exhaustive()
    }
}

/// The service of a [`MarkLayer`].
///
/// ```
/// use buttress::{Priority, mark::MarkService, priority::PriorityLayer};
/// use tower::Layer;
/// # #[derive(Clone)] struct Client;
/// type Reports = MarkService<Client, Priority, fn(&u64) -> Priority>;
/// let reports: Reports = PriorityLayer::new((|_| Priority::SHEDDABLE) as fn(&_) -> _).layer(Client);
/// # let _ = reports.get_ref();
/// ```
pub struct MarkService<S, M, P> {
    inner: S,
    layer: MarkLayer<M, P>,
}

impl<S, M, P> MarkService<S, M, P> {
    /// The service below.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: Clone, M, P: Clone> Clone for MarkService<S, M, P> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S, M, P, Req> Service<Req> for MarkService<S, M, P>
where
    S: Service<Req>,
    M: Mark,
    P: Fn(&Req) -> M,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Marked<M, S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let mark = (self.layer.mark_of)(&req);
        // A limit below is asked in `call`.
        let future = enter(mark, || self.inner.call(req));
        Marked { mark, future }
    }
}

impl<S: fmt::Debug, M, P> fmt::Debug for MarkService<S, M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MarkService").field("inner", &self.inner).finish_non_exhaustive()
    }
}
