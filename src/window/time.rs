//! A window over a time span, in ten buckets, sharded so that threads do not contend.

use std::{sync::PoisonError, time::Duration};

use super::{Totals, tally::Tally};
use crate::{
    clock, spread,
    sync::{
        Mutex,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
        overwrite,
    },
};

/// The span slides in tenths. (A model of ten buckets has more interleavings than anybody can wait for.)
const BUCKETS: usize = if cfg!(buttress_loom) { 2 } else { 10 };

/// Counts successes and failures of the last `span`, and slow calls among them.
///
/// Every word carries a tag (generation, bucket), so that a late writer can tell that a word is no longer
/// what it thinks. Whoever moves the window on, or resets it, retags the words that fall out: tags
/// therefore lie close together and eight bits each tell older from newer.
///
/// All accesses but those of `present` are `Relaxed`: a word is the unit of consistency, nothing else is published through it, and
/// a total may miss what another thread records at that moment, as it may under any lock too.
#[derive(Debug)]
pub(crate) struct TimeWindow {
    /// Nanoseconds of a bucket.
    width: u64,
    /// Fewer successes per shard than this wait for somebody who knows the time.
    untimed: u64,
    /// The newest bucket's number that anyone has seen.
    present: AtomicU64,
    /// Held to move on after a pause as long as the span, when everything is cleared before anyone records again.
    clearing: Mutex<()>,
    shards: Box<[Shard]>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    /// `tag: 16 | successes: 24 | failures: 24`
    outcomes: [AtomicU64; BUCKETS],
    untimed: Tally,
    /// `tag: 16 | unused: 24 | slow calls: 24`
    slow: [AtomicU64; BUCKETS],
}

const FIELD: u64 = (1 << 24) - 1;
const FAILURE: u64 = 1;
const SUCCESS: u64 = 1 << 24;

/// `generation: 8 | bucket: 8`
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tag(u16);

impl Tag {
    fn new(generation: u64, bucket: u64) -> Self {
        Tag(u16::from_be_bytes([generation as u8, bucket as u8]))
    }

    fn of(word: u64) -> Self {
        Tag((word >> 48) as u16)
    }

    fn empty(self) -> u64 {
        u64::from(self.0) << 48
    }

    /// Wrapping, as both lie close together.
    fn is_newer_than(self, other: Tag) -> bool {
        let [[g, b], [other_g, other_b]] = [self.0.to_be_bytes(), other.0.to_be_bytes()];
        let newer = |a: u8, b: u8| a.wrapping_sub(b) as i8 > 0;
        newer(g, other_g) || g == other_g && newer(b, other_b)
    }
}

impl TimeWindow {
    pub(crate) fn new(span: Duration, untimed: u64) -> Self {
        Self {
            untimed,
            width: (clock::nanos(span) / BUCKETS as u64).max(1),
            present: AtomicU64::new(0),
            clearing: Mutex::new(()),
            shards: std::iter::repeat_with(Shard::default).take(spread::slots()).collect(),
        }
    }

    #[inline(always)]
    fn shard(&self) -> &Shard {
        &self.shards[spread::slot()]
    }

    /// Counts a success for which no clock was read. `false`: not counted, as enough of them wait for a bucket;
    /// [`record`](Self::record) it instead.
    #[inline(always)]
    pub(crate) fn tally(&self, generation: u64) -> bool {
        self.shard().untimed.count(spread::owns_slot(), generation, self.untimed)
    }

    /// Counts an outcome at `now`, with the successes of this shard that waited for a bucket.
    pub(crate) fn record(&self, now: u64, generation: u64, failed: bool, slow: bool) {
        let bucket = self.advance(now, generation);
        let shard = self.shard();
        let (tag, index) = (Tag::new(generation, bucket), index(bucket));
        let waited = shard.untimed.take(generation) * SUCCESS;
        add(&shard.outcomes[index], tag, waited + if failed { FAILURE } else { SUCCESS });
        if slow {
            add(&shard.slow[index], tag, 1);
        }
    }

    /// What happened within the span before `now`.
    pub(crate) fn totals(&self, now: u64, generation: u64) -> Totals {
        let present = self.advance(now, generation);
        let mut totals = Totals::default();
        for shard in &self.shards {
            shard.fold(Tag::new(generation, present), index(present), generation);
            for bucket in oldest(present)..=present {
                let tag = Tag::new(generation, bucket);
                let outcomes = shard.outcomes[index(bucket)].load(Relaxed);
                if Tag::of(outcomes) == tag {
                    totals.successes += outcomes >> 24 & FIELD;
                    totals.failures += outcomes & FIELD;
                }
                let slow = shard.slow[index(bucket)].load(Relaxed);
                if Tag::of(slow) == tag {
                    totals.slow += slow & FIELD;
                }
            }
        }
        totals
    }

