//! Lag guard: a runtime that is itself late takes nothing more.
//!
//! **What for?** A handler that computes for 300 ms, or blocks, keeps every other task of its worker waiting, and so does a crowd of
//! tasks that no limit counts. Then each `.await` takes longer, whatever is awaited: timers fire late, sockets are read late, and
//! calls that were let in run out of time inside. No limit on calls in flight sees that, as the calls that suffer are not those that
//! cause it. So this measures the runtime itself and, while it is later than it may be, refuses what comes:
//! [`Rule::RuntimeLate`], for [`Overloaded`](crate::Reason::Overloaded).
//!
//! **When not.** It is a fuse and not a limit: all or nothing, and only after it has got late. What can be counted is for a
//! [`ConcurrencyLimit`](crate::ConcurrencyLimit), which lets in as much as can be done; put this in front of it. And it mends nothing:
//! what blocks belongs into `spawn_blocking`. Nor is it for a runtime of one thread that is only driven now and then, by `block_on`: the
//! time between counts as lag, and the first call of each is refused.
//!
//! It is a layer of its own, outside of a [`Policy`](crate::Policy), and no part of one: most policies are those of clients and have no
//! use for it, and would all pay for the question.
//!
//! # How it measures
//!
//! A task sleeps for a [`period`](LagGuardBuilder::period), and when it is woken goes once more to the back of the queue of tasks; the
//! time from when it was due until it runs is the lag. So it sees timers that fire late and queues that are long.
//!
//! How late the runtime is at a call is **the larger of how late the last beat was and how late the next one is by now**:
//!
//! - The next one, as a runtime that is blocked has no beat. When a handler has blocked its worker for a second, the requests that
//!   have come meanwhile are all seen in one turn, before any timer is. If they were not refused then, each of them would block it
//!   for a second more. This costs a look at the clock per call, some 25 ns; nobody but those who use the guard pay it.
//! - The last one, as a queue that is always half a second long shows half a second late at each beat, and nothing just after it.
//!
//! There is no average and nothing decays: one late beat has all calls refused, at once; and the first one on time has none refused, a
//! period after the runtime is well again. A stall may begin just after a beat, so it shows as shorter than it is by up to a period.
//!
//! # The clock
//!
//! It is tokio's, as everywhere in this crate. In a test on a paused clock a handler that blocks is not late, however slow the machine is;
//! `tokio::time::advance` is what a block of so long looks like.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Weak},
    task::Poll,
    time::Duration,
};

use tokio::{
    runtime,
    time::{Instant, Sleep, sleep_until},
};
use tracing::{info, warn};

use crate::{
    ConfigError, Rejection, Rule,
    call::{Guard, Guarded, Parts, Unrepeated, plain},
    clock::{after, nanos, now, since},
    config::Checks,
    spread::Spread,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Refuses calls while the runtime that it was started on is late: one measurement, shared by its clones, its layers and their
/// services. See the [module](crate::lag) for how it measures and when not to use it.
///
/// ```
/// use buttress::{LagGuard, Rule};
/// use std::time::Duration;
/// use tower::{BoxError, Layer, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), BoxError> {
/// let guard = LagGuard::builder().max_lag(Duration::from_millis(100)).start()?;
/// let server = guard.layer().layer(service_fn(async |n: u32| Ok::<_, BoxError>(2 * n)));
/// assert_eq!(server.send(21).await?, 42);
///
/// // As if somebody had blocked the runtime for a second.
/// tokio::time::advance(Duration::from_secs(1)).await;
/// assert_eq!(guard.check().unwrap_err().rule(), Rule::RuntimeLate);
/// assert!(server.send(21).await.is_err());
///
/// // It has caught up.
/// tokio::time::sleep(Duration::from_millis(50)).await;
/// assert_eq!(server.send(21).await?, 42);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct LagGuard {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    max_lag: Duration,
    /// Times are counted from here.
    base: Instant,
    /// In nanoseconds, as `due`; written by the task alone. Relaxed: each of the two words stands for itself, and whoever sees one of
    /// them early or late decides as a call that comes so much earlier or later does.
    lag: AtomicU64,
    /// When the next beat is due, from `base`; [`NEVER`] if nobody measures.
    due: AtomicU64,
}

const NEVER: u64 = u64::MAX;

/// How late the runtime is, if its last beat was so late and the next one is due then; all in nanoseconds.
#[inline]
fn lateness(last: u64, due: u64, now: impl FnOnce() -> u64, max: u64) -> u64 {
    if last > max { last } else { last.max(now().saturating_sub(due)) }
}

