//! The handle and its layer; what is decided here takes the time as an argument.

use std::{borrow::Borrow, fmt, future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{HedgeBuilder, quantile::Quantile};
use crate::{
    Error, Reject,
    call::{Beside, Calls, Guard, Guarded, Holds, Inline, Parts, Repeating, ResponseFuture, UntilHeaders},
    clock::seconds,
    kind::{Cloned, Kind, Plain},
    lift::LiftFuture,
    retry::Budget,
    shutdown,
    spread::Spread,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Asks once more before the first answer is late, and takes whichever comes: one delay and one budget, shared by its clones, its
/// layers and their services. See the [module](crate::hedge) for when not to.
///
/// ```
/// use buttress::Hedge;
/// use std::{cell::Cell, time::Duration};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let hedge = Hedge::after(Duration::from_millis(30)).build()?;
/// let asked = Cell::new(0);
/// let answer = hedge
///     .call(|| {
///         let replica = asked.replace(asked.get() + 1);
///         async move {
///             // The first replica is in trouble.
///             tokio::time::sleep(Duration::from_millis(if replica == 0 { 5_000 } else { 10 })).await;
///             Ok::<_, std::io::Error>(replica)
///         }
///     })
///     .await?;
/// assert_eq!(answer, 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Hedge {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    /// A [`Quantile`]. Relaxed, and no more than stored: of two samples that come at once one is lost, of many.
    learned: AtomicU64,
    budget: Budget,
    purse: Purse,
}

pub(super) struct Settings {
    pub(super) name: &'static str,
    pub(super) delay: Delay,
    pub(super) min_delay: Duration,
    pub(super) shutdown: Option<shutdown::Handle>,
}

/// Whose budget it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purse {
    Own,
    Shared,
}

/// When to ask once more.
#[derive(Clone, Copy, Debug)]
pub(super) enum Delay {
    Fixed(Duration),
    /// `times` as long as `share` of the calls take at most.
    Percentile {
        share: f32,
        times: f32,
    },
}

/// Of a budget that is shared, hedges leave so much to the retries: these have heard a no, those only nothing yet.
const LEFT_TO_RETRIES: u64 = 5;

impl Hedge {
    /// Asks once more after `delay`.
    pub fn after(delay: Duration) -> HedgeBuilder {
        HedgeBuilder::new(Delay::Fixed(delay))
    }

    /// Asks once more when a call takes longer than so many of them, as 0.95: then at most about 5 % are sent twice. Learned from the
    /// calls that were answered, and not done before 20 were; but not from those that were answered at once, as by a cache, which
    /// cost nothing: it is the percentile of the others.
    pub fn percentile(share: f64) -> HedgeBuilder {
        HedgeBuilder::new(Delay::Percentile { share: share as f32, times: 1.0 })
    }

    pub(super) fn new(settings: Settings, budget: Budget, purse: Purse) -> Self {
        let learned = AtomicU64::new(Quantile::default().to_word());
        Self { shared: Arc::new(Shared { settings, learned, budget, purse }) }
    }

    /// As a tower layer that clones requests, where `Err` is transient. It clones **all of them**: for requests that are safe to
    /// be done twice. [`layer_with`](Self::layer_with) takes a kind that chooses.
    pub fn layer(&self) -> HedgeLayer {
        self.layer_with(Cloned::default())
    }

    /// As a tower layer that classifies and repeats as `kind` says.
    pub fn layer_with<K>(&self, kind: K) -> HedgeLayer<K>
    where
        HedgeParts<Hedge, K>: Parts,
    {
        Guard::from(Spread::new(HedgeParts { hedge: self.clone(), kind }))
    }

