//! The machine against a model that keeps nothing but a list of what happened, and derives everything else from it;
//! and what rejections promise, kept.

use std::{sync::mpsc, thread, time::Duration};

use proptest::{prelude::*, test_runner::TestCaseError};
use tokio::time::advance;

use super::{
    CircuitBreaker, Permit, State,
    config::Settings,
    machine::{Cause, Change, Machine},
};
use crate::{Backoff, Jitter, Rejection, Rule, Verdict};

const NANO: Duration = Duration::from_nanos(1);

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

// ---------------------------------------------------------------- the model

/// How long the circuit is open the n-th time, in closed form.
#[derive(Clone, Copy, Debug)]
enum OpenTimes {
    Doubling,
    Adding(u64),
    /// Decorrelated, with all that chance can add: three times as long each time, which only the one before can tell.
    Tripling,
}

#[derive(Clone, Copy, Debug)]
struct Rules {
    open_times: OpenTimes,
    first: u64,
    longest: u64,
    probes: u32,
    /// Of further rounds; zero: none.
    more: [u32; 2],
    /// A fraction, so that the model needs no floats.
    failure_rate: (u32, u32),
    lease: u64,
}

impl Rules {
    fn settings(self) -> Settings {
        let first = Duration::from_nanos(self.first);
        let backoff = match self.open_times {
            OpenTimes::Doubling => Backoff::exponential(first),
            OpenTimes::Adding(step) => Backoff::linear(first, Duration::from_nanos(step)),
            OpenTimes::Tripling => Backoff::decorrelated(first),
        };
        let (of, all) = self.failure_rate;
        Settings {
            name: "model",
            failure_rate: Some(0.5),
            slow_call_rate: None,
            consecutive_failures: None,
            min_calls: 1,
            slow_call: Duration::from_secs(1),
            count_throttled: true,
            open_time: backoff.max_delay(Duration::from_nanos(self.longest)).jitter(Jitter::None),
            probes: self.probes,
            then_probes: self.more.into_iter().filter(|probes| *probes > 0).collect(),
            probe_failure_rate: f64::from(of) / f64::from(all),
            probe_lease: Duration::from_nanos(self.lease),
        }
    }

    fn open_time(self, opening: u32) -> u64 {
        let first = u128::from(self.first);
        let time = match self.open_times {
            OpenTimes::Doubling => first << (opening - 1).min(64),
            OpenTimes::Adding(step) => first + u128::from(step) * u128::from(opening - 1),
            OpenTimes::Tripling => first * 3u128.pow(opening.min(40)),
        };
        u64::try_from(time).unwrap_or(u64::MAX).min(self.longest)
    }

    fn hinted(self, opening: u32, hint: Option<Duration>) -> u64 {
        let hint = hint.map_or(0, |hint| u64::try_from(hint.as_nanos()).unwrap_or(u64::MAX));
        self.open_time(opening).max(hint.min(self.longest))
    }

    /// How many probes each round has, and then none.
    fn rounds(self) -> impl Iterator<Item = u32> {
        [self.probes, self.more[0], self.more[1]].into_iter().filter(|probes| *probes > 0)
    }

    /// So many failed probes are too many, of so many.
    fn too_many(self, failed: usize, probes: usize) -> bool {
        let (of, all) = self.failure_rate;
        failed as u64 * u64::from(all) >= u64::from(of) * probes as u64
    }
}

fn rules() -> impl Strategy<Value = Rules> {
    let open_times =
        prop_oneof![Just(OpenTimes::Doubling), (0u64..5_000).prop_map(OpenTimes::Adding), Just(OpenTimes::Tripling),];
    let failure_rate = prop::sample::select(vec![(1, 100), (1, 3), (1, 2), (2, 3), (3, 4), (1, 1)]);
    let more = prop_oneof![2 => Just([0, 0]), 1 => [0u32..4, 0u32..9]];
    (open_times, 1u64..5_000, 5_000u64..40_000, 1u32..7, more, failure_rate, 1u64..10_000).prop_map(
        |(open_times, first, longest, probes, more, failure_rate, lease)| Rules {
            open_times,
            first,
            longest,
            probes,
            more,
            failure_rate,
            lease,
        },
    )
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    Moved { to: State, until: u64 },
    ProbeOut,
    ProbeBack,
    Answered { failed: bool },
    WouldOpen { until: u64 },
}

