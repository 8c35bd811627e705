//! Clients, servers and weather, on a clock that stands still until all wait: the same seed has the same outcome to the last
//! call, and two minutes take a moment.

pub mod clients;
pub mod contenders;
pub mod figures;
pub mod hosts;
mod ours;
pub mod server;
pub mod storms;
mod tower_stack;
