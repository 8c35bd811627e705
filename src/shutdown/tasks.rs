//! Background tasks: named, supervised, and stopped phase by phase.

use std::{
    any::Any,
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    error::Error as StdError,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::*},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task::AbortHandle,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use super::{Handle, State, TaskOutcome, TaskReport, Trigger, state::Shared, timing::either};
use crate::{Backoff, ConfigError, clock::now, config::Checks, random::Random};

// ---------------------------------------------------------------- what users see

/// What a task may return: nothing, or a `Result` whose error can be shown.
///
/// ```
/// fn ends_well<O: buttress::shutdown::IntoOutcome>(output: O) -> bool {
///     output.into_outcome().is_ok()
/// }
/// assert!(ends_well(()));
/// assert!(!ends_well(Err::<(), _>("no such queue")));
/// ```
#[diagnostic::on_unimplemented(
    message = "a task cannot return `{Self}`",
    note = "it returns `()` or a `Result` whose error implements `Display`",
    note = "an endless loop cannot stop: break out of it on `cx.stopping()`"
)]
pub trait IntoOutcome {
    /// How the task ended.
    fn into_outcome(self) -> TaskOutcome;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> TaskOutcome {
        TaskOutcome::Ok
    }
}

impl<T, E: fmt::Display> IntoOutcome for Result<T, E> {
    fn into_outcome(self) -> TaskOutcome {
        match self {
            Ok(_) => TaskOutcome::Ok,
            Err(error) => TaskOutcome::Err(error.to_string()),
        }
    }
}

/// Why a task was not spawned.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::time::Duration;
/// let shutdown = buttress::Shutdown::builder().phase("workers", Duration::from_secs(5)).build()?;
/// let refused = shutdown.handle().spawn("worker", "mailer", |_| async {}).unwrap_err();
/// assert_eq!(refused.to_string(), "task `mailer` was not spawned: there is no phase `worker`, only `workers`");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    task: Cow<'static, str>,
    why: Why,
}

/// What kept a task from being spawned.
///
/// ```
/// # use buttress::shutdown::{Refused, Why};
/// fn is_late(refused: &Refused) -> bool {
///     matches!(refused.why(), Why::Closed)
/// }
/// # let _ = is_late;
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its phase was told to stop already.
    Closed,
    /// There is no phase of that name.
    UnknownPhase {
        /// The name that was given.
        phase: String,
        /// Those that there are.
        known: Vec<&'static str>,
    },
    /// There is no tokio runtime to spawn it on.
    NoRuntime,
    /// Its [`Restart`] has settings out of their range.
    Restart(ConfigError),
}

impl Refused {
    /// The task.
    #[must_use]
    pub fn task(&self) -> &str {
        &self.task
    }

    /// Why.
    #[must_use]
    pub fn why(&self) -> &Why {
        &self.why
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task `{}` was not spawned: ", self.task)?;
        match &self.why {
            Why::Closed => f.write_str("its phase was told to stop already"),
            Why::UnknownPhase { phase, known } if known.is_empty() => {
                write!(f, "there is no phase `{phase}`, and no other: see `ShutdownBuilder::phase`")
            }
            Why::UnknownPhase { phase, known } => {
                write!(f, "there is no phase `{phase}`, only `{}`", known.join("`, `"))
            }
            Why::NoRuntime => f.write_str("there is no tokio runtime here"),
            Why::Restart(error) => error.fmt(f),
        }
    }
}

impl StdError for Refused {}

/// When to start a [supervised](Handle::supervise) task again, and when to give up.
///
/// ```
/// use buttress::{Backoff, shutdown::Restart};
/// use std::time::Duration;
/// let restart = Restart::on_failure(Backoff::exponential(Duration::from_millis(100))).max(5, Duration::from_secs(60));
/// # let _ = restart;
/// ```
///
/// The backoff grows with the restarts of the last span, so a task that has run well for that long begins anew.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Restart {
    always: bool,
    backoff: Backoff,
    max: u32,
    per: Duration,
}

/// Enough for any intensity that makes sense; so many moments are remembered at most.
const MOST_RESTARTS: u32 = 10_000;

