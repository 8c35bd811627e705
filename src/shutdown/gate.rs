//! The gate: one word that says how many are inside and whether anybody may still come in; and [`Room`], a gate that
//! can be waited at.

use tokio::sync::Notify;

use crate::sync::atomic::{AtomicUsize, Ordering::*, fence};

/// Coming in and closing are read-modify-writes of the one word, so its modification order decides between them:
/// whoever is counted before the closing is waited for, whoever comes after it is turned away.
#[derive(Debug)]
pub(super) struct Gate {
    /// Bit 0: [`CLOSED`], never cleared. Above it: how many are inside, in units of [`ONE`].
    word: AtomicUsize,
}

const CLOSED: usize = 1;
const ONE: usize = 2;

impl Gate {
    pub(super) fn new() -> Self {
        Self { word: AtomicUsize::new(0) }
    }

    /// Whether the caller is in; it leaves by [`exit`](Self::exit). `emptied` as there.
    #[inline]
    pub(super) fn enter(&self, emptied: impl FnOnce()) -> bool {
        // Relaxed: nothing is published by coming in.
        if self.word.fetch_add(ONE, Relaxed) & CLOSED == 0 {
            return true;
        }
        // It closed in between. Whoever waits may have seen this one inside, so it leaves like any other.
        self.exit(emptied);
        false
    }

    /// Leaves; `emptied` is called by the last one to leave a closed gate.
    #[inline]
    pub(super) fn exit(&self, emptied: impl FnOnce()) {
        // Release: what was done inside happens before the leaving. The decrements of the others continue the release
        // sequence, so the load that finds the gate empty acquires what all of them did.
        if self.word.fetch_sub(ONE, Release) == ONE + CLOSED {
            // Acquire: for whoever goes on in `emptied`.
            fence(Acquire);
            emptied();
        }
    }

    /// Nobody comes in any more. Returns how many are inside.
    pub(super) fn close(&self) -> usize {
        // Release: whoever sees it closed sees why.
        self.word.fetch_or(CLOSED, Release) / ONE
    }

    /// Closed with nobody inside. Never latched: before it is closed, an empty gate says nothing about what comes.
    pub(super) fn is_empty(&self) -> bool {
        // Acquire: pairs with the release of those who left.
        self.word.load(Acquire) == CLOSED
    }

    pub(super) fn is_closed(&self) -> bool {
        // Acquire: pairs with `close`.
        self.word.load(Acquire) & CLOSED != 0
    }

    pub(super) fn count(&self) -> usize {
        self.word.load(Relaxed) / ONE
    }
}

/// A [`Gate`] that one task can wait at.
#[derive(Debug)]
pub(super) struct Room {
    gate: Gate,
    emptied: Notify,
}

impl Room {
    pub(super) fn new() -> Self {
        Self { gate: Gate::new(), emptied: Notify::new() }
    }

    #[inline]
    pub(super) fn enter(&self) -> bool {
        self.gate.enter(|| self.emptied.notify_one())
    }

    #[inline]
    pub(super) fn exit(&self) {
        self.gate.exit(|| self.emptied.notify_one());
    }

    pub(super) fn close(&self) -> usize {
        self.gate.close()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.gate.is_empty()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.gate.is_closed()
    }

    pub(super) fn count(&self) -> usize {
        self.gate.count()
    }

    /// Ready once the room is closed and empty; to be awaited by one task at a time, after closing. Cancel safe.
    pub(super) async fn emptied(&self) {
        // The waiter is there before the check, and a notification that comes earlier is kept for it: none is lost.
        loop {
            let emptied = self.emptied.notified();
            if self.gate.is_empty() {
                return;
            }
            emptied.await;
        }
    }
}

/// What loom does not see into is tokio's `Notify`: that it keeps what it is told is taken for granted, that it is told is a
/// model of its own.
#[cfg(all(test, buttress_loom))]
mod models {
    use std::sync::Arc;

    use loom::{model, sync::atomic::AtomicU32, thread};

    use super::*;

    /// Two workers come while the gate is closed.
    // SHUTDOWN: 3
    #[test]
    fn each_is_waited_for_or_turned_away() {
        model(|| {
            // What is done inside is one word a worker, written and read Relaxed: whoever has not waited may miss it.
            let room = Arc::new((Gate::new(), [AtomicU32::new(0), AtomicU32::new(0)]));
            let workers = [0, 1].map(|worker| {
                let room = Arc::clone(&room);
                thread::spawn(move || {
                    let (gate, work) = &*room;
                    let admitted = gate.enter(|| {});
                    if admitted {
                        work[worker].store(1, Relaxed);
                        gate.exit(|| {});
                    }
                    u32::from(admitted)
                })
            });
            let (gate, work) = &*room;
            gate.close();
            while !gate.is_empty() {
                thread::yield_now();
            }
            let done = work.each_ref().map(|work| work.load(Relaxed));
            let admitted = workers.map(|worker| worker.join().unwrap());
            assert_eq!(done, admitted, "whoever was admitted was waited for");
        });
    }

    #[test]
    fn whoever_waits_is_told() {
        model(|| {
            let gate = Arc::new(Gate::new());
            let told = Arc::new(AtomicU32::new(0));
            let workers = [0, 1].map(|_| {
                let (gate, told) = (Arc::clone(&gate), Arc::clone(&told));
                thread::spawn(move || {
                    let tell = || told.store(1, Relaxed);
                    if gate.enter(tell) {
                        gate.exit(tell);
                    }
                })
            });
            gate.close();
            let waits = !gate.is_empty();
            workers.into_iter().for_each(|worker| worker.join().unwrap());
            assert!(!waits || told.load(Relaxed) == 1, "whoever waits was told");
        });
    }

    #[test]
    fn the_last_to_leave_sees_what_the_others_did() {
        model(|| {
            let room = Arc::new((Gate::new(), [AtomicU32::new(0), AtomicU32::new(0)]));
            assert!((0..2).all(|_| room.0.enter(|| {})));
            room.0.close();
            let workers = [0, 1].map(|worker| {
                let room = Arc::clone(&room);
                thread::spawn(move || {
                    let (gate, work) = &*room;
                    work[worker].store(1, Relaxed);
                    gate.exit(|| assert!(work.iter().all(|done| done.load(Relaxed) == 1), "what the others did"));
                })
            });
            workers.into_iter().for_each(|worker| worker.join().unwrap());
        });
    }

    #[test]
    fn whoever_sees_it_closed_sees_why() {
        model(|| {
            let room = Arc::new((Gate::new(), AtomicU32::new(0)));
            let closes = {
                let room = Arc::clone(&room);
                thread::spawn(move || {
                    room.1.store(1, Relaxed);
                    room.0.close();
                })
            };
            if room.0.is_closed() {
                assert_eq!(room.1.load(Relaxed), 1, "why it closed");
            }
            closes.join().unwrap();
        });
    }

    // SHUTDOWN: 29
    #[test]
    fn coming_and_going_before_it_closes_ends_nothing() {
        model(|| {
            let gate = Arc::new(Gate::new());
            let worker = {
                let gate = Arc::clone(&gate);
                thread::spawn(move || {
                    for _ in 0..2 {
                        assert!(gate.enter(|| panic!("it is not closed")));
                        assert!(!gate.is_empty());
                        gate.exit(|| panic!("it is not closed"));
                    }
                })
            };
            assert!(!gate.is_empty());
            worker.join().unwrap();
            assert!(!gate.is_empty());
            assert_eq!(gate.close(), 0);
            assert!(gate.is_empty());
        });
    }
}
