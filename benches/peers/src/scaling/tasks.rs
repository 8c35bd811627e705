//! More and more tasks that call at a time.

use ::tokio::runtime::Runtime;

use super::sweep::{Column, Sweep};
use crate::{
    inner::{Client, PendingOnce},
    measure::{Ends, InTasks},
    subject::Runtimes,
    subjects::{ours, tokio, tower},
};

/// In a turn, of all tasks together: the same at each size, and so many that making the tasks hardly shows.
const CALLS: u64 = 500_000;
/// More than there are tasks: nobody waits.
const LIMIT: usize = 20_000;

pub fn sweep(runtimes: &Runtimes) -> Sweep {
    let sizes = vec![1, 10, 100, 1_000, 10_000];
    let two = runtimes.two;
    let columns = vec![
        column("the service alone", &sizes, ours::bare(PendingOnce::new()), two),
        column("buttress, whole policy", &sizes, ours::policy_of(LIMIT, PendingOnce::new()), two),
        column("tower: retry, limit, timeout", &sizes, tower::policy_of(LIMIT, PendingOnce::new()), two),
        column("tokio, `timeout` alone", &sizes, tokio::timeout(PendingOnce::new()), two),
    ];
    Sweep {
        title: "Tasks: ns per call, on two workers, pending once",
        of: "tasks",
        sizes,
        columns,
        because: "Flat: nothing of ours is gone through by number of tasks. 1 task keeps but one worker busy. What jumps \
                  about is the timer that each pending call arms: tokio keeps all of them behind one lock, at which the two \
                  workers meet in spells. 10,000 tasks no longer fit into the caches next to the cores, and each makes but \
                  50 calls for which it is spawned.",
    }
}

fn column(name: &'static str, sizes: &[u64], service: impl Client, runtime: &'static Runtime) -> Column {
    Column::cost(name, sizes, |tasks| {
        Some((InTasks { service: service.clone(), ends: Ends::Answered, runtime, tasks }, CALLS))
    })
}
