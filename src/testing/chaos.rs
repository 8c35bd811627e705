//! [`Chaos`]: faults at a rate, around a service that has none of its own.

use std::{
    fmt,
    future::Future,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tower::{Layer, Service};

use super::{
    Chance,
    act::{End, ResponseFuture},
};
use crate::{ConfigError, config::Checks};

/// Faults for some of the calls: errors, delays, calls that hang, panics. By seeded chance, so that call 17 meets the same in every
/// run.
///
/// A call ends in at most one of error, hang and panic; a delay may come on top, and is added to what the service takes itself.
///
/// A handle: [`layer`](Self::layer) puts it around a service, [`set_enabled`](Self::set_enabled) begins and ends the bad times, as of
/// an outage. Put it inside of what is to be tested, around a service that is `Clone`. A call that is to fail does not reach the service.
///
/// ```
/// use buttress::testing::Chaos;
/// use std::{io, time::Duration};
/// use tower::ServiceBuilder;
///
/// let chaos = Chaos::builder()
///     .seed(42)
///     .errors(0.05, || io::Error::other("chaos"))
///     .delays(0.1, Duration::from_millis(100)..=Duration::from_secs(2))
///     .build()?;
/// let service = ServiceBuilder::new()
///     .layer(chaos.layer())
///     .service_fn(async |name: String| Ok::<_, io::Error>(format!("hello, {name}")));
/// chaos.set_enabled(false);
/// # let _ = service;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
pub struct Chaos<E> {
    shared: Arc<Shared<E>>,
}

/// So that it is not in step with a script of the same seed.
const CHAOS: u64 = 0x00c4_a05c_4a05_c4a0;

struct Shared<E> {
    settings: ChaosBuilder<E>,
    enabled: AtomicBool,
    injected: Mutex<Injected>,
}

/// What a [`Chaos`] has done. A call that is to be delayed and then to fail is in both counts, also if its caller goes before.
///
/// ```
/// use buttress::testing::{Chaos, Injected};
/// let chaos = Chaos::<std::io::Error>::builder().hangs(0.01).build()?;
/// assert_eq!(chaos.injected(), Injected::default());
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// Calls that came while it was enabled.
    pub calls: u64,
    /// Those that were to fail.
    pub errors: u64,
    /// Those that were to be delayed.
    pub delays: u64,
    /// Those that were to hang.
    pub hangs: u64,
    /// Those that were to panic.
    pub panics: u64,
}

impl<E> Chaos<E> {
    /// Settings; to begin with, no faults.
    pub fn builder() -> ChaosBuilder<E> {
        ChaosBuilder { seed: 0, errors: None, delays: (0.0, Duration::ZERO..=Duration::ZERO), hangs: 0.0, panics: 0.0 }
    }

    /// As a tower layer, around services whose error is `E`.
    pub fn layer(&self) -> ChaosLayer<E> {
        ChaosLayer { chaos: self.clone() }
    }

    /// Begins or ends the bad times, for all that share it. It is enabled when it is built.
    pub fn set_enabled(&self, enabled: bool) {
        self.shared.enabled.store(enabled, Relaxed);
    }

    /// Whether there are faults at present.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.shared.enabled.load(Relaxed)
    }

    /// What it has done until now.
    #[must_use]
    pub fn injected(&self) -> Injected {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Injected> {
        self.shared.injected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What befalls the next call: a delay, and an end other than the service's own.
    fn next<F, T>(&self) -> (Duration, Option<End<F, Result<T, E>>>) {
        if !self.is_enabled() {
            return (Duration::ZERO, None);
        }
        let ChaosBuilder { seed, errors, delays: (delay_rate, range), hangs, panics } = &self.shared.settings;
        let mut injected = self.lock();
        let mut chance = Chance::of_nth(seed ^ CHAOS, injected.calls);
        injected.calls += 1;
        let mut delay = Duration::ZERO;
        if chance.happens(*delay_rate) {
            injected.delays += 1;
            delay = chance.duration(range.clone());
        }
        // One draw, so that each rate is what it says.
        let mut left = chance.unit();
        let mut hit = |rate: f64, count: &mut u64| {
            let hit = (0.0..rate).contains(&left);
            *count += u64::from(hit);
            left -= rate;
            hit
        };
        if hit(*panics, &mut injected.panics) {
            return (delay, Some(End::Panic));
        }
        if hit(*hangs, &mut injected.hangs) {
            return (delay, Some(End::Hang));
        }
        let failing = errors.as_ref().filter(|(rate, _)| hit(*rate, &mut injected.errors));
        // What makes the error is not our code.
        drop(injected);
        (delay, failing.map(|(_, make)| End::With(Some(Err(make())))))
    }
}

impl<E> Clone for Chaos<E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<E> fmt::Debug for Chaos<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chaos")
            .field("settings", &self.shared.settings)
            .field("enabled", &self.is_enabled())
            .field("injected", &self.injected())
            .finish()
    }
}

