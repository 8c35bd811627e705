//! The presets for HTTP.

use super::{ByStatus, Idempotent, UntilBody};
use crate::{Kind, retry::Once};

/// What [`Policy::http_server`](crate::Policy::http_server) makes: judges by [status](ByStatus), calls the service once,
/// and holds the permit until the [body](UntilBody) of the response ends.
pub type HttpServer = Kind<ByStatus, Once, UntilBody>;

/// What [`Policy::http_client`](crate::Policy::http_client) makes: judges by [status](ByStatus), repeats what is
/// [idempotent](Idempotent), and gives the permit back with the headers; the deadline goes on into the
/// [body](UntilBody).
pub type HttpClient = Kind<ByStatus, Idempotent, UntilBody>;
