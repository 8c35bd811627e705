//! What can I set?

use std::time::Duration;

use super::{
    Hedge,
    handle::{Delay, Purse, Settings},
};
use crate::{
    ConfigError,
    config::Checks,
    retry::{Budget, BudgetBuilder},
    shutdown,
};

/// Builds a [`Hedge`], alone or as a part of a [`Policy`](crate::Policy).
///
/// | setting | default | because |
/// | --- | --- | --- |
/// | [`times`](Self::times) | 1 | the percentile itself is the usual delay |
/// | [`min_delay`](Self::min_delay) | 1 ms | what is faster than the timer is not to be hedged |
/// | [`budget`](Self::budget) | in a policy that of its retries; else 10 % of the calls, and 1 a second | when all calls are slow, hedges are load and nothing else |
///
/// ```
/// use buttress::Hedge;
/// let hedge = Hedge::percentile(0.95).times(1.5).build()?;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct HedgeBuilder {
    name: Option<&'static str>,
    delay: Delay,
    min_delay: Duration,
    budget: Option<Budget>,
    shutdown: Option<shutdown::Handle>,
}

impl HedgeBuilder {
    pub(super) fn new(delay: Delay) -> Self {
        Self { name: None, delay, min_delay: Duration::from_millis(1), budget: None, shutdown: None }
    }

    /// Only where most calls are fast, of which three quarters decide; and late, so that the waves of a busy service, in which all
    /// calls take three times as long, are no reason to send it more.
    pub(crate) fn standard() -> Self {
        Hedge::percentile(0.75).times(5.0).min_delay(Duration::from_millis(5))
    }

    /// The name that rejections carry. Default: the policy's, or `hedge`.
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// The delay is so many times the percentile. Has no effect on a fixed one.
    pub fn times(mut self, factor: f64) -> Self {
        if let Delay::Percentile { times, .. } = &mut self.delay {
            *times = factor as f32;
        }
        self
    }

    /// The shortest delay, whatever the percentile is. Has no effect on a fixed one.
    pub fn min_delay(mut self, min: Duration) -> Self {
        self.min_delay = min;
        self
    }

    /// Draws on this budget, which others may share: retries, and what stands above or below this. Each call pays in, as with a retry; and
    /// the last five are left to retries, which have heard a no where a hedge has only heard nothing yet.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Once this shutdown drains, nothing is sent a second time.
    pub fn shutdown(mut self, handle: &shutdown::Handle) -> Self {
        self.shutdown = Some(handle.clone());
        self
    }

    /// The hedge.
    ///
    /// # Errors
    /// Every setting that is out of its range.
    pub fn build(self) -> Result<Hedge, ConfigError> {
        let mut checks = Checks::new("hedge");
        self.check(&mut checks);
        checks.finish()?;
        Ok(self.assemble("hedge", None))
    }

    pub(crate) fn check(&self, checks: &mut Checks) {
        checks.enter("hedge");
        checks.name(self.name);
        if let Delay::Percentile { share, times } = self.delay {
            let percentile = (0.5..=0.999).contains(&share);
            checks.require(percentile, "percentile", share, "must be between 0.5 and 0.999");
            checks.require((1.0..=100.0).contains(&times), "times", times, "must be between 1 and 100");
        }
    }

    /// After the checks. `retries` is the budget of the retries beside it, if there is one.
    pub(crate) fn assemble(self, name: &'static str, retries: Option<&Budget>) -> Hedge {
        let settings = Settings {
            name: self.name.unwrap_or(name),
            delay: self.delay,
            min_delay: self.min_delay,
            shutdown: self.shutdown,
        };
        match self.budget.or_else(|| retries.cloned()) {
            None => Hedge::new(settings, BudgetBuilder::default().ratio(0.1).assemble(), Purse::Own),
            Some(budget) => Hedge::new(settings, budget, Purse::Shared),
        }
    }
}
