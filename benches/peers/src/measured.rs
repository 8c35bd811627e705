//! What the subjects were found to cost.

use std::collections::HashMap;

use crate::{
    allocations::{self, Allocations},
    measure::{Runner, Times, interleaved},
    subject::{Row, Subject, Way},
};

pub struct All<'a> {
    pub subjects: Vec<Measured<'a>>,
    pub rounds: usize,
}

pub struct Measured<'a> {
    pub subject: &'a Subject,
    times: HashMap<Way, Times>,
    /// Of [`ALLOCATING`] calls by hand.
    allocations: Option<Allocations>,
}

const ALLOCATING: u64 = 1_000;

impl<'a> All<'a> {
    /// Of all, in turns.
    pub fn measure(subjects: &'a mut [Subject], rounds: usize) -> Self {
        let allocations: Vec<_> = subjects.iter_mut().map(allocated).collect();
        let mut runners: Vec<(&mut dyn Runner, _)> = Vec::new();
        for subject in subjects.iter_mut() {
            runners.extend(subject.ways.iter_mut().map(|(way, runner)| (&mut **runner as &mut dyn Runner, way.turn())));
        }
        let mut times = interleaved(&mut runners, rounds).into_iter();
        drop(runners);
        let measured = subjects.iter().zip(allocations).map(|(subject, allocations)| {
            let times = subject.ways.iter().map(|(way, _)| *way).zip(times.by_ref()).collect();
            Measured { subject, times, allocations }
        });
        Self { subjects: measured.collect(), rounds }
    }

    /// Of a row, in their order.
    pub fn row(&self, row: Row) -> impl Iterator<Item = &Measured<'a>> {
        self.subjects.iter().filter(move |it| it.subject.row == row)
    }

    /// What the others of a row are compared with: ours, where there is one.
    pub fn first(&self, row: Row) -> Option<&Measured<'a>> {
        self.row(row).next()
    }

    /// The rows, each once.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.subjects.iter().map(|it| it.subject.row).collect();
        rows.dedup();
        rows
    }

    /// The subject's scaling as a share of what the service alone has.
    pub fn share(&self, it: &Measured<'_>) -> Option<f64> {
        Some(it.scaling()? / self.first(Row::Bare)?.scaling()?)
    }
}

impl Measured<'_> {
    pub fn times(&self, way: Way) -> Option<&Times> {
        self.times.get(&way)
    }

    /// What a call takes beyond one that is ready at once, if it is pending once.
    pub fn pending_adds(&self) -> Option<Times> {
        Some(self.times(Way::Pending)?.beyond(self.times(Way::Ready)?))
    }

    /// How many times the calls of one worker two workers make.
    pub fn scaling(&self) -> Option<f64> {
        Some(self.times(Way::OneWorker)?.to(self.times(Way::TwoWorkers)?))
    }

    /// Allocations of a call, and their bytes.
    pub fn allocations(&self) -> Option<(f64, f64)> {
        let each = |total| total as f64 / ALLOCATING as f64;
        self.allocations.map(|it| (each(it.count), each(it.bytes)))
    }
}

fn allocated(subject: &mut Subject) -> Option<Allocations> {
    let (_, runner) = subject.ways.iter_mut().find(|(way, _)| *way == Way::Ready)?;
    runner.run(ALLOCATING);
    Some(allocations::of(|| {
        runner.run(ALLOCATING);
    }))
}
