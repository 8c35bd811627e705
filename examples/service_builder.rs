//! The layers alone, in a `tower::ServiceBuilder`, around a service whose error is `tower::BoxError`.
//!
//! ```text
//! cargo run --example service_builder
//! ```
//!
//! `Policy` has the same parts in the same order. Take the layers where you need only some of them, or another order.

use std::time::Duration;

use buttress::{
    Backoff, CircuitBreaker, ConcurrencyLimit, DeadlineLayer, Reason, Rejection, Retry, Timeout,
    circuit_breaker::State, retry,
};
use tokio::{task::JoinSet, time::sleep};
use tower::{BoxError, ServiceBuilder};

/// What a request wants to happen.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ask {
    Work,
    /// Fails at the first attempt.
    Flaky,
    /// Never answers.
    Hang,
    /// Always fails.
    Fail,
}

async fn shop(ask: Ask) -> Result<&'static str, BoxError> {
    match ask {
        Ask::Flaky if retry::current_attempt() == Some(1) => Err("connection reset".into()),
        Ask::Work | Ask::Flaky => {
            sleep(Duration::from_millis(50)).await;
            Ok("done")
        }
        Ask::Hang => std::future::pending().await,
        Ask::Fail => Err("the shop is on fire".into()),
    }
}

/// The rejection in a boxed error, if it is one of ours.
fn reason(outcome: &Result<&'static str, BoxError>) -> Option<Reason> {
    Some(outcome.as_ref().err()?.downcast_ref::<Rejection>()?.reason())
}

fn tell(what: &str, outcome: &Result<&'static str, BoxError>) {
    match outcome {
        Ok(answer) => println!("{what:<22} answered: {answer}"),
        Err(error) if error.is::<Rejection>() => println!("{what:<22} rejected: {error}"),
        Err(error) => println!("{what:<22} failed:   {error}"),
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let retry = Retry::exponential(Duration::from_millis(20)).max_attempts(2).build()?;
    let breaker = CircuitBreaker::builder()
        .name("shop")
        .consecutive_failures(5)
        .open_time(Backoff::constant(Duration::from_millis(500)))
        .on_transition(|t| println!("{:<22} {} -> {}", "  (circuit)", t.from.as_str(), t.to.as_str()))
        .build()?;
    let limit = ConcurrencyLimit::builder().name("shop").max_in_flight(2).max_queue(2).build()?;
    let attempt = Timeout::new(Duration::from_millis(200)).name("shop");

    // Outermost first. The error type is BoxError all the way: a rejection is inside, found by `downcast_ref`.
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Duration::from_secs(2)).name("shop"))
        .layer(retry.layer())
        .layer(breaker.layer())
        .layer(limit.layer())
        .layer(attempt.layer())
        .service_fn(shop);

    let outcome = service.send(Ask::Work).await;
    tell("a call", &outcome);
    assert_eq!(outcome?, "done");

    let outcome = service.send(Ask::Flaky).await;
    tell("a flaky one, retried", &outcome);
    assert_eq!(outcome?, "done");

    let outcome = service.send(Ask::Hang).await;
    tell("one that hangs", &outcome);
    assert_eq!(reason(&outcome), Some(Reason::Timeout));

    // Two run, two wait, two are refused at once.
    let mut calls = JoinSet::new();
    for _ in 0..6 {
        calls.spawn(service.send(Ask::Work));
    }
    let mut refused = 0;
    while let Some(outcome) = calls.join_next().await {
        let outcome = outcome?;
        tell("one of six at once", &outcome);
        refused += usize::from(reason(&outcome) == Some(Reason::Overloaded));
    }
    assert_eq!(refused, 2);

    // Two attempts a call: the fifth failure, the third call's first, opens the circuit. What it refuses is not retried.
    for _ in 0..4 {
        let outcome = service.send(Ask::Fail).await;
        tell("one that fails", &outcome);
        assert!(outcome.is_err());
    }
    assert_eq!(breaker.state(), State::Open);
    let outcome = service.send(Ask::Work).await;
    tell("a call meanwhile", &outcome);
    assert_eq!(reason(&outcome), Some(Reason::CircuitOpen));

    // A rejection says when to come back, so that is when we come back. Two good probes of three close the circuit.
    sleep(breaker.snapshot().retry_after.unwrap_or_default()).await;
    for _ in 0..2 {
        let outcome = service.send(Ask::Work).await;
        tell("a probe", &outcome);
        assert_eq!(outcome?, "done");
    }
    assert_eq!(breaker.state(), State::Closed);
    Ok(())
}
