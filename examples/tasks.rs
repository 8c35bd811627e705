//! Tasks that have names, are supervised, and are cancelled with time to clean up: `asyncio.create_task`, `cancel`, `CancelledError`.
//!
//! ```text
//! cargo run --example tasks
//! ```
//!
//! - `await task` with its result is tokio's own: a `JoinHandle`. A panic is an error of that, and of nobody else.
//! - One task is cancelled by a token: it hears of it at its next `select!`, cleans up, and returns. Aborted, it is dropped where it
//!   stands, and only its `Drop`s run; there is no `except CancelledError`.
//! - What lives as long as the process has a name with the shutdown, which restarts it, stops it, and reports on it by name.

use std::{fs, future::pending, path::PathBuf, time::Duration};

use buttress::{
    Backoff, Shutdown,
    shutdown::{Restart, TaskOutcome},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::BoxError;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Nothing here takes long; what waits for ever is a fault.
    timeout(Duration::from_secs(9), story()).await.unwrap_or_else(|_| Err("it waits for ever".into()))
}

async fn story() -> Result<(), BoxError> {
    // What panics below is part of the story; a line of it is enough.
    std::panic::set_hook(Box::new(|panic| println!("  ({})", panic.to_string().replace('\n', " "))));
    results().await?;
    cancelled().await?;
    supervised().await
}

/// A task and its result.
async fn results() -> Result<(), BoxError> {
    println!("Results:");
    let six = tokio::spawn(async { 6 }).await?;
    let refused = tokio::spawn(async { TcpStream::connect(nobody().await?).await });
    let panics = tokio::spawn(async move { six / (six - 6) });
    let refused = refused.await?.err().ok_or("nobody listens there")?;
    let panicked = panics.await.err().ok_or("it divides by zero")?;
    println!("  {six}; {refused}; {panicked}");
    ensure(six == 6 && panicked.is_panic(), "a result, an error and a panic, each to whoever waits for it")
}

/// One task among others is cancelled.
async fn cancelled() -> Result<(), BoxError> {
    println!("\nCancelled:");
    let (peer, mut heard) = peer().await?;
    let lock = Lock::take("cancelled")?;
    let path = lock.0.clone();
    let stop = CancellationToken::new();
    let (started, is_up) = oneshot::channel();
    let task = tokio::spawn({
        let stop = stop.clone();
        async move {
            let _lock = lock;
            let mut socket = TcpStream::connect(peer).await?;
            socket.write_all(b"hello, ").await?;
            let _ = started.send(());
            tokio::select! {
                () = stop.cancelled() => {}
                () = pending() => {} // its work
            }
            // What has to be waited for is cleaned up here, and not in a `Drop`.
            socket.write_all(b"goodbye").await?;
            socket.shutdown().await
        }
    });
    is_up.await?;
    stop.cancel();
    task.await??;
    let said = heard.recv().await.ok_or("it was connected")?;
    println!("  by a token:  the peer heard {said:?}, and its lock is {}", there(&path));
    ensure(said == "hello, goodbye" && !path.exists(), "told to stop, it says goodbye and lets go of its lock")?;

    let lock = Lock::take("aborted")?;
    let path = lock.0.clone();
    let (started, is_up) = oneshot::channel();
    let task = tokio::spawn(async move {
        let _lock = lock;
        let mut socket = TcpStream::connect(peer).await?;
        socket.write_all(b"hello, ").await?;
        let _ = started.send(());
        pending::<()>().await;
        socket.write_all(b"goodbye").await
    });
    is_up.await?;
    task.abort();
    let aborted = task.await.err().ok_or("it would never end by itself")?;
    let said = heard.recv().await.ok_or("it was connected")?;
    println!("  by `abort`:  the peer heard {said:?}, and its lock is {}", there(&path));
    ensure(aborted.is_cancelled() && said == "hello, ", "aborted, it says no goodbye")?;
    ensure(!path.exists(), "but what it owns is dropped, even then")
}

