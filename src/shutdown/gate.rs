//! The gate: one word that says how many are inside and whether anybody may still come in; and [`Room`], a gate that
//! can be waited at.

#[cfg(buttress_loom)]
use loom::sync::atomic::{AtomicUsize, Ordering::*, fence};
#[cfg(not(buttress_loom))]
use std::sync::atomic::{AtomicUsize, Ordering::*, fence};

use tokio::sync::Notify;

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
        // Relaxed: nothing is published by coming in. The first look spares a closed gate's word from being written.
        if self.word.load(Relaxed) & CLOSED != 0 {
            return false;
        }
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
        self.word.fetch_or(CLOSED, AcqRel) / ONE
    }

    /// Closed with nobody inside. Never latched: before it is closed, an empty gate says nothing about what comes.
    pub(super) fn is_empty(&self) -> bool {
        // Acquire: pairs with the release of those who left.
        self.word.load(Acquire) == CLOSED
    }

    pub(super) fn is_closed(&self) -> bool {
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
