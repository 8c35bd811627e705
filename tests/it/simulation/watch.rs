//! What a run sees of the service's side: every attempt, when it began and whether it runs, and every move of the circuit. What
//! must not be is noted, as nothing of it may look like a fault of the service.

use std::{
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use buttress::{
    CircuitBreaker, ConcurrencyLimit,
    circuit_breaker::{State, Transition},
    retry,
};
use tokio::time::Instant;
use tower::Service;

use super::plan::{Deed, End};

/// Of one run, shared by its service, its circuit's listener and its driver.
#[derive(Debug, Default)]
pub struct Watch {
    seen: Mutex<Seen>,
    /// Set if each attempt reaches the service when it is admitted: no other tells where the circuit stood then.
    pub breaker: OnceLock<CircuitBreaker>,
    pub limit: OnceLock<ConcurrencyLimit>,
    /// Set if an attempt may be sent beside another, and nobody counts attempts.
    pub uncounted: AtomicBool,
}

#[derive(Debug, Default)]
pub struct Seen {
    /// The call that is being polled or made.
    pub current: Option<usize>,
    pub attempts: Vec<Attempt>,
    pub moves: Vec<(Instant, Transition)>,
    /// While a hand is on the circuit.
    pub by_hand: bool,
    /// In `call`.
    pub panics: u64,
    pub wrong: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Attempt {
    pub call: usize,
    /// From 1.
    pub number: u32,
    pub at: Instant,
    /// When the one before it ended, if that one was seen.
    pub after: Option<Instant>,
    pub ended: Option<Instant>,
    /// Whether another of its call ran when it began.
    pub beside: bool,
    /// How often the circuit had moved, and where it stood.
    moves: usize,
    state: Option<State>,
}

impl Attempt {
    pub fn runs(&self) -> bool {
        self.ended.is_none()
    }
}

impl Watch {
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Notes an attempt, and returns its place.
    fn begin(&self) -> usize {
        let state = self.breaker.get().map(CircuitBreaker::state);
        let number = retry::current_attempt().unwrap_or(1);
        let mut seen = self.seen();
        let Some(call) = seen.current else { panic!("the service was called while nobody was polled") };
        // An attempt that was refused, or cut off before the service was ready, is not seen here.
        let last = seen.of(call).last().cloned();
        let uncounted = self.uncounted.load(SeqCst) && seen.of(call).count() == 1;
        if let Some(last) = last.as_ref().filter(|last| number <= last.number && !uncounted) {
            let wrong = format!("call {call}: attempt {number} after attempt {}", last.number);
            seen.wrong.push(wrong);
        }
        let beside = last.as_ref().is_some_and(Attempt::runs);
        let (after, moves) = (last.and_then(|last| last.ended), seen.moves.len());
        let attempt = Attempt { call, number, at: Instant::now(), after, ended: None, beside, moves, state };
        if matches!(state, Some(State::Open | State::ForcedOpen)) {
            seen.wrong.push(format!("call {call} was admitted by a circuit that is {state:?}"));
        }
        seen.attempts.push(attempt);
        seen.attempts.len() - 1
    }

    fn end(&self, attempt: usize) {
        let mut seen = self.seen();
        let (running, in_flight) = (seen.running(), self.limit.get().map(ConcurrencyLimit::in_flight));
        if in_flight.is_some_and(|in_flight| in_flight < running) {
            seen.wrong.push(format!("attempt {attempt} runs on without a permit"));
        }
        seen.attempts[attempt].ended = Some(Instant::now());
    }

    /// The circuit's listener.
    pub fn moved(&self, transition: &Transition) {
        let mut seen = self.seen();
        let now = Instant::now();
        let legal = seen.by_hand
            || match (transition.from, transition.to) {
                (State::Closed | State::HalfOpen, State::Open) => transition.open_for.is_some(),
                (State::HalfOpen, State::Closed | State::HalfOpen) => true,
                (State::Shadow, State::Shadow) => transition.would_open(),
                (State::Open, State::HalfOpen) => {
                    let opened = seen.moves.last().expect("it was opened");
                    now.duration_since(opened.0) >= opened.1.open_for.unwrap_or(Duration::MAX)
                }
                _ => false,
            };
        let follows = seen.moves.last().is_none_or(|(_, last)| last.to == transition.from);
        if !(legal && follows) {
            let last = seen.moves.last().copied();
            seen.wrong.push(format!("the circuit moved by {transition:?} after {last:?}"));
        }
        seen.moves.push((now, *transition));
    }
}

impl Seen {
    pub fn running(&self) -> usize {
        self.attempts.iter().filter(|attempt| attempt.runs()).count()
    }

    /// Probes of the present round, of which some have ended.
    pub fn probes(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|it| it.moves == self.moves.len() && it.state == Some(State::HalfOpen))
    }

    /// Those that are out.
    pub fn probing(&self) -> impl Iterator<Item = &Attempt> {
        self.probes().filter(|attempt| attempt.runs())
    }

    pub fn of(&self, call: usize) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(move |attempt| attempt.call == call)
    }
}

/// A service that is watched.
#[derive(Clone, Debug)]
pub struct Watched<S> {
    pub inner: S,
    pub watch: Arc<Watch>,
    /// What the attempts do, over and over.
    pub deeds: Arc<[Deed]>,
}

impl<S, Req> Service<Req> for Watched<S>
where
    S: Service<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = WatchedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, req: Req) -> WatchedFuture<S::Future> {
        let attempt = self.watch.begin();
        let future = WatchedFuture { inner: Box::pin(self.inner.call(req)), attempt, watch: self.watch.clone() };
        if matches!(self.deeds[attempt % self.deeds.len()].end, End::PanicInCall) {
            self.watch.seen().panics += 1;
            resume_unwind(Box::new("a panic on purpose, in `call`"));
        }
        future
    }
}

/// Runs until it is dropped.
#[derive(Debug)]
pub struct WatchedFuture<F> {
    inner: Pin<Box<F>>,
    attempt: usize,
    watch: Arc<Watch>,
}

impl<F: Future> Future for WatchedFuture<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.inner.as_mut().poll(cx)
    }
}

impl<F> Drop for WatchedFuture<F> {
    fn drop(&mut self) {
        self.watch.end(self.attempt);
    }
}
