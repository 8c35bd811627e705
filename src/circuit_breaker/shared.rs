//! When is a call admitted? What all clones share: the published word that every call reads, the window, and the
//! machine behind a lock that only a circuit that is not closed, or a failure, comes near.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::PoisonError,
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::{info, warn};

use super::{
    Snapshot, State, Transition,
    config::{Listener, Settings},
    machine::{Cause, Change, Machine},
};
use crate::{
    Rejection, Rule, Verdict,
    clock::since,
    random::Random,
    spread::{Counter, Padded},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64, Ordering::*, fence},
    },
    window::{Totals, Window, ahead},
};

/// `generation: 56 | state: 8`. A ticket is the word at admission: as long as they are equal, nothing has moved.
type Word = u64;

/// The bit of the states in which admission must be asked of the machine.
const ASK: Word = 1;

const fn code(state: State) -> Word {
    match state {
        State::Closed => 0,
        State::Open => 1,
        State::ForcedClosed => 2,
        State::HalfOpen => 3,
        State::Shadow => 4,
        State::ForcedOpen => 5,
    }
}

fn state_of(word: Word) -> State {
    match word & 0xff {
        0 => State::Closed,
        1 => State::Open,
        2 => State::ForcedClosed,
        3 => State::HalfOpen,
        4 => State::Shadow,
        _ => State::ForcedOpen,
    }
}

/// The state of a circuit breaker.
pub struct Shared {
    /// Published under the lock, by a Release fence after the window that belongs to it; read by every call with Acquire.
    word: AtomicU64,
    /// Odd while the words below and the one above are being published together. A reader that wants them as one
    /// looks before and after (a sequence lock).
    sequence: AtomicU64,
    /// Nanoseconds at which an open circuit lets probes in, or a half-open one's lease ends.
    until: AtomicU64,
    /// `rule: 32 | measured: f32`: why it is open.
    cause: AtomicU64,
    /// How many probes may still go out.
    free_probes: AtomicU32,
    /// Of so many, in the latest round.
    probes: AtomicU32,
    /// `generation: 32 | failures in a row: 32`
    consecutive: Padded<AtomicU64>,
    window: Window,
    /// The state that it was built in.
    initial: State,
    settings: Settings,
    base: Instant,
    /// Calls refused.
    rejected: Counter,
    /// What it was at the last transition.
    rejected_before: AtomicU64,
    inner: Mutex<Inner>,
    random: Random,
    listener: Option<Listener>,
    watch: watch::Sender<State>,
    /// Wakes services that wait in `poll_ready`.
    moved: Notify,
}

struct Inner {
    machine: Machine,
    /// Transitions that nobody has been told of yet, oldest first.
    outbox: VecDeque<Transition>,
    /// Whether somebody is telling; there is one at a time, so that they are told in order.
    telling: bool,
}

/// How often a reader looks at words that are being published before it waits for the publisher. (Each look multiplies the
/// interleavings of a model.)
const LOOKS: usize = if cfg!(buttress_loom) { 1 } else { 16 };

/// A listener that flips the breaker from within can queue this many; then the oldest is dropped.
const OUTBOX: usize = 1024;

impl Shared {
    pub(super) fn new(
        settings: Settings,
        window: Window,
        state: State,
        listener: Option<Listener>,
        random: Random,
        base: Instant,
    ) -> Self {
        let machine = Machine::new(state);
        Self {
            word: AtomicU64::new(machine.generation() << 8 | code(state)),
            sequence: AtomicU64::new(0),
            until: AtomicU64::new(0),
            cause: AtomicU64::new(0),
            free_probes: AtomicU32::new(0),
            probes: AtomicU32::new(settings.probes),
            consecutive: Padded::default(),
            window,
            initial: state,
            settings,
            base,
            rejected: Counter::new(),
            rejected_before: AtomicU64::new(0),
            inner: Mutex::new(Inner { machine, outbox: VecDeque::new(), telling: false }),
            random,
            listener,
            watch: watch::Sender::new(state),
            moved: Notify::new(),
        }
    }

    // ---------------------------------------------------------------- admit

