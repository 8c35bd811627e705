//! Fifty URLs by one client: a shared `aiohttp` session, with a progress bar and a table of what came of it.
//!
//! ```text
//! cargo run --example parallel_http --features reqwest
//! ```
//!
//! Some answer 503 at first and are asked again, one is not there (404, which no retry mends), one is on a server that refuses
//! connections. The bar is drawn if there is a terminal.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::Path, http::StatusCode, routing::get};
use buttress::{ConcurrencyLimit, Error, Policy, Retry, retry};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, Method, Request, Url};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};
use tower::{BoxError, util::MapRequest};

const URLS: usize = 50;
const IN_FLIGHT: usize = 8;
const ATTEMPTS: usize = 3;
/// It is not there.
const MISSING: usize = 13;
/// Its server is not there.
const REFUSED: usize = 31;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Nothing here takes long; what waits for ever is a fault.
    timeout(Duration::from_secs(9), story()).await.unwrap_or_else(|_| Err("it waits for ever".into()))
}

async fn story() -> Result<(), BoxError> {
    let server = Server::default();
    let url = server.serve().await?;
    let nobody: Url = format!("http://{}/", TcpListener::bind("127.0.0.1:0").await?.local_addr()?).parse()?;

    let policy = Policy::reqwest("pages")
        .deadline(Duration::from_secs(5))
        // Its budget, which it has by default, has room for the eight further attempts that this takes.
        .retry(Retry::exponential(Duration::from_millis(5)).max_attempts(ATTEMPTS as u32))
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(IN_FLIGHT).max_queue(URLS))
        .build()?;
    // One client, so one pool of connections. What stands below the policy sees each attempt.
    let attempts: Arc<Mutex<BTreeMap<Url, u32>>> = Arc::default();
    let http = Client::builder().no_proxy().build()?;
    let pages = policy.wrap(MapRequest::new(http, {
        let attempts = Arc::clone(&attempts);
        move |request: Request| {
            let attempt = retry::current_attempt().unwrap_or_default();
            attempts.lock().unwrap().insert(request.url().clone(), attempt);
            request
        }
    }));

    let bar = ProgressBar::new(URLS as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}")?);
    let mut calls = JoinSet::new();
    let mut urls = Vec::new();
    for n in 0..URLS {
        let url = if n == REFUSED { nobody.join(&format!("page/{n}"))? } else { url.join(&format!("page/{n}"))? };
        let call = pages.send(Request::new(Method::GET, url.clone()));
        urls.push(url);
        calls.spawn(async move {
            let outcome = match call.await {
                Ok(answer) if answer.status().is_success() => match answer.bytes().await {
                    Ok(body) => Outcome::Page(body.len()),
                    Err(error) => Outcome::Failed(cause(&error)),
                },
                Ok(answer) => Outcome::Status(answer.status()),
                Err(Error::Inner(error)) => Outcome::Failed(cause(&error)),
                Err(Error::Rejected(no)) => Outcome::Failed(no.to_string()),
            };
            (n, outcome)
        });
    }
    // Once all are under way or in the queue (but for the one that is refused at once) the server answers.
    let limit = policy.concurrency_limit().ok_or("the policy has one")?;
    while limit.in_flight() + limit.waiting() < URLS - 1 {
        tokio::task::yield_now().await;
    }
    let in_flight = limit.in_flight();
    server.with_it.subscribe().wait_for(|(now, _)| *now >= IN_FLIGHT).await?;
    server.open.send_replace(true);
    let mut outcomes = BTreeMap::new();
    while let Some(ended) = calls.join_next().await {
        let (n, outcome) = ended?;
        outcomes.insert(n, outcome);
        bar.inc(1);
        bar.set_message(format!("page {n}"));
    }
    bar.finish_and_clear();

    // The table: pages that came at the first attempt in one row, all others in one each.
    let attempts = attempts.lock().unwrap().clone();
    let attempts = |n: usize| attempts.get(&urls[n]).copied().unwrap_or_default();
    let (mut pages, mut bytes, mut again, mut failed) = (0, 0, Vec::new(), Vec::new());
    println!("{:>8}  {:>8}  outcome", "page", "attempts");
    for (n, outcome) in &outcomes {
        match outcome {
            Outcome::Page(length) => {
                (pages, bytes) = (pages + 1, bytes + length);
                if attempts(*n) == 1 {
                    continue;
                }
                println!("{n:>8}  {:>8}  {length} bytes", attempts(*n));
                again.push(*n);
            }
            Outcome::Status(status) => println!("{n:>8}  {:>8}  {status}", attempts(*n)),
            Outcome::Failed(error) => println!("{n:>8}  {:>8}  {error}", attempts(*n)),
        }
        if !matches!(outcome, Outcome::Page(_)) {
            failed.push(*n);
        }
    }
    let first = pages - again.len();
    println!("{:>8}  {:>8}  {bytes} bytes in all", format!("{first} more"), 1);
    let (_, most) = *server.with_it.borrow();
    println!("\n{pages} of {URLS} pages, {most} at once at the most, {} of them asked for again", again.len());

    ensure(outcomes.len() == URLS && bar.position() == URLS as u64, "each URL has an outcome, and the bar saw it")?;
    ensure(failed == [MISSING, REFUSED], format_args!("two fail and no other, not {failed:?}"))?;
    ensure(matches!(outcomes[&MISSING], Outcome::Status(StatusCode::NOT_FOUND)), "404 is an answer")?;
    let asked = (attempts(MISSING), attempts(REFUSED));
    ensure(
        asked == (1, ATTEMPTS as u32),
        format_args!("404 is not asked for again, a refused connection is: {asked:?}"),
    )?;
    let flaky: Vec<_> = (0..URLS).filter(|n| Server::is_flaky(*n)).collect();
    ensure(again == flaky, format_args!("who answered 503 is asked again, not {again:?}"))?;
    ensure(pages == URLS - 2, "all others are there")?;
    ensure((in_flight, most) == (IN_FLIGHT, IN_FLIGHT), format_args!("{IN_FLIGHT} at once, not {in_flight} or {most}"))
}

enum Outcome {
    Page(usize),
    Status(StatusCode),
    Failed(String),
}

#[derive(Clone, Default)]
struct Server {
    /// Answers are held until then.
    open: watch::Sender<bool>,
    /// How many requests are with it, and the most there ever were.
    with_it: watch::Sender<(usize, usize)>,
    /// Pages that have answered 503 already.
    warm: Arc<Mutex<Vec<usize>>>,
}

impl Server {
    fn is_flaky(n: usize) -> bool {
        n % 7 == 3 && n != REFUSED
    }

    async fn serve(&self) -> Result<Url, BoxError> {
        let server = self.clone();
        let router = Router::new().route("/page/{n}", get(async move |Path(n): Path<usize>| server.page(n).await));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?).parse()?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(url)
    }

    async fn page(&self, n: usize) -> Result<String, StatusCode> {
        self.with_it.send_modify(|(now, most)| (*now, *most) = (*now + 1, (*now + 1).max(*most)));
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        self.with_it.send_modify(|(now, _)| *now -= 1);
        let mut warm = self.warm.lock().unwrap();
        if n == MISSING {
            return Err(StatusCode::NOT_FOUND);
        }
        if Self::is_flaky(n) && !warm.contains(&n) {
            warm.push(n);
            return Err(StatusCode::SERVICE_UNAVAILABLE);
        }
        Ok("a line of text\n".repeat(n))
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
