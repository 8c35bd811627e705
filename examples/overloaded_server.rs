//! A server that stays up while three times as much comes as it can do: an axum `Router` on the loopback, as it is and behind a
//! policy.
//!
//! ```text
//! cargo run --example overloaded_server --features http
//! ```
//!
//! The handler has four workers, and a request takes 50 ms of one: 80 a second are all that can be answered, whatever comes. 240 a
//! second come, from clients who wait for 300 ms and say so in a header.
#![allow(clippy::disallowed_methods)] // the clock is looked at to measure

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, http::HeaderName, routing::get};
use buttress::{
    ConcurrencyLimit, Deadline, LagGuard, Policy,
    concurrency_limit::{Discipline, Headroom},
    http::{ReadDeadlineLayer, RespondLayer},
};
use reqwest::{Client, Response, StatusCode, header::CONTENT_TYPE};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};
use tower::ServiceBuilder;

const WORKERS: usize = 4;
const WORK: Duration = Duration::from_millis(50);
/// Requests a second.
const CAPACITY: f64 = 80.0;
const LOAD: f64 = 3.0 * CAPACITY;
/// How long a client waits, and what it tells the server of it: the rest is for the way.
const PATIENCE: Duration = Duration::from_millis(300);
const TOLD: Duration = Duration::from_millis(250);
const HEADER: &str = "x-timeout-ms";
const RUN: Duration = Duration::from_secs(4);
/// The first part of it, in which queues fill and the limit finds itself, is not counted.
const WARM_UP: Duration = Duration::from_secs(1);
/// By how much a machine that has much else to do may be late.
const GRACE: Duration = Duration::from_millis(100);

/// Counts the work that was still done after its deadline, for nobody.
type InVain = Arc<AtomicUsize>;

fn routes(in_vain: &InVain) -> Router {
    let (workers, in_vain) = (Arc::new(Semaphore::new(WORKERS)), Arc::clone(in_vain));
    let handler = async move || {
        let deadline = Deadline::current().unwrap_or_else(|| Deadline::after(TOLD));
        // Goes on when nobody waits for it any more, as `spawn_blocking` does, or a query that a database has begun.
        let work = tokio::spawn(async move {
            let _worker = workers.acquire_owned().await;
            sleep(WORK).await;
            if deadline.instant().elapsed() > GRACE {
                in_vain.fetch_add(1, Relaxed);
            }
        });
        work.await.map_or("it panicked", |()| "the answer")
    };
    Router::new().route("/", get(handler))
}

/// The same routes, where nothing is begun that cannot be answered in time.
fn protected(in_vain: &InVain) -> Result<Router, buttress::ConfigError> {
    let policy = Policy::http_server("api")
        .concurrency_limit(
            // Finds out how many at once are worth it. Of those who wait the one with the least time left goes first.
            ConcurrencyLimit::builder().adaptive(Headroom::default()).discipline(Discipline::Deadline).max_queue(8),
        )
        .build()?;
    // Later than that, and whoever is let in has too little time left.
    let guard = LagGuard::builder().max_lag(PATIENCE / 2).start()?;
    Ok(routes(in_vain).layer(
        ServiceBuilder::new()
            .layer(RespondLayer::new())
            .layer(guard.layer())
            .layer(ReadDeadlineLayer::new().header(HeaderName::from_static(HEADER)))
            .layer(policy.layer()),
    ))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered,
    /// With a 503 or 504 that says why.
    Refused,
    /// The client hung up.
    TooLate,
}

fn outcome(response: &Response) -> Outcome {
    match response.status() {
        StatusCode::OK => Outcome::Answered,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            let content = response.headers().get(CONTENT_TYPE);
            assert_eq!(content.map(|value| value.as_bytes()), Some(&b"application/problem+json"[..]));
            Outcome::Refused
        }
        status => panic!("{status}"),
    }
}

struct Round {
    /// How each request ended, and after how long.
    ended: Vec<(Outcome, Duration)>,
    /// By how much a request was sent too late at most.
    late: Duration,
}

