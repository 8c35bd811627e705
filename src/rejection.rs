//! How a call that was refused, or cut off, shows up to its caller.
//!
//! Every layer keeps the error type of the service below it and asks only that it can carry a
//! [`Rejection`]: that is the trait [`Reject`]. `BoxError`, [`Error<E>`], `io::Error` and, by feature
//! `http`, `Infallible` beside an HTTP response do so already; [`impl_reject!`](crate::impl_reject)
//! teaches it to an enum of yours. For a client whose error cannot be constructed there is
//! [`Lift`](crate::Lift), and [`Policy::wrap`](crate::Policy::wrap) that applies it.

use std::{error::Error as StdError, fmt, io, time::Duration};

use tower::BoxError;
use tracing::debug;

use crate::clock::nanos;

/// The condition under which a call was refused or cut off.
///
/// ```
/// use buttress::{Reason, Rejection};
/// fn status(no: &Rejection) -> u16 {
///     match no.reason() {
///         Reason::Timeout | Reason::DeadlineExceeded => 504,
///         _ => 503,
///     }
/// }
/// # let limit = buttress::ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
/// # let _held = limit.try_acquire();
/// # assert_eq!(status(&limit.try_acquire().unwrap_err()), 503);
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The circuit breaker is open, or half-open with all its probes out.
    CircuitOpen,
    /// The concurrency limit and its queue are full, the wait in the queue was too long, the runtime is late, or the service accepts
    /// too few calls.
    Overloaded,
    /// One attempt took longer than the attempt timeout.
    Timeout,
    /// The whole call ran out of time, or had none left when it began.
    DeadlineExceeded,
    /// The process shuts down: nothing new is admitted, and nothing waits or is tried again.
    ShuttingDown,
}

/// The rule within the layer that decided.
///
/// ```
/// use buttress::Rule;
/// assert_eq!(Rule::FailureRate.as_str(), "failure_rate");
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)] // see `Rejection`
pub enum Rule {
    /// The share of failed calls in the window reached its threshold.
    FailureRate,
    /// The share of slow calls in the window reached its threshold.
    SlowCallRate,
    /// So many calls failed one after the other.
    ConsecutiveFailures,
    /// The probes of a half-open circuit failed.
    ProbesFailed,
    /// The probes of a half-open circuit did not answer within their lease.
    ProbeLease,
    /// A half-open circuit has all its probes out.
    ProbesOut,
    /// Somebody forced the circuit open.
    Forced,
    /// As many calls are in flight as may be, and there is no queue, or the caller does not wait.
    LimitReached,
    /// The queue of the concurrency limit is full.
    QueueFull,
    /// The call waited in the queue for as long as it may.
    MaxWait,
    /// The call waited for too long in a queue that stands.
    QueueStands,
    /// The call has less time left than an answer takes: it is refused before it is asked in vain.
    TooLate,
    /// The runtime itself is late, by more than it may be.
    RuntimeLate,
    /// The service accepts too small a share of the calls: so many are not sent at all, by chance.
    AcceptRate,
    /// The attempt timeout.
    AttemptTimeout,
    /// The body of the response was silent for too long.
    BodyIdle,
    /// The body of the response took too long.
    BodyTimeout,
    /// The deadline of the whole call.
    Deadline,
    /// The shutdown drains: nothing waits or is tried again.
    Draining,
    /// The shutdown has closed its gate: nothing new is admitted.
    Stopping,
}

