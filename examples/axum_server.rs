//! A server that protects itself: limit, timeout and circuit breaker in an axum `Router`, no `HandleErrorLayer`.
//!
//! ```text
//! cargo run --example axum_server --features http
//! ```
//!
//! A router never fails (`Infallible`), so a rejection becomes a response: 503 or 504, `Retry-After` where it is known.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use buttress::{CircuitBreaker, ConcurrencyLimit, Timeout, http::ByStatus};
use reqwest::{Client, Response, header::RETRY_AFTER};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

fn tell(what: &str, response: &Response) {
    let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let after = after.map_or(String::new(), |seconds| format!(", Retry-After: {seconds}"));
    println!("{what:<34} {}{after}", response.status());
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let limit = ConcurrencyLimit::builder().name("server").max_in_flight(2).max_queue(2).build()?;
    let timeout = Timeout::new(Duration::from_secs(1)).name("server");
    let breaker = CircuitBreaker::builder().name("stock").consecutive_failures(3).build()?;

    // `/report` takes until the gate opens.
    let gate = Arc::new(Semaphore::new(0));
    let report = {
        let gate = Arc::clone(&gate);
        move || async move { gate.acquire().await.map_or("closed", |_| "the report") }
    };
    let app = Router::new()
        .route("/stock", get(|| async { StatusCode::BAD_GATEWAY }))
        // Only what stands above is behind the breaker; it judges by the status.
        .route_layer(breaker.layer_with(ByStatus))
        .route("/report", get(report))
        .route("/hang", get(std::future::pending::<()>))
        // The last one is outermost: the queue is not part of the time.
        .layer(timeout.layer())
        .layer(limit.layer());

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = Client::builder().no_proxy().build()?;

    println!("Six requests at once; two may run and two may wait.");
    let mut requests = JoinSet::new();
    for _ in 0..6 {
        requests.spawn(client.get(format!("{url}/report")).send());
    }
    // The two that are refused come back first, while the gate is still shut.
    let mut answers = Vec::new();
    while let Some(response) = requests.join_next().await {
        let response = response??;
        tell("  GET /report", &response);
        answers.push(response.status());
        if answers.len() == 2 {
            gate.add_permits(4);
        }
    }
    assert_eq!(answers[..2], [StatusCode::SERVICE_UNAVAILABLE; 2]);
    assert_eq!(answers[2..], [StatusCode::OK; 4]);

    println!("A handler that hangs.");
    let response = client.get(format!("{url}/hang")).send().await?;
    tell("  GET /hang", &response);
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);

    println!("A handler whose own backend is down: three failures open the circuit.");
    for _ in 0..3 {
        let response = client.get(format!("{url}/stock")).send().await?;
        tell("  GET /stock", &response);
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    }
    let response = client.get(format!("{url}/stock")).send().await?;
    tell("  GET /stock, refused", &response);
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let seconds: u64 = response.headers().get(RETRY_AFTER).ok_or("it is known")?.to_str()?.parse()?;
    assert!((1..=5).contains(&seconds));

    println!("The other routes are not behind that circuit.");
    let response = client.get(format!("{url}/report")).send().await?;
    tell("  GET /report", &response);
    assert_eq!(response.status(), StatusCode::OK);
    Ok(())
}