impl Shared {
    #[inline]
    fn lateness(&self, now: impl FnOnce() -> Instant) -> u64 {
        let (last, due) = (self.lag.load(Relaxed), self.due.load(Relaxed));
        lateness(last, due, || since(self.base, now()), nanos(self.max_lag))
    }

    /// That was due then. Returns when the next one is: never at once, however late this one was.
    fn beat(&self, due: Instant, now: Instant, period: Duration) -> Instant {
        let (lag, max) = (since(due, now), nanos(self.max_lag));
        let next = after(now, period);
        let was_late = self.lag.swap(lag, Relaxed) > max;
        self.due.store(since(self.base, next), Relaxed);
        match (was_late, lag > max) {
            (false, true) => self.tell_late(lag),
            (true, false) => info!(target: "buttress", name = self.name, "runtime on time again"),
            _ => {}
        }
        next
    }

    fn tell_late(&self, lag: u64) {
        let (lag, max_lag) = (Duration::from_nanos(lag), self.max_lag);
        warn!(target: "buttress", name = self.name, ?lag, ?max_lag, "runtime late: calls are refused");
    }
}

impl LagGuard {
    /// What to refuse at; it measures once [started](LagGuardBuilder::start).
    pub fn builder() -> LagGuardBuilder {
        LagGuardBuilder::new()
    }

    /// As a tower layer: outside of policies and limits, inside of whatever renders rejections.
    pub fn layer(&self) -> LagGuardLayer {
        Guard::from(Spread::new(self.clone()))
    }

    /// For what is no tower service.
    ///
    /// # Errors
    /// The rejection, while the runtime is late.
    pub fn check(&self) -> Result<(), Rejection> {
        self.check_with(now)
    }

    /// How late the runtime is now.
    #[must_use]
    pub fn lag(&self) -> Duration {
        let (last, due) = (self.shared.lag.load(Relaxed), self.shared.due.load(Relaxed));
        Duration::from_nanos(lateness(last, due, || since(self.shared.base, now()), u64::MAX))
    }

    #[inline]
    pub(crate) fn is_late(&self, now: impl FnOnce() -> Instant) -> bool {
        self.shared.lateness(now) > nanos(self.shared.max_lag)
    }

    pub(crate) fn check_with(&self, now: impl FnOnce() -> Instant) -> Result<(), Rejection> {
        let Shared { name, max_lag, .. } = *self.shared;
        let lag = self.shared.lateness(now);
        if lag <= nanos(max_lag) {
            return Ok(());
        }
        let measured = Duration::from_nanos(lag).as_secs_f32();
        Err(Rejection::new(name, Rule::RuntimeLate, measured, max_lag.as_secs_f32()))
    }
}

impl fmt::Debug for LagGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { name, max_lag, .. } = *self.shared;
        f.debug_struct("LagGuard").field("name", &name).field("lag", &self.lag()).field("max_lag", &max_lag).finish()
    }
}

/// Builds a [`LagGuard`].
///
/// | setting | default | because |
/// | --- | --- | --- |
/// | [`max_lag`](Self::max_lag) | 100 ms | well above what a healthy runtime shows (a few ms, tens beside a busy neighbour); and a call that awaits ten times takes a second longer by then |
/// | [`period`](Self::period) | a quarter of `max_lag` | a stall shows as shorter than it is by up to a period; 40 wakings a second are not to be seen in any profile |
///
/// ```
/// use buttress::LagGuard;
/// use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::ConfigError> {
/// let guard = LagGuard::builder().name("api").max_lag(Duration::from_millis(50)).start()?;
/// # let _ = guard; Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct LagGuardBuilder {
    name: &'static str,
    max_lag: Duration,
    period: Option<Duration>,
}

/// Timers are rounded up to a millisecond, and woken a bit later.
const LEAST: Duration = Duration::from_millis(5);
const LEAST_PERIOD: Duration = Duration::from_millis(1);

impl LagGuardBuilder {
    fn new() -> Self {
        Self { name: "lag_guard", max_lag: Duration::from_millis(100), period: None }
    }

    /// The name that rejections and logs carry. Default: `lag_guard`.
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// How late the runtime may be: calls are refused while it is later.
    pub fn max_lag(mut self, lag: Duration) -> Self {
        self.max_lag = lag;
        self
    }

    /// How often it is measured, and for how long calls are refused at least.
    pub fn period(mut self, period: Duration) -> Self {
        self.period = Some(period);
        self
    }