/// What a change of the machine must say: from, to, for how long open.
type Move = (State, State, Option<Duration>);

struct Model {
    rules: Rules,
    begin: State,
    history: Vec<Entry>,
}

impl Model {
    fn moves(&self) -> impl DoubleEndedIterator<Item = (State, u64)> {
        let moved = |entry: &Entry| match *entry {
            Entry::Moved { to, until } => Some((to, until)),
            _ => None,
        };
        self.history.iter().filter_map(moved)
    }

    fn generation(&self) -> u64 {
        self.moves().count() as u64
    }

    fn state(&self) -> State {
        self.moves().next_back().map_or(self.begin, |(to, _)| to)
    }

    fn until(&self) -> u64 {
        self.moves().next_back().map_or(0, |(_, until)| until)
    }

    /// What happened since the last move.
    fn round(&self) -> &[Entry] {
        let from = self.history.iter().rposition(|entry| matches!(entry, Entry::Moved { .. }));
        &self.history[from.map_or(0, |at| at + 1)..]
    }

    fn number(&self, of: Entry) -> usize {
        self.round().iter().filter(|entry| **entry == of).count()
    }

    fn free_probes(&self) -> usize {
        let half_open = self.state() == State::HalfOpen;
        let out = self.number(Entry::ProbeOut) - self.number(Entry::ProbeBack);
        if half_open { self.probes() - out } else { 0 }
    }

    /// How many probes this round has.
    fn probes(&self) -> usize {
        let rounds = self.moves().rev().take_while(|(to, _)| *to == State::HalfOpen).count();
        self.rules.rounds().nth(rounds.saturating_sub(1)).unwrap() as usize
    }

    fn is_last_round(&self) -> bool {
        let rounds = self.moves().rev().take_while(|(to, _)| *to == State::HalfOpen).count();
        rounds == self.rules.rounds().count()
    }

    /// Those that have neither answered nor come back.
    fn probes_out(&self) -> usize {
        let ended = [Entry::ProbeBack, Entry::Answered { failed: true }, Entry::Answered { failed: false }];
        self.number(Entry::ProbeOut) - ended.map(|entry| self.number(entry)).iter().sum::<usize>()
    }

    fn next_opening(&self) -> u32 {
        1 + self.moves().rev().take_while(|(to, _)| *to != State::Closed).filter(|(to, _)| *to == State::Open).count()
            as u32
    }

    fn move_to(&mut self, to: State, until: u64) -> Option<Move> {
        let from = self.state();
        self.history.push(Entry::Moved { to, until });
        Some((from, to, None))
    }

    fn open(&mut self, now: u64, hint: Option<Duration>) -> Option<Move> {
        let open_for = self.rules.hinted(self.next_opening(), hint);
        let (from, to, _) = self.move_to(State::Open, now.saturating_add(open_for))?;
        Some((from, to, Some(Duration::from_nanos(open_for))))
    }

    fn trip(&mut self, now: u64, hint: Option<Duration>) -> Option<Move> {
        match self.state() {
            State::Closed => self.open(now, hint),
            State::Shadow => {
                let told = |entry: &Entry| matches!(entry, Entry::WouldOpen { until } if now < *until);
                if self.round().last().is_some_and(told) {
                    return None;
                }
                let open_for = self.rules.open_time(1);
                self.history.push(Entry::WouldOpen { until: now.saturating_add(open_for) });
                Some((State::Shadow, State::Shadow, Some(Duration::from_nanos(open_for))))
            }
            _ => None,
        }
    }

    fn admit(&mut self, now: u64) -> (bool, Option<Move>) {
        match self.state() {
            State::ForcedOpen => (false, None),
            State::Open if now < self.until() => (false, None),
            State::Open => {
                let moved = self.move_to(State::HalfOpen, now.saturating_add(self.rules.lease));
                self.history.push(Entry::ProbeOut);
                (true, moved)
            }
            State::HalfOpen if now >= self.until() && self.probes_out() > 0 => (false, self.open(now, None)),
            State::HalfOpen if self.free_probes() > 0 => {
                let renewed = now.saturating_add(self.rules.lease);
                if let Some(Entry::Moved { until, .. }) =
                    self.history.iter_mut().rfind(|entry| matches!(entry, Entry::Moved { .. }))
                {
                    *until = renewed;
                }
                self.history.push(Entry::ProbeOut);
                (true, None)
            }
            State::HalfOpen => (false, None),
            _ => (true, None),
        }
    }

