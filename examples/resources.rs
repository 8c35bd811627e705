//! Resources that are acquired in order and released in reverse, whatever happens: `async with`, and `AsyncExitStack`.
//!
//! ```text
//! cargo run --example resources
//! ```
//!
//! A folder, a journal in it, a connection: each builds on the one before. A `Drop` cannot wait, so what has to say goodbye is a task
//! of a phase: it opens its resource, hands it out, and closes it when it is its turn, which is in the reverse order.
//! Five endings: all goes well, the body fails, the body panics, the last resource cannot be had, the process is told to stop.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use buttress::{
    Shutdown,
    shutdown::{Handle, Report, TaskContext, TaskOutcome},
};
use tokio::{
    fs,
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tower::BoxError;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Nothing here takes long; what waits for ever is a fault.
    timeout(Duration::from_secs(9), story()).await.unwrap_or_else(|_| Err("it waits for ever".into()))
}

async fn story() -> Result<(), BoxError> {
    // What panics below is part of the story; a line of it is enough.
    std::panic::set_hook(Box::new(|panic| println!("  ({})", panic.to_string().replace('\n', " "))));
    let (peer, mut heard) = peer().await?;
    let nobody = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let all = [
        "folder: made",
        "journal: opened",
        "connection: opened",
        "body: began",
        "connection: said goodbye",
        "journal: flushed",
        "folder: removed",
    ];

    println!("All goes well:");
    let ended = session(peer, |open| async move {
        open.journal.send("one line".to_owned()).await?;
        open.connection.send("one line".to_owned()).await?;
        Ok(())
    })
    .await?;
    ensure(ended.log == all && ended.report.is_clean(), "acquired in order, released in reverse")?;
    ensure(heard.recv().await.as_deref() == Some("one line, goodbye"), "what was sent has arrived before the goodbye")?;

    println!("\nThe body fails:");
    let ended = session(peer, |_| async { Err("there is nothing to write".into()) }).await?;
    ensure(ended.log == all, "released in reverse all the same")?;
    ensure(heard.recv().await.as_deref() == Some("goodbye"), "with a goodbye")?;
    let failed = TaskOutcome::Err("there is nothing to write".to_owned());
    ensure(ended.body() == Some(&failed) && !ended.report.is_clean(), "its error is in the report")?;

    println!("\nThe body panics:");
    let ended = session(peer, |_| async { panic!("nobody has thought of that") }).await?;
    ensure(ended.log == all, "released in reverse all the same")?;
    ensure(heard.recv().await.as_deref() == Some("goodbye"), "with a goodbye")?;
    let panicked = TaskOutcome::Panicked("nobody has thought of that".to_owned());
    ensure(ended.body() == Some(&panicked), "and so is what it said")?;

    println!("\nThe last resource cannot be had:");
    let ended = session(nobody, |_| async { Ok(()) }).await?;
    println!("  {}", ended.report.to_string().replace('\n', "\n  "));
    let without = ["folder: made", "journal: opened", "journal: flushed", "folder: removed"];
    ensure(ended.log == without, "what was there is released; the body never begins")?;
    let failed: Vec<_> = ended.report.tasks.iter().filter(|task| task.is_failure()).map(|task| &*task.name).collect();
    ensure(failed == ["connection"] && ended.body().is_none(), "the report names who could not open")?;

    println!("\nThe process is told to stop:");
    let ended = session(peer, |open| async move {
        // As if a signal had come, while the body is at its work. It hears of it and comes to an end; then they are released.
        open.handle.trigger("SIGTERM, say");
        open.handle.draining().await;
        open.connection.send("last words".to_owned()).await?;
        Ok(())
    })
    .await?;
    ensure(ended.log == all && ended.report.is_clean(), "nothing is taken away from under the body")?;
    ensure(heard.recv().await.as_deref() == Some("last words, goodbye"), "it had its last words")
}

/// What the body has while it runs.
struct Open {
    journal: mpsc::Sender<String>,
    connection: mpsc::Sender<String>,
    handle: Handle,
}

struct Ended {
    report: Report,
    log: Vec<String>,
}

impl Ended {
    /// What became of the body; nothing, if it has not begun.
    fn body(&self) -> Option<&TaskOutcome> {
        self.report.tasks.iter().find(|task| task.name == "body").map(|task| &task.outcome)
    }
}

/// As `async with folder() as f, journal(f) as j, connection(to) as c: await body(j, c)` would.
async fn session<F, Fut>(to: SocketAddr, body: F) -> Result<Ended, BoxError>
where
    F: FnOnce(Open) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let time = Duration::from_secs(1);
    let shutdown = Shutdown::builder()
        .lame_duck(Duration::ZERO)
        .total(Duration::from_secs(6))
        .phase("folder", time) // registered first, released last
        .phase("journal", time)
        .phase("connection", time)
        .phase("body", time)
        .build()?;
    let log = Log::default();
    if let Err(error) = enter(&shutdown.handle(), &log, to, body).await {
        // Whoever could not open has ended, and that was critical: the release has begun already.
        println!("  no body: {error}");
    }
    let report = shutdown.wait().await;
    let log = log.0.lock().unwrap().clone();
    Ok(Ended { report, log })
}

