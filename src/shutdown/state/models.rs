use std::sync::Arc;

use loom::{model, thread};

use super::*;
use crate::{shutdown::Handle, sync::models::Woken};

fn shared() -> Arc<Shared> {
    let [lame_duck, total, abort_grace, reserved] = [Duration::ZERO; 4];
    Arc::new(Shared::new(Plan { lame_duck, total, abort_grace, reserved }, Box::default(), Systemd::default()))
}

/// Of a shutdown that nobody drives: for models of what hears of it.
pub(crate) fn handle() -> Handle {
    Handle { shared: shared() }
}

fn asked(by: &'static str) -> Trigger {
    Trigger::Asked(by.into())
}

// The rejected stand for whatever leads to a state: a word of its own, written and read Relaxed.

#[test]
fn whoever_sees_a_state_sees_what_led_to_it() {
    model(|| {
        let shared = shared();
        let moves = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.rejected.store(1, Relaxed);
                shared.advance(State::Stopping);
            })
        };
        if shared.state() >= State::Stopping {
            assert_eq!(shared.rejected.load(Relaxed), 1, "what led to it");
        }
        moves.join().unwrap();
    });
}

#[test]
fn whoever_comes_second_sees_what_the_first_did() {
    model(|| {
        let shared = shared();
        let first = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.rejected.store(1, Relaxed);
                shared.advance(State::Draining)
            })
        };
        let second = !shared.advance(State::Draining);
        if second {
            assert_eq!(shared.rejected.load(Relaxed), 1, "what the first did");
        }
        assert_eq!(first.join().unwrap(), second, "there is one first");
    });
}

#[test]
fn it_never_goes_back() {
    model(|| {
        let shared = shared();
        let drains = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.advance(State::Draining))
        };
        assert!(shared.advance(State::Stopping));
        assert_eq!(shared.state(), State::Stopping, "never back");
        drains.join().unwrap();
        assert_eq!(shared.state(), State::Stopping, "never back");
    });
}

#[test]
fn the_first_reason_counts() {
    model(|| {
        let shared = shared();
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.drain(asked("theirs")))
        };
        let ours = shared.drain(asked("ours"));
        assert_ne!(ours, other.join().unwrap(), "one is first");
        let by = if ours { "ours" } else { "theirs" };
        assert_eq!(shared.begun().unwrap().0, asked(by));
        assert_eq!(shared.state(), State::Draining);
    });
}

#[test]
fn of_two_signals_at_once_one_forces() {
    model(|| {
        let shared = shared();
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.signal(Signal::Interrupt))
        };
        shared.signal(Signal::Terminate);
        other.join().unwrap();
        assert_eq!(shared.state(), State::Forced, "the second one forces");
    });
}

/// What a sleeping retry does: see `waits.rs`.
#[test]
fn whoever_sleeps_when_draining_begins_is_woken() {
    model(|| {
        let shared = shared();
        let drains = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.drain(asked("model")))
        };
        let (woken, waker) = Woken::new();
        let sleeps = shared.waits.keep(None, &waker, || shared.is_draining()).is_some();
        drains.join().unwrap();
        assert!(woken.is_so() || !sleeps, "nobody sleeps on");
        assert_eq!(shared.waits.keep(None, &waker, || shared.is_draining()), None, "nobody lies down any more");
    });
}
