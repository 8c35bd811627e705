//! A bounded pool of connections to an SQLite file, with a limit and a circuit breaker before it.
//!
//! ```text
//! cargo run --example connection_pool
//! ```
//!
//! The pool (deadpool) keeps three connections; whoever finds none free waits there, with no bound on how many. The limit before it
//! is as wide, so the queue is the limit's: bounded, and a refusal says why. A table that does not exist is the caller's
//! mistake and opens no circuit; a database that is locked does, and nobody waits for it any more until it is free.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use buttress::{
    Backoff, CircuitBreaker, Classify, ConcurrencyLimit, Error, Kind, Policy, Reason, UntilHeaders, Verdict,
    circuit_breaker::State, retry::Once,
};
use deadpool_sqlite::{
    Config, InteractError, Pool, PoolConfig, PoolError, Runtime,
    rusqlite::{self, Connection, ErrorCode},
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tower::BoxError;

const CONNECTIONS: usize = 3;
const ROWS: u32 = 30;
/// How long SQLite itself waits for a lock that another holds.
const PATIENT: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::ZERO;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Nothing here takes long; what waits for ever is a fault.
    timeout(Duration::from_secs(9), story()).await.unwrap_or_else(|_| Err("it waits for ever".into()))
}

async fn story() -> Result<(), BoxError> {
    // What panics below is part of the story; a line of it is enough.
    std::panic::set_hook(Box::new(|panic| println!("  ({})", panic.to_string().replace('\n', " "))));
    let file = TempFile::new();
    let database = Database::open(&file)?;
    let breaker = database.policy.circuit_breaker().ok_or("the policy has one")?.clone();
    let count = |c: &mut Connection| c.query_row("SELECT count(*) FROM books", [], |row| row.get(0));
    database.run(PATIENT, |c| c.execute("CREATE TABLE books (title TEXT NOT NULL)", [])).await?;

    println!("{ROWS} rows at once, {CONNECTIONS} connections:");
    let mut inserts = JoinSet::new();
    for n in 0..ROWS {
        let database = database.clone();
        inserts.spawn(async move { database.insert(PATIENT, format!("book {n}")).await });
    }
    for inserted in inserts.join_all().await {
        inserted?;
    }
    let rows: u32 = database.run(PATIENT, count).await?;
    let most = database.most.load(SeqCst);
    println!("  {rows} rows; {most} connections at work at the most, and nobody had to wait in the pool");
    ensure(rows == ROWS, "every row is there")?;
    ensure(most <= CONNECTIONS && database.pool.status().size <= CONNECTIONS, "never more than the pool has")?;

    println!("\nA table that is not there, ten times:");
    for n in 0..10 {
        let missing = database.run(PATIENT, |c| c.execute("INSERT INTO boks VALUES ('a typo')", [])).await;
        let error = missing.err().ok_or("there is no such table")?;
        if n == 0 {
            println!("  {error}");
        }
        ensure(error.inner().is_some(), "it is told as what it is")?;
    }
    println!("  the circuit is {}", breaker.state().as_str());
    ensure(breaker.state() == State::Closed, "a wrong query says nothing of the database")?;

    println!("\nA query that panics:");
    let panicked = database.run(PATIENT, |_| -> rusqlite::Result<()> { panic!("a bug in this query") }).await;
    println!("  {}", panicked.err().ok_or("it panics")?);
    let rows: u32 = database.run(PATIENT, count).await?;
    ensure(rows == ROWS, "its connection is replaced, and the next query finds all rows")?;

    println!("\nAnother connection locks the database:");
    let path = file.0.clone();
    let locks = spawn_blocking(move || -> rusqlite::Result<Connection> {
        let locks = Connection::open(path)?;
        locks.execute_batch("BEGIN EXCLUSIVE")?;
        Ok(locks)
    });
    let locks = locks.await??;
    let before = database.asked.load(SeqCst);
    let (mut failed, mut refused) = (0, 0);
    for n in 0..20 {
        match database.insert(AT_ONCE, format!("late book {n}")).await.err().ok_or("the database is locked")? {
            Error::Inner(error) => {
                println!("  {error}");
                failed += 1;
            }
            Error::Rejected(no) => {
                if refused == 0 {
                    println!("  {no}");
                }
                ensure(no.reason() == Reason::CircuitOpen, "the circuit is what refuses")?;
                refused += 1;
            }
        }
    }
    let asked = database.asked.load(SeqCst) - before;
    println!("  {failed} failed, {refused} were refused and did not even take a connection");
    ensure((failed, refused, asked) == (3, 17, 3), "three failures in a row open the circuit")?;

    println!("\nIt is unlocked:");
    spawn_blocking(move || locks.execute_batch("ROLLBACK")).await??;
    // A rejection says when to come back, so that is when we come back.
    sleep(breaker.snapshot().retry_after.unwrap_or_default()).await;
    let mut probes = 0;
    while breaker.state() != State::Closed {
        database.insert(PATIENT, format!("probe {probes}")).await?;
        probes += 1;
    }
    let rows: u32 = database.run(PATIENT, count).await?;
    println!("  after {probes} probes the circuit is {}; {rows} rows", breaker.state().as_str());
    ensure(rows == ROWS + probes, "what was refused was not written, and all else was")
}

