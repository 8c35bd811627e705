//! The servers as a client sees them: asked by a future, on tokio's clock.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, sleep_until};

use super::{
    server::{Counts, End, Server},
    storms::{NETWORK, PATIENCE, Storm, Times},
};

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server says so, or has broken the connection.
    Server,
    /// It took too long.
    TimedOut,
    /// The client's own layers did not let it out.
    Held,
}

/// The servers of one storm.
#[derive(Clone, Debug)]
pub struct Hosts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    began: Instant,
    servers: Vec<Mutex<Server>>,
    random: Mutex<SmallRng>,
    /// Requests, second by second.
    asked: Mutex<Vec<u64>>,
}

impl Hosts {
    #[allow(clippy::disallowed_methods, reason = "the clock of the simulation begins here")]
    pub fn new(storm: &Storm, times: Times, seed: u64) -> Self {
        let server = |host| Mutex::new(Server::new(storm.size(), storm.fault(host, times), seed + host as u64));
        Self(Arc::new(Shared {
            began: Instant::now(),
            servers: (0..storm.hosts).map(server).collect(),
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            asked: Mutex::new(vec![0; (times.end + PATIENCE).as_secs() as usize + 1]),
        }))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.servers.len()
    }

    /// Since the storm's clock began.
    pub fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// When the clock shows this.
    pub fn at(&self, time: Duration) -> Instant {
        self.0.began + time
    }

    /// One of them, by chance.
    pub fn any(&self) -> usize {
        lock(&self.0.random).random_range(0..self.len())
    }

    /// One request. The server goes on with it if this future is dropped.
    pub async fn ask(self, host: usize) -> Result<(), Failure> {
        let now = self.now();
        let (end, at) = lock(&self.0.servers[host]).accept(now);
        lock(&self.0.asked)[now.as_secs() as usize] += 1;
        let mut caller = Caller { server: &self.0.servers[host], hears: false };
        sleep_until(self.at(at) + NETWORK).await;
        caller.hears = true;
        match end {
            End::Answered => Ok(()),
            End::Failed | End::Lost | End::Refused => Err(Failure::Server),
        }
    }

    /// Requests that reached them, second by second.
    pub fn asked(&self) -> Vec<u64> {
        lock(&self.0.asked).clone()
    }

    /// What each of them counted.
    pub fn counts(&self) -> Vec<Counts> {
        self.0.servers.iter().map(|server| lock(server).counts).collect()
    }
}

/// Who waits for an answer; tells, when it goes, whether it heard one.
struct Caller<'a> {
    server: &'a Mutex<Server>,
    hears: bool,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        let counts = &mut lock(self.server).counts;
        *(if self.hears { &mut counts.heard } else { &mut counts.unheard }) += 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
