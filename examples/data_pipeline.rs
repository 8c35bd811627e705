//! A producer, a bounded queue, four consumers and a service downstream that has an outage: `asyncio.Queue` with its sentinel.
//!
//! ```text
//! cargo run --example data_pipeline
//! ```
//!
//! - The queue is bounded, so a producer that is faster than the consumers waits.
//! - The outage opens a circuit: items are refused instead of sent into the void. It closes by itself.
//! - A consumer that panics is started again, and its item is counted all the same.
//! - The shutdown stops the producer first. What is in the queue is worked off: the end of the channel is the sentinel.
//! - In the end the numbers add up: produced = processed + failed + refused.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use buttress::{
    Backoff, CircuitBreaker, Classify, Error, Kind, Policy, Reason, Shutdown, UntilHeaders, Verdict,
    circuit_breaker::State,
    retry::Once,
    shutdown::{Restart, TaskContext},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc, watch},
    time::{interval, timeout},
};
use tower::BoxError;

const CONSUMERS: usize = 4;
const QUEUE: usize = 16;
/// Not a number: downstream answers with an error, which is the item's fault and no reason to open a circuit.
const BAD: u64 = 20;
/// It makes its consumer panic.
const POISON: u64 = 40;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Nothing here takes long; what waits for ever is a fault.
    timeout(Duration::from_secs(9), story()).await.unwrap_or_else(|_| Err("it waits for ever".into()))
}

async fn story() -> Result<(), BoxError> {
    // What panics below is part of the story; a line of it is enough.
    std::panic::set_hook(Box::new(|panic| println!("       ({})", panic.to_string().replace('\n', " "))));
    let down = Arc::new(AtomicBool::new(false));
    let downstream = serve(Arc::clone(&down)).await?;
    let policy = Policy::plain("downstream")
        .timeout(Duration::from_secs(1))
        .circuit_breaker(
            CircuitBreaker::builder()
                .consecutive_failures(5)
                .open_time(Backoff::constant(Duration::from_millis(100)))
                .on_transition(|moved| println!("       circuit: {} -> {}", moved.from.as_str(), moved.to.as_str())),
        )
        .classify(ByFault)
        .build()?;
    let breaker = policy.circuit_breaker().ok_or("the policy has one")?.clone();

    let shutdown = Shutdown::builder()
        .lame_duck(Duration::ZERO) // nobody sends us anything
        .total(Duration::from_secs(5))
        .phase("monitor", Duration::from_secs(1)) // registered first, stopped last
        .phase("consumers", Duration::from_secs(2))
        .phase("producer", Duration::from_secs(1))
        .build()?;
    let handle = shutdown.handle();
    let (counts, mut seen) = watch::channel(Counts::default());
    let (items, queue) = mpsc::channel(QUEUE);
    let (fill, queue) = (items.downgrade(), Arc::new(Mutex::new(queue)));

    let breaker_seen = breaker.clone();
    handle.spawn("monitor", "stats", {
        let counts = counts.clone();
        move |cx| async move {
            let mut ticks = interval(Duration::from_millis(50));
            let mut stopping = pin!(cx.stopping());
            for tick in 0.. {
                tokio::select! {
                    () = &mut stopping => break,
                    _ = ticks.tick() => {}
                }
                let queued = fill.upgrade().map_or(0, |items| QUEUE - items.capacity());
                let state = breaker_seen.state().as_str();
                println!(
                    "{:>5.2} s  queue {queued:>2}  {}  circuit {state}",
                    0.05 * f64::from(tick),
                    counts.borrow().line()
                );
            }
        }
    })?;
    for n in 1..=CONSUMERS {
        let (queue, policy, counts) = (Arc::clone(&queue), policy.clone(), counts.clone());
        // At the end of the channel it returns, and that is no failure. If it panics it is started again.
        let restart = Restart::on_failure(Backoff::constant(Duration::from_millis(10)));
        handle.supervise("consumers", format!("consumer {n}"), restart, move |_| {
            consume(Arc::clone(&queue), policy.clone(), counts.clone(), downstream)
        })?;
    }
    handle.spawn("producer", "producer", {
        let counts = counts.clone();
        move |cx| produce(cx, items, counts)
    })?;
    handle.ready();

    // The story's turns, each on what has really happened.
    seen.wait_for(|counts| counts.processed >= 100).await?;
    println!("       downstream goes down");
    down.store(true, SeqCst);
    let mut state = breaker.watch();
    state.wait_for(|state| *state == State::Open).await?;
    seen.wait_for(|counts| counts.refused >= 50).await?;
    println!("       downstream is back");
    down.store(false, SeqCst);
    state.wait_for(|state| *state == State::Closed).await?;
    let before = seen.borrow().processed;
    seen.wait_for(|counts| counts.processed >= before + 100).await?;
    println!("       enough");
    handle.trigger("enough");

    let report = shutdown.wait().await;
    println!("\n{report}");
    let end = seen.borrow().clone();
    println!("{} produced = {}", end.produced, end.line());
    ensure(report.is_clean(), "everything stopped in time")?;
    ensure(end.produced == end.processed + end.failed + end.refused, "every item has ended in one way")?;
    ensure(end.processed >= 200 && end.refused >= 50, "it worked before and after the outage, and refused meanwhile")?;
    ensure(end.failed >= 5 + 2, "the circuit opened by failures; the bad item and the poisoned one failed too")?;
    ensure(end.waits > 0, "the producer waited while the queue was full")?;
    let restarts: u32 = report.tasks.iter().map(|task| task.restarts).sum();
    ensure(restarts == 1, format_args!("one consumer was started again, not {restarts}"))
}

