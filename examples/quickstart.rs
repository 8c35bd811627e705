//! One policy between several client tasks and a server that fails, stalls and recovers.
//!
//! ```text
//! cargo run --example quickstart --features reqwest
//! ```
//!
//! Everything is real: axum, reqwest, TCP on the loopback, and about 15 seconds of the wall clock.

#![allow(clippy::disallowed_methods, reason = "a demonstration in real time tells the time")]

use std::{
    error::Error as StdError,
    ops::Sub,
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use buttress::{
    Backoff, CircuitBreaker, ConcurrencyLimit, Error, Policy, Reason, Retry, Rule,
    circuit_breaker::{State, Transition},
    retry,
};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tower::util::MapRequest;

/// What the server does, and for how many seconds.
const PHASES: [(&str, u64); 4] = [("healthy", 3), ("500s", 4), ("stalls", 4), ("healthy", 4)];
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(300);
/// So many in a row open the circuit.
const FAILURES: u32 = 10;
const TASKS: u64 = 8;
/// Each task begins a call this often, or later if the one before is still under way.
const PACE: Duration = Duration::from_millis(100);
/// Even a healthy server drops one request in so many: that is what retry is for.
const HICCUP: u64 = 25;

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn StdError>> {
    let began = Instant::now();
    let phase = Arc::new(AtomicUsize::new(0));
    let story = Arc::new(Story::default());
    let url = serve(Arc::clone(&phase)).await?;

    // The one policy. All client tasks share its breaker, its limit and its budget.
    let listener = Arc::clone(&story);
    let policy = Policy::reqwest("shop")
        .deadline(Duration::from_secs(2))
        .retry(Retry::exponential(Duration::from_millis(50)).max_attempts(3))
        .circuit_breaker(
            CircuitBreaker::builder()
                .consecutive_failures(FAILURES)
                .open_time(Backoff::constant(Duration::from_secs(1)))
                .on_transition(move |transition| listener.moved(transition, began)),
        )
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(16).max_queue(16))
        .timeout(ATTEMPT_TIMEOUT)
        .build()?;
    let breaker = policy.circuit_breaker().ok_or("the policy has a breaker")?;

    // Counts the further attempts, from below the policy. Without that: `policy.wrap(reqwest::Client::new())`.
    let counter = Arc::clone(&story);
    let http = reqwest::Client::builder().no_proxy().build()?;
    let client = policy.wrap(MapRequest::new(http, move |request: reqwest::Request| {
        if retry::current_attempt() > Some(1) {
            counter.counts().retried += 1;
        }
        request
    }));

    println!("{TASKS} client tasks, one policy, one server at {url}");
    println!(
        "A row is one second. A call counts as sent when it begins and as the rest when it ends, which may be a row later."
    );
    println!("The lines between are the circuit's moves.\n");
    println!("{:>47} | {:<34} |", "", "rejected because of");
    println!(
        " {:>2}  {:<8} {:>6} {:>9} {:>7} {:>8} | {:>7} {:>8} {:>8} {:>8} | circuit",
        "s", "server", "sent", "answered", "failed", "retried", "circuit", "timeout", "overload", "deadline"
    );

    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (client, story, stop, url) = (client.clone(), Arc::clone(&story), Arc::clone(&stop), url.clone());
        tasks.spawn(async move {
            let mut pace = interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !stop.load(SeqCst) {
                pace.tick().await;
                let request = reqwest::Request::new(reqwest::Method::GET, url.clone());
                story.counts().sent += 1;
                let asked = Instant::now();
                let outcome = client.send(request).await;
                story.settled(outcome, asked.elapsed());
            }
        });
    }

    // The phases, a line for each second.
    let mut second = interval(Duration::from_secs(1));
    second.tick().await;
    let mut until = [Counts::default(); PHASES.len()];
    let (mut elapsed, mut before) = (0, Counts::default());
    for (number, (name, seconds)) in PHASES.into_iter().enumerate() {
        phase.store(number, SeqCst);
        for _ in 0..seconds {
            second.tick().await;
            elapsed += 1;
            let now = *story.counts();
            (now - before).print(elapsed, name, breaker.state());
            before = now;
        }
        until[number] = before;
    }

    // Normally the circuit has closed long ago. A machine that was busy at the wrong moment gets some more time.
    let mut state = breaker.watch();
    let closed = timeout(Duration::from_secs(10), state.wait_for(|state| *state == State::Closed)).await.is_ok();
    stop.store(true, SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    let total = *story.counts();
    until[PHASES.len() - 1] = total;

    let phases = [until[0], until[1] - until[0], until[2] - until[1], until[3] - until[2]];
    summary(&phases, &total, story.refusal());
    Ok(verdict(&phases, &total, closed))
}

