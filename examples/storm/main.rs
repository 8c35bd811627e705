//! Fifteen faults, and what becomes of callers without a policy, with a naive retry, with tower's layers and with a policy of
//! this crate.
//!
//! ```text
//! cargo run --release --example storm [-- --short]
//! ```
//!
//! Nothing is real but the layers: 50 clients and a service are simulated on tokio's paused clock. It prints the tables of
//! `docs/storms.md`, which says what all of it means, for three seeds; `--short` has one seed, naive retry and ours. The page
//! itself, with more contenders and a chart, is made by the package in `storms/`.

#![allow(missing_docs, reason = "an example")]

mod outcomes;
#[allow(dead_code, reason = "what only `storms/` varies")]
mod sim;
mod table;

use std::io;

use sim::{
    contenders::{BUTTRESS, NAIVE_RETRY, NO_POLICY, TOWER},
    setup::Setup,
};

fn main() -> io::Result<()> {
    let short = std::env::args().any(|argument| argument == "--short");
    let rows = if short {
        outcomes::rows(&Setup::USUAL, &[NAIVE_RETRY, BUTTRESS], 1)?
    } else {
        outcomes::rows(&Setup::USUAL, &[NO_POLICY, NAIVE_RETRY, TOWER, BUTTRESS], 3)?
    };
    println!("{}\n{}\n{}\n{}", table::faults(), table::served(&rows), table::loads(&rows), table::backs(&rows));
    Ok(())
}
