//! Ours elsewhere: with more or less to do, more or fewer clients, another kind of work, another kind of service.

use std::{fmt::Write, io};

use crate::{
    outcomes::rows,
    sim::{
        contenders::BUTTRESS,
        setup::{Setup, Work},
    },
    table::{Outcome, load, mean, of_possible, percent},
};

/// Of a few seeds for each.
const SEEDS: u64 = 2;

const WEATHERS: [(&str, Setup); 11] = [
    ("as above", Setup::USUAL),
    ("load 60 %", Setup { load: Some(0.6), ..Setup::USUAL }),
    ("load 70 %", Setup { load: Some(0.7), ..Setup::USUAL }),
    ("load 80 %", Setup { load: Some(0.8), ..Setup::USUAL }),
    ("load 90 %", Setup { load: Some(0.9), ..Setup::USUAL }),
    ("1 client", Setup { clients: 1, ..Setup::USUAL }),
    ("5 clients", Setup { clients: 5, ..Setup::USUAL }),
    ("200 clients", Setup { clients: 200, ..Setup::USUAL }),
    ("heavy-tailed work", Setup { work: Work::HeavyTailed, ..Setup::USUAL }),
    ("the service notices who has gone", Setup { notices: true, ..Setup::USUAL }),
    ("refusals say when to come back", Setup { hints: true, ..Setup::USUAL }),
];

/// A row for each, over all faults.
///
/// # Errors
/// If there is no runtime to be had.
pub fn table() -> io::Result<String> {
    let mut table = String::from(
        "| buttress | mean, of what the oracle serves | worst | in | mean load | not back in 18 s after | lost in the calm, per million |\n\
         | --- | ---: | ---: | --- | ---: | --- | ---: |\n",
    );
    for (name, setup) in WEATHERS {
        let rows = rows(&setup, &[BUTTRESS], SEEDS)?;
        let all = || rows.iter().flat_map(|(fault, outcomes)| outcomes.iter().map(move |one| (fault.name, one)));
        let over = |figure: fn(&Outcome) -> f64| mean(all().map(|(_, one)| figure(one)));
        let worst = all().min_by(|(_, one), (_, other)| of_possible(one).total_cmp(&of_possible(other)));
        let (fault, worst) = worst.map_or(("", 0.0), |(fault, one)| (fault, of_possible(one)));
        let away: Vec<_> = all().filter(|(_, one)| one.back().is_none()).map(|(fault, _)| fault).collect();
        let _ = writeln!(
            table,
            "| {name} | {} | {} | {fault} | {:.2} | {} | {:.0} |",
            percent(over(of_possible)),
            percent(worst),
            over(load),
            if away.is_empty() { "none".into() } else { away.join(", ") },
            1e6 * over(|one| one.mean(|seed| seed.lost_in_calm)),
        );
    }
    Ok(table)
}
