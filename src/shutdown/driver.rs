//! The task that takes a shutdown from one state to the next.

use std::{
    collections::BTreeMap,
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::{
    Force, Report, Stage, State, Trigger,
    signal::Installed,
    state::Shared,
    tasks::message,
    timing::{First, either},
};
use crate::clock::{after, now};

/// Something to be done at the very end.
pub(super) struct Hook {
    pub(super) name: &'static str,
    pub(super) limit: Duration,
    /// `None`: on that of the driver.
    pub(super) runtime: Option<tokio::runtime::Handle>,
    pub(super) run: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("name", &self.name).field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// Runs until the report is there, and makes one even if it is dropped before.
pub(super) async fn drive(mut driver: Driver, mut signals: Installed) {
    let shared = Arc::clone(&driver.shared);
    let listen = poll_fn(|cx: &mut Context<'_>| -> Poll<()> {
        while let Poll::Ready(signal) = signals.poll_signal(cx) {
            shared.signal(signal);
        }
        Poll::Pending
    });
    either(listen, driver.run()).await;
}

/// Dropped at any time, even before it is polled, it makes a report.
pub(super) struct Driver {
    shared: Arc<Shared>,
    stages: Vec<Stage>,
    /// Whether the closed gate was seen empty: what it counts from then on is turned away, and on its way out.
    served: bool,
}

impl Driver {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), stages: Vec::new(), served: false }
    }

    async fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        shared.reached(State::Draining).await;
        let Some((trigger, begun)) = shared.begun() else { unreachable!("it drains because something began it") };
        let (plan, begun) = (&shared.plan, *begun);
        shared.systemd.stopping(trigger, shared.to_the_end(plan.total));

        // ## Draining
        let lame_duck = async {
            // tokio's timers would make a millisecond of nothing.
            if !plan.lame_duck.is_zero() {
                sleep_until(plan.lame_duck_ends(begun)).await;
            }
        };
        // The time is there to pass: it has overrun only if it is cut short.
        self.stage("lame duck", plan.ends(begun), lame_duck).await;

        // ## Draining => Stopping
        shared.stop_admitting();
        if shared.advance(State::Stopping) {
            let (in_flight, connections) = (shared.calls.0.count(), shared.connections.count());
            info!(target: "buttress", in_flight, connections, "shutdown: stopping");
        }
        self.served = self.stage("calls", plan.calls_end(begun), served(&shared)).await;
        let mut later = plan.reserved;
        for (index, phase) in shared.phases.iter().enumerate().rev() {
            later -= phase.limit;
            shared.stop_phase(index);
            let ends = plan.phase_ends(begun, now(), phase.limit);
            if !self.stage(phase.name, ends, phase.tasks.emptied()).await && shared.forced().is_none() {
                shared.tasks.abort(Some(index));
                warn!(target: "buttress", phase = phase.name, limit = ?phase.limit, "shutdown: phase is over its limit");
                let join = sleep_until(plan.join_ends(begun, now(), later));
                either(either(phase.tasks.emptied(), join), shared.reached(State::Forced)).await;
            }
        }
        // What the phases did not need, the calls may have.
        if !self.served {
            self.served = self.more("calls", plan.ends(begun), served(&shared)).await;
            if !self.served {
                // ## Stopping => Forced
                shared.force(Force::Deadline);
            }
        }
        self.abort().await;
        self.run_hooks().await;
        self.finish(begun);
    }

    /// Waits for `done` until the limit, or until it is forced; not at all if it is forced already.
    async fn within(&self, name: &'static str, until: Instant, done: impl Future<Output = ()>) -> Option<Stage> {
        if self.shared.state() >= State::Forced {
            return None;
        }
        let started = now();
        let limited = either(done, sleep_until(until));
        let done = matches!(either(limited, self.shared.reached(State::Forced)).await, First::Left(First::Left(())));
        Some(Stage { name, elapsed: now().saturating_duration_since(started), overran: !done })
    }

    /// A stage of its own. `true` if `done` came in time.
    async fn stage(&mut self, name: &'static str, until: Instant, done: impl Future<Output = ()>) -> bool {
        let stage = self.within(name, until, done).await;
        let in_time = stage.as_ref().is_some_and(|stage| !stage.overran);
        self.stages.extend(stage);
        in_time
    }

    /// More time for a stage that had not enough: what is said of it then is what counts.
    async fn more(&mut self, name: &'static str, until: Instant, done: impl Future<Output = ()>) -> bool {
        let Some(more) = self.within(name, until, done).await else { return false };
        if let Some(stage) = self.stages.iter_mut().find(|stage| stage.name == name) {
            stage.elapsed += more.elapsed;
            stage.overran = more.overran;
        }
        !more.overran
    }

    /// Aborts what is left, if there is any, and waits for it a little.
    async fn abort(&mut self) {
        let shared = &self.shared;
        let rooms = || shared.phases.iter().map(|phase| &phase.tasks);
        if rooms().all(|tasks| tasks.is_empty()) && shared.forced().is_none() {
            return;
        }
        shared.tasks.abort(None);
        let seen_empty = &mut self.served;
        let all = async {
            served(shared).await;
            *seen_empty = true;
            for tasks in rooms() {
                tasks.emptied().await;
            }
        };
        let started = now();
        let joined = either(all, sleep_until(after(started, shared.plan.abort_grace))).await;
        let overran = matches!(joined, First::Right(()));
        let elapsed = now().saturating_duration_since(started);
        self.stages.push(Stage { name: "abort", elapsed, overran });
    }

    async fn run_hooks(&mut self) {
        let hooks = std::mem::take(&mut *self.shared.hooks());
        for Hook { name, limit, runtime, run } in hooks {
            let started = now();
            let mut task = match runtime {
                Some(runtime) => runtime.spawn(run),
                None => tokio::spawn(run),
            };
            let overran = match either(&mut task, sleep_until(after(started, limit))).await {
                First::Left(Ok(())) => false,
                First::Left(Err(error)) => {
                    let panic = error.try_into_panic().map_or_else(|error| error.to_string(), message);
                    warn!(target: "buttress", hook = name, panic, "shutdown: hook failed");
                    true
                }
                First::Right(()) => {
                    task.abort();
                    warn!(target: "buttress", hook = name, ?limit, "shutdown: hook is over its limit");
                    true
                }
            };
            self.stages.push(Stage { name, elapsed: now().saturating_duration_since(started), overran });
        }
    }

    fn finish(&mut self, begun: Instant) {
        let shared = &self.shared;
        let (tasks, forgotten) = shared.tasks.report(&shared.phases);
        let listed = |map: &BTreeMap<&'static str, usize>| -> Vec<_> {
            map.iter().map(|(name, count)| (*name, *count)).collect()
        };
        let cut = listed(&shared.cut());
        let left = if self.served { 0 } else { shared.calls.0.count() };
        let lost = left + cut.iter().map(|(_, count)| count).sum::<usize>();
        let report = Report {
            reason: shared.begun().map_or(Trigger::Forced, |(trigger, _)| trigger.clone()),
            forced: shared.forced(),
            elapsed: now().saturating_duration_since(begun),
            stages: std::mem::take(&mut self.stages),
            drained: shared.closed_on().saturating_sub(lost),
            // Relaxed: a count.
            rejected: shared.rejected.load(Relaxed),
            cut,
            left,
            guards: listed(&shared.guards()),
            connections_cut: shared.connections_cut(),
            tasks,
            forgotten,
        };
        shared.finish(report.clone());
        if report.is_clean() {
            info!(target: "buttress", "{report}");
        } else {
            warn!(target: "buttress", "{report}");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.shared.state() != State::Done {
            // Its runtime goes away, and whoever waits for the report must not do so for ever. No panic out of a drop: a
            // subscriber of `tracing` is not our code.
            let shared = Arc::clone(&self.shared);
            let _ = catch_unwind(AssertUnwindSafe(|| shared.force(Force::RuntimeGone)));
            let _ = catch_unwind(AssertUnwindSafe(|| shared.tasks.abort(None)));
            let begun = shared.begun().map_or_else(now, |(_, begun)| *begun);
            let _ = catch_unwind(AssertUnwindSafe(|| self.finish(begun)));
        }
    }
}

/// Everything that was accepted is answered. Cancel safe.
async fn served(shared: &Shared) {
    shared.listeners.close();
    shared.listeners.emptied().await;
    // Not before: what a listener sweeps from its backlog still comes in.
    shared.connections.close();
    shared.connections.emptied().await;
    shared.calls.0.emptied().await;
}