    fn settle(&mut self, now: u64, failed: bool, hint: Option<Duration>) -> Option<Move> {
        self.history.push(Entry::Answered { failed });
        let answered = |failed| self.number(Entry::Answered { failed });
        let (good, bad) = (answered(false), answered(true));
        if self.rules.too_many(bad, self.probes()) {
            self.open(now, hint)
        } else if self.rules.too_many(self.probes() - good, self.probes()) {
            None
        } else if self.is_last_round() {
            self.move_to(State::Closed, 0)
        } else {
            self.move_to(State::HalfOpen, now.saturating_add(self.rules.lease))
        }
    }

    fn force(&mut self, state: State) -> Option<Move> {
        match state {
            State::ForcedOpen | State::ForcedClosed | State::Shadow if self.state() == state => None,
            State::ForcedOpen | State::ForcedClosed | State::Shadow => self.move_to(state, 0),
            _ => self.move_to(State::Closed, 0),
        }
    }
}

// ---------------------------------------------------------------- side by side

#[derive(Clone, Copy, Debug)]
enum Event {
    /// By a call of so many generations ago.
    Trip(u64, Option<u64>),
    Admit,
    Settle(prop::sample::Index, bool, Option<u64>),
    Return(prop::sample::Index),
    /// A result of a generation that never was.
    Stray(u64, bool),
    Force(State),
    Wait(u64),
    WaitUntil,
}

fn event() -> impl Strategy<Value = Event> {
    let ago = || prop_oneof![5 => Just(0u64), 1 => 1u64..5];
    let hint = || prop_oneof![4 => Just(None), 1 => any::<u64>().prop_map(Some), 1 => (0u64..50_000).prop_map(Some)];
    let states = vec![State::Closed, State::Open, State::ForcedOpen, State::ForcedClosed, State::Shadow];
    prop_oneof![
        6 => (ago(), hint()).prop_map(|(ago, hint)| Event::Trip(ago, hint)),
        12 => Just(Event::Admit),
        10 => (any::<prop::sample::Index>(), prop::bool::weighted(0.4), hint())
            .prop_map(|(which, failed, hint)| Event::Settle(which, failed, hint)),
        3 => any::<prop::sample::Index>().prop_map(Event::Return),
        1 => (1u64..1_000, any::<bool>()).prop_map(|(ahead, failed)| Event::Stray(ahead, failed)),
        1 => prop::sample::select(states).prop_map(Event::Force),
        4 => (0u64..2_000).prop_map(Event::Wait),
        6 => Just(Event::WaitUntil),
        1 => prop::sample::select(vec![u64::MAX, u64::MAX - 1, 1 << 63]).prop_map(Event::Wait),
    ]
}

/// A machine, its model, and the tickets of the probes that are out.
struct Pair {
    machine: Machine,
    model: Model,
    settings: Settings,
    now: u64,
    tickets: Vec<u64>,
}

impl Pair {
    fn new(rules: Rules, begin: State) -> Self {
        Self {
            machine: Machine::new(begin),
            model: Model { rules, begin, history: Vec::new() },
            settings: rules.settings(),
            now: 0,
            tickets: Vec::new(),
        }
    }

    fn admit(&mut self) -> Result<(), TestCaseError> {
        let (admitted, change) = self.machine.admit(&self.settings, self.now, 1.0);
        prop_assert_eq!((admitted, change.map(seen)), self.model.admit(self.now));
        if admitted && self.machine.state() == State::HalfOpen {
            self.tickets.push(self.machine.generation());
        }
        self.opened_for(change, &[Rule::ProbeLease])
    }

