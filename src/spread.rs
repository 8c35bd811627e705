//! Keeping threads off each other's cache lines: a slot number a thread, and [`Spread`], an `Arc` whose
//! count is spread over those slots.
//!
//! A future holds the state of its policy for as long as it runs, so every call counts an `Arc` up and
//! down. If all threads do that on one count, the count is the bottleneck: two threads then reach a
//! third of the throughput that they have apart.

use std::{
    cell::Cell,
    fmt,
    ops::Deref,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
            fence,
        },
    },
};

/// How many slots there are: a power of two, near the number of cores.
pub(crate) fn slots() -> usize {
    static SLOTS: OnceLock<usize> = OnceLock::new();
    *SLOTS.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        cores.next_power_of_two().clamp(2, 32)
    })
}

/// A thread's slot. While there are slots that no living thread owns, the next thread that asks owns one; further
/// threads take turns in sharing them.
///
/// Below [`slots`].
#[inline]
pub(crate) fn slot() -> usize {
    match SLOT.get() {
        usize::MAX => assign(),
        slot => slot,
    }
}

/// Whether no other thread has this thread's slot, as long as this one lives. To be asked after [`slot`].
#[inline]
pub(crate) fn owns_slot() -> bool {
    OWNS.get()
}

thread_local! {
    static SLOT: Cell<usize> = const { Cell::new(usize::MAX) };
    static OWNS: Cell<bool> = const { Cell::new(false) };
    /// Apart from the two, which can then be read without asking whether they are still there.
    static OWNED: Owned = const { Owned(Cell::new(None)) };
}

/// Those that threads own.
static TAKEN: Taken = Taken(AtomicUsize::new(0));

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

/// The slot that this thread owns, given back when the thread ends.
struct Owned(Cell<Option<usize>>);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            // What still runs on this thread, other destructors, shares it from now on.
            OWNS.set(false);
            TAKEN.give_back(slot);
        }
    }
}

#[cold]
fn assign() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let slot = match TAKEN.take(slots()) {
        Some(slot) => {
            // Not if the thread ends, and would not give it back.
            OWNS.set(OWNED.try_with(|owned| owned.0.set(Some(slot))).is_ok());
            if !OWNS.get() {
                TAKEN.give_back(slot);
            }
            slot
        }
        // Relaxed: only the number matters, nothing is published by it.
        None => NEXT.fetch_add(1, Relaxed) & (slots() - 1),
    };
    SLOT.set(slot);
    slot
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

/// Whether nobody else holds it. Then it stays so for as long as the caller keeps it from being cloned, and what the
/// others did with it is seen.
pub(crate) fn is_sole<T>(shared: &Arc<T>) -> bool {
    let sole = Arc::strong_count(shared) == 1;
    // Pairs with the Release with which an `Arc` is counted down.
    fence(Acquire);
    sole
}

impl<T> Spread<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { seat: Root::seat(&Arc::new(Root { value, seats: padded(), moves: AtomicU64::new(0) }), slot()) }
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
        is_sole(root) && is_sole(&self.seat) && root.moves.load(Relaxed) == moves
    }
}

impl<T> Root<T> {
    #[cold]
    fn seat(self: &Arc<Self>, slot: usize) -> Arc<Seat<T>> {
        let mut seat = self.seats[slot].0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = seat.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Seat { slot, root: Arc::clone(self) });
            *seat = Arc::downgrade(&new);
            new
        });
        self.moves.fetch_add(1, Release);
        taken
    }
}

impl<T> Clone for Spread<T> {
    #[inline]
    fn clone(&self) -> Self {
        let here = slot();
        let seat = if self.seat.slot == here { Arc::clone(&self.seat) } else { self.seat.root.seat(here) };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_one_value_across_threads_and_the_last_one_drops_it() {
        let watched = Arc::new(());
        let spread = Spread::new(Arc::clone(&watched));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let theirs = spread.clone();
                scope.spawn(move || {
                    let mut mine = theirs.clone();
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
        std::thread::scope(|scope| {
            for _ in 0..2 * slots() {
                scope.spawn(|| (0..10_000).for_each(|_| counter.count()));
            }
        });
        assert_eq!(counter.total(), 20_000 * slots() as u64);
    }

    #[test]
    fn a_thread_keeps_its_slot() {
        assert_eq!(slot(), slot());
        assert!(slot() < slots() && slots().is_power_of_two());
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

    #[test]
    fn what_runs_when_a_thread_ends_no_longer_owns_its_slot() {
        struct AtTheEnd(std::sync::mpsc::Sender<bool>);
        impl Drop for AtTheEnd {
            fn drop(&mut self) {
                self.0.send(owns_slot()).unwrap();
            }
        }
        thread_local!(static LAST: Cell<Option<AtTheEnd>> = const { Cell::new(None) });
        // One that nobody else is ever given.
        let mine = usize::BITS as usize - 2;
        let (tell, hear) = std::sync::mpsc::channel();
        let taken = move || TAKEN.0.load(Relaxed) & 1 << mine != 0;
        std::thread::spawn(move || {
            // Touched first, so dropped last.
            LAST.set(Some(AtTheEnd(tell)));
            TAKEN.0.fetch_or(1 << mine, Relaxed);
            OWNED.with(|owned| owned.0.set(Some(mine)));
            OWNS.set(true);
            assert!(owns_slot() && taken());
        })
        .join()
        .unwrap();
        assert!(!hear.recv().unwrap() && !taken());
    }
}
