//! The table of all subjects, in Markdown.

use std::{collections::HashMap, fmt::Write};

use crate::{
    allocations, machine,
    measure::{Runner, Times, interleaved},
    subject::{Row, Subject, Way},
};

/// What one subject was found to cost.
struct Measured<'a> {
    subject: &'a Subject,
    times: HashMap<Way, Times>,
    /// Per call, by hand.
    allocations: Option<(f64, f64)>,
}

const HEAD: &str = "\
| | | ready at once | | pending once adds | | calls/s, 64 tasks on 2 workers | of ideal scaling | pending once | allocations | future | handle |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
";

/// Measures `subjects`, and prints them.
pub fn table(subjects: &mut [Subject], rounds: usize) -> String {
    let allocations: Vec<_> = subjects.iter_mut().map(allocated).collect();
    let mut runners: Vec<(&mut dyn Runner, _)> = Vec::new();
    for subject in subjects.iter_mut() {
        runners.extend(subject.ways.iter_mut().map(|(way, runner)| (&mut **runner as &mut dyn Runner, way.batch())));
    }
    let mut times = interleaved(&mut runners, rounds).into_iter();
    drop(runners);
    let measured: Vec<Measured<'_>> = subjects
        .iter()
        .zip(allocations)
        .map(|(subject, allocations)| {
            let times = subject.ways.iter().map(|(way, _)| *way).zip(times.by_ref()).collect();
            Measured { subject, times, allocations }
        })
        .collect();
    render(&measured, rounds)
}

/// Allocations and bytes of a call.
fn allocated(subject: &mut Subject) -> Option<(f64, f64)> {
    const CALLS: u64 = 1_000;
    let (_, runner) = subject.ways.iter_mut().find(|(way, _)| *way == Way::Ready)?;
    runner.run(CALLS);
    let found = allocations::of(|| {
        runner.run(CALLS);
    });
    Some((found.count as f64 / CALLS as f64, found.bytes as f64 / CALLS as f64))
}

fn render(measured: &[Measured<'_>], rounds: usize) -> String {
    let mut out = String::from(HEAD);
    let bare = &measured.iter().find(|it| it.subject.row == Row::Bare).expect("the service alone is a subject").times;
    let ideal = scaling(bare);
    for it in measured {
        let row = it.subject.row;
        let first = measured.iter().find(|other| other.subject.row == row).expect("it is in its own row");
        let ratio = |way| match (it.times.get(&way), first.times.get(&way)) {
            (Some(mine), Some(ours)) if !std::ptr::eq(it, first) => format!("{:.2}×", mine.to(ours)),
            _ => String::new(),
        };
        let ns = |times: &Times| format!("{:.1} ({:.1})", times.median(), times.low());
        let ready = it.times.get(&Way::Ready).map(ns);
        let pending = it.times.get(&Way::Pending).zip(it.times.get(&Way::Ready)).map(|(p, r)| ns(&p.beyond(r)));
        let throughput = |way| it.times.get(&way).map(|times| format!("{:.1} M", 1_000.0 / times.median()));
        let share = scaling(&it.times).zip(ideal).map(|(scaling, ideal)| format!("{:.2}", scaling / ideal));
        let allocations = it.allocations.map(|(count, bytes)| match count {
            0.0 => "0".to_owned(),
            _ => format!("{count:.1} of {bytes:.0} B"),
        });
        let cells = [
            it.subject.name(),
            it.subject.library.to_owned(),
            ready.unwrap_or_default(),
            ratio(Way::Ready),
            pending.unwrap_or_default(),
            ratio(Way::Pending),
            throughput(Way::TwoWorkers).unwrap_or_default(),
            share.unwrap_or_default(),
            throughput(Way::TwoWorkersPending).unwrap_or_default(),
            allocations.unwrap_or_default(),
            format!("{} B", it.subject.future),
            format!("{} B", it.subject.handle),
        ];
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
    let _ = write!(out, "\n{}", machine::described(rounds));
    out
}

/// How many times the calls of one worker two workers make.
fn scaling(times: &HashMap<Way, Times>) -> Option<f64> {
    Some(times.get(&Way::OneWorker)?.to(times.get(&Way::TwoWorkers)?))
}
