//! Conformance with the scenario tables of other libraries: each row is kept, and where we differ on purpose the row says so.

mod backoff;
mod breakers;
mod budgets;
mod windows;
