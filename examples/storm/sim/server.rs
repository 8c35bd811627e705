//! A server: so many workers, one line before them, and something that goes wrong for a while.
//!
//! It serves in turn and does not stop for a caller that has gone away, so when a request comes it is known already when it
//! will be answered. That makes it plain arithmetic: no tasks, and time is an argument.

use std::{collections::VecDeque, ops::Range, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    /// Nothing. It may still be asked more than it can do.
    None,
    /// No work goes on. The line is still there, and grows.
    Hangs,
    /// What is begun takes so many times as long.
    Slow(u32),
    /// This share of the answers are errors.
    Errors(f64),
    /// Its workers are lost one by one, until so many are left; at the end it restarts, which takes this long. What it has
    /// then is lost, and it refuses what comes.
    Leaks { left: usize, restart: Duration },
}

/// Trouble, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    pub trouble: Trouble,
    pub from: Duration,
    pub until: Duration,
}

impl Fault {
    pub fn is_on(&self, at: Duration) -> bool {
        (self.from..self.until).contains(&at)
    }

    /// When the work is done that is begun at `start`.
    fn done(&self, start: Duration, work: Duration) -> Duration {
        match self.trouble {
            Trouble::Hangs if start < self.from && start + work > self.from => start + work + (self.until - self.from),
            Trouble::Slow(times) if self.is_on(start) => start + work * times,
            _ => start + work,
        }
    }

    /// When one of `workers` can begin, that is free at `free`.
    fn begins(&self, worker: usize, workers: usize, free: Duration) -> Duration {
        match self.trouble {
            Trouble::Hangs if self.is_on(free) => self.until,
            Trouble::Leaks { left, .. } if worker >= left => {
                let step = (self.down().start - self.from) / (workers - left + 1) as u32;
                let lost = self.from + step * (workers - worker) as u32;
                if (lost..self.until).contains(&free) { self.until } else { free }
            }
            _ => free,
        }
    }

    /// While it restarts.
    fn down(&self) -> Range<Duration> {
        match self.trouble {
            Trouble::Leaks { restart, .. } => self.until - restart..self.until,
            _ => Duration::MAX..Duration::MAX,
        }
    }
}

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub workers: usize,
    /// How many may wait. More are refused at once.
    pub line: usize,
    /// How long one request takes at least, and how long chance adds on average.
    pub work: (Duration, Duration),
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Answered,
    Failed,
    /// It was there when the server went down.
    Lost,
    /// The line was full, or the server was down.
    Refused,
}

/// What became of all of them. Each request has one end, and either heard it or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub reached: u64,
    pub answered: u64,
    pub failed: u64,
    pub lost: u64,
    pub refused: u64,
    /// The caller was still there.
    pub heard: u64,
    /// The caller had gone: done in vain.
    pub unheard: u64,
}

/// The server.
#[derive(Debug)]
pub struct Server {
    size: Size,
    fault: Fault,
    /// When each worker is free.
    free: Vec<Duration>,
    /// When each of those that wait begins.
    waiting: VecDeque<Duration>,
    random: SmallRng,
    pub counts: Counts,
}

impl Server {
    pub fn new(size: Size, fault: Fault, seed: u64) -> Self {
        let free = vec![Duration::ZERO; size.workers];
        let random = SmallRng::seed_from_u64(seed);
        Self { size, fault, free, waiting: VecDeque::new(), random, counts: Counts::default() }
    }

    /// A request comes. How it ends, and when.
    pub fn accept(&mut self, now: Duration) -> (End, Duration) {
        let (end, at) = self.outcome(now);
        self.counts.reached += 1;
        let count = match end {
            End::Answered => &mut self.counts.answered,
            End::Failed => &mut self.counts.failed,
            End::Lost => &mut self.counts.lost,
            End::Refused => &mut self.counts.refused,
        };
        *count += 1;
        (end, at)
    }

    fn outcome(&mut self, now: Duration) -> (End, Duration) {
        let Self { size, fault, free, waiting, random, .. } = self;
        // Drawn in any case, so that all storms and contenders see the same server.
        let (chance, luck) = (random.random::<f64>(), random.random::<f64>());
        while waiting.front().is_some_and(|start| *start <= now) {
            waiting.pop_front();
        }
        let down = fault.down();
        if down.contains(&now) {
            return (End::Refused, now);
        }
        // What it has when it goes down is lost.
        let ends = if now < down.start { down.start } else { Duration::MAX };

        let begins = |(worker, free): (usize, &Duration)| (fault.begins(worker, size.workers, now.max(*free)), worker);
        let (start, worker) = free.iter().enumerate().map(begins).min().expect("it has workers");
        if start > now {
            if waiting.len() >= size.line {
                return (End::Refused, now);
            }
            waiting.push_back(start.min(ends));
        }
        let work = size.work.0 + size.work.1.mul_f64(-(1.0 - chance).ln());
        let done = fault.done(start, work);
        if done > ends {
            free[worker] = down.end;
            return (End::Lost, ends);
        }
        free[worker] = done;
        let failed = matches!(fault.trouble, Trouble::Errors(share) if fault.is_on(start) && luck < share);
        (if failed { End::Failed } else { End::Answered }, done)
    }
}
