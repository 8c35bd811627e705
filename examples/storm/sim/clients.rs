//! Sends the clients of one contender through one fault.

use std::{io, time::Duration};

use tokio::{
    runtime::Builder,
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

use super::{
    arrivals::{Arrival, arrivals},
    contenders::{Contender, Tick},
    faults::Fault,
    hosts::{Failure, Hosts},
    server::Counts,
    setup::{PATIENCE, Setup},
};

/// One call, and how it ended. Each ends in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub began: Duration,
    pub took: Duration,
    pub end: Result<(), Failure>,
}

/// All that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// In the order in which they came.
    pub calls: Vec<Call>,
    /// What each host counted.
    pub hosts: Vec<Counts>,
    /// Requests that were sent, second by second.
    pub asked: Vec<u64>,
}

/// Sends one contender through one fault. The same seed has the same calls come at the same times, and the same end.
///
/// # Errors
/// If there is no runtime to be had.
pub fn run(setup: &Setup, fault: &Fault, contender: &Contender, seed: u64) -> io::Result<Run> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let mut result = Run { calls: Vec::new(), hosts: Vec::new(), asked: Vec::new() };
    (contender.clock)(&mut |tick| {
        result = runtime.block_on(async {
            tokio::select! { biased;
                run = weather(setup, fault, contender, seed) => run,
                () = ticking(tick) => unreachable!("a clock goes on for ever"),
            }
        });
    });
    Ok(result)
}

async fn weather(setup: &Setup, fault: &Fault, contender: &Contender, seed: u64) -> Run {
    let hosts = Hosts::new(setup, fault, seed);
    let clients = (contender.clients)(&hosts, setup, seed);
    let mut calls = JoinSet::new();
    for (number, Arrival { at, client }) in arrivals(setup, fault, seed).into_iter().enumerate() {
        sleep_until(hosts.at(at)).await;
        let (client, hosts) = (clients[client].clone(), hosts.clone());
        calls.spawn(async move {
            let end = timeout(PATIENCE, client()).await.unwrap_or(Err(Failure::TimedOut));
            (number, Call { began: at, took: hosts.now() - at, end })
        });
    }
    let mut calls = calls.join_all().await;
    calls.sort_unstable_by_key(|(number, _)| *number);
    Run { calls: calls.into_iter().map(|(_, call)| call).collect(), hosts: hosts.counts(), asked: hosts.asked() }
}

/// Tells a clock that is not tokio's, each millisecond of tokio's.
async fn ticking(tick: Tick<'_>) {
    const STEP: Duration = Duration::from_millis(1);
    let Some(tick) = tick else { return std::future::pending().await };
    loop {
        sleep(STEP).await;
        tick(STEP);
    }
}
