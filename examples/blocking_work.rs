//! Work that blocks, off the event loop and no more of it than there is room for: `run_in_executor`.
//!
//! ```text
//! cargo run --example blocking_work
//! ```
//!
//! `spawn_blocking` has 512 threads by default and no notion of how many of them are wise, so a limit stands before it. While the
//! threads work the runtime goes on. And what blocks it all the same, by mistake, is named by `SlowPoll`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use buttress::{ConcurrencyLimit, Error, Policy, SlowPoll};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    task::{JoinError, JoinSet, spawn_blocking},
    time::{interval, timeout},
};
use tower::BoxError;
use tracing_subscriber::{Layer, filter::LevelFilter, fmt::MakeWriter, prelude::*};

const THREADS: usize = 2;
const FILES: usize = 8;
/// Bytes of the first file; the others are small. To sum it up takes tens of milliseconds without optimizations, some with them.
const SIZE: usize = 4 << 20;

/// One thread, so that whoever blocks it blocks everybody: the worst case, which is `asyncio`'s only one.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    // Nothing here takes long; what waits for ever is a fault.
    timeout(Duration::from_secs(9), story()).await.unwrap_or_else(|_| Err("it waits for ever".into()))
}

async fn story() -> Result<(), BoxError> {
    // What panics below is part of the story; a line of it is enough.
    std::panic::set_hook(Box::new(|panic| println!("  ({})", panic.to_string().replace('\n', " "))));
    let (beat, heart) = watch::channel(0_u64);
    tokio::spawn(async move {
        let mut beats = interval(Duration::from_millis(1));
        loop {
            beats.tick().await;
            beat.send_modify(|beats| *beats += 1);
        }
    });
    let folder = Folder::new()?;
    at_most(&folder.0, heart.clone()).await?;
    cancelled(&folder.0, heart.clone()).await?;
    by_mistake(&folder.0, heart).await
}

/// Nine sums, two threads.
async fn at_most(folder: &Path, mut heart: watch::Receiver<u64>) -> Result<(), BoxError> {
    println!("{} files to sum up, {THREADS} threads for it:", FILES + 1);
    let policy = Policy::plain("sums")
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(THREADS).max_queue(FILES))
        .build()?;
    let limit = policy.concurrency_limit().ok_or("the policy has one")?;
    let (threads, open) = (Threads::default(), watch::Sender::new(false));
    let mut sums = JoinSet::new();
    for n in 0..=FILES {
        let (policy, threads, gate, path) =
            (policy.clone(), threads.clone(), open.subscribe(), folder.join(n.to_string()));
        let work = move || {
            let (threads, mut gate, path) = (threads.clone(), gate.clone(), path.clone());
            // What it gives is a future, and that is all that a policy asks for.
            spawn_blocking(move || {
                let _working = threads.enter();
                let _ = Handle::current().block_on(gate.wait_for(|open| *open));
                assert!(n != 3, "the sum of file 3 overflows");
                sum(&path)
            })
        };
        sums.spawn(async move { (n, policy.call(work).await) });
    }
    // Both threads are held. The one thread of the runtime has nothing to do with that.
    threads.0.subscribe().wait_for(|(now, _)| *now >= THREADS).await?;
    let before = *heart.borrow_and_update();
    heart.wait_for(|beats| *beats >= before + 10).await?;
    println!("  {} at work, {} wait; and the heart goes on beating", limit.in_flight(), limit.waiting());
    ensure((limit.in_flight(), limit.waiting()) == (THREADS, FILES + 1 - THREADS), "the others wait for their turn")?;
    open.send_replace(true);
    let mut outcomes = sums.join_all().await;
    outcomes.sort_by_key(|(n, _)| *n);
    let (mut good, mut failed, mut panicked) = (0, 0, 0);
    for (n, outcome) in &outcomes {
        match outcome {
            Ok(Ok(_)) => good += 1,
            Ok(Err(error)) => {
                println!("  file {n}: {error}");
                failed += 1;
            }
            Err(error) => {
                println!("  file {n}: {error}");
                panicked += usize::from(error.inner().is_some_and(JoinError::is_panic));
            }
        }
    }
    let (_, most) = *threads.0.borrow();
    println!("  {good} sums, by {most} threads at once at the most");
    ensure(
        (good, failed, panicked) == (FILES - 1, 1, 1),
        "one panics, one file is missing, and the others have their sums",
    )?;
    ensure(most == THREADS, format_args!("{THREADS} at once, not {most}"))?;
    ensure(limit.in_flight() == 0, "every permit is back, that of the panic too")
}

