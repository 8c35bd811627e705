//! [`Budget`]: so many retries to so many calls of the last ten seconds.

use std::{
    fmt,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{ConfigError, clock::since, config::Checks, sync::Mutex, window::TimeWindow};

/// Fewer calls than this, per slot, may expire late: with 20 % that is some twelve retries.
const UNTIMED: u64 = 64;

/// Tokens that are not spent expire after this.
const SPAN: Duration = Duration::from_secs(10);

/// A bound on the retries of everyone who shares it: of the last nine to ten seconds at most `ratio` of the calls, plus
/// `min_per_second` for each of the seconds, so that a service that is rarely called can retry too.
///
/// It is the bound of Finagle's `RetryBudget`, kept as a sliding window of calls and retries instead of a purse of
/// tokens: a call deposits, a retry withdraws, both are forgotten after ten seconds. A deposit touches one word of
/// the thread's own and reads no clock; a withdrawal is made under a lock, so that it is never overdrawn. The ten seconds
/// slide in tenths, and up to 63 calls of a thread may be counted when it next reads the clock.
///
/// Where layers share one, each pays in for the calls that it gets: a call through two of them pays twice, so halve the ratio.
///
/// ```
/// use buttress::{retry::Budget, Retry};
/// use std::time::Duration;
///
/// // One purse for all that this process retries, however deep.
/// let budget = Budget::builder().ratio(0.1).min_per_second(2).build()?;
/// let inner = Retry::exponential(Duration::from_millis(20)).budget(budget.clone()).build()?;
/// let outer = Retry::exponential(Duration::from_millis(200)).budget(budget).build()?;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

struct Shared {
    /// Successes are deposits, failures are withdrawals.
    window: TimeWindow,
    ratio: f64,
    reserve: f64,
    base: Instant,
    /// Held to weigh and withdraw in one.
    withdrawing: Mutex<()>,
}

/// A window that is never reset has one generation.
const GENERATION: u64 = 0;

impl Budget {
    /// Settings, to begin with the defaults: 20 % and 1 per second.
    pub fn builder() -> BudgetBuilder {
        BudgetBuilder::default()
    }

    /// Whether it is the same, and not one that is alike.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Counts a call. Asks for the time only now and then.
    #[inline]
    pub(crate) fn deposit(&self, now: impl FnOnce() -> Instant) {
        if !self.shared.window.tally(GENERATION) {
            self.deposit_at(now());
        }
    }

    #[cold]
    fn deposit_at(&self, now: Instant) {
        self.shared.window.record(since(self.shared.base, now), GENERATION, false, false);
    }

    /// Counts a retry, if there may be one more, and `keep` after that.
    pub(crate) fn withdraw(&self, now: Instant, keep: u64) -> bool {
        let Shared { window, base, withdrawing, .. } = &*self.shared;
        let _lock = withdrawing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = since(*base, now);
        let granted = self.left(now) > keep;
        if granted {
            window.record(now, GENERATION, true, false);
        }
        granted
    }

    /// How many retries could be made at this moment.
    #[must_use]
    pub fn balance(&self) -> u64 {
        self.left(since(self.shared.base, crate::clock::now()))
    }

    fn left(&self, now: u64) -> u64 {
        let Shared { window, ratio, reserve, .. } = &*self.shared;
        let totals = window.totals(now, GENERATION);
        // A hair's breadth for ratios that a float cannot hold: 0.1 of 30 is 3 retries, not 2.
        let allowed = totals.successes as f64 * ratio + reserve + 1e-6;
        (allowed as u64).saturating_sub(totals.failures)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("balance", &self.balance()).finish_non_exhaustive()
    }
}

/// Builds a [`Budget`].
///
/// ```
/// # use buttress::retry::Budget;
/// let error = Budget::builder().ratio(f64::NAN).build().unwrap_err();
/// assert_eq!(error.to_string(), "invalid configuration: budget.ratio = NaN: must be between 0 and 10");
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct BudgetBuilder {
    ratio: f64,
    min_per_second: u32,
}

impl Default for BudgetBuilder {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 1 }
    }
}

impl BudgetBuilder {
    /// Retries to a call. Default 0.2: an outage then costs at most a fifth more load.
    pub fn ratio(mut self, ratio: f64) -> Self {
        self.ratio = ratio;
        self
    }

    /// Retries a second that need no calls to pay for them. Default 1.
    pub fn min_per_second(mut self, retries: u32) -> Self {
        self.min_per_second = retries;
        self
    }

    /// The budget.
    ///
    /// # Errors
    /// Every setting that is out of its range.
    pub fn build(self) -> Result<Budget, ConfigError> {
        let mut checks = Checks::new("budget");
        checks.require((0.0..=10.0).contains(&self.ratio), "ratio", self.ratio, "must be between 0 and 10");
        checks.require(
            self.min_per_second <= 100_000,
            "min_per_second",
            self.min_per_second,
            "must be at most 100000, or it bounds nothing",
        );
        checks.finish()?;
        Ok(self.assemble())
    }

    pub(crate) fn assemble(self) -> Budget {
        let shared = Shared {
            window: TimeWindow::new(SPAN, UNTIMED),
            ratio: self.ratio,
            reserve: f64::from(self.min_per_second) * SPAN.as_secs_f64(),
            base: crate::clock::now(),
            withdrawing: Mutex::new(()),
        };
        Budget { shared: Arc::new(shared) }
    }
}

#[cfg(all(test, buttress_loom))]
mod models;
