//! The table in short, for the repository's README.md.

use std::{fmt::Write, fs};

use crate::{
    ahead::is_ahead,
    bars::{self, What},
    figures, machine,
    measure::Times,
    measured::{All, Measured},
    subject::{Row, Way},
    table,
};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
const BEGIN: &str = "<!-- peers:begin -->";
const END: &str = "<!-- peers:end -->";

/// Replaces what stands between the markers. Without both of them in their order nothing is written.
pub fn update(all: &All<'_>) -> Result<(), String> {
    let failed = |error| format!("{README}: {error}");
    let text = fs::read_to_string(README).map_err(failed)?;
    let missing = || format!("{README} has no {BEGIN} with an {END} after it");
    let (before, rest) = text.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    fs::write(README, format!("{before}{BEGIN}\n{}\n{END}{after}", short(all))).map_err(failed)
}

const HEAD: &str = "\
| ns per call | buttress | peers | M calls/s, 64 tasks on 2 workers | allocations |
| --- | --- | --- | --- | --- |
";

fn short(all: &All<'_>) -> String {
    let mut out = String::from(HEAD);
    let ours = |row: &Row| all.first(*row).is_some_and(|it| it.subject.is_ours());
    for row in all.rows().into_iter().filter(ours) {
        let _ = writeln!(out, "| {} |", line(all, row, Way::Ready).join(" | "));
        // Where it matters so much that there is a bar for it.
        if bars::has(row, What::PendingAdds) {
            let _ = writeln!(out, "| {} |", line(all, row, Way::Pending).join(" | "));
        }
    }
    let of_bare = |way| all.first(Row::Bare).and_then(|it| it.times(way)).map_or(f64::NAN, Times::low);
    let (ready, pending) = (of_bare(Way::Ready), of_bare(Way::Pending));
    let _ = write!(
        out,
        "\n`cd benches/peers && cargo run --release -- --readme`: {} rounds in turns, of which a time is the 10th percentile \
         (the whole table has the medians too, which drift with what else a machine does) and × the median of the rounds' \
         ratios to ours; **bold** is a peer that is faster. Times include the service itself ({ready:.1} ns ready at once, \
         {pending:.1} ns pending once). The last columns name the best peer, and the one that allocates most. {}",
        all.rounds,
        machine::described(),
    );
    out
}

/// The cells of a row; `way` is [`Way::Ready`] or [`Way::Pending`].
fn line(all: &All<'_>, row: Row, way: Way) -> [String; 5] {
    let (ours, peers): (Vec<_>, Vec<_>) = all.row(row).partition(|it| it.subject.is_ours());
    let name = if ours.len() == 1 { ours[0].subject.name() } else { row.title().to_owned() };
    let ns = |it: &&Measured<'_>| {
        let ns = it.times(way)?.low();
        let remark = if ours.len() == 1 { String::new() } else { format!(" ({})", it.subject.remark) };
        Some(format!("{ns:.1}{remark}"))
    };
    let beside = |it: &&Measured<'_>| {
        let (times, name) = (it.times(way)?, it.subject.full_name());
        let ratio = times.to(ours[0].times(way)?);
        Some(bold(is_ahead(ratio), format!("{name} {} ({})", figures::short(times.low()), figures::ratio(ratio))))
    };
    [
        if way == Way::Pending { format!("{name}, pending once") } else { name },
        ours.iter().filter_map(ns).collect::<Vec<_>>().join(", "),
        peers.iter().filter_map(beside).collect::<Vec<_>>().join(", "),
        throughput(ours[0], &peers, way).unwrap_or_default(),
        if way == Way::Pending { String::new() } else { allocations(ours[0], &peers).unwrap_or_default() },
    ]
}

fn bold(is: bool, text: String) -> String {
    if is { format!("**{text}**") } else { text }
}

/// Ours, and that of the best peer.
fn throughput(ours: &Measured<'_>, peers: &[&Measured<'_>], way: Way) -> Option<String> {
    let pending = way == Way::Pending || ours.subject.row == Row::Saturated;
    let in_tasks = if pending { Way::TwoWorkersPending } else { Way::TwoWorkers };
    let millions = |it: &Measured<'_>| Some(1_000.0 / it.times(in_tasks)?.low());
    let best = peers.iter().filter_map(|it| Some((millions(it)?, it.subject.library)));
    let (theirs, library) = best.max_by(|a, b| a.0.total_cmp(&b.0))?;
    let ours = millions(ours)?;
    Some(format!("{ours:.1}; {}", bold(theirs > ours, format!("{library} {theirs:.1}"))))
}

/// Ours, and those of the peer that has the most.
fn allocations(ours: &Measured<'_>, peers: &[&Measured<'_>]) -> Option<String> {
    let most = peers.iter().filter_map(|it| Some((it.allocations()?, it.subject.library)));
    let (theirs, library) = most.max_by(|a, b| a.0.0.total_cmp(&b.0.0))?;
    let ours = table::allocations(ours.allocations()?);
    Some(if theirs.0 == 0.0 { ours } else { format!("{ours}; {library} {}", table::allocations(theirs)) })
}
