//! What can I set?

use std::{sync::Arc, time::Duration};

use super::{ConcurrencyLimit, Shared};
use crate::{ConfigError, config::Checks, shutdown};

/// The most that may be in flight or wait: what a half of the shared word can count to, with room to spare.
pub(super) const MOST: usize = 1 << 30;

/// Builds a [`ConcurrencyLimit`], alone or as a part of a [`Policy`](crate::Policy).
///
/// | setting | default | because |
/// | --- | --- | --- |
/// | [`max_in_flight`](Self::max_in_flight) | none: it must be set | only you know what is behind it |
/// | [`max_queue`](Self::max_queue) | as many as may be in flight | whoever waits then waits about one service time |
/// | [`max_wait`](Self::max_wait) | until the deadline | the deadline says what the answer is worth waiting for |
///
/// ```
/// use buttress::ConcurrencyLimit;
/// use std::time::Duration;
///
/// let limit = ConcurrencyLimit::builder()
///     .name("database")
///     .max_in_flight(16)
///     .max_queue(64)
///     .max_wait(Duration::from_millis(250))
///     .build()?;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ConcurrencyLimitBuilder {
    name: Option<&'static str>,
    max_in_flight: Option<usize>,
    max_queue: Option<usize>,
    max_wait: Option<Duration>,
    shutdown: Option<shutdown::Handle>,
}

impl ConcurrencyLimitBuilder {
    /// The name that rejections and logs carry. Default: the policy's, or `concurrency_limit`.
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// How many calls may be in flight.
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = Some(calls);
        self
    }

    /// How many calls may wait behind them. Zero: none, refuse at once.
    pub fn max_queue(mut self, calls: usize) -> Self {
        self.max_queue = Some(calls);
        self
    }

    /// How long a call may wait. The deadline bounds it too.
    pub fn max_wait(mut self, time: Duration) -> Self {
        self.max_wait = Some(time);
        self
    }

    /// Once this shutdown drains, nothing waits any more: the queue is answered with
    /// [`ShuttingDown`](crate::Reason::ShuttingDown), and a call that finds no permit too. Those that have one go on.
    pub fn shutdown(mut self, handle: &shutdown::Handle) -> Self {
        self.shutdown = Some(handle.clone());
        self
    }

    /// The limit.
    ///
    /// # Errors
    /// Every setting that is out of its range.
    pub fn build(self) -> Result<ConcurrencyLimit, ConfigError> {
        let mut checks = Checks::new("concurrency_limit");
        self.check(&mut checks);
        checks.finish()?;
        Ok(self.assemble("concurrency_limit"))
    }

    pub(crate) fn check(&self, checks: &mut Checks) {
        checks.enter("concurrency_limit");
        checks.name(self.name);
        match self.max_in_flight {
            Some(calls) => checks.count("max_in_flight", calls, MOST, "must be between 1 and 2^30"),
            None => checks.require(false, "max_in_flight", format_args!("not set"), "must be set: it has no default"),
        }
        if let Some(queue) = self.max_queue {
            checks.require(queue <= MOST, "max_queue", queue, "must be at most 2^30");
        }
        if let Some(wait) = self.max_wait {
            checks.time("max_wait", wait);
        }
    }

    /// After the checks.
    pub(crate) fn assemble(self, name: &'static str) -> ConcurrencyLimit {
        let max_in_flight = self.max_in_flight.unwrap_or(1);
        let max_queue = self.max_queue.unwrap_or(max_in_flight);
        let name = self.name.unwrap_or(name);
        let shared = Arc::new(Shared::new(name, max_in_flight, max_queue, self.max_wait, self.shutdown));
        shared.enlist();
        ConcurrencyLimit { shared }
    }
}
