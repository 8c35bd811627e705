//! Three bounds on time: `asyncio.wait_for` and `asyncio.timeout`.
//!
//! ```text
//! cargo run --example timeouts
//! ```
//!
//! - The attempt timeout cuts off one attempt; the retry makes another.
//! - The deadline bounds the whole call, with all retries and the waits between them.
//! - A deadline within a deadline never lasts longer than the outer one, however long it asks for; a task of its own has to take
//!   it along.
//!
//! Who is cut off lets go: the server hears of it each time.

#![allow(clippy::disallowed_methods, reason = "a demonstration in real time tells the time")]

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use buttress::{Deadline, Error, Jitter, Policy, Reason, Retry, Rule, retry};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, timeout},
};
use tower::BoxError;

const ATTEMPT: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Nothing here takes long; what waits for ever is a fault.
    timeout(Duration::from_secs(9), story()).await.unwrap_or_else(|_| Err("it waits for ever".into()))
}

async fn story() -> Result<(), BoxError> {
    let server = Server::start().await?;
    let retry = || Retry::constant(Duration::from_millis(10)).jitter(Jitter::None).max_attempts(100).without_budget();

    println!("An attempt that hangs, and another one:");
    let policy = Policy::plain("stock").retry(retry()).timeout(ATTEMPT).build()?;
    let answer = policy.call(|| server.ask(if retry::current_attempt() == Some(1) { "hang" } else { "count" })).await?;
    server.alone().await?;
    println!("  {answer}, after {} attempts; nobody is left with the server", server.asked());
    ensure(server.asked() >= 2, "another attempt answers")?;

    println!("\nOne that always hangs, within 250 ms for all of its attempts:");
    let (before, began) = (server.asked(), Instant::now());
    let policy = Policy::plain("stock").deadline(Duration::from_millis(250)).retry(retry()).timeout(ATTEMPT).build()?;
    let late = policy.call(|| server.ask("hang")).await.err().ok_or("it never answers")?;
    let (took, attempts) = (began.elapsed(), server.asked() - before);
    server.alone().await?;
    println!("  {late}; {attempts} attempts, cut off after {took:.0?}");
    // If an attempt ends so late that there is no time for another, its own timeout is what is told.
    let bounds = [Some(Reason::DeadlineExceeded), Some(Reason::Timeout)];
    ensure(bounds.contains(&reason(&late)), "no attempt answers, and none is begun after the deadline")?;
    ensure((1..=3).contains(&attempts), format_args!("so many attempts fit in, not {attempts}"))?;
    ensure(took < Duration::from_secs(2), format_args!("it ends with the deadline, not after {took:?}"))?;

    println!("\nAn hour within 100 ms:");
    let outer = Policy::plain("page").deadline(Duration::from_millis(100)).build()?;
    let inner = Policy::plain("stock").deadline(Duration::from_secs(3_600)).retry(retry()).build()?;
    let began = Instant::now();
    let mut left = None;
    let late = outer
        .call_as(|| {
            // `call_as`, as the error of the inner policy is one of ours already: it stays one flat error.
            left = Deadline::current().map(Deadline::remaining);
            inner.call(|| server.ask("hang"))
        })
        .await
        .err()
        .ok_or("it never answers")?;
    let took = began.elapsed();
    server.alone().await?;
    println!("  {late}; after {took:.0?}");
    ensure(left.is_some_and(|left| left <= Duration::from_millis(100)), "whoever is within sees what is left")?;
    ensure(reason(&late) == Some(Reason::DeadlineExceeded), "it ends by a deadline")?;
    ensure(took < Duration::from_secs(2), format_args!("by the outer one, not after {took:?}"))?;

    println!("\nA task of its own:");
    let deadline = Deadline::after(Duration::from_secs(5));
    let (spawned, carried) = deadline
        .scope(async {
            let spawned = tokio::spawn(async { Deadline::current() });
            let carried = tokio::spawn(Deadline::carry(async { Deadline::current() }));
            (spawned.await, carried.await)
        })
        .await;
    let (spawned, carried) = (spawned?, carried?);
    println!("  spawned, it has {spawned:?}; with `Deadline::carry` it has the one that was current");
    ensure((spawned, carried) == (None, Some(deadline)), "a deadline is taken along only if it is carried")?;

    println!("\nOne bound on anything, without a policy:");
    let late = Deadline::after(ATTEMPT).enforce(server.ask("hang")).await.err().ok_or("it never answers")?;
    server.alone().await?;
    println!("  {late}");
    ensure(late.rejection().map(buttress::Rejection::rule) == Some(Rule::Deadline), "cut off")?;

    println!("\nNothing to wait for:");
    let nobody = Server::at(TcpListener::bind("127.0.0.1:0").await?.local_addr()?);
    let policy = Policy::plain("stock").deadline(Duration::from_secs(5)).timeout(ATTEMPT).build()?;
    let refused = policy.call(|| nobody.ask("count")).await.err().ok_or("nobody listens there")?;
    println!("  {refused}");
    ensure(refused.inner().is_some(), "a failure that comes at once is the call's own error")
}

fn reason<E>(error: &Error<E>) -> Option<Reason> {
    error.rejection().map(|no| no.reason())
}

/// Answers, or hangs until the other side goes away; and what it takes to ask it.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    sent: Arc<AtomicUsize>,
    /// How many questions it has got, and how many of those who asked are still there.
    with_it: watch::Sender<(usize, usize)>,
}

impl Server {
    fn at(address: SocketAddr) -> Self {
        Self { address, sent: Arc::default(), with_it: watch::Sender::default() }
    }

    async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let server = Self::at(listener.local_addr()?);
        let handler = server.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let handler = handler.clone();
                tokio::spawn(async move { handler.answer(socket).await });
            }
        });
        Ok(server)
    }

    /// One question on one connection.
    async fn ask(&self, question: &str) -> io::Result<String> {
        let mut socket = BufReader::new(TcpStream::connect(self.address).await?);
        socket.write_all(format!("{question}\n").as_bytes()).await?;
        self.sent.fetch_add(1, SeqCst);
        let mut answer = String::new();
        socket.read_line(&mut answer).await?;
        Ok(answer.trim_end().to_owned())
    }

    async fn answer(&self, socket: TcpStream) -> io::Result<()> {
        let (mut socket, mut question) = (BufReader::new(socket), String::new());
        socket.read_line(&mut question).await?;
        self.with_it.send_modify(|(got, there)| (*got, *there) = (*got + 1, *there + 1));
        let answered = match question.trim_end() {
            "hang" => socket.read_u8().await.map(drop),
            _ => socket.write_all(b"12 in stock\n").await,
        };
        self.with_it.send_modify(|(_, there)| *there -= 1);
        answered
    }

    fn asked(&self) -> usize {
        self.sent.load(SeqCst)
    }

    /// It has got all that was sent, and nobody is with it any more.
    async fn alone(&self) -> Result<(), BoxError> {
        self.with_it.subscribe().wait_for(|(got, there)| *got == self.asked() && *there == 0).await?;
        Ok(())
    }
}

/// A claim of this story that is broken ends it with exit code 1.
fn ensure(holds: bool, claim: impl std::fmt::Display) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this did not hold: {claim}").into()) }
}
