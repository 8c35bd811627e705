//! Six storms, and what becomes of callers without a policy, with a naive retry, with tower's layers and with a policy of this
//! crate.
//!
//! ```text
//! cargo run --release --example storm [-- CHART.svg [PAGE.md]]
//! ```
//!
//! Nothing is real but the layers: clients and servers are simulated on tokio's paused clock. It prints the table of
//! `docs/storms.md`, which says what all of it means, and draws its chart. Given a page, it puts the table into that.

#![allow(missing_docs, reason = "an example")]

mod chart;
mod sim;
mod table;

use std::{error::Error, fs, io, path::PathBuf, thread};

use sim::{clients::run, contenders::Contender, figures::Figures, storms::Storm, storms::Times};

/// The table has them all, the chart the first.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Where the table stands in a page.
const BEGIN: &str = "<!-- storms:begin -->";
const END: &str = "<!-- storms:end -->";

/// What became of one contender in one storm, for each seed.
#[derive(Debug)]
struct Outcome {
    contender: Contender,
    seeds: Vec<Figures>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let picture = arguments.next().unwrap_or_else(|| "target/storm.svg".into());

    let storms: Vec<(Storm, Vec<Outcome>)> = thread::scope(|scope| {
        let storms = Storm::ALL.map(|storm| (storm, scope.spawn(move || outcomes(&storm))));
        storms
            .into_iter()
            .map(|(storm, all)| Ok((storm, all.join().expect("a storm passes")?)))
            .collect::<io::Result<_>>()
    })?;

    let table = table::table(&storms);
    println!("{table}\n{}", table::account(&storms));
    if let Some(page) = arguments.next() {
        fs::write(&page, between(&fs::read_to_string(&page)?, &table).ok_or("the page has no place for the table")?)?;
    }
    chart::draw(&picture, &storms)?;
    println!("The chart is {}.", picture.display());
    Ok(())
}

/// One storm, for all contenders.
fn outcomes(storm: &Storm) -> io::Result<Vec<Outcome>> {
    let outcome = |contender| {
        let figures = |seed| run(storm, contender, Times::FULL, seed).map(|run| Figures::of(&run, Times::FULL));
        Ok(Outcome { contender, seeds: SEEDS.map(figures).into_iter().collect::<io::Result<_>>()? })
    };
    Contender::ALL.into_iter().map(outcome).collect()
}

/// The page with the table in its place.
fn between(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
}
