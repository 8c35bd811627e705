//! Who goes through the storms. They see the same servers, make the same number of attempts and give each the same time.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use buttress::CircuitBreaker;

use super::{
    hosts::{Failure, Hosts},
    ours,
    storms::{ATTEMPT, ATTEMPTS},
    tower_stack,
};

/// One call of a client.
pub type Calling = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// Makes the calls of one client: a process, with its state.
pub type Client = Arc<dyn Fn() -> Calling + Send + Sync>;

/// Between the attempts of those who think of nothing.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// Asks once and waits.
    NoPolicy,
    /// Gives up soon and asks again at once.
    NaiveRetry,
    /// tower's own timeout, concurrency limit, retry and budget.
    Tower,
    /// A policy of this crate.
    Buttress,
    /// The same, with the circuit breaker as it is if nothing is set.
    Defaults,
}

impl Contender {
    pub const ALL: [Self; 5] = [Self::NoPolicy, Self::NaiveRetry, Self::Tower, Self::Buttress, Self::Defaults];

    pub fn name(self) -> &'static str {
        match self {
            Self::NoPolicy => "no policy",
            Self::NaiveRetry => "naive retry",
            Self::Tower => "tower's layers",
            Self::Buttress => "buttress",
            Self::Defaults => "buttress, breaker's defaults",
        }
    }

    /// One client of those servers.
    pub fn client(self, hosts: Hosts, seed: u64) -> Client {
        match self {
            Self::NoPolicy => Arc::new(move || Box::pin(hosts.clone().ask(hosts.any()))),
            Self::NaiveRetry => Arc::new(move || Box::pin(naive(hosts.clone()))),
            Self::Tower => tower_stack::client(hosts, seed),
            Self::Buttress => ours::client(hosts, ours::breaker(), seed),
            Self::Defaults => ours::client(hosts, CircuitBreaker::builder(), seed),
        }
    }
}

async fn naive(hosts: Hosts) -> Result<(), Failure> {
    let mut attempt = 1;
    loop {
        let answer = tokio::time::timeout(ATTEMPT, hosts.clone().ask(hosts.any())).await;
        match answer.unwrap_or(Err(Failure::TimedOut)) {
            Err(_) if attempt < ATTEMPTS => attempt += 1,
            answer => return answer,
        }
        tokio::time::sleep(PAUSE).await;
    }
}
