//! The concurrency limit: so many calls in flight, a bounded queue behind them, and a quick no to the rest.
//!
//! **Use it** in front of anything that gets slower the more it is asked at once, which is everything: by Little's
//! law, calls in flight are rate times latency, so a bound on them is a bound on both. **Do not use it** to bound a
//! *rate* (a limit of 10 lets a thousand 10 ms calls a second through).
//!
//! How many? A number, or a [`Limit`] that finds itself ([`adaptive`](ConcurrencyLimitBuilder::adaptive)): by how long calls take it
//! tells how many of them wait at the service, and lets no more in than keep it busy.
//!
//! Fair and first in, first out, unless another [`Discipline`] is set: a permit that is given back goes to the longest waiting, and nobody barges past
//! the queue, unless he is owed it: where the callers are of several kinds, each can have a
//! [guaranteed share](ConcurrencyLimitBuilder::partition). A call that is dropped while it waits leaves no trace, and one that is dropped while it is being
//! granted passes the permit on. The permit is released when the response future ends or is dropped.

mod codel;
mod config;
mod handle;
mod limits;
mod line;
mod regulator;
mod shared;
mod shares;

pub use config::ConcurrencyLimitBuilder;
pub use handle::{ConcurrencyLimit, ConcurrencyLimitLayer, ConcurrencyLimitService, LimitParts, Permit};
pub use limits::{Aimd, Gradient2, Headroom, Limit, Sample, Vegas};
pub use line::Discipline;
pub(crate) use regulator::Ended;
pub use shared::Shared;
pub(crate) use shared::{Asks, Queued, Took, Turn};
pub(crate) use shares::Share;
