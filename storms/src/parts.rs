//! Which part saves which row: the standard policy, with one of its parts taken out or replaced.

use std::{io, time::Duration};

use buttress::{
    ConcurrencyLimit, ConcurrencyLimitBuilder, Hedge, Policy,
    concurrency_limit::{Discipline, Gradient2, Headroom, Limit, Vegas},
};

use crate::{
    outcomes::rows,
    sim::{
        contenders::{BUTTRESS, Contender, each, tokios},
        ours::through,
        setup::Setup,
    },
    table,
};

const SEEDS: u64 = 2;

/// As `Policy::standard` has it, but for what is asked about.
fn limit(limit: impl Limit + Clone + Sync) -> ConcurrencyLimitBuilder {
    ConcurrencyLimit::builder()
        .adaptive(limit)
        .hold_back(true)
        .discipline(Discipline::Deadline)
        .max_wait(Duration::from_secs(10))
}

macro_rules! without {
    ($name:literal, $policy:expr) => {
        Contender {
            name: $name,
            clients: |hosts, setup, seed| each(hosts, setup, seed, |hosts, seed| through($policy, hosts, seed)),
            clock: tokios,
        }
    };
}

const ALL: [Contender; 8] = [
    BUTTRESS,
    without!(
        "a limit of 4",
        Policy::standard("server").concurrency_limit(
            ConcurrencyLimit::builder().max_in_flight(4).max_queue(1_000).discipline(Discipline::Deadline)
        )
    ),
    without!("Vegas", Policy::standard("server").concurrency_limit(limit(Vegas::default()))),
    without!("Gradient2", Policy::standard("server").concurrency_limit(limit(Gradient2::default()))),
    without!(
        "first come",
        Policy::standard("server").concurrency_limit(limit(Headroom::default()).discipline(Discipline::Fifo))
    ),
    without!(
        "holds nothing back",
        Policy::standard("server").concurrency_limit(limit(Headroom::default()).hold_back(false))
    ),
    without!("no retry", Policy::plain("server").concurrency_limit(limit(Headroom::default()))),
    // Later than anybody waits.
    without!("no hedge", Policy::standard("server").hedge(Hedge::after(Duration::from_secs(3_600)))),
];

/// A row for each fault.
///
/// # Errors
/// If there is no runtime to be had.
pub fn table() -> io::Result<String> {
    Ok(table::served(&rows(&Setup::USUAL, &ALL, SEEDS)?))
}
