//! [`Chance`]: numbers that only the seed decides.

use std::{ops::RangeInclusive, time::Duration};

/// Seeded chance. One seed gives the same numbers on every machine and in every version of this crate, or a seed that failed
/// last year would tell nothing today; so it is not to be had from a generator that may change.
///
/// Not for secrets. It is SplitMix64 (Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, 2014).
///
/// ```
/// use buttress::testing::Chance;
/// let (mut one, mut same) = (Chance::new(7), Chance::new(7));
/// assert_eq!(one.number(), same.number());
/// assert!(["a", "b"].contains(one.pick(&["a", "b"])));
/// ```
#[derive(Clone, Debug)]
pub struct Chance {
    state: u64,
}

impl Chance {
    /// The chance of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The chance of one of many things under one seed: what befalls the hundredth call does not depend on what befell, or
    /// drew, the others.
    #[must_use]
    pub fn of_nth(seed: u64, number: u64) -> Self {
        // Nothing of it is zero, nor the chance of the seed itself.
        Self { state: mix(seed ^ 0x6a09_e667_f3bc_c909) ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03) }
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// In `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        // As many bits as a float holds.
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// `true` at this rate: never at 0, always at 1.
    pub fn happens(&mut self, rate: f64) -> bool {
        self.unit() < rate
    }

    /// In `0..end`; 0 if that is empty.
    pub fn below(&mut self, end: u64) -> u64 {
        // The upper half of the product, which is spread as evenly as 64 bits allow.
        ((u128::from(self.number()) * u128::from(end)) >> 64) as u64
    }

    /// In the range, to the nanosecond; its start if it is empty.
    pub fn duration(&mut self, range: RangeInclusive<Duration>) -> Duration {
        let (start, end) = range.into_inner();
        let span = crate::clock::nanos(end.saturating_sub(start));
        start.saturating_add(Duration::from_nanos(self.below(span.saturating_add(1))))
    }

    /// One of these.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        assert!(!from.is_empty(), "there is nothing to pick from");
        &from[self.below(from.len() as u64) as usize]
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_what_it_has_always_given() {
        // The published sequence of seed 1234567.
        let mut chance = Chance::new(1_234_567);
        let numbers = [(); 3].map(|()| chance.number());
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn each_of_many_has_a_chance_of_its_own() {
        let firsts: Vec<_> = (0..1000).map(|number| Chance::of_nth(3, number).number()).collect();
        let mut distinct = firsts.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 1000);
        assert_eq!(Chance::of_nth(3, 17).number(), firsts[17]);
        assert_ne!(Chance::of_nth(4, 17).number(), firsts[17]);
    }

    #[test]
    fn a_rate_is_kept() {
        let mut chance = Chance::new(1);
        let happened = (0..10_000).filter(|_| chance.happens(0.25)).count();
        // Within four standard deviations.
        assert!((2327..2673).contains(&happened), "{happened}");
        assert!((0..1000).all(|_| chance.happens(1.0)) && !(0..1000).any(|_| chance.happens(0.0)));
    }

    #[test]
    fn what_is_drawn_is_in_its_range() {
        let mut chance = Chance::new(2);
        let mut seen = [false; 5];
        for _ in 0..200 {
            seen[chance.below(5) as usize] = true;
            let (start, end) = (Duration::from_nanos(3), Duration::from_nanos(5));
            assert!((start..=end).contains(&chance.duration(start..=end)));
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!(chance.below(0), 0);
        assert_eq!(chance.duration(Duration::MAX..=Duration::ZERO), Duration::MAX, "an empty range has its start");
        assert!(chance.duration(Duration::ZERO..=Duration::MAX) < Duration::MAX, "no overflow");
        assert_eq!(*chance.pick(&[9]), 9);
    }

    #[test]
    #[should_panic(expected = "there is nothing to pick from")]
    fn nothing_cannot_be_picked_from() {
        Chance::new(0).pick::<u8>(&[]);
    }
}
