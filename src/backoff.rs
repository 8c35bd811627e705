//! [`Backoff`]: how long to wait before trying again. Pure delays: no clock, no generator inside.
//!
//! The shapes are the usual ones; full, equal and decorrelated jitter are those of AWS
//! ("Exponential Backoff And Jitter"). The cap applies *before* jitter, so that jitter survives it:
//! clients that have all reached the cap still spread out instead of marching in step.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::config::Checks;

/// How much of a delay is left to chance.
///
/// ```
/// use buttress::{Backoff, Jitter};
/// use std::time::Duration;
/// let backoff = Backoff::constant(Duration::from_secs(1)).jitter(Jitter::Equal);
/// assert_eq!(backoff.delay(1, Duration::ZERO, 0.5), Duration::from_millis(750));
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Jitter {
    /// None: the delay as computed. For tests, and where only one client exists.
    None,
    /// Anything between zero and the delay. The default: it spreads load best.
    #[default]
    Full,
    /// Between half the delay and the delay.
    Equal,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Constant,
    Linear {
        step: Duration,
    },
    Exponential {
        factor: f64,
    },
    /// `U(base, 3 * previous)`: has its jitter built in.
    Decorrelated,
}

/// A sequence of delays.
///
/// ```
/// use buttress::{Backoff, Jitter};
/// use std::time::Duration;
///
/// let backoff = Backoff::exponential(Duration::from_millis(100))
///     .max_delay(Duration::from_secs(1))
///     .jitter(Jitter::None);
/// let delays: Vec<_> = backoff.delays(7).take(5).map(|d| d.as_millis()).collect();
/// assert_eq!(delays, [100, 200, 400, 800, 1000]);
/// ```
///
/// No input overflows or panics, [`Duration::MAX`] included.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Backoff {
    shape: Shape,
    base: Duration,
    max_delay: Duration,
    jitter: Jitter,
}

/// The default cap, 20 s: as AWS' SDKs have it; a caller who waits for longer has mostly gone.
const MAX_DELAY: Duration = Duration::from_secs(20);

impl Backoff {
    fn new(shape: Shape, base: Duration) -> Self {
        Self { shape, base, max_delay: MAX_DELAY.max(base), jitter: Jitter::Full }
    }

    /// The same delay each time.
    pub fn constant(delay: Duration) -> Self {
        Self::new(Shape::Constant, delay)
    }

    /// `first`, then `step` more each time.
    pub fn linear(first: Duration, step: Duration) -> Self {
        Self::new(Shape::Linear { step }, first)
    }

    /// `first`, then twice as much each time; see [`factor`](Self::factor).
    pub fn exponential(first: Duration) -> Self {
        Self::new(Shape::Exponential { factor: 2.0 }, first)
    }

    /// Between `base` and three times the previous delay. Its jitter is its own: [`jitter`](Self::jitter) is
    /// ignored.
    pub fn decorrelated(base: Duration) -> Self {
        Self::new(Shape::Decorrelated, base)
    }

    /// The factor of an exponential backoff; no other shape has one. Default 2.
    pub fn factor(mut self, factor: f64) -> Self {
        if let Shape::Exponential { factor: own } = &mut self.shape {
            *own = factor;
        }
        self
    }

    /// The longest delay before jitter, so also after it. Default 20 s, or the first delay if that is longer.
    pub fn max_delay(mut self, max: Duration) -> Self {
        self.max_delay = max;
        self
    }

    /// What is left to chance. Default [`Jitter::Full`].
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The delay before attempt `attempt + 1`, counting from 1, where `previous` was the delay before
    /// (only [decorrelated](Self::decorrelated) looks at it; zero at first) and `unit` is a random number
    /// between 0 and 1.
    #[must_use]
    pub fn delay(&self, attempt: u32, previous: Duration, unit: f64) -> Duration {
        let unit = if unit.is_nan() { 0.0 } else { unit.clamp(0.0, 1.0) };
        let exponent = attempt.saturating_sub(1);
        let full = match self.shape {
            Shape::Constant => self.base,
            Shape::Linear { step } => step.saturating_mul(exponent).saturating_add(self.base),
            Shape::Exponential { factor } => {
                scale(self.base, factor.powi(i32::try_from(exponent).unwrap_or(i32::MAX)), self.max_delay)
            }
            Shape::Decorrelated => {
                let base = self.base.min(self.max_delay);
                let upper = previous.max(base).saturating_mul(3).min(self.max_delay).max(base);
                return base + scale(upper - base, unit, Duration::MAX);
            }
        };
        let capped = full.min(self.max_delay);
        match self.jitter {
            Jitter::None => capped,
            Jitter::Full => scale(capped, unit, capped),
            Jitter::Equal => {
                let half = capped / 2;
                (capped - half) + scale(half, unit, half)
            }
        }
    }

    /// An endless sequence of delays, reproducible from `seed`.
    #[must_use]
    pub fn delays(self, seed: u64) -> Delays {
        Delays { backoff: self, attempt: 0, previous: Duration::ZERO, rng: SmallRng::seed_from_u64(seed) }
    }

    pub(crate) fn check(&self, checks: &mut Checks, setting: &str) {
        let mut require = |holds, what: &str, value: &dyn std::fmt::Debug, allowed| {
            checks.require(holds, &format!("{setting}.{what}"), value, allowed);
        };
        if let Shape::Exponential { factor } = self.shape {
            require(factor.is_finite() && factor >= 1.0, "factor", &factor, "must be a finite number of at least 1");
        }
        require(!self.max_delay.is_zero(), "max_delay", &self.max_delay, "must be longer than zero");
        if self.shape == Shape::Decorrelated {
            require(!self.base.is_zero(), "base", &self.base, "must be longer than zero, or it would never grow");
        }
    }

    /// For delays that must not come near zero.
    pub(crate) fn at_least_half(self) -> Self {
        match self.jitter {
            Jitter::Full => self.jitter(Jitter::Equal),
            _ => self,
        }
    }

    /// The cap.
    pub(crate) fn longest(&self) -> Duration {
        self.max_delay
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.base.is_zero()
    }
}

/// `delay * by`, at most `max`; exact to a few parts in 10^16.
fn scale(delay: Duration, by: f64, max: Duration) -> Duration {
    if by == 1.0 || delay.is_zero() {
        return delay.min(max);
    }
    Duration::try_from_secs_f64(delay.as_secs_f64() * by).map_or(max, |scaled| scaled.min(max))
}

/// The delays of a [`Backoff`], one after the other. Endless.
///
/// ```
/// # use buttress::Backoff;
/// # use std::time::Duration;
/// let backoff = Backoff::decorrelated(Duration::from_millis(10));
/// let once: Vec<_> = backoff.delays(42).take(9).collect();
/// let again: Vec<_> = backoff.delays(42).take(9).collect();
/// assert_eq!(once, again);
/// ```
#[derive(Clone, Debug)]
pub struct Delays {
    backoff: Backoff,
    attempt: u32,
    previous: Duration,
    rng: SmallRng,
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.attempt = self.attempt.saturating_add(1);
        self.previous = self.backoff.delay(self.attempt, self.previous, self.rng.random());
        Some(self.previous)
    }
}
