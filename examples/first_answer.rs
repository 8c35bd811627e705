//! Ask several replicas, take the first good answer, cancel the rest: `asyncio.wait` with `FIRST_COMPLETED`.
//!
//! ```text
//! cargo run --example first_answer
//! ```
//!
//! Four replicas, by TCP: one refuses connections, one answers nonsense, one hangs, one is well. Each has a policy of its own,
//! so that the one that is down is soon not asked any more, and the others do not suffer for it.

use std::{
    fmt,
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use buttress::{Backoff, CircuitBreaker, Keyed, Policy, Reason, Rejection, circuit_breaker::State};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tower::BoxError;

type Replicas = Keyed<SocketAddr, Policy>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Nothing here takes long; what waits for ever is a fault.
    timeout(Duration::from_secs(9), story()).await.unwrap_or_else(|_| Err("it waits for ever".into()))
}

async fn story() -> Result<(), BoxError> {
    // How many calls the replica that hangs has before it.
    let (stuck, mut hangs) = watch::channel(0);
    let refuses = TcpListener::bind("127.0.0.1:0").await?.local_addr()?; // its listener is gone again
    let nonsense = serve(Replica::Nonsense).await?;
    let slow = serve(Replica::Hangs(stuck)).await?;
    let good = serve(Replica::Good(hangs.clone())).await?;

    let settings = Policy::plain("replica")
        .circuit_breaker(
            CircuitBreaker::builder().consecutive_failures(3).open_time(Backoff::constant(Duration::from_secs(30))),
        )
        .timeout(Duration::from_secs(5));
    let replicas = Keyed::each(settings).build()?;

    println!("{refuses} refuses connections, {nonsense} talks nonsense, {slow} hangs, {good} is well");
    println!("\nThe first good answer:");
    for round in 1..=2 {
        let won = first_answer(&replicas, &[refuses, nonsense, slow, good]).await?;
        println!("  {round}: {} from {}", won.price, won.from);
        ensure((won.price, won.from) == (42, good), "the good one wins")?;
        hangs.wait_for(|stuck| *stuck == 0).await?;
        println!("     the slow one was told: its connection is closed");
    }

    println!("\nOnly those that cannot answer, until it shows:");
    let mut last = None;
    for _ in 0..4 {
        let none = first_answer(&replicas, &[refuses, nonsense]).await.err().ok_or("nobody can answer")?;
        println!("  {none}");
        last = Some(none);
    }
    let last = last.ok_or("there were four")?;
    ensure(last.0.len() == 2, "every replica's own reason is told")?;
    let reasons = last.0.iter().map(|(_, error)| Rejection::find(&**error).map(Rejection::reason));
    ensure(reasons.eq([Some(Reason::CircuitOpen); 2]), "the two that fail are not asked any more")?;
    for (address, state) in [(refuses, State::Open), (slow, State::Closed), (good, State::Closed)] {
        let breaker = replicas.get(&address);
        ensure(breaker.circuit_breaker().map(CircuitBreaker::state) == Some(state), "each has a circuit of its own")?;
    }
    let won = first_answer(&replicas, &[refuses, nonsense, slow, good]).await?;
    println!("\nAll four once more: {} from {}, and two were not even asked", won.price, won.from);
    ensure(won.from == good, "an open circuit stands in nobody else's way")
}

#[derive(Debug)]
struct Won {
    price: u32,
    from: SocketAddr,
}

/// The first that is good; an error only if none is, with the reason of each.
async fn first_answer(replicas: &Replicas, addresses: &[SocketAddr]) -> Result<Won, NoAnswer> {
    let mut calls = JoinSet::new();
    for &address in addresses {
        let policy = replicas.get(&address);
        calls.spawn(async move { (address, policy.call(|| ask(address)).await) });
    }
    let mut failed = Vec::new();
    while let Some(ended) = calls.join_next().await {
        match ended {
            Ok((from, Ok(price))) => {
                // Aborts those that are left and waits until they are gone: with them go their connections.
                calls.shutdown().await;
                return Ok(Won { price, from });
            }
            Ok((from, Err(error))) => failed.push((from, error.into())),
            Err(panicked) => failed.push((([0; 4], 0).into(), panicked.into())),
        }
    }
    failed.sort_by_key(|(from, _)| addresses.iter().position(|address| address == from));
    Err(NoAnswer(failed))
}

/// One question on one connection.
async fn ask(address: SocketAddr) -> io::Result<u32> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(b"price?\n").await?;
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).await?;
    // What came in time and makes no sense is not an answer.
    let nonsense = |_| io::Error::new(ErrorKind::InvalidData, format!("not a price: {:?}", answer.trim_end()));
    answer.trim_end().parse().map_err(nonsense)
}

/// What a replica does with each of its connections.
#[derive(Clone)]
enum Replica {
    Nonsense,
    /// Never answers, and counts who waits.
    Hangs(watch::Sender<usize>),
    /// Answers once somebody waits for the slow one, so that there is something to cancel each time.
    Good(watch::Receiver<usize>),
}

async fn serve(replica: Replica) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(replica.clone().answer(socket));
        }
    });
    Ok(address)
}

impl Replica {
    async fn answer(self, socket: TcpStream) -> io::Result<()> {
        let mut socket = BufReader::new(socket);
        socket.read_line(&mut String::new()).await?;
        match self {
            Replica::Nonsense => socket.write_all(b"<html>maintenance</html>\n").await,
            Replica::Hangs(stuck) => {
                stuck.send_modify(|stuck| *stuck += 1);
                // What ends this is that the other side goes away.
                let gone = socket.read_u8().await;
                stuck.send_modify(|stuck| *stuck -= 1);
                gone.map(drop)
            }
            Replica::Good(mut slow) => {
                let _ = slow.wait_for(|stuck| *stuck > 0).await;
                socket.write_all(b"42\n").await
            }
        }
    }
}

/// Why each of them did not answer.
#[derive(Debug)]
struct NoAnswer(Vec<(SocketAddr, BoxError)>);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no answer")?;
        self.0.iter().try_for_each(|(from, error)| write!(f, "\n    {from}: {error}"))
    }
}

impl std::error::Error for NoAnswer {}

/// A claim of this story that is broken ends it with exit code 1.
fn ensure(holds: bool, claim: impl fmt::Display) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this did not hold: {claim}").into()) }
}
