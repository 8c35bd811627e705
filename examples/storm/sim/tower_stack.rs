//! The client with tower's own layers, put together with care.
//!
//! Retry is outermost and draws on a budget; a limit sheds what it cannot let out, since tower's timeout does not cover the wait
//! for a permit; each attempt has its timeout.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{Rng as _, SeedableRng, rngs::SmallRng};
use tokio::time::Sleep;
use tower::{
    BoxError, Service, ServiceBuilder, ServiceExt,
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
    setup::{ATTEMPT, ATTEMPTS},
};

/// Some fifteen times what a client has in flight on a calm day. What is in flight from all of them is done in 0.2 s, which is
/// less than an attempt has.
const IN_FLIGHT: usize = 2;

pub fn client(hosts: Hosts, seed: u64) -> Client {
    let attempt = ServiceBuilder::new().load_shed().concurrency_limit(IN_FLIGHT).service(attempt(hosts));
    retried(attempt, seed)
}

/// One attempt.
pub fn attempt(hosts: Hosts) -> impl Service<(), Response = (), Error = BoxError, Future: Send> + Clone + Send + Sync {
    let ask = service_fn(move |()| {
        let answer = hosts.clone().ask();
        async move { answer.await.map_err(BoxError::from) }
    });
    ServiceBuilder::new().timeout(ATTEMPT).service(ask)
}

/// Attempts in tower's retry.
pub fn retried<S>(attempt: S, seed: u64) -> Client
where
    S: Service<(), Response = (), Error = BoxError, Future: Send> + Clone + Send + Sync + 'static,
{
    let client = ServiceBuilder::new().retry(Budgeted::new(seed)).service(attempt);
    Arc::new(move || {
        let client = client.clone();
        Box::pin(async move { client.oneshot(()).await.map_err(failure) })
    })
}

/// At most a fifth of the calls of the last ten seconds, and one a second. What was not let out is not tried again.
#[derive(Clone)]
struct Budgeted {
    budget: Arc<TpsBudget>,
    backoff: ExponentialBackoff<Seeded>,
    left: u32,
}

impl Budgeted {
    fn new(seed: u64) -> Self {
        let random = Seeded(Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))));
        let backoff = ExponentialBackoffMaker::new(Duration::from_millis(50), Duration::from_secs(1), 1.0, random);
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
            Err(error) if self.left == 0 || was_held(error) || !self.budget.withdraw() => None,
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

fn was_held(error: &BoxError) -> bool {
    error.is::<Overloaded>() || matches!(error.downcast_ref(), Some(Failure::Held))
}

fn failure(error: BoxError) -> Failure {
    match error.downcast_ref::<Failure>() {
        Some(failure) => *failure,
        None if error.is::<Elapsed>() => Failure::TimedOut,
        None => Failure::Held,
    }
}
