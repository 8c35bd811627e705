//! [`Deadline`]: one point in time that the whole call, and every call nested in it, must not outlive.
//!
//! A deadline belongs to the task that is being polled: whoever runs inside a
//! [policy](crate::Policy::call) with a deadline, a [`DeadlineLayer`] or a [`scope`](Deadline::scope) finds it as
//! [`Deadline::current`], and nested policies shorten theirs to it. Spawning a task leaves it behind;
//! [`Deadline::carry`] takes it along.
//!
//! The deadline of a layer starts lazily, so that an immediate answer reads no clock: when its call is
//! first found pending, or when anyone asks for it. Scopes around it that wait to start begin with it.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll},
    time::Duration,
};

use pin_project::pin_project;
use tokio::time::Instant;

use crate::{
    Error,
    call::{Given, Guard, Guarded, Inline, Parts, ResponseFuture, Unrepeated, plain},
    clock::{self, after, now},
};

/// No deadline, one that has yet to start, or a point in time: in one word, since it is swapped in and out
/// of the thread at every poll.
///
/// Layout: `0` is none; bit 63 set: nanoseconds to run once started; else nanoseconds since [`base`],
/// biased, so that a paused clock of another runtime may lie before the base.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Moment(u64);

const LAZY: u64 = 1 << 63;
const BIAS: u64 = 1 << 61;

fn base() -> Instant {
    static BASE: OnceLock<Instant> = OnceLock::new();
    *BASE.get_or_init(now)
}

/// Within what a biased word holds: 73 years.
fn nanos(duration: Duration) -> u64 {
    clock::nanos(duration).min(BIAS - 1)
}

impl Moment {
    const NONE: Moment = Moment(0);

    #[inline]
    fn after(duration: Duration) -> Self {
        Moment(LAZY | nanos(duration))
    }

    fn at(instant: Instant) -> Self {
        let base = base();
        match instant.checked_duration_since(base) {
            Some(later) => Moment(BIAS + nanos(later)),
            None => Moment(BIAS - nanos(base.duration_since(instant))),
        }
    }

    #[inline]
    pub(crate) fn is_none(self) -> bool {
        self == Self::NONE
    }

    #[inline]
    fn is_lazy(self) -> bool {
        self.0 & LAZY != 0
    }

    #[inline]
    pub(crate) fn is_started(self) -> bool {
        !self.is_none() && !self.is_lazy()
    }

    /// The point in time, if it has started.
    #[inline]
    pub(crate) fn instant(self) -> Option<Instant> {
        self.is_started().then(|| match self.0.checked_sub(BIAS) {
            Some(later) => base() + Duration::from_nanos(later),
            None => base() - Duration::from_nanos(BIAS - self.0),
        })
    }

    /// Starts it if it has not, and tells the point in time.
    pub(crate) fn start(&mut self, now: Instant) -> Option<Instant> {
        if self.is_lazy() {
            *self = Moment::at(after(now, Duration::from_nanos(self.0 & !LAZY)));
        }
        self.instant()
    }

    /// The earlier of the two; on its own if there is no outer one.
    #[inline(always)]
    fn within(self, outer: Moment) -> Self {
        if outer.is_none() || self == outer {
            self
        } else if self.is_none() {
            outer
        } else if self.is_lazy() == outer.is_lazy() {
            // Times to run order like their words, and so do points in time.
            Moment(self.0.min(outer.0))
        } else {
            Moment(self.started().0.min(outer.started().0))
        }
    }

    #[cold]
    fn started(mut self) -> Self {
        self.start(now());
        self
    }
}

/// What a thread knows of the call that it is polling.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ambient {
    pub(crate) deadline: Moment,
    /// Counted from 1; 0 outside of any retry. As wide as the deadline, so that there is no padding: the two are
    /// copied about with every call, and padding makes the copies overlap and stall.
    pub(crate) attempt: u64,
}

thread_local! {
    // Two cells and not one of both: a wide load right after two narrow stores stalls.
    static DEADLINE: Cell<Moment> = const { Cell::new(Moment::NONE) };
    static ATTEMPT: Cell<u64> = const { Cell::new(0) };
}

