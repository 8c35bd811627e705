//! Where a shutdown stands, and what everything else of it hangs on.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    sync::{OnceLock, PoisonError, mpsc::Sender},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use super::{
    Report, Signal, bell::Bell, driver::Hook, gate::Room, readiness::Conditions, systemd::Systemd, tasks::Registry,
    waits::Waits,
};
use crate::{
    clock::{after, now},
    spread::Padded,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::*},
    },
};

/// Where a shutdown stands. It only ever moves forward.
///
/// ```
/// use buttress::shutdown::State;
/// assert!(State::Running < State::Draining);
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Not [ready](super::Handle::ready) yet.
    Starting,
    /// Serving.
    Running,
    /// Told to stop: not ready any more, but still accepting and serving, until the lame-duck time is over.
    Draining,
    /// Nothing new is admitted; calls, connections and then the phases are waited for.
    Stopping,
    /// Out of time, or told to hurry: what still runs is aborted.
    Forced,
    /// The [`Report`] is there.
    Done,
}

impl State {
    const ALL: [State; 6] =
        [State::Starting, State::Running, State::Draining, State::Stopping, State::Forced, State::Done];

    /// The stable name that logs and the readiness answer carry.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Draining => "draining",
            State::Stopping => "stopping",
            State::Forced => "forced",
            State::Done => "done",
        }
    }
}

/// What began a shutdown: the first one counts.
///
/// ```
/// use buttress::shutdown::{Signal, Trigger};
/// assert_eq!(Trigger::Signal(Signal::Terminate).to_string(), "SIGTERM");
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A signal.
    Signal(Signal),
    /// [`Handle::trigger`](super::Handle::trigger), with its reason.
    Asked(Cow<'static, str>),
    /// A critical task ended.
    Task {
        /// Its phase.
        phase: &'static str,
        /// Its name.
        name: Cow<'static, str>,
    },
    /// Nothing came before it was [forced](Force).
    Forced,
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trigger::Signal(signal) => signal.fmt(f),
            Trigger::Asked(reason) => f.write_str(reason),
            Trigger::Task { phase, name } => write!(f, "the end of critical task `{name}` of phase `{phase}`"),
            Trigger::Forced => f.write_str("force"),
        }
    }
}

/// What forced a shutdown: the first one counts.
///
/// ```
/// use buttress::shutdown::{Force, Signal};
/// assert_eq!(Force::Signal(Signal::Interrupt).to_string(), "a second signal, SIGINT");
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// The total time was over.
    Deadline,
    /// A second signal came.
    Signal(Signal),
    /// [`Handle::force`](super::Handle::force).
    Asked,
    /// The [`Shutdown`](super::Shutdown) was dropped.
    Dropped,
    /// The runtime that drives it went away.
    RuntimeGone,
}

impl Force {
    /// 128 and the signal's number, or 1.
    pub(super) fn exit_code(self) -> i32 {
        match self {
            Force::Signal(signal) => signal.number().saturating_add(128),
            _ => 1,
        }
    }
}

impl fmt::Display for Force {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Force::Deadline => f.write_str("its total time"),
            Force::Signal(signal) => write!(f, "a second signal, {signal}"),
            Force::Asked => f.write_str("request"),
            Force::Dropped => f.write_str("the drop of `Shutdown`"),
            Force::RuntimeGone => f.write_str("the end of its runtime"),
        }
    }
}

/// How long things may take. Pure: asked with the moment that draining began.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) lame_duck: Duration,
    pub(super) total: Duration,
    pub(super) abort_grace: Duration,
    /// The limits of all phases together.
    pub(super) reserved: Duration,
}

impl Plan {
    pub(super) fn lame_duck_ends(&self, begun: Instant) -> Instant {
        after(begun, self.lame_duck)
    }

    /// Calls may take what the phases have not reserved.
    pub(super) fn calls_end(&self, begun: Instant) -> Instant {
        after(begun, self.total.saturating_sub(self.reserved))
    }

    /// When a phase that begins `now` must be over. What the others have reserved is not touched: everything before
    /// it has kept within its own.
    pub(super) fn phase_ends(&self, begun: Instant, now: Instant, limit: Duration) -> Instant {
        after(now, limit).min(self.ends(begun))
    }

