//! A client that asks one host for no more than it can take: `asyncio.Semaphore` around a session.
//!
//! ```text
//! cargo run --example rate_limited_client --features reqwest
//! ```
//!
//! Forty items at once, four in flight, at most twenty-four waiting; what is beyond that is refused at once, by a rejection that
//! says why, and not queued without a bound. The server counts for itself how many are with it. A host that says "too many"
//! is left alone for as long as it asks for, and another host has a limit of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::Path,
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
    routing::get,
};
use buttress::{ConcurrencyLimit, Error, Keyed, LiftLayer, Policy, Reason, Rejection, Retry};
use reqwest::{Client, Method, Request, Url};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};
use tower::{BoxError, ServiceBuilder};

const ITEMS: usize = 40;
const IN_FLIGHT: usize = 4;
const QUEUE: usize = 24;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Nothing here takes long; what waits for ever is a fault.
    timeout(Duration::from_secs(9), story()).await.unwrap_or_else(|_| Err("it waits for ever".into()))
}

async fn story() -> Result<(), BoxError> {
    let (busy, other) = (Server::default(), Server::default());
    let (url, other_url) = (busy.serve().await?, other.serve().await?);

    // One limit for each host, by one client.
    let settings = Policy::reqwest("api")
        .deadline(Duration::from_secs(8))
        .retry(Retry::exponential(Duration::from_millis(20)))
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(IN_FLIGHT).max_queue(QUEUE));
    let hosts = Keyed::each(settings).build()?;
    let client = ServiceBuilder::new()
        .layer(hosts.layer(|request: &Request| request.url().authority().to_owned()))
        .layer(LiftLayer)
        .service(Client::builder().no_proxy().build()?);
    let fetch = {
        let client = client.clone();
        move |url: Url| {
            let answer = client.send(Request::new(Method::GET, url));
            async move { answer.await?.text().await.map_err(Error::Inner) }
        }
    };

    println!("{ITEMS} items at once; {IN_FLIGHT} may be in flight and {QUEUE} may wait:");
    let mut calls = JoinSet::new();
    for n in 0..ITEMS {
        let answer = fetch(url.join(&n.to_string())?);
        calls.spawn(async move { (n, answer.await) });
    }
    // The server holds its answers, so whoever is back by now was not let in.
    let mut outcomes: Vec<Option<Result<String, Error<reqwest::Error>>>> = (0..ITEMS).map(|_| None).collect();
    for _ in 0..ITEMS - IN_FLIGHT - QUEUE {
        let (n, outcome) = calls.join_next().await.ok_or("all are there")??;
        outcomes[n] = Some(outcome);
    }
    let refused: Vec<&Rejection> = outcomes.iter().flatten().filter_map(|it| it.as_ref().err()?.rejection()).collect();
    println!("  {} are refused at once: {}", refused.len(), refused.first().ok_or("some are refused")?);
    let explains = |no: &&Rejection| {
        (no.reason(), no.measured(), no.threshold()) == (Reason::Overloaded, Some(QUEUE as f32), Some(QUEUE as f32))
    };
    ensure(refused.len() == ITEMS - IN_FLIGHT - QUEUE && refused.iter().all(explains), "refused, and told why")?;

    other.open.send_replace(true);
    let answer = fetch(other_url).await?;
    println!("  meanwhile the other host: {answer}");

    busy.with_it.subscribe().wait_for(|(_, most)| *most >= IN_FLIGHT).await?;
    busy.open.send_replace(true);
    while let Some(ended) = calls.join_next().await {
        let (n, outcome) = ended?;
        outcomes[n] = Some(outcome);
    }
    let most = busy.with_it.borrow().1;
    println!("  the server had {most} at once, and never more");

    let (mut answered, mut lines) = (0, String::new());
    for (n, outcome) in outcomes.iter().enumerate() {
        let mark = match outcome.as_ref().ok_or("every item has an outcome")? {
            Ok(text) if *text == format!("item {n}") => 'o',
            Ok(_) => '?',
            Err(Error::Rejected(_)) => 'x',
            Err(Error::Inner(_)) => '!',
        };
        answered += usize::from(mark == 'o');
        lines.push(mark);
    }
    println!("  each item has its outcome (o answered, x refused): {lines}");
    println!(
        "  the server said 429 to {}, and had it again after the second that it had asked for",
        busy.throttled.load(SeqCst)
    );
    ensure(most == IN_FLIGHT, format_args!("{IN_FLIGHT} at once at the most, not {most}"))?;
    ensure(answered == IN_FLIGHT + QUEUE, format_args!("all that were let in are answered, not {answered}"))?;
    ensure(busy.throttled.load(SeqCst) == 1, "one of them was told to come later")?;

    // Nobody listens where this host was a moment ago.
    let gone = format!("http://{}/", TcpListener::bind("127.0.0.1:0").await?.local_addr()?).parse()?;
    let error = fetch(gone).await.err().ok_or("nobody is there")?;
    println!("\nA host that is not there: {}", cause(&error));
    ensure(error.inner().is_some_and(reqwest::Error::is_connect), "that is the client's own error, and no rejection")
}

#[derive(Clone)]
struct Server {
    /// Answers are held until then.
    open: watch::Sender<bool>,
    /// How many requests are with it, and the most there ever were.
    with_it: watch::Sender<(usize, usize)>,
    throttled: Arc<AtomicUsize>,
}

impl Default for Server {
    fn default() -> Self {
        Self { open: watch::Sender::new(false), with_it: watch::Sender::default(), throttled: Arc::default() }
    }
}

impl Server {
    async fn serve(&self) -> Result<Url, BoxError> {
        let (items, root) = (self.clone(), self.clone());
        let router = Router::new()
            .route("/", get(async move || root.answer("hello".to_owned()).await))
            .route("/{n}", get(async move |Path(n): Path<usize>| items.answer(format!("item {n}")).await));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?).parse()?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(url)
    }

    async fn answer(&self, text: String) -> Response {
        self.with_it.send_modify(|(now, most)| {
            *now += 1;
            *most = (*now).max(*most);
        });
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        self.with_it.send_modify(|(now, _)| *now -= 1);
        // Whoever is the first to be answered is sent away for a second.
        if text != "hello" && self.throttled.fetch_max(1, SeqCst) == 0 {
            return (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "1")]).into_response();
        }
        text.into_response()
    }
}

/// What is at the bottom of an error.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error).to_string()
}

/// A claim of this story that is broken ends it with exit code 1.
fn ensure(holds: bool, claim: impl std::fmt::Display) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this did not hold: {claim}").into()) }
}