impl Round {
    /// Sends at an even rate, whatever comes back.
    async fn of(app: Router) -> Result<Self, Box<dyn StdError>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let client = Client::builder().no_proxy().build()?;
        let (mut ticks, mut requests) = (interval(Duration::from_secs_f64(1.0 / LOAD)), JoinSet::new());
        let (start, mut late) = (Instant::now(), Duration::ZERO);
        while start.elapsed() < RUN {
            late = late.max(ticks.tick().await.elapsed());
            let request = client.get(&url).header(HEADER, TOLD.as_millis().to_string());
            let counts = start.elapsed() >= WARM_UP;
            requests.spawn(async move {
                let sent = Instant::now();
                let outcome = match timeout(PATIENCE, request.send()).await {
                    Ok(Ok(response)) => outcome(&response),
                    Ok(Err(error)) => panic!("the server went away: {error}"),
                    Err(_) => Outcome::TooLate,
                };
                counts.then(|| (outcome, sent.elapsed()))
            });
        }
        let ended = requests.join_all().await.into_iter().flatten().collect();
        server.abort();
        Ok(Self { ended, late })
    }

    fn times(&self, of: Outcome) -> Vec<Duration> {
        let mut times: Vec<_> =
            self.ended.iter().filter(|(outcome, _)| *outcome == of).map(|(_, time)| *time).collect();
        times.sort_unstable();
        times
    }

    /// Answered in time, a second.
    fn goodput(&self) -> f64 {
        self.times(Outcome::Answered).len() as f64 / (RUN - WARM_UP).as_secs_f64()
    }

    fn print(&self, name: &str, in_vain: usize) {
        let [answered, refused, too_late] =
            [Outcome::Answered, Outcome::Refused, Outcome::TooLate].map(|outcome| self.times(outcome));
        let median = |times: &[Duration]| median(times).map_or("-".to_owned(), |time| format!("{time:.0?}"));
        println!(
            "{name:<15} {:>5} {:>9} ({:>6}) {:>8} ({:>6}) {:>8} {:>15.0} {:>18}",
            self.ended.len(),
            answered.len(),
            median(&answered),
            refused.len(),
            median(&refused),
            too_late.len(),
            self.goodput(),
            in_vain,
        );
    }
}

/// Of times in their order.
fn median(times: &[Duration]) -> Option<Duration> {
    times.get(times.len() / 2).copied()
}

/// Told one by one, so that whoever reads this sees all that does not hold.
fn claim(holds: bool, what: &str, all: &mut bool) {
    println!("{} {what}", if holds { "yes:" } else { "NO: " });
    *all &= holds;
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    println!("{CAPACITY} requests a second can be answered, {LOAD} come; each client waits for {PATIENCE:?}.\n");
    println!("                 sent  answered (median)  refused (median) too late  goodput per s  worked on in vain");
    let in_vain = InVain::default();
    let bare = Round::of(routes(&in_vain)).await?;
    let bare_in_vain = in_vain.load(Relaxed);
    bare.print("as it is", bare_in_vain);

    let in_vain = InVain::default();
    let round = Round::of(protected(&in_vain)?).await?;
    let in_vain = in_vain.load(Relaxed);
    round.print("with a policy", in_vain);

    println!();
    let mut all = true;
    let goodput = round.goodput();
    claim(goodput >= 0.7 * CAPACITY, "with the policy at least 70 % of what can be answered is, and in time", &mut all);
    claim(goodput >= 3.0 * bare.goodput(), "without it, not a third of that", &mut all);
    let (answered, refused) = (round.times(Outcome::Answered), round.times(Outcome::Refused));
    let cheap = median(&refused).zip(median(&answered)).is_some_and(|(refused, answered)| refused * 4 < answered);
    claim(cheap, "half of those who are refused know in a quarter of the time that an answer takes", &mut all);
    // The first ten are let in before anybody knows how long an answer takes.
    claim(10 * in_vain <= answered.len(), "nine of ten that were let in were answered by their deadline", &mut all);
    let late = round.late.max(bare.late);
    if !all && late > PATIENCE - TOLD {
        // Whoever gets no time cannot keep any: then this says something about the neighbours, and nothing about the server.
        println!(
            "\nThis machine was busy with something else: requests were sent {late:.0?} late. Nothing is to be learned here."
        );
        return Ok(());
    }
    if all { Ok(()) } else { Err("a claim does not hold".into()) }
}
