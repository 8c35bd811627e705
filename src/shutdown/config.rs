//! The settings of a shutdown.

use std::{fmt, io, panic::catch_unwind, sync::Arc, time::Duration};

use super::{
    Shutdown, Signals, driver,
    gate::Room,
    signal::Installed,
    state::{Phase, Plan, Shared},
    systemd::Systemd,
};
use crate::{ConfigError, config::Checks};

/// Settings of a [`Shutdown`].
///
/// ```
/// use buttress::Shutdown;
/// use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let error = Shutdown::builder()
///     .phase("workers", Duration::from_secs(20))
///     .phase("workers", Duration::from_secs(30))
///     .build()
///     .unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "invalid configuration: shutdown.phase = \"workers\": must not have the name of another phase; \
///      shutdown.phase.workers = 30s: must be shorter than the total",
/// );
/// # }
/// ```
#[must_use]
pub struct ShutdownBuilder {
    lame_duck: Duration,
    total: Duration,
    abort_grace: Duration,
    phases: Vec<(&'static str, Duration)>,
    signals: Installed,
}

impl ShutdownBuilder {
    pub(super) fn new() -> Self {
        Self {
            lame_duck: Duration::from_secs(5),
            total: Duration::from_secs(25),
            abort_grace: Duration::from_secs(1),
            phases: Vec::new(),
            signals: Installed::default(),
        }
    }

    /// Listens to signals from this moment on: one that comes before the shutdown is built, or served, is not lost. (Of
    /// several that come before anybody looks, Unix and tokio keep one.)
    ///
    /// The first one drains, the second one forces. The default action of a signal does not come back when the shutdown is
    /// done: end the process then, as [`Shutdown::main`] does.
    ///
    /// # Errors
    /// If there is no tokio runtime here, or it has no I/O; if a signal cannot be listened to; if another `Shutdown` of
    /// this process does so already.
    pub fn signals(mut self, signals: Signals) -> io::Result<Self> {
        // The old ones go first: there is one set in a process.
        self.signals = Installed::default();
        self.signals = Installed::new(&signals)?;
        Ok(self)
    }

    /// How long to go on accepting and serving after it was told to stop, while it is not [ready](super::Handle::is_ready)
    /// any more. Default 5 s: a load balancer goes on sending until its next probe, and Kubernetes removes an endpoint
    /// beside the signal and not before it. Zero where nobody sends unasked.
    pub fn lame_duck(mut self, time: Duration) -> Self {
        self.lame_duck = time;
        self
    }

    /// How long everything may take, from the trigger until it is forced. Default 25 s: below the 30 s after which
    /// Kubernetes kills.
    pub fn total(mut self, time: Duration) -> Self {
        self.total = time;
        self
    }

    /// How long to wait for what was aborted, after that. Default 1 s.
    pub fn abort_grace(mut self, time: Duration) -> Self {
        self.abort_grace = time;
        self
    }

    /// A group of tasks that are stopped together, and how long that may take. Phases stop **in the reverse order** of
    /// their registration, as what is registered first is what the later ones build on: register the storage, then the
    /// workers. The server stops before all of them.
    ///
    /// The time is reserved: whatever comes before, a phase has its own. Tasks that are over it are aborted.
    pub fn phase(mut self, name: &'static str, limit: Duration) -> Self {
        self.phases.push((name, limit));
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        let mut checks = Checks::new("shutdown");
        checks.time("total", self.total);
        let mut fits = self.lame_duck < self.total;
        checks.require(fits, "lame_duck", self.lame_duck, "must be shorter than the total");
        for (i, (name, limit)) in self.phases.iter().enumerate() {
            checks.require(!name.is_empty(), "phase", name, "must not be empty: the report carries it");
            let is_new = self.phases[..i].iter().all(|(other, _)| other != name);
            checks.require(is_new, "phase", name, "must not have the name of another phase");
            let setting = format!("phase.{name}");
            checks.time(&setting, *limit);
            checks.require(*limit < self.total, &setting, limit, "must be shorter than the total");
            fits &= *limit < self.total;
        }
        let reserved = self.lame_duck.saturating_add(self.reserved());
        let enough = "must be longer than the lame-duck time and all phases together, or the calls have none";
        checks.require(!fits || reserved < self.total, "total", self.total, enough);
        let here = tokio::runtime::Handle::try_current().is_ok();
        checks.require(here, "runtime", None::<()>, "must be built inside of a tokio runtime, where its task runs");
        // tokio has no other way of telling.
        let timers = !here || catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok();
        checks.require(timers, "runtime.timers", false, "must be enabled: see `tokio::runtime::Builder::enable_time`");
        checks.finish()
    }

    fn reserved(&self) -> Duration {
        self.phases.iter().fold(Duration::ZERO, |sum, (_, limit)| sum.saturating_add(*limit))
    }

    /// The shutdown, with its driver running on the current tokio runtime.
    ///
    /// # Errors
    /// Every setting that is out of its range, all at once; also if there is no tokio runtime here.
    pub fn build(self) -> Result<Shutdown, ConfigError> {
        self.check()?;
        let reserved = self.reserved();
        let Self { lame_duck, total, abort_grace, phases, signals } = self;
        let plan = Plan { lame_duck, total, abort_grace, reserved };
        let phases = phases.into_iter().map(|(name, limit)| Phase { name, limit, tasks: Room::new() }).collect();
        let shared = Arc::new(Shared::new(plan, phases, Systemd::from_env()));
        tokio::spawn(driver::drive(driver::Driver::new(&shared), signals));
        Ok(Shutdown::new(shared))
    }
}

impl fmt::Debug for ShutdownBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lame_duck, total, abort_grace, phases, signals } = self;
        f.debug_struct("ShutdownBuilder")
            .field("lame_duck", lame_duck)
            .field("total", total)
            .field("abort_grace", abort_grace)
            .field("phases", phases)
            .field("signals", signals)
            .finish()
    }
}