impl Restart {
    fn new(always: bool, backoff: Backoff) -> Self {
        Self { always, backoff, max: 5, per: Duration::from_secs(60) }
    }

    /// When it returned an error or panicked.
    pub fn on_failure(backoff: Backoff) -> Self {
        Self::new(false, backoff)
    }

    /// However it ended.
    pub fn always(backoff: Backoff) -> Self {
        Self::new(true, backoff)
    }

    /// At most so many restarts in a span of time; if it ends once more, it has ended for good. Default 5 in a minute: what
    /// fails more often does not get well by restarting, and somebody must hear of it.
    pub fn max(mut self, restarts: u32, per: Duration) -> Self {
        self.max = restarts;
        self.per = per;
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        let mut checks = Checks::new("restart");
        self.backoff.check(&mut checks, "backoff");
        checks.count("max", self.max as usize, MOST_RESTARTS as usize, "must be 1 to 10,000");
        checks.time("max.per", self.per);
        checks.finish()
    }
}

/// What a task is told: when to stop, and where it stands.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::time::Duration;
/// # let shutdown = buttress::Shutdown::builder().phase("workers", Duration::from_secs(5)).build()?;
/// shutdown.handle().spawn("workers", "mailer", |cx| async move {
///     cx.stopping().await; // then send what is left, and return
/// })?;
/// # shutdown.handle().trigger("deploy");
/// # assert!(shutdown.wait().await.is_clean());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct TaskContext {
    handle: Handle,
    phase: usize,
    restarts: u32,
}

impl TaskContext {
    /// Ready once draining begins: the time to take no *new* work. Others may still need what the task does.
    /// Cancel safe.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> + 'static {
        self.handle.draining()
    }

    /// Ready once it is the turn of the task's phase to stop: the server and all phases that were registered later are done.
    /// The time to finish and return, within the phase's limit. Cancel safe.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + use<> + 'static {
        let (shared, phase) = (Arc::clone(&self.handle.shared), self.phase);
        async move { shared.phase_stopping(phase).await }
    }

    /// Ready once everything is being aborted. Cancel safe.
    pub fn forced(&self) -> impl Future<Output = ()> + Send + use<> + 'static {
        self.handle.forced()
    }

    /// How often this task was restarted.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// The shutdown's handle.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// A task that is about to be spawned. Made by [`Handle::task`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::time::Duration;
/// # let shutdown = buttress::Shutdown::builder().phase("workers", Duration::from_secs(5)).build()?;
/// shutdown.handle().task("workers", "cache warmer").optional().spawn(|_| async { /* … */ })?;
/// # tokio::task::yield_now().await;
/// # assert!(!shutdown.handle().is_draining());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it is not spawned yet"]
pub struct Task<'a> {
    handle: &'a Handle,
    phase: &'a str,
    name: Cow<'static, str>,
    critical: bool,
}

