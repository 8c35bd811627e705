//! The crate's own: as Vegas, with room that grows as the root of the limit, and pace taken from the middle of the calls.

use super::{Limit, Sample};

/// Keeps a queue at the service that is as long as it must be to keep it busy, and no longer.
///
/// Of `limit` calls, `limit × (1 − base ÷ recent)` wait, where `base` is how long a call takes when nothing is wrong and `recent` how
/// long it takes now. That many may be the root of the limit, or a third of it where that is more. So
///
/// - fifty clients that ask for one call each leave a queue of some twenty, and one that asks for fifty one of twenty-five;
/// - clients who are many get limits below one, which is one call in flight for a part of the time;
/// - both times are medians, so that one host in ten that hangs, or one call in ten that is of another kind, do not count;
/// - `base` moves only while the limit is in nobody's way, so that neither an overload nor a slow leak become what is usual; and
///   nothing is slowed down to measure it. If a limit of many calls has come down by a third and nothing got faster for it, then
///   it was not the queue: `base` is taken anew;
/// - it grows no further than to what is in use, and half of the calls' time to their deadline is the most that it lets them take,
///   unless they take longer when nothing is wrong.
///
/// **When not.** A service that gets more than three times slower *for good*, and not because it is busy, cannot be told from one that is:
/// a limit that was never above nine stays small then, and costs throughput, until its handle is built anew. Where calls of one
/// client are of so different kinds from one day to the next, use [`Aimd`](super::Aimd), which knows no usual time, or a fixed limit.
///
/// ```
/// use buttress::{ConcurrencyLimit, concurrency_limit::Headroom};
/// let limit = ConcurrencyLimit::builder().adaptive(Headroom::default()).build()?;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Headroom {
    recent: Recent,
    /// In seconds.
    base: f64,
    /// Samples, as far as the first average of all goes.
    seen: u32,
    /// How many are in flight at most, as of late.
    peak: f64,
    /// Of the time that calls have, in seconds; zero if they have no deadline.
    allowed: f64,
    /// Where the limit stood when it began to fall, and how long calls took then.
    fell_from: f64,
    took: f64,
    since: f64,
}

/// How many calls may wait at the service: so many roots of the limit, and at least this part of it.
const ROOTS: f64 = 0.8;
const PART: f64 = 0.5;

/// How much of a change is made at once. It falls faster than it grows.
const UP: f64 = 0.15;
const DOWN: f64 = 0.3;

/// Above what is in use it keeps a fifth, and one.
const UNUSED: f64 = 1.2;

/// The first samples make a plain average.
const FIRST: u32 = 20;

/// A limit that was above this alone decides how long the service's queue is; below, others do.
const ALONE: f64 = 9.0;

impl Limit for Headroom {
    fn initial(&self) -> f64 {
        4.0
    }

    fn update(&mut self, limit: f64, sample: &Sample) -> f64 {
        let rtt = sample.rtt.as_secs_f64().max(1e-9);
        // Of a larger limit there are more samples in the same time.
        let samples = (limit / 2.0).max(1.0);
        if sample.dropped && rtt < self.recent.value {
            // Turned away at the door, which says how full it is and not how long anything takes.
            return limit * (1.0 - 0.1 / samples);
        }
        let recent = self.recent.add(rtt, 0.3 / samples);
        self.follow(rtt, recent, samples, sample.limited);

        let in_flight = sample.in_flight as f64;
        self.peak = in_flight.max(self.peak + 0.05 / samples * (in_flight - self.peak));
        if let Some(allowed) = sample.allowed {
            let allowed = allowed.as_secs_f64();
            // The most: others have waited before they went.
            self.allowed = allowed.max(self.allowed + 0.01 * (allowed - self.allowed));
        }

        let waits = (1.0 - self.base / recent).max(1e-4);
        let may_wait = (ROOTS / limit.sqrt()).max(PART);
        let mut target = (limit * (may_wait / waits).clamp(0.5, 2.0)).min(UNUSED * self.peak + 1.0);
        // Where they take longer when nothing is wrong, fewer of them take no less.
        let longest = (0.5 * self.allowed).max(self.base);
        if self.allowed > 0.0 && recent > longest {
            target = target.min(limit * longest / recent);
        }

        self.since += 1.0;
        if target >= limit {
            self.falls_from(limit, recent);
        } else if self.fell_from > ALONE && limit < 0.7 * self.fell_from && self.since > 8.0 * samples {
            // Of calls that wait for each other, a third less takes a third less.
            if recent > self.took * (0.5 + 0.5 * limit / self.fell_from) {
                self.base = self.base.max(0.6 * recent);
            }
            self.falls_from(limit, recent);
        }
        limit + if target < limit { DOWN } else { UP } * (target - limit) / samples
    }
}

impl Headroom {
    /// `base` follows while nobody waits; down it goes in any case.
    fn follow(&mut self, rtt: f64, recent: f64, samples: f64, limited: bool) {
        if self.seen < FIRST {
            self.seen += 1;
            self.base += (rtt - self.base) / f64::from(self.seen);
        }
        if recent < self.base || !limited && recent < 3.0 * self.base {
            self.base += 0.02 / samples * (recent - self.base);
        }
    }

    fn falls_from(&mut self, limit: f64, took: f64) {
        (self.fell_from, self.took, self.since) = (limit, took, 0.0);
    }
}

/// What is usual now: the smoothed median of the last five.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recent {
    last: [f64; 5],
    count: usize,
    pub value: f64,
}

impl Recent {
    pub fn add(&mut self, sample: f64, weight: f64) -> f64 {
        self.last[self.count % 5] = sample;
        self.count += 1;
        let known = self.count.min(5);
        let mut sorted = self.last;
        sorted[..known].sort_unstable_by(f64::total_cmp);
        let median = sorted[known / 2];
        self.value = if self.count == 1 { median } else { self.value + weight * (median - self.value) };
        self.value
    }
}
