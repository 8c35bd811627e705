//! What can I set?

use std::{sync::Arc, time::Duration};

use super::{Budget, BudgetBuilder, Retry};
use crate::{Backoff, ConfigError, Jitter, Reason, config::Checks, random::Random, shutdown};

/// Builds a [`Retry`], alone or as a part of a [`Policy`](crate::Policy).
///
/// | setting | default | because |
/// | --- | --- | --- |
/// | [`max_attempts`](Self::max_attempts) | 3 | what two more do not mend, a third rarely does |
/// | [`jitter`](Self::jitter) | full | it spreads load best |
/// | [`max_delay`](Self::max_delay) | 20 s | a caller who waits for longer has mostly gone |
/// | [`budget`](Self::budget) | 20 % of the calls, and 1 a second | an outage costs at most a fifth more load |
/// | [`max_retry_after`](Self::max_retry_after) | 60 s | whoever is told to come back later than that is better told no |
///
/// ```
/// use buttress::Retry;
/// use std::time::Duration;
/// let retry = Retry::exponential(Duration::from_millis(50)).max_attempts(4).max_delay(Duration::from_secs(2)).build()?;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RetryBuilder {
    name: Option<&'static str>,
    max_attempts: u32,
    backoff: Backoff,
    max_retry_after: Duration,
    rejected: u8,
    throttled: Option<bool>,
    budget: Purse,
    seed: Option<u64>,
    shutdown: Option<shutdown::Handle>,
}

#[derive(Clone, Debug)]
enum Purse {
    Own(BudgetBuilder),
    Shared(Budget),
    None,
}

/// A set of reasons in a byte.
pub(super) fn bit(reason: Reason) -> u8 {
    match reason {
        Reason::CircuitOpen => 1,
        Reason::Overloaded => 2,
        Reason::Timeout => 4,
        Reason::DeadlineExceeded | Reason::ShuttingDown => 0,
    }
}

impl RetryBuilder {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self {
            name: None,
            max_attempts: 3,
            backoff,
            max_retry_after: Duration::from_secs(60),
            rejected: bit(Reason::Timeout),
            throttled: None,
            budget: Purse::Own(Budget::builder()),
            seed: None,
            shutdown: None,
        }
    }

    /// Soon, and as often as there are calls: for where a limit keeps it from doing harm.
    pub(crate) fn standard() -> Self {
        Self {
            max_attempts: 8,
            budget: Purse::Own(Budget::builder().ratio(1.0).min_per_second(2)),
            ..Self::new(Backoff::exponential(Duration::from_millis(10)).max_delay(Duration::from_millis(200)))
        }
    }

    /// The name that logs and rejections carry. Default: the policy's, or `retry`.
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// How often to ask at most, the first time included.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// The longest backoff.
    pub fn max_delay(mut self, max: Duration) -> Self {
        self.backoff = self.backoff.max_delay(max);
        self
    }

    /// What of a backoff is left to chance.
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.backoff = self.backoff.jitter(jitter);
        self
    }

    /// A server that says to come back later than this is not asked again.
    pub fn max_retry_after(mut self, max: Duration) -> Self {
        self.max_retry_after = max;
        self
    }

    /// Draws on this budget, which others may share.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Purse::Shared(budget);
        self
    }

    /// No bound on the retries of all calls together. For tests, and where another bound exists.
    pub fn without_budget(mut self) -> Self {
        self.budget = Purse::None;
        self
    }

    /// Also retry what a layer of ours refused for this reason. A call that ran out of time,
    /// or that was refused because the process shuts down, is never retried.
    pub fn retry_rejected(mut self, reason: Reason) -> Self {
        self.rejected |= bit(reason);
        self
    }

    /// Whether to try again what was [throttled](crate::Verdict::Throttled). Default: as the classifier
    /// [has it](crate::Classify::RETRIES_THROTTLED); and if the server says when to come back, yes.
    pub fn retry_throttled(mut self, retry: bool) -> Self {
        self.throttled = Some(retry);
        self
    }

    /// Makes the jitter reproducible.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Once this shutdown drains, nothing is tried again: a call returns what it has, and one that is in a backoff is answered
    /// with [`ShuttingDown`](Reason::ShuttingDown) at once.
    pub fn shutdown(mut self, handle: &shutdown::Handle) -> Self {
        self.shutdown = Some(handle.clone());
        self
    }

    /// The retry.
    ///
    /// # Errors
    /// Every setting that is out of its range.
    pub fn build(self) -> Result<Retry, ConfigError> {
        let mut checks = Checks::new("retry");
        self.check(&mut checks);
        checks.finish()?;
        Ok(self.assemble("retry"))
    }

    pub(crate) fn check(&self, checks: &mut Checks) {
        checks.enter("retry");
        checks.name(self.name);
        checks.count("max_attempts", self.max_attempts as usize, 1000, "must be between 1 (no retry) and 1000");
        self.backoff.check(checks, "backoff");
    }

    /// This seed, if it has none of its own.
    pub(crate) fn seed_by_default(mut self, seed: Option<u64>) -> Self {
        self.seed = self.seed.or(seed);
        self
    }

    /// After the checks.
    pub(crate) fn assemble(self, name: &'static str) -> Retry {
        Retry {
            name: self.name.unwrap_or(name),
            max_attempts: self.max_attempts,
            backoff: self.backoff,
            max_retry_after: self.max_retry_after,
            rejected: self.rejected,
            throttled: self.throttled,
            budget: match self.budget {
                Purse::Own(settings) => Some(settings.assemble()),
                Purse::Shared(budget) => Some(budget),
                Purse::None => None,
            },
            random: Arc::new(Random::seeded(self.seed)),
            shutdown: self.shutdown,
        }
    }
}