    /// When all that was recorded by `now` will have fallen out.
    pub(crate) fn outlived_at(&self, now: u64) -> u64 {
        (now / self.width).saturating_add(BUCKETS as u64).saturating_mul(self.width)
    }

    /// Empties every word and tags it for a new generation.
    pub(crate) fn reset(&self, now: u64, generation: u64) {
        let oldest = oldest(self.advance(now, generation));
        // All ten, also those that are still to come: whoever skips many generations would take an old tag for a newer.
        for bucket in oldest..oldest + BUCKETS as u64 {
            self.clear(bucket, generation);
        }
        for shard in &self.shards {
            shard.untimed.reset(generation);
        }
    }

    /// The bucket of `now`, or the present one if `now` is behind. Whoever moves it on retags what falls out.
    #[inline]
    fn advance(&self, now: u64, generation: u64) -> u64 {
        let seen = self.present.load(Acquire);
        // Nearly always. A multiplication costs a fraction of what a division does.
        if now < (seen + 1).saturating_mul(self.width) { seen } else { self.move_on(now, generation) }
    }

    #[cold]
    fn move_on(&self, now: u64, generation: u64) -> u64 {
        let bucket = now / self.width;
        let mut seen = self.present.load(Acquire);
        if bucket.saturating_sub(seen) >= BUCKETS as u64 {
            // Everything falls out, and eight bits may no longer tell older from newer: clear it all, before anyone
            // sees the new bucket and records into it.
            let _one = self.clearing.lock().unwrap_or_else(PoisonError::into_inner);
            seen = self.present.load(Relaxed);
            if bucket.saturating_sub(seen) >= BUCKETS as u64 {
                for passed in oldest(bucket)..=bucket {
                    self.clear(passed, generation);
                }
                seen = self.present.fetch_max(bucket, Release).max(bucket);
            }
        }
        if bucket > seen {
            seen = self.present.fetch_max(bucket, Release);
            for passed in (seen + 1).max(oldest(bucket))..=bucket {
                self.retag(passed, generation);
            }
        }
        bucket.max(seen)
    }

    /// Whatever the words hold, their tags may lie too far apart to be compared.
    fn clear(&self, bucket: u64, generation: u64) {
        let tag = Tag::new(generation, bucket);
        for shard in &self.shards {
            overwrite(&shard.outcomes[index(bucket)], tag.empty());
            overwrite(&shard.slow[index(bucket)], tag.empty());
        }
    }

    fn retag(&self, bucket: u64, generation: u64) {
        let tag = Tag::new(generation, bucket);
        for shard in &self.shards {
            add(&shard.outcomes[index(bucket)], tag, 0);
            add(&shard.slow[index(bucket)], tag, 0);
        }
    }
}

impl Shard {
    /// Moves the successes that wait for a bucket into this one.
    fn fold(&self, tag: Tag, index: usize, generation: u64) {
        let waited = self.untimed.take(generation);
        if waited != 0 {
            add(&self.outcomes[index], tag, waited * SUCCESS);
        }
    }
}

fn index(bucket: u64) -> usize {
    (bucket % BUCKETS as u64) as usize
}

fn oldest(present: u64) -> u64 {
    present.saturating_sub(BUCKETS as u64 - 1)
}

/// Adds to the word if it bears this tag, starts it anew if it bears an older one, and leaves a newer one alone.
/// Both halves saturate instead of running over.
fn add(word: &AtomicU64, tag: Tag, amount: u64) {
    let mut seen = word.load(Relaxed);
    loop {
        let next = if Tag::of(seen) == tag {
            let low = (seen & FIELD) + (amount & FIELD);
            let high = (seen >> 24 & FIELD) + (amount >> 24 & FIELD);
            tag.empty() | high.min(FIELD) << 24 | low.min(FIELD)
        } else if Tag::of(seen).is_newer_than(tag) {
            return;
        } else {
            tag.empty() | amount
        };
        if next == seen {
            return;
        }
        match word.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
}

#[cfg(all(test, buttress_loom))]
mod models;

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use super::*;

    /// Its bucket was the present one when it looked at the clock, and a span or a reset has gone by since.
    #[test]
    fn who_was_held_up_leaves_a_word_to_those_who_have_it_now() {
        let tags = [((3, 5), (3, 15)), ((3, 250), (3, 260)), ((2, 15), (3, 5)), ((2, 5), (3, 5)), ((255, 5), (256, 5))];
        for ((generation, bucket), (later, newer)) in tags {
            let (late, present) = (Tag::new(generation, bucket), Tag::new(later, newer));
            let word = AtomicU64::new(late.empty() | (7 * FAILURE));
            add(&word, present, FAILURE);
            for amount in [0, FAILURE, SUCCESS] {
                add(&word, late, amount);
                assert_eq!(word.load(Relaxed), present.empty() | FAILURE, "{generation}, {bucket} by {amount}");
            }
        }
    }
}
