//! Graceful shutdown.
mod config;
mod driver;
mod gate;
mod handle;
#[cfg(feature = "http")]
mod http;
mod layer;
#[cfg(feature = "signal")]
mod process;
mod readiness;
mod report;
#[cfg(feature = "serve")]
mod serve;
mod signal;
mod state;
mod systemd;
mod tasks;
mod timing;
mod waits;

#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use self::http::Http;
pub use config::ShutdownBuilder;
pub use handle::{Closed, Handle, InFlight, Reloads, Shutdown};
pub use layer::{Calls, InFlightFuture, InFlightLayer, InFlightService};
pub use readiness::Condition;
pub use report::{Report, Stage, TaskOutcome, TaskReport};
pub use signal::{Signal, Signals};
pub use state::{Force, State, Trigger};
pub use tasks::{IntoOutcome, Refused, Restart, Task, TaskContext, Why};