/// A thread cannot be cancelled, so whose permit is it that it works on?
async fn cancelled(folder: &Path, mut heart: watch::Receiver<u64>) -> Result<(), BoxError> {
    println!("\nA caller that is cancelled:");
    let limit = ConcurrencyLimit::builder().name("sums").max_in_flight(1).max_queue(0).build()?;

    // The call holds the permit, and the call is dropped: the permit is free, the thread is not.
    let (gate, held) = mpsc::channel::<()>();
    let (started, is_up) = oneshot::channel();
    let (path, limited) = (folder.join("0"), limit.clone());
    let caller = tokio::spawn(async move {
        limited.call(spawn_blocking(move || work(started, &held, &path))).await.map_err(Error::into_boxed)
    });
    is_up.await?;
    caller.abort();
    ensure(caller.await.is_err_and(|error| error.is_cancelled()), "the caller is gone")?;
    println!("  around the call:   {} in flight for the limit, and one thread that works", limit.in_flight());
    ensure(limit.in_flight() == 0, "the next one is let in while the thread still works: too early")?;
    drop(gate);

    // The work holds the permit.
    let (gate, held) = mpsc::channel::<()>();
    let (started, is_up) = oneshot::channel();
    let (path, permit) = (folder.join("0"), limit.acquire().await?);
    let (ended, end) = oneshot::channel();
    let caller = tokio::spawn(spawn_blocking_and_wait(move || {
        let sum = work(started, &held, &path);
        drop(permit);
        let _ = ended.send(());
        sum
    }));
    is_up.await?;
    caller.abort();
    ensure(caller.await.is_err_and(|error| error.is_cancelled()), "the caller is gone")?;
    let refused = limit.try_acquire().err().ok_or("the thread still works")?;
    println!("  within the work:   {refused}");
    heart.changed().await?; // nobody waits for the thread, least of all the runtime
    drop(gate);
    end.await?;
    println!("  once it has ended: {} in flight", limit.in_flight());
    ensure(limit.in_flight() == 0, "the end of the work is what gives the permit back")
}

async fn spawn_blocking_and_wait<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    spawn_blocking(work).await
}

/// Begins, is held until its gate is gone, and sums up.
fn work(started: oneshot::Sender<()>, gate: &mpsc::Receiver<()>, path: &Path) -> std::io::Result<u64> {
    let _ = started.send(());
    let _ = gate.recv();
    sum(path)
}

/// The same sum where it must not be.
async fn by_mistake(folder: &Path, mut heart: watch::Receiver<u64>) -> Result<(), BoxError> {
    println!("\nThe same in an async function, by mistake:");
    let log = Log::default();
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).without_time().with_writer(log.clone());
    let _heard = tracing_subscriber::registry().with(lines.with_filter(LevelFilter::WARN)).set_default();

    let slow = SlowPoll::new("sums", Duration::from_millis(1));
    let path = folder.join("0");
    heart.borrow_and_update();
    slow.watch(async { sum(&path) }).await?;
    let beats = heart.has_changed()?;
    let told = log.take();
    print!("{told}");
    println!("  the heart did {}beat meanwhile", if beats { "" } else { "not " });
    ensure(!beats, "the thread is blocked, and everybody waits")?;
    ensure(told.lines().count() == 1 && told.contains("name=\"sums\""), "who blocks is named")?;

    let off_the_loop = slow.watch(async { spawn_blocking(move || sum(&path)).await? });
    let (sum, beat) = tokio::join!(off_the_loop, heart.changed());
    println!("  off the loop, the sum is the same and the heart beats: {:x}", sum?);
    Ok(beat?)
}

/// FNV-1a of a file: reads, then computes.
fn sum(path: &Path) -> std::io::Result<u64> {
    let bytes = fs::read(path)?;
    Ok(bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)))
}

/// What is logged, kept to be printed in its place.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn take(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *self.0.lock().unwrap())).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// How many threads work, and the most there ever were.
#[derive(Clone, Default)]
struct Threads(watch::Sender<(usize, usize)>);

struct Working(Threads);

impl Threads {
    fn enter(&self) -> Working {
        self.0.send_modify(|(now, most)| (*now, *most) = (*now + 1, (*now + 1).max(*most)));
        Working(self.clone())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.0.send_modify(|(now, _)| *now -= 1);
    }
}

/// A folder with files to read; number `FILES` is not there. Removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("buttress-blocking-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let folder = Folder(folder);
        for n in 0..FILES {
            let size = if n == 0 { SIZE } else { 1_000 };
            fs::write(folder.0.join(n.to_string()), vec![b'b'; size])?;
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A claim of this story that is broken ends it with exit code 1.
fn ensure(holds: bool, claim: impl std::fmt::Display) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this did not hold: {claim}").into()) }
}
