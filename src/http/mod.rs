//! HTTP, by feature `http`: what a status means, `Retry-After`, rejections as responses, and request bodies that
//! can be sent again. Feature `reqwest` adds the preset for `reqwest::Client`.

mod held;
mod idempotent;
mod replay;
#[cfg(feature = "reqwest")]
mod reqwest;
mod response;
mod status;
mod tape;

#[cfg(feature = "reqwest")]
pub use self::reqwest::Reqwest;
pub use held::{Held, Hold};
pub use idempotent::Idempotent;
pub use replay::{BodyGone, Replay, ReplayLayer, ReplayService};
pub use status::{ByStatus, retry_after};
