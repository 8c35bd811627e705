//! Successes that wait for a bucket: counted without a clock, taken by whoever knows the time.

use crate::sync::{
    atomic::{AtomicU64, Ordering::Relaxed},
    overwrite,
};

/// What is counted in one slot of threads, each word as `generation: 32 | count: 32`.
///
/// The thread that owns the slot alone writes `own`, so it needs no read-modify-write, which costs more than all the rest
/// of counting. `own` only grows, and `taken` follows it: what is between them waits. Threads that share the slot count in
/// `shared`, which is emptied when it is taken.
///
/// All is `Relaxed`: nothing else is published through it. A slot that passes from one thread to another does so with
/// Release and Acquire, so the next owner goes on from the last one's count.
#[derive(Debug, Default)]
pub(super) struct Tally {
    own: AtomicU64,
    taken: AtomicU64,
    shared: AtomicU64,
}

fn word(generation: u64, count: u32) -> u64 {
    generation << 32 | u64::from(count)
}

/// How far the word's generation, its upper half, is ahead of this one; both wrap.
#[inline]
pub(crate) fn ahead(word: u64, generation: u64) -> i32 {
    ((word >> 32) as u32).wrapping_sub(generation as u32) as i32
}

/// The count of this generation; nothing of another.
fn count(word: u64, generation: u64) -> u32 {
    if ahead(word, generation) == 0 { word as u32 } else { 0 }
}

impl Tally {
    /// Counts one more, if fewer than `most` wait then. What belongs to a generation that is over is dropped.
    #[inline(always)]
    pub(super) fn count(&self, owned: bool, generation: u64, most: u64) -> bool {
        if owned { self.count_own(generation, most) } else { self.count_shared(generation, most) }
    }

    #[inline(always)]
    fn count_own(&self, generation: u64, most: u64) -> bool {
        let own = self.own.load(Relaxed);
        if ahead(own, generation) > 0 {
            return true; // A late result moves nothing.
        }
        let next = count(own, generation).wrapping_add(1);
        let waiting = next.wrapping_sub(count(self.taken.load(Relaxed), generation));
        let counts = u64::from(waiting) < most;
        if counts {
            self.own.store(word(generation, next), Relaxed);
        }
        counts
    }

