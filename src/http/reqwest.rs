//! The preset for `reqwest::Client`.

use super::{ByStatus, Idempotent};
use crate::Kind;

/// What [`Policy::reqwest`](crate::Policy::reqwest) makes: judges by [status](ByStatus), repeats what is
/// [idempotent](Idempotent).
pub type Reqwest = Kind<ByStatus, Idempotent>;
