//! Retry: ask again, but not too soon, not too often, and not for ever.
//!
//! **Why a budget and not only a number of attempts?** With three attempts everywhere, a service that fails costs
//! three times its load, and one `n` calls deep costs `3^n` times: retries turn a hiccup into an outage and keep it
//! going. The budget bounds the retries of *all* calls together, to a share of them (20 %) and a small floor: `n` layers
//! then cost at most `1.2^n` times the load. Share one [`Budget`] among the policies of a process that stand above one
//! another.
//!
//! **Do not retry** what is not idempotent, unless the server tells duplicates apart. A request that its
//! [strategy](Repeat) cannot repeat is sent once. For bodies that are streamed there is `http::Replay`, by feature `http`.
//!
//! What is retried is told by the [classifier](crate::Classify): transient and throttled outcomes. An attempt that
//! ran into our own time-out is; any other [rejection](crate::Rejection) of ours is not (known as one where layers are
//! stacked and by the `…_as` functions), unless
//! [asked for](RetryBuilder::retry_rejected); a call that ran out of time never is. A server's hint is never undercut:
//! if it lies past the cap or the deadline, the call ends at once. On giving up, the last outcome comes back unchanged. (A further
//! attempt that is refused, by a circuit that has opened meanwhile, ends the call with that rejection: the outcome before
//! it was dropped before the wait. A [`Policy`](crate::Policy) looks first, and does not wait for a circuit that it knows
//! will refuse.)
//!
//! Everywhere, attempts are counted, not retries: `max_attempts(3)` asks at most three times.

mod budget;
mod config;
mod handle;
mod repeat;

pub use budget::{Budget, BudgetBuilder};
pub use config::RetryBuilder;
pub use handle::{Retry, RetryLayer, RetryParts, RetryService, current_attempt};
pub use repeat::{CloneRequest, Once, Repeat};
