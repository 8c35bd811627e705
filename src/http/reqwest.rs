//! The preset for `reqwest::Client`.

use super::{ByStatus, Idempotent, UntilBody};
use crate::Kind;

/// What [`Policy::reqwest`](crate::Policy::reqwest) makes: judges by [status](ByStatus), repeats what is
/// [idempotent](Idempotent), and gives the permit back with the headers; the deadline goes on into the [body](UntilBody).
pub type Reqwest = Kind<ByStatus, Idempotent, UntilBody>;