impl Task<'_> {
    /// The process can do without it: its end is no reason to stop.
    pub fn optional(mut self) -> Self {
        self.critical = false;
        self
    }

    /// Runs it once.
    ///
    /// # Errors
    /// As [`Handle::spawn`].
    pub fn spawn<F, Fut>(self, task: F) -> Result<(), Refused>
    where
        F: FnOnce(TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output: IntoOutcome> + Send + 'static,
    {
        self.enroll(|enrolled| {
            let job = Job { task, enrolled };
            async move {
                let cx = job.enrolled.context(0);
                let outcome = job.enrolled.run(|| (job.task)(cx)).await;
                job.enrolled.end(outcome);
            }
        })
    }

    /// Runs it, and again as `restart` says.
    ///
    /// # Errors
    /// As [`Handle::supervise`].
    pub fn supervise<F, Fut>(self, restart: Restart, task: F) -> Result<(), Refused>
    where
        F: FnMut(TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output: IntoOutcome> + Send + 'static,
    {
        if let Err(error) = restart.check() {
            return Err(Refused { task: self.name, why: Why::Restart(error) });
        }
        self.enroll(|enrolled| {
            let mut job = Job { task, enrolled };
            async move {
                let mut restarts = Restarts::new(restart);
                let shared = Arc::clone(&job.enrolled.shared);
                loop {
                    let cx = job.enrolled.context(restarts.count);
                    let outcome = job.enrolled.run(|| (job.task)(cx)).await;
                    let early = !shared.is_draining();
                    if !early || (outcome.is_ok() && !restart.always) {
                        return job.end(outcome, early);
                    }
                    let task = &job.enrolled.name;
                    let Some(delay) = restarts.next(now(), Random::System.unit()) else {
                        warn!(target: "buttress", %task, max = restart.max, per = ?restart.per, "task restarts too often");
                        return job.end(outcome, early);
                    };
                    warn!(target: "buttress", %task, %outcome, ?delay, "task is restarted");
                    either(sleep(delay), shared.reached(State::Draining)).await;
                    if shared.is_draining() {
                        return job.end(outcome, early);
                    }
                    shared.tasks.restarted(job.enrolled.id);
                }
            }
        })
    }

    fn enroll<Run, Fut>(self, run: Run) -> Result<(), Refused>
    where
        Run: FnOnce(Enrolled) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let Self { handle, phase, name, critical } = self;
        let shared = &handle.shared;
        let refused = |name, why| Err(Refused { task: name, why });
        let Some(index) = shared.phases.iter().position(|known| known.name == phase) else {
            let known = shared.phases.iter().map(|phase| phase.name).collect();
            return refused(name, Why::UnknownPhase { phase: phase.to_owned(), known });
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return refused(name, Why::NoRuntime) };
        if !shared.phases[index].tasks.enter() {
            return refused(name, Why::Closed);
        }
        let id = shared.tasks.add(index, name.clone(), critical);
        let enrolled =
            Enrolled { shared: Arc::clone(shared), phase: index, id, name, panicked: OnceLock::new(), ended: false };
        let abort = runtime.spawn(run(enrolled)).abort_handle();
        shared.tasks.spawned(id, abort);
        Ok(())
    }
}

