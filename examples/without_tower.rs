//! No tower, functions only: the same patterns around any async code, and it may borrow.
//!
//! ```text
//! cargo run --example without_tower
//! ```

use std::{
    error::Error as StdError,
    io,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use buttress::{
    CircuitBreaker, ConcurrencyLimit, Deadline, Policy, Reason, Retry, Timeout, circuit_breaker::State, retry,
};

/// A database that refuses its first connections.
#[derive(Debug)]
struct Database {
    refuse: AtomicU32,
}

impl Database {
    fn new(refuse: u32) -> Self {
        Self { refuse: AtomicU32::new(refuse) }
    }

    async fn query(&self, sql: &str) -> Result<usize, io::Error> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let refuses = self.refuse.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        if refuses { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok(sql.len()) }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let sql = String::from("select 1");

    // Retry: a closure makes each attempt; it may borrow, and is told the attempt's number.
    let database = Database::new(2);
    let retry = Retry::exponential(Duration::from_millis(20)).max_attempts(3).build()?;
    let rows = retry
        .run(|attempt| {
            println!("retry:    attempt {attempt}");
            database.query(&sql)
        })
        .await?;
    assert_eq!(rows, 8);

    // Timeout: one future, a bound on it.
    let timeout = Timeout::new(Duration::from_millis(50)).name("report");
    let slow = timeout.call(std::future::pending::<Result<(), io::Error>>()).await.unwrap_err();
    println!("timeout:  {slow}");
    assert_eq!(slow.rejection().map(|r| r.reason()), Some(Reason::Timeout));

    // Concurrency limit: a permit to hold for as long as the work takes.
    let limit = ConcurrencyLimit::builder().name("database").max_in_flight(1).max_queue(0).build()?;
    let permit = limit.acquire().await?;
    let busy = limit.acquire().await.unwrap_err();
    println!("limit:    {busy}");
    assert_eq!(busy.reason(), Reason::Overloaded);
    drop(permit);
    assert_eq!(limit.call(database.query(&sql)).await?, 8);

    // Circuit breaker: after three failures nobody asks any more.
    let database = Database::new(u32::MAX);
    let breaker = CircuitBreaker::builder().name("database").consecutive_failures(3).build()?;
    for _ in 0..3 {
        let error = breaker.call(database.query(&sql)).await.unwrap_err();
        println!("breaker:  {error}");
        assert!(error.inner().is_some(), "the database's own error");
    }
    assert_eq!(breaker.state(), State::Open);
    let refused = breaker.call(database.query(&sql)).await.unwrap_err();
    println!("breaker:  {refused}");
    assert_eq!(refused.rejection().map(|r| r.reason()), Some(Reason::CircuitOpen));

    // Deadline: everything within sees it, and nothing of ours waits past it.
    let outcome = Deadline::after(Duration::from_millis(50)).enforce(std::future::pending::<io::Result<()>>()).await;
    let late = outcome.unwrap_err();
    println!("deadline: {late}");
    assert_eq!(late.rejection().map(|r| r.reason()), Some(Reason::DeadlineExceeded));

    // All of that in one policy. The closure borrows `database` and `sql`.
    let database = Database::new(1);
    let policy = Policy::plain("database")
        .deadline(Duration::from_secs(5))
        .retry(Retry::exponential(Duration::from_millis(20)))
        .circuit_breaker(CircuitBreaker::builder())
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(8))
        .timeout(Duration::from_secs(1))
        .build()?;
    let attempts = AtomicU32::new(0);
    let rows = policy
        .call(|| async {
            attempts.fetch_add(1, Relaxed);
            println!("policy:   attempt {}", retry::current_attempt().unwrap_or_default());
            database.query(&sql).await
        })
        .await?;
    println!("policy:   {rows} rows after {} attempts", attempts.load(Relaxed));
    assert_eq!((rows, attempts.into_inner()), (8, 2));
    Ok(())
}
