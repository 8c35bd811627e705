//! The crate's own: as Vegas, with room that grows as the root of the limit, and pace taken from below the middle of the calls.

use tokio::time::Instant;

use super::{Limit, Sample};

/// Keeps a queue at the service that is as long as it must be to keep it busy, and no longer.
///
/// Of `limit` calls, `limit × (1 − base ÷ recent)` wait, where `base` is how long a call takes when nothing is wrong and `recent` how
/// long it takes now. That many may be the root of the limit, or half of it where that is more. So
///
/// - fifty clients that ask for one call each leave a queue of some twenty, and one that asks for fifty one of twenty-five;
/// - clients who are many get limits below one, which is one call in flight for a part of the time;
/// - both times are what a third of the calls take less than, so that one host of two that hangs does not count;
/// - a call that is given up would have taken longer still: it counts as twice the time that it had;
/// - `base` moves freely only while the limit is in nobody's way, so that neither an overload nor a slow leak become what is usual, and
///   nothing is slowed down to measure it;
/// - it grows no further than to what is in use, and half of the time that calls have is the most that it lets them take, unless they
///   take longer when nothing is wrong. Until it has fallen once it doubles what is in use, as long as nothing gets slower for it.
///
/// A service that got slower *for good*, with another kind of work or by way of a longer line, looks like one that is busy. So what is
/// less than a twentieth of the time that calls have, and than 0.1 s, is never taken for a queue; where a limit of many calls has come
/// down by a third and nothing got faster for it, `base` is taken anew; and while calls wait it follows slowly, within half a minute or
/// so. All of this goes up to a quarter of the time that calls have, and to one second: to wait for so long is no harm where deadlines
/// say so.
///
/// **When not.** Without deadlines nobody knows what is harmless, and `base` does not follow: a service that gets more than twice as slow
/// for good, and takes more than 50 ms, has a limit that was never above nine stay small. Set deadlines, or use
/// [`Aimd`](super::Aimd), which knows no usual time, or a fixed limit.
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
    /// Samples, as far as the first go.
    seen: u32,
    /// When the last of them came.
    last: Option<Instant>,
    /// How many are in flight at most, as of late.
    peak: f64,
    /// Whether it had to come down yet.
    has_fallen: bool,
    fall: Option<Fall>,
}

/// Where the limit stood when it began to fall, how long calls took then, in seconds, and when that was.
#[derive(Clone, Copy, Debug)]
struct Fall {
    from: f64,
    took: f64,
    at: Instant,
}

/// How many calls may wait at the service: so many roots of the limit, and at least this part of it.
const ROOTS: f64 = 0.8;
const PART: f64 = 0.5;

/// How much of a change is made at once. It falls faster than it grows; but before it ever fell it grows faster.
const UP: f64 = 0.15;
const UP_AT_FIRST: f64 = 0.25;
const DOWN: f64 = 0.3;

/// Above what is in use it keeps a fifth, and one.
const UNUSED: f64 = 1.2;
const UNUSED_AT_FIRST: f64 = 2.0;

/// Of the first samples the fastest is what is usual.
const FIRST: u32 = 20;

/// A limit that was above this alone decides how long the service's queue is; below, others do.
const ALONE: f64 = 9.0;

/// So long, in seconds, it takes until what was sent before is out of the way, and a fall that is of use has been of use.
const PATIENCE: f64 = 3.0;

/// Of the time that calls have: what is no queue, if it is also less than so many seconds, what may become usual, and what is too long.
const BRIEF: f64 = 0.05;
const BRIEF_AT_MOST: f64 = 0.1;
const HARMLESS: f64 = 0.25;
const TOO_LONG: f64 = 0.5;

/// To wait for more than so many seconds is harm, whatever a deadline says.
const HARMLESS_AT_MOST: f64 = 1.0;

/// What calls take while some wait becomes usual within so many seconds.
const FOLLOWS: f64 = 30.0;

/// If nobody says how long calls may take: one second.
const ALLOWED: f64 = 1.0;

impl Limit for Headroom {
    fn initial(&self) -> f64 {
        10.0
    }