    fn step(&mut self, event: Event) -> Result<(), TestCaseError> {
        let Self { machine, model, settings, now, tickets } = self;
        let nanos = |hint: Option<u64>| hint.map(Duration::from_nanos);
        match event {
            Event::Admit => return self.admit(),
            Event::Trip(ago, hint) => {
                let of = machine.generation().saturating_sub(ago);
                let late = of != machine.generation();
                let cause = Cause { rule: Rule::FailureRate, measured: 0.75 };
                let change = machine.trip(settings, *now, of, cause, nanos(hint), 1.0);
                prop_assert_eq!(change.map(seen), if late { None } else { model.trip(*now, nanos(hint)) });
                self.opened_for(change, &[Rule::FailureRate])?;
            }
            Event::Settle(which, failed, hint) if !tickets.is_empty() => {
                let of = tickets.swap_remove(which.index(tickets.len()));
                let late = of != machine.generation();
                let change = machine.settle_probe(settings, *now, of, failed, nanos(hint), 1.0);
                prop_assert_eq!(change.map(seen), if late { None } else { model.settle(*now, failed, nanos(hint)) });
                self.opened_for(change, &[Rule::ProbesFailed])?;
            }
            Event::Return(which) if !tickets.is_empty() => {
                let of = tickets.swap_remove(which.index(tickets.len()));
                if of == machine.generation() {
                    model.history.push(Entry::ProbeBack);
                }
                machine.return_probe(of);
            }
            Event::Settle(..) | Event::Return(_) => {}
            Event::Stray(ahead, failed) => {
                let of = machine.generation() + ahead;
                prop_assert_eq!(machine.settle_probe(settings, *now, of, failed, None, 1.0), None);
                machine.return_probe(of);
            }
            Event::Force(state) => prop_assert_eq!(machine.force(state).map(seen), model.force(state)),
            Event::Wait(nanos) => *now = now.saturating_add(nanos),
            Event::WaitUntil => *now = machine.until().unwrap_or(*now).max(*now),
        }
        Ok(())
    }

    /// An opening says why and for how long, and keeps to it.
    fn opened_for(&self, change: Option<Change>, rules: &[Rule]) -> Result<(), TestCaseError> {
        let Some(Change { to: State::Open, open_for: Some(time), cause, .. }) = change else { return Ok(()) };
        prop_assert_eq!(self.machine.until(), Some(self.now.saturating_add(time.as_nanos() as u64)));
        prop_assert!(cause.is_some_and(|cause| rules.contains(&cause.rule)), "{:?}", cause);
        Ok(())
    }

    fn agree(&self) -> Result<(), TestCaseError> {
        let Self { machine, model, settings, tickets, .. } = self;
        prop_assert_eq!(machine.state(), model.state());
        prop_assert_eq!(machine.generation(), model.generation());
        prop_assert_eq!(machine.free_probes(settings) as usize, model.free_probes());
        let waits = matches!(model.state(), State::Open | State::HalfOpen);
        prop_assert_eq!(machine.until(), waits.then(|| model.until()));
        let out = tickets.iter().filter(|of| **of == machine.generation()).count();
        let probes = machine.probes(settings);
        prop_assert!(out <= probes as usize, "{} of {} probes are out", out, probes);
        Ok(())
    }

    /// However it was left, time and callers alone bring it to where it can close.
    fn can_end_closed(mut self) -> Result<(), TestCaseError> {
        // A clock that stands at its end lets no time pass.
        self.now = self.now.min(1 << 62);
        self.step(Event::Force(State::Closed))?;
        self.step(Event::Trip(0, None))?;
        prop_assert_eq!(
            self.machine.until(),
            Some(self.now + self.model.rules.open_time(1)),
            "the first open time again"
        );
        // A round of probes that hang.
        self.step(Event::WaitUntil)?;
        for _ in 0..self.settings.probes + 3 {
            self.admit()?;
        }
        prop_assert_eq!(self.machine.state(), State::HalfOpen);
        self.step(Event::WaitUntil)?;
        self.admit()?;
        prop_assert_eq!(self.machine.state(), State::Open, "the lease ended");
        // And one of probes that succeed.
        self.step(Event::WaitUntil)?;
        while self.machine.state() != State::Closed {
            self.admit()?;
            let of = self.machine.generation();
            prop_assert_eq!(self.tickets.pop(), Some(of), "there is a probe left, as the round is undecided");
            let change = self.machine.settle_probe(&self.settings, self.now, of, false, None, 1.0);
            prop_assert_eq!(change.map(seen), self.model.settle(self.now, false, None));
        }
        Ok(())
    }
}

