//! The time that so many of the calls do not take, kept in one word.

use std::time::Duration;

use crate::clock::seconds;

/// Below this many samples nothing is known.
const ENOUGH: u32 = 20;

/// From then on, each sample moves the estimate by at most this part of it. It is then off by a few percent, and follows a service
/// that gets ten times as slow within some fifty calls at the 95th percentile, and one that gets as much faster within a thousand.
const STEP: f32 = 0.05;

/// An estimate of a quantile, from one sample at a time: whatever the scale, without a bound, and in a word, so that two threads
/// that add at once lose a sample and nothing else.
///
/// It is a stochastic approximation (Robbins and Monro, 1951; for quantiles of streams: Ma, Muthukrishnan and Sandler, 2013) of the
/// logarithm: a sample above the estimate raises it by a factor, one below lowers it by one so much smaller that both are in
/// balance where `share` of the samples lie below. Only on which side a sample lies matters: of a call that was given up above the
/// estimate, nothing more needs to be known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Quantile {
    /// Of samples so far, up to enough.
    count: u32,
    /// In seconds.
    estimate: f32,
}

impl Quantile {
    pub(super) fn from_word(word: u64) -> Self {
        Self { count: (word >> 32) as u32, estimate: f32::from_bits(word as u32) }
    }

    pub(super) fn to_word(self) -> u64 {
        u64::from(self.count) << 32 | u64::from(self.estimate.to_bits())
    }

    /// With one sample more.
    pub(super) fn with(self, took: Duration, share: f32) -> Self {
        // Nothing takes no time at all, and a factor leads nowhere from zero.
        let sample = took.as_secs_f32().max(1e-9);
        if self.count == 0 {
            return Self { count: 1, estimate: sample };
        }
        let count = (self.count + 1).min(ENOUGH);
        // Larger steps at first, as the first sample may be any.
        let step = if self.count < ENOUGH { 1.0 / count as f32 } else { STEP };
        let exponent = if sample > self.estimate { step * share } else { -step * (1.0 - share) };
        Self { count, estimate: self.estimate * exponent.exp() }
    }

    /// `None` while too little is known.
    pub(super) fn get(self) -> Option<Duration> {
        (self.count >= ENOUGH).then(|| seconds(self.estimate.into()))
    }
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use super::*;
    use crate::random::Random;

    /// After `count` samples by `sample`, of a number between zero and one.
    fn after(start: Quantile, count: usize, share: f32, sample: impl Fn(f64) -> f64) -> Quantile {
        let random = Random::seeded(Some(7));
        (0..count).fold(start, |quantile, _| {
            let took = Duration::from_secs_f64(sample(random.unit()));
            // Through the word, as it is kept.
            Quantile::from_word(quantile.with(took, share).to_word())
        })
    }

    fn seconds(quantile: Quantile) -> f64 {
        quantile.get().unwrap().as_secs_f64()
    }

    #[test]
    fn it_is_near_the_true_quantile_whatever_the_scale() {
        for scale in [1e-6, 1e-3, 1.0, 1e4] {
            for share in [0.5f32, 0.75, 0.95, 0.99] {
                // Exponential: most are short and a few are long.
                let quantile = after(Quantile::default(), 20_000, share, |unit| -scale * (1.0 - unit).ln());
                let exact = -scale * f64::from(1.0 - share).ln();
                let off = seconds(quantile) / exact;
                assert!((0.8..1.25).contains(&off), "{share} of {scale}: {off}");
            }
        }
    }

    #[test]
    fn it_follows_up_and_down() {
        let before = after(Quantile::default(), 1_000, 0.95, |unit| 0.01 + 0.001 * unit);
        assert!((0.009..0.0125).contains(&seconds(before)), "{before:?}");
        let slower = after(before, 60, 0.95, |unit| 0.1 + 0.01 * unit);
        assert!(seconds(slower) > 0.09, "{slower:?}");
        let faster = after(slower, 1_200, 0.95, |unit| 0.01 + 0.001 * unit);
        assert!(seconds(faster) < 0.0125, "{faster:?}");
    }

    #[test]
    fn little_says_nothing() {
        let few = after(Quantile::default(), 19, 0.95, |unit| unit);
        assert_eq!(few.get(), None);
        assert!(few.with(Duration::from_secs(1), 0.95).get().is_some());
    }

    #[test]
    fn no_time_at_all_is_a_time_and_for_ever_is_one() {
        let mut quantile = after(Quantile::default(), 100, 0.95, |_| 0.0);
        assert!(quantile.get().unwrap() < Duration::from_nanos(10));
        for _ in 0..10_000 {
            quantile = quantile.with(Duration::MAX, 0.95);
        }
        assert!(quantile.get().unwrap() > Duration::from_secs(1_000_000_000), "{quantile:?}");
    }
}
