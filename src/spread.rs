//! Keeping threads off each other's cache lines: a slot number a thread, and [`Spread`], an `Arc` whose
//! count is spread over those slots.
//!
//! A future holds the state of its policy for as long as it runs, so every call counts an `Arc` up and
//! down. If all threads do that on one count, the count is the bottleneck: two threads then reach a
//! third of the throughput that they have apart.

use std::{fmt, ops::Deref, sync::PoisonError};

use crate::sync::{
    Arc, Mutex, Weak,
    atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
        fence,
    },
};

#[cfg_attr(buttress_loom, path = "spread/modelled.rs")]
mod threads;

pub(crate) use threads::{owns_slot, slot, slots};

/// A bit for each slot that is taken. Taken with Acquire and given back with Release, so that who owns a slot next sees
/// all that the last owner wrote there.
struct Taken(AtomicUsize);

impl Taken {
    /// One of the first so many that is free.
    fn take(&self, of: usize) -> Option<usize> {
        let free = |taken: usize| taken.trailing_ones() as usize;
        let with_next = |taken| (free(taken) < of).then(|| taken | 1 << free(taken));
        self.0.fetch_update(Acquire, Relaxed, with_next).ok().map(free)
    }

    fn give_back(&self, slot: usize) {
        self.0.fetch_and(!(1 << slot), Release);
    }
}

/// One value per slot, each on cache lines of its own (two lines, as processors fetch them in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

pub(crate) fn padded<T: Default>() -> Box<[Padded<T>]> {
    std::iter::repeat_with(Padded::default).take(slots()).collect()
}

/// A count that all threads add to, and that hardly anybody reads.
#[derive(Debug)]
pub(crate) struct Counter {
    slots: Box<[Padded<Counts>]>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Of the slot's owner, who alone writes it: it needs no read-modify-write.
    own: AtomicU64,
    /// Of those who share the slot.
    shared: AtomicU64,
}

// Relaxed, all of it: nothing is published by a count.
impl Counter {
    pub(crate) fn new() -> Self {
        Self { slots: padded() }
    }

    /// One more.
    #[inline]
    pub(crate) fn count(&self) {
        let Counts { own, shared } = &self.slots[slot()].0;
        if owns_slot() {
            own.store(own.load(Relaxed) + 1, Relaxed);
        } else {
            shared.fetch_add(1, Relaxed);
        }
    }

    /// How many there have been.
    pub(crate) fn total(&self) -> u64 {
        self.slots.iter().map(|Padded(slot)| slot.own.load(Relaxed) + slot.shared.load(Relaxed)).sum()
    }
}

/// A shared value, counted per slot. Clones made on one thread touch no line of another's.
pub struct Spread<T> {
    seat: Arc<Seat<T>>,
}

/// What the clones of one slot share and count.
#[repr(align(128))]
struct Seat<T> {
    slot: usize,
    root: Arc<Root<T>>,
}

struct Root<T> {
    value: T,
    // Weak, since each seat owns the root. Locked only by a clone that changes slots.
    seats: Box<[Padded<Mutex<Weak<Seat<T>>>>]>,
    /// Clones that changed slots: see [`Spread::is_sole`].
    moves: AtomicU64,
}

/// Whether nobody else holds the `Arc` that has this strong count. Then it stays so for as long as the caller keeps it from
/// being cloned, and what the others did with it is seen.
pub(crate) fn is_sole(strong_count: usize) -> bool {
    // Pairs with the Release with which an `Arc` is counted down.
    fence(Acquire);
    strong_count == 1
}

impl<T> Spread<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { seat: Seat::of(&Arc::new(Root { value, seats: padded(), moves: AtomicU64::new(0) }), slot()) }
    }

    /// Moved to this thread's slot, so that what is cloned of it [`beside`](Self::beside) is cheap here.
    #[inline]
    pub(crate) fn here(&mut self) -> &Self {
        if self.seat.slot != slot() {
            *self = self.clone();
        }
        self
    }

    /// A clone in the slot of `self`, whatever the thread: it never makes a seat, so it allocates nothing and takes no lock.
    #[inline]
    pub(crate) fn beside(&self) -> Self {
        Self { seat: Arc::clone(&self.seat) }
    }

    /// As [`is_sole`](is_sole()).
    ///
    /// The counts of the seat and of the root are two words, and a clone could hide from both by changing slots between
    /// the two looks. But it counts its moves: after it has come to its new seat, before it leaves the old one. So if
    /// none has moved meanwhile, each would have been seen where it was.
    pub(crate) fn is_sole(&self) -> bool {
        let root = &self.seat.root;
        // Acquire: where a clone has moved to until now is seen below. Afterwards, the fence of `is_sole` pairs with
        // the release of the seat that a clone has left, and shows its move.
        let moves = root.moves.load(Acquire);
        is_sole(Arc::strong_count(root)) && is_sole(Arc::strong_count(&self.seat)) && root.moves.load(Relaxed) == moves
    }
}

