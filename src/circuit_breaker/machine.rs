//! How it is decided: the state machine, pure. It takes the time (nanoseconds since the breaker was made) and
//! randomness as arguments, and is told what the window says.

use std::time::Duration;

use super::{State, config::Settings};
use crate::{Rule, clock};

/// Which rule moved the circuit, and by what figures (`NaN`: none).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cause {
    pub(crate) rule: Rule,
    pub(crate) measured: f32,
}

/// One move of the machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) cause: Option<Cause>,
    /// For how long the circuit is, or in shadow mode would be, open.
    pub(crate) open_for: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Closed,
    Open {
        until: u64,
    },
    HalfOpen {
        /// When the round counts as failed if a probe is out.
        lease_ends: u64,
        /// Probes that are out or have answered.
        issued: u32,
        succeeded: u32,
        failed: u32,
    },
    ForcedOpen,
    ForcedClosed,
    Shadow {
        /// It would be open until then, so that one outage is told once.
        quiet_until: u64,
    },
}

/// The state machine. Each change of state begins a new generation; what was admitted in an earlier one no longer
/// counts.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    generation: u64,
    phase: Phase,
    /// Openings since the circuit was last closed.
    openings: u32,
    /// The latest open time.
    previous: Duration,
    /// The number of the latest round of probes, since the circuit was last open.
    round: usize,
    cause: Option<Cause>,
}

impl Machine {
    pub(crate) fn new(state: State) -> Self {
        let phase = match state {
            State::Shadow => Phase::Shadow { quiet_until: 0 },
            _ => Phase::Closed,
        };
        Self { generation: 0, phase, openings: 0, previous: Duration::ZERO, round: 0, cause: None }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn state(&self) -> State {
        match self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
            Phase::ForcedOpen => State::ForcedOpen,
            Phase::ForcedClosed => State::ForcedClosed,
            Phase::Shadow { .. } => State::Shadow,
        }
    }

    /// Why it is open.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// When something can change by itself: an open circuit lets probes in, a half-open one's lease ends.
    pub(crate) fn until(&self) -> Option<u64> {
        match self.phase {
            Phase::Open { until } => Some(until),
            Phase::HalfOpen { lease_ends, .. } => Some(lease_ends),
            _ => None,
        }
    }

    /// How many probes the latest round has.
    pub(crate) fn probes(&self, settings: &Settings) -> u32 {
        settings.probes_of(self.round)
    }

    /// How many probes may still go out.
    pub(crate) fn free_probes(&self, settings: &Settings) -> u32 {
        match self.phase {
            Phase::HalfOpen { issued, .. } => self.probes(settings).saturating_sub(issued),
            _ => 0,
        }
    }

    // ## Closed => Open

    /// The window's rules are met, as seen by a call of `generation`.
    pub(crate) fn trip(
        &mut self,
        settings: &Settings,
        now: u64,
        generation: u64,
        cause: Cause,
        hint: Option<Duration>,
        unit: f64,
    ) -> Option<Change> {
        if generation != self.generation {
            return None;
        }
        match self.phase {
            Phase::Closed => Some(self.open(settings, now, cause, hint, unit)),
            Phase::Shadow { quiet_until } if now >= quiet_until => {
                let open_for = settings.open_time.delay(1, Duration::ZERO, unit);
                self.phase = Phase::Shadow { quiet_until: now.saturating_add(clock::nanos(open_for)) };
                let state = State::Shadow;
                Some(Change { from: state, to: state, cause: Some(cause), open_for: Some(open_for) })
            }
            _ => None,
        }
    }

    /// A hint stretches the open time, as far as the backoff's cap.
    fn open(&mut self, settings: &Settings, now: u64, cause: Cause, hint: Option<Duration>, unit: f64) -> Change {
        self.openings = self.openings.saturating_add(1);
        self.previous = settings.open_time.delay(self.openings, self.previous, unit);
        let hint = hint.unwrap_or_default().min(settings.open_time.longest());
        let open_for = self.previous.max(hint);
        self.cause = Some(cause);
        let until = now.saturating_add(clock::nanos(open_for));
        Change { cause: Some(cause), open_for: Some(open_for), ..self.enter(Phase::Open { until }) }
    }

    fn enter(&mut self, phase: Phase) -> Change {
        let from = self.state();
        self.phase = phase;
        self.generation = self.generation.wrapping_add(1);
        Change { from, to: self.state(), cause: None, open_for: None }
    }

