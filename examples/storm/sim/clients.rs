//! Who calls: an open loop, in which calls come when they come, whether the ones before were answered or not.

use std::{io, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    runtime::Builder,
    task::JoinSet,
    time::{sleep_until, timeout},
};

use super::{
    contenders::Contender,
    hosts::{Failure, Hosts},
    server::Counts,
    storms::{CLIENTS, PATIENCE, RATE, Storm, Times},
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
    /// What each server counted.
    pub hosts: Vec<Counts>,
    /// What reached them, second by second.
    pub asked: Vec<u64>,
}

/// Sends one contender through one storm. The same seed has the same calls come at the same times, and the same end.
///
/// # Errors
/// If there is no runtime to be had.
pub fn run(storm: &Storm, contender: Contender, times: Times, seed: u64) -> io::Result<Run> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
    Ok(runtime.block_on(weather(storm, contender, times, seed)))
}

async fn weather(storm: &Storm, contender: Contender, times: Times, seed: u64) -> Run {
    let hosts = Hosts::new(storm, times, seed);
    let clients: Vec<_> = (0..CLIENTS).map(|number| contender.client(hosts.clone(), seed * CLIENTS + number)).collect();
    let mut calls = JoinSet::new();
    for (number, (began, client)) in arrivals(storm, times, seed).into_iter().enumerate() {
        sleep_until(hosts.at(began)).await;
        let (client, hosts) = (clients[client].clone(), hosts.clone());
        calls.spawn(async move {
            let began = hosts.now();
            let end = timeout(PATIENCE, client()).await.unwrap_or(Err(Failure::TimedOut));
            (number, Call { began, took: hosts.now() - began, end })
        });
    }
    let mut calls = calls.join_all().await;
    calls.sort_unstable_by_key(|(number, _)| *number);
    Run { calls: calls.into_iter().map(|(_, call)| call).collect(), hosts: hosts.counts(), asked: hosts.asked() }
}

/// When calls come, and to which client: by Poisson's law at the usual rate, and while the storm lasts as many again as make up
/// its load.
fn arrivals(storm: &Storm, times: Times, seed: u64) -> Vec<(Duration, usize)> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut arrivals = Vec::new();
    let streams = [(Duration::ZERO, times.end, RATE), (times.from, times.until, RATE * f64::from(storm.load - 1))];
    let gap = |random: &mut SmallRng, rate| Duration::from_secs_f64(-(1.0 - random.random::<f64>()).ln() / rate);
    for (from, until, rate) in streams.into_iter().filter(|(.., rate)| *rate > 0.0) {
        let mut at = from + gap(&mut random, rate);
        while at < until {
            arrivals.push((at, random.random_range(0..CLIENTS as usize)));
            at += gap(&mut random, rate);
        }
    }
    arrivals.sort_unstable();
    arrivals
}
