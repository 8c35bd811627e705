//! The handle and its layer; what is decided here takes the time as an argument.

use std::{borrow::Borrow, convert::Infallible, future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Budget, RetryBuilder, config::bit};
use crate::{
    Backoff, Error, Reason, Reject,
    call::{Calls, Guard, Guarded, Holds, Inline, Parts, Repeating, ResponseFuture, UntilHeaders},
    deadline::Ambient,
    kind::{Cloned, Kind, Plain},
    lift::LiftFuture,
    shutdown,
    spread::Spread,
};

/// When, and how often, to ask again: one budget, shared by its clones, its layers and their services.
///
/// ```
/// use buttress::Retry;
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let retry = Retry::exponential(Duration::from_millis(50)).max_attempts(3).build()?;
/// let answer = retry
///     .run(|attempt| async move { if attempt < 3 { Err(std::io::Error::other("not yet")) } else { Ok(attempt) } })
///     .await?;
/// assert_eq!(answer, 3);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Retry {
    pub(super) name: &'static str,
    pub(super) max_attempts: u32,
    pub(super) backoff: Backoff,
    pub(super) max_retry_after: Duration,
    pub(super) rejected: u8,
    pub(super) throttled: Option<bool>,
    pub(super) budget: Option<Budget>,
    pub(crate) random: Arc<crate::random::Random>,
    pub(super) shutdown: Option<shutdown::Handle>,
}

impl Retry {
    /// Waits `first`, then twice as long each time.
    pub fn exponential(first: Duration) -> RetryBuilder {
        Self::with(Backoff::exponential(first))
    }

    /// Waits `delay` each time.
    pub fn constant(delay: Duration) -> RetryBuilder {
        Self::with(Backoff::constant(delay))
    }

    /// Waits as `backoff` says.
    pub fn with(backoff: Backoff) -> RetryBuilder {
        RetryBuilder::new(backoff)
    }

    /// As a tower layer that clones requests, where `Err` is transient. It clones **all of them**: for requests that are
    /// safe to repeat. [`layer_with`](Self::layer_with) takes a kind that chooses.
    pub fn layer(&self) -> RetryLayer {
        self.layer_with(Cloned::default())
    }

    /// As a tower layer that classifies and repeats as `kind` says.
    pub fn layer_with<K>(&self, kind: K) -> RetryLayer<K>
    where
        RetryParts<Retry, K>: Parts,
    {
        Guard::from(Spread::new(RetryParts { retry: self.clone(), kind }))
    }