impl Ambient {
    #[inline]
    pub(crate) fn current() -> Self {
        Ambient { deadline: DEADLINE.get(), attempt: ATTEMPT.get() }
    }

    #[inline]
    fn make_current(self) {
        DEADLINE.set(self.deadline);
        ATTEMPT.set(self.attempt);
    }

    /// What a call with a deadline of its own starts from.
    #[inline(always)]
    pub(crate) fn nested(own: Option<Duration>) -> Self {
        let outer = Self::current();
        Ambient { deadline: own.map_or(Moment::NONE, Moment::after).within(outer.deadline), ..outer }
    }

    /// Bounded by whoever polls now, which need not be who made the call.
    #[inline(always)]
    pub(crate) fn heeding(self, outer: Ambient) -> Self {
        Ambient { deadline: self.deadline.within(outer.deadline), ..self }
    }

    /// Starts the deadline of whoever polls us, if that has yet to start.
    pub(crate) fn start_current(now: Instant) -> Option<Instant> {
        let mut deadline = DEADLINE.get();
        let instant = deadline.start(now);
        DEADLINE.set(deadline);
        instant
    }
}

/// While this lives, something else is current than what was before, which comes back when it is dropped.
///
/// It refers to nothing, so that what enters stays in registers.
#[must_use]
pub(crate) struct Scope {
    outer: Ambient,
}

impl Scope {
    #[inline(always)]
    pub(crate) fn enter(mine: Ambient) -> Self {
        let outer = Ambient::current();
        mine.heeding(outer).make_current();
        Scope { outer }
    }

    /// What entered, with its deadline as it is by now.
    #[inline(always)]
    pub(crate) fn exit(self) -> Ambient {
        Ambient::current()
    }
}

impl Drop for Scope {
    #[inline(always)]
    fn drop(&mut self) {
        if self.outer.deadline.is_lazy() && DEADLINE.get().is_started() {
            start_outer(self.outer);
        } else {
            self.outer.make_current();
        }
    }
}

#[cold]
fn start_outer(mut outer: Ambient) {
    outer.deadline.start(now());
    outer.make_current();
}

/// A point in time that a call, and all calls nested in it, must not outlive.
///
/// ```
/// use buttress::Deadline;
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let deadline = Deadline::after(Duration::from_secs(5));
/// deadline.scope(async {
///     // Anything in here sees it; a policy in here never waits past it.
///     assert_eq!(Deadline::current(), Some(deadline));
///     // A task of its own sees it only if it is carried along.
///     let carried = tokio::spawn(Deadline::carry(async { Deadline::current() }));
///     assert_eq!(carried.await.unwrap(), Some(deadline));
/// }).await;
/// assert_eq!(Deadline::current(), None);
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// At this instant of tokio's clock.
    #[must_use]
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// So long from now. [`Duration::MAX`] does not overflow: it is thirty years.
    #[must_use]
    pub fn after(duration: Duration) -> Self {
        Self(after(now(), duration))
    }

    /// The deadline of the call that is being polled, if there is one; starts it if it has yet to start.
    #[must_use]
    pub fn current() -> Option<Self> {
        if Ambient::current().deadline.is_none() { None } else { Ambient::start_current(now()).map(Self) }
    }

    /// The point in time.
    #[must_use]
    pub fn instant(self) -> Instant {
        self.0
    }

    /// What is left; zero once it is past.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(now())
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_past(self) -> bool {
        self.remaining().is_zero()
    }

    /// Runs `future` with this deadline as the current one (or with the current one, if that is earlier).
    ///
    /// It tells, it does not enforce: `future` ends when it ends. [`DeadlineLayer`], [`enforce`](Self::enforce) and
    /// policies enforce. Cancel safe if `future` is.
    pub fn scope<F: Future>(self, future: F) -> Scoped<F> {
        let outer = Ambient::current();
        Scoped { ambient: Ambient { deadline: Moment::at(self.0).within(outer.deadline), ..outer }, future }
    }

    /// Runs `code` with this deadline as the current one, or with the current one, if that is earlier.
    #[cfg(feature = "http")]
    pub(crate) fn enter<R>(self, code: impl FnOnce() -> R) -> R {
        let scope = Scope::enter(Ambient { deadline: Moment::at(self.0), ..Ambient::current() });
        let result = code();
        scope.exit();
        result
    }

    /// Runs `future` under the deadline that is current *here*, wherever it is polled: for `tokio::spawn`. Cancel safe if
    /// `future` is.
    pub fn carry<F: Future>(future: F) -> Scoped<F> {
        // Asking starts it: from here on it is a point in time, the same wherever it is polled.
        let _ = Self::current();
        Scoped { ambient: Ambient::current(), future }
    }

    /// Runs `future` and cuts it off with [`DeadlineExceeded`](crate::Reason::DeadlineExceeded) once the time has come.
    ///
    /// Cancel safe if `future` is: dropping it drops `future`.
    ///
    /// # Errors
    /// The future's own error, or the rejection.
    ///
    /// # Panics
    /// If it must wait outside of a tokio runtime with its timers enabled.
    pub async fn enforce<F, T, E>(self, future: F) -> Result<T, Error<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let enforced =
            ResponseFuture::lazy(Inline(DeadlineParts { name: "deadline", duration: None }), Given::lifted(future));
        self.scope(enforced).await
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deadline({:?} left)", self.remaining())
    }
}