/// The pool, and what every query passes through before it.
#[derive(Clone)]
struct Database {
    pool: Pool,
    policy: Policy<Kind<ByFault, Once, UntilHeaders>>,
    /// Queries that took a connection; how many had one at once at the most.
    asked: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Database {
    fn open(file: &TempFile) -> Result<Self, BoxError> {
        let mut config = Config::new(&file.0);
        let mut pool = PoolConfig::new(CONNECTIONS);
        // Whoever would have to wait there gets an error instead. Nobody will: the limit lets no more through.
        pool.timeouts.wait = Some(Duration::ZERO);
        config.pool = Some(pool);
        let policy = Policy::plain("books")
            .circuit_breaker(
                CircuitBreaker::builder()
                    .consecutive_failures(3)
                    .open_time(Backoff::constant(Duration::from_millis(500))),
            )
            .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(CONNECTIONS).max_queue(ROWS as usize))
            .classify(ByFault)
            .build()?;
        let pool = config.create_pool(Runtime::Tokio1)?;
        let [asked, most] = Default::default();
        Ok(Self { pool, policy, asked, most })
    }

    /// One query, sent once. The policy could repeat it if it were told to retry, so a query is a function that can be cloned.
    async fn run<T, F>(&self, patience: Duration, query: F) -> Result<T, Error<Fault>>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Clone + Send + 'static,
    {
        self.policy
            .call(|| async {
                let connection = self.pool.get().await?;
                self.asked.fetch_add(1, SeqCst);
                let (status, query) = (self.pool.status(), query.clone());
                self.most.fetch_max(status.size - status.available, SeqCst);
                let answer = connection
                    .interact(move |connection| connection.busy_timeout(patience).and_then(|()| query(connection)));
                Ok(answer.await??)
            })
            .await
    }

    async fn insert(&self, patience: Duration, title: String) -> Result<usize, Error<Fault>> {
        self.run(patience, move |c| c.execute("INSERT INTO books VALUES (?1)", [title])).await
    }
}

/// What goes wrong with a query.
#[derive(Debug)]
enum Fault {
    Sqlite(rusqlite::Error),
    Pool(PoolError),
    Panicked(String),
}

/// Whose fault it is: that of the query, which says nothing of the database, or that of the database, which opens its circuit.
#[derive(Clone, Copy)]
struct ByFault;

impl<T> Classify<T, Fault> for ByFault {
    fn classify(&self, outcome: Result<&T, &Fault>) -> Verdict {
        match outcome {
            Ok(_) => Verdict::Success,
            Err(Fault::Sqlite(error)) => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::SystemIoFailure) => {
                    Verdict::TRANSIENT
                }
                _ => Verdict::Permanent,
            },
            Err(Fault::Pool(_)) => Verdict::TRANSIENT,
            Err(Fault::Panicked(_)) => Verdict::Permanent,
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Fault::Sqlite(error)
    }
}

impl From<PoolError> for Fault {
    fn from(error: PoolError) -> Self {
        Fault::Pool(error)
    }
}

impl From<InteractError> for Fault {
    fn from(error: InteractError) -> Self {
        match error {
            InteractError::Panic(panic) => {
                let said = panic.downcast_ref::<&str>().copied().unwrap_or("no message");
                Fault::Panicked(said.to_owned())
            }
            InteractError::Cancelled => Fault::Panicked("its connection is gone".to_owned()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Sqlite(error) => error.fmt(f),
            Fault::Pool(error) => error.fmt(f),
            Fault::Panicked(said) => write!(f, "the query panicked: {said}"),
        }
    }
}

impl std::error::Error for Fault {}

/// A file that is gone at the end.
struct TempFile(PathBuf);

impl TempFile {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("buttress-pool-{}.sqlite", std::process::id())))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A claim of this story that is broken ends it with exit code 1.
fn ensure(holds: bool, claim: impl fmt::Display) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this did not hold: {claim}").into()) }
}