fn seen(change: Change) -> Move {
    (change.from, change.to, change.open_for)
}

proptest! {
    #![proptest_config(config(10_000))]

    // HAZARD: B2, B4, B8, B9, B14
    #[test]
    fn the_machine_does_what_its_history_says(
        rules in rules(),
        begin in prop::sample::select(vec![State::Closed, State::Closed, State::Shadow]),
        events in prop::collection::vec(event(), 0..40),
    ) {
        let mut pair = Pair::new(rules, begin);
        let mut generation = 0;
        for event in events {
            pair.step(event)?;
            pair.agree()?;
            prop_assert!(pair.machine.generation() >= generation, "a generation goes back");
            generation = pair.machine.generation();
        }
        pair.can_end_closed()?;
    }
}

// ---------------------------------------------------------------- a promise kept

#[derive(Clone, Copy, Debug)]
enum Act {
    /// Asks, and keeps the permit.
    Ask,
    Settle(prop::sample::Index, bool, Option<u64>),
    Drop(prop::sample::Index),
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let hint = prop_oneof![4 => Just(None), 1 => (0u64..100_000_000_000).prop_map(Some)];
    prop_oneof![
        6 => Just(Act::Ask),
        5 => (any::<prop::sample::Index>(), prop::bool::weighted(0.7), hint)
            .prop_map(|(which, failed, hint)| Act::Settle(which, failed, hint)),
        1 => any::<prop::sample::Index>().prop_map(Act::Drop),
        2 => (0u64..20_000_000_000).prop_map(Act::Wait),
    ]
}

fn backoff() -> impl Strategy<Value = Backoff> {
    let time = |most: u64| (1..most).prop_map(Duration::from_nanos);
    let shape = prop_oneof![
        time(10_000_000_000).prop_map(Backoff::constant),
        time(10_000_000_000).prop_map(Backoff::exponential),
        (time(10_000_000_000), time(3_000_000_000)).prop_map(|(first, step)| Backoff::linear(first, step)),
        time(10_000_000_000).prop_map(Backoff::decorrelated),
    ];
    let jitter = prop::sample::select(vec![Jitter::None, Jitter::Equal, Jitter::Full]);
    (shape, jitter, time(60_000_000_000)).prop_map(|(shape, jitter, longest)| shape.jitter(jitter).max_delay(longest))
}

/// A rejection with a time to come back: a nanosecond before it none is admitted, at it as many as there are probes.
async fn come_back(breaker: &CircuitBreaker, probes: u32, rejection: Rejection) -> Result<Vec<Permit>, TestCaseError> {
    let after = rejection.retry_after();
    prop_assert!(after.is_some_and(|after| !after.is_zero()), "{}", rejection);
    let after = after.unwrap_or_default();
    if rejection.rule() == Rule::ProbesOut {
        // What remains of the lease: whatever the probes do, the round is decided then.
        advance(after).await;
        return match breaker.try_acquire() {
            Ok(permit) => Ok(vec![permit]),
            Err(reopened) => {
                prop_assert_eq!(reopened.rule(), Rule::ProbeLease);
                prop_assert_eq!(breaker.state(), State::Open);
                Ok(Vec::new())
            }
        };
    }
    advance(after - NANO).await;
    match breaker.try_acquire() {
        Ok(_) => prop_assert!(false, "admitted a nanosecond before {:?} had passed", after),
        Err(early) => prop_assert_eq!((early.rule(), early.retry_after()), (rejection.rule(), Some(NANO))),
    }
    prop_assert_eq!(breaker.snapshot().retry_after, Some(NANO));
    advance(NANO).await;
    let admitted: Vec<_> = std::iter::from_fn(|| breaker.try_acquire().ok()).take(10).collect();
    prop_assert_eq!(admitted.len(), probes as usize, "after {:?}", after);
    prop_assert_eq!(breaker.try_acquire().map_err(|refused| refused.rule()).err(), Some(Rule::ProbesOut));
    Ok(admitted)
}