    /// A ticket where admission is free; `None`: ask with the time.
    #[inline]
    pub(crate) fn admit(&self) -> Option<Word> {
        // Acquire: pairs with `publish`, so that whoever holds a new word records into the window made for it.
        let word = self.word.load(Acquire);
        (word & ASK == 0).then_some(word)
    }

    /// A ticket, or why not.
    #[inline(always)]
    pub(crate) fn admit_at(&self, now: Instant) -> Result<Word, Rejection> {
        let nanos = since(self.base, now);
        let mut seen = self.read();
        let refused = match state_of(seen.word) {
            State::ForcedOpen => true,
            State::Open => nanos < seen.until,
            State::HalfOpen => nanos < seen.until && seen.free_probes == 0,
            _ => return Ok(seen.word),
        };
        if !refused {
            match self.ask_machine(nanos) {
                Some(word) => return Ok(word),
                None => seen = self.read(),
            }
        }
        Err(self.refusal(nanos, seen))
    }

    /// There seems to be room for a probe.
    #[cold]
    #[inline(never)]
    fn ask_machine(&self, nanos: u64) -> Option<Word> {
        let unit = self.random.unit();
        let (admitted, word) = self.with_machine(nanos, |machine, settings| machine.admit(settings, nanos, unit));
        admitted.then_some(word)
    }

    /// Builds the rejection. Takes no lock.
    #[inline(always)]
    fn refusal(&self, nanos: u64, Published { word, until, cause, probes, .. }: Published) -> Rejection {
        self.rejected.count();
        let wait = Some(until.saturating_sub(nanos));
        let (rule, measured, retry_after) = match state_of(word) {
            State::HalfOpen => (Rule::ProbesOut, probes as f32, wait),
            State::ForcedOpen => (Rule::Forced, f32::NAN, None),
            _ => (Rule::ALL[(cause >> 32) as usize % Rule::ALL.len()], f32::from_bits(cause as u32), wait),
        };
        let threshold = self.threshold(rule, probes);
        Rejection::circuit_open(self.settings.name, rule, measured, threshold, retry_after)
    }

    #[inline]
    fn threshold(&self, rule: Rule, probes: u32) -> f32 {
        let settings = &self.settings;
        let threshold = match rule {
            Rule::FailureRate => settings.failure_rate,
            Rule::SlowCallRate => settings.slow_call_rate,
            Rule::ConsecutiveFailures => settings.consecutive_failures.map(f64::from),
            Rule::ProbesFailed => Some(settings.probe_failure_rate),
            Rule::ProbesOut | Rule::ProbeLease => Some(f64::from(probes)),
            _ => None,
        };
        threshold.map_or(f32::NAN, |threshold| threshold as f32)
    }

    /// Whether a call at `at` would surely be refused if nothing happens until then.
    pub(crate) fn refuses_at(&self, at: Instant) -> bool {
        let Published { word, until, .. } = self.read();
        match state_of(word) {
            State::Open => since(self.base, at) < until,
            State::ForcedOpen => true,
            _ => false,
        }
    }

    /// Until when there is no admission at `now`; `None`: there is. Far ahead if only a hand can change it.
    pub(super) fn shut_until(&self, now: Instant) -> Option<Duration> {
        let Published { word, until, free_probes, .. } = self.read();
        let left = until.saturating_sub(since(self.base, now));
        match state_of(word) {
            State::ForcedOpen => Some(Duration::MAX),
            State::Open if left > 0 => Some(Duration::from_nanos(left)),
            State::HalfOpen if left > 0 && free_probes == 0 => Some(Duration::from_nanos(left)),
            _ => None,
        }
    }

