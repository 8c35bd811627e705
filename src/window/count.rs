//! A window over the last N outcomes: an exact ring.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use super::Totals;

/// The largest window: what the totals can count to.
pub(crate) const MAX_SIZE: usize = (1 << 20) - 1;

/// Counts failures and slow calls among the last N outcomes.
///
/// A record claims a position at `head`, replaces what its slot held N outcomes ago, and adds the difference to
/// the totals, which therefore always equal what the slots hold. Each word carries its generation (24 bits) and
/// starts anew when a later one first touches it; an earlier one leaves it alone.
///
/// It is exact, which is its price: all threads meet at `head`.
#[derive(Debug)]
pub(crate) struct CountWindow {
    /// `generation: 24 | records so far: 40`
    head: AtomicU64,
    /// `generation: 24 | failures: 20 | slow: 20`
    totals: AtomicU64,
    /// `generation: 24 | failed: 1 | slow: 1`
    slots: Box<[AtomicU32]>,
}

const GENERATION: u64 = (1 << 24) - 1;
const POSITION: u64 = (1 << 40) - 1;
const FIELD: u64 = (1 << 20) - 1;

/// Wrapping: generations that meet here lie close together.
fn is_newer(a: u64, b: u64) -> bool {
    let ahead = a.wrapping_sub(b) & GENERATION;
    ahead != 0 && ahead < 1 << 23
}

impl CountWindow {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            head: AtomicU64::new(0),
            totals: AtomicU64::new(0),
            slots: std::iter::repeat_with(|| AtomicU32::new(0)).take(size.clamp(1, MAX_SIZE)).collect(),
        }
    }

    #[inline]
    pub(crate) fn record(&self, generation: u64, failed: bool, slow: bool) {
        let generation = generation & GENERATION;
        let Some(position) = self.claim(generation) else { return };
        let size = self.slots.len() as u64;
        let bits = u32::from(failed) << 1 | u32::from(slow);
        let Some(evicted) = replace(&self.slots[(position % size) as usize], generation, bits) else { return };
        // In the first round the slots hold nothing of this generation.
        let evicted = if position < size { 0 } else { evicted };
        let change = |bit: u32| i64::from(bits >> bit & 1) - i64::from(evicted >> bit & 1);
        let (failures, slow) = (change(1), change(0));
        if failures != 0 || slow != 0 {
            self.adjust(generation, failures, slow);
        }
    }

    pub(crate) fn totals(&self, generation: u64) -> Totals {
        let generation = generation & GENERATION;
        let (totals, head) = (self.totals.load(Acquire), self.head.load(Relaxed));
        let calls = if head >> 40 == generation { (head & POSITION).min(self.slots.len() as u64) } else { 0 };
        let (failures, slow) = if totals >> 40 == generation { (totals >> 20 & FIELD, totals & FIELD) } else { (0, 0) };
        let failures = failures.min(calls);
        Totals { successes: calls - failures, failures, slow: slow.min(calls) }
    }

    /// The next position, or `None` if a later generation is at it. Relaxed: it hands out numbers only.
    #[inline]
    fn claim(&self, generation: u64) -> Option<u64> {
        let mut head = self.head.load(Relaxed);
        loop {
            let position = match head >> 40 {
                g if g == generation => head & POSITION,
                g if is_newer(g, generation) => return None,
                _ => 0,
            };
            // Wraps to one full round, not to none.
            let next = if position == POSITION { self.slots.len() as u64 } else { position + 1 };
            match self.head.compare_exchange_weak(head, generation << 40 | next, Relaxed, Relaxed) {
                Ok(_) => return Some(position),
                Err(seen) => head = seen,
            }
        }
    }

    /// Release, so that whoever reads a total (Acquire) has a head at least as new and never sees more failures
    /// than calls by much; the rest is clamped.
    fn adjust(&self, generation: u64, failures: i64, slow: i64) {
        let mut totals = self.totals.load(Relaxed);
        loop {
            let (had_failures, had_slow) = match totals >> 40 {
                g if g == generation => (totals >> 20 & FIELD, totals & FIELD),
                g if is_newer(g, generation) => return,
                _ => (0, 0),
            };
            let failures = had_failures.saturating_add_signed(failures) & FIELD;
            let slow = had_slow.saturating_add_signed(slow) & FIELD;
            let next = generation << 40 | failures << 20 | slow;
            match self.totals.compare_exchange_weak(totals, next, AcqRel, Relaxed) {
                Ok(_) => return,
                Err(seen) => totals = seen,
            }
        }
    }
}

/// Puts the bits into the slot and returns what it held of this generation; `None` if it is a later one's.
#[inline]
fn replace(slot: &AtomicU32, generation: u64, bits: u32) -> Option<u32> {
    let mut held = slot.load(Relaxed);
    loop {
        let of = u64::from(held >> 2);
        if is_newer(of, generation) {
            return None;
        }
        match slot.compare_exchange_weak(held, (generation as u32) << 2 | bits, Relaxed, Relaxed) {
            Ok(_) => return Some(if of == generation { held & 3 } else { 0 }),
            Err(seen) => held = seen,
        }
    }
}
