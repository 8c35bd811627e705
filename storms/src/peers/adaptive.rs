//! tower-resilience's adaptive limits, with their defaults, between tower's retry and tower's timeout.
//!
//! Its service reads the clock of the standard library, which does not stand still for a simulation. The algorithms, which find
//! the limit, are told how long a call took; so here they are its own, and what lets calls out by them is ours: first in, first
//! out, and each attempt is told of when it ends, as its service does it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;
use tower::{ServiceExt, service_fn};
use tower_resilience::adaptive::{Aimd, ConcurrencyAlgorithm, Vegas};

use crate::sim::{
    contenders::{Client, Contender, each, tokios},
    hosts::Hosts,
    setup::Setup,
    tower_stack::{attempt, retried},
};

/// Up by one for each answer within 100 ms, down to a half for any other.
pub const AIMD: Contender = Contender { name: "AIMD", clients: aimd, clock: tokios };

/// By how much longer calls take than the shortest did.
pub const VEGAS: Contender = Contender { name: "Vegas", clients: vegas, clock: tokios };

fn aimd(hosts: &Hosts, setup: &Setup, seed: u64) -> Vec<Client> {
    each(hosts, setup, seed, |hosts, seed| client(Aimd::builder().build().expect("its defaults"), hosts, seed))
}

fn vegas(hosts: &Hosts, setup: &Setup, seed: u64) -> Vec<Client> {
    each(hosts, setup, seed, |hosts, seed| client(Vegas::builder().build().expect("its defaults"), hosts, seed))
}

fn client(algorithm: impl ConcurrencyAlgorithm + 'static, hosts: Hosts, seed: u64) -> Client {
    let gate = Arc::new(Gate { algorithm, line: Mutex::default() });
    let attempt = attempt(hosts.clone());
    let limited = service_fn(move |()| {
        let (gate, attempt, hosts) = (Arc::clone(&gate), attempt.clone(), hosts.clone());
        async move {
            let _out = gate.pass().await;
            let began = hosts.now();
            let result = attempt.oneshot(()).await;
            match &result {
                Ok(()) => gate.algorithm.record_success(hosts.now() - began),
                Err(_) => gate.algorithm.record_failure(),
            }
            result
        }
    });
    retried(limited, seed)
}

/// Lets out as many at once as the algorithm says.
struct Gate<A> {
    algorithm: A,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    out: usize,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// One that is out; the next may go when it is dropped.
struct Out<A: ConcurrencyAlgorithm>(Arc<Gate<A>>);

impl<A: ConcurrencyAlgorithm> Gate<A> {
    async fn pass(self: &Arc<Self>) -> Out<A> {
        let (sender, turn) = oneshot::channel();
        self.line().waiting.push_back(sender);
        // Made before it waits: whoever is let out and gone at the same time gives its place back.
        let mut place = Place { gate: Arc::clone(self), turn: Some(turn) };
        self.let_out();
        place.taken().await
    }

    fn let_out(&self) {
        let mut line = self.line();
        while line.out < self.algorithm.limit() {
            let Some(next) = line.waiting.pop_front() else { return };
            // Whoever has gone takes no place.
            line.out += usize::from(next.send(()).is_ok());
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In the line.
struct Place<A: ConcurrencyAlgorithm> {
    gate: Arc<Gate<A>>,
    turn: Option<oneshot::Receiver<()>>,
}

impl<A: ConcurrencyAlgorithm> Place<A> {
    async fn taken(&mut self) -> Out<A> {
        if let Some(turn) = &mut self.turn {
            // The gate drops no sender but by sending.
            let _ = turn.await;
        }
        self.turn = None;
        Out(Arc::clone(&self.gate))
    }
}

impl<A: ConcurrencyAlgorithm> Drop for Place<A> {
    fn drop(&mut self) {
        if self.turn.as_mut().is_some_and(|turn| turn.try_recv().is_ok()) {
            drop(Out(Arc::clone(&self.gate)));
        }
    }
}

impl<A: ConcurrencyAlgorithm> Drop for Out<A> {
    fn drop(&mut self) {
        self.0.line().out -= 1;
        self.0.let_out();
    }
}
