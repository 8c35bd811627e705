//! [`Priority`]: who goes first where there is not room for all.
//!
//! A priority belongs to the task that is being polled, as a [`Deadline`](crate::Deadline) does: whoever runs inside a
//! [`scope`](Priority::scope), or behind a [`PriorityLayer`], finds it as [`Priority::current`], and so does every
//! [concurrency limit](crate::ConcurrencyLimit) in whose queue it has to wait. Where nobody waits it costs nothing and matters to nobody.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project::pin_project;
use tower::{Layer, Service};

/// How much is lost if a call is refused. In the queue of a concurrency limit the higher goes first; and where that is full, the
/// lowest gives up its place for whoever is higher.
///
/// The four levels are those of Google's *Site Reliability Engineering* ("Handling Overload"); others lie in between.
///
/// ```
/// use buttress::Priority;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// async fn refresh_the_cache() { assert_eq!(Priority::current(), Priority::SHEDDABLE); }
/// Priority::SHEDDABLE.scope(refresh_the_cache()).await;
/// assert_eq!(Priority::current(), Priority::CRITICAL, "if nobody says anything");
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

thread_local! {
    static CURRENT: Cell<Priority> = const { Cell::new(Priority::CRITICAL) };
}

impl Priority {
    /// Whose loss a user hears of with a siren.
    pub const CRITICAL_PLUS: Self = Self(200);
    /// Whose loss a user sees. What a call is if nobody says anything.
    pub const CRITICAL: Self = Self(150);
    /// What can be done again in a few minutes, as batches are.
    pub const SHEDDABLE_PLUS: Self = Self(100);
    /// What may be missing for hours.
    pub const SHEDDABLE: Self = Self(50);

    /// The higher, the later it is shed.
    #[must_use]
    pub const fn new(level: u8) -> Self {
        Self(level)
    }

    /// The number of the level.
    #[must_use]
    pub const fn level(self) -> u8 {
        self.0
    }

    /// That of the task that is being polled.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// Runs `future` with this priority as the current one. Cancel safe if `future` is. Spawning a task leaves it behind.
    pub fn scope<F: Future>(self, future: F) -> Prioritized<F> {
        Prioritized { priority: self, future }
    }

    fn enter<R>(self, code: impl FnOnce() -> R) -> R {
        // Also if it panics.
        struct Back(Priority);
        impl Drop for Back {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _back = Back(CURRENT.replace(self));
        code()
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::CRITICAL
    }
}

/// The future of [`Priority::scope`] and of a [`PriorityService`]. Cancel safe if the one within is.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct Prioritized<F> {
    priority: Priority,
    #[pin]
    future: F,
}

impl<F: Future> Future for Prioritized<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.priority.enter(|| this.future.poll(cx))
    }
}

impl<F: fmt::Debug> fmt::Debug for Prioritized<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prioritized").field("priority", &self.priority).field("future", &self.future).finish()
    }
}

/// Gives each request its priority, for all concurrency limits below.
///
/// ```
/// use buttress::{Priority, priority::PriorityLayer};
/// use tower::ServiceBuilder;
/// # let service = tower::service_fn(|path: &'static str| async move { Ok::<_, std::io::Error>(path) });
/// let by_path = |path: &&str| if path.starts_with("/report") { Priority::SHEDDABLE } else { Priority::CRITICAL };
/// let service = ServiceBuilder::new().layer(PriorityLayer::new(by_path)).service(service);
/// # let _ = service;
/// ```
#[derive(Clone, Copy)]
#[must_use]
pub struct PriorityLayer<P> {
    priority_of: P,
}

impl<P> PriorityLayer<P> {
    /// By what `priority_of` makes of the request.
    pub fn new<Req>(priority_of: P) -> Self
    where
        P: Fn(&Req) -> Priority,
    {
        Self { priority_of }
    }
}

impl<S, P: Clone> Layer<S> for PriorityLayer<P> {
    type Service = PriorityService<S, P>;

    fn layer(&self, inner: S) -> PriorityService<S, P> {
        PriorityService { inner, priority_of: self.priority_of.clone() }
    }
}

impl<P> fmt::Debug for PriorityLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PriorityLayer").finish_non_exhaustive()
    }
}

/// The service of a [`PriorityLayer`].
///
/// ```
/// use buttress::{Priority, priority::{PriorityLayer, PriorityService}};
/// use tower::Layer;
/// # #[derive(Clone)] struct Client;
/// let reports: PriorityService<Client, fn(&u64) -> Priority> = PriorityLayer::new((|_| Priority::SHEDDABLE) as fn(&_) -> _).layer(Client);
/// # let _ = reports.get_ref();
/// ```
#[derive(Clone, Copy)]
pub struct PriorityService<S, P> {
    inner: S,
    priority_of: P,
}

impl<S, P> PriorityService<S, P> {
    /// The service below.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, P, Req> Service<Req> for PriorityService<S, P>
where
    S: Service<Req>,
    P: Fn(&Req) -> Priority,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Prioritized<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let priority = (self.priority_of)(&req);
        // A limit below is asked in `call`.
        let future = priority.enter(|| self.inner.call(req));
        Prioritized { priority, future }
    }
}

impl<S: fmt::Debug, P> fmt::Debug for PriorityService<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PriorityService").field("inner", &self.inner).finish_non_exhaustive()
    }
}
