//! The hosts as a client sees them: asked by a future, on tokio's clock.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};

use super::{
    faults::Fault,
    server::{Begun, Caller, Counts, Request, Server},
    setup::{END, ONE_WAY, PATIENCE, Setup, WORKERS},
};

/// Sets their chances apart from others of the same seed.
const STREAM: u64 = 3 << 32;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The service says so.
    Server,
    /// It says so at once, and to come back after [`HINT`](super::setup::HINT).
    ComeBack,
    /// It took too long.
    TimedOut,
    /// The client's own layers did not let it out.
    Held,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Server => "the service failed",
            Self::ComeBack => "the service has no time now",
            Self::TimedOut => "it took too long",
            Self::Held => "it was not let out",
        })
    }
}

impl std::error::Error for Failure {}

/// Tells whoever asks whether it went well.
type Asker = oneshot::Sender<bool>;

impl Caller for Asker {
    fn has_gone(&self) -> bool {
        self.is_closed()
    }
}

/// The service: its hosts, behind a balancer that chooses by chance.
#[derive(Clone, Debug)]
pub struct Hosts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    began: Instant,
    setup: Setup,
    servers: Vec<Mutex<Server<Asker>>>,
    chance: Mutex<SmallRng>,
    /// Requests that were sent, second by second.
    asked: Mutex<Vec<u64>>,
}

impl Hosts {
    #[allow(clippy::disallowed_methods, reason = "the clock of the simulation begins here")]
    pub fn new(setup: &Setup, fault: &Fault, seed: u64) -> Self {
        let workers = WORKERS / fault.hosts;
        Self(Arc::new(Shared {
            began: Instant::now(),
            setup: *setup,
            servers: (0..fault.hosts)
                .map(|host| Mutex::new(Server::new(*fault, host, workers, setup.notices)))
                .collect(),
            chance: Mutex::new(SmallRng::seed_from_u64(seed ^ STREAM)),
            asked: Mutex::new(vec![0; (END + PATIENCE).as_secs() as usize + 1]),
        }))
    }

    /// Since the simulation began.
    pub fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// When the clock shows this.
    pub fn at(&self, time: Duration) -> Instant {
        self.0.began + time
    }

    /// One request, to one of the hosts.
    ///
    /// # Errors
    /// If it is refused or fails.
    pub async fn ask(self) -> Result<(), Failure> {
        let (host, work, luck) = {
            let chance = &mut *lock(&self.0.chance);
            let host = chance.random_range(0..self.0.servers.len());
            (host, self.0.setup.work.draw(chance.random()), chance.random())
        };
        lock(&self.0.asked)[self.now().as_secs() as usize] += 1;
        sleep(ONE_WAY).await;
        let (caller, answer) = oneshot::channel();
        let accepted = lock(&self.0.servers[host]).accept(self.now(), Request { caller, work, luck });
        let result = if accepted.is_ok() {
            self.clone().work(host);
            if answer.await == Ok(true) { Ok(()) } else { Err(Failure::Server) }
        } else if self.0.setup.hints {
            Err(Failure::ComeBack)
        } else {
            Err(Failure::Server)
        };
        sleep(ONE_WAY).await;
        result
    }

    /// Has that host's free workers take up what waits.
    fn work(self, host: usize) {
        let begin = || lock(&self.0.servers[host]).begin(self.now());
        while let Some(Begun { caller, done, fails }) = begin() {
            let hosts = self.clone();
            tokio::spawn(async move {
                sleep_until(hosts.at(done)).await;
                // Whoever has gone does not hear it.
                let _ = caller.send(!fails);
                lock(&hosts.0.servers[host]).finish();
                hosts.work(host);
            });
        }
    }

    /// Requests that were sent, second by second.
    pub fn asked(&self) -> Vec<u64> {
        lock(&self.0.asked).clone()
    }

    /// What each host counted.
    pub fn counts(&self) -> Vec<Counts> {
        self.0.servers.iter().map(|server| lock(server).counts).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