impl<T> Seat<T> {
    #[cold]
    fn of(root: &Arc<Root<T>>, slot: usize) -> Arc<Self> {
        let mut seat = root.seats[slot].0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = seat.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Seat { slot, root: Arc::clone(root) });
            *seat = Arc::downgrade(&new);
            new
        });
        root.moves.fetch_add(1, Release);
        taken
    }
}

impl<T> Clone for Spread<T> {
    #[inline]
    fn clone(&self) -> Self {
        let here = slot();
        let seat = if self.seat.slot == here { Arc::clone(&self.seat) } else { Seat::of(&self.seat.root, here) };
        Self { seat }
    }
}

impl<T> Deref for Spread<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.seat.root.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Spread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(all(test, buttress_loom))]
mod models;

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use super::{threads::SLOT, *};

    #[test]
    fn clones_share_one_value_across_threads_and_the_last_one_drops_it() {
        let watched = Arc::new(());
        let spread = Spread::new(Arc::clone(&watched));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let theirs = spread.clone();
                scope.spawn(move || {
                    // Not the slot that it comes from.
                    SLOT.set((theirs.seat.slot + 1) % slots());
                    let mut mine = theirs.beside();
                    let local = mine.here().beside();
                    assert_eq!(local.seat.slot, slot());
                    assert!(Arc::ptr_eq(&local, &theirs));
                });
            }
        });
        assert_eq!(Arc::strong_count(&watched), 2);
        drop(spread);
        assert_eq!(Arc::strong_count(&watched), 1, "no seat keeps the value alive");
    }

    #[test]
    fn a_spread_is_sole_once_every_clone_is_gone() {
        let spread = Spread::new(());
        assert!(spread.is_sole());
        let beside = spread.beside();
        assert!(!spread.is_sole());
        std::thread::spawn(move || {
            let elsewhere = beside.clone();
            drop(beside);
            elsewhere
        })
        .join()
        .map(|elsewhere| assert!(!spread.is_sole(), "{:?} is held in another slot", *elsewhere))
        .unwrap();
        assert!(spread.is_sole());
    }

    #[test]
    fn a_clone_that_changes_slots_all_the_time_does_not_hide() {
        let spread = Spread::new(());
        let (start, done) = (std::sync::Barrier::new(2), std::sync::atomic::AtomicBool::new(false));
        let mut hidden = false;
        std::thread::scope(|scope| {
            let mut wanders = spread.clone();
            let (start, done) = (&start, &done);
            scope.spawn(move || {
                start.wait();
                for round in 0..3_000_000 {
                    SLOT.set(round % slots());
                    wanders = wanders.clone();
                }
                // The last look below comes before it goes.
                done.store(true, Relaxed);
                start.wait();
            });
            start.wait();
            while !done.load(Relaxed) {
                hidden |= spread.is_sole();
            }
            start.wait();
        });
        assert!(!hidden);
        assert!(spread.is_sole());
    }

    #[test]
    fn a_counter_counts_what_owners_and_others_count() {
        let counter = Counter::new();
        // All at once, so that some find no slot to own.
        let all = std::sync::Barrier::new(2 * slots());
        std::thread::scope(|scope| {
            for _ in 0..2 * slots() {
                scope.spawn(|| {
                    slot();
                    all.wait();
                    (0..10_000).for_each(|_| counter.count());
                });
            }
        });
        assert_eq!(counter.total(), 20_000 * slots() as u64);
    }

    #[test]
    fn a_slot_is_owned_by_one_thread_at_a_time() {
        const OF: usize = 3;
        let (pool, owners) = (Taken(AtomicUsize::new(0)), [const { AtomicUsize::new(0) }; OF]);
        let taken = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..OF + 1 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        let Some(slot) = pool.take(OF) else { continue };
                        taken.fetch_add(1, Relaxed);
                        // What an owner does: it reads and writes in two steps, and two of them would lose counts.
                        owners[slot].store(owners[slot].load(Relaxed) + 1, Relaxed);
                        pool.give_back(slot);
                    }
                });
            }
        });
        assert!(taken.load(Relaxed) >= 50_000);
        assert_eq!(owners.iter().map(|owner| owner.load(Relaxed)).sum::<usize>(), taken.load(Relaxed));
        let all: Vec<_> = (0..=OF).map(|_| pool.take(OF)).collect();
        assert_eq!(all, [Some(0), Some(1), Some(2), None]);
    }
}