    /// Until when the aborted tasks of an overrun phase may be waited for: `later` is what the phases after it have
    /// reserved.
    pub(super) fn join_ends(&self, begun: Instant, now: Instant, later: Duration) -> Instant {
        after(now, self.abort_grace).min(after(begun, self.total.saturating_sub(later)))
    }

    pub(super) fn ends(&self, begun: Instant) -> Instant {
        after(begun, self.total)
    }
}

/// A group of tasks that are stopped together.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) name: &'static str,
    pub(super) limit: Duration,
    /// Closed when it is the phase's turn to stop.
    pub(super) tasks: Room,
}

/// What handles, tasks, layers and the driver share.
pub(super) struct Shared {
    /// A [`State`]; only `fetch_max` writes it.
    state: AtomicU8,
    /// Whoever waits for a state, or for a phase's turn.
    pub(super) moved: Bell,
    begun: OnceLock<(Trigger, Instant)>,
    forced: OnceLock<Force>,
    /// How many signals have come that mean "stop".
    signals: AtomicU32,
    pub(super) plan: Plan,
    /// Calls in flight and guards. On lines of its own: every call writes it.
    pub(super) calls: Padded<Room>,
    /// Accept loops that have not swept their backlog yet.
    pub(super) listeners: Room,
    pub(super) connections: Room,
    /// How many calls were in flight when the gate closed.
    closed_on: OnceLock<usize>,
    pub(super) rejected: AtomicU64,
    /// Guards that are held, by name.
    guards: Mutex<BTreeMap<&'static str, usize>>,
    /// Calls that were dropped because it was forced, by name.
    cut: Mutex<BTreeMap<&'static str, usize>>,
    /// How many connections there were when it was forced.
    connections_cut: OnceLock<usize>,
    pub(super) phases: Box<[Phase]>,
    pub(super) tasks: Registry,
    hooks: Mutex<Vec<Hook>>,
    pub(super) conditions: Conditions,
    pub(super) reloads: watch::Sender<u64>,
    pub(super) waits: Waits,
    pub(super) systemd: Systemd,
    report: OnceLock<Report>,
    /// Whoever ends the process if nobody else does.
    pub(super) watchdog: OnceLock<Sender<Alarm>>,
}

/// What a watchdog hears.
#[derive(Clone, Copy, Debug)]
pub(super) enum Alarm {
    Begun,
    Forced,
}

impl Shared {
    pub(super) fn new(plan: Plan, phases: Box<[Phase]>, systemd: Systemd) -> Self {
        Self {
            state: AtomicU8::new(State::Starting as u8),
            moved: Bell::default(),
            begun: OnceLock::new(),
            forced: OnceLock::new(),
            signals: AtomicU32::new(0),
            plan,
            calls: Padded(Room::new()),
            listeners: Room::new(),
            connections: Room::new(),
            closed_on: OnceLock::new(),
            rejected: AtomicU64::new(0),
            guards: Mutex::default(),
            cut: Mutex::default(),
            connections_cut: OnceLock::new(),
            phases,
            tasks: Registry::default(),
            hooks: Mutex::default(),
            conditions: Conditions::default(),
            reloads: watch::Sender::new(0),
            waits: Waits::default(),
            systemd,
            report: OnceLock::new(),
            watchdog: OnceLock::new(),
        }
    }

    #[inline]
    pub(super) fn state(&self) -> State {
        // Acquire: whoever sees a state sees what led to it.
        State::ALL[usize::from(self.state.load(Acquire))]
    }

    #[inline]
    pub(super) fn is_draining(&self) -> bool {
        self.state() >= State::Draining
    }

    /// A hint for calls, which look at nothing that they find by it.
    #[inline]
    pub(super) fn is_stopping(&self) -> bool {
        // Relaxed: whoever goes on from here asks the gate, or `state`.
        self.state.load(Relaxed) >= State::Stopping as u8
    }

    /// Moves forward; `false` if it is there, or further, already.
    pub(super) fn advance(&self, to: State) -> bool {
        // AcqRel: pairs with the load above, and with whoever moved it before.
        let moved = self.state.fetch_max(to as u8, AcqRel) < to as u8;
        if moved {
            self.moved.ring();
        }
        moved
    }

    pub(super) async fn reached(&self, state: State) {
        self.moved.until(|| self.state() >= state).await;
    }

    pub(super) async fn phase_stopping(&self, phase: usize) {
        self.moved.until(|| self.phases[phase].tasks.is_closed()).await;
    }

