//! The one place that reads the clock: tokio's, so that a paused clock drives everything.
//!
//! Only the files that wire a call import it; algorithms take `now` as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// As far as any timer needs to look: thirty years.
const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);

#[inline]
#[allow(clippy::disallowed_methods)] // the one place
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// `now + duration`, which never overflows.
#[inline]
pub(crate) fn after(now: Instant, duration: Duration) -> Instant {
    now + duration.min(FAR)
}

/// Nanoseconds in a word, saturating: 584 years.
#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

/// So many seconds, saturating.
#[inline]
pub(crate) fn seconds(time: f64) -> Duration {
    Duration::try_from_secs_f64(time.max(0.0)).unwrap_or(Duration::MAX)
}

/// Nanoseconds from `base` to `now`; zero if the clock stands before it.
#[inline]
pub(crate) fn since(base: Instant, now: Instant) -> u64 {
    nanos(now.saturating_duration_since(base))
}
