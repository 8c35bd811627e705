//! failsafe's circuit breaker, with tower's timeout within and tower's retry around, since it has neither.
//!
//! Its defaults open it at a fifth of failures, for 10 s and then up to 300 s. Here it is a half, and 1 s to 5 s; without
//! jitter, which cannot be seeded.

use std::{sync::Arc, time::Duration};

use ::failsafe::{
    Config, Error, FailurePolicy, backoff, clock,
    failure_policy::{consecutive_failures, success_rate_over_time_window},
    futures::CircuitBreaker,
};
use tower::{BoxError, ServiceExt, service_fn};

use crate::sim::{
    contenders::{Client, Contender, Tick, each},
    hosts::{Failure, Hosts},
    setup::Setup,
    tower_stack::{attempt, retried},
};

pub const FAILSAFE: Contender = Contender { name: "failsafe", clients, clock };

fn clients(hosts: &Hosts, setup: &Setup, seed: u64) -> Vec<Client> {
    each(hosts, setup, seed, client)
}

/// The thread's own clock stands still and is moved on by hand.
fn clock(run: &mut dyn FnMut(Tick<'_>)) {
    clock::freeze(|clock| run(Some(&mut |step| clock.advance(step))));
}

fn client(hosts: Hosts, seed: u64) -> Client {
    let breaker = Arc::new(Config::new().failure_policy(policy()).build());
    let attempt = attempt(hosts);
    let guarded = service_fn(move |()| {
        let (breaker, attempt) = (Arc::clone(&breaker), attempt.clone());
        async move {
            breaker.call(attempt.oneshot(())).await.map_err(|error| match error {
                Error::Inner(error) => error,
                Error::Rejected => BoxError::from(Failure::Held),
            })
        }
    });
    retried(guarded, seed)
}

fn policy() -> impl FailurePolicy + Send + Sync + std::fmt::Debug {
    let pause = backoff::exponential(Duration::from_secs(1), Duration::from_secs(5));
    success_rate_over_time_window(0.5, 10, Duration::from_secs(10), pause.clone())
        .or_else(consecutive_failures(5, pause))
}
