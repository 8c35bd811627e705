//! How the cost of a call grows: with tasks, with the breaker's window, with keys, with the queue.

mod keys;
mod queue;
mod random;
mod sweep;
mod tasks;
mod windows;

use sweep::Sweep;

use crate::{machine, subject::Runtimes};

/// Prints each table when it is measured, since the next may take seconds.
pub fn print(runtimes: &Runtimes, rounds: usize) {
    let sweeps: [fn(&Runtimes) -> Sweep; 4] = [tasks::sweep, windows::sweep, keys::sweep, queue::sweep];
    for sweep in sweeps {
        println!("{}", sweep(runtimes).table(rounds));
    }
    println!("Medians of {rounds} rounds. {}", machine::described());
}