impl Rule {
    /// The condition that it is a rule of.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Rule::FailureRate
            | Rule::SlowCallRate
            | Rule::ConsecutiveFailures
            | Rule::ProbesFailed
            | Rule::ProbeLease
            | Rule::ProbesOut
            | Rule::Forced => Reason::CircuitOpen,
            Rule::LimitReached
            | Rule::QueueFull
            | Rule::MaxWait
            | Rule::QueueStands
            | Rule::TooLate
            | Rule::RuntimeLate
            | Rule::AcceptRate => Reason::Overloaded,
            Rule::AttemptTimeout | Rule::BodyIdle | Rule::BodyTimeout => Reason::Timeout,
            Rule::Deadline => Reason::DeadlineExceeded,
            Rule::Draining | Rule::Stopping => Reason::ShuttingDown,
        }
    }

    pub(crate) const ALL: [Rule; 20] = [
        Rule::FailureRate,
        Rule::SlowCallRate,
        Rule::ConsecutiveFailures,
        Rule::ProbesFailed,
        Rule::ProbeLease,
        Rule::ProbesOut,
        Rule::Forced,
        Rule::LimitReached,
        Rule::QueueFull,
        Rule::MaxWait,
        Rule::QueueStands,
        Rule::TooLate,
        Rule::RuntimeLate,
        Rule::AcceptRate,
        Rule::AttemptTimeout,
        Rule::BodyIdle,
        Rule::BodyTimeout,
        Rule::Deadline,
        Rule::Draining,
        Rule::Stopping,
    ];

    /// The stable name that logs carry.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::FailureRate => "failure_rate",
            Rule::SlowCallRate => "slow_call_rate",
            Rule::ConsecutiveFailures => "consecutive_failures",
            Rule::ProbesFailed => "probes_failed",
            Rule::ProbeLease => "probe_lease",
            Rule::ProbesOut => "probes_out",
            Rule::Forced => "forced",
            Rule::LimitReached => "limit_reached",
            Rule::QueueFull => "queue_full",
            Rule::MaxWait => "max_wait",
            Rule::QueueStands => "queue_stands",
            Rule::TooLate => "too_late",
            Rule::RuntimeLate => "runtime_late",
            Rule::AcceptRate => "accept_rate",
            Rule::AttemptTimeout => "attempt_timeout",
            Rule::BodyIdle => "body_idle",
            Rule::BodyTimeout => "body_timeout",
            Rule::Deadline => "deadline",
            Rule::Draining => "draining",
            Rule::Stopping => "stopping",
        }
    }
}

/// Why a call was refused or cut off: which layer, which rule, what was measured against which
/// threshold, and when to come back.
///
/// It is small (48 bytes), cheap to clone and allocates nothing to build, so that saying no stays
/// cheap when there is much to refuse.
///
/// ```
/// # use buttress::{CircuitBreaker, Reason};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let breaker = CircuitBreaker::builder().name("payments").build()?;
/// breaker.force_open();
/// let rejection = breaker.try_acquire().unwrap_err();
/// assert_eq!(rejection.reason(), Reason::CircuitOpen);
/// assert_eq!(rejection.to_string(), "circuit breaker `payments` is open: forced open");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy)]
pub struct Rejection {
    name: &'static str,
    /// Nanoseconds; [`NEVER`] if it is not known. Whole words only, without gaps: a rejection is moved about, and what is
    /// copied in pieces costs more than all else that is done to refuse a call.
    retry_after: u64,
    figures: Figures,
    rule: Rule,
}

/// `measured: f32 | threshold: f32`; `NaN` stands for a figure that there is none of.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Figures(u64);

impl Figures {
    #[inline]
    fn new(measured: f32, threshold: f32) -> Self {
        Self(u64::from(measured.to_bits()) << 32 | u64::from(threshold.to_bits()))
    }

    fn measured(self) -> f32 {
        f32::from_bits((self.0 >> 32) as u32)
    }

    fn threshold(self) -> f32 {
        f32::from_bits(self.0 as u32)
    }
}

/// No time to come back is known.
const NEVER: u64 = u64::MAX;

/// Some time, as long as it may be.
fn known(nanos: u64) -> u64 {
    nanos.min(NEVER - 1)
}

impl Rejection {
    /// `NaN` stands for a figure that there is none of.
    #[inline]
    pub(crate) fn new(name: &'static str, rule: Rule, measured: f32, threshold: f32) -> Self {
        Self { name, retry_after: NEVER, figures: Figures::new(measured, threshold), rule }
    }

