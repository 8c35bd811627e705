//! [`Timeout`]: a bound on one attempt.
//!
//! The timer is armed only when the inner future is found pending, so an answer that is there at once
//! costs neither a timer nor a clock; and whichever of timeout and [deadline](crate::Deadline) is nearer needs
//! the one registration. If the answer and the end of the time meet in one poll, the answer wins. On
//! time-out the inner future is dropped before the error is returned: that is how it is cancelled.

use std::{future::Future, time::Duration};

use crate::{
    Error, Reject,
    call::{Given, Guard, Guarded, Inline, Never, Parts, ResponseFuture, plain},
};

/// A time that one attempt may take, waiting in the layers below included. A handle, not itself a layer:
/// `.layer(timeout.layer())`.
///
/// Use it innermost, below retry and limits, so that it measures the service and not the queue. For the
/// bound on a whole call with its retries use a [deadline](crate::Deadline).
///
/// Zero gives the inner future one poll; [`Duration::MAX`] never fires.
///
/// ```
/// use buttress::{Error, Reason, Timeout};
/// use std::{convert::Infallible, time::Duration};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let timeout = Timeout::new(Duration::from_millis(5));
/// let stalled = timeout.call(std::future::pending::<Result<(), Infallible>>()).await;
/// assert_eq!(stalled.unwrap_err().rejection().unwrap().reason(), Reason::Timeout);
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Timeout {
    name: &'static str,
    duration: Duration,
}

impl Timeout {
    /// A timeout of `duration`, named `timeout`.
    pub fn new(duration: Duration) -> Self {
        Self { name: "timeout", duration }
    }

    /// The name that rejections and logs carry.
    pub fn name(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// How long an attempt may take.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// As a tower layer.
    pub fn layer(&self) -> TimeoutLayer {
        Guard::from(Inline(*self))
    }

    /// Runs `future`, cut off when the time is up. Cancel safe if `future` is.
    ///
    /// # Errors
    /// The future's own error, or a rejection: [`Timeout`](crate::Reason::Timeout), or
    /// [`DeadlineExceeded`](crate::Reason::DeadlineExceeded) if the current deadline was nearer.
    ///
    /// # Panics
    /// If it must wait outside of a tokio runtime with its timers enabled.
    pub fn call<F, T, E>(&self, future: F) -> impl Future<Output = Result<T, Error<E>>> + use<F, T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        ResponseFuture::lazy(Inline(*self), Given::lifted(future))
    }

    /// As [`call`](Self::call), for a future whose error can carry the rejection itself. Cancel safe if `future` is.
    ///
    /// # Errors
    /// The future's own error, or the rejection.
    pub fn call_as<F, T, E>(&self, future: F) -> impl Future<Output = Result<T, E>> + use<F, T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: Reject<T>,
    {
        ResponseFuture::lazy(Inline(*self), Given::new(future))
    }
}

impl Parts for Timeout {
    plain!(Never: Never);

    const TAKES: bool = false;

    #[inline]
    fn name(&self) -> &'static str {
        self.name
    }

    #[inline]
    fn timeout(&self) -> Option<Duration> {
        Some(self.duration)
    }
}

/// A [`Timeout`] as a tower layer. Asks no `Clone` of its service, as it calls it at once and once.
pub type TimeoutLayer = Guard<Inline<Timeout>>;

/// The service of [`TimeoutLayer`].
pub type TimeoutService<S> = Guarded<S, Inline<Timeout>>;

impl TimeoutLayer {
    /// A timeout of `duration`, named `timeout`.
    pub fn new(duration: Duration) -> Self {
        Timeout::new(duration).layer()
    }
}
