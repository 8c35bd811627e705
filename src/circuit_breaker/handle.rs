//! The handle, its permits and its layer.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    ops::Deref,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{CircuitBreakerBuilder, Shared, Snapshot, State};
use crate::{
    ByResult, Classify, Error, Reject, Rejection, Verdict,
    call::{For, Given, Guard, Guarded, Handle, Holds, Inline, Parts, ResponseFuture, Unrepeated, UntilHeaders},
    clock::{after, now},
    spread::Spread,
};

/// A circuit breaker: one state, shared by its clones, its layers and their services.
///
/// ```
/// use buttress::{circuit_breaker::State, CircuitBreaker, Error, Reason};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::ConfigError> {
/// let breaker = CircuitBreaker::builder().name("stock").consecutive_failures(2).build()?;
/// for _ in 0..2 {
///     let _ = breaker.call(async { Err::<u32, _>("connection refused") }).await;
/// }
/// assert_eq!(breaker.state(), State::Open);
/// let refused = breaker.call(async { Ok::<u32, &str>(1) }).await.unwrap_err();
/// assert_eq!(refused.rejection().unwrap().reason(), Reason::CircuitOpen);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct CircuitBreaker {
    pub(crate) shared: Arc<Shared>,
}

impl CircuitBreaker {
    /// Settings, to begin with the defaults.
    pub fn builder() -> CircuitBreakerBuilder {
        CircuitBreakerBuilder::default()
    }

    /// As a tower layer, where `Err` is a failure. A service that never fails, such as an axum `Router`, wants
    /// [`layer_with`](Self::layer_with)`(http::ByStatus)`.
    pub fn layer(&self) -> CircuitBreakerLayer {
        self.layer_with(ByResult)
    }

    /// As a tower layer, with a classifier of your own; closures want
    /// [`classify::from_fn`](crate::classify::from_fn).
    pub fn layer_with<C>(&self, classify: C) -> CircuitBreakerLayer<C> {
        let parts = BreakerParts { breaker: Arc::clone(&self.shared), classify };
        Guard::from(Gate { spread: Spread::new(parts), when_open: WhenOpen::Reject, waiting: None })
    }

