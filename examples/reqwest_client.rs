//! A `reqwest::Client` for many hosts: one policy each, per-key; retries that wait as long as the server says, a POST that is
//! sent once, a body that is cut off by the deadline, and the rejections by name.
//!
//! ```text
//! cargo run --example reqwest_client --features reqwest
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{StatusCode, header::RETRY_AFTER},
    response::IntoResponse,
    routing::{get, post},
};
use buttress::{
    CircuitBreaker, ConcurrencyLimit, Error, Keyed, LiftLayer, Policy, Rejection, Retry, circuit_breaker::State,
};
use reqwest::{Client, Method, Request, Url};
use tokio::net::TcpListener;
use tower::{BoxError, ServiceBuilder};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let healthy = serve(shop()).await?;
    let broken = serve(Router::new().fallback(async || StatusCode::INTERNAL_SERVER_ERROR)).await?;

    // The settings of one host. `Keyed` makes a policy of them for each host that is asked.
    let settings = Policy::reqwest("shops")
        .deadline(Duration::from_secs(3))
        .retry(Retry::exponential(Duration::from_millis(20)).max_attempts(3))
        .circuit_breaker(CircuitBreaker::builder().consecutive_failures(4))
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(32).max_queue(32))
        .timeout(Duration::from_secs(1));
    let hosts = Keyed::each(settings).max_keys(1_000).build()?;
    let client = ServiceBuilder::new()
        .layer(hosts.layer(|request: &Request| request.url().authority().to_owned()))
        .layer(LiftLayer)
        .service(Client::new());

    let answer = client.send(Request::new(Method::GET, healthy.join("/busy")?)).await?;
    println!("busy:    {} (it had said to come back in a second)", answer.text().await?);

    let answer = client.send(Request::new(Method::POST, healthy.join("/orders")?)).await?;
    let (status, came) = (answer.status(), answer.text().await?);
    println!("orders:  {status}, and sent once: {came}");
    assert_eq!(came, "1 came");

    for _ in 0..3 {
        match client.send(Request::new(Method::GET, broken.clone())).await {
            Ok(answer) => println!("broken:  {}", answer.status()),
            Err(Error::Rejected(no)) => println!("broken:  {no}"),
            Err(Error::Inner(error)) => println!("broken:  {error}"),
        }
    }
    let answer = client.send(Request::new(Method::GET, healthy.join("/hello")?)).await?;
    println!("hello:   {}; the circuit of the one host leaves the other alone", answer.text().await?);

    // The headers come at once, the body never ends.
    let answer = client.send(Request::new(Method::GET, healthy.join("/stream")?)).await?;
    let error = answer.bytes().await.expect_err("it is cut off");
    println!("stream:  {}", Rejection::find(&error).ok_or("no rejection of ours")?);

    for (host, policy) in hosts.entries() {
        let state = policy.circuit_breaker().map(CircuitBreaker::state);
        println!("{host}: {state:?}");
        let expected = if host == broken.authority() { State::Open } else { State::Closed };
        assert_eq!(state, Some(expected));
    }
    Ok(())
}

fn shop() -> Router {
    let busy = Arc::new(AtomicUsize::new(0));
    let orders = Arc::new(AtomicUsize::new(0));
    Router::new()
        .route("/hello", get(async || "hello"))
        .route(
            "/busy",
            get(async move || match busy.fetch_add(1, SeqCst) {
                0 => (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "1")]).into_response(),
                _ => "come in".into_response(),
            }),
        )
        .route(
            "/orders",
            post(async move || (StatusCode::BAD_GATEWAY, format!("{} came", orders.fetch_add(1, SeqCst) + 1))),
        )
        .route("/stream", get(async || Body::from_stream(tokio_stream::pending::<Result<Bytes, BoxError>>())))
}

async fn serve(router: Router) -> Result<Url, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?).parse()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}