async fn retry_after_is_true(breaker: CircuitBreaker, probes: u32, acts: Vec<Act>) -> Result<(), TestCaseError> {
    let mut permits = Vec::new();
    for act in acts {
        match act {
            Act::Ask => match breaker.try_acquire() {
                Ok(permit) => permits.push(permit),
                Err(rejection) => permits.extend(come_back(&breaker, probes, rejection).await?),
            },
            Act::Settle(which, failed, hint) if !permits.is_empty() => {
                let permit = permits.swap_remove(which.index(permits.len()));
                let retry_after = hint.map(Duration::from_nanos);
                permit.settle(if failed { Verdict::Transient { retry_after } } else { Verdict::Success });
            }
            Act::Drop(which) if !permits.is_empty() => drop(permits.swap_remove(which.index(permits.len()))),
            Act::Settle(..) | Act::Drop(_) => {}
            Act::Wait(nanos) => advance(Duration::from_nanos(nanos)).await,
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(3_000))]

    // HAZARD: B12
    #[test]
    fn whoever_comes_back_when_told_to_is_admitted_and_not_a_nanosecond_before(
        open_time in backoff(),
        seed in any::<u64>(),
        probes in 1u32..4,
        lease in 1u64..20_000_000_000,
        failures in 1u32..4,
        acts in prop::collection::vec(act(), 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let breaker = CircuitBreaker::builder()
                .without_failure_rate()
                .consecutive_failures(failures)
                .open_time(open_time)
                .probes(probes)
                .probe_lease(Duration::from_nanos(lease))
                .slow_call(Duration::from_secs(5))
                .seed(seed)
                .build()
                .unwrap();
            retry_after_is_true(breaker, probes, acts).await
        })?;
    }
}

// ---------------------------------------------------------------- after a long outage

// HAZARD: B1, B4
#[test]
fn a_circuit_that_failed_its_probes_for_hours_opens_again_when_the_service_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        for rounds in [1, 40, 63, 64, 65, 100, 127, 128, 200] {
            let open = Duration::from_secs(60);
            let breaker = CircuitBreaker::builder()
                .probes(1)
                .open_time(Backoff::constant(open).jitter(Jitter::None))
                .build()
                .unwrap();
            let ask = |verdict| breaker.try_acquire().map(|permit| permit.settle(verdict)).is_ok();
            while ask(Verdict::TRANSIENT) {}
            for _ in 0..rounds {
                advance(open).await;
                assert!(ask(Verdict::TRANSIENT), "a probe");
            }
            advance(open).await;
            assert!(ask(Verdict::Success));
            assert_eq!(breaker.state(), State::Closed);

            let failures = (0..1_000).take_while(|_| ask(Verdict::TRANSIENT)).count();
            assert_eq!(
                failures, 20,
                "the circuit opens at its minimum of calls, after {rounds} rounds of failed probes"
            );
        }
    });
}

// ---------------------------------------------------------------- no lock

// HAZARD: B16
#[test]
fn whoever_is_admitted_freely_or_refused_waits_for_nobody_who_moves_the_circuit() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let ask = |breaker: &CircuitBreaker| {
        let (told, answer) = mpsc::channel();
        let (asks, clock) = (breaker.clone(), runtime.handle().clone());
        breaker.shared.while_locked(|| {
            thread::spawn(move || {
                let _paused = clock.enter();
                told.send(asks.try_acquire().map(drop).map_err(|no| no.rule()))
            });
            // Only who waits for the lock takes any time, and then all of it.
            answer.recv_timeout(Duration::from_secs(30)).expect("it waits for the lock")
        })
    };
    runtime.block_on(async {
        let open = Duration::from_secs(10);
        let breaker = CircuitBreaker::builder()
            .consecutive_failures(1)
            .open_time(Backoff::constant(open).jitter(Jitter::None))
            .probes(1)
            .build()
            .unwrap();
        assert_eq!(ask(&breaker), Ok(()));
        breaker.try_acquire().unwrap().settle(Verdict::TRANSIENT);
        assert_eq!(ask(&breaker), Err(Rule::ConsecutiveFailures));
        advance(open).await;
        let _probe = breaker.try_acquire().unwrap();
        assert_eq!(ask(&breaker), Err(Rule::ProbesOut));
        breaker.force_open();
        assert_eq!(ask(&breaker), Err(Rule::Forced));
    });
}