/// Builds a [`Chaos`].
///
/// ```
/// use buttress::testing::Chaos;
/// let error = Chaos::<std::io::Error>::builder().hangs(1.5).build().unwrap_err();
/// assert_eq!(error.to_string(), "invalid configuration: chaos.hangs = 1.5: must be between 0 and 1");
/// ```
#[must_use]
pub struct ChaosBuilder<E> {
    seed: u64,
    errors: Option<(f64, Arc<dyn Fn() -> E + Send + Sync>)>,
    delays: (f64, RangeInclusive<Duration>),
    hangs: f64,
    panics: f64,
}

impl<E> ChaosBuilder<E> {
    /// Another chance. Default 0.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// At this rate a call fails, with what `make` makes.
    pub fn errors(self, rate: f64, make: impl Fn() -> E + Send + Sync + 'static) -> Self {
        Self { errors: Some((rate, Arc::new(make))), ..self }
    }

    /// At this rate a call is delayed: its response is kept back for a time in this range.
    pub fn delays(self, rate: f64, range: RangeInclusive<Duration>) -> Self {
        Self { delays: (rate, range), ..self }
    }

    /// At this rate a call never ends.
    pub fn hangs(self, rate: f64) -> Self {
        Self { hangs: rate, ..self }
    }

    /// At this rate a call panics when it is polled, without a word: the panic hook is not called.
    pub fn panics(self, rate: f64) -> Self {
        Self { panics: rate, ..self }
    }

    /// The chaos.
    ///
    /// # Errors
    /// Every setting that is out of its range.
    pub fn build(self) -> Result<Chaos<E>, ConfigError> {
        let mut checks = Checks::new("chaos");
        let errors = self.errors.as_ref().map_or(0.0, |(rate, _)| *rate);
        let rates = [("errors", errors), ("delays", self.delays.0), ("hangs", self.hangs), ("panics", self.panics)];
        for (setting, rate) in &rates {
            checks.require((0.0..=1.0).contains(rate), setting, rate, "must be between 0 and 1");
        }
        let together = errors + self.hangs + self.panics;
        checks.require(
            together <= 1.0 || rates.iter().any(|(_, rate)| !(0.0..=1.0).contains(rate)),
            "errors",
            errors,
            "must be at most 1 together with hangs and panics, as a call ends in one of them",
        );
        let range = &self.delays.1;
        checks.require(!range.is_empty(), "delays", range, "must not be an empty range");
        checks.finish()?;
        let shared = Shared { settings: self, enabled: AtomicBool::new(true), injected: Mutex::default() };
        Ok(Chaos { shared: Arc::new(shared) })
    }
}

impl<E> fmt::Debug for ChaosBuilder<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, errors, delays, hangs, panics } = self;
        f.debug_struct("ChaosBuilder")
            .field("seed", seed)
            .field("errors", &errors.as_ref().map_or(0.0, |(rate, _)| *rate))
            .field("delays", delays)
            .field("hangs", hangs)
            .field("panics", panics)
            .finish()
    }
}

/// A [`Chaos`] as a tower layer.
///
/// ```
/// use buttress::testing::{Act, Chaos, Scripted};
/// use tower::Layer;
/// let layer = Chaos::builder().errors(1.0, || "chaos").build()?.layer();
/// let service = layer.layer(Scripted::by(Act::answer));
/// # let _: buttress::testing::ChaosService<Scripted<u64, &str>, &str> = service;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
pub struct ChaosLayer<E> {
    chaos: Chaos<E>,
}

impl<S, E> Layer<S> for ChaosLayer<E> {
    type Service = ChaosService<S, E>;

    fn layer(&self, inner: S) -> ChaosService<S, E> {
        ChaosService { inner, chaos: self.chaos.clone() }
    }
}

impl<E> Clone for ChaosLayer<E> {
    fn clone(&self) -> Self {
        Self { chaos: self.chaos.clone() }
    }
}

impl<E> fmt::Debug for ChaosLayer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChaosLayer").field(&self.chaos).finish()
    }
}

/// The service of [`ChaosLayer`].
///
/// ```
/// use buttress::testing::{Act, Chaos, ChaosService, Scripted};
/// type Unreliable = ChaosService<Scripted<u64, &'static str>, &'static str>;
/// # use tower::Layer;
/// let service: Unreliable = Chaos::builder().build()?.layer().layer(Scripted::by(Act::answer));
/// # let _ = service;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
pub struct ChaosService<S, E> {
    inner: S,
    chaos: Chaos<E>,
}

impl<S, Req> Service<Req> for ChaosService<S, S::Error>
where
    S: Service<Req> + Clone,
    S::Future: Future<Output = Result<S::Response, S::Error>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, req: Req) -> Self::Future {
        let (delay, end) = self.chaos.next();
        let Some(end) = end else { return ResponseFuture::late(delay, self.inner.call(req)) };
        // What it has reserved by being ready is not called for.
        self.inner = self.inner.clone();
        ResponseFuture::after(delay, end)
    }
}

impl<S: Clone, E> Clone for ChaosService<S, E> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), chaos: self.chaos.clone() }
    }
}

impl<S: fmt::Debug, E> fmt::Debug for ChaosService<S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChaosService").field("inner", &self.inner).field("chaos", &self.chaos).finish()
    }
}
