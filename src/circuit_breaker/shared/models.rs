use std::sync::Arc;

use loom::{model, thread};

use super::*;
use crate::{
    Backoff, Jitter,
    sync::models::interrupted,
    window::{CountWindow, TimeWindow},
};

const SECOND: Duration = Duration::from_secs(1);

fn settings() -> Settings {
    Settings {
        name: "model",
        failure_rate: None,
        slow_call_rate: None,
        consecutive_failures: Some(2),
        min_calls: 1,
        slow_call: SECOND,
        count_throttled: true,
        open_time: Backoff::constant(SECOND).jitter(Jitter::None),
        probes: 1,
        then_probes: Vec::new(),
        probe_failure_rate: 1.0,
        probe_lease: 4 * SECOND,
    }
}

fn breaker(window: Window) -> Arc<Shared> {
    let base = crate::clock::now();
    Arc::new(Shared::new(settings(), window, State::Closed, None, Random::System, base))
}

fn counting() -> Arc<Shared> {
    breaker(Window::Count(CountWindow::new(2)))
}

fn nanos(time: Duration) -> u64 {
    crate::clock::nanos(time)
}

/// A thread that has slept through more generations than a window's tag can tell, and wakes to the newest word.
#[test]
fn who_holds_a_new_word_records_into_the_window_made_for_it() {
    model(|| {
        let shared = breaker(Window::Time(TimeWindow::new(SECOND, 64)));
        let mut machine = Machine::new(State::Closed);
        for _ in 0..100 {
            machine.force(State::ForcedOpen);
            machine.force(State::Closed);
        }
        let generation = machine.generation();
        let wakes = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let ticket = shared.admit().unwrap();
                if ticket >> 8 == generation {
                    shared.record(ticket, true, false, None, shared.base);
                    assert_eq!(shared.window.totals(0, generation).failures, 1, "it is counted");
                }
            })
        };
        shared.publish(&machine, 0, true);
        wakes.join().unwrap();
    });
}

/// Closed, then open, then half-open with its probe out.
#[test]
fn what_is_read_was_published_together() {
    interrupted(3, || {
        let shared = counting();
        let (until, lease_ends) = (nanos(SECOND), nanos(5 * SECOND));
        let moves = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let mut machine = Machine::new(State::Closed);
                let cause = Cause { rule: Rule::ConsecutiveFailures, measured: 2.0 };
                machine.trip(&shared.settings, 0, 0, cause, None, 0.5);
                let _lock = shared.lock();
                shared.publish(&machine, 0, true);
                machine.admit(&shared.settings, nanos(SECOND), 0.5);
                shared.publish(&machine, nanos(SECOND), true);
            })
        };
        let Published { word, until: ends, free_probes, cause, .. } = shared.read();
        let all = [(State::Closed, 0, 0, false), (State::Open, until, 0, true), (State::HalfOpen, lease_ends, 0, true)];
        assert!(all.contains(&(state_of(word), ends, free_probes, cause != 0)), "of one publication");
        moves.join().unwrap();
    });
}

// HAZARD: B4
#[test]
fn a_late_ticket_moves_nothing() {
    interrupted(3, || {
        let shared = counting();
        let late = shared.admit().unwrap();
        let fails = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.record(late, true, false, None, shared.base);
                shared.record(late, true, false, None, shared.base);
            })
        };
        shared.force(State::Closed, shared.base);
        let ticket = shared.admit().unwrap();
        fails.join().unwrap();
        assert_eq!(shared.admit(), Some(ticket), "it stays closed");
        assert_eq!(shared.window.totals(0, ticket >> 8).calls(), 0, "and empty");
    });
}

// HAZARD: B4
#[test]
fn a_late_one_breaks_no_streak() {
    for late_fails in [true, false] {
        interrupted(3, move || {
            let shared = counting();
            let late = shared.admit().unwrap();
            shared.record(late, true, false, None, shared.base);
            let comes = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.record(late, late_fails, false, None, shared.base))
            };
            shared.force(State::Closed, shared.base);
            let ticket = shared.admit().unwrap();
            shared.record(ticket, true, false, None, shared.base);
            shared.record(ticket, true, false, None, shared.base);
            assert_eq!(shared.state(), State::Open, "two in a row");
            comes.join().unwrap();
        });
    }
}

#[test]
fn two_that_fail_at_once_are_a_streak() {
    interrupted(3, || {
        let shared = counting();
        let ticket = shared.admit().unwrap();
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.record(ticket, true, false, None, shared.base))
        };
        shared.record(ticket, true, false, None, shared.base);
        other.join().unwrap();
        assert_eq!(shared.state(), State::Open, "two in a row");
    });
}

// HAZARD: B9
#[test]
fn as_many_probes_go_out_as_may() {
    interrupted(3, || {
        let shared = counting();
        let ticket = shared.admit().unwrap();
        (0..2).for_each(|_| shared.record(ticket, true, false, None, shared.base));
        let later = shared.base + SECOND;
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.admit_at(later).is_ok())
        };
        let ours = shared.admit_at(later).is_ok();
        assert_ne!(ours, other.join().unwrap(), "one probe");
        assert_eq!(shared.state(), State::HalfOpen);
    });
}