    /// Running => Draining. The first trigger counts.
    pub(super) fn drain(&self, trigger: Trigger) -> bool {
        let mut first = false;
        let (trigger, _) = self.begun.get_or_init(|| {
            first = true;
            (trigger, now())
        });
        if first {
            let Plan { lame_duck, total, .. } = self.plan;
            self.advance(State::Draining);
            self.waits.end();
            self.alarm(Alarm::Begun);
            // Last, as everywhere here: whoever listens to logs may block, or panic.
            info!(target: "buttress", %trigger, ?lame_duck, ?total, "shutdown: draining");
        }
        first
    }

    /// Anything => Forced. The first cause counts.
    pub(super) fn force(&self, force: Force) -> bool {
        if self.state() == State::Done {
            return false;
        }
        let mut first = false;
        self.forced.get_or_init(|| {
            first = true;
            force
        });
        if first {
            self.begun.get_or_init(|| match force {
                // Two signals at once: either may come first.
                Force::Signal(signal) => (Trigger::Signal(signal), now()),
                _ => (Trigger::Forced, now()),
            });
            self.stop_admitting();
            self.connections_cut.get_or_init(|| self.connections.count());
            self.advance(State::Forced);
            self.waits.end();
            (0..self.phases.len()).for_each(|phase| self.stop_phase(phase));
            self.alarm(Alarm::Forced);
            warn!(target: "buttress", by = %force, "shutdown: forced");
        }
        first
    }

    /// Tells the watchdog of a process, if there is one.
    pub(super) fn alarm(&self, alarm: Alarm) {
        if let Some(watchdog) = self.watchdog.get() {
            let _ = watchdog.send(alarm);
        }
    }

    /// `time`, and what comes after it at most: joining what was aborted, and the hooks.
    pub(super) fn to_the_end(&self, time: Duration) -> Duration {
        let joined = time.saturating_add(self.plan.abort_grace);
        self.hooks().iter().fold(joined, |sum, hook| sum.saturating_add(hook.limit))
    }

    /// A signal came: the first one drains, the second one forces.
    pub(super) fn signal(&self, signal: Signal) {
        // What Windows has in its place, the closing of the console, is no wish to go on.
        if cfg!(unix) && signal == Signal::Hangup && self.reloads.receiver_count() > 0 {
            info!(target: "buttress", "reload");
            self.reloads.send_modify(|count| *count += 1);
            return;
        }
        // Relaxed: a count, nothing hangs on it but itself.
        if self.signals.fetch_add(1, Relaxed) == 0 {
            self.drain(Trigger::Signal(signal));
        } else {
            self.force(Force::Signal(signal));
        }
    }

    /// Closes the gate for calls.
    pub(super) fn stop_admitting(&self) {
        let inside = self.calls.0.close();
        self.closed_on.get_or_init(|| inside);
    }

    /// It is the phase's turn.
    pub(super) fn stop_phase(&self, phase: usize) {
        self.phases[phase].tasks.close();
        self.moved.ring();
    }

    /// What began it, and when.
    pub(super) fn begun(&self) -> Option<&(Trigger, Instant)> {
        self.begun.get()
    }

    pub(super) fn forced(&self) -> Option<Force> {
        self.forced.get().copied()
    }

    pub(super) fn closed_on(&self) -> usize {
        self.closed_on.get().copied().unwrap_or_default()
    }

    pub(super) fn connections_cut(&self) -> usize {
        self.connections_cut.get().copied().unwrap_or_default()
    }

    /// Guards that are held, by name.
    pub(super) fn guards(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that were dropped because it was forced, by name.
    pub(super) fn cut(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be done at the very end.
    pub(super) fn hooks(&self) -> MutexGuard<'_, Vec<Hook>> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Anything => Done.
    pub(super) fn finish(&self, report: Report) {
        if self.report.set(report).is_ok() {
            self.advance(State::Done);
        }
    }

    pub(super) fn report(&self) -> Option<&Report> {
        self.report.get()
    }

    pub(super) async fn done(&self) -> Report {
        loop {
            self.reached(State::Done).await;
            if let Some(report) = self.report() {
                return report.clone();
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown")
            .field("state", &self.state())
            .field("in_flight", &self.calls.0.count())
            .field("connections", &self.connections.count())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, buttress_loom))]
pub(super) mod models;
