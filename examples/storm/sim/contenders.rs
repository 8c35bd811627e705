//! Who goes through the storms. They see the same service, and users with the same patience.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use super::{
    hosts::{Failure, Hosts},
    ours,
    setup::{ATTEMPT, ATTEMPTS, Setup},
    tower_stack,
};

/// One call of a client.
pub type Calling = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// Makes the calls of one client: a process, with its state.
pub type Client = Arc<dyn Fn() -> Calling + Send + Sync>;

/// Moves a clock on that is not tokio's, if there is one.
pub type Tick<'a> = Option<&'a mut dyn FnMut(Duration)>;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Contender {
    pub name: &'static str,
    /// All its clients of that service, inside of the runtime.
    pub clients: fn(&Hosts, &Setup, u64) -> Vec<Client>,
    /// Has the simulation run, with whatever must be told the time.
    pub clock: fn(&mut dyn FnMut(Tick<'_>)),
}

/// Between the attempts of those who think of nothing.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks once and waits.
pub const NO_POLICY: Contender = Contender {
    name: "no policy",
    clients: |hosts, setup, seed| each(hosts, setup, seed, |hosts, _| Arc::new(move || Box::pin(hosts.clone().ask()))),
    clock: tokios,
};

/// Gives up soon and asks again at once.
pub const NAIVE_RETRY: Contender = Contender {
    name: "naive retry",
    clients: |hosts, setup, seed| each(hosts, setup, seed, |hosts, _| Arc::new(move || Box::pin(naive(hosts.clone())))),
    clock: tokios,
};

/// tower's own timeout, concurrency limit, retry and budget.
pub const TOWER: Contender = Contender {
    name: "tower",
    clients: |hosts, setup, seed| each(hosts, setup, seed, tower_stack::client),
    clock: tokios,
};

/// A policy of this crate.
pub const BUTTRESS: Contender =
    Contender { name: "buttress", clients: |hosts, setup, seed| each(hosts, setup, seed, ours::client), clock: tokios };

/// One after the other, each with a seed of its own.
pub fn each(hosts: &Hosts, setup: &Setup, seed: u64, client: fn(Hosts, u64) -> Client) -> Vec<Client> {
    (0..setup.clients as u64).map(|number| client(hosts.clone(), seed * 1_000 + number)).collect()
}

/// There is no clock but tokio's.
pub fn tokios(run: &mut dyn FnMut(Tick<'_>)) {
    run(None);
}

async fn naive(hosts: Hosts) -> Result<(), Failure> {
    let mut attempt = 1;
    loop {
        let answer = tokio::time::timeout(ATTEMPT, hosts.clone().ask()).await;
        match answer.unwrap_or(Err(Failure::TimedOut)) {
            Err(_) if attempt < ATTEMPTS => attempt += 1,
            answer => return answer,
        }
        tokio::time::sleep(PAUSE).await;
    }
}
