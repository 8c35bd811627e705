//! The concurrency limit: so many calls in flight, a bounded queue behind them, and a quick no to the rest.
//!
//! **Use it** in front of anything that gets slower the more it is asked at once, which is everything: by Little's
//! law, calls in flight are rate times latency, so a bound on them is a bound on both. **Do not use it** to bound a
//! *rate* (a limit of 10 lets a thousand 10 ms calls a second through).
//!
//! Fair and first in, first out: a permit that is given back goes to the longest waiting, and nobody barges past
//! the queue. A call that is dropped while it waits leaves no trace, and one that is dropped while it is being
//! granted passes the permit on. The permit is released when the response future ends or is dropped.

mod config;
mod handle;
mod shared;

pub use config::ConcurrencyLimitBuilder;
pub use handle::{ConcurrencyLimit, ConcurrencyLimitLayer, ConcurrencyLimitService, LimitParts, Permit};
pub use shared::Shared;
pub(crate) use shared::Turn;