    #[inline]
    pub(crate) fn circuit_open(
        name: &'static str,
        rule: Rule,
        measured: f32,
        threshold: f32,
        retry_after: Option<u64>,
    ) -> Self {
        let retry_after = retry_after.map_or(NEVER, known);
        Self { name, retry_after, figures: Figures::new(measured, threshold), rule }
    }

    /// By a deadline of somebody else's, of whom nobody knows how long it was.
    #[inline]
    pub(crate) fn too_late(name: &'static str) -> Self {
        Self::new(name, Rule::Deadline, f32::NAN, f32::NAN)
    }

    /// By a policy that would have to wait, or to ask again.
    #[inline]
    pub(crate) fn draining(name: &'static str) -> Self {
        Self::new(name, Rule::Draining, f32::NAN, f32::NAN)
    }

    /// By the gate of the shutdown.
    /// The same, and when to come back.
    pub(crate) fn with_retry_after(self, time: Duration) -> Self {
        Self { retry_after: known(nanos(time)), ..self }
    }

    pub(crate) fn stopping(name: &'static str, retry_after: Duration) -> Self {
        Self { retry_after: known(nanos(retry_after)), ..Self::new(name, Rule::Stopping, f32::NAN, f32::NAN) }
    }

    #[inline]
    pub(crate) fn log(&self) {
        // A copy is looked at, so that the rejection itself need not be in memory. No look at the level here: by tracing's
        // feature `log`, records go to the `log` crate if there is no subscriber.
        let heard = *self;
        heard.tell();
    }

    #[cold]
    #[inline(never)]
    fn tell(&self) {
        debug!(
            target: "buttress",
            name = self.name(),
            reason = ?self.reason(),
            rule = self.rule().as_str(),
            measured = self.measured(),
            threshold = self.threshold(),
            retry_after = ?self.retry_after(),
            "call rejected"
        );
    }

    /// The name of the policy or of the single layer that said no.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The condition.
    #[must_use]
    #[inline]
    pub fn reason(&self) -> Reason {
        self.rule.reason()
    }

    /// The rule that decided.
    #[must_use]
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// What was measured: a rate, a count, or seconds, as the [rule](Self::rule) says.
    #[must_use]
    pub fn measured(&self) -> Option<f32> {
        Some(self.figures.measured()).filter(|figure| !figure.is_nan())
    }

    /// What it was held against, in the unit of [`measured`](Self::measured).
    #[must_use]
    pub fn threshold(&self) -> Option<f32> {
        Some(self.figures.threshold()).filter(|figure| !figure.is_nan())
    }

