//! HTTP, by feature `http`: what a status means, `Retry-After`, rejections as responses, deadlines in headers; the kinds of
//! servers and clients, and calls that last as long as the [body](UntilBody) of their response.
//!
//! | around | policy | by feature |
//! | --- | --- | --- |
//! | a server: axum, or any service of `http::Response` | [`Policy::http_server`](crate::Policy::http_server) | `http` |
//! | a client: hyper-util's, or any service of `http::Request` | [`Policy::http_client`](crate::Policy::http_client) | `http`; `hyper` knows its errors |
//! | `reqwest::Client` | `Policy::reqwest` | `reqwest` |
//! | gRPC, either side | [`Policy::grpc`](crate::Policy::grpc) | `http`; `tonic` knows its `Status` |
//!
//! What goes where, outermost first. A `ServiceBuilder` is written in this order; calls of `Router::layer`, one after the other,
//! in the opposite one.
//!
//! ```text
//! server: RespondLayer ─► in_flight_layer ─► ReadDeadlineLayer ─► policy.layer() ─► router
//! client: ReplayLayer ─► policy.layer() ─► WriteDeadlineLayer ─► LiftLayer ─► client    (policy.wrap is policy.layer and LiftLayer)
//! ```
//!
//! The layers of a server, in one expression:
//!
//! ```
//! use axum::{Router, body::Body, http::{Request, StatusCode}, routing::get};
//! use buttress::{Deadline, Policy, http::{ReadDeadlineLayer, RespondLayer}};
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let policy = Policy::http_server("api").timeout(Duration::from_secs(10)).build()?;
//! let app: Router = Router::new()
//!     .route("/", get(async || format!("{:?}", Deadline::current())))
//!     .layer(
//!         ServiceBuilder::new()
//!             .layer(RespondLayer::new())
//!             .layer(ReadDeadlineLayer::new().max(Duration::from_secs(30)))
//!             .layer(policy.layer()),
//!     );
//!
//! let too_late = Request::get("/").header("grpc-timeout", "0m").body(Body::empty())?;
//! let Ok(response) = app.oneshot(too_late).await;
//! assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
//! assert_eq!(response.headers()["content-type"], "application/problem+json");
//! # Ok(()) }
//! ```

mod deadline;
mod grpc;
mod held;
mod idempotent;
mod kinds;
mod replay;
#[cfg(feature = "reqwest")]
mod reqwest;
mod respond;
mod response;
mod status;
mod tape;
#[cfg(feature = "tonic")]
pub(crate) mod tonic;
mod unsent;
mod until_body;

#[cfg(feature = "reqwest")]
pub use self::reqwest::Reqwest;
pub use deadline::{
    HasHeaders, ReadDeadlineLayer, ReadDeadlineService, WriteDeadlineFuture, WriteDeadlineLayer, WriteDeadlineService,
};
pub use grpc::{ByGrpcStatus, ByGrpcTrailers, Grpc};
pub use held::{Held, Keep};
pub use idempotent::Idempotent;
pub use kinds::{HttpClient, HttpServer};
pub use replay::{BodyGone, Replay, ReplayLayer, ReplayService};
pub use respond::{RespondFuture, RespondLayer, RespondService};
pub use status::{ByStatus, ByStatusAt, ByStatusDirect, retry_after};
pub use until_body::{ByHeaders, Tail, Trailers, UntilBody};