    /// Resolves when something has moved that may let a call in.
    pub(super) fn moved(&self) -> tokio::sync::futures::Notified<'_> {
        self.moved.notified()
    }

    // ---------------------------------------------------------------- settle

    /// Whether a verdict counts, and as a failure.
    #[inline]
    pub(crate) fn counts(&self, verdict: Verdict) -> Option<bool> {
        match verdict {
            Verdict::Success | Verdict::Permanent => Some(false),
            Verdict::Transient { .. } | Verdict::Unsent | Verdict::Failed => Some(true),
            Verdict::Throttled { .. } => self.settings.count_throttled.then_some(true),
            Verdict::Ignored => None,
        }
    }

    /// Whether this call is a probe: somebody waits for what it says.
    #[inline]
    pub(crate) fn is_probe(ticket: u64) -> bool {
        ticket & ASK != 0
    }

    /// Whether the duration of a success matters.
    #[inline]
    pub(crate) fn times_successes(&self) -> bool {
        self.settings.slow_call_rate.is_some()
    }

    /// A call that was never pending took no time.
    pub(crate) fn is_slow(&self, started: Option<Instant>, now: Instant) -> bool {
        started.is_some_and(|started| now.saturating_duration_since(started) > self.settings.slow_call)
    }

    /// A success that was not slow. `false`: it must be [recorded](Self::record) with the time.
    #[inline(always)]
    pub(crate) fn succeed(&self, ticket: Word) -> bool {
        if self.word.load(Relaxed) != ticket {
            return true; // A late result moves nothing.
        }
        if ticket & ASK != 0 {
            return false; // A probe.
        }
        let counted = self.window.succeed_untimed(ticket >> 8);
        if counted && self.consecutive.0.load(Relaxed) & 0xffff_ffff != 0 {
            self.end_streak(ticket);
        }
        counted
    }

    /// A result, at `now`.
    pub(crate) fn record(&self, ticket: Word, failed: bool, slow: bool, hint: Option<Duration>, now: Instant) {
        if self.word.load(Relaxed) != ticket {
            return;
        }
        let (nanos, generation) = (since(self.base, now), ticket >> 8);
        if ticket & ASK != 0 {
            let failed = failed || slow && self.times_successes();
            let unit = self.random.unit();
            self.with_machine(nanos, |machine, settings| {
                ((), machine.settle_probe(settings, nanos, generation, failed, hint, unit))
            });
            return;
        }
        self.window.record(nanos, generation, failed, slow);
        let streak = if failed { self.extend_streak(ticket) } else { self.end_streak(ticket) };
        if !(failed || slow) || state_of(ticket) == State::ForcedClosed {
            return;
        }
        if let Some(cause) = self.broken_rule(nanos, generation, failed, slow, streak) {
            let unit = self.random.unit();
            self.with_machine(nanos, |machine, settings| {
                ((), machine.trip(settings, nanos, generation, cause, hint, unit))
            });
        }
    }

    /// A call that says nothing.
    pub(crate) fn release(&self, ticket: Word) {
        if ticket & ASK != 0 && self.word.load(Relaxed) == ticket {
            self.with_machine(0, |machine, _| (machine.return_probe(ticket >> 8), None));
            self.wake();
        }
    }

    /// The rule that this failed or slow call finds met. A success never opens a circuit.
    fn broken_rule(&self, nanos: u64, generation: u64, failed: bool, slow: bool, streak: u32) -> Option<Cause> {
        let settings = &self.settings;
        if failed && settings.consecutive_failures.is_some_and(|most| streak >= most) {
            return Some(Cause { rule: Rule::ConsecutiveFailures, measured: streak as f32 });
        }
        let totals = self.window.totals(nanos, generation);
        if totals.calls() < settings.min_calls {
            return None;
        }
        let failure_rate = (Rule::FailureRate, failed, settings.failure_rate, totals.failure_rate());
        let slow_call_rate = (Rule::SlowCallRate, slow, settings.slow_call_rate, totals.slow_rate());
        [failure_rate, slow_call_rate].into_iter().find_map(|(rule, asked, threshold, rate)| {
            (asked && threshold.is_some_and(|threshold| rate >= threshold))
                .then_some(Cause { rule, measured: rate as f32 })
        })
    }

    /// One word for all threads, but a success writes it only to end a streak.
    fn end_streak(&self, ticket: Word) -> u32 {
        let streak = self.consecutive.0.load(Relaxed);
        if streak & 0xffff_ffff != 0 && !is_newer(streak, ticket) {
            // Lost to a failure or to another success that comes at this very moment: either order is right.
            let _ = self.consecutive.0.compare_exchange(streak, ticket >> 8 << 32, Relaxed, Relaxed);
        }
        0
    }

    fn extend_streak(&self, ticket: Word) -> u32 {
        let generation = ticket >> 8 & 0xffff_ffff;
        let extended = |word: u64| {
            let streak = if word >> 32 == generation { word & 0xffff_ffff } else { 0 };
            (!is_newer(word, ticket)).then_some(generation << 32 | (streak + 1).min(0xffff_ffff))
        };
        let before = self.consecutive.0.fetch_update(Relaxed, Relaxed, extended);
        before.ok().and_then(extended).unwrap_or(0) as u32
    }

    /// Whether a breaker built anew would do the same: the state is the one that it was built in.
    pub(crate) fn is_as_built(&self) -> bool {
        self.state() == self.initial
    }

    // ---------------------------------------------------------------- the machine

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No user code runs under it; if it is poisoned all the same, the machine is whole between its methods.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does this while somebody else has the lock.
    #[cfg(test)]
    pub(super) fn while_locked<R>(&self, code: impl FnOnce() -> R) -> R {
        let _inner = self.lock();
        code()
    }

    /// Moves the machine, publishes where it stands, and tells of it once the lock is released.
    fn with_machine<R>(
        &self,
        nanos: u64,
        step: impl FnOnce(&mut Machine, &Settings) -> (R, Option<Change>),
    ) -> (R, Word) {
        let mut inner = self.lock();
        let (result, change) = step(&mut inner.machine, &self.settings);
        let word = self.publish(&inner.machine, nanos, change.is_some());
        let Some(change) = change else { return (result, word) };
        if inner.outbox.len() == OUTBOX {
            inner.outbox.pop_front();
        }
        let transition = self.transition(change);
        inner.outbox.push_back(transition);
        let tell = !std::mem::replace(&mut inner.telling, true);
        drop(inner);
        self.wake();
        if tell {
            self.tell();
        }
        (result, word)
    }

    /// Under the lock.
    fn publish(&self, machine: &Machine, nanos: u64, changed: bool) -> Word {
        let word = machine.generation() << 8 | code(machine.state());
        if changed && word & ASK == 0 && self.word.load(Relaxed) != word {
            self.window.reset(nanos, machine.generation());
        }
        // The fence keeps the stores below from coming before the odd number; the even one, with Release, from coming
        // before them. Only the holder of the lock writes it.
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence + 1, Relaxed);
        fence(Release);
        self.free_probes.store(machine.free_probes(&self.settings), Relaxed);
        self.probes.store(machine.probes(&self.settings), Relaxed);
        self.until.store(machine.until().unwrap_or(0), Relaxed);
        if changed {
            if let Some(cause) = machine.cause() {
                let rule = Rule::ALL.iter().position(|rule| *rule == cause.rule).unwrap_or(0);
                self.cause.store((rule as u64) << 32 | u64::from(cause.measured.to_bits()), Relaxed);
            }
            // For `admit`, by the fence: whoever reads this word records into the window that was reset for it.
            self.word.store(word, Relaxed);
        }
        self.sequence.store(sequence + 2, Release);
        word
    }

    /// The words as one.
    #[inline]
    fn read(&self) -> Published {
        for _ in 0..LOOKS {
            let sequence = self.sequence.load(Acquire);
            let published = self.read_loosely();
            // Keeps the second look from coming before the loads above.
            fence(Acquire);
            if sequence & 1 == 0 && self.sequence.load(Relaxed) == sequence {
                return published;
            }
            std::hint::spin_loop();
        }
        // The publisher was interrupted: wait for it instead of spinning.
        let _lock = self.lock();
        self.read_loosely()
    }

    #[inline]
    fn read_loosely(&self) -> Published {
        Published {
            word: self.word.load(Relaxed),
            until: self.until.load(Relaxed),
            cause: self.cause.load(Relaxed),
            free_probes: self.free_probes.load(Relaxed),
            probes: self.probes.load(Relaxed),
        }
    }

    fn transition(&self, Change { from, to, cause, open_for }: Change) -> Transition {
        let rejected = self.rejected.total();
        let rejected = rejected - self.rejected_before.swap(rejected, Relaxed);
        // Under the lock, as it was published.
        let probes = self.probes.load(Relaxed);
        Transition {
            name: self.settings.name,
            from,
            to,
            rule: cause.map(|cause| cause.rule),
            measured: cause.map_or(f32::NAN, |cause| cause.measured),
            threshold: cause.map_or(f32::NAN, |cause| self.threshold(cause.rule, probes)),
            open_for,
            rejected,
        }
    }

    /// Wakes services that wait in `poll_ready`. Wakers are not our code: if one panics, nothing of ours is in the middle
    /// of anything, and whoever moved the circuit is not to blame.
    fn wake(&self) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.moved.notify_waiters()));
    }

    /// Empties the outbox, one transition after the other, outside of the lock.
    fn tell(&self) {
        loop {
            let mut inner = self.lock();
            let Some(transition) = inner.outbox.pop_front() else {
                inner.telling = false;
                return;
            };
            drop(inner);
            // Whatever listens may panic: nothing of ours is in the middle of anything, and the next is told too.
            if transition.from != transition.to {
                let _ = catch_unwind(AssertUnwindSafe(|| self.watch.send_replace(transition.to)));
            }
            let _ = catch_unwind(AssertUnwindSafe(|| log(&transition)));
            if let Some(listener) = &self.listener {
                let _ = catch_unwind(AssertUnwindSafe(|| listener(&transition)));
            }
        }
    }

    // ---------------------------------------------------------------- by hand

    pub(super) fn force(&self, state: State, now: Instant) {
        self.with_machine(since(self.base, now), |machine, _| ((), machine.force(state)));
    }

    #[inline]
    pub(crate) fn name(&self) -> &'static str {
        self.settings.name
    }

    pub(super) fn state(&self) -> State {
        state_of(self.word.load(Relaxed))
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.watch.subscribe()
    }

    pub(super) fn snapshot(&self, now: Instant) -> Snapshot {
        let Published { word, until, .. } = self.read();
        let at = since(self.base, now);
        // Nothing is recorded where admission is asked for; and windows know generations by their last bits only, so that
        // after many re-openings one may take what opened the circuit for its own.
        let totals = if word & ASK == 0 { self.window.totals(at, word >> 8) } else { Totals::default() };
        let streak = self.consecutive.0.load(Relaxed);
        let waits = matches!(state_of(word), State::Open | State::HalfOpen);
        Snapshot {
            state: state_of(word),
            calls: totals.calls(),
            failures: totals.failures,
            slow_calls: totals.slow,
            consecutive_failures: if streak >> 32 == word >> 8 & 0xffff_ffff { streak as u32 } else { 0 },
            rejected: self.rejected.total(),
            retry_after: waits.then(|| Duration::from_nanos(until.saturating_sub(at))),
        }
    }
}