    /// How long to wait before another call can be admitted, where the layer knows.
    ///
    /// For an open circuit this is exact: a call is refused before it has passed, and the first
    /// callers at that moment are admitted as probes. For a half-open circuit it is what remains of
    /// the probes' lease, which is the longest that a decision can take.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        (self.retry_after != NEVER).then(|| Duration::from_nanos(self.retry_after))
    }

    /// The rejection that an error is, or that is anywhere among its sources: for errors that others have wrapped, such as
    /// that of a client, of a response's body, or a `tonic::Status`.
    ///
    /// ```
    /// use buttress::{ConcurrencyLimit, Rejection};
    /// let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    /// let _held = limit.try_acquire();
    /// let wrapped = std::io::Error::other(limit.try_acquire().unwrap_err());
    /// assert_eq!(Rejection::find(&wrapped).unwrap().name(), "concurrency_limit");
    /// ```
    #[must_use]
    pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        std::iter::from_fn(|| {
            let error = next?;
            // An `io::Error` leaves what it wraps out of its chain.
            let wrapped = error.downcast_ref().and_then(io::Error::get_ref);
            next = match wrapped {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
            Some(error)
        })
        .find_map(|error| error.downcast_ref())
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        let (measured, threshold) = (self.figures.measured(), self.figures.threshold());
        match self.reason() {
            Reason::CircuitOpen if self.rule == Rule::ProbesOut => {
                write!(f, "circuit breaker `{name}` is half-open: ")?
            }
            Reason::CircuitOpen => write!(f, "circuit breaker `{name}` is open: ")?,
            Reason::Overloaded if self.rule == Rule::RuntimeLate => write!(f, "runtime of `{name}` is overloaded: ")?,
            Reason::Overloaded if self.rule == Rule::AcceptRate => {
                write!(f, "service behind `{name}` is overloaded: ")?
            }
            Reason::Overloaded => write!(f, "concurrency limit `{name}` is overloaded: ")?,
            Reason::Timeout if matches!(self.rule, Rule::BodyIdle | Rule::BodyTimeout) => {
                write!(f, "response of `{name}` timed out: ")?
            }
            Reason::Timeout => write!(f, "attempt of `{name}` timed out: ")?,
            Reason::DeadlineExceeded => write!(f, "deadline of `{name}` exceeded: ")?,
            Reason::ShuttingDown => write!(f, "`{name}` is shutting down: ")?,
        }
        match self.rule {
            Rule::FailureRate => write!(f, "failure rate {measured:.2} >= {threshold:.2}")?,
            Rule::SlowCallRate => write!(f, "slow-call rate {measured:.2} >= {threshold:.2}")?,
            Rule::ConsecutiveFailures => write!(f, "{measured} consecutive failures >= {threshold}")?,
            Rule::ProbesFailed => write!(f, "probe failure rate {measured:.2} >= {threshold:.2}")?,
            Rule::ProbeLease => write!(f, "{measured} of {threshold} probes answered within their lease")?,
            Rule::ProbesOut => write!(f, "all {threshold} probes are out")?,
            Rule::Forced => f.write_str("forced open")?,
            Rule::LimitReached => write!(f, "{measured} in flight, {threshold} allowed")?,
            Rule::QueueFull => write!(f, "{measured} waiting, {threshold} allowed")?,
            Rule::MaxWait => write!(f, "waited {measured:.3} s, {threshold:.3} s is the most")?,
            Rule::QueueStands => write!(f, "waited {measured:.3} s in a queue that stands, {threshold:.3} s allowed")?,
            Rule::TooLate => write!(f, "{measured:.3} s left, {threshold:.3} s needed")?,
            Rule::RuntimeLate => write!(f, "{measured:.3} s late, {threshold:.3} s allowed")?,
            Rule::AcceptRate => write!(f, "accept rate {measured:.2} < {threshold:.2}")?,
            Rule::AttemptTimeout => write!(f, "{measured:.3} s, {threshold:.3} s allowed")?,
            Rule::BodyIdle => write!(f, "its body was silent for {threshold:.3} s")?,
            Rule::BodyTimeout => write!(f, "its body took more than {threshold:.3} s")?,
            Rule::Deadline if threshold.is_nan() => f.write_str("no time left")?,
            Rule::Deadline => write!(f, "no time left of {threshold:.3} s")?,
            Rule::Draining => f.write_str("nothing waits or is tried again")?,
            Rule::Stopping => f.write_str("nothing new is admitted")?,
        }
        match self.retry_after() {
            Some(after) => write!(f, "; retry after {after:.1?}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection")
            .field("name", &self.name)
            .field("retry_after", &self.retry_after())
            .field("measured", &self.measured())
            .field("threshold", &self.threshold())
            .field("reason", &self.reason())
            .field("rule", &self.rule)
            .finish()
    }
}

impl StdError for Rejection {
    /// By feature `tonic` the `Status` of its reason, for tonic's clients to find.
    #[cfg(feature = "tonic")]
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(crate::http::tonic::status_of(self.reason()))
    }
}

/// By the bits of the figures, so that "no figure" (`NaN`) equals itself.
impl PartialEq for Rejection {
    fn eq(&self, other: &Self) -> bool {
        let key = |r: &Self| (r.name, r.rule, r.figures, r.retry_after);
        key(self) == key(other)
    }
}