    /// Runs what `attempt` makes, told the attempt's number, until it succeeds or gives up; where `Err` is transient.
    ///
    /// Cancel safe if the attempts are: dropped during a backoff, nothing more is started. Over attempts that return an
    /// [`Error<E>`] of ours use [`run_as`](Self::run_as), so that a nested rejection is known as one.
    ///
    /// # Errors
    /// The last attempt's error, unchanged; or a rejection, [`DeadlineExceeded`](Reason::DeadlineExceeded), if the
    /// current deadline is past before the first attempt.
    ///
    /// # Panics
    /// If it must wait outside of a tokio runtime with its timers enabled.
    pub fn run<F, Fut, T, E>(&self, mut attempt: F) -> impl Future<Output = Result<T, Error<E>>> + use<'_, F, Fut, T, E>
    where
        F: FnMut(u32) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let parts = Inline(RetryParts { retry: self, kind: Plain::default() });
        ResponseFuture::lazy(parts, Calls(move |number| LiftFuture { inner: attempt(number) }))
    }

    /// As [`run`](Self::run), for an error that can carry a rejection itself; so that a nested rejection is known as
    /// one, and not retried. Cancel safe if the attempts are.
    ///
    /// # Errors
    /// As `run`.
    pub fn run_as<F, Fut, T, E>(&self, attempt: F) -> impl Future<Output = Result<T, E>> + use<'_, F, Fut, T, E>
    where
        F: FnMut(u32) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: Reject<T>,
    {
        ResponseFuture::lazy(Inline(RetryParts { retry: self, kind: Plain::default() }), Calls(attempt))
    }

    /// The budget, unless it was switched off.
    #[must_use]
    pub fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }

    #[inline]
    pub(crate) fn max_attempts(&self) -> u32 {
        self.max_attempts
    }

    #[inline]
    pub(crate) fn shutdown(&self) -> Option<&shutdown::Handle> {
        self.shutdown.as_ref()
    }

    /// Whether a call refused for this reason is tried again.
    #[inline]
    pub(crate) fn retries(&self, reason: Reason) -> bool {
        self.rejected & bit(reason) != 0
    }

    /// Whether a call that was throttled is tried again, by what its classifier has for such without a hint.
    #[inline]
    pub(crate) fn retries_throttled(&self, usual: bool, hint: Option<Duration>) -> bool {
        self.throttled.unwrap_or(usual || hint.is_some())
    }

    /// For each call, once.
    #[inline]
    pub(crate) fn deposit(&self, now: impl FnOnce() -> Instant) {
        if let Some(budget) = &self.budget {
            budget.deposit(now);
        }
    }

    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        self.budget.as_ref().is_none_or(|budget| budget.withdraw(now, 0))
    }

    pub(crate) fn backoff(&self, attempt: u32, previous: Duration) -> Duration {
        self.backoff.delay(attempt, previous, self.random.unit())
    }

    /// How long to wait; `None`: not at all, give up. Never less than the hint, never up to what remains.
    pub(crate) fn delay(
        &self,
        backoff: Duration,
        hint: Option<Duration>,
        remaining: Option<Duration>,
    ) -> Option<Duration> {
        let hint = hint.unwrap_or_default();
        let delay = backoff.max(hint);
        (hint <= self.max_retry_after && remaining.is_none_or(|remaining| delay < remaining)).then_some(delay)
    }
}

/// The number of the attempt that is being polled, counted from 1: for the service below, and for the closure.
/// `None` outside of any retry.
///
/// ```
/// # use buttress::{retry, Policy};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let policy = Policy::plain("stock").retry(buttress::Retry::constant(std::time::Duration::ZERO)).build().unwrap();
/// let answer = policy.call(|| async { retry::current_attempt().filter(|n| *n == 2).ok_or("again") }).await;
/// assert_eq!(answer, Ok(2));
/// # }
/// ```
#[must_use]
pub fn current_attempt() -> Option<u32> {
    u32::try_from(Ambient::current().attempt).ok().filter(|attempt| *attempt != 0)
}

/// A retry and a kind.
#[derive(Debug)]
pub struct RetryParts<R, K> {
    pub(crate) retry: R,
    pub(crate) kind: K,
}

impl<R: Borrow<Retry>, C, P> Parts for RetryParts<R, Kind<C, P>> {
    type Classify = C;
    type Again = Repeating<P>;
    type Hold = UntilHeaders;
    type Seat<F, H: Holds> = Infallible;
    const SCOPED: bool = true;
    const TAKES: bool = false;

    #[inline]
    fn name(&self) -> &'static str {
        self.retry.borrow().name
    }

    #[inline]
    fn classify(&self) -> &C {
        self.kind.classifier()
    }

    #[inline]
    fn again(&self) -> &Repeating<P> {
        self.kind.again()
    }

    #[inline]
    fn hold(&self) -> &UntilHeaders {
        &UntilHeaders::HERE
    }

    #[inline]
    fn retry(&self) -> Option<&Retry> {
        Some(self.retry.borrow())
    }
}

/// A [`Retry`] as a tower layer.
pub type RetryLayer<K = Cloned> = Guard<Spread<RetryParts<Retry, K>>>;

/// The service of [`RetryLayer`].
pub type RetryService<S, K = Cloned> = Guarded<S, Spread<RetryParts<Retry, K>>>;
