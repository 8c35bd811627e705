//! The figures as a table, and what they say in words.

use std::{fmt::Write, time::Duration};

use super::{
    Outcome,
    sim::{contenders::Contender, figures::Figures, storms::Storm},
};

/// One column.
struct Column {
    title: &'static str,
    figure: fn(&Figures) -> f64,
    unit: Unit,
}

enum Unit {
    /// More is better.
    Percent,
    /// Less is better.
    Millis,
    /// Less is better.
    Times,
}

const COLUMNS: [Column; 6] = [
    Column { title: "answered in the storm", figure: |seed| seed.storm, unit: Unit::Percent },
    Column { title: "answered after it", figure: |seed| seed.after, unit: Unit::Percent },
    Column { title: "median", figure: |seed| seed.median.as_secs_f64(), unit: Unit::Millis },
    Column { title: "p99", figure: |seed| seed.p99.as_secs_f64(), unit: Unit::Millis },
    Column { title: "requests per call in the storm", figure: |seed| seed.amplification, unit: Unit::Times },
    Column { title: "a minute later", figure: |seed| seed.at_last, unit: Unit::Times },
];

impl Column {
    fn mean(&self, seeds: &[Figures]) -> f64 {
        seeds.iter().map(self.figure).sum::<f64>() / seeds.len() as f64
    }

    fn show(&self, seeds: &[Figures]) -> String {
        let mean = self.mean(seeds);
        match self.unit {
            Unit::Percent => format!("{:.1} %", 100.0 * mean),
            Unit::Millis => format!("{:.0} ms", 1000.0 * mean),
            Unit::Times => format!("{mean:.2}"),
        }
    }

    /// Whether one is better than the other by more than chance has it.
    fn is_better(&self, one: &[Figures], other: &[Figures]) -> bool {
        let (one, other) = (self.mean(one), self.mean(other));
        match self.unit {
            Unit::Percent => one > other + 0.005,
            Unit::Millis => one < other * 0.9 && one < other - 0.005,
            Unit::Times => one < other - 0.01,
        }
    }
}

/// In Markdown.
pub fn table(storms: &[(Storm, Vec<Outcome>)]) -> String {
    let titles: String = COLUMNS.iter().map(|column| format!(" {} |", column.title)).collect();
    let mut table =
        format!("| storm | |{titles} back after |\n| --- | --- |{} ---: |\n", " ---: |".repeat(COLUMNS.len()));
    for (storm, outcomes) in storms {
        let mut name = format!("**{}**", storm.name);
        for Outcome { contender, seeds } in outcomes {
            let cells: String = COLUMNS.iter().map(|column| format!(" {} |", column.show(seeds))).collect();
            let _ = writeln!(table, "| {name} | {} |{cells} {} |", contender.name(), back(seeds));
            name.clear();
        }
    }
    table
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

/// What it comes to; the bad news too.
pub fn account(storms: &[(Storm, Vec<Outcome>)]) -> String {
    let mut text = String::new();
    for (storm, outcomes) in storms {
        let of =
            |who| outcomes.iter().find(|outcome| outcome.contender == who).map_or(&[][..], |outcome| &outcome.seeds);
        let (naive, ours) = (of(Contender::NaiveRetry), of(Contender::Buttress));
        if back(naive) == "never" {
            let [.., requests] = &COLUMNS;
            let _ = writeln!(
                text,
                "- {}: naive retry stays down. The server is well again and never idle, but with {} requests per call its line is \
                 so long that whoever is answered has gone. buttress is back after {}.",
                storm.name,
                requests.show(naive),
                back(ours),
            );
        }
        for column in &COLUMNS {
            let others = outcomes.iter().filter(|outcome| outcome.contender != Contender::Defaults);
            let better: Vec<_> = others
                .filter(|other| column.is_better(&other.seeds, ours))
                .map(|other| format!("{} has {}", other.contender.name(), column.show(&other.seeds)))
                .collect();
            if !better.is_empty() {
                let (storm, title, better) = (storm.name, column.title, better.join(", "));
                let _ = writeln!(
                    text,
                    "- {storm}, {title}: buttress is not the best with {}; {better}.",
                    column.show(ours)
                );
            }
        }
    }
    text
}