impl Eq for Rejection {}

/// An error of the service, or a rejection of ours. Flat with layers and the `…_as` functions, however many there are;
/// `call`, `run` and `wrap` add one level each, and take what is below, nested rejections too, for the service's own error.
///
/// This is the error of [`Policy::wrap`](crate::Policy::wrap), of [`Lift`](crate::Lift) and of the plain
/// async functions. `Display` and `source` of an error are the error's own, as if the wrapper were not there. A
/// rejection is its own source too, so that layers further out find it in whatever it gets boxed into.
///
/// ```
/// use buttress::{Error, Reason};
///
/// fn advise(error: &Error<std::io::Error>) -> &'static str {
///     match error {
///         Error::Rejected(r) if r.reason() == Reason::CircuitOpen => "try another replica",
///         Error::Rejected(_) => "slow down",
///         Error::Inner(_) => "report it",
///     }
/// }
/// assert_eq!(advise(&Error::Inner(std::io::Error::other("boom"))), "report it");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The service's own error, unchanged.
    Inner(E),
    /// The call was refused or cut off by a layer of ours.
    Rejected(Rejection),
}

impl<E> Error<E> {
    /// The service's error, if it is one.
    pub fn into_inner(self) -> Option<E> {
        match self {
            Error::Inner(error) => Some(error),
            Error::Rejected(_) => None,
        }
    }

    /// The service's error, if it is one.
    pub fn inner(&self) -> Option<&E> {
        match self {
            Error::Inner(error) => Some(error),
            Error::Rejected(_) => None,
        }
    }

    /// The rejection, if it is one.
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Error::Inner(_) => None,
            Error::Rejected(rejection) => Some(rejection),
        }
    }
}

impl<E: From<Rejection>> Error<E> {
    /// The service's error, with a rejection turned into one: for `anyhow::Error` and the like.
    ///
    /// ```
    /// use buttress::{Error, Rejection};
    ///
    /// # #[derive(Debug)]
    /// struct Report(String); // such as `anyhow::Error`
    /// impl From<Rejection> for Report {
    ///     fn from(rejection: Rejection) -> Self {
    ///         Report(rejection.to_string())
    ///     }
    /// }
    /// # async fn fetch() -> Result<u8, Report> { Err(Report("boom".into())) }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let policy = buttress::Policy::plain("api").build().unwrap();
    /// let outcome: Result<u8, Report> = policy.call(|| fetch()).await.map_err(Error::merge);
    /// # assert_eq!(outcome.unwrap_err().0, "boom");
    /// # }
    /// ```
    pub fn merge(self) -> E {
        match self {
            Error::Inner(error) => error,
            Error::Rejected(rejection) => rejection.into(),
        }
    }
}

impl<E: Into<BoxError>> Error<E> {
    /// The error in a box: what `?` cannot do for `Error<BoxError>`, as a box is not itself an error.
    ///
    /// ```
    /// use buttress::Error;
    /// let boxed: tower::BoxError = Error::Inner::<tower::BoxError>("boom".into()).into_boxed();
    /// assert_eq!(boxed.to_string(), "boom");
    /// ```
    pub fn into_boxed(self) -> BoxError {
        match self {
            Error::Inner(error) => error.into(),
            Error::Rejected(rejection) => Box::new(rejection),
        }
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Inner(error) => error.fmt(f),
            Error::Rejected(rejection) => rejection.fmt(f),
        }
    }
}

impl<E: StdError + 'static> StdError for Error<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Inner(error) => error.source(),
            Error::Rejected(rejection) => Some(rejection),
        }
    }
}