    /// Runs `future` if it is admitted, where `Err` is a failure. Cancel safe if `future` is.
    ///
    /// # Errors
    /// The future's own error, or a rejection: [`CircuitOpen`](crate::Reason::CircuitOpen).
    pub fn call<F, T, E>(&self, future: F) -> impl Future<Output = Result<T, Error<E>>> + use<'_, F, T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.call_with(ByResult, future)
    }

    /// As [`call`](Self::call), with a classifier of your own; closures want
    /// [`classify::from_fn`](crate::classify::from_fn). Cancel safe if `future` is.
    ///
    /// # Errors
    /// The future's own error, or the rejection.
    pub fn call_with<C, F, T, E>(
        &self,
        classify: C,
        future: F,
    ) -> impl Future<Output = Result<T, Error<E>>> + use<'_, C, F, T, E>
    where
        C: Classify<T, E>,
        F: Future<Output = Result<T, E>>,
    {
        ResponseFuture::lazy(Inline(BreakerParts { breaker: &*self.shared, classify }), Given::lifted(future))
    }

    /// As [`call`](Self::call), for a future whose error can carry the rejection itself. Cancel safe if `future` is.
    ///
    /// # Errors
    /// The future's own error, or the rejection.
    pub fn call_as<F, T, E>(&self, future: F) -> impl Future<Output = Result<T, E>> + use<'_, F, T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: Reject<T>,
    {
        ResponseFuture::lazy(Inline(BreakerParts { breaker: &*self.shared, classify: ByResult }), Given::new(future))
    }

    /// Admission by hand, for what is no future. Time counts from here.
    ///
    /// # Errors
    /// The rejection, if the circuit is open.
    pub fn try_acquire(&self) -> Result<Permit, Rejection> {
        let started = now();
        let ticket = match self.shared.admit() {
            Some(ticket) => ticket,
            None => self.shared.admit_at(started).inspect_err(Rejection::log)?,
        };
        Ok(Permit { shared: Some(Arc::clone(&self.shared)), ticket, started })
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// What the breaker sees.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.snapshot(now())
    }

    /// Follows the state. Lossy, as a `watch` is: who looks late sees the latest only;
    /// [`on_transition`](CircuitBreakerBuilder::on_transition) hears of each.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        self.shared.watch()
    }

    /// Refuses every call until [`reset`](Self::reset) or another mode.
    pub fn force_open(&self) {
        self.shared.force(State::ForcedOpen, now());
    }

    /// Lets every call pass, and counts, until [`reset`](Self::reset) or another mode.
    pub fn force_closed(&self) {
        self.shared.force(State::ForcedClosed, now());
    }

    /// Counts and tells, but refuses nothing, until [`reset`](Self::reset) or another mode.
    pub fn shadow(&self) {
        self.shared.force(State::Shadow, now());
    }

    /// Closes the circuit, with an empty window and the first open time.
    pub fn reset(&self) {
        self.shared.force(State::Closed, now());
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// One admission. Settle it with what came of it; dropped without, it is neutral, or a failure if it has outrun
/// the slow threshold or is dropped by a panic.
///
/// ```
/// # use buttress::{CircuitBreaker, Verdict};
/// # fn parse(_: &str) -> Result<(), ()> { Ok(()) }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let breaker = CircuitBreaker::builder().build()?;
/// let permit = breaker.try_acquire()?;
/// permit.settle(if parse("1").is_ok() { Verdict::Success } else { Verdict::TRANSIENT });
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a permit that is dropped at once says nothing about the call"]
pub struct Permit {
    /// `None` once settled.
    shared: Option<Arc<Shared>>,
    ticket: u64,
    started: Instant,
}

impl Permit {
    /// Counts the verdict; the call took from the admission until now.
    pub fn settle(self, verdict: Verdict) {
        let elapsed = now().saturating_duration_since(self.started);
        self.settle_after(verdict, elapsed);
    }

    /// Counts the verdict of a call that took `elapsed`.
    pub fn settle_after(mut self, verdict: Verdict, elapsed: Duration) {
        self.end(verdict, elapsed);
    }

    fn end(&mut self, verdict: Verdict, elapsed: Duration) {
        let Some(shared) = self.shared.take() else { return };
        match shared.counts(verdict) {
            None => shared.release(self.ticket),
            Some(failed) => {
                let slow = shared.is_slow(Some(self.started), after(self.started, elapsed));
                shared.record(self.ticket, failed, slow, verdict.comes_back_after(), now());
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            let now = now();
            let failed = std::thread::panicking() || shared.is_slow(Some(self.started), now);
            let verdict = if failed { Verdict::TRANSIENT } else { Verdict::Ignored };
            self.end(verdict, now.saturating_duration_since(self.started));
        }
    }
}

/// A breaker and a classifier.
#[derive(Debug)]
pub struct BreakerParts<B, C> {
    pub(crate) breaker: B,
    pub(crate) classify: C,
}

impl<B: Deref<Target = Shared>, C> Parts for BreakerParts<B, C> {
    type Classify = C;
    type Again = Unrepeated;
    type Hold = UntilHeaders;
    type Seat<F, H: Holds> = Infallible;

    #[inline]
    fn name(&self) -> &'static str {
        self.breaker.name()
    }

    #[inline]
    fn classify(&self) -> &C {
        &self.classify
    }

    #[inline]
    fn again(&self) -> &Unrepeated {
        &Unrepeated::ONCE
    }

    #[inline]
    fn hold(&self) -> &UntilHeaders {
        &UntilHeaders::HERE
    }

    #[inline]
    fn breaker(&self) -> Option<&Shared> {
        Some(&self.breaker)
    }
}

/// What a service does while the circuit is open.
///
/// ```
/// use buttress::{circuit_breaker::WhenOpen, CircuitBreaker};
/// # fn main() -> Result<(), buttress::ConfigError> {
/// // A balancer above is to send its requests elsewhere.
/// let layer = CircuitBreaker::builder().build()?.layer().when_open(WhenOpen::Wait);
/// # let _ = layer;
/// # Ok(()) }
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenOpen {
    /// It is ready, and refuses calls. The default.
    #[default]
    Reject,
    /// It is not ready: for balancers that route by readiness. A call that comes all the same, or loses the race for
    /// a probe, is refused.
    Wait,
}

/// A [`CircuitBreaker`] as a tower layer.
pub type CircuitBreakerLayer<C = ByResult> = Guard<Gate<C>>;

/// The service of [`CircuitBreakerLayer`].
pub type CircuitBreakerService<S, C = ByResult> = Guarded<S, Gate<C>>;

impl<C> CircuitBreakerLayer<C> {
    /// What services do while the circuit is open.
    pub fn when_open(self, when_open: WhenOpen) -> Self {
        Guard::from(Gate { when_open, ..self.into_handle() })
    }
}

/// What the services of a [`CircuitBreakerLayer`] hold.
pub struct Gate<C> {
    spread: Spread<BreakerParts<Arc<Shared>, C>>,
    when_open: WhenOpen,
    /// Made when a service first waits; each clone waits for itself.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl<C> Clone for Gate<C> {
    fn clone(&self) -> Self {
        Self { spread: self.spread.clone(), when_open: self.when_open, waiting: None }
    }
}

impl<C> fmt::Debug for Gate<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spread.breaker.fmt(f)
    }
}

impl<C> Handle for Gate<C> {
    type Local = Spread<BreakerParts<Arc<Shared>, C>>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.when_open {
            WhenOpen::Reject => Poll::Ready(()),
            WhenOpen::Wait => self.poll_admitting(cx),
        }
    }
}

impl<C, Req> For<Req> for Gate<C> {
    type Near<'a>
        = &'a Self::Local
    where
        Self: 'a;

    #[inline]
    fn near(&mut self, _: &Req) -> &Self::Local {
        self.spread.here()
    }
}

impl<C> Gate<C> {
    fn poll_admitting(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiting.is_none() && self.spread.breaker.admit().is_some() {
            return Poll::Ready(());
        }
        let shared = &self.spread.breaker;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(admitting(Arc::clone(shared))));
        ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(())
    }
}

/// Resolves once a call may be admitted. Reserves nothing.
async fn admitting(shared: Arc<Shared>) {
    loop {
        let mut moved = pin!(shared.moved());
        // Before looking, so that a move in between is not missed.
        moved.as_mut().enable();
        let now = now();
        let Some(shut) = shared.shut_until(now) else { return };
        let _ = timeout_at(after(now, shut), moved).await;
    }
}
