//! Netflix's Gradient2: is it slower now than in the long run?

use super::{Limit, Sample};
use crate::Problem;

/// Multiplies the limit by how much slower the last call was than the long-term average, with a tolerance, and adds four.
///
/// It needs no fastest call. But the average follows: what gets slower little by little becomes what is usual. (Unlike Netflix's,
/// for which a call that was dropped is as good as one that was answered, it takes that for twice as slow, and for no part of what is
/// usual: a refusal is quicker than any answer.)
///
/// ```
/// use buttress::{ConcurrencyLimit, concurrency_limit::Gradient2};
/// let limit = ConcurrencyLimit::builder().adaptive(Gradient2::default().tolerance(2.0)).build()?;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Gradient2 {
    tolerance: f64,
    long: Average,
}

const SMOOTHING: f64 = 0.2;
const QUEUE: f64 = 4.0;
const STEEPEST: f64 = 0.5;

impl Default for Gradient2 {
    fn default() -> Self {
        Self { tolerance: 1.5, long: Average::new(600, 10) }
    }
}

impl Gradient2 {
    /// How many times slower than in the long run it may be before the limit falls. Default 1.5.
    pub fn tolerance(mut self, times: f64) -> Self {
        self.tolerance = times;
        self
    }
}

impl Limit for Gradient2 {
    fn problem(&self) -> Option<Problem> {
        let holds = self.tolerance >= 1.0 && self.tolerance.is_finite();
        (!holds).then(|| Problem::new("tolerance", self.tolerance, "must be at least 1, and finite"))
    }

    fn update(&mut self, limit: f64, sample: &Sample) -> f64 {
        if sample.dropped {
            return limit * (1.0 - SMOOTHING) + SMOOTHING * (limit * STEEPEST + QUEUE);
        }
        let rtt = sample.rtt.as_secs_f64().max(1e-9);
        let long = self.long.add(rtt);
        // After an overload the average comes down faster than it went up.
        if long / rtt > 2.0 {
            self.long.value *= 0.95;
        }
        if !sample.uses(limit) {
            return limit;
        }
        let gradient = (self.tolerance * long / rtt).clamp(STEEPEST, 1.0);
        limit * (1.0 - SMOOTHING) + SMOOTHING * (limit * gradient + QUEUE)
    }
}

/// An exponential average that begins as a plain one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Average {
    pub(super) value: f64,
    count: u32,
    warm_up: u32,
    factor: f64,
}

impl Average {
    pub(super) fn new(window: u32, warm_up: u32) -> Self {
        Self { value: 0.0, count: 0, warm_up, factor: 2.0 / (f64::from(window) + 1.0) }
    }

    pub(super) fn add(&mut self, sample: f64) -> f64 {
        let factor = if self.count < self.warm_up {
            self.count += 1;
            1.0 / f64::from(self.count)
        } else {
            self.factor
        };
        self.value += factor * (sample - self.value);
        self.value
    }
}
