//! Background tasks that start with the app and stop with it, in order; no server, no signal: a whole life in a second.
//!
//! ```text
//! cargo run --example background_tasks
//! ```
//!
//! What `cleanup_ctx` is to aiohttp, a phase is here: `pool` below starts before whatever needs it and stops after that.

use std::{
    error::Error,
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress::{
    Backoff, Shutdown,
    shutdown::{Handle, Restart, TaskContext, Trigger},
};
use tokio::sync::{mpsc, oneshot};

/// What happened, in its order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn say(&self, what: impl Into<String>) {
        let what = what.into();
        println!("{what}");
        self.0.lock().unwrap().push(what);
    }

    fn position(&self, what: &str) -> Option<usize> {
        self.0.lock().unwrap().iter().position(|said| said == what)
    }
}

/// A resource with a beginning and an end: returns once it is there, and closes when its phase is to stop.
async fn pool(handle: &Handle, log: Log) -> Result<mpsc::Sender<u32>, Box<dyn Error>> {
    let (opened, is_open) = oneshot::channel();
    handle.spawn("storage", "pool", |cx| async move {
        let (writes, mut queue) = mpsc::channel(16);
        log.say("pool: opened");
        let _ = opened.send(writes);
        let mut stopping = std::pin::pin!(cx.stopping());
        let mut written = 0;
        loop {
            tokio::select! {
                Some(_) = queue.recv() => written += 1,
                () = &mut stopping => break,
            }
        }
        log.say(format!("pool: closed, {written} rows written"));
    })?;
    Ok(is_open.await?)
}

/// Takes jobs until its phase is to stop; fails once, and is started again.
async fn consume(cx: TaskContext, pool: mpsc::Sender<u32>, log: Log) -> Result<(), String> {
    log.say(format!("consumer: started, {} restarts", cx.restarts()));
    let mut stopping = std::pin::pin!(cx.stopping());
    for job in 1.. {
        if job == 3 && cx.restarts() == 0 {
            return Err("connection reset".to_owned());
        }
        tokio::select! {
            // A job that was begun is finished: the wait for the next one is what ends.
            () = &mut stopping => break,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        pool.send(job).await.map_err(|_| "the pool is gone".to_owned())?;
    }
    log.say("consumer: stopped");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let shutdown = Shutdown::builder()
        .lame_duck(Duration::ZERO) // nobody sends us anything
        .total(Duration::from_secs(5))
        .phase("storage", Duration::from_secs(1)) // registered first, stopped last
        .phase("consumers", Duration::from_secs(1))
        .build()?;
    let (handle, log) = (shutdown.handle(), Log::default());

    let pool = pool(&handle, log.clone()).await?;
    let restart = Restart::on_failure(Backoff::constant(Duration::from_millis(20))).max(3, Duration::from_secs(10));
    handle.supervise("consumers", "consumer", restart, {
        let log = log.clone();
        move |cx| consume(cx, pool.clone(), log.clone())
    })?;
    // Whatever is critical and ends takes the process with it; in good order.
    handle.spawn("consumers", "licence check", |_| async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        Err::<(), _>("the licence has expired")
    })?;
    handle.ready();

    let report = shutdown.wait().await;
    println!("\n{report}");
    assert!(matches!(&report.reason, Trigger::Task { name, .. } if name == "licence check"));
    let restarts: Vec<_> = report.tasks.iter().map(|task| (&*task.name, task.restarts)).collect();
    assert_eq!(restarts, [("pool", 0), ("consumer", 1), ("licence check", 0)]);
    assert_eq!(report.exit_code(), 1);
    let closed = log.0.lock().unwrap().len() - 1;
    assert!(log.position("consumer: stopped") < Some(closed), "the pool is closed after whoever writes to it");
    Ok(())
}
