//! TCP Vegas, as Netflix has it for services: how many of ours wait in the service's queue?

use super::{Limit, Sample};
use crate::Problem;

/// Estimates from the fastest call how many of those in flight wait, and keeps that between three and six times the limit's
/// logarithm.
///
/// The fastest call is forgotten now and then, without a pause for it, so a limit that was too high for long takes its own queue
/// for the service's pace. And calls that do not all take the same time look like a queue to it: with a fifth more or less from one
/// call to the next it leaves most of a service unused. (Unlike Netflix's, it takes no call that was dropped for the fastest: a
/// refusal is quicker than any answer.)
///
/// ```
/// use buttress::{ConcurrencyLimit, concurrency_limit::Vegas};
/// let limit = ConcurrencyLimit::builder().adaptive(Vegas::default().smoothing(0.5)).build()?;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Vegas {
    smoothing: f64,
    decrease: Option<fn(f64) -> f64>,
    /// The fastest, in seconds; zero before the first.
    fastest: f64,
    /// Since the fastest was forgotten.
    samples: u32,
    /// Where in its range the next end of the fastest lies, from a half to one.
    jitter: f64,
}

/// After so many samples for each call of the limit the fastest is forgotten.
const REMEMBERED: f64 = 30.0;

impl Default for Vegas {
    fn default() -> Self {
        Self { smoothing: 1.0, decrease: None, fastest: 0.0, samples: 0, jitter: 0.75 }
    }
}

impl Vegas {
    /// How much of each change is made. Default 1: all of it.
    pub fn smoothing(mut self, part: f64) -> Self {
        self.smoothing = part;
        self
    }

    /// What to make of the limit when too many wait. Default: the limit less its logarithm.
    pub fn decrease(mut self, decrease: fn(f64) -> f64) -> Self {
        self.decrease = Some(decrease);
        self
    }

    pub(super) fn forgets(&mut self, limit: f64) -> bool {
        self.samples += 1;
        if f64::from(self.samples) < self.jitter * REMEMBERED * limit.max(1.0) {
            return false;
        }
        self.samples = 0;
        // Somewhere else in the range each time: by the golden ratio, which keeps out of its own way.
        self.jitter = 0.5 + (self.jitter - 0.5 + 0.309_017).rem_euclid(0.5);
        true
    }
}

impl Limit for Vegas {
    fn problem(&self) -> Option<Problem> {
        let holds = self.smoothing > 0.0 && self.smoothing <= 1.0;
        (!holds).then(|| Problem::new("smoothing", self.smoothing, "must be above 0 and at most 1"))
    }

    fn update(&mut self, limit: f64, sample: &Sample) -> f64 {
        let rtt = sample.rtt.as_secs_f64();
        if !sample.dropped {
            let forgets = self.forgets(limit);
            if forgets || self.fastest == 0.0 || rtt < self.fastest {
                self.fastest = rtt;
                return limit;
            }
        }
        let step = limit.log10().floor().max(1.0);
        let less = || self.decrease.map_or(limit - step, |decrease| decrease(limit));
        let waiting = (limit * (1.0 - self.fastest / rtt)).ceil();
        let next = if sample.dropped {
            less()
        } else if !sample.uses(limit) {
            return limit;
        } else if waiting <= step {
            limit + 6.0 * step
        } else if waiting < 3.0 * step {
            limit + step
        } else if waiting > 6.0 * step {
            less()
        } else {
            return limit;
        };
        limit + self.smoothing * (next - limit)
    }
}
