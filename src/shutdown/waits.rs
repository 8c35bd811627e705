//! What waits in policies: nothing of it goes on once draining begins.

use std::{
    sync::{Mutex, MutexGuard, PoisonError, Weak},
    task::Waker,
};

use crate::{concurrency_limit::Shared as Limit, queue::Queue};

/// Calls that sleep before a further attempt, and limits with calls in their queues.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// One waker a sleeping call. Emptied once, and never filled again.
    backoffs: Mutex<Queue<Waker>>,
    limits: Mutex<Vec<Weak<Limit>>>,
}

impl Waits {
    /// Keeps the waker of a call's latest poll; `None` if there is nothing to wait for any more, because `is_over`.
    ///
    /// Asked under the lock that [`end`](Self::end) takes after it became so: either it is over, or `end` wakes.
    pub(super) fn keep(&self, ticket: Option<u32>, waker: &Waker, is_over: impl FnOnce() -> bool) -> Option<u32> {
        // Cloned before and dropped after the lock: wakers are not our code.
        let mut waker = waker.clone();
        let mut backoffs = lock(&self.backoffs);
        if is_over() {
            drop(backoffs);
            return None;
        }
        match ticket.and_then(|ticket| Some((ticket, backoffs.get_mut(ticket)?))) {
            Some((ticket, stored)) => {
                std::mem::swap(stored, &mut waker);
                drop(backoffs);
                Some(ticket)
            }
            None => Some(backoffs.push_back(waker)),
        }
    }

    pub(super) fn leave(&self, ticket: u32) {
        let left = lock(&self.backoffs).remove(ticket);
        drop(left);
    }

    pub(super) fn enlist(&self, limit: Weak<Limit>) {
        let mut limits = lock(&self.limits);
        limits.retain(|limit| limit.strong_count() > 0);
        limits.push(limit);
    }

    /// Wakes all that wait; they find out why.
    pub(super) fn end(&self) {
        let mut backoffs = std::mem::take(&mut *lock(&self.backoffs));
        while let Some(waker) = backoffs.take_front() {
            waker.wake();
        }
        let limits = std::mem::take(&mut *lock(&self.limits));
        for limit in limits.iter().filter_map(Weak::upgrade) {
            limit.wake_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No user code runs under it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
