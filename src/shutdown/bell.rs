//! Wakers to be woken all at once, by a bell that may ring more than once.

use std::{
    future::poll_fn,
    sync::PoisonError,
    task::{Poll, Waker},
};

use crate::{
    queue::Queue,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering::*},
    },
};

/// Whoever waits for something leaves a waker; whoever makes it so rings.
///
/// What is waited for is made so **before** the ring, and asked for under the lock that the ring takes: either it is so
/// already, or the ring wakes.
#[derive(Debug, Default)]
pub(super) struct Bell {
    /// One waker a waiter. A ring takes them all, and makes all numbers void.
    waiting: Mutex<Queue<Waker>>,
    /// Written under the lock only: as long as it stays the same, whoever has left a waker is in the queue.
    rings: AtomicU32,
}

/// Where a waker lies: void once the bell has rung.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) number: u32,
    /// How often it had rung.
    pub(super) ring: u32,
}

impl Bell {
    /// Leaves a waker, in the place of the one before if that is still there; `None` if what is waited for is so.
    pub(super) fn keep(&self, before: Option<Ticket>, waker: &Waker, is_so: impl FnOnce() -> bool) -> Option<Ticket> {
        // Cloned before and dropped after the lock: wakers are not our code.
        let mut waker = waker.clone();
        let mut waiting = self.lock();
        if is_so() {
            drop(waiting);
            return None;
        }
        // Relaxed: the lock is held.
        let ring = self.rings.load(Relaxed);
        let place = before.filter(|ticket| ticket.ring == ring);
        match place.and_then(|ticket| Some((ticket, waiting.get_mut(ticket.number)?))) {
            Some((ticket, stored)) => {
                std::mem::swap(stored, &mut waker);
                drop(waiting);
                Some(ticket)
            }
            None => Some(Ticket { number: waiting.push_back(waker), ring }),
        }
    }

    /// Takes a waker back.
    pub(super) fn leave(&self, ticket: Ticket) {
        let mut waiting = self.lock();
        // Relaxed: the lock is held.
        let left = (ticket.ring == self.rings.load(Relaxed)).then(|| waiting.remove(ticket.number));
        drop(waiting);
        drop(left);
    }

    /// Wakes all.
    pub(super) fn ring(&self) {
        let mut waiting = self.lock();
        // Relaxed: whoever sees the number takes the lock, and sees there why it rang.
        self.rings.fetch_add(1, Relaxed);
        let mut woken = std::mem::take(&mut *waiting);
        drop(waiting);
        while let Some(waker) = woken.take_front() {
            waker.wake();
        }
    }

    /// Ready once it is so. Cancel safe.
    ///
    /// Once its waker is there, being polled again costs what `is_so` does, one load and no lock, so that connections can
    /// poll it with every byte that they move.
    pub(super) async fn until(&self, is_so: impl Fn() -> bool) {
        let mut place = Place { bell: self, left: None };
        poll_fn(|cx| {
            if is_so() {
                return Poll::Ready(());
            }
            let before = place.left.as_ref().map(|(ticket, _)| *ticket);
            if let Some((ticket, waker)) = &place.left {
                // Relaxed: it decides only whether to take the lock; who was woken comes after the ring.
                if ticket.ring == self.rings.load(Relaxed) && waker.will_wake(cx.waker()) {
                    return Poll::Pending;
                }
            }
            match self.keep(before, cx.waker(), &is_so) {
                Some(ticket) => {
                    place.left = Some((ticket, cx.waker().clone()));
                    Poll::Pending
                }
                None => Poll::Ready(()),
            }
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, Queue<Waker>> {
        // No user code runs under it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A waker that was left, taken back on drop.
struct Place<'a> {
    bell: &'a Bell,
    left: Option<(Ticket, Waker)>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some((ticket, _)) = self.left {
            self.bell.leave(ticket);
        }
    }
}

#[cfg(all(test, buttress_loom))]
mod models {
    use std::{pin::pin, sync::Arc, task::Context};

    use loom::{model, sync::atomic::AtomicBool, thread};

    use super::*;
    use crate::sync::models::Woken;

    /// One who waits, and is polled once more for each time that it is woken.
    fn rings(before: bool) {
        model(move || {
            let shared = Arc::new((Bell::default(), AtomicBool::new(false)));
            let ringer = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (bell, is_so) = &*shared;
                    if before {
                        bell.ring();
                    }
                    is_so.store(true, Release);
                    bell.ring();
                })
            };
            let (bell, is_so) = &*shared;
            let mut waits = pin!(bell.until(|| is_so.load(Acquire)));
            let mut poll = || {
                let (woken, waker) = Woken::new();
                let polled = waits.as_mut().poll(&mut Context::from_waker(&waker));
                (polled, woken)
            };
            // The second poll leaves another waker in the place of the first, if that is still there.
            let (mut polled, mut woken) = poll();
            if polled.is_pending() {
                (polled, woken) = poll();
            }
            ringer.join().unwrap();
            while polled.is_pending() {
                assert!(woken.is_so(), "nobody sleeps for ever");
                (polled, woken) = poll();
            }
        });
    }

    #[test]
    fn whoever_waits_is_woken() {
        rings(false);
    }

    #[test]
    fn a_ring_for_something_else_loses_nobody() {
        rings(true);
    }

    /// Somebody has been in the queue since before the ring; another one comes after it, and gets the same number.
    fn takes_nobody_elses_place(goes_on: impl Fn(&Bell, Ticket) + Copy + Send + Sync + 'static) {
        model(move || {
            let bell = Arc::new(Bell::default());
            let before = bell.keep(None, &Woken::new().1, || false).unwrap();
            let ringer = {
                let bell = Arc::clone(&bell);
                thread::spawn(move || bell.ring())
            };
            let (woken, waker) = Woken::new();
            bell.keep(None, &waker, || false).unwrap();
            goes_on(&bell, before);
            ringer.join().unwrap();
            bell.ring();
            assert!(woken.is_so(), "it is still there");
        });
    }

    #[test]
    fn whoever_leaves_takes_nobody_elses_place() {
        takes_nobody_elses_place(|bell, before| bell.leave(before));
    }

    #[test]
    fn whoever_comes_back_takes_nobody_elses_place() {
        takes_nobody_elses_place(|bell, before| _ = bell.keep(Some(before), &Woken::new().1, || false));
    }
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use std::{
        pin::pin,
        sync::Arc,
        task::{Context, Wake},
    };

    use super::*;

    struct Nobody;

    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn whoever_stops_waiting_takes_the_waker_along() {
        let bell = Bell::default();
        let nobody = Arc::new(Nobody);
        {
            let waker = Waker::from(Arc::clone(&nobody));
            let mut waits = pin!(bell.until(|| false));
            assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        assert_eq!(Arc::strong_count(&nobody), 1, "the bell may ring in a year");
    }
}
