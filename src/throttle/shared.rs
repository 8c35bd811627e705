//! When is a call admitted? What all clones share: the gauge, and where its time and its chance come from.

use std::fmt;

use tokio::time::Instant;

use super::{
    Snapshot,
    gauge::{Gauge, Refused},
};
use crate::{Rejection, Rule, Verdict, clock::since, random::Random, spread::Counter};

/// The state of a throttle.
pub struct Shared {
    name: &'static str,
    gauge: Gauge,
    /// Times are counted from here.
    base: Instant,
    /// Calls refused.
    rejected: Counter,
    random: Random,
}

impl Shared {
    pub(super) fn new(name: &'static str, gauge: Gauge, random: Random, base: Instant) -> Self {
        Self { name, gauge, base, rejected: Counter::new(), random }
    }

    #[inline]
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Whether some calls may be refused, so that each has to [ask](Self::ask).
    #[inline(always)]
    pub(crate) fn is_wary(&self) -> bool {
        self.gauge.is_wary()
    }

    /// Whether nothing is refused. Looks at the clock only if something was.
    pub(crate) fn is_calm(&self, now: impl FnOnce() -> Instant) -> bool {
        self.gauge.is_calm(|| since(self.base, now()))
    }

    /// Leaves it to chance whether an attempt may go, once for each.
    pub(crate) fn ask(&self, now: impl FnOnce() -> Instant) -> Result<(), Rejection> {
        if !self.gauge.is_wary() {
            return Ok(());
        }
        let asked = self.gauge.ask(since(self.base, now()), || self.random.unit());
        asked.map_err(|Refused { accept_rate }| {
            self.rejected.count();
            Rejection::new(self.name, Rule::AcceptRate, accept_rate as f32, self.gauge.threshold() as f32)
        })
    }

    /// An attempt was accepted. Asks for the time only now and then.
    #[inline(never)]
    pub(crate) fn accept(&self, now: impl FnOnce() -> Instant) {
        if !self.gauge.accept_untimed() {
            self.gauge.accept(since(self.base, now()));
        }
    }

    /// An attempt came to an end that says this.
    pub(crate) fn settle(&self, verdict: Verdict, now: impl FnOnce() -> Instant) {
        match verdict {
            Verdict::Success | Verdict::Permanent => self.accept(now),
            Verdict::Transient { .. } | Verdict::Throttled { .. } | Verdict::Unsent | Verdict::Failed => {
                self.gauge.fail(since(self.base, now()));
            }
            Verdict::Ignored => {}
        }
    }

    pub(super) fn snapshot(&self, now: Instant) -> Snapshot {
        let (totals, chance) = self.gauge.weigh(since(self.base, now));
        // Where successes have slid out of the window, and failures stay, nobody is asked before the next failure.
        let rejection_probability = if self.gauge.is_wary() { chance } else { 0.0 };
        let rejected = self.rejected.total();
        Snapshot { requests: totals.calls(), accepts: totals.successes, rejection_probability, rejected }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle").field("name", &self.name).field("refuses", &self.is_wary()).finish()
    }
}
