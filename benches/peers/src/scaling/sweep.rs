//! A table of the same work at several sizes: a line for each size, a column for each contender.

use std::fmt::Write;

use crate::{
    figures::{self, grouped},
    measure::{Runner, Times, Turn, interleaved},
};

pub struct Sweep {
    pub title: &'static str,
    /// What there are more and more of.
    pub of: &'static str,
    pub sizes: Vec<u64>,
    pub columns: Vec<Column>,
    /// What grows and why, for under the table.
    pub because: &'static str,
}

pub struct Column {
    name: &'static str,
    holds: Holds,
}

enum Holds {
    /// Nanoseconds per call. `None` where it would take too long.
    Cost {
        cells: Vec<Option<(Box<dyn Runner>, u64)>>,
        less: Option<usize>,
    },
    Notes(Vec<String>),
}

impl Column {
    /// `runner` makes the runner of a size, and says how many calls it makes in its turn.
    pub fn cost<R: Runner + 'static>(
        name: &'static str,
        sizes: &[u64],
        runner: impl Fn(u64) -> Option<(R, u64)>,
    ) -> Self {
        let boxed = |(runner, calls)| (Box::new(runner) as Box<dyn Runner>, calls);
        let cells = sizes.iter().map(|size| runner(*size).map(boxed)).collect();
        Self { name, holds: Holds::Cost { cells, less: None } }
    }

    /// Shows what its calls take beyond those of this other column.
    pub fn less(mut self, other: usize) -> Self {
        if let Holds::Cost { less, .. } = &mut self.holds {
            *less = Some(other);
        }
        self
    }

    pub fn notes(name: &'static str, notes: Vec<String>) -> Self {
        Self { name, holds: Holds::Notes(notes) }
    }
}

impl Sweep {
    /// Measures, and prints what was found.
    pub fn table(mut self, rounds: usize) -> String {
        let times = self.measured(rounds);
        let shown: Vec<Vec<Option<f64>>> =
            self.columns.iter().zip(&times).map(|(it, own)| shown(it, own, &times)).collect();
        let mut out = format!("### {}\n\n| {} |", self.title, self.of);
        for column in &self.columns {
            let _ = write!(out, " {} |", column.name);
        }
        out += "\n| ---: |";
        out += &" ---: |".repeat(self.columns.len());
        out.push('\n');
        for (line, size) in self.sizes.iter().enumerate() {
            let _ = write!(out, "| {} |", grouped(*size));
            for (column, shown) in self.columns.iter().zip(&shown) {
                let cell = match &column.holds {
                    Holds::Cost { .. } => shown[line].map_or(String::new(), figures::short),
                    Holds::Notes(notes) => notes[line].clone(),
                };
                let _ = write!(out, " {cell} |");
            }
            out.push('\n');
        }
        let _ = writeln!(out, "\nFrom first to last: {}. {}", self.growth(&shown), self.because);
        out
    }

    /// Each column's times, by size.
    fn measured(&mut self, rounds: usize) -> Vec<Vec<Option<Times>>> {
        let mut runners: Vec<(&mut dyn Runner, Turn)> = Vec::new();
        for column in &mut self.columns {
            if let Holds::Cost { cells, .. } = &mut column.holds {
                runners
                    .extend(cells.iter_mut().flatten().map(|(runner, calls)| (&mut **runner as _, Turn::Of(*calls))));
            }
        }
        let mut times = interleaved(&mut runners, rounds).into_iter();
        drop(runners);
        let of = |column: &Column| match &column.holds {
            Holds::Cost { cells, .. } => cells.iter().map(|cell| cell.as_ref().and_then(|_| times.next())).collect(),
            Holds::Notes(_) => Vec::new(),
        };
        self.columns.iter().map(of).collect()
    }

    fn growth(&self, shown: &[Vec<Option<f64>>]) -> String {
        let ratio = |(column, shown): (&Column, &Vec<Option<f64>>)| {
            let mut known = shown.iter().flatten();
            let first = known.next()?;
            Some(format!("{} {:.1}×", column.name, known.next_back()? / first))
        };
        self.columns.iter().zip(shown).filter_map(ratio).collect::<Vec<_>>().join(", ")
    }
}

/// The medians of a column.
fn shown(column: &Column, own: &[Option<Times>], all: &[Vec<Option<Times>>]) -> Vec<Option<f64>> {
    let less = match column.holds {
        Holds::Cost { less, .. } => less,
        Holds::Notes(_) => None,
    };
    let median = |(line, times): (usize, &Option<Times>)| {
        let times = times.as_ref()?;
        Some(match less.and_then(|other| all[other][line].as_ref()) {
            Some(other) => times.beyond(other).median(),
            None => times.median(),
        })
    };
    own.iter().enumerate().map(median).collect()
}
