//! The table of all subjects, in Markdown.

use std::fmt::Write;

use crate::{
    ahead,
    bars::{self, What},
    figures::{self, short},
    machine,
    measure::Times,
    measured::{All, Measured},
    subject::Way,
};

const HEAD: &str = "\
| | | ready at once | | pending once adds | | calls/s, 64 tasks on 2 workers | of ideal scaling | pending once | allocations | future | handle |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
";

/// Of what was measured, with what is to be seen in it.
pub fn table(all: &All<'_>) -> String {
    let mut out = String::from(HEAD);
    for it in &all.subjects {
        let _ = writeln!(out, "| {} |", cells(all, it).join(" | "));
    }
    let faster: String = ahead::all(all).map(|it| format!("- {it}\n")).collect();
    let _ = write!(
        out,
        "\nTimes are nanoseconds per call: the median of {} rounds, and in parentheses the 10th percentile. × is the median over \
         the rounds of the ratio to the first of the row. {}\n\n### Bars\n\n{}\n### Where a peer is faster\n\n{}",
        all.rounds,
        machine::described(),
        bars::table(all),
        faster
    );
    out
}

fn cells(all: &All<'_>, it: &Measured<'_>) -> [String; 12] {
    let first = all.first(it.subject.row).filter(|first| !std::ptr::eq(*first, it));
    let ratio = |way| match it.times(way).zip(first.and_then(|first| first.times(way))) {
        Some((mine, ours)) => figures::ratio(mine.to(ours)),
        None => String::new(),
    };
    let ns = |times: &Times| format!("{} ({})", short(times.median()), short(times.low()));
    let throughput = |way| it.times(way).map(|times| format!("{:.1} M", 1_000.0 / times.median()));
    let held = |cell: Option<String>, what| cell.map_or(String::new(), |cell| cell + &bars::sign(all, it, what));
    [
        it.subject.name(),
        it.subject.library.to_owned(),
        held(it.times(Way::Ready).map(ns), What::Ready),
        ratio(Way::Ready),
        held(it.pending_adds().as_ref().map(ns), What::PendingAdds),
        ratio(Way::Pending),
        held(throughput(Way::TwoWorkers), What::Millions),
        held(all.share(it).map(|share| format!("{share:.2}")), What::Share),
        throughput(Way::TwoWorkersPending).unwrap_or_default(),
        held(it.allocations().map(allocations), What::Allocations),
        format!("{} B", it.subject.future),
        format!("{} B", it.subject.handle),
    ]
}

/// How many, and their bytes.
pub fn allocations((count, bytes): (f64, f64)) -> String {
    match count {
        0.0 => "0".to_owned(),
        _ => format!("{count:.1} of {bytes:.0} B"),
    }
}
