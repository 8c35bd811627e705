//! HTTP, by feature `http`: what a status means, `Retry-After`, and rejections as responses; the kinds of servers and clients,
//! and calls that last as long as the [body](UntilBody) of their response.
//!
//! | around | policy | by feature |
//! | --- | --- | --- |
//! | a server: axum, or any service of `http::Response` | [`Policy::http_server`](crate::Policy::http_server) | `http` |
//! | a client: hyper-util's, or any service of `http::Request` | [`Policy::http_client`](crate::Policy::http_client) | `http`; `hyper` knows its errors |
//! | `reqwest::Client` | `Policy::reqwest` | `reqwest` |
//! | gRPC, either side | [`Policy::grpc`](crate::Policy::grpc) | `http`; `tonic` knows its `Status` |

mod grpc;
mod held;
mod idempotent;
mod kinds;
#[cfg(feature = "reqwest")]
mod reqwest;
mod response;
mod status;
#[cfg(feature = "tonic")]
pub(crate) mod tonic;
mod unsent;
mod until_body;

#[cfg(feature = "reqwest")]
pub use self::reqwest::Reqwest;
pub use grpc::{ByGrpcStatus, ByGrpcTrailers, Grpc};
pub use held::{Held, Keep};
pub use idempotent::Idempotent;
pub use kinds::{HttpClient, HttpServer};
pub use status::{ByStatus, ByStatusAt, retry_after};
pub use until_body::{ByHeaders, Tail, Trailers, UntilBody};
