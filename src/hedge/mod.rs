//! Hedge: ask once more before the first answer is late, and take whichever comes.
//!
//! **What for?** Where most calls take 10 ms and one in a hundred takes a second, because of that one host, that one lock or that
//! one garbage collection, a second call after 30 ms is answered at 40 (Dean and Barroso, *The Tail at Scale*, 2013). It helps where
//! slow is chance: another host, another connection, another moment.
//!
//! **When not.** Where all calls are slow, as the service is overloaded, a second call for each is what brings it down. So a hedge
//! is taken from a [budget](crate::retry::Budget), never waits in a queue, takes no permit that somebody waits for, and asks no
//! circuit but a closed one. And **what is sent twice must be safe to be done twice, at the same time**: requests are by the
//! [`Repeat`](crate::retry::Repeat) strategy, as for a retry; closures always.
//!
//! The delay is fixed, or a percentile of how long the calls take, learned as they go ([`Hedge::percentile`]).
//!
//! **Who wins?** The first answer that is final. A hedge that fails does not beat a first call that is still on its way, however fast
//! it fails; if the first fails, the hedge is waited for. What has lost is dropped, which is its cancellation.

mod config;
mod handle;
mod quantile;

pub use config::HedgeBuilder;
pub use handle::{Hedge, HedgeLayer, HedgeParts, HedgeService};