/// What an outcome really is, as a [`Reject`] type tells it.
///
/// ```
/// use buttress::{Error, Outcome, Reject};
/// let outcome: Result<u8, Error<&str>> = Err(Error::Inner("boom"));
/// assert!(matches!(Error::inspect(&outcome), Outcome::Err(&"boom")));
/// ```
#[derive(Debug)]
pub enum Outcome<'a, Res, Cause: ?Sized> {
    /// The service answered.
    Ok(&'a Res),
    /// The service failed.
    Err(&'a Cause),
    /// A layer of ours refused the call or cut it off.
    Rejected(&'a Rejection),
}

/// An error type that can carry a [`Rejection`] beside responses of type `Res`.
///
/// Layers ask it of `S::Error`, so that they need no error type of their own. Implement it by
/// [`impl_reject!`](crate::impl_reject) for an enum of yours; by hand for what carries a rejection in a way of its own:
///
/// ```
/// use buttress::{Outcome, Reject, Rejection};
///
/// #[derive(Debug)]
/// struct Status(u16, Option<Rejection>);
///
/// impl<Res> Reject<Res> for Status {
///     type Cause = Status;
///
///     fn reject(rejection: Rejection) -> Result<Res, Self> {
///         Err(Status(503, Some(rejection)))
///     }
///
///     fn inspect(outcome: &Result<Res, Self>) -> Outcome<'_, Res, Status> {
///         match outcome {
///             Ok(res) => Outcome::Ok(res),
///             Err(Status(_, Some(rejection))) => Outcome::Rejected(rejection),
///             Err(status) => Outcome::Err(status),
///         }
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let breaker = buttress::CircuitBreaker::builder().build().unwrap();
/// # breaker.force_open();
/// # assert_eq!(breaker.call_as(async { Ok::<(), Status>(()) }).await.unwrap_err().0, 503);
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "the error type `{Self}` cannot carry a rejection beside the response `{Res}`",
    label = "a buttress layer over a service with this error has no way to say \"rejected\"",
    note = "use `policy.wrap(service)`, or put `buttress::LiftLayer` innermost: the error becomes `buttress::Error<{Self}>`",
    note = "for an enum of your own: `buttress::impl_reject!(MyError, MyError::Rejected)`",
    note = "for an axum router (`Infallible`): enable buttress' feature `http`",
    note = "where only `oneshot` or `ready` fails to compile, call `.send(request)` instead: it tells why"
)]
pub trait Reject<Res>: Sized {
    /// What classifiers see of an error.
    type Cause: ?Sized;

    /// Turns a rejection into an outcome.
    #[allow(clippy::missing_errors_doc)] // it is what this function makes
    fn reject(rejection: Rejection) -> Result<Res, Self>;

    /// Tells a rejection, also of a nested layer, from an answer and from a failure.
    fn inspect(outcome: &Result<Res, Self>) -> Outcome<'_, Res, Self::Cause>;
}

impl<Res, E> Reject<Res> for Error<E> {
    type Cause = E;

    #[inline]
    fn reject(rejection: Rejection) -> Result<Res, Self> {
        Err(Error::Rejected(rejection))
    }

    #[inline]
    fn inspect(outcome: &Result<Res, Self>) -> Outcome<'_, Res, E> {
        match outcome {
            Ok(res) => Outcome::Ok(res),
            Err(Error::Inner(error)) => Outcome::Err(error),
            Err(Error::Rejected(rejection)) => Outcome::Rejected(rejection),
        }
    }
}

/// The rejection is boxed, and found among the sources of whatever was boxed around it.
///
/// Where `tokio::spawn(async move { service.send(req).await })` fails with "implementation of `Reject` is not general
/// enough", which is a limit of the compiler's and not of this impl: spawn `service.send(req)` itself, or box the service once
/// (`tower::util::BoxCloneSyncService`).
impl<Res> Reject<Res> for BoxError {
    type Cause = dyn StdError + Send + Sync;

    fn reject(rejection: Rejection) -> Result<Res, Self> {
        Err(Box::new(rejection))
    }

