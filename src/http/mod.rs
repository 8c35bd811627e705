//! HTTP, by feature `http`: what a status means, `Retry-After`, and rejections as responses. Feature `reqwest` adds
//! the preset for `reqwest::Client`.

mod held;
#[cfg(feature = "reqwest")]
mod reqwest;
mod response;
mod status;

#[cfg(feature = "reqwest")]
pub use self::reqwest::{Idempotent, Reqwest};
pub use held::{Held, Hold};
pub use status::{ByStatus, retry_after};
