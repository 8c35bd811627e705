//! What several stories need.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use tower::Service;

pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A service that counts: calls that came, calls that run, and the most that ever ran at once.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub calls: Arc<AtomicUsize>,
    pub running: Arc<AtomicUsize>,
    pub most: Arc<AtomicUsize>,
}

/// Counts one call for as long as it lives.
#[derive(Debug)]
pub struct Running(Arc<AtomicUsize>);

impl Counts {
    pub fn enter(&self) -> Running {
        self.calls.fetch_add(1, SeqCst);
        let running = self.running.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(running, SeqCst);
        Running(self.running.clone())
    }

    pub fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    pub fn running(&self) -> usize {
        self.running.load(SeqCst)
    }

    pub fn most(&self) -> usize {
        self.most.load(SeqCst)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Answers at once with what it was asked; its error can carry a rejection.
#[derive(Clone, Copy, Debug)]
pub struct Echo;

impl Service<u64> for Echo {
    type Response = u64;
    type Error = buttress::Error<Infallible>;
    type Future = Ready<Result<u64, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: u64) -> Self::Future {
        ready(Ok(req))
    }
}

/// Lets everything that is ready run, without moving the clock.
pub async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