/// Whether the streak is of a later generation than the ticket: then a late result does not touch it.
fn is_newer(streak: u64, ticket: Word) -> bool {
    ahead(streak, ticket >> 8) > 0
}

fn log(transition: &Transition) {
    macro_rules! event {
            ($level:ident, $message:literal) => {
                $level!(
                    target: "buttress",
                    name = transition.name,
                    from = transition.from.as_str(),
                    to = transition.to.as_str(),
                    rule = transition.rule.map(Rule::as_str),
                    measured = f64::from(transition.measured),
                    threshold = f64::from(transition.threshold),
                    open_for = ?transition.open_for,
                    rejected = transition.rejected,
                    $message
                )
            };
        }
    match transition.to {
        State::Open | State::ForcedOpen => event!(warn, "circuit breaker opened"),
        State::Shadow if transition.would_open() => event!(warn, "circuit breaker would open"),
        State::HalfOpen => event!(info, "circuit breaker half-open"),
        State::Closed => event!(info, "circuit breaker closed"),
        State::ForcedClosed => event!(info, "circuit breaker forced closed"),
        State::Shadow => event!(info, "circuit breaker in shadow mode"),
    }
}

/// The word and what belongs to it.
struct Published {
    word: Word,
    until: u64,
    cause: u64,
    free_probes: u32,
    probes: u32,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker").field("name", &self.settings.name).field("state", &self.state()).finish()
    }
}

#[cfg(all(test, buttress_loom))]
mod models;