async fn enter<F, Fut>(handle: &Handle, log: &Log, to: SocketAddr, body: F) -> Result<(), BoxError>
where
    F: FnOnce(Open) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let said = log.clone();
    let path = open(handle, "folder", |cx, opened| folder(cx, opened, said)).await?;
    let said = log.clone();
    let journal = open(handle, "journal", move |cx, opened| journal(cx, opened, said, path)).await?;
    let said = log.clone();
    let connection = open(handle, "connection", move |cx, opened| connection(cx, opened, said, to)).await?;
    let (open, said) = (Open { journal, connection, handle: handle.clone() }, log.clone());
    // Its end, whichever it is, is the end of all: it is critical, as every task is that is not `optional`.
    handle.spawn("body", "body", move |_| {
        said.say("body: began");
        body(open)
    })?;
    Ok(())
}

/// Opens a resource in a task of its phase, and waits until it is there.
async fn open<R, F, Fut>(handle: &Handle, phase: &'static str, resource: F) -> Result<R, BoxError>
where
    R: Send + 'static,
    F: FnOnce(TaskContext, oneshot::Sender<R>) -> Fut + Send + 'static,
    Fut: Future<Output = io::Result<()>> + Send + 'static,
{
    let (opened, is_open) = oneshot::channel();
    handle.spawn(phase, phase, move |cx| resource(cx, opened))?;
    is_open.await.map_err(|_| format!("the {phase} could not be opened").into())
}

// Each resource: open it, hand it out, use it until it is its turn to stop, close it.

async fn folder(cx: TaskContext, opened: oneshot::Sender<PathBuf>, log: Log) -> io::Result<()> {
    static NTH: AtomicUsize = AtomicUsize::new(0);
    let name = format!("buttress-resources-{}-{}", std::process::id(), NTH.fetch_add(1, SeqCst));
    let path = std::env::temp_dir().join(name);
    fs::create_dir(&path).await?;
    log.say("folder: made");
    let _ = opened.send(path.clone());
    cx.stopping().await;
    fs::remove_dir_all(&path).await?;
    log.say("folder: removed");
    Ok(())
}

async fn journal(cx: TaskContext, opened: oneshot::Sender<Lines>, log: Log, folder: PathBuf) -> io::Result<()> {
    let mut file = fs::File::create_new(folder.join("journal")).await?;
    log.say("journal: opened");
    write_lines(&cx, opened, &mut file).await?;
    // Were its folder gone by now, that could not be read any more.
    file.sync_all().await?;
    fs::read(folder.join("journal")).await?;
    log.say("journal: flushed");
    Ok(())
}

async fn connection(cx: TaskContext, opened: oneshot::Sender<Lines>, log: Log, to: SocketAddr) -> io::Result<()> {
    let mut socket = TcpStream::connect(to).await?;
    log.say("connection: opened");
    write_lines(&cx, opened, &mut socket).await?;
    socket.write_all(b"goodbye").await?;
    socket.shutdown().await?;
    log.say("connection: said goodbye");
    Ok(())
}

type Lines = mpsc::Sender<String>;

/// Writes what comes, and once it is its turn to stop, what is left.
async fn write_lines<W>(cx: &TaskContext, opened: oneshot::Sender<Lines>, into: &mut W) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let (lines, mut queue) = mpsc::channel::<String>(16);
    let _ = opened.send(lines);
    let mut stopping = pin!(cx.stopping());
    loop {
        tokio::select! {
            Some(line) = queue.recv() => into.write_all(format!("{line}, ").as_bytes()).await?,
            () = &mut stopping => break,
        }
    }
    // What was sent before is still received; then comes the end of the channel.
    queue.close();
    while let Some(line) = queue.recv().await {
        into.write_all(format!("{line}, ").as_bytes()).await?;
    }
    into.flush().await
}

/// What happened, in its order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn say(&self, what: &str) {
        println!("  {what}");
        self.0.lock().unwrap().push(what.to_owned());
    }
}

/// Listens, and tells what each of its connections has said until its end.
async fn peer() -> io::Result<(SocketAddr, mpsc::Receiver<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (tell, heard) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut said = String::new();
            let _ = socket.read_to_string(&mut said).await;
            let _ = tell.send(said).await;
        }
    });
    Ok((address, heard))
}

/// A claim of this story that is broken ends it with exit code 1.
fn ensure(holds: bool, claim: impl std::fmt::Display) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this did not hold: {claim}").into()) }
}