    #[inline]
    fn inspect(outcome: &Result<Res, Self>) -> Outcome<'_, Res, Self::Cause> {
        match outcome {
            Ok(res) => Outcome::Ok(res),
            Err(error) => match Rejection::find(&**error) {
                Some(rejection) => Outcome::Rejected(rejection),
                None => Outcome::Err(&**error),
            },
        }
    }
}

impl<Res> Reject<Res> for io::Error {
    type Cause = io::Error;

    fn reject(rejection: Rejection) -> Result<Res, Self> {
        let kind = match rejection.reason() {
            Reason::Timeout | Reason::DeadlineExceeded => io::ErrorKind::TimedOut,
            Reason::CircuitOpen => io::ErrorKind::ConnectionRefused,
            Reason::Overloaded | Reason::ShuttingDown => io::ErrorKind::ResourceBusy,
        };
        Err(io::Error::new(kind, rejection))
    }

    #[inline]
    fn inspect(outcome: &Result<Res, Self>) -> Outcome<'_, Res, io::Error> {
        match outcome {
            Ok(res) => Outcome::Ok(res),
            Err(error) => match error.get_ref().and_then(|inner| Rejection::find(inner)) {
                Some(rejection) => Outcome::Rejected(rejection),
                None => Outcome::Err(error),
            },
        }
    }
}

/// Teaches an error enum of yours to carry a [`Rejection`]: the type, then the variant that holds it.
///
/// ```
/// #[derive(Debug)]
/// enum ApiError {
///     NotFound,
///     Rejected(buttress::Rejection),
/// }
/// buttress::impl_reject!(ApiError, ApiError::Rejected);
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let timeout = buttress::Timeout::new(std::time::Duration::from_secs(1));
/// let found = timeout.call_as(async { Err::<u32, _>(ApiError::NotFound) }).await;
/// assert!(matches!(found, Err(ApiError::NotFound)));
/// # }
/// ```
#[macro_export]
macro_rules! impl_reject {
    ($error:ty, $($variant:tt)+) => {
        impl<Res> $crate::Reject<Res> for $error {
            type Cause = $error;

            fn reject(rejection: $crate::Rejection) -> ::core::result::Result<Res, Self> {
                ::core::result::Result::Err($($variant)+(rejection))
            }

            fn inspect(
                outcome: &::core::result::Result<Res, Self>,
            ) -> $crate::Outcome<'_, Res, Self::Cause> {
                match outcome {
                    ::core::result::Result::Ok(res) => $crate::Outcome::Ok(res),
                    ::core::result::Result::Err($($variant)+(rejection)) => {
                        $crate::Outcome::Rejected(rejection)
                    }
                    #[allow(unreachable_patterns)]
                    ::core::result::Result::Err(error) => $crate::Outcome::Err(error),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_back_is_one_however_long_it_is() {
        let most = Some(Duration::from_nanos(u64::MAX - 1));
        assert_eq!(Rejection::stopping("process", Duration::MAX).retry_after(), most);
        let open = |retry_after| Rejection::circuit_open("users", Rule::Forced, f32::NAN, f32::NAN, retry_after);
        assert_eq!(open(Some(u64::MAX)).retry_after(), most);
        assert_eq!(open(Some(1)).retry_after(), Some(Duration::from_nanos(1)));
        assert_eq!(open(None).retry_after(), None);
    }

    #[test]
    fn rejections_are_equal_if_they_say_the_same() {
        let full = |name, measured, threshold| Rejection::new(name, Rule::LimitReached, measured, threshold);
        let one = full("users", 4.0, 4.0);
        assert_eq!(one, full("users", 4.0, 4.0));
        assert_eq!(Rejection::draining("users"), Rejection::draining("users"), "of no figures");
        for other in [
            full("orders", 4.0, 4.0),
            full("users", 5.0, 4.0),
            full("users", 4.0, 5.0),
            Rejection::new("users", Rule::QueueFull, 4.0, 4.0),
            Rejection { retry_after: 7, ..one },
        ] {
            assert_ne!(one, other);
        }
    }
}
