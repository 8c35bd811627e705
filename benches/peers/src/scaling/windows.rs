//! More and more calls in a breaker's window.

use std::time::{Duration, Instant};

use buttress::{CircuitBreaker, CircuitBreakerBuilder};
use tokio::runtime::Runtime;

use super::sweep::{Column, Sweep};
use crate::{
    inner::{Client, FailsOdd},
    measure::{Ends, Runner, one},
    subject::Runtimes,
    subjects::{ours, recloser, tower_resilience},
};

/// The largest window of calls that our builder accepts.
const LARGEST: u64 = 1_048_575;
/// tower-resilience goes through all calls of its window in each call: more would take seconds to record.
const BEARABLE: u64 = 10_000;
/// Every second call fails in a turn: nothing opens at this rate.
const RATE: f64 = 0.9;
/// So many are timed at least: reading the clock twice hardly shows then.
const FEWEST: u64 = 100;
/// So many are recorded in a turn, over all of its pieces.
const RECORDED: u64 = 20_000;

pub fn sweep(runtimes: &Runtimes) -> Sweep {
    let last = |calls| ours::breaker_of(settings().window_calls(calls as usize), FailsOdd);
    let time = |_| ours::breaker_of(settings(), FailsOdd);
    let ring = |calls| recloser::breaker_of(calls as usize, RATE as f32, FailsOdd);
    let log = |_| tower_resilience::breaker_of_time_at(RATE, FailsOdd);
    assert!(settings().window_calls(LARGEST as usize + 1).build().is_err());

    let sizes = vec![10, 100, 1_000, 10_000, 100_000, LARGEST];
    let runtime = runtimes.by_hand;
    let columns = [
        pair(["buttress, last n", "a failure"], &sizes, LARGEST, last, runtime),
        pair(["buttress, 10 s", "a failure"], &sizes, LARGEST, time, runtime),
        pair(["recloser, last n", "a failure"], &sizes, LARGEST, ring, runtime),
        pair(["tower-resilience, 10 s", "a failure"], &sizes, BEARABLE, log, runtime),
    ];
    let columns = columns.into_iter().enumerate();
    Sweep {
        title: "The breaker's window: ns per call that succeeds, and per call that fails, upon which it is weighed",
        of: "calls in the window",
        sizes,
        // A failure is what a pair takes beyond a success, which stands to its left.
        columns: columns.flat_map(|(at, [success, failure])| [success, failure.less(2 * at)]).collect(),
        because: "Ours is flat: a window of time is ten counts for each thread's slot whatever is in it, and a window of calls is a \
                  ring with its sum beside it, of which each call replaces one entry. (1,048,575 is the largest that the \
                  builder accepts: 4 MB, which pass through the caches in order, so that they are fetched ahead.) A \
                  failure reads the clock, adds up the counts, and has the next success end its streak; with more cores a \
                  window of time has more counts to add. recloser's ring is flat as ours; tower-resilience goes through \
                  all calls of the window in each call.",
    }
}

fn settings() -> CircuitBreakerBuilder {
    CircuitBreaker::builder().failure_rate(RATE).min_calls(10)
}

/// Successes; and pairs, of a failure and a success.
fn pair<S: Client>(
    names: [&'static str; 2],
    sizes: &[u64],
    largest: u64,
    make: impl Fn(u64) -> S + Copy + 'static,
    runtime: &'static Runtime,
) -> [Column; 2] {
    [false, true].map(|pairs| {
        Column::cost(names[usize::from(pairs)], sizes, |recorded| {
            let filled = Filled { make, recorded, pairs, runtime };
            let calls = filled.piece() * (RECORDED / recorded).clamp(2, 50);
            (recorded <= largest).then_some((filled, calls))
        })
    })
}

/// A breaker that is made anew for each piece, and has recorded so many successes before it is timed.
struct Filled<M> {
    make: M,
    recorded: u64,
    pairs: bool,
    runtime: &'static Runtime,
}

impl<S: Client, M: Fn(u64) -> S> Runner for Filled<M> {
    fn run(&mut self, calls: u64) -> Duration {
        (0..calls / self.piece()).map(|_| self.timed()).sum()
    }
}

impl<S: Client, M: Fn(u64) -> S> Filled<M> {
    /// How many are timed at a time: few, so that the window holds hardly more when they are over.
    fn piece(&self) -> u64 {
        (self.recorded / 10).max(FEWEST)
    }

    fn timed(&self) -> Duration {
        let mut service = (self.make)(self.recorded);
        for _ in 0..self.recorded {
            one(&mut service, 0, Ends::Answered, self.runtime);
        }
        let start = Instant::now();
        for _ in 0..self.piece() {
            if self.pairs {
                one(&mut service, 1, Ends::Refused, self.runtime);
            }
            // Also what tells a failure from the refusal of an open breaker, which would refuse this too.
            one(&mut service, 0, Ends::Answered, self.runtime);
        }
        start.elapsed()
    }
}
