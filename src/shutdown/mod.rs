//! Graceful shutdown: from the signal to a report that names what did not stop.
//!
//! ```text
//!  Starting ──ready()──► Running ──signal, trigger(), a critical task ended──► Draining
//!                                                                               │ lame-duck time: not ready, still serving
//!                                                                               ▼
//!  Done ◄──joined── Forced ◄──total time, a second signal, force()─────────── Stopping
//!    ▲               aborts                                                     │ gate closed; calls and connections, then
//!    └────────────────────────────────everything has ended──────────────────────┘ each phase in reverse, are waited for
//! ```
//!
//! It only ever moves forward, and the first reason counts. A task of its own drives it.
//!
//! # A server
//!
//! By features `serve` and `signal`; `app` is any tower service for HTTP.
//!
//! ```no_run
//! # #[cfg(all(feature = "serve", feature = "signal"))] mod example {
//! use axum::{Router, routing::get};
//! use buttress::{Shutdown, shutdown::Signals};
//! use std::{process::ExitCode, time::Duration};
//!
//! fn main() -> ExitCode {
//!     let builder = Shutdown::builder()
//!         .lame_duck(Duration::from_secs(5))                 // until the balancer has noticed
//!         .total(Duration::from_secs(25))                    // Kubernetes kills after 30
//!         .phase("storage", Duration::from_secs(3))          // registered first: stops last
//!         .phase("workers", Duration::from_secs(5));
//!     Shutdown::main(builder, Signals::default(), |shutdown| async move {
//!         let handle = shutdown.handle();
//!         handle.spawn("workers", "mailer", |cx| async move { cx.stopping().await })?;
//!         let app = Router::new()
//!             .route("/", get(|| async { "hello" }))
//!             .layer(handle.in_flight_layer())
//!             .route("/readyz", get(handle.readiness()));    // outside of the layer: always answered
//!         let listener = tokio::net::TcpListener::bind("0.0.0.0:8080").await?;
//!         Ok(shutdown.serve(listener, app).await)
//!     })
//! }
//! # }
//! ```
//!
//! # Which part do I need?
//!
//! | you have | use |
//! | --- | --- |
//! | an axum `Router`, or any tower service for HTTP | `serve`, with the in-flight layer |
//! | `axum::serve`, TLS, tonic: a server of your own | the layer; [`stopping`](Handle::stopping) tells that server when to stop, [`wait`](Handle::wait) ends with the report |
//! | services of another protocol | [`Handle::layer`] |
//! | consumers, pollers, writers | [`spawn`](Handle::spawn) and [`supervise`](Handle::supervise), in phases |
//! | streams that never end (SSE) | end them on [`draining`](Handle::draining) |
//! | upgraded connections (WebSocket) | a [`guard`](Handle::guard), and `draining` |
//! | clients with retries and queues | [`PolicyBuilder::shutdown`](crate::policy::PolicyBuilder::shutdown) |
//! | a main function | `Shutdown::main`, which ends the process on time whatever hangs |
//!
//! A server of your own, here axum's, hears of the states, and the layer counts its calls:
//!
//! ```no_run
//! # #[cfg(feature = "http")] mod example {
//! use axum::{Router, routing::get};
//! use buttress::{Shutdown, shutdown::Report};
//! use tokio::net::TcpListener;
//!
//! async fn serve(shutdown: Shutdown, listener: TcpListener) -> Report {
//!     let handle = shutdown.handle();
//!     let app = Router::new().route("/", get(async || "hello")).layer(handle.in_flight_layer());
//!     let server = axum::serve(listener, app).with_graceful_shutdown(handle.stopping());
//!     let server = tokio::spawn(server.into_future());
//!     handle.ready();
//!     let report = shutdown.wait().await;
//!     server.abort(); // it may wait for connections that nobody uses any more
//!     report
//! }
//! # }
//! ```
//!
//! In a test there are no signals unless they are asked for: [`trigger`](Handle::trigger) begins it, and on paused time
//! (`#[tokio::test(start_paused = true)]`) it takes as long as it is told to, at once.
//!
//! # How long it takes
//!
//! ```text
//! trigger                                                                  total
//!    ├── lame duck ──┼── calls and connections ────┼── workers ──┼── storage ──┤── abort grace ──┤
//! ```
//!
//! Each step ends as soon as it can. The phases' time is reserved: calls may take what is left of the total without it, and
//! what phases do not need is theirs too. The lame-duck time always passes, as nobody knows when the last balancer has
//! noticed.
//!
//! # When not to use it
//!
//! For a part of a process that starts and stops while the rest runs, a `CancellationToken` and a `TaskTracker` of
//! `tokio-util` are enough. One process has one shutdown that listens to signals.

mod bell;
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
#[cfg(feature = "serve")]
pub use serve::PeerAddr;
pub use signal::{Signal, Signals};
#[cfg(all(test, buttress_loom))]
pub(crate) use state::models::handle as handle_of_a_model;
pub use state::{Force, State, Trigger};
pub use tasks::{IntoOutcome, Refused, Restart, Task, TaskContext, Why};
