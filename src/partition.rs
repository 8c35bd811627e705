//! [`Partition`]: whose share of a limit a call takes.
//!
//! It is a [mark](crate::mark) of the task that is being polled: whoever runs inside a [`scope`](Partition::scope), or behind a
//! [`PartitionLayer`], finds it as [`Partition::current`], and so does every [concurrency limit](crate::ConcurrencyLimit) that has
//! [a share](crate::ConcurrencyLimitBuilder::partition) for it. To all others it does not matter.

use std::{cell::Cell, future::Future, thread::LocalKey};

use crate::mark::{MarkLayer, Marked, sealed::Sealed};

/// One of several kinds of callers of one service, such as users and nightly jobs, each of which has a guaranteed
/// [share](crate::ConcurrencyLimitBuilder::partition) of a concurrency limit.
///
/// What is a matter of who goes first, whoever asks how much, is for a [`Priority`](crate::Priority); many and unknown callers, each with
/// a limit of its own, are for [`Keyed`](crate::Keyed).
///
/// ```
/// use buttress::{ConcurrencyLimit, Partition};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (live, batch) = (Partition::new("live"), Partition::new("batch"));
/// let limit = ConcurrencyLimit::builder().max_in_flight(10).max_queue(0).partition(live, 0.7).partition(batch, 0.3).build()?;
///
/// // Nobody else asks: the batch may have it all.
/// let mut permits = Vec::new();
/// for _ in 0..10 {
///     permits.push(batch.scope(limit.acquire()).await?);
/// }
/// assert!(batch.scope(limit.acquire()).await.is_err());
/// // And still nobody waits for it.
/// let permit = live.scope(limit.acquire()).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Partition(&'static str);

thread_local! {
    static CURRENT: Cell<Option<Partition>> = const { Cell::new(None) };
}

impl Partition {
    /// Of this name.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }

    /// That of the task that is being polled, if it has one.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.get()
    }

    /// Runs `future` in this partition. Cancel safe if `future` is. Spawning a task leaves it behind.
    ///
    /// A service admits while it is called, which for `scope(service.call(req))` is before the future is there: have it called within,
    /// as by `scope(service.oneshot(req))` or `scope(async { … })`, or use the [layer](PartitionLayer).
    pub fn scope<F: Future>(self, future: F) -> Marked<Self, F> {
        Marked::new(self, future)
    }
}

impl Sealed for Partition {
    fn current() -> &'static LocalKey<Cell<Option<Self>>> {
        &CURRENT
    }
}

/// Puts each request into its partition, for all concurrency limits below.
///
/// ```
/// use buttress::{ConcurrencyLimit, Partition, partition::PartitionLayer};
/// use tower::ServiceBuilder;
/// # let app = tower::service_fn(|path: &'static str| async move { Ok::<_, tower::BoxError>(path) });
/// let (live, batch) = (Partition::new("live"), Partition::new("batch"));
/// let limit = ConcurrencyLimit::builder().max_in_flight(100).partition(live, 0.8).partition(batch, 0.2).build()?;
/// let app = ServiceBuilder::new()
///     .layer(PartitionLayer::new(move |path: &&str| if path.starts_with("/export") { batch } else { live }))
///     .layer(limit.layer())
///     .service(app);
/// # let _ = app; Ok::<(), buttress::ConfigError>(())
/// ```
pub type PartitionLayer<P> = MarkLayer<Partition, P>;