/// The future of [`Deadline::scope`] and [`Deadline::carry`]. Cancel safe if the one within is: dropping it drops that.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct Scoped<F> {
    ambient: Ambient,
    #[pin]
    future: F,
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let scope = Scope::enter(*this.ambient);
        let polled = this.future.poll(cx);
        *this.ambient = scope.exit();
        polled
    }
}

impl<F: fmt::Debug> fmt::Debug for Scoped<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scoped").field(&self.future).finish()
    }
}

/// The parts of a [`DeadlineLayer`].
#[derive(Clone, Copy, Debug)]
pub struct DeadlineParts {
    name: &'static str,
    /// `None`: only that of an outer scope.
    duration: Option<Duration>,
}

impl Parts for DeadlineParts {
    plain!(Unrepeated: Unrepeated::ONCE);

    const SCOPED: bool = true;
    const TAKES: bool = false;

    #[inline]
    fn name(&self) -> &'static str {
        self.name
    }

    #[inline]
    fn deadline(&self) -> Option<Duration> {
        self.duration
    }
}

/// Sets and enforces a deadline around each call of a service.
///
/// Outermost of all, so that everything within sees it. A call whose deadline is already past (because an
/// outer one is) is answered without running. The default name is `deadline`.
///
/// ```
/// use buttress::{Deadline, DeadlineLayer};
/// use std::time::Duration;
/// use tower::{BoxError, ServiceBuilder};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(DeadlineLayer::new(Duration::from_secs(1)))
///     .service_fn(|(): ()| async { Ok::<_, BoxError>(Deadline::current().unwrap().remaining()) });
/// assert!(service.send(()).await.unwrap() <= Duration::from_secs(1));
/// # }
/// ```
pub type DeadlineLayer = Guard<Inline<DeadlineParts>>;

/// The service of [`DeadlineLayer`].
pub type DeadlineService<S> = Guarded<S, Inline<DeadlineParts>>;

impl DeadlineLayer {
    /// A deadline of so long for each call, counted from when it is first found pending; within a deadline that
    /// runs already, from the call.
    pub fn new(duration: Duration) -> Self {
        Guard::from(Inline(DeadlineParts { name: "deadline", duration: Some(duration) }))
    }

    /// Enforces the deadline that is current at the call, and sets none.
    #[cfg(feature = "http")]
    pub(crate) fn inherited() -> Self {
        Guard::from(Inline(DeadlineParts { name: "deadline", duration: None }))
    }

    /// The name that rejections and logs carry.
    pub fn name(self, name: &'static str) -> Self {
        Guard::from(Inline(DeadlineParts { name, ..self.into_handle().0 }))
    }
}
