//! HTTP, by feature `http`: what a status means, `Retry-After`, rejections as responses, and deadlines
//! in headers. Feature `reqwest` adds the preset for `reqwest::Client`.
//!
//! The layers of a server, in one expression and outermost first:
//!
//! ```
//! use axum::{Router, body::Body, http::{Request, StatusCode}, routing::get};
//! use buttress::{Deadline, Policy, http::{ReadDeadlineLayer, RespondLayer}};
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let policy = Policy::plain("server").timeout(Duration::from_secs(10)).build()?;
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
mod held;
#[cfg(feature = "reqwest")]
mod reqwest;
mod respond;
mod response;
mod status;

#[cfg(feature = "reqwest")]
pub use self::reqwest::{Idempotent, Reqwest};
pub use deadline::{
    HasHeaders, ReadDeadlineLayer, ReadDeadlineService, WriteDeadlineFuture, WriteDeadlineLayer, WriteDeadlineService,
};
pub use held::{Held, Hold};
pub use respond::{RespondFuture, RespondLayer, RespondService};
pub use status::{ByStatus, retry_after};
