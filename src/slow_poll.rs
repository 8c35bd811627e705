//! [`SlowPoll`]: a warning when one poll keeps its thread for too long.
//!
//! A future runs until it has to wait, and nothing else of its thread runs meanwhile: no other task, no timer. A file that is
//! read with `std::fs`, a hash of a password, a lock that is held elsewhere make everybody slow, and show up as latency of
//! those who have done nothing. This is what names the one who did; `asyncio` has it as `slow_callback_duration`.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use pin_project::pin_project;
use tower::{Layer, Service};
use tracing::warn;

use crate::call::send;

/// Measures each poll of what it is put around, and logs a warning when one takes longer than a threshold. A handle, not itself
/// a layer: `.layer(slow.layer())`; around any future, without tower, it is [`watch`](Self::watch).
///
/// The warning has the target `buttress` and the fields `name`, `took` and `threshold`, and says whether it was a poll of the
/// future, the service's `call` (which runs before there is a future) or its `poll_ready`.
///
/// **Use it** around whatever may block by mistake: handlers, clients of others, a codec of yours; outermost in a stack, to see
/// all of it, and by other names further in, to see which part. It is cheap enough to stay in production. What it finds belongs
/// into `tokio::task::spawn_blocking`, behind a [limit](crate::ConcurrencyLimit), or wants to yield.
///
/// **Not** to bound anything: it tells, and the thread stays blocked; a [timeout](crate::Timeout) cannot help either, as its
/// timer is not looked at until the poll returns. It sees neither response bodies, whose polls come later, nor tasks that
/// were spawned from within; give those a watch of their own. A poll that panics is not told of: the panic is.
///
/// **Cost:** two reads of the clock for each poll and 32 bytes a future; no allocation, no timer, no lock.
///
/// **The clock** is the real one, and not tokio's like everywhere else: that one stands still while it is paused, and a thread
/// is blocked all the same. It is time and not work that counts: on a busy machine the system may take the thread away in
/// the middle of a poll, so take milliseconds for the threshold. `asyncio`'s is 100 ms; a healthy poll takes well
/// below one.
///
/// ```
/// use buttress::SlowPoll;
/// use std::time::Duration;
/// use tower::{BoxError, ServiceBuilder};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
/// let slow = SlowPoll::new("thumbnails", Duration::from_millis(10));
/// let service = ServiceBuilder::new()
///     .layer(slow.layer())
///     .service_fn(|side: u32| async move { Ok::<_, BoxError>(side / 2) });
/// assert_eq!(service.send(640).await?, 320);
///
/// // Any future, one that borrows too.
/// let side = 640;
/// assert_eq!(slow.watch(async { &side }).await, &640);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct SlowPoll {
    name: &'static str,
    threshold: Duration,
}

impl SlowPoll {
    /// Warns by this name of each poll that takes longer than `threshold`. Zero warns of nearly all of them,
    /// [`Duration::MAX`] of none.
    pub fn new(name: &'static str, threshold: Duration) -> Self {
        Self { name, threshold }
    }

    /// The longest that a poll may take without a warning.
    #[must_use]
    pub fn threshold(&self) -> Duration {
        self.threshold
    }

    /// As a tower layer.
    pub fn layer(&self) -> SlowPollLayer {
        SlowPollLayer { slow: *self }
    }

    /// Around a future. Cancel safe if `future` is: dropping it drops that.
    pub fn watch<F: Future>(&self, future: F) -> Watched<F> {
        Watched { slow: *self, future }
    }

    #[inline]
    fn measure<R>(self, what: &'static str, work: impl FnOnce() -> R) -> R {
        let begun = real_time();
        let result = work();
        let took = real_time().saturating_duration_since(begun);
        if took > self.threshold {
            self.tell(what, took);
        }
        result
    }

    #[cold]
    fn tell(self, what: &'static str, took: Duration) {
        let Self { name, threshold } = self;
        warn!(target: "buttress", name, ?took, ?threshold, "{what} kept its thread for too long");
    }
}

/// tokio's clock stands still under a paused runtime while a poll blocks, and what is measured here is just that.
#[inline]
#[allow(clippy::disallowed_methods)] // the one place, for the reason above
fn real_time() -> Instant {
    Instant::now()
}

/// A [`SlowPoll`] as a tower layer.
///
/// ```
/// # use tower::Layer;
/// let layer = buttress::SlowPollLayer::new("codec", std::time::Duration::from_millis(5));
/// let watched = layer.layer(tower::service_fn(|(): ()| async { Ok::<_, std::fmt::Error>(()) }));
/// # let _: buttress::SlowPollService<_> = watched;
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct SlowPollLayer {
    slow: SlowPoll,
}

impl SlowPollLayer {
    /// As [`SlowPoll::new`].
    pub fn new(name: &'static str, threshold: Duration) -> Self {
        SlowPoll::new(name, threshold).layer()
    }
}

impl<S> Layer<S> for SlowPollLayer {
    type Service = SlowPollService<S>;

    fn layer(&self, inner: S) -> SlowPollService<S> {
        SlowPollService { slow: self.slow, inner }
    }
}

/// The service of [`SlowPollLayer`]. Responses and errors are those of the service below, and it asks nothing of them.
///
/// ```
/// # use tower::Layer;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let layer = buttress::SlowPollLayer::new("codec", std::time::Duration::from_millis(5));
/// let watched = layer.layer(tower::service_fn(|n: u32| async move { n.checked_sub(1).ok_or("below zero") }));
/// assert_eq!(watched.send(2).await, Ok(1));
/// assert_eq!(watched.send(0).await, Err("below zero"));
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SlowPollService<S> {
    slow: SlowPoll,
    inner: S,
}

impl<S> SlowPollService<S> {
    /// The service below.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Sends one request through a clone of this service: waits until it is ready, then calls it. Cancel safe if the call is:
    /// dropped before the service is ready, the request is not sent.
    ///
    /// # Errors
    /// The service's error.
    pub fn send<Req>(&self, req: Req) -> impl Future<Output = Result<S::Response, S::Error>> + use<S, Req>
    where
        S: Service<Req> + Clone,
    {
        send(self.clone(), req)
    }
}

impl<S: Service<Req>, Req> Service<Req> for SlowPollService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Watched<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.slow.measure("`poll_ready`", || self.inner.poll_ready(cx))
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let future = self.slow.measure("`call`", || self.inner.call(req));
        self.slow.watch(future)
    }
}

#[cfg(feature = "tonic")]
impl<S: ::tonic::server::NamedService> ::tonic::server::NamedService for SlowPollService<S> {
    const NAME: &'static str = S::NAME;
}

/// The future of [`SlowPoll::watch`] and [`SlowPollService`]. Cancel safe if the one within is: dropping it drops that.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct Watched<F> {
    slow: SlowPoll,
    #[pin]
    future: F,
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.slow.measure("a poll", || this.future.poll(cx))
    }
}

impl<F> fmt::Debug for Watched<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("slow", &self.slow).finish_non_exhaustive()
    }
}
