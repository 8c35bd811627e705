//! Fifteen faults, and what becomes of callers without a policy, with peers' and with one of buttress: makes `docs/storms.md`.
//!
//! ```text
//! cargo run --release --manifest-path storms/Cargo.toml [-- CHART.svg [PAGE.md …]]
//! ```
//!
//! Prints the tables and draws the chart, into `target/storm.svg` of the folder it is run in if nothing else is said. Given
//! pages, it puts what it found into them. The simulation itself is that of `examples/storm`.

#[path = "../../examples/storm/outcomes.rs"]
mod outcomes;
#[path = "../../examples/storm/sim/mod.rs"]
mod sim;
#[path = "../../examples/storm/table.rs"]
mod table;

mod chart;
mod contenders;
mod page;
mod parts;
mod peers;
mod sensitivity;

use std::{error::Error, fs, path::PathBuf};

use sim::{arrivals::arrivals, faults::Fault, figures::halves, oracle, setup::Setup};

/// The tables have the mean of them all, the chart the first.
const SEEDS: u64 = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let picture = arguments.next().unwrap_or_else(|| "target/storm.svg".into());

    let rows = outcomes::rows(&Setup::USUAL, &contenders::ALL, SEEDS)?;
    let tables = [
        ("faults", table::faults()),
        ("storms", table::served(&rows)),
        ("loads", table::loads(&rows)),
        ("backs", table::backs(&rows)),
        ("parts", parts::table()?),
        ("sensitivity", sensitivity::table()?),
    ];
    tables.iter().for_each(|(_, text)| println!("{text}"));
    let mut places = Vec::new();
    for file in arguments {
        let mut page = fs::read_to_string(&file)?;
        for (name, text) in &tables {
            if let Some(renewed) = page::put(&page, name, text) {
                page = renewed;
                places.push(*name);
            }
        }
        fs::write(&file, page)?;
    }
    if let Some((name, _)) = tables.iter().find(|(name, _)| !places.is_empty() && !places.contains(name)) {
        return Err(format!("no page has a place for the {name}").into());
    }
    let possible = Fault::ALL.map(|fault| possible(&Setup::USUAL, &fault, 1));
    chart::draw(&picture, &rows, &possible)?;
    println!("The chart is {}.", picture.display());
    Ok(())
}

/// What the oracle serves of each half second's calls, for a seed.
fn possible(setup: &Setup, fault: &Fault, seed: u64) -> Vec<f64> {
    let arrivals = arrivals(setup, fault, seed);
    let served = oracle::serves(setup, fault, &arrivals, seed);
    halves(&arrivals.iter().map(|call| call.at).zip(served).collect::<Vec<_>>())
}
