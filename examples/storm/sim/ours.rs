//! The client with a policy of this crate.

use std::{sync::Arc, time::Duration};

use buttress::{
    Backoff, CircuitBreaker, ConcurrencyLimit, Error, Policy, PolicyBuilder, Reason, Retry, Verdict, classify,
};

use super::{
    contenders::Client,
    hosts::{Failure, Hosts},
    setup::{ATTEMPT, ATTEMPTS, HINT, PATIENCE},
};

/// Some thirty times what a client has in flight on a calm day.
const IN_FLIGHT: usize = 4;

pub fn client(hosts: Hosts, seed: u64) -> Client {
    let policy = policy().deadline(PATIENCE).classify(classify::from_fn(judge)).seed(seed).build();
    let policy = policy.expect("the settings are in range");
    Arc::new(move || {
        let (policy, hosts) = (policy.clone(), hosts.clone());
        Box::pin(async move { policy.call(|| hosts.clone().ask()).await.map_err(failure) })
    })
}

/// Put together by hand. A look at a service that is down costs three requests and a pause all that come in it: so it is no
/// longer than a caller's patience.
fn policy() -> PolicyBuilder {
    let open = Backoff::exponential(Duration::from_secs(1)).max_delay(PATIENCE);
    Policy::plain("server")
        .retry(Retry::exponential(Duration::from_millis(50)).max_attempts(ATTEMPTS))
        .circuit_breaker(CircuitBreaker::builder().failure_rate(0.7).open_time(open))
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(IN_FLIGHT))
        .timeout(ATTEMPT)
}

/// By default no failure says when to come back.
fn judge(outcome: Result<&(), &Failure>) -> Verdict {
    match outcome {
        Ok(()) => Verdict::Success,
        Err(Failure::ComeBack) => Verdict::Transient { retry_after: Some(HINT) },
        Err(_) => Verdict::TRANSIENT,
    }
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