    /// Runs what `attempt` makes; and once more, beside the first, if that takes too long. `Err` is transient.
    ///
    /// Cancel safe if the attempts are: dropped, it drops both. Over attempts that return an [`Error<E>`] of ours use
    /// [`call_as`](Self::call_as).
    ///
    /// # Errors
    /// The error of the attempt that was waited for last, unchanged.
    ///
    /// # Panics
    /// If it must wait outside of a tokio runtime with its timers enabled.
    pub fn call<F, Fut, T, E>(
        &self,
        mut attempt: F,
    ) -> impl Future<Output = Result<T, Error<E>>> + use<'_, F, Fut, T, E>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let parts = Inline(HedgeParts { hedge: self, kind: Plain::default() });
        ResponseFuture::lazy(parts, Calls(move |_| LiftFuture { inner: attempt() }))
    }

    /// As [`call`](Self::call), for an error that can carry a rejection itself; so that a nested rejection is known as one.
    /// Cancel safe if the attempts are.
    ///
    /// # Errors
    /// As `call`.
    pub fn call_as<F, Fut, T, E>(&self, mut attempt: F) -> impl Future<Output = Result<T, E>> + use<'_, F, Fut, T, E>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: Reject<T>,
    {
        ResponseFuture::lazy(Inline(HedgeParts { hedge: self, kind: Plain::default() }), Calls(move |_| attempt()))
    }

    /// After how long a call is sent once more. `None` while too little is known.
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        match self.shared.settings.delay {
            Delay::Fixed(delay) => Some(delay),
            Delay::Percentile { times, .. } => {
                let usual = Quantile::from_word(self.shared.learned.load(Relaxed)).get()?;
                let delay = seconds(usual.as_secs_f64() * f64::from(times));
                Some(delay.max(self.shared.settings.min_delay))
            }
        }
    }

    /// The budget.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.shared.budget
    }

    /// For each call, unless it has `paid` to the same already.
    #[inline]
    pub(crate) fn deposit(&self, paid: Option<&Budget>, now: impl FnOnce() -> Instant) {
        if !paid.is_some_and(|budget| budget.is(&self.shared.budget)) {
            self.shared.budget.deposit(now);
        }
    }

    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        let keep = if self.shared.purse == Purse::Own { 0 } else { LEFT_TO_RETRIES };
        self.shared.budget.withdraw(now, keep)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.shared.settings.shutdown.as_ref().is_some_and(shutdown::Handle::is_draining)
    }

    /// A call was answered, or has taken so long and was given up for another.
    pub(crate) fn learn(&self, took: Duration) {
        if let Delay::Percentile { share, .. } = self.shared.settings.delay {
            let learned = Quantile::from_word(self.shared.learned.load(Relaxed));
            self.shared.learned.store(learned.with(took, share).to_word(), Relaxed);
        }
    }
}

impl fmt::Debug for Hedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Hedge");
        f.field("name", &self.shared.settings.name)
            .field("delay", &self.delay())
            .field("budget", &self.shared.budget)
            .finish()
    }
}

/// A hedge and a kind.
#[derive(Clone, Copy, Debug)]
pub struct HedgeParts<H, K> {
    hedge: H,
    kind: K,
}

impl<H: Borrow<Hedge> + Clone, C: Clone, R: Clone> Parts for HedgeParts<H, Kind<C, R>> {
    type Classify = C;
    type Again = Repeating<R>;
    type Hold = UntilHeaders;
    type Seat<F, L: Holds> = Beside<F, L>;
    const TAKES: bool = false;

    #[inline]
    fn name(&self) -> &'static str {
        self.hedge.borrow().shared.settings.name
    }

    #[inline]
    fn classify(&self) -> &C {
        self.kind.classifier()
    }

    #[inline]
    fn again(&self) -> &Repeating<R> {
        self.kind.again()
    }

    #[inline]
    fn hold(&self) -> &UntilHeaders {
        &UntilHeaders::HERE
    }

    #[inline]
    fn hedge(&self) -> Option<&Hedge> {
        Some(self.hedge.borrow())
    }

    fn beside(&self) -> Option<Self> {
        Some(self.clone())
    }
}

/// A [`Hedge`] as a tower layer.
pub type HedgeLayer<K = Cloned> = Guard<Spread<HedgeParts<Hedge, K>>>;

/// The service of [`HedgeLayer`].
pub type HedgeService<S, K = Cloned> = Guarded<S, Spread<HedgeParts<Hedge, K>>>;
