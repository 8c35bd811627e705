//! What can I set?

use std::{sync::Arc, time::Duration};

use super::{
    ConcurrencyLimit, Discipline, Headroom, Limit, Shared,
    limits::Fresh,
    line::Line,
    regulator::Regulator,
    shares::{Share, Shares},
};
use crate::{ConfigError, Partition, config::Checks, shutdown};

/// The most that may be in flight or wait: what a half of the shared word can count to, with room to spare.
pub(super) const MOST: usize = 1 << 30;

/// How far an adaptive limit goes if nobody says.
const ADAPTIVE: usize = 1_000;
const LEAST: f64 = 0.02;

/// How to find the limit.
#[derive(Debug)]
struct Strategy(Box<dyn Fresh + Sync>);

impl Clone for Strategy {
    fn clone(&self) -> Self {
        Self(self.0.clone_box())
    }
}

/// Builds a [`ConcurrencyLimit`], alone or as a part of a [`Policy`](crate::Policy).
///
/// | setting | default | because |
/// | --- | --- | --- |
/// | [`max_in_flight`](Self::max_in_flight) | none: it must be set | only you know what is behind it; [adaptive](Self::adaptive): 1,000 |
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
    min_in_flight: Option<f64>,
    adaptive: Option<Strategy>,
    holds_back: bool,
    discipline: Discipline,
    partitions: Vec<(Partition, f64)>,
    max_queue: Option<usize>,
    max_wait: Option<Duration>,
    shutdown: Option<shutdown::Handle>,
}

impl ConcurrencyLimitBuilder {
    /// Finds itself, holds back, and lets out those who can still be answered.
    pub(crate) fn standard() -> Self {
        Self::default()
            .adaptive(Headroom::default())
            .hold_back(true)
            .discipline(Discipline::Deadline)
            .max_queue(10_000)
            .max_wait(Duration::from_secs(10))
    }

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

    /// A limit that finds itself, by how long calls take and how they end; [`max_in_flight`](Self::max_in_flight) bounds it then, and is
    /// 1,000 if it is not set. Begin with [`Headroom`](super::Headroom).
    ///
    /// It learns of calls that pass through a layer, or through `call`; of a [`Permit`](super::Permit) nobody tells it how things
    /// went. What is told is how long an answer took, that a call was given up, by its caller or as its time was over, and that the
    /// service has too much to do: [`Verdict::Throttled`](crate::Verdict::Throttled), as a policy's
    /// [`classify`](crate::PolicyBuilder::classify) judges it. Over HTTP that is a 429, or a 503 with `Retry-After`. Other failures say how long
    /// it takes to fail, and are not told. Alone, outside of a policy, a limit knows no verdicts: an `Err` is a failure.
    pub fn adaptive(mut self, limit: impl Limit + Clone + Sync) -> Self {
        self.adaptive = Some(Strategy(limit.clone_box()));
        self
    }

    /// How far an [adaptive](Self::adaptive) limit may fall, at most [`max_in_flight`](Self::max_in_flight). Below one, one call is in flight for so large a part of the time. Default
    /// 0.02: fifty processes that find a service which can do but one thing at a time share it.
    pub fn min_in_flight(mut self, calls: f64) -> Self {
        self.min_in_flight = Some(calls);
        self
    }

    /// Whether an [adaptive](Self::adaptive) limit holds calls back, in its queue, while the service is silent or fails every call, and
    /// lets one out now and then to see. Those in the queue are let out once one is answered, as fast as the limit allows. Default: no.
    ///
    /// It does what a circuit breaker does, by degrees, and for those who can wait until their deadline.
    pub fn hold_back(mut self, holds_back: bool) -> Self {
        self.holds_back = holds_back;
        self
    }

    /// In which order those that wait are let out. Default: first in, first out.
    pub fn discipline(mut self, discipline: Discipline) -> Self {
        self.discipline = discipline;
        self
    }

