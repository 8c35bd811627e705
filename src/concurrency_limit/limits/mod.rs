//! How many calls should be in flight? [`Limit`] says, from how long the last ones took.
//!
//! Pure: no clock, no lock, no runtime. What they say is kept within bounds and put into force by the concurrency limit.

mod aimd;
mod gradient2;
mod headroom;
mod vegas;

use std::{fmt, time::Duration};

pub use aimd::Aimd;
pub use gradient2::Gradient2;
pub use headroom::Headroom;
pub(super) use headroom::Recent;
use tokio::time::Instant;
pub use vegas::Vegas;

use crate::Problem;

/// A limit that finds itself: for [`ConcurrencyLimitBuilder::adaptive`](crate::ConcurrencyLimitBuilder::adaptive).
///
/// There are [`Headroom`], which is the crate's own and the one to begin with, and [`Aimd`], [`Vegas`] and [`Gradient2`] as
/// they are known from Netflix's `concurrency-limits`.
///
/// ```
/// use buttress::concurrency_limit::{Limit, Sample};
///
/// /// One more for each call that was answered, half as many for each that was not.
/// #[derive(Clone, Debug)]
/// struct Plain;
///
/// impl Limit for Plain {
///     fn update(&mut self, limit: f64, sample: &Sample) -> f64 {
///         if sample.dropped { limit / 2.0 } else { limit + 1.0 }
///     }
/// }
/// # let _ = buttress::ConcurrencyLimit::builder().adaptive(Plain).build().unwrap();
/// ```
pub trait Limit: fmt::Debug + Send + 'static {
    /// Where to begin.
    fn initial(&self) -> f64 {
        20.0
    }

    /// The new limit, as `limit` stands and one more call has ended. It may be a fraction: below one, one call is in flight for
    /// so large a part of the time.
    fn update(&mut self, limit: f64, sample: &Sample) -> f64;

    /// What is wrong with its settings: [`build`](crate::ConcurrencyLimitBuilder::build) refuses it then. Default: nothing.
    fn problem(&self) -> Option<Problem> {
        None
    }
}

/// What a call that ended tells a [`Limit`].
///
/// Calls that were refused on our side, that failed, or whose caller left before they had taken much longer than usual, are not among them:
/// they say nothing of how busy the service is. One that is given up later was [dropped](Self::dropped), after at least so long; and so
/// was one that the service had too much to do for ([`Verdict::Throttled`](crate::Verdict::Throttled)), however soon it said so.
///
/// ```
/// use buttress::concurrency_limit::{Limit, Sample, Vegas};
/// use std::time::Duration;
/// use tokio::time::Instant;
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
/// # runtime.block_on(async {
/// let mut vegas = Vegas::default();
/// let sample = Sample::new(Instant::now(), Duration::from_millis(10), 20);
/// assert_eq!(vegas.update(20.0, &sample), 20.0, "the first is the fastest");
/// assert_eq!(vegas.update(20.0, &sample), 26.0);
/// # });
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it ended.
    pub now: Instant,
    /// How long it took, or had taken by the time it was given up.
    pub rtt: Duration,
    /// How many were in flight until it ended, itself among them.
    pub in_flight: usize,
    /// For so many answers it stands, as those came close to it or to the one before: within some microseconds, as a rule.
    pub answers: usize,
    /// Whether calls wait for their turn.
    pub limited: bool,
    /// It timed out, its caller left, or the service said that it has too much to do.
    pub dropped: bool,
    /// How long calls may take as a rule: from when they come to their deadline, or until they are given up. `None` while nobody says.
    pub allowed: Option<Duration>,
}

impl Sample {
    /// An answer.
    #[must_use]
    pub fn new(now: Instant, rtt: Duration, in_flight: usize) -> Self {
        Self { now, rtt, in_flight, answers: 1, limited: false, dropped: false, allowed: None }
    }

    /// Whether so much of the limit is in use that raising it would change anything: half, as Netflix has it.
    fn uses(&self, limit: f64) -> bool {
        2.0 * self.in_flight as f64 >= limit
    }
}

/// A limit for each handle that is built of the same settings.
pub(super) trait Fresh: Limit {
    fn fresh(&self) -> Box<dyn Limit>;
    fn clone_box(&self) -> Box<dyn Fresh + Sync>;
}

impl<L: Limit + Clone + Sync> Fresh for L {
    fn fresh(&self) -> Box<dyn Limit> {
        Box::new(self.clone())
    }

    fn clone_box(&self) -> Box<dyn Fresh + Sync> {
        Box::new(self.clone())
    }
}

#[cfg(all(test, not(buttress_loom)))]
mod tests;