/// Tasks that live as long as the process.
async fn supervised() -> Result<(), BoxError> {
    println!("\nSupervised:");
    let shutdown = Shutdown::builder()
        .lame_duck(Duration::ZERO) // nobody sends us anything
        .total(Duration::from_secs(5))
        .phase("work", Duration::from_millis(300))
        .build()?;
    let handle = shutdown.handle();
    let (up, mut seen) = watch::channel(0);
    let again = Restart::on_failure(Backoff::constant(Duration::from_millis(10)));

    let running = up.clone();
    let down = nobody().await?;
    handle.supervise("work", "poller", again, move |cx| {
        let running = running.clone();
        async move {
            println!("  poller: started, {} restarts", cx.restarts());
            if cx.restarts() < 2 {
                TcpStream::connect(down).await?;
            }
            running.send_modify(|up| *up += 1);
            cx.stopping().await;
            Ok::<_, std::io::Error>(())
        }
    })?;

    let running = up.clone();
    handle.supervise("work", "parser", again, move |cx| {
        let running = running.clone();
        async move {
            println!("  parser: started, {} restarts", cx.restarts());
            if cx.restarts() == 0 {
                let _: u32 = "1O".parse().expect("a number");
            }
            running.send_modify(|up| *up += 1);
            cx.stopping().await;
        }
    })?;

    let lock = Lock::take("deaf")?;
    let path = lock.0.clone();
    let running = up.clone();
    handle.spawn("work", "deaf", move |_| async move {
        let _lock = lock;
        running.send_modify(|up| *up += 1);
        pending::<()>().await
    })?;

    // The process can do without it: that it fails stops nothing.
    let running = up.clone();
    handle.task("work", "cache warmer").optional().spawn(move |_| async move {
        running.send_modify(|up| *up += 1);
        Err::<(), _>("no cache to warm")
    })?;
    // A name that does not exist is an error, and not a task that nobody stops.
    let refused = handle.spawn("wrok", "typo", async |_| {}).err().ok_or("there is no such phase")?;
    println!("  {refused}");

    seen.wait_for(|up| *up == 4).await?;
    ensure(!handle.is_draining(), "nothing of all that has stopped the process")?;
    handle.trigger("the end of the story");
    let report = shutdown.wait().await;
    println!("  {}\n  All of them, by name:", report.to_string().replace("\n  ", "\n    "));
    for task in &report.tasks {
        println!("    {task}");
    }
    let outcomes: Vec<_> = report.tasks.iter().map(|task| (&*task.name, task.outcome.clone(), task.restarts)).collect();
    let expected = [
        ("poller", TaskOutcome::Ok, 2),
        ("parser", TaskOutcome::Ok, 1),
        ("deaf", TaskOutcome::Aborted, 0),
        ("cache warmer", TaskOutcome::Err("no cache to warm".to_owned()), 0),
    ];
    ensure(outcomes == expected, format_args!("each is reported by its name, not {outcomes:?}"))?;
    ensure(report.exit_code() == 1, "one that does not stop makes it an unclean end")?;
    ensure(!path.exists(), "the aborted one has let go of its lock, too")
}

/// A lock file. Whatever ends its task, it is removed.
struct Lock(PathBuf);

impl Lock {
    fn take(name: &str) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("buttress-tasks-{}-{name}.lock", std::process::id()));
        fs::File::create_new(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn there(path: &std::path::Path) -> &'static str {
    if path.exists() { "still there" } else { "gone" }
}

/// Listens, and tells what each of its connections has said until its end.
async fn peer() -> std::io::Result<(std::net::SocketAddr, mpsc::Receiver<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (tell, heard) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut said = String::new();
            let _ = socket.read_to_string(&mut said).await;
            let _ = tell.send(said).await;
        }
    });
    Ok((address, heard))
}

/// An address where connections are refused.
async fn nobody() -> std::io::Result<std::net::SocketAddr> {
    TcpListener::bind("127.0.0.1:0").await?.local_addr()
}

/// A claim of this story that is broken ends it with exit code 1.
fn ensure(holds: bool, claim: impl std::fmt::Display) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this did not hold: {claim}").into()) }
}