    /// Guarantees a [`Partition`] this part of the limit, above 0 and at most 1; all of them together at most 1, and at most 200 of them.
    ///
    /// Whoever has less in flight than that part (rounded up, so each has one at least, and the parts of a small limit may come to more
    /// than it) goes, also if others have taken what was idle meanwhile: then more are in flight than the limit says, until they give it
    /// back. Whoever has more, and whoever is in none of the partitions, goes if there is
    /// room in all. Whoever is owed goes before all who wait for what is idle, those of a higher priority among them, and otherwise in the
    /// order of the queue. No place in the queue is guaranteed: what is shed there goes by [`Priority`](crate::Priority).
    ///
    /// Each call takes a lock twice then, for some tens of nanoseconds. (As in Netflix's *concurrency-limits*, `AbstractPartitionedLimiter`.)
    pub fn partition(mut self, partition: Partition, share: f64) -> Self {
        self.partitions.push((partition, share));
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
        let needless = self.adaptive.is_some();
        match self.max_in_flight {
            None if needless => {}
            Some(calls) => checks.count("max_in_flight", calls, MOST, "must be between 1 and 2^30"),
            None => checks.require(false, "max_in_flight", format_args!("not set"), "must be set: it has no default"),
        }
        if let Some(calls) = self.min_in_flight {
            checks.require(
                calls > 0.0 && calls <= MOST as f64,
                "min_in_flight",
                calls,
                "must be above 0 and at most 2^30",
            );
            checks.require(needless, "min_in_flight", calls, "must not be set unless the limit is adaptive");
            let most = self.max_in_flight.unwrap_or(ADAPTIVE);
            let is_range = !needless || calls.is_nan() || calls <= most as f64;
            checks.require(
                is_range,
                "min_in_flight",
                calls,
                "must be at most max_in_flight, which is 1,000 unless it is set",
            );
        }
        if let Some(mut problem) = self.adaptive.as_ref().and_then(|strategy| strategy.0.problem()) {
            problem.setting = format!("adaptive.{}", problem.setting);
            checks.report(problem);
        }
        checks.require(needless || !self.holds_back, "hold_back", true, "must not be set unless the limit is adaptive");
        match self.discipline {
            Discipline::Lifo { after } => checks.time("discipline.after", after),
            Discipline::Codel { target, interval } => {
                checks.time("discipline.target", target);
                let longer = interval > target;
                checks.require(longer, "discipline.interval", interval, "must be longer than the target");
            }
            Discipline::Fifo | Discipline::Deadline => {}
        }
        self.check_partitions(checks);
        if let Some(queue) = self.max_queue {
            checks.require(queue <= MOST, "max_queue", queue, "must be at most 2^30");
        }
        if let Some(wait) = self.max_wait {
            checks.time("max_wait", wait);
        }
    }

    fn check_partitions(&self, checks: &mut Checks) {
        let mut sum = 0.0;
        for (at, &(partition, share)) in self.partitions.iter().enumerate() {
            checks.require(share > 0.0 && share <= 1.0, "partition", share, "must be above 0 and at most 1");
            let is_new = self.partitions.iter().take(at).all(|&(other, _)| other != partition);
            checks.require(is_new, "partition", partition.name(), "must be set once");
            sum += share;
        }
        // So much as sums of what has no exact form are off.
        checks.require(sum.is_nan() || sum <= 1.0 + 1e-6, "partition", sum, "must be at most 1 in all");
        let count = self.partitions.len();
        checks.require(count <= Share::MOST, "partition", count, "must be set at most 200 times");
    }

    /// After the checks.
    pub(crate) fn assemble(self, name: &'static str) -> ConcurrencyLimit {
        let adaptive = self.adaptive.is_some();
        let max_in_flight = self.max_in_flight.unwrap_or(if adaptive { ADAPTIVE } else { 1 });
        let max_queue = self.max_queue.unwrap_or(max_in_flight);
        let name = self.name.unwrap_or(name);
        let regulator = self.adaptive.map(|strategy| {
            let max = max_in_flight as f64;
            Regulator::new(strategy.0.fresh(), self.min_in_flight.unwrap_or(LEAST), max, self.holds_back)
        });
        let line = Line::new(self.discipline, regulator, Shares::new(&self.partitions));
        let shared = Arc::new(Shared::new(name, max_in_flight, max_queue, self.max_wait, line, self.shutdown));
        shared.enlist();
        ConcurrencyLimit { shared }
    }
}