    /// Starts to measure the current runtime.
    ///
    /// It does so, in a task of its own, until the last clone of the guard is dropped, with its layers and their services; or until the
    /// runtime ends, which it does not keep from doing so. After that nothing is refused.
    ///
    /// # Errors
    /// Every setting that is out of its range.
    ///
    /// # Panics
    /// Outside of a tokio runtime with its timers enabled: there, use [`start_on`](Self::start_on).
    pub fn start(self) -> Result<LagGuard, ConfigError> {
        self.start_on(&runtime::Handle::current())
    }

    /// Starts to measure that runtime. Otherwise as [`start`](Self::start).
    ///
    /// # Errors
    /// Every setting that is out of its range.
    ///
    /// # Panics
    /// If that runtime has no timers.
    pub fn start_on(self, runtime: &runtime::Handle) -> Result<LagGuard, ConfigError> {
        let Self { name, max_lag, period } = self;
        let mut checks = Checks::new("lag_guard");
        checks.name(Some(name));
        checks.require(max_lag >= LEAST, "max_lag", max_lag, "must be at least 5 ms: timers tick by the millisecond");
        let period = period.unwrap_or(max_lag / 4);
        let in_range = (LEAST_PERIOD..=max_lag.max(LEAST)).contains(&period);
        checks.require(in_range || max_lag < LEAST, "period", period, "must be between 1 ms and max_lag");
        checks.finish()?;

        let _entered = runtime.enter();
        let base = now();
        let first = after(base, period);
        let due = AtomicU64::new(since(base, first));
        let shared = Arc::new(Shared { name, max_lag, base, lag: AtomicU64::new(0), due });
        // Made here, where a runtime without timers panics in front of whoever can see it.
        let sleep = Box::pin(sleep_until(first));
        runtime.spawn(measure(Measured(Arc::downgrade(&shared)), sleep, period));
        Ok(LagGuard { shared })
    }
}

/// What the task has of the guard. However the task ends, nothing is late from then on.
struct Measured(Weak<Shared>);

impl Drop for Measured {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.due.store(NEVER, Relaxed);
            shared.lag.store(0, Relaxed);
        }
    }
}

async fn measure(measured: Measured, mut sleep: Pin<Box<Sleep>>, period: Duration) {
    loop {
        let due = sleep.deadline();
        sleep.as_mut().await;
        requeue().await;
        let Some(shared) = measured.0.upgrade() else { return };
        let next = shared.beat(due, now(), period);
        drop(shared);
        sleep.as_mut().reset(next);
    }
}

/// Goes to the back of the queue of tasks. A worker may run what its timers wake before all that waits there already: of 500 tasks
/// that take turns of a millisecond on one worker, a beat sees 36 ms without this, 96 after `yield_now`, and 176 by this.
async fn requeue() {
    let mut been = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut been, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Parts for LagGuard {
    plain!(Unrepeated: Unrepeated::ONCE);

    const TAKES: bool = false;

    #[inline]
    fn name(&self) -> &'static str {
        self.shared.name
    }

    #[inline]
    fn lag_guard(&self) -> Option<&LagGuard> {
        Some(self)
    }
}

/// A [`LagGuard`] as a tower layer.
pub type LagGuardLayer = Guard<Spread<LagGuard>>;

/// The service of [`LagGuardLayer`].
pub type LagGuardService<S> = Guarded<S, Spread<LagGuard>>;

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 100;

    fn at(last: u64, due: u64, now: u64) -> u64 {
        lateness(last, due, || now, MAX)
    }

    #[test]
    fn it_is_as_late_as_the_last_beat_was_or_the_next_one_is() {
        assert_eq!(at(0, 1_000, 900), 0, "not due yet");
        assert_eq!(at(0, 1_000, 1_000), 0);
        assert_eq!(at(0, 1_000, 1_070), 70, "overdue");
        assert_eq!(at(80, 1_000, 900), 80, "the last one");
        assert_eq!(at(80, 1_000, 1_070), 80);
        assert_eq!(at(80, 1_000, 1_090), 90);
        assert_eq!(at(0, NEVER, u64::MAX), 0, "nobody measures");
    }

    #[test]
    fn after_a_beat_that_was_too_late_nobody_looks_at_the_clock() {
        assert_eq!(lateness(MAX + 1, 0, || panic!("it is refused in any case"), MAX), MAX + 1);
        assert_eq!(at(MAX, 1_000, 1_000 + 2 * MAX), 2 * MAX, "as late as it may be");
    }
}
