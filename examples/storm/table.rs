//! The figures as tables in Markdown: faults are rows, contenders columns.

use std::{fmt::Write, time::Duration};

use super::sim::{contenders::Contender, faults::Fault, figures::Figures};

/// What became of one contender in one fault, for each seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub contender: Contender,
    pub seeds: Vec<Figures>,
}

impl Outcome {
    pub fn mean(&self, figure: impl Fn(&Figures) -> f64) -> f64 {
        mean(self.seeds.iter().map(figure))
    }

    /// On average; none if it is not back before the end for some seed.
    pub fn back(&self) -> Option<f64> {
        let times: Option<Vec<Duration>> = self.seeds.iter().map(|seed| seed.back).collect();
        Some(mean(times?.iter().map(Duration::as_secs_f64)))
    }
}

/// One fault, and how all came through, always in the same order.
pub type Row = (Fault, Vec<Outcome>);

/// The faults and what each does.
pub fn faults() -> String {
    let rows: String = Fault::ALL.iter().map(|fault| format!("| {} | {} |\n", fault.name, fault.about)).collect();
    format!("| fault | from second 20 to 50 |\n| --- | --- |\n{rows}")
}

/// How much of what the oracle serves, with what it comes to over all faults.
pub fn served(rows: &[Row]) -> String {
    let mut table = head("answered, of what the oracle serves", rows);
    body(&mut table, rows, |outcome| percent(outcome.mean(|seed| seed.of_possible)));
    line(&mut table, "**mean**", each(rows, |all| format!("**{}**", percent(mean(all.map(of_possible))))));
    // Of an outage that is total the oracle serves its last second, as that can wait for the end of it.
    let lasts: Vec<Row> = rows.iter().filter(|(fault, _)| !fault.is_total()).cloned().collect();
    line(&mut table, "mean, but for refuse and hang", each(&lasts, |all| percent(mean(all.map(of_possible)))));
    line(&mut table, "mean load", each(rows, |all| format!("{:.2}", mean(all.map(load)))));
    line(
        &mut table,
        "not back within 18 s",
        each(rows, |all| match all.filter(|one| one.back().is_none()).count() {
            0 => "never".into(),
            1 => "after 1 fault".into(),
            faults => format!("after {faults} faults"),
        }),
    );
    let lost = |one: &Outcome| one.mean(|seed| seed.lost_in_calm);
    line(&mut table, "lost in the calm, per million", each(rows, |all| format!("{:.0}", 1e6 * mean(all.map(lost)))));
    table
}

/// Requests to calls.
pub fn loads(rows: &[Row]) -> String {
    let mut table = head("requests per call during the fault", rows);
    body(&mut table, rows, |outcome| format!("{:.2}", load(outcome)));
    table
}

/// How soon all is well.
pub fn backs(rows: &[Row]) -> String {
    let mut table = head("back after", rows);
    body(&mut table, rows, |outcome| outcome.back().map_or("> 18 s".into(), |secs| format!("{secs:.1} s")));
    table
}

pub fn of_possible(outcome: &Outcome) -> f64 {
    outcome.mean(|seed| seed.of_possible)
}

pub fn load(outcome: &Outcome) -> f64 {
    outcome.mean(|seed| seed.load)
}

pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

pub fn mean(all: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = all.fold((0.0, 0_u32), |(sum, count), one| (sum + one, count + 1));
    sum / f64::from(count)
}

/// Over the faults, for each contender.
fn each<'a>(rows: &'a [Row], cell: impl Fn(&mut dyn Iterator<Item = &'a Outcome>) -> String) -> Vec<String> {
    let contenders = rows.first().map_or(0, |(_, outcomes)| outcomes.len());
    (0..contenders).map(|at| cell(&mut rows.iter().map(|(_, outcomes)| &outcomes[at]))).collect()
}

fn head(title: &str, rows: &[Row]) -> String {
    let names = each(rows, |all| all.next().map_or(String::new(), |one| one.contender.name.into()));
    let rule = " ---: |".repeat(names.len());
    let mut table = String::new();
    line(&mut table, title, names);
    let _ = writeln!(table, "| --- |{rule}");
    table
}

fn body(table: &mut String, rows: &[Row], cell: fn(&Outcome) -> String) {
    for (fault, outcomes) in rows {
        line(table, fault.name, outcomes.iter().map(cell).collect());
    }
}

fn line(table: &mut String, title: &str, cells: Vec<String>) {
    let _ = writeln!(table, "| {title} | {} |", cells.join(" | "));
}
