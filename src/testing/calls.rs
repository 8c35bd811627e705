//! [`Calls`]: what became of each call that reached a service.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::clock;

/// Counts the calls of a [`Scripted`](super::Scripted) service, for all its clones.
///
/// ```
/// use buttress::testing::{Act, Scripted};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let service = Scripted::in_turn([Act::error("down"), Act::answer(1)]);
/// let calls = service.calls();
/// let policy = buttress::Policy::cloned("demo")
///     .retry(buttress::Retry::constant(std::time::Duration::ZERO))
///     .build()
///     .unwrap();
/// assert_eq!(policy.wrap(service).send(()).await.unwrap(), 1);
/// assert_eq!((calls.counted().started, calls.counted().failed), (2, 1));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Calls {
    log: Arc<Mutex<Log>>,
}

#[derive(Debug)]
struct Log {
    counted: Counted,
    made: Instant,
    starts: Vec<Duration>,
}

/// What has become of the calls so far: each that was started is in exactly one of the other counts.
///
/// ```
/// use buttress::testing::{Act, Counted, Scripted};
/// let service: Scripted<u64, std::io::Error> = Scripted::by(Act::answer);
/// assert_eq!(service.calls().counted(), Counted::default());
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Calls that reached the service.
    pub started: u64,
    /// Ended with a response.
    pub answered: u64,
    /// Ended with an error.
    pub failed: u64,
    /// Ended with a panic, of the act or of the script.
    pub panicked: u64,
    /// Dropped before they ended, by whoever called.
    pub dropped: u64,
    /// Not ended yet.
    pub in_flight: u64,
    /// The most that were ever in flight at once.
    pub most_in_flight: u64,
}

impl Calls {
    pub(super) fn new() -> Self {
        let log = Log { counted: Counted::default(), made: clock::now(), starts: Vec::new() };
        Self { log: Arc::new(Mutex::new(log)) }
    }

    /// What there is to count.
    #[must_use]
    pub fn counted(&self) -> Counted {
        self.lock().counted
    }

    /// When each call was started, since the service was made: make it inside of the simulation, whose clock it is.
    #[must_use]
    pub fn starts(&self) -> Vec<Duration> {
        self.lock().starts.clone()
    }

    /// The call's number, from 0, and what counts its end.
    pub(super) fn start(&self) -> (u64, InFlight) {
        let now = clock::now();
        let mut log = self.lock();
        let since = now.saturating_duration_since(log.made);
        log.starts.push(since);
        let counted = &mut log.counted;
        let number = counted.started;
        counted.started += 1;
        counted.in_flight += 1;
        counted.most_in_flight = counted.most_in_flight.max(counted.in_flight);
        (number, InFlight { calls: Some(self.clone()), if_dropped: Ended::Panicked })
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    Answered,
    Failed,
    Panicked,
    Dropped,
}

/// A call that is counted until it ends, or is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    /// `None` once it has ended.
    calls: Option<Calls>,
    /// Until there is a future, nothing but a panic of the script drops it.
    if_dropped: Ended,
}

impl InFlight {
    /// There is a future that holds it.
    pub(super) fn begun(mut self) -> Self {
        self.if_dropped = Ended::Dropped;
        self
    }

    pub(super) fn end(&mut self, ended: Ended) {
        let Some(calls) = self.calls.take() else { return };
        let counted = &mut calls.lock().counted;
        counted.in_flight -= 1;
        *match ended {
            Ended::Answered => &mut counted.answered,
            Ended::Failed => &mut counted.failed,
            Ended::Panicked => &mut counted.panicked,
            Ended::Dropped => &mut counted.dropped,
        } += 1;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.end(self.if_dropped);
    }
}
