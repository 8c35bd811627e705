//! The client with a policy of this crate.

use std::{sync::Arc, time::Duration};

use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, ConcurrencyLimit, Error, Keyed, Policy, PolicyBuilder, Reason,
    Retry, RetryBuilder,
};

use super::{
    contenders::Client,
    hosts::{Failure, Hosts},
    storms::{ATTEMPT, ATTEMPTS, PATIENCE},
};

/// Four times what a client has in flight on a calm day.
pub const IN_FLIGHT: usize = 8;

/// A service that still answers every second call is not down, and retry does more for it than a breaker. And a look at it
/// costs three requests, a pause all that come in it: so it is no longer than a caller's patience.
pub fn breaker() -> CircuitBreakerBuilder {
    CircuitBreaker::builder()
        .failure_rate(0.7)
        .open_time(Backoff::exponential(Duration::from_secs(1)).max_delay(PATIENCE))
}

/// A client of these servers.
pub fn client(hosts: Hosts, breaker: CircuitBreakerBuilder, seed: u64) -> Client {
    let retry = Retry::exponential(Duration::from_millis(50)).max_attempts(ATTEMPTS).seed(seed);
    if hosts.len() == 1 { of_one(hosts, breaker, retry, seed) } else { of_many(hosts, breaker, retry, seed) }
}

/// One server: one policy.
fn of_one(hosts: Hosts, breaker: CircuitBreakerBuilder, retry: RetryBuilder, seed: u64) -> Client {
    let policy = guard(breaker.seed(seed)).deadline(PATIENCE).retry(retry).build().expect("the settings are in range");
    Arc::new(move || {
        let (policy, hosts) = (policy.clone(), hosts.clone());
        Box::pin(async move { policy.call(|| hosts.clone().ask(0)).await.map_err(failure) })
    })
}

/// Many servers: a policy for each, and one around them that asks another one if one fails or refuses.
fn of_many(hosts: Hosts, breaker: CircuitBreakerBuilder, retry: RetryBuilder, seed: u64) -> Client {
    let calls = Policy::plain("calls").deadline(PATIENCE).retry(retry).build().expect("the settings are in range");
    let each = Keyed::builder(move |host: &usize| {
        guard(breaker.clone().seed(seed + *host as u64)).build().expect("the settings are in range")
    });
    let each = Arc::new(each.build().expect("the settings are in range"));
    Arc::new(move || {
        let (calls, each, hosts) = (calls.clone(), Arc::clone(&each), hosts.clone());
        Box::pin(async move {
            // By `failure` what one server's policy refuses is a failure like any other: the next attempt goes elsewhere. As a
            // rejection (`call_as`) it would wait for this server's circuit.
            let attempt = || {
                let (host, hosts) = (hosts.any(), hosts.clone());
                let policy = each.get(&host);
                async move { policy.call(|| hosts.clone().ask(host)).await.map_err(failure) }
            };
            calls.call(attempt).await.map_err(failure)
        })
    })
}

/// What keeps a client from asking a server too much.
fn guard(breaker: CircuitBreakerBuilder) -> PolicyBuilder {
    Policy::plain("server")
        .circuit_breaker(breaker)
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(IN_FLIGHT))
        .timeout(ATTEMPT)
}

fn failure(error: Error<Failure>) -> Failure {
    match error {
        Error::Inner(failure) => failure,
        Error::Rejected(no) => match no.reason() {
            Reason::Timeout | Reason::DeadlineExceeded => Failure::TimedOut,
            _ => Failure::Held,
        },
    }
}
