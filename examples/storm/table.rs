//! The figures as a table, and what they say in words.

use std::{fmt::Write, time::Duration};

use super::{
    Outcome,
    sim::{contenders::Contender, figures::Figures, storms::Storm},
};

/// In Markdown.
pub fn table(storms: &[(Storm, Vec<Outcome>)]) -> String {
    let mut table = String::from(
        "| storm | | answered in the storm | after it | median | p99 | requests per call | at last | back after |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for (storm, outcomes) in storms {
        let mut name = format!("**{}**", storm.name);
        for Outcome { contender, seeds } in outcomes {
            let percent = |figure: fn(&Figures) -> f64| format!("{:.1} %", 100.0 * mean(seeds, figure));
            let millis = |figure: fn(&Figures) -> f64| format!("{:.0} ms", 1000.0 * mean(seeds, figure));
            let _ = writeln!(
                table,
                "| {name} | {} | {} | {} | {} | {} | {:.2} | {:.2} | {} |",
                contender.name(),
                percent(|seed| seed.storm),
                percent(|seed| seed.after),
                millis(|seed| seed.median.as_secs_f64()),
                millis(|seed| seed.p99.as_secs_f64()),
                mean(seeds, |seed| seed.amplification),
                mean(seeds, |seed| seed.at_last),
                back(seeds),
            );
            name.clear();
        }
    }
    table
}

fn mean(seeds: &[Figures], figure: fn(&Figures) -> f64) -> f64 {
    seeds.iter().map(figure).sum::<f64>() / seeds.len() as f64
}

/// From the first seed to come back to the last.
fn back(seeds: &[Figures]) -> String {
    let times = || seeds.iter().map(|seed| seed.back.unwrap_or(Duration::MAX));
    match (times().min(), times().max()) {
        (Some(Duration::MAX), _) => "never".into(),
        (Some(first), Some(Duration::MAX)) => format!("{} s to never", first.as_secs()),
        (Some(first), Some(last)) if first != last => format!("{} to {} s", first.as_secs(), last.as_secs()),
        (first, _) => format!("{} s", first.unwrap_or_default().as_secs()),
    }
}

/// What it comes to, the bad news too.
pub fn account(storms: &[(Storm, Vec<Outcome>)]) -> String {
    let of = |outcomes: &'_ [Outcome], who| outcomes.iter().position(|outcome| outcome.contender == who).unwrap_or(0);
    let mut text = String::new();
    for (storm, outcomes) in storms {
        let naive = &outcomes[of(outcomes, Contender::NaiveRetry)].seeds;
        let ours = &outcomes[of(outcomes, Contender::Buttress)].seeds;
        if back(naive) == "never" {
            let _ = writeln!(
                text,
                "- {}: naive retry never comes back. The server is well again and works without a pause, but {:.1} requests per \
                 call keep its line so long\n  that whoever is answered has gone. buttress is back after {}.",
                storm.name,
                mean(naive, |seed| seed.at_last),
                back(ours),
            );
        }
        for Outcome { contender, seeds } in outcomes {
            let (theirs, ours) = (mean(seeds, |seed| seed.storm), mean(ours, |seed| seed.storm));
            if theirs > ours + 0.005 {
                let _ = writeln!(
                    text,
                    "- {}: not the best: {} has {:.1} % answered while it lasts, buttress {:.1} %.",
                    storm.name,
                    contender.name(),
                    100.0 * theirs,
                    100.0 * ours,
                );
            }
        }
    }
    text
}
