//! The service below: it minds how it is used, and does what it is asked.

use std::{
    error::Error as StdError,
    fmt,
    future::pending,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};
use tower::{BoxError, Service};

use crate::support::{Boxed, Counts, Running};

/// What the service is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Answer at once.
    Echo,
    /// Answer 10 ms from now.
    Later,
    /// Answer once the task's cooperative budget allows it.
    Thrifty,
    /// Never answer.
    Stall,
    /// Fail, always.
    Fail,
    PanicInCall,
    PanicInPoll,
    PanicInDrop,
}

/// How it answers when it is asked whether it is ready.
const FINE: usize = 0;
const GONE: usize = 1;
const PANICS: usize = 2;

/// Panics if it is called without having been polled ready, as a strict reading of tower's contract allows it to; a
/// clone is not ready. Counts the readiness that it has given out, and the calls.
#[derive(Debug, Default)]
pub struct Strict {
    ready: Option<Running>,
    getting_ready: Option<Pin<Box<Sleep>>>,
    /// How long it takes to get ready.
    lag: Duration,
    reserved: Counts,
    counts: Counts,
    polls: Arc<AtomicUsize>,
    failures: Arc<AtomicUsize>,
    mood: Arc<AtomicUsize>,
}

impl Strict {
    pub fn getting_ready_in(lag: Duration) -> Self {
        Self { lag, ..Self::default() }
    }

    /// The next calls that would succeed fail.
    pub fn fail_next(&self, calls: usize) {
        self.failures.store(calls, SeqCst);
    }

    /// Whoever waits for readiness hears that there will be none.
    pub fn be_gone(&self) {
        self.mood.store(GONE, SeqCst);
    }

    pub fn be_fine(&self) {
        self.mood.store(FINE, SeqCst);
    }

    pub fn panic_when_asked(&self) {
        self.mood.store(PANICS, SeqCst);
    }

    pub fn calls(&self) -> usize {
        self.counts.calls()
    }

    pub fn running(&self) -> usize {
        self.counts.running()
    }

    pub fn most(&self) -> usize {
        self.counts.most()
    }

    /// Services that were polled ready and not called.
    pub fn reserved(&self) -> usize {
        self.reserved.running()
    }

    /// How often a call that stalls was polled.
    pub fn polls(&self) -> usize {
        self.polls.load(SeqCst)
    }
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self {
            ready: None,
            getting_ready: None,
            lag: self.lag,
            reserved: self.reserved.clone(),
            counts: self.counts.clone(),
            polls: self.polls.clone(),
            failures: self.failures.clone(),
            mood: self.mood.clone(),
        }
    }
}

impl Service<Ask> for Strict {
    type Response = u64;
    type Error = BoxError;
    type Future = Boxed<Result<u64, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self.mood.load(SeqCst) {
            FINE if self.ready.is_some() => return Poll::Ready(Ok(())),
            FINE => {}
            GONE => return Poll::Ready(Err(Boom::boxed("gone"))),
            _ => panic!("in poll_ready, as asked"),
        }
        if !self.lag.is_zero() {
            let sleep = self.getting_ready.get_or_insert_with(|| Box::pin(sleep(self.lag)));
            ready!(sleep.as_mut().poll(cx));
            self.getting_ready = None;
        }
        self.ready = Some(self.reserved.enter());
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ask: Ask) -> Self::Future {
        self.ready.take().expect("called a service that was not polled ready");
        let running = self.counts.enter();
        assert_ne!(ask, Ask::PanicInCall, "as asked");
        let (polls, failures) = (self.polls.clone(), self.failures.clone());
        Box::pin(async move {
            let _running = running;
            match ask {
                Ask::Later => sleep(Duration::from_millis(10)).await,
                Ask::Thrifty => tokio::task::consume_budget().await,
                Ask::Stall => Counted(polls).await,
                Ask::Fail => return Err(Boom::boxed("asked to fail")),
                Ask::PanicInPoll => panic!("in poll, as asked"),
                Ask::PanicInDrop => {
                    let _bomb = Bomb;
                    pending().await
                }
                _ => {}
            }
            match failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
                Ok(_) => Err(Boom::boxed("told to fail")),
                Err(_) => Ok(1),
            }
        })
    }
}

/// Pending for ever, counting its polls.
struct Counted(Arc<AtomicUsize>);

impl Future for Counted {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.0.fetch_add(1, SeqCst);
        Poll::Pending
    }
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in drop, as asked");
        }
    }
}

/// An error with a source, and neither `Clone` nor `PartialEq`.
#[derive(Debug)]
pub struct Boom {
    pub what: &'static str,
    source: std::io::Error,
}

impl Boom {
    pub fn boxed(what: &'static str) -> BoxError {
        Box::new(Self { what, source: std::io::Error::other("the cause") })
    }
}

impl fmt::Display for Boom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

impl StdError for Boom {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.source)
    }
}
