//! seatbelt, as its documentation has it: retry, breaker and timeout, in this order.
//!
//! The retry has its defaults. With the breaker's, a tenth of failures opens it for 5 s, and it takes six steps of 5 s each to
//! close: this service is better off with one that opens at a half, for a second, and closes with the first success.
//!
//! Its clock is one of its own; in a simulation it is moved on with tokio's.

use std::{sync::Arc, time::Duration};

use ::seatbelt::{
    RecoveryInfo, ResilienceContext,
    breaker::{Breaker, HalfOpenMode},
    retry::Retry,
    timeout::Timeout,
};
use tick::{Clock, ClockControl};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use crate::sim::{
    contenders::{Client, Contender, tokios},
    hosts::{Failure, Hosts},
    setup::{ATTEMPT, Setup},
};

pub const SEATBELT: Contender = Contender { name: "seatbelt", clients, clock: tokios };

type Answer = Result<(), Failure>;

fn clients(hosts: &Hosts, setup: &Setup, seed: u64) -> Vec<Client> {
    // It draws its jitter and its probes from this thread's generator.
    fastrand::seed(seed);
    let control = ClockControl::new();
    let clock = control.to_clock();
    tokio::spawn(async move {
        const STEP: Duration = Duration::from_millis(1);
        loop {
            tokio::time::sleep(STEP).await;
            control.advance(STEP);
        }
    });
    (0..setup.clients).map(|_| client(hosts.clone(), &clock)).collect()
}

fn client(hosts: Hosts, clock: &Clock) -> Client {
    let context: ResilienceContext<(), Answer> = ResilienceContext::new(clock);
    let service = ServiceBuilder::new()
        .layer(Retry::layer("retry", &context).clone_input().recovery_with(|answer, _| worth_another(answer)))
        .layer(
            Breaker::layer("breaker", &context)
                .recovery_with(|answer, _| worth_another(answer))
                .rejected_input_error(|(), _| Failure::Held)
                .failure_threshold(0.5)
                .min_throughput(10)
                .sampling_duration(Duration::from_secs(10))
                .break_duration(Duration::from_secs(1))
                .half_open_mode(HalfOpenMode::quick()),
        )
        .layer(Timeout::layer("timeout", &context).timeout_error(|_| Failure::TimedOut).timeout(ATTEMPT))
        .service(service_fn(move |()| hosts.clone().ask()));
    let service = Arc::new(service);
    Arc::new(move || {
        let mut service = Arc::clone(&service).as_ref().clone();
        Box::pin(async move { service.ready().await?.call(()).await })
    })
}

/// Not while the circuit is open: then the next attempt ends as this one.
fn worth_another(answer: &Answer) -> RecoveryInfo {
    match answer {
        Ok(()) | Err(Failure::Held) => RecoveryInfo::never(),
        Err(_) => RecoveryInfo::retry(),
    }
}
