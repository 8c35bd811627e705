//! The one notion of success and failure: what an outcome means to every layer.

use std::{fmt, marker::PhantomData, time::Duration};

/// What one outcome says about the service.
///
/// ```
/// use buttress::Verdict;
/// use std::time::Duration;
/// let busy = Verdict::Throttled { retry_after: Some(Duration::from_secs(7)) };
/// assert_eq!(busy.retry_after(), Some(Duration::from_secs(7)));
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Success,
    /// It failed, and may work if asked again. A breaker counts it as a failure; retry asks again.
    Transient {
        /// What the server said about when to come back. Never undercut.
        retry_after: Option<Duration>,
    },
    /// It provably never reached the service: as transient, but safe to send again whatever it asks for.
    Unsent,
    /// It failed, and is not to be asked again: a breaker counts it as a failure, retry gives up.
    Failed,
    /// It refused because it has too much to do. Retried like a transient failure, and counted as one
    /// by a breaker unless it is told otherwise.
    Throttled {
        /// What the server said about when to come back. Never undercut.
        retry_after: Option<Duration>,
    },
    /// It answered, and will answer the same if asked again: the request is at fault. The service is
    /// alive, so a breaker counts it as a success; not retried.
    Permanent,
    /// It says nothing about the service. Not counted, not retried.
    Ignored,
}

impl Verdict {
    /// A transient failure without a hint.
    pub const TRANSIENT: Verdict = Verdict::Transient { retry_after: None };
    /// A throttled call without a hint.
    pub const THROTTLED: Verdict = Verdict::Throttled { retry_after: None };

    /// The server's hint about when to come back.
    #[must_use]
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Verdict::Transient { retry_after } | Verdict::Throttled { retry_after } => retry_after,
            _ => None,
        }
    }

    /// The hint as a time to come back. The longest of all is none: it says not to ask again.
    #[inline]
    pub(crate) fn comes_back_after(self) -> Option<Duration> {
        self.retry_after().filter(|hint| *hint < Duration::MAX)
    }
}

/// Judges outcomes. Any `Fn(Result<&Res, &Cause>) -> Verdict` does.
///
/// ```
/// use buttress::{Classify, Verdict};
///
/// struct ByCode;
///
/// impl<Cause> Classify<u16, Cause> for ByCode {
///     fn classify(&self, outcome: Result<&u16, &Cause>) -> Verdict {
///         match outcome {
///             Ok(500..) | Err(_) => Verdict::TRANSIENT,
///             Ok(400..) => Verdict::Permanent,
///             Ok(_) => Verdict::Success,
///         }
///     }
/// }
/// assert_eq!(ByCode.classify(Ok::<_, &()>(&404)), Verdict::Permanent);
/// ```
///
/// It runs outside every lock. If it panics, the call counts as failed and its permits are given back.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot classify the response `{Res}` beside the error `{Cause}`",
    note = "a classifier is a `Fn(Result<&Response, &Error>) -> Verdict`; write the closure inside `buttress::classify::from_fn`",
    note = "if the types look right, two versions of their crate may be in use: the preset is for reqwest 0.13",
    note = "over `policy.wrap(service)` and `policy.call` the error is the service's own; over `BoxError` it is `dyn Error + Send + Sync`"
)]
pub trait Classify<Res, Cause: ?Sized> {
    /// Whether a call that was [throttled](Verdict::Throttled), without a word about when to come back, is tried again unless
    /// [the retry](crate::RetryBuilder::retry_throttled) says otherwise.
    const RETRIES_THROTTLED: bool = true;

    /// Judges one outcome.
    fn classify(&self, outcome: Result<&Res, &Cause>) -> Verdict;
}

impl<Res, Cause: ?Sized, F: Fn(Result<&Res, &Cause>) -> Verdict> Classify<Res, Cause> for F {
    #[inline]
    fn classify(&self, outcome: Result<&Res, &Cause>) -> Verdict {
        self(outcome)
    }
}

/// The default: `Ok` is a success, `Err` a transient failure.
///
/// ```
/// use buttress::{Classify, ByResult, Verdict};
/// assert_eq!(ByResult.classify(Ok::<&u8, &str>(&1)), Verdict::Success);
/// assert_eq!(ByResult.classify(Err::<&u8, &str>("no")), Verdict::TRANSIENT);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByResult;

impl<Res, Cause: ?Sized> Classify<Res, Cause> for ByResult {
    #[inline]
    fn classify(&self, outcome: Result<&Res, &Cause>) -> Verdict {
        match outcome {
            Ok(_) => Verdict::Success,
            Err(_) => Verdict::TRANSIENT,
        }
    }
}

/// A classifier from a closure, with its types pinned down: spares you the compiler's
/// "implementation of `FnOnce` is not general enough".
///
/// ```
/// use buttress::{classify, Classify, Verdict};
/// let judge = classify::from_fn(|outcome: Result<&u16, &std::io::Error>| match outcome {
///     Ok(status) if *status >= 500 => Verdict::TRANSIENT,
///     Ok(_) => Verdict::Success,
///     Err(_) => Verdict::TRANSIENT,
/// });
/// assert_eq!(judge.classify(Ok(&503)), Verdict::TRANSIENT);
/// ```
pub fn from_fn<Res, Cause: ?Sized, F>(f: F) -> FromFn<F, Res, Cause>
where
    F: Fn(Result<&Res, &Cause>) -> Verdict,
{
    FromFn { f, types: PhantomData }
}

/// The classifier that [`from_fn`] makes, for who has to name its type.
///
/// ```
/// use buttress::{CircuitBreaker, CircuitBreakerLayer, Verdict, classify::{self, FromFn}};
/// fn judge(outcome: Result<&u16, &std::io::Error>) -> Verdict {
///     if outcome.is_ok() { Verdict::Success } else { Verdict::TRANSIENT }
/// }
/// type Judge = FromFn<fn(Result<&u16, &std::io::Error>) -> Verdict, u16, std::io::Error>;
///
/// # fn main() -> Result<(), buttress::ConfigError> {
/// let judge: Judge = classify::from_fn(judge as fn(Result<&u16, &std::io::Error>) -> Verdict);
/// let layer: CircuitBreakerLayer<Judge> = CircuitBreaker::builder().build()?.layer_with(judge);
/// # let _ = layer;
/// # Ok(()) }
/// ```
pub struct FromFn<F, Res, Cause: ?Sized> {
    f: F,
    types: PhantomData<fn(&Res, &Cause)>,
}

impl<F, Res, Cause: ?Sized> fmt::Debug for FromFn<F, Res, Cause> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFn").finish_non_exhaustive()
    }
}

impl<F: Clone, Res, Cause: ?Sized> Clone for FromFn<F, Res, Cause> {
    fn clone(&self) -> Self {
        Self { f: self.f.clone(), types: PhantomData }
    }
}

impl<Res, Cause: ?Sized, F> Classify<Res, Cause> for FromFn<F, Res, Cause>
where
    F: Fn(Result<&Res, &Cause>) -> Verdict,
{
    #[inline]
    fn classify(&self, outcome: Result<&Res, &Cause>) -> Verdict {
        (self.f)(outcome)
    }
}
