//! Guaranteed shares of a limit: whoever has less in flight than his share goes, whoever else has taken how much.

use crate::Partition;

/// Whose share a permit is of, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share(u64);

impl Share {
    /// Of whoever has none.
    pub(crate) const NONE: Self = Self(0);
    /// So many may be given away.
    pub(crate) const MOST: usize = 200;

    pub(crate) fn of(number: u32) -> Self {
        Self(number.into())
    }

    /// At most [`MOST`](Self::MOST).
    pub(crate) fn number(self) -> u32 {
        self.0 as u32
    }
}

#[derive(Debug, Default)]
pub(super) struct Shares {
    all: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    partition: Partition,
    part: f64,
    in_flight: u32,
    waiting: u32,
}

impl Held {
    fn owed(&self, max: u32) -> bool {
        // So much less as products of what has no exact form are off.
        let share = (f64::from(max) * self.part - 1e-6).ceil().max(1.0);
        max > 0 && f64::from(self.in_flight) < share
    }
}

impl Shares {
    pub(super) fn new(parts: &[(Partition, f64)]) -> Self {
        let held = |&(partition, part)| Held { partition, part, in_flight: 0, waiting: 0 };
        Self { all: parts.iter().map(held).collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What a partition has, or whoever is in none of them.
    pub(super) fn of(&self, partition: Option<Partition>) -> Share {
        let number = |partition| self.all.iter().position(|held| held.partition == partition);
        partition.and_then(number).map_or(Share::NONE, |number| Share(number as u64 + 1))
    }

    fn get(&self, share: Share) -> Option<&Held> {
        self.all.get((share.0 as usize).checked_sub(1)?)
    }

    fn get_mut(&mut self, share: Share) -> Option<&mut Held> {
        self.all.get_mut((share.0 as usize).checked_sub(1)?)
    }

    pub(super) fn in_flight(&self, partition: Partition) -> usize {
        self.get(self.of(Some(partition))).map_or(0, |held| held.in_flight as usize)
    }

    /// Whether whoever comes may go, however many are in flight: who waits for the same share has come before.
    pub(super) fn admits(&self, share: Share, max: u32) -> bool {
        self.get(share).is_some_and(|held| held.waiting == 0 && held.owed(max))
    }

    /// Whether somebody waits who may go, however many are in flight.
    pub(super) fn owe(&self, max: u32) -> bool {
        self.all.iter().any(|held| held.waiting > 0 && held.owed(max))
    }

    /// Whether this one may.
    pub(super) fn owe_to(&self, share: Share, max: u32) -> bool {
        self.get(share).is_some_and(|held| held.owed(max))
    }

    pub(super) fn took(&mut self, share: Share) {
        if let Some(held) = self.get_mut(share) {
            held.in_flight += 1;
        }
    }

    pub(super) fn gave(&mut self, share: Share) {
        if let Some(held) = self.get_mut(share) {
            held.in_flight -= 1;
        }
    }

    /// Somebody waits.
    pub(super) fn joined(&mut self, share: Share) {
        if let Some(held) = self.get_mut(share) {
            held.waiting += 1;
        }
    }

    /// He does no longer.
    pub(super) fn left(&mut self, share: Share) {
        if let Some(held) = self.get_mut(share) {
            held.waiting -= 1;
        }
    }
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use super::*;

    const LIVE: Partition = Partition::new("live");
    const BATCH: Partition = Partition::new("batch");

    fn shares() -> (Shares, Share, Share) {
        let shares = Shares::new(&[(LIVE, 0.7), (BATCH, 0.3)]);
        let (live, batch) = (shares.of(Some(LIVE)), shares.of(Some(BATCH)));
        (shares, live, batch)
    }

    /// How many of a share go, if nobody gives anything back.
    fn most(shares: &mut Shares, share: Share, max: u32) -> u32 {
        (0..1_000).take_while(|_| shares.admits(share, max).then(|| shares.took(share)).is_some()).count() as u32
    }

    // VECTOR: F5
    #[test]
    fn shares_are_rounded_up_and_follow_the_limit() {
        let (mut shares, live, batch) = shares();
        assert_eq!((most(&mut shares, live, 10), most(&mut shares, batch, 10)), (7, 3));
        assert_eq!(most(&mut shares, batch, 20), 3, "six of twenty");
        for (max, share) in [(0, 0), (1, 1), (2, 1), (4, 2), (100, 30)] {
            assert_eq!(most(&mut self::shares().0, batch, max), share, "of {max}");
        }
    }

    #[test]
    fn whoever_is_in_no_partition_is_owed_nothing() {
        let (mut shares, ..) = shares();
        for stranger in [None, Some(Partition::new("other"))] {
            let share = shares.of(stranger);
            assert_eq!(share, Share::NONE);
            shares.joined(share);
            shares.took(share);
            assert!(!shares.admits(share, 10) && !shares.owe_to(share, 10) && !shares.owe(10));
            shares.gave(share);
            shares.left(share);
        }
    }

    #[test]
    fn nobody_passes_who_waits_for_the_same_share() {
        let (mut shares, live, batch) = shares();
        shares.joined(live);
        assert!(!shares.admits(live, 10) && shares.admits(batch, 10));
        assert!(shares.owe(10) && shares.owe_to(live, 10));
        shares.left(live);
        assert!(shares.admits(live, 10) && !shares.owe(10));
    }
}
