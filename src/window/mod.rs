//! Sliding windows of outcomes: over a time span ([`TimeWindow`]) or over the last N ([`CountWindow`]).
//!
//! Both slide, both cost O(1) a record and constant memory, both are read as a whole only when a failure is
//! weighed. They belong to one *generation* at a time: a record of an earlier one changes nothing.

mod count;
mod tally;
mod time;

pub(crate) use count::{CountWindow, MAX_SIZE};
pub(crate) use tally::ahead;
pub(crate) use time::TimeWindow;

/// What a window holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) successes: u64,
    pub(crate) failures: u64,
    /// Slow ones of both kinds.
    pub(crate) slow: u64,
}

impl Totals {
    pub(crate) fn calls(self) -> u64 {
        self.successes + self.failures
    }

    /// Zero of nothing.
    pub(crate) fn failure_rate(self) -> f64 {
        rate(self.failures, self.calls())
    }

    /// Zero of nothing.
    pub(crate) fn slow_rate(self) -> f64 {
        rate(self.slow, self.calls())
    }
}

pub(crate) fn rate(of: u64, calls: u64) -> f64 {
    // Counts stay far below 2^52.
    if calls == 0 { 0.0 } else { of as f64 / calls as f64 }
}

/// A window of either kind.
#[derive(Debug)]
pub(crate) enum Window {
    Time(TimeWindow),
    Count(CountWindow),
}

impl Window {
    /// Counts a fast success without a clock. `false`: not counted, one that knows the time is due.
    #[inline(always)]
    pub(crate) fn succeed_untimed(&self, generation: u64) -> bool {
        match self {
            Window::Time(window) => window.tally(generation),
            Window::Count(window) => {
                window.record(generation, false, false);
                true
            }
        }
    }

    /// Counts an outcome at `now`, in nanoseconds since the window was made.
    pub(crate) fn record(&self, now: u64, generation: u64, failed: bool, slow: bool) {
        match self {
            Window::Time(window) => window.record(now, generation, failed, slow),
            Window::Count(window) => window.record(generation, failed, slow),
        }
    }

    /// What it holds at `now`.
    pub(crate) fn totals(&self, now: u64, generation: u64) -> Totals {
        match self {
            Window::Time(window) => window.totals(now, generation),
            Window::Count(window) => window.totals(generation),
        }
    }

    /// Empties it for a new generation, before anyone records in that.
    pub(crate) fn reset(&self, now: u64, generation: u64) {
        match self {
            Window::Time(window) => window.reset(now, generation),
            // Each word of it knows its generation, and none that is read is older than the last N records.
            Window::Count(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