impl Handle {
    /// A task of a phase, to be spawned. Critical, unless told otherwise.
    pub fn task<'a>(&'a self, phase: &'a str, name: impl Into<Cow<'static, str>>) -> Task<'a> {
        Task { handle: self, phase, name: name.into(), critical: true }
    }

    /// Spawns a critical task: when it ends, the process drains, for half a process is worse than none. (See
    /// [`task`](Self::task) for others.)
    ///
    /// # Errors
    /// If there is no such phase, it was told to stop already, or there is no tokio runtime.
    pub fn spawn<F, Fut>(&self, phase: &str, name: impl Into<Cow<'static, str>>, task: F) -> Result<(), Refused>
    where
        F: FnOnce(TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output: IntoOutcome> + Send + 'static,
    {
        self.task(phase, name).spawn(task)
    }

    /// Spawns a critical task that is restarted while the process runs. Once draining begins nothing is restarted, and a
    /// backoff ends at once.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn), and if `restart` has settings out of their range.
    pub fn supervise<F, Fut>(
        &self,
        phase: &str,
        name: impl Into<Cow<'static, str>>,
        restart: Restart,
        task: F,
    ) -> Result<(), Refused>
    where
        F: FnMut(TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output: IntoOutcome> + Send + 'static,
    {
        self.task(phase, name).supervise(restart, task)
    }
}

// ---------------------------------------------------------------- restarts, pure

#[derive(Debug)]
struct Restarts {
    restart: Restart,
    /// The restarts of the last span.
    recent: VecDeque<Instant>,
    previous: Duration,
    count: u32,
}

impl Restarts {
    fn new(restart: Restart) -> Self {
        Self { restart, recent: VecDeque::new(), previous: Duration::ZERO, count: 0 }
    }

    /// How long to wait before the next start; `None`: there have been too many.
    fn next(&mut self, now: Instant, unit: f64) -> Option<Duration> {
        let Restart { backoff, max, per, .. } = self.restart;
        while self.recent.front().is_some_and(|first| now.saturating_duration_since(*first) >= per) {
            self.recent.pop_front();
        }
        let attempt = self.recent.len() as u32 + 1;
        if attempt > max {
            return None;
        }
        if attempt == 1 {
            self.previous = Duration::ZERO;
        }
        self.recent.push_back(now);
        self.count = self.count.saturating_add(1);
        self.previous = backoff.delay(attempt, self.previous, unit);
        Some(self.previous)
    }
}

// ---------------------------------------------------------------- one task

/// A task that is in its phase's room. Dropped without an [`end`](Self::end) it was aborted.
struct Enrolled {
    shared: Arc<Shared>,
    phase: usize,
    id: u64,
    name: Cow<'static, str>,
    /// What it said when it panicked while being dropped.
    panicked: OnceLock<String>,
    ended: bool,
}

impl Enrolled {
    fn context(&self, restarts: u32) -> TaskContext {
        TaskContext { handle: Handle::new(&self.shared), phase: self.phase, restarts }
    }

    /// Runs the user's code, whose panics are outcomes.
    async fn run<F: Future<Output: IntoOutcome>>(&self, factory: impl FnOnce() -> F) -> TaskOutcome {
        match catch_unwind(AssertUnwindSafe(factory)) {
            Ok(future) => Caught { panicked: &self.panicked, future: Some(Box::pin(future)) }.await,
            Err(payload) => TaskOutcome::Panicked(message(payload)),
        }
    }

    fn end(self, outcome: TaskOutcome) {
        let early = !self.shared.is_draining();
        self.end_as(outcome, early);
    }

    fn end_as(mut self, outcome: TaskOutcome, early: bool) {
        self.ended = true;
        self.record(outcome, early);
    }

    fn record(&self, outcome: TaskOutcome, early: bool) {
        let phase = self.shared.phases[self.phase].name;
        if self.shared.tasks.ended(self.id, outcome.clone(), early) && early {
            self.shared.drain(Trigger::Task { phase, name: self.name.clone() });
        }
        // Last: whoever listens to logs may block, or panic.
        if outcome.is_ok() {
            debug!(target: "buttress", phase, task = %self.name, "task ended");
        } else {
            warn!(target: "buttress", phase, task = %self.name, %outcome, "task ended");
        }
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        if !self.ended {
            let panicked = self.panicked.take();
            let outcome = panicked.map_or(TaskOutcome::Aborted, TaskOutcome::Panicked);
            self.record(outcome, !self.shared.is_draining());
        }
        // Last of all: whoever waits for the phase finds the outcome there.
        self.shared.phases[self.phase].tasks.exit();
    }
}

/// A task and its place. It drops the task first: its end is told when nothing is left of it.
struct Job<F> {
    task: F,
    enrolled: Enrolled,
}

impl<F> Job<F> {
    /// `early`: the task had ended before draining began.
    fn end(self, outcome: TaskOutcome, early: bool) {
        let Self { task, enrolled } = self;
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(task)));
        let outcome = match dropped {
            Err(payload) if outcome.is_ok() => TaskOutcome::Panicked(message(payload)),
            _ => outcome,
        };
        enrolled.end_as(outcome, early);
    }
}

/// A future of the user, whose panics are caught: those of its polls, and those of its drop.
struct Caught<'a, F> {
    panicked: &'a OnceLock<String>,
    /// `None` once it is over.
    future: Option<Pin<Box<F>>>,
}

impl<F> Caught<'_, F> {
    /// Drops the future; returns what it says if that panics.
    fn let_go(&mut self) -> Option<String> {
        let future = self.future.take();
        catch_unwind(AssertUnwindSafe(|| drop(future))).err().map(message)
    }
}

impl<F: Future<Output: IntoOutcome>> Future for Caught<'_, F> {
    type Output = TaskOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TaskOutcome> {
        let Some(future) = &mut self.future else { panic!("a task was polled after its end") };
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx).map(IntoOutcome::into_outcome)));
        let outcome = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(outcome)) => outcome,
            Err(payload) => TaskOutcome::Panicked(message(payload)),
        };
        Poll::Ready(match (outcome, self.let_go()) {
            (outcome @ TaskOutcome::Panicked(_), _) | (outcome, None) => outcome,
            (_, Some(message)) => TaskOutcome::Panicked(message),
        })
    }
}

