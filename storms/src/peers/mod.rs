//! Contenders that an example of buttress has no business to depend on.

mod adaptive;
mod failsafe;
mod seatbelt;

pub use adaptive::{AIMD, VEGAS};
pub use failsafe::FAILSAFE;
pub use seatbelt::SEATBELT;
