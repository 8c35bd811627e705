//! The client with tower's own layers, put together with care.
//!
//! Retry is outermost and draws on a budget; each server has a limit that sheds what it cannot let out, since tower's timeout
//! does not cover the wait for a permit; each attempt has its timeout.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{Rng as _, SeedableRng, rngs::SmallRng};
use tokio::time::Sleep;
use tower::{
    BoxError, ServiceBuilder, ServiceExt,
    load_shed::error::Overloaded,
    retry::{
        Policy,
        backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff},
        budget::{Budget, TpsBudget},
    },
    service_fn,
    timeout::error::Elapsed,
    util::rng::Rng,
};

use super::{
    contenders::Client,
    hosts::{Failure, Hosts},
    ours::IN_FLIGHT,
    storms::{ATTEMPT, ATTEMPTS},
};

pub fn client(hosts: Hosts, seed: u64) -> Client {
    let each: Vec<_> = (0..hosts.len())
        .map(|host| {
            let hosts = hosts.clone();
            ServiceBuilder::new().load_shed().concurrency_limit(IN_FLIGHT).timeout(ATTEMPT).service(service_fn(
                move |()| {
                    let answer = hosts.clone().ask(host);
                    async move { answer.await.map_err(Refusal) }
                },
            ))
        })
        .collect();
    let any = service_fn(move |()| each[hosts.any()].clone().oneshot(()));
    let client = ServiceBuilder::new().retry(Budgeted::new(seed)).service(any);
    Arc::new(move || {
        let client = client.clone();
        Box::pin(async move { client.oneshot(()).await.map_err(failure) })
    })
}

/// The bound of ours: of the last ten seconds a fifth, and one a second.
#[derive(Clone)]
struct Budgeted {
    budget: Arc<TpsBudget>,
    backoff: ExponentialBackoff<Seeded>,
    left: u32,
}

impl Budgeted {
    fn new(seed: u64) -> Self {
        let random = Seeded(Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))));
        let backoff = ExponentialBackoffMaker::new(Duration::from_millis(50), Duration::from_secs(20), 1.0, random);
        Self {
            budget: Arc::new(TpsBudget::new(Duration::from_secs(10), 1, 0.2)),
            backoff: backoff.expect("the settings are in range").make_backoff(),
            left: ATTEMPTS - 1,
        }
    }
}

impl Policy<(), (), BoxError> for Budgeted {
    type Future = Sleep;

    fn retry(&mut self, (): &mut (), result: &mut Result<(), BoxError>) -> Option<Sleep> {
        match result {
            Ok(()) => {
                self.budget.deposit();
                None
            }
            Err(error) if self.left == 0 || error.is::<Overloaded>() || !self.budget.withdraw() => None,
            Err(_) => {
                self.left -= 1;
                Some(self.backoff.next_backoff())
            }
        }
    }

    fn clone_request(&mut self, (): &()) -> Option<()> {
        Some(())
    }
}

/// One generator for all calls, or each would draw the same.
#[derive(Clone, Debug)]
struct Seeded(Arc<Mutex<SmallRng>>);

impl Rng for Seeded {
    fn next_u64(&mut self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }
}

/// The server's failure as an error.
#[derive(Debug)]
struct Refusal(Failure);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Refusal {}

fn failure(error: BoxError) -> Failure {
    match error.downcast::<Refusal>() {
        Ok(refusal) => refusal.0,
        Err(error) if error.is::<Elapsed>() => Failure::TimedOut,
        Err(_) => Failure::Held,
    }
}
