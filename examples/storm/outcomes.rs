//! All the runs there are to make, on as many threads as there are cores.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    sim::{
        arrivals::arrivals, clients::run, contenders::Contender, faults::Fault, figures::Figures, oracle, setup::Setup,
    },
    table::{Outcome, Row},
};

/// Sends each of them through every fault, once for each seed from 1 on.
///
/// # Errors
/// If there is no runtime to be had.
pub fn rows(setup: &Setup, contenders: &[Contender], seeds: u64) -> io::Result<Vec<Row>> {
    let weather: Vec<(usize, u64)> =
        (0..Fault::ALL.len()).flat_map(|at| (1..=seeds).map(move |seed| (at, seed))).collect();
    let made = on_all_cores(weather.len(), |at| {
        let (fault, seed) = weather[at];
        figures(setup, &Fault::ALL[fault], contenders, seed)
    });
    let mut made = made.into_iter();
    Fault::ALL
        .into_iter()
        .map(|fault| {
            let seeds: Vec<Vec<Figures>> = made.by_ref().take(seeds as usize).collect::<io::Result<_>>()?;
            let outcome = |(at, contender): (usize, &Contender)| Outcome {
                contender: *contender,
                seeds: seeds.iter().map(|all| all[at].clone()).collect(),
            };
            Ok((fault, contenders.iter().enumerate().map(outcome).collect()))
        })
        .collect()
}

fn figures(setup: &Setup, fault: &Fault, contenders: &[Contender], seed: u64) -> io::Result<Vec<Figures>> {
    let oracle = oracle::serves(setup, fault, &arrivals(setup, fault, seed), seed);
    contenders.iter().map(|who| Ok(Figures::of(&run(setup, fault, who, seed)?, &oracle))).collect()
}

/// Does so many things, each once, and gives what came of them in order.
fn on_all_cores<T: Send>(count: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    // Relaxed: it hands out numbers and nothing else.
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let result = task(at);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
