//! Clients, a service and weather, on a clock that stands still until all wait: the same seed has the same outcome to the last
//! call, and seventy seconds take a moment.

pub mod arrivals;
pub mod clients;
pub mod contenders;
pub mod faults;
pub mod figures;
pub mod hosts;
pub mod oracle;
pub mod ours;
pub mod server;
pub mod setup;
pub mod tower_stack;