    fn update(&mut self, limit: f64, sample: &Sample) -> f64 {
        let took = sample.rtt.as_secs_f64().max(1e-9) * if sample.dropped { 2.0 } else { 1.0 };
        // Of a larger limit there are more answers in the same time.
        let samples = (limit / 2.0 / sample.answers.max(1) as f64).max(1.0);
        if sample.dropped && (took < self.recent.value || self.recent.value == 0.0) {
            // Turned away at the door, or nobody was ever answered: that says how full it is and not how long anything takes.
            return limit * (1.0 - 0.1 / samples);
        }
        let recent = self.recent.add(took, 0.3 / samples);
        self.follow(sample, recent, samples);
        let in_flight = sample.in_flight as f64;
        self.peak = in_flight.max(self.peak + 0.05 / samples * (in_flight - self.peak));

        let has = sample.allowed.map_or(ALLOWED, |allowed| allowed.as_secs_f64());
        let usual = self.base.max((BRIEF * has).min(BRIEF_AT_MOST));
        let waits = (1.0 - usual / recent).max(1e-4);
        let may_wait = (ROOTS / limit.sqrt()).max(PART);
        let mut target = limit * (may_wait / waits).clamp(0.5, 2.0);
        // Where they take longer when nothing is wrong, fewer of them take no less.
        let longest = (TOO_LONG * has).max(self.base);
        if sample.allowed.is_some() && recent > longest {
            target = target.min(limit * longest / recent);
        }
        self.has_fallen |= target < limit;
        let is_cautious = self.has_fallen || limit < ALONE;
        let (up, unused) = if is_cautious { (UP, UNUSED) } else { (UP_AT_FIRST, UNUSED_AT_FIRST) };
        target = target.min(unused * self.peak + 1.0);
        self.look_at_fall(limit, target < limit, recent, harmless(has), sample.now);
        limit + if target < limit { DOWN } else { up } * (target - limit) / samples
    }
}

impl Headroom {
    /// `base` follows while nobody waits, slowly while somebody does or it is far off, and down in any case.
    fn follow(&mut self, sample: &Sample, recent: f64, samples: f64) {
        if self.seen < FIRST {
            // The first are the fastest where too many begin at once.
            self.base = if self.seen == 0 { recent } else { self.base.min(recent) };
            self.seen += 1;
        }
        let since = self.last.map_or(0.0, |last| sample.now.saturating_duration_since(last).as_secs_f64().min(1.0));
        self.last = Some(sample.now);
        if recent < self.base || !sample.limited && recent < 3.0 * self.base {
            self.base += 0.02 / samples * (recent - self.base);
        } else if let Some(allowed) = sample.allowed {
            let next = self.base + since / FOLLOWS * (recent - self.base);
            self.base = self.base.max(next.min(harmless(allowed.as_secs_f64())));
        }
    }

    /// Of calls that wait for each other, a third less takes a third less. If not, they do not, and `base` is up to `most`.
    fn look_at_fall(&mut self, limit: f64, falls: bool, recent: f64, most: f64, now: Instant) {
        let begins = Fall { from: limit, took: recent, at: now };
        let Some(fall) = self.fall.filter(|_| falls) else {
            self.fall = Some(begins);
            return;
        };
        let lasts = now.saturating_duration_since(fall.at).as_secs_f64();
        if fall.from > ALONE && limit < 0.7 * fall.from && lasts > PATIENCE {
            if recent > fall.took * (0.5 + 0.5 * limit / fall.from) {
                self.base = self.base.max((0.6 * recent).min(most));
            }
            self.fall = Some(begins);
        }
    }
}

/// Of calls that have so much time, in seconds.
fn harmless(has: f64) -> f64 {
    (HARMLESS * has).min(HARMLESS_AT_MOST)
}

/// What is usual now: of the last five what one of them took less than, smoothed. One host of two that hangs does not move it.
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
        let usual = sorted[known / 3];
        self.value = if self.count == 1 { usual } else { self.value + weight * (usual - self.value) };
        self.value
    }
}