impl<F> Drop for Caught<'_, F> {
    fn drop(&mut self) {
        if let Some(message) = self.let_go() {
            let _ = self.panicked.set(message);
        }
    }
}

/// What a panic says.
pub(super) fn message(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => match payload.downcast_ref::<&'static str>() {
            Some(message) => (*message).to_owned(),
            None => {
                // What it is made of may panic when it is dropped.
                std::mem::forget(payload);
                "with no message".to_owned()
            }
        },
    }
}

// ---------------------------------------------------------------- all tasks

/// Ended tasks are remembered for the report, but not without bound.
const REMEMBERED: usize = 1_000;

/// Every task that runs, and the latest of those that have ended.
#[derive(Debug, Default)]
pub(super) struct Registry {
    entries: Mutex<Entries>,
    /// Whether everything is to be aborted: what is spawned from then on is aborted by whoever spawns it.
    aborting: AtomicBool,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    all: BTreeMap<u64, Entry>,
    /// Those that ended before draining, the oldest first.
    ended: VecDeque<u64>,
    forgotten: u64,
}

#[derive(Debug)]
struct Entry {
    phase: usize,
    name: Cow<'static, str>,
    critical: bool,
    restarts: u32,
    abort: Option<AbortHandle>,
    outcome: Option<TaskOutcome>,
    early: bool,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Nothing of the user's runs under it.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, phase: usize, name: Cow<'static, str>, critical: bool) -> u64 {
        let mut entries = self.lock();
        let id = entries.next;
        entries.next += 1;
        let entry = Entry { phase, name, critical, restarts: 0, abort: None, outcome: None, early: false };
        entries.all.insert(id, entry);
        id
    }

    fn spawned(&self, id: u64, abort: AbortHandle) {
        let mut entries = self.lock();
        if let Some(entry) = entries.all.get_mut(&id).filter(|entry| entry.outcome.is_none()) {
            entry.abort = Some(abort.clone());
        }
        drop(entries);
        // Relaxed: set before the lock that `abort` takes. Either that finds the handle, or this finds it set.
        if self.aborting.load(Relaxed) {
            abort.abort();
        }
    }

    fn restarted(&self, id: u64) {
        if let Some(entry) = self.lock().all.get_mut(&id) {
            entry.restarts = entry.restarts.saturating_add(1);
        }
    }

    /// Whether the task was critical.
    fn ended(&self, id: u64, outcome: TaskOutcome, early: bool) -> bool {
        let mut entries = self.lock();
        let entries = &mut *entries;
        let Some(entry) = entries.all.get_mut(&id) else { return false };
        let critical = entry.critical;
        (entry.outcome, entry.early, entry.abort) = (Some(outcome), early, None);
        if early && !critical {
            entries.ended.push_back(id);
            if entries.ended.len() > REMEMBERED {
                entries.forgotten += 1;
                entries.ended.pop_front().and_then(|oldest| entries.all.remove(&oldest));
            }
        }
        critical
    }

    /// Aborts the tasks of a phase, or all.
    pub(super) fn abort(&self, phase: Option<usize>) {
        if phase.is_none() {
            self.aborting.store(true, Relaxed);
        }
        let entries = self.lock();
        let those = entries.all.values().filter(|entry| phase.is_none_or(|phase| entry.phase == phase));
        let handles: Vec<_> = those.filter_map(|entry| entry.abort.clone()).collect();
        drop(entries);
        // Aborting may drop a task here and now.
        handles.iter().for_each(AbortHandle::abort);
    }

    /// Each task, by phase and then as they were spawned, and how many are forgotten. What has not ended never will.
    pub(super) fn report(&self, phases: &[super::state::Phase]) -> (Vec<TaskReport>, u64) {
        let entries = self.lock();
        let mut those: Vec<_> = entries.all.values().collect();
        those.sort_by_key(|entry| entry.phase);
        let report = |entry: &Entry| TaskReport {
            phase: phases[entry.phase].name,
            name: entry.name.clone(),
            outcome: entry.outcome.clone().unwrap_or(TaskOutcome::Unabortable),
            restarts: entry.restarts,
            critical: entry.critical,
            early: entry.early,
        };
        (those.into_iter().map(report).collect(), entries.forgotten)
    }
}
