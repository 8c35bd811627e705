//! Additive increase, multiplicative decrease: as TCP did it first.

use std::time::Duration;

use super::{Limit, Sample};
use crate::Problem;

/// One more for an answer, a tenth less for a drop or an answer that took longer than [`slow`](Self::slow).
///
/// It learns of overload only by what overload has broken, so use it where the service says no in time: behind a bounded queue that
/// refuses. For anything that just gets slower there is [`Headroom`](super::Headroom).
///
/// ```
/// use buttress::{ConcurrencyLimit, concurrency_limit::Aimd};
/// use std::time::Duration;
/// let limit = ConcurrencyLimit::builder().adaptive(Aimd::default().slow(Duration::from_millis(800))).build()?;
/// assert_eq!(limit.max_in_flight(), 20);
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Aimd {
    slow: Duration,
}

impl Default for Aimd {
    fn default() -> Self {
        Self { slow: Duration::from_secs(5) }
    }
}

impl Aimd {
    /// What takes longer than this counts as dropped. Default 5 s, as in Netflix's.
    pub fn slow(mut self, time: Duration) -> Self {
        self.slow = time;
        self
    }
}

impl Limit for Aimd {
    fn problem(&self) -> Option<Problem> {
        self.slow.is_zero().then(|| Problem::new("slow", self.slow, "must be longer than zero"))
    }

    fn update(&mut self, limit: f64, sample: &Sample) -> f64 {
        if sample.dropped || sample.rtt > self.slow {
            let less = limit * 0.9;
            if less > 1.0 { less.floor() } else { less }
        } else if sample.uses(limit) {
            limit + sample.answers as f64
        } else {
            limit
        }
    }
}
