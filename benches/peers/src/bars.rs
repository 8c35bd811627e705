//! The bars: what our subjects may cost. Each holds for the first subject of its row, the service itself included, and is
//! held against the 10th percentile, since the median drifts with what else the machine does; ratios are medians of the rounds'
//! ratios, which do not.

use std::fmt::Write;

use crate::{
    measured::{All, Measured},
    subject::{Row, Way},
};

/// What is held against a bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Nanoseconds of a call that is ready at once.
    Ready,
    /// Nanoseconds more of a call that is pending once.
    PendingAdds,
    /// Millions of calls a second, in 64 tasks on two workers.
    Millions,
    /// How many times the calls of one worker two workers make.
    Scaling,
    /// The same as a share of what the service alone has.
    Share,
    /// Per call.
    Allocations,
}

const BARS: [(Row, What, f64); 15] = [
    (Row::Timeout, What::Ready, 8.0),
    (Row::Timeout, What::PendingAdds, 90.0),
    (Row::Limit, What::Ready, 15.0),
    (Row::Full, What::Ready, 14.0),
    (Row::Retry, What::Ready, 10.0),
    (Row::Breaker, What::Ready, 12.0),
    (Row::Breaker, What::Share, 0.8),
    (Row::Open, What::Ready, 30.0),
    (Row::Open, What::Scaling, 1.0),
    (Row::Open, What::Allocations, 0.0),
    (Row::Policy, What::Ready, 32.0),
    (Row::Policy, What::Allocations, 0.0),
    (Row::Policy, What::PendingAdds, 130.0),
    (Row::Policy, What::Millions, 15.0),
    (Row::InFlight, What::Ready, 9.0),
];

impl What {
    fn title(self) -> &'static str {
        match self {
            What::Ready => "ready at once, ns",
            What::PendingAdds => "pending once adds, ns",
            What::Millions => "64 tasks on 2 workers, M calls/s",
            What::Scaling => "2 workers / 1 worker",
            What::Share => "share of ideal scaling",
            What::Allocations => "allocations",
        }
    }

    fn found(self, all: &All<'_>, it: &Measured<'_>) -> Option<f64> {
        match self {
            What::Ready => it.times(Way::Ready).map(|it| it.low()),
            What::PendingAdds => it.pending_adds().map(|it| it.low()),
            What::Millions => it.times(Way::TwoWorkers).map(|it| 1_000.0 / it.low()),
            What::Scaling => it.scaling(),
            What::Share => all.share(it),
            What::Allocations => it.allocations().map(|(count, _)| count),
        }
    }

    /// Or else it is at most the bar.
    fn is_at_least(self) -> bool {
        matches!(self, What::Millions | What::Scaling | What::Share)
    }
}

/// A bar, and what was found.
struct Held {
    row: Row,
    what: What,
    bar: f64,
    found: f64,
}

impl Held {
    fn is_met(&self) -> bool {
        if self.what.is_at_least() { self.found >= self.bar } else { self.found <= self.bar }
    }

    /// How it stands to the bar: `≤ 8`, or `> 8` in bold if that is missed.
    fn sign(&self) -> String {
        match (self.what.is_at_least(), self.is_met()) {
            (true, true) => format!("≥ {}", self.bar),
            (true, false) => format!("**< {}**", self.bar),
            (false, true) => format!("≤ {}", self.bar),
            (false, false) => format!("**> {}**", self.bar),
        }
    }
}

/// The bars of what was measured.
fn held(all: &All<'_>) -> impl Iterator<Item = Held> {
    BARS.into_iter().filter_map(|(row, what, bar)| {
        let found = what.found(all, all.first(row).filter(|it| it.subject.is_ours())?)?;
        Some(Held { row, what, bar, found })
    })
}

/// What stands behind the figure of `it` in the table; nothing if there is no bar for it.
pub fn sign(all: &All<'_>, it: &Measured<'_>, what: What) -> String {
    let is_first = all.first(it.subject.row).is_some_and(|first| std::ptr::eq(first, it));
    let held = held(all).find(|held| is_first && held.row == it.subject.row && held.what == what);
    held.map_or(String::new(), |held| format!(" {}", held.sign()))
}

/// Whether there is a bar for it.
pub fn has(row: Row, what: What) -> bool {
    BARS.iter().any(|(bars, held, _)| (*bars, *held) == (row, what))
}

/// All of them, as a table.
pub fn table(all: &All<'_>) -> String {
    let mut out = String::from("| bar | | measured | | met |\n| --- | --- | ---: | --- | --- |\n");
    for it in held(all) {
        let met = if it.is_met() { "yes" } else { "**no**" };
        let (row, what, found, sign) = (it.row.title(), it.what.title(), it.found, it.sign());
        let _ = writeln!(out, "| {row} | {what} | {found:.2} | {sign} | {met} |");
    }
    out
}
