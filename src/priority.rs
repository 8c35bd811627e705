//! [`Priority`]: who goes first where there is not room for all.
//!
//! It is a [mark](crate::mark) of the task that is being polled: whoever runs inside a [`scope`](Priority::scope), or behind a
//! [`PriorityLayer`], finds it as [`Priority::current`], and so does every [concurrency limit](crate::ConcurrencyLimit) in whose queue it
//! has to wait. Where nobody waits it costs nothing and matters to nobody.

use std::{cell::Cell, future::Future, thread::LocalKey};

use crate::mark::{MarkLayer, Marked, sealed::Sealed};

/// How much is lost if a call is refused. In the queue of a concurrency limit the higher goes first; and where that is full, the
/// lowest gives up its place for whoever is higher.
///
/// The four levels are those of Google's *Site Reliability Engineering* ("Handling Overload"); others lie in between.
///
/// ```
/// use buttress::Priority;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// async fn refresh_the_cache() { assert_eq!(Priority::current(), Priority::SHEDDABLE); }
/// Priority::SHEDDABLE.scope(refresh_the_cache()).await;
/// assert_eq!(Priority::current(), Priority::CRITICAL, "if nobody says anything");
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

thread_local! {
    static CURRENT: Cell<Option<Priority>> = const { Cell::new(None) };
}

impl Priority {
    /// Whose loss a user hears of with a siren.
    pub const CRITICAL_PLUS: Self = Self(200);
    /// Whose loss a user sees. What a call is if nobody says anything.
    pub const CRITICAL: Self = Self(150);
    /// What can be done again in a few minutes, as batches are.
    pub const SHEDDABLE_PLUS: Self = Self(100);
    /// What may be missing for hours.
    pub const SHEDDABLE: Self = Self(50);

    /// The higher, the later it is shed.
    #[must_use]
    pub const fn new(level: u8) -> Self {
        Self(level)
    }

    /// The number of the level.
    #[must_use]
    pub const fn level(self) -> u8 {
        self.0
    }

    /// That of the task that is being polled.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.get().unwrap_or_default()
    }

    /// Runs `future` with this priority as the current one. Cancel safe if `future` is. Spawning a task leaves it behind.
    ///
    /// A service admits while it is called, which for `scope(service.call(req))` is before the future is there: have it called within,
    /// as by `scope(service.oneshot(req))` or `scope(async { … })`, or use the [layer](PriorityLayer).
    pub fn scope<F: Future>(self, future: F) -> Marked<Self, F> {
        Marked::new(self, future)
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::CRITICAL
    }
}

impl Sealed for Priority {
    fn current() -> &'static LocalKey<Cell<Option<Self>>> {
        &CURRENT
    }
}

/// Gives each request its priority, for all concurrency limits below.
///
/// ```
/// use buttress::{Priority, priority::PriorityLayer};
/// use tower::ServiceBuilder;
/// # let service = tower::service_fn(|path: &'static str| async move { Ok::<_, std::io::Error>(path) });
/// let by_path = |path: &&str| if path.starts_with("/report") { Priority::SHEDDABLE } else { Priority::CRITICAL };
/// let service = ServiceBuilder::new().layer(PriorityLayer::new(by_path)).service(service);
/// # let _ = service;
/// ```
pub type PriorityLayer<P> = MarkLayer<Priority, P>;
