//! Many calls at once through one policy: `asyncio.gather`, in both of its ways.
//!
//! ```text
//! cargo run --example fan_out --features reqwest
//! ```
//!
//! - First error wins: the rest are cancelled, and the server says so, not only the client.
//! - All outcomes, in the order of the questions: answers, errors, a refused connection, a panic.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, extract::Path, http::StatusCode, routing::get};
use buttress::{ConcurrencyLimit, Lift, Policy, PolicyService, Retry, http::Reqwest};
use reqwest::{Client, Method, Request, Url};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};
use tower::BoxError;

const CALLS: usize = 10;

/// The one client, and the policy that all calls share.
type Shop = PolicyService<Lift<Client>, Reqwest>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Nothing here takes long; what waits for ever is a fault.
    timeout(Duration::from_secs(9), story()).await.unwrap_or_else(|_| Err("it waits for ever".into()))
}

async fn story() -> Result<(), BoxError> {
    // What panics below is part of the story; a line of it is enough.
    std::panic::set_hook(Box::new(|panic| println!("  ({})", panic.to_string().replace('\n', " "))));
    let server = Server::default();
    let url = server.serve().await?;
    let policy = Policy::reqwest("shop")
        .deadline(Duration::from_secs(30)) // nothing but the first error ends what hangs
        .retry(Retry::exponential(Duration::from_millis(10)).max_attempts(3))
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(CALLS).max_queue(CALLS))
        .build()?;
    let shop = policy.wrap(Client::builder().no_proxy().build()?);

    println!("{CALLS} calls at once; the first error ends them all:");
    let error = first_error(&shop, &url).await.err().ok_or("one of them fails")?;
    println!("  {}", cause(&*error));
    // A dropped call closes its connection, and the server drops what it did for it. That is an event; nobody guesses when.
    let mut running = server.running.subscribe();
    running.wait_for(|running| *running == 0).await?;
    let (began, finished) = (server.began.load(SeqCst), server.finished.load(SeqCst));
    println!("  the server began {began}, finished {finished} and dropped {}", began - finished);
    let in_flight = policy.concurrency_limit().map(ConcurrencyLimit::in_flight);
    ensure((began, finished) == (CALLS, 1), format_args!("all began, and only the one that failed was finished"))?;
    ensure(in_flight == Some(0), format_args!("cancelled calls give their permits back, not {in_flight:?}"))?;

    println!("\n{CALLS} calls at once; all of their outcomes, in the order of the questions:");
    let outcomes = all(&shop, &url).await?;
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(text) => println!("  {n}  {text}"),
            Err(error) => println!("  {n}  FAILED: {}", cause(&**error)),
        }
    }
    let failed: Vec<_> = (0..CALLS).filter(|n| outcomes[*n].is_err()).collect();
    ensure(failed == [3, 8, 9], format_args!("3, 8 and 9 fail and no other, not {failed:?}"))?;
    let in_place = |n: usize| outcomes[n].as_ref().is_ok_and(|text| text.starts_with(&format!("item {n}")));
    ensure((0..CALLS).all(|n| failed.contains(&n) || in_place(n)), "each answer is in its own place")?;
    let asked = server.asked_for_five.load(SeqCst);
    ensure(asked == 2, format_args!("the 503 was asked for once more, not {asked} times in all"))
}

/// `gather(*calls)`: answers in the order in which they come; the first error is returned.
///
/// The `JoinSet` owns its tasks: dropped, as here on the way out, it cancels all that are left.
async fn first_error(shop: &Shop, url: &Url) -> Result<Vec<String>, BoxError> {
    let mut calls = JoinSet::new();
    for n in 0..CALLS {
        calls.spawn(fetch(shop.clone(), url.join(&format!("gather/{n}"))?));
    }
    let mut answers = Vec::new();
    while let Some(ended) = calls.join_next().await {
        answers.push(ended??);
    }
    Ok(answers)
}

/// `gather(*calls, return_exceptions=True)`: one outcome for each call, and none is lost to another's fate.
async fn all(shop: &Shop, url: &Url) -> Result<Vec<Result<String, BoxError>>, BoxError> {
    let mut calls = Vec::new();
    for n in 0..CALLS {
        // The last one asks where nobody listens.
        let url = if n == 9 { nobody().await? } else { url.join(&format!("all/{n}"))? };
        let shop = shop.clone();
        calls.push(tokio::spawn(async move {
            let answer = fetch(shop, url).await?;
            assert!(n != 8, "the price of item 8 is not a number");
            Ok(answer)
        }));
    }
    let mut outcomes = Vec::new();
    for call in calls {
        // They all run at once; waiting for them in order only puts the answers in order.
        outcomes.push(call.await.unwrap_or_else(|panicked| Err(panicked.into())));
    }
    Ok(outcomes)
}

async fn fetch(shop: Shop, url: Url) -> Result<String, BoxError> {
    let answer = shop.send(Request::new(Method::GET, url)).await?;
    Ok(answer.error_for_status()?.text().await?)
}

/// An address where connections are refused.
async fn nobody() -> Result<Url, BoxError> {
    let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    Ok(format!("http://{address}/").parse()?)
}

/// What is at the bottom of an error.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error).to_string()
}

#[derive(Clone, Default)]
struct Server {
    running: watch::Sender<usize>,
    began: Arc<AtomicUsize>,
    finished: Arc<AtomicUsize>,
    asked_for_five: Arc<AtomicUsize>,
}

/// Leaves with the handler, however that ends.
struct Running(watch::Sender<usize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

impl Server {
    async fn serve(&self) -> Result<Url, BoxError> {
        let (gather, all) = (self.clone(), self.clone());
        let router = Router::new()
            .route("/gather/{n}", get(async move |Path(n): Path<usize>| gather.gather(n).await))
            .route("/all/{n}", get(async move |Path(n): Path<usize>| all.all(n).await));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?).parse()?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(url)
    }

    /// Number 7 fails once all are there. The others would never end.
    async fn gather(&self, n: usize) -> StatusCode {
        self.began.fetch_add(1, SeqCst);
        self.running.send_modify(|running| *running += 1);
        let _running = Running(self.running.clone());
        if n != 7 {
            return pending().await;
        }
        let _ = self.running.subscribe().wait_for(|running| *running == CALLS).await;
        self.finished.fetch_add(1, SeqCst);
        StatusCode::NOT_FOUND
    }

    async fn all(&self, n: usize) -> Result<String, StatusCode> {
        match n {
            3 => Err(StatusCode::NOT_FOUND),
            5 if self.asked_for_five.fetch_add(1, SeqCst) == 0 => Err(StatusCode::SERVICE_UNAVAILABLE),
            5 => Ok("item 5, at the second attempt".to_owned()),
            _ => Ok(format!("item {n}")),
        }
    }
}

/// A claim of this story that is broken ends it with exit code 1.
fn ensure(holds: bool, claim: impl std::fmt::Display) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this did not hold: {claim}").into()) }
}