    // ## Open => HalfOpen, HalfOpen => Open

    /// A caller asks for admission where it is not given freely. Whether it is admitted, and what that changed.
    pub(crate) fn admit(&mut self, settings: &Settings, now: u64, unit: f64) -> (bool, Option<Change>) {
        let probes = self.probes(settings);
        match &mut self.phase {
            Phase::Closed | Phase::ForcedClosed | Phase::Shadow { .. } => (true, None),
            Phase::ForcedOpen => (false, None),
            Phase::Open { until } if now < *until => (false, None),
            Phase::Open { .. } => {
                self.round = 0;
                (true, Some(self.probe(settings, now, 1)))
            }
            Phase::HalfOpen { lease_ends, issued, succeeded, failed }
                if now >= *lease_ends && *issued > *succeeded + *failed =>
            {
                let cause = Cause { rule: Rule::ProbeLease, measured: (*succeeded + *failed) as f32 };
                (false, Some(self.open(settings, now, cause, None, unit)))
            }
            Phase::HalfOpen { issued, .. } if *issued == probes => (false, None),
            Phase::HalfOpen { lease_ends, issued, .. } => {
                // Anew with each probe, or one that has just gone would be what hangs where calls are rare and rounds large.
                *lease_ends = now.saturating_add(clock::nanos(settings.probe_lease));
                *issued += 1;
                (true, None)
            }
        }
    }

    /// Begins a round, of which so many are out.
    fn probe(&mut self, settings: &Settings, now: u64, issued: u32) -> Change {
        let lease_ends = now.saturating_add(clock::nanos(settings.probe_lease));
        self.enter(Phase::HalfOpen { lease_ends, issued, succeeded: 0, failed: 0 })
    }

    // ## HalfOpen => Closed, HalfOpen => Open, HalfOpen => its next round

    /// A probe answered. The round is decided as soon as the rest cannot change it.
    pub(crate) fn settle_probe(
        &mut self,
        settings: &Settings,
        now: u64,
        generation: u64,
        failure: bool,
        hint: Option<Duration>,
        unit: f64,
    ) -> Option<Change> {
        let round = self.probes(settings);
        let Phase::HalfOpen { succeeded, failed, .. } = &mut self.phase else { return None };
        if generation != self.generation {
            return None;
        }
        *(if failure { &mut *failed } else { &mut *succeeded }) += 1;
        let (succeeded, failed) = (*succeeded, *failed);
        let probes = f64::from(round);
        // Rates are compared as counts, so that 2 of 3 reaches 2/3.
        let reaches = |failures: u32| f64::from(failures) / probes >= settings.probe_failure_rate;
        if reaches(failed) {
            let cause = Cause { rule: Rule::ProbesFailed, measured: (f64::from(failed) / probes) as f32 };
            Some(self.open(settings, now, cause, hint, unit))
        } else if reaches(round - succeeded.min(round)) {
            None
        } else if self.round + 1 < settings.rounds() {
            self.round += 1;
            Some(self.probe(settings, now, 0))
        } else {
            Some(self.close())
        }
    }

    /// A probe was dropped, or says nothing: another may go.
    pub(crate) fn return_probe(&mut self, generation: u64) {
        match &mut self.phase {
            Phase::HalfOpen { issued, .. } if generation == self.generation => *issued = issued.saturating_sub(1),
            _ => {}
        }
    }

    fn close(&mut self) -> Change {
        let change = self.enter(Phase::Closed);
        self.openings = 0;
        self.previous = Duration::ZERO;
        self.cause = None;
        change
    }

    // ## by hand

    /// Forces a state, or closes the circuit with a fresh window and the first open time.
    pub(crate) fn force(&mut self, state: State) -> Option<Change> {
        let cause = (state == State::ForcedOpen).then_some(Cause { rule: Rule::Forced, measured: f32::NAN });
        let forced = match state {
            State::ForcedOpen => Phase::ForcedOpen,
            State::ForcedClosed => Phase::ForcedClosed,
            State::Shadow => Phase::Shadow { quiet_until: 0 },
            // A circuit opens by itself, as `ForcedOpen` is what somebody wants.
            State::Closed | State::Open | State::HalfOpen => return Some(self.close()),
        };
        (self.state() != state).then(|| Change { cause, ..self.enter(forced) })
    }
}