/// The server, on a port of its own. It behaves as `phase` says.
async fn serve(phase: Arc<AtomicUsize>) -> Result<reqwest::Url, Box<dyn StdError>> {
    let requests = Arc::new(AtomicU64::new(0));
    let handler = move || async move {
        let request = requests.fetch_add(1, SeqCst) + 1;
        match PHASES[phase.load(SeqCst)].0 {
            "500s" => StatusCode::INTERNAL_SERVER_ERROR,
            "stalls" => std::future::pending().await,
            _ if request % HICCUP == 0 => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::OK,
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?).parse()?;
    let router = Router::new().route("/", get(handler));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

/// What happened so far, or within some time. Each call that was sent ends in exactly one of the other ways.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    sent: u64,
    answered: u64,
    /// The server answered with an error, or the connection broke.
    failed: u64,
    circuit_open: u64,
    timed_out: u64,
    overloaded: u64,
    out_of_time: u64,
    /// Attempts beyond the first of their call.
    retried: u64,
    /// Times that the circuit opened.
    opened: u64,
}

impl Counts {
    fn rejected(&self) -> u64 {
        self.circuit_open + self.timed_out + self.overloaded + self.out_of_time
    }

    fn print(&self, second: u64, server: &str, state: State) {
        let Self { sent, answered, failed, retried, circuit_open, timed_out, overloaded, out_of_time, .. } = self;
        let circuit = state.as_str();
        println!(
            " {second:>2}  {server:<8} {sent:>6} {answered:>9} {failed:>7} {retried:>8} | {circuit_open:>7} \
             {timed_out:>8} {overloaded:>8} {out_of_time:>8} | {circuit}"
        );
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            sent: self.sent - before.sent,
            answered: self.answered - before.answered,
            failed: self.failed - before.failed,
            circuit_open: self.circuit_open - before.circuit_open,
            timed_out: self.timed_out - before.timed_out,
            overloaded: self.overloaded - before.overloaded,
            out_of_time: self.out_of_time - before.out_of_time,
            retried: self.retried - before.retried,
            opened: self.opened - before.opened,
        }
    }
}

#[derive(Debug, Default)]
struct Story {
    counts: Mutex<Counts>,
    /// How long each call took that an open circuit refused.
    refusals: Mutex<Vec<Duration>>,
}

impl Story {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settled(&self, outcome: Result<reqwest::Response, Error<reqwest::Error>>, took: Duration) {
        let mut counts = self.counts();
        match outcome {
            Ok(response) if response.status().is_success() => counts.answered += 1,
            Ok(_) | Err(Error::Inner(_)) => counts.failed += 1,
            Err(Error::Rejected(rejection)) => match rejection.reason() {
                Reason::CircuitOpen => {
                    counts.circuit_open += 1;
                    self.refusals.lock().unwrap_or_else(PoisonError::into_inner).push(took);
                }
                Reason::Timeout => counts.timed_out += 1,
                Reason::Overloaded => counts.overloaded += 1,
                Reason::DeadlineExceeded => counts.out_of_time += 1,
                other => unreachable!("no layer of this policy says {other:?}"),
            },
        }
    }

    fn moved(&self, transition: &Transition, began: Instant) {
        let Transition { from, to, rule, measured, open_for, .. } = *transition;
        let why = match (to, rule) {
            (State::Open, Some(Rule::ConsecutiveFailures)) => format!(", {measured} failures in a row"),
            (State::Open, Some(Rule::ProbesFailed)) => format!(", {:.0} % of the probes failed", measured * 100.0),
            (State::Open, Some(rule)) => format!(", {}", rule.as_str()),
            _ => String::new(),
        };
        let pause = open_for.map_or(String::new(), |time| format!("; no calls for {time:.1?}"));
        let at = began.elapsed().as_secs_f64();
        println!("      {at:>4.1} s: {} -> {}{why}{pause}", from.as_str(), to.as_str());
        self.counts().opened += u64::from(to == State::Open);
    }

    /// The median time of a refusal.
    fn refusal(&self) -> Option<Duration> {
        let mut times = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }
}

fn summary([healthy, errors, stall, recovery]: &[Counts; 4], total: &Counts, refusal: Option<Duration>) {
    println!("\nWhat happened");
    println!(
        "- healthy: {} of {} calls were answered. One request in {HICCUP} fails all the same; retry asked again {} \
         times, and {} callers saw a failure.",
        healthy.answered, healthy.sent, healthy.retried, healthy.failed,
    );
    println!(
        "- 500s: {FAILURES} failures in a row opened the circuit, and {} calls were refused at once (median {:.0?}) \
         instead of asking a broken server.\n  When its time was up, a few probes asked again and failed: it opened {} \
         times. {} callers saw a 500.",
        errors.circuit_open,
        refusal.unwrap_or_default(),
        errors.opened,
        errors.failed,
    );
    println!(
        "- stalls: probes were cut off after {ATTEMPT_TIMEOUT:?} ({} callers saw the timeout). That counts as a failure: \
         the circuit opened {} times,\n  and {} calls did not have to wait at all.",
        stall.timed_out, stall.opened, stall.circuit_open,
    );
    println!(
        "- healthy: the next probes were answered and the circuit closed by itself. {} of {} calls were answered.",
        recovery.answered, recovery.sent,
    );
    println!(
        "- all: {} sent = {} answered + {} failed + {} rejected.",
        total.sent,
        total.answered,
        total.failed,
        total.rejected(),
    );
}

/// Holds the run to what the summary says.
fn verdict([healthy, errors, stall, recovery]: &[Counts; 4], total: &Counts, closed: bool) -> ExitCode {
    let claims = [
        (healthy.answered > 0, "the healthy server answers"),
        (errors.opened >= 1, "500s open the circuit"),
        (stall.timed_out >= 1, "stalled attempts are cut off"),
        (stall.opened >= 1, "a stalled server opens the circuit"),
        (total.circuit_open > 0, "an open circuit refuses calls"),
        (closed, "the circuit closes by itself once the server has recovered"),
        (recovery.answered > 0, "the recovered server answers"),
        (
            total.sent == total.answered + total.failed + total.rejected(),
            "every call ends in exactly one way: answered, failed or rejected",
        ),
    ];
    let mut code = ExitCode::SUCCESS;
    for (_, claim) in claims.iter().filter(|(holds, _)| !holds) {
        eprintln!("quickstart: this did not hold: {claim}");
        code = ExitCode::FAILURE;
    }
    code
}
