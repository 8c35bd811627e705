//! [`Shutdown`], which owns; [`Handle`], which everybody may have; and [`InFlight`], for work that is waited for.

use std::{borrow::Cow, error::Error as StdError, fmt, future::Future, sync::Arc, task::Waker, time::Duration};

use super::{
    Force, InFlightLayer, Report, ShutdownBuilder, Signal, State, Trigger, driver::Hook, layer::Calls, state::Shared,
};
/// A graceful shutdown: told to stop, it goes from state to state, and ends with a [`Report`]. See the
/// [module](crate::shutdown) for the whole picture.
///
/// Its driver is a task of its own; this value owns it. **Dropped, everything is aborted.**
///
/// ```
/// use buttress::Shutdown;
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let shutdown = Shutdown::builder().phase("workers", Duration::from_secs(5)).build()?;
/// let handle = shutdown.handle();
/// handle.spawn("workers", "mailer", |cx| async move {
///     cx.stopping().await;
/// })?;
/// handle.ready();
///
/// handle.trigger("deploy"); // or SIGTERM: see `ShutdownBuilder::signals`
/// let report = shutdown.wait().await;
/// assert!(report.is_clean(), "{report}");
/// # Ok(()) }
/// ```
#[must_use = "dropped, it aborts everything"]
pub struct Shutdown {
    handle: Handle,
}

impl Shutdown {
    /// Settings; each has a default.
    pub fn builder() -> ShutdownBuilder {
        ShutdownBuilder::new()
    }

    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { handle: Handle { shared } }
    }

    /// For everybody who is to know of it, or may begin it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The report, once it is done. Cancel safe: dropping the future changes nothing.
    pub async fn wait(&self) -> Report {
        self.handle.wait().await
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        self.handle.shared.force(Force::Dropped);
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

/// Begins a [`Shutdown`], or hears of it. Clones are cheap and stand for the same one; none of them keeps it alive.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let shutdown = buttress::Shutdown::builder().build()?;
/// let handle = shutdown.handle();
/// assert!(handle.trigger("deploy"));
/// assert!(!handle.trigger("again"), "the first reason counts");
/// handle.draining().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

impl Handle {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared) }
    }

    /// Start-up is over: `Starting` => `Running`, and systemd is told. `serve` does so by itself.
    pub fn ready(&self) {
        if self.shared.advance(State::Running) {
            self.shared.systemd.ready();
        }
    }

    /// Begins it, for this reason. `false` if it has begun already: the first reason counts.
    pub fn trigger(&self, reason: impl Into<Cow<'static, str>>) -> bool {
        self.shared.drain(Trigger::Asked(reason.into()))
    }

    /// Goes straight to `Forced`, from whatever state: tasks are aborted, and the connections of `serve` are dropped with their
    /// calls. (Calls of another server, and guards, are reported as [`left`](Report::left) if they do not end by themselves.)
    /// `false` if that has happened already.
    pub fn force(&self) -> bool {
        self.shared.force(Force::Asked)
    }

    /// As if this signal had come: the first one drains, the second one forces, and [`Signal::Hangup`] is a
    /// [reload](Self::reload) if anybody listens.
    pub fn signal(&self, signal: Signal) {
        self.shared.signal(signal);
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Whether it has begun. One atomic load.
    #[must_use]
    #[inline]
    pub fn is_draining(&self) -> bool {
        self.shared.is_draining()
    }

    /// Calls and guards in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.calls.0.count()
    }

    /// Connections of `serve` that are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.count()
    }

    /// Ready once it has begun: for streams, sockets and consumers to wind down before the server is waited for. Cancel
    /// safe. One for each long-lived thing, and none for each call: it is a list entry under a lock.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> + 'static {
        self.reached(State::Draining)
    }

    /// Ready once nothing new is admitted: the signal for `axum::serve(…).with_graceful_shutdown` and the like. Cancel safe.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + use<> + 'static {
        self.reached(State::Stopping)
    }

    /// Ready once everything is being aborted. Cancel safe.
    pub fn forced(&self) -> impl Future<Output = ()> + Send + use<> + 'static {
        self.reached(State::Forced)
    }

    fn reached(&self, state: State) -> impl Future<Output = ()> + Send + use<> + 'static {
        let shared = Arc::clone(&self.shared);
        async move { shared.reached(state).await }
    }

    /// The report, once it is done. Cancel safe.
    pub fn wait(&self) -> impl Future<Output = Report> + Send + use<> + 'static {
        let shared = Arc::clone(&self.shared);
        async move { shared.done().await }
    }

    /// Work that is to be waited for as a call is: an upgraded connection, say. Named, as the report names what is not let
    /// go of in time.
    ///
    /// # Errors
    /// [`Closed`] once nothing new is admitted.
    pub fn guard(&self, name: &'static str) -> Result<InFlight, Closed> {
        let call = Call::admit(&self.shared)
            .then(|| Call::admitted(Some(Arc::clone(&self.shared)), name, false))
            .ok_or(Closed)?;
        *self.shared.guards().entry(name).or_default() += 1;
        Ok(InFlight { call })
    }

    /// A tower layer for services of any protocol: a call is in flight until its future ends or is dropped, and refused once
    /// nothing new is admitted. For HTTP there is `in_flight_layer`.
    pub fn layer(&self) -> InFlightLayer<Calls> {
        InFlightLayer::new(self.clone(), Calls)
    }

    /// Reloads, as SIGHUP asks for them. Those that come while nobody looks are one. With a first call of this, SIGHUP is no
    /// reason to stop any more, as long as one of these is there.
    #[must_use]
    pub fn reload(&self) -> Reloads {
        Reloads { asked: self.shared.reloads.subscribe() }
    }

    /// Something short to be done at the very end, after everything was stopped or aborted: flush a log, say. Hooks run one
    /// after the other, on the runtime that this is called in, each within its limit, and their panics are caught. Once
    /// they have begun, it is too late for another.
    pub fn at_end(&self, name: &'static str, limit: Duration, hook: impl Future<Output = ()> + Send + 'static) {
        let hook = Hook { name, limit, runtime: tokio::runtime::Handle::try_current().ok(), run: Box::pin(hook) };
        self.shared.hooks().push(hook);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// Nothing new is admitted any more.
///
/// ```
/// assert_eq!(buttress::shutdown::Closed.to_string(), "shutting down: nothing new is admitted");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("shutting down: nothing new is admitted")
    }
}