/// Fifty at a time. It is the only one that can send: once it returns, the channel ends.
async fn produce(cx: TaskContext, items: mpsc::Sender<u64>, counts: watch::Sender<Counts>) {
    let mut bursts = interval(Duration::from_millis(25));
    let mut stopping = pin!(cx.stopping());
    for item in 1.. {
        let room = async {
            if item % 50 == 0 {
                bursts.tick().await;
            }
            if items.capacity() == 0 {
                counts.send_modify(|counts| counts.waits += 1);
            }
            items.reserve().await
        };
        // What was not sent is not produced: to be stopped while it waits loses nothing.
        let room = tokio::select! {
            () = &mut stopping => return,
            room = room => room,
        };
        let Ok(room) = room else { return };
        counts.send_modify(|counts| counts.produced += 1);
        room.send(item);
    }
}

/// Whose fault it is: the item's, which says nothing of the service, or that of the service, which opens its circuit.
#[derive(Clone, Copy)]
struct ByFault;

impl Classify<u64, io::Error> for ByFault {
    fn classify(&self, outcome: Result<&u64, &io::Error>) -> Verdict {
        match outcome {
            Ok(_) => Verdict::Success,
            Err(error) if error.kind() == ErrorKind::InvalidData => Verdict::Permanent,
            Err(_) => Verdict::TRANSIENT,
        }
    }
}

type DownstreamPolicy = Policy<Kind<ByFault, Once, UntilHeaders>>;
type Queue = Arc<Mutex<mpsc::Receiver<u64>>>;

/// Takes items until there will be no more.
async fn consume(queue: Queue, policy: DownstreamPolicy, counts: watch::Sender<Counts>, downstream: SocketAddr) {
    while let Some(item) = next(&queue).await {
        let mut taken = Taken { counts: &counts, end: |counts| &mut counts.failed };
        assert!(item != POISON, "item {item} is poison");
        match policy.call(|| ask(downstream, item)).await {
            Ok(answer) if answer == 2 * item => taken.end = |counts| &mut counts.processed,
            Ok(_) | Err(Error::Inner(_)) => {}
            Err(Error::Rejected(no)) if no.reason() == Reason::CircuitOpen => {
                taken.end = |counts| &mut counts.refused;
            }
            Err(Error::Rejected(_)) => {}
        }
    }
}

/// The lock is held while it waits for an item, by one consumer at a time, and not while the item is worked on.
async fn next(queue: &Queue) -> Option<u64> {
    queue.lock().await.recv().await
}

/// An item out of the queue. It is counted when it is dropped, so that a panic loses none: whose end is not known has failed.
struct Taken<'a> {
    counts: &'a watch::Sender<Counts>,
    end: fn(&mut Counts) -> &mut u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.counts.send_modify(|counts| *(self.end)(counts) += 1);
    }
}

#[derive(Clone, Debug, Default)]
struct Counts {
    produced: u64,
    processed: u64,
    failed: u64,
    refused: u64,
    /// How often the producer found the queue full.
    waits: u64,
}

impl Counts {
    fn line(&self) -> String {
        format!("{:>4} processed + {:>2} failed + {:>4} refused", self.processed, self.failed, self.refused)
    }
}

/// One question on one connection.
async fn ask(downstream: SocketAddr, item: u64) -> io::Result<u64> {
    let mut socket = BufReader::new(TcpStream::connect(downstream).await?);
    socket.write_all(format!("{item}\n").as_bytes()).await?;
    let mut answer = String::new();
    if socket.read_line(&mut answer).await? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    answer.trim_end().parse().map_err(|_| io::Error::new(ErrorKind::InvalidData, answer))
}

/// Doubles what it is told. While it is down it hangs up.
async fn serve(down: Arc<AtomicBool>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            if !down.load(SeqCst) {
                tokio::spawn(double(socket));
            }
        }
    });
    Ok(address)
}

async fn double(socket: TcpStream) -> io::Result<()> {
    let mut socket = BufReader::new(socket);
    let mut item = String::new();
    socket.read_line(&mut item).await?;
    let answer = match item.trim_end().parse() {
        Ok(BAD) | Err(_) => "that cannot be doubled\n".to_owned(),
        Ok(item) => format!("{}\n", 2 * item),
    };
    socket.write_all(answer.as_bytes()).await
}

/// A claim of this story that is broken ends it with exit code 1.
fn ensure(holds: bool, claim: impl std::fmt::Display) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this did not hold: {claim}").into()) }
}
