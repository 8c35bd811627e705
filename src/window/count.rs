//! A window over the last N outcomes: an exact ring.

use super::Totals;
use crate::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// The largest window: what the totals can count to.
pub(crate) const MAX_SIZE: usize = (1 << 20) - 1;

/// Counts failures and slow calls among the last N outcomes.
///
/// A record claims a position at `head`, replaces what its slot held N outcomes ago, and adds the difference to
/// the totals, which therefore always equal what the slots hold. Each word carries its generation (22 bits) and
/// starts anew when a later one first touches it; an earlier one leaves it alone.
///
/// It is exact, which is its price: all threads meet at `head`.
#[derive(Debug)]
pub(crate) struct CountWindow {
    /// `generation: 22 | records so far: 42`
    head: AtomicU64,
    /// `generation: 22 | failures: 21 | slow: 21`, each wrapping: what leaves a slot may be subtracted before what came
    /// into it is added.
    totals: AtomicU64,
    /// `unused: 8 | generation: 22 | failed: 1 | slow: 1`
    slots: Box<[AtomicU32]>,
}

const GENERATION: u64 = (1 << 22) - 1;
const POSITION: u64 = (1 << 42) - 1;
const FIELD: u64 = (1 << 21) - 1;

/// Wrapping: generations that meet here lie close together.
fn is_newer(a: u64, b: u64) -> bool {
    let ahead = a.wrapping_sub(b) & GENERATION;
    ahead != 0 && ahead < 1 << 21
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
        let change = |bit: u32| i64::from(bits >> bit & 1) - i64::from(evicted >> bit & 1);
        let (failures, slow) = (change(1), change(0));
        if failures != 0 || slow != 0 {
            self.adjust(generation, failures, slow);
        }
    }

    pub(crate) fn totals(&self, generation: u64) -> Totals {
        let generation = generation & GENERATION;
        let (totals, head) = (self.totals.load(Acquire), self.head.load(Relaxed));
        let calls = if head >> 42 == generation { (head & POSITION).min(self.slots.len() as u64) } else { 0 };
        let (failures, slow) = if totals >> 42 == generation { (totals >> 21 & FIELD, totals & FIELD) } else { (0, 0) };
        // Below zero for a moment: nothing.
        let count = |field: u64| if field > MAX_SIZE as u64 { 0 } else { field.min(calls) };
        let failures = count(failures);
        Totals { successes: calls - failures, failures, slow: count(slow) }
    }

    /// The next position, or `None` if a later generation is at it. Relaxed: it hands out numbers only.
    #[inline]
    fn claim(&self, generation: u64) -> Option<u64> {
        let mut head = self.head.load(Relaxed);
        loop {
            let position = match head >> 42 {
                g if g == generation => head & POSITION,
                g if is_newer(g, generation) => return None,
                _ => 0,
            };
            // Wraps to one full round, not to none.
            let next = if position == POSITION { self.slots.len() as u64 } else { position + 1 };
            match self.head.compare_exchange_weak(head, generation << 42 | next, Relaxed, Relaxed) {
                Ok(_) => return Some(position),
                Err(seen) => head = seen,
            }
        }
    }

    /// Release, so that whoever reads a total (Acquire) has a head at least as new: of two that fail at once, the one that
    /// looks last sees both calls, too. What is ahead of that is clamped.
    fn adjust(&self, generation: u64, failures: i64, slow: i64) {
        let mut totals = self.totals.load(Relaxed);
        loop {
            let (had_failures, had_slow) = match totals >> 42 {
                g if g == generation => (totals >> 21 & FIELD, totals & FIELD),
                g if is_newer(g, generation) => return,
                _ => (0, 0),
            };
            let failures = had_failures.wrapping_add_signed(failures) & FIELD;
            let slow = had_slow.wrapping_add_signed(slow) & FIELD;
            let next = generation << 42 | failures << 21 | slow;
            match self.totals.compare_exchange_weak(totals, next, Release, Relaxed) {
                Ok(_) => return,
                Err(seen) => totals = seen,
            }
        }
    }
}

/// Puts the bits into the slot and returns what it held of this generation; `None` if it is a later one's. In the
/// first round too: whoever claimed the slot after us may have been faster.
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

#[cfg(all(test, buttress_loom))]
mod models;

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use super::*;

    /// Two threads meet in a slot: the one that takes a failure out may be ahead of the one that has put it in. If that
    /// read as very many failures, it would open a circuit.
    #[test]
    fn a_total_that_is_below_zero_for_a_moment_reads_as_none() {
        let window = CountWindow::new(4);
        (0..4).for_each(|_| window.record(0, false, false));
        let all_well = Totals { successes: 4, failures: 0, slow: 0 };
        window.adjust(0, -1, -1);
        assert_eq!(window.totals(0), all_well);
        window.adjust(0, 1, 1);
        assert_eq!(window.totals(0), all_well);
    }

    /// It was held up after it had claimed its position, and a new generation has begun.
    #[test]
    fn who_was_held_up_changes_nothing_of_a_later_generation() {
        let window = CountWindow::new(1);
        window.record(2, true, true);
        let before = window.totals(2);
        assert_eq!(replace(&window.slots[0], 1, 0), None);
        window.adjust(1, -1, -1);
        assert_eq!(window.totals(2), before);
        window.record(2, false, false);
        assert_eq!(window.totals(2), Totals { successes: 1, failures: 0, slow: 0 });
    }
}