impl StdError for Closed {}

/// One call that came through the gate; dropping it before its end is known as such.
#[derive(Debug)]
pub struct Call {
    /// `None`: there is no call, or it was handed on.
    shared: Option<Arc<Shared>>,
    name: &'static str,
    /// Neither counted nor refused.
    exempt: bool,
    /// By itself, and not by being dropped.
    pub(super) ended: bool,
}

impl Call {
    /// Counts it; [`admitted`](Self::admitted) is to be called next.
    #[inline]
    pub(super) fn admit(shared: &Shared) -> bool {
        // The look at the state, which hardly ever changes, spares a closed gate's word from being written by whoever is
        // turned away.
        !shared.is_stopping() && shared.calls.0.enter()
    }

    /// To be dropped when it is over.
    #[inline]
    pub(super) fn admitted(shared: Option<Arc<Shared>>, name: &'static str, exempt: bool) -> Self {
        Self { shared, name, exempt, ended: false }
    }

    /// No call.
    #[inline]
    pub(super) fn none() -> Self {
        Self::admitted(None, "", false)
    }

    /// For another to let go of.
    #[cfg(feature = "http")]
    pub(super) fn hand_on(&mut self) -> Option<Call> {
        self.shared.is_some().then(|| std::mem::replace(self, Call::none()))
    }

    #[cfg(feature = "http")]
    pub(super) fn is_draining(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.is_draining())
    }

    /// It is over.
    #[inline]
    pub(super) fn let_go(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        if self.exempt {
            return;
        }
        // Before it leaves: whoever waits makes the report next.
        if shared.is_stopping() {
            self.cut(&shared);
        }
        shared.calls.0.exit();
    }

    #[cold]
    fn cut(&self, shared: &Shared) {
        if !self.ended && shared.state() == State::Forced {
            *shared.cut().entry(self.name).or_default() += 1;
        }
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Work that the shutdown waits for. Made by [`Handle::guard`]; let go of when dropped, by a panic too. It can be moved:
/// from the handler into the task that owns the upgraded connection.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let shutdown = buttress::Shutdown::builder().build()?;
/// let guard = shutdown.handle().guard("websocket")?;
/// tokio::spawn(async move {
///     // … the conversation; it ends soon after `handle.draining()`
///     drop(guard);
/// });
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropped at once, it holds nothing"]
pub struct InFlight {
    call: Call,
}

impl InFlight {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.call.name
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Some(shared) = &self.call.shared else { return };
        let mut guards = shared.guards();
        if let Some(count) = guards.get_mut(self.call.name) {
            *count -= 1;
            if *count == 0 {
                guards.remove(self.call.name);
            }
        }
    }
}

/// Reloads that were asked for. Made by [`Handle::reload`].
///
/// ```
/// use buttress::shutdown::Signal;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let shutdown = buttress::Shutdown::builder().build()?;
/// let mut reloads = shutdown.handle().reload();
/// shutdown.handle().signal(Signal::Hangup);
/// reloads.recv().await; // then read the configuration anew
/// assert!(!shutdown.handle().is_draining());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Reloads {
    asked: tokio::sync::watch::Receiver<u64>,
}

impl Reloads {
    /// Ready once another reload was asked for; pending for ever once the shutdown is gone. Cancel safe.
    pub async fn recv(&mut self) {
        if self.asked.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

// ---------------------------------------------------------------- for policies

impl Handle {
    /// In a backoff: keeps the waker under this number; `None` if nothing waits any more.
    pub(crate) fn keep_waiting(&self, ticket: Option<u32>, waker: &Waker) -> Option<u32> {
        let shared = &self.shared;
        shared.waits.keep(ticket, waker, || shared.is_draining())
    }

    pub(crate) fn stop_waiting(&self, ticket: u32) {
        self.shared.waits.leave(ticket);
    }

    pub(crate) fn enlist(&self, limit: &Arc<crate::concurrency_limit::Shared>) {
        self.shared.waits.enlist(Arc::downgrade(limit));
    }
}