    #[cold]
    fn count_shared(&self, generation: u64, most: u64) -> bool {
        let mut seen = self.shared.load(Relaxed);
        loop {
            if ahead(seen, generation) > 0 {
                return true; // A late result moves nothing.
            }
            let next = count(seen, generation) + 1;
            if u64::from(next) >= most {
                return false;
            }
            match self.shared.compare_exchange_weak(seen, word(generation, next), Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }

    /// Takes those that wait.
    pub(super) fn take(&self, generation: u64) -> u64 {
        u64::from(self.take_own(generation)) + u64::from(self.take_shared(generation))
    }

    fn take_own(&self, generation: u64) -> u32 {
        let mut taken = self.taken.load(Relaxed);
        loop {
            let own = self.own.load(Relaxed);
            let waiting = count(own, generation).wrapping_sub(count(taken, generation));
            // Not positive: another thread has taken what came after our look at `own`. Ahead: one has in a later
            // generation, and `taken` must not be set back.
            if ahead(own, generation) != 0 || ahead(taken, generation) > 0 || waiting as i32 <= 0 {
                return 0;
            }
            match self.taken.compare_exchange_weak(taken, own, Relaxed, Relaxed) {
                Ok(_) => return waiting,
                Err(now) => taken = now,
            }
        }
    }

    fn take_shared(&self, generation: u64) -> u32 {
        let take = |seen| (count(seen, generation) != 0).then(|| word(generation, 0));
        // No swap: it would drop what waits in a later generation.
        self.shared.fetch_update(Relaxed, Relaxed, take).map_or(0, |seen| count(seen, generation))
    }

    /// Begins a new generation. The owner's words need not be told: of another generation, they say nothing.
    pub(super) fn reset(&self, generation: u64) {
        overwrite(&self.shared, word(generation, 0));
    }
}

#[cfg(all(test, buttress_loom))]
mod models;

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use super::*;

    const MOST: u64 = 64;

    #[test]
    fn what_is_counted_is_taken_once() {
        for owned in [true, false] {
            let tally = Tally::default();
            assert!((0..5).all(|_| tally.count(owned, 0, MOST)));
            assert_eq!(tally.take(0), 5);
            assert_eq!(tally.take(0), 0);
            assert!(tally.count(owned, 0, MOST));
            assert_eq!(tally.take(0), 1, "owned: {owned}");
        }
    }

    #[test]
    fn no_more_than_may_wait_are_counted() {
        for owned in [true, false] {
            let tally = Tally::default();
            assert_eq!((0..100).filter(|_| tally.count(owned, 0, MOST)).count() as u64, MOST - 1);
            assert_eq!(tally.take(0), MOST - 1);
            assert!(tally.count(owned, 0, MOST), "owned: {owned}");
        }
    }

    #[test]
    fn a_generation_knows_nothing_of_another() {
        for owned in [true, false] {
            let tally = Tally::default();
            assert!(tally.count(owned, 7, MOST) && tally.count(owned, 7, MOST));
            tally.reset(8);
            assert_eq!(tally.take(8), 0, "of before");
            assert!(tally.count(owned, 8, MOST));
            assert!(tally.count(owned, 7, MOST), "late ones are done with");
            assert_eq!(tally.take(7), 0);
            assert_eq!(tally.take(8), 1, "owned: {owned}");
        }
    }

    #[test]
    fn counts_run_over_and_go_on() {
        let tally = Tally::default();
        let nearly = word(3, u32::MAX - 1);
        tally.own.store(nearly, Relaxed);
        tally.taken.store(nearly, Relaxed);
        assert!((0..4).all(|_| tally.count(true, 3, MOST)));
        assert_eq!(ahead(tally.own.load(Relaxed), 3), 0, "the generation is not touched");
        assert_eq!(tally.take(3), 4);
    }

    #[test]
    fn an_owner_and_those_who_take_lose_nothing_and_take_nothing_twice() {
        const EACH: u64 = 20_000;
        let (tally, taken, done) = (Tally::default(), AtomicU64::new(0), AtomicBool::new(false));
        // Until so many are counted, and not so often: whoever takes them may have no processor for a while.
        let count = |owned| {
            for _ in 0..EACH {
                while !tally.count(owned, 0, MOST) {
                    std::thread::yield_now();
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Relaxed) {
                        taken.fetch_add(tally.take(0), Relaxed);
                    }
                });
            }
            let shares = scope.spawn(|| count(false));
            count(true);
            shares.join().unwrap();
            done.store(true, Relaxed);
        });
        assert_eq!(taken.load(Relaxed) + tally.take(0), 2 * EACH);
    }

    #[test]
    fn a_late_taker_sets_nothing_back() {
        let tally = Tally::default();
        // It has seen what was counted in generation 1, and then what others have taken in generation 2.
        tally.own.store(word(1, 5), Relaxed);
        tally.taken.store(word(2, 3), Relaxed);
        assert_eq!(tally.take(1), 0);
        assert_eq!(tally.taken.load(Relaxed), word(2, 3));
    }

    #[test]
    fn takers_of_many_generations_leave_nobody_anything_twice() {
        const GENERATIONS: u64 = 200_000;
        let (tally, present, done) = (Tally::default(), AtomicU64::new(0), AtomicBool::new(false));
        let mut twice = 0;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !done.load(Relaxed) {
                        // As a snapshot does: it reads the generation, and later takes.
                        tally.take(present.load(Relaxed));
                    }
                });
            }
            for generation in 1..=GENERATIONS {
                present.store(generation, Relaxed);
                assert!((0..5).all(|_| tally.count(true, generation, MOST)));
                // Whoever takes them, they are taken now; and as nobody counts, none can come to wait again.
                tally.take(generation);
                twice += (0..20).map(|_| tally.take(generation)).sum::<u64>();
            }
            done.store(true, Relaxed);
        });
        assert_eq!(twice, 0, "taken twice");
    }
}
