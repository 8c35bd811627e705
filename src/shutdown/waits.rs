//! What waits in policies: nothing of it goes on once draining begins.

use std::{
    sync::{PoisonError, Weak},
    task::Waker,
};

use super::bell::{Bell, Ticket};
use crate::{
    concurrency_limit::Shared as Limit,
    sync::{Mutex, MutexGuard},
};

/// Calls that sleep before a further attempt, and limits with calls in their queues.
#[derive(Debug, Default)]
pub(super) struct Waits {
    sleepers: Bell,
    limits: Mutex<Vec<Weak<Limit>>>,
}

impl Waits {
    /// Keeps the waker of a sleeping call's latest poll, under a number; `None` if nothing sleeps any more, because `is_over`.
    pub(super) fn keep(&self, number: Option<u32>, waker: &Waker, is_over: impl FnOnce() -> bool) -> Option<u32> {
        self.sleepers.keep(number.map(ticket), waker, is_over).map(|ticket| ticket.number)
    }

    pub(super) fn leave(&self, number: u32) {
        self.sleepers.leave(ticket(number));
    }

    pub(super) fn enlist(&self, limit: Weak<Limit>) {
        let mut limits = self.lock_limits();
        if limits.len() == limits.capacity() {
            // Forgets those that are gone, and makes room for as many as are left: by then it is due again.
            limits.retain(|limit| limit.strong_count() > 0);
            let left = limits.len();
            limits.reserve(left + 1);
        }
        limits.push(limit);
    }

    /// Wakes all that wait; they find out why.
    pub(super) fn end(&self) {
        self.sleepers.ring();
        let limits = std::mem::take(&mut *self.lock_limits());
        for limit in limits.iter().filter_map(Weak::upgrade) {
            limit.wake_all();
        }
    }

    fn lock_limits(&self) -> MutexGuard<'_, Vec<Weak<Limit>>> {
        // No user code runs under it.
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All sleep before the first ring; after it nobody lies down any more.
fn ticket(number: u32) -> Ticket {
    Ticket { number, ring: 0 }
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ConcurrencyLimit;

    #[test]
    fn limits_that_are_gone_are_forgotten_and_those_that_are_there_are_not() {
        let waits = Waits::default();
        let limit = || ConcurrencyLimit::builder().max_in_flight(1).build().unwrap().shared;
        let there = limit();
        waits.enlist(Arc::downgrade(&there));
        for _ in 0..1_000 {
            waits.enlist(Arc::downgrade(&limit()));
            assert!(waits.lock_limits().len() <= 8, "of one that is there");
        }
        assert!(waits.lock_limits().iter().any(|limit| limit.strong_count() > 0));
    }
}
