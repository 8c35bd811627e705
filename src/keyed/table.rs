//! Where the handles are kept, and which of them is forgotten: shards, one count of places over all of them, and one
//! hand that goes round.
//!
//! A hit takes its shard's lock and writes its entry's chances; nothing else is shared. A newcomer takes a place, which is
//! one of those that are left or that of an entry to forget, before its handle is made; so there are never more
//! than `max`, however many come at once and however they fall into shards.
//!
//! **What runs under a lock**: the keys' `Eq`, as anything else could not find them, and their `Clone` for a list of
//! entries. Hashes are made before, and handles, evicted entries and keys are made and dropped outside.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState},
    sync::PoisonError,
};

use super::PerKey;
use crate::{
    spread::{Padded, slots},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// How often the hand passes over an entry that was asked for once more, and over one that was just made: so that
/// among those that were not asked for lately, the ones go first that never were again.
const USED: u8 = 2;
const NEW: u8 = 1;

/// A newcomer passes over at most so many entries that cannot be forgotten: three rounds of a third as many keys. Chances
/// that are taken come on top of it: each was given by a call, and is paid for by it.
const PATIENCE: usize = 384;

pub(super) struct Table<K, H> {
    shards: Box<[Padded<Mutex<Shard<K, H>>>]>,
    /// Seeded by the system, so nobody can choose keys that meet in one shard.
    hasher: RandomState,
    newcomers: Padded<Newcomers>,
    max: usize,
}

/// Touched by newcomers only. Relaxed: the counts are all there is to them, what is kept is published by locks.
#[derive(Default)]
struct Newcomers {
    /// Places that are taken: by entries, and by those that are being made. Never above `max`.
    taken: AtomicUsize,
    /// The shard in which the hand stands, counted on round after round; where in it is the shard's to know.
    hand: AtomicUsize,
}

struct Shard<K, H> {
    /// Where the first entry stands whose key has this hash. Nearly always it is the only one.
    first: HashMap<u64, usize, BuildHasherDefault<Given>>,
    entries: Vec<Entry<K, H>>,
    /// Which entry the hand looks at next.
    hand: usize,
}

struct Entry<K, H> {
    hash: u64,
    /// The next entry of the same hash.
    next: Option<usize>,
    /// How often the hand still passes over it.
    chances: u8,
    key: K,
    handle: H,
}

/// What is hashed here is a hash already.
#[derive(Default)]
struct Given(u64);

impl Hasher for Given {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only hashes are hashed")
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl<K, H: PerKey> Table<K, H> {
    pub(super) fn new(max: usize) -> Self {
        // A few for each core, so that two threads rarely want the same.
        let shards = std::iter::repeat_with(|| Padded(Mutex::new(Shard::new()))).take(4 * slots()).collect();
        Self { shards, hasher: RandomState::new(), newcomers: Padded::default(), max }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn len(&self) -> usize {
        self.newcomers.0.taken.load(Relaxed)
    }

    pub(super) fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The number of a shard may count on without end.
    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard<K, H>> {
        // Only the keys' `Eq` and `Clone` could panic under it, and both run before anything is changed.
        self.shards[shard & (self.shards.len() - 1)].0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By bits that the map of the shard makes no use of.
    fn shard_of(&self, hash: u64) -> MutexGuard<'_, Shard<K, H>> {
        self.lock((hash >> 40) as usize)
    }

    /// What is kept for the key; it counts as used if `uses`.
    #[inline]
    pub(super) fn find<Q>(&self, hash: u64, key: &Q, uses: bool) -> Option<H>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let mut shard = self.shard_of(hash);
        let at = shard.find(hash, key)?;
        let entry = &mut shard.entries[at];
        if uses {
            entry.chances = USED;
        }
        Some(entry.handle.share())
    }

    /// A place for a newcomer; `None` if nothing can be forgotten.
    pub(super) fn place(&self) -> Option<Place<'_, K, H>> {
        let taken = &self.newcomers.0.taken;
        if taken.fetch_update(Relaxed, Relaxed, |taken| (taken < self.max).then_some(taken + 1)).is_ok() {
            return Some(Place { table: self });
        }
        let forgotten = self.forget()?;
        // Its place is ours, also if its `Drop` panics.
        let place = Place { table: self };
        drop(forgotten);
        Some(place)
    }

    /// Second chance, a CLOCK: goes round, takes a chance from each, and takes out the first that has none left and is at
    /// rest. The third time round at the latest, as by then nobody has any.
    fn forget(&self) -> Option<Entry<K, H>> {
        let hand = &self.newcomers.0.hand;
        let (mut swept, mut passed) = (0, 0);
        while swept <= (1 + usize::from(USED)) * self.shards.len() {
            let here = hand.load(Relaxed);
            let mut lock = self.lock(here);
            let shard = &mut *lock;
            if hand.load(Relaxed) != here {
                continue; // Another newcomer has been through with this one.
            }
            while let Some(entry) = shard.entries.get_mut(shard.hand) {
                if entry.chances > 0 {
                    entry.chances -= 1;
                } else {
                    // In this order: what those who let go of it did is seen once it is known that they did.
                    if entry.handle.is_sole() && entry.handle.is_settled() {
                        return Some(shard.take_out_at_hand());
                    }
                    passed += 1;
                }
                shard.hand += 1;
                if passed == PATIENCE {
                    return None;
                }
            }
            shard.hand = 0;
            // Under the lock, so that it moves one shard at a time.
            hand.store(here.wrapping_add(1), Relaxed);
            swept += 1;
        }
        None
    }

    /// What `f` makes of the entries that it is shown, each shard for itself.
    pub(super) fn collect<R>(&self, f: impl Fn(&K, &H) -> Option<R>) -> Vec<R> {
        let mut all = Vec::new();
        for shard in 0..self.shards.len() {
            all.extend(self.lock(shard).entries.iter().filter_map(|entry| f(&entry.key, &entry.handle)));
        }
        all
    }
}

impl<K, H> Shard<K, H> {
    fn new() -> Self {
        Self { first: HashMap::default(), entries: Vec::new(), hand: 0 }
    }

    fn find<Q>(&self, hash: u64, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let mut same_hash = std::iter::successors(self.first.get(&hash).copied(), |at| self.entries[*at].next);
        same_hash.find(|at| self.entries[*at].key.borrow() == key)
    }

    fn push(&mut self, hash: u64, key: K, handle: H) {
        let next = self.first.insert(hash, self.entries.len());
        self.entries.push(Entry { hash, next, chances: NEW, key, handle });
    }

    fn take_out_at_hand(&mut self) -> Entry<K, H> {
        let at = self.hand;
        self.redirect(self.entries[at].hash, at, self.entries[at].next);
        let taken = self.entries.swap_remove(at);
        if let Some(moved) = self.entries.get(at) {
            // The last one, which the hand looks at next.
            self.redirect(moved.hash, self.entries.len(), Some(at));
        }
        taken
    }

    /// Lets what leads to the entry at `from`, one of this hash, lead on to `to`.
    fn redirect(&mut self, hash: u64, from: usize, to: Option<usize>) {
        let Some(first) = self.first.get(&hash).copied() else { return };
        if first != from {
            let before = std::iter::successors(Some(first), |at| self.entries[*at].next)
                .find(|at| self.entries[*at].next == Some(from));
            if let Some(before) = before {
                self.entries[before].next = to;
            }
            return;
        }
        match to {
            Some(to) => self.first.insert(hash, to),
            None => self.first.remove(&hash),
        };
    }
}

/// A place for one more entry, given back on drop.
pub(super) struct Place<'a, K, H: PerKey> {
    table: &'a Table<K, H>,
}

impl<K: Eq, H: PerKey> Place<'_, K, H> {
    /// Keeps the handle for the key. If another has come for the same key meanwhile, what that one has made.
    pub(super) fn fill(self, hash: u64, key: K, handle: H) -> H {
        let mut shard = self.table.shard_of(hash);
        if let Some(at) = shard.find(hash, &key) {
            let entry = &mut shard.entries[at];
            entry.chances = USED;
            let theirs = entry.handle.share();
            // Before the arguments go, whose `Drop` is not ours.
            drop(shard);
            return theirs;
        }
        let ours = handle.share();
        shard.push(hash, key, handle);
        drop(shard);
        std::mem::forget(self);
        ours
    }
}

impl<K, H: PerKey> Drop for Place<'_, K, H> {
    fn drop(&mut self) {
        self.table.newcomers.0.taken.fetch_sub(1, Relaxed);
    }
}

#[cfg(all(test, buttress_loom))]
mod models;
