//! What came of a shutdown.

use std::{borrow::Cow, fmt, time::Duration};

use super::{Force, Trigger};

/// How a task ended.
///
/// ```
/// use buttress::shutdown::TaskOutcome;
/// assert!(TaskOutcome::Ok.is_ok() && !TaskOutcome::Aborted.is_ok());
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskOutcome {
    /// It returned.
    Ok,
    /// It returned an error, with this text.
    Err(String),
    /// It panicked, with this message: when it was made, polled or dropped.
    Panicked(String),
    /// It had to be aborted.
    Aborted,
    /// It was aborted and went on all the same: it does not yield.
    Unabortable,
}

impl TaskOutcome {
    /// Whether it returned without an error.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        *self == TaskOutcome::Ok
    }
}

impl fmt::Display for TaskOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TaskOutcome::Ok => f.write_str("ended"),
            TaskOutcome::Err(error) => write!(f, "failed: {error}"),
            TaskOutcome::Panicked(message) => write!(f, "panicked: {message}"),
            TaskOutcome::Aborted => f.write_str("did not stop in time and was aborted"),
            TaskOutcome::Unabortable => f.write_str("did not stop in time, and not when aborted either"),
        }
    }
}

/// How one task of a shutdown ended.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::time::Duration;
/// let shutdown = buttress::Shutdown::builder().phase("workers", Duration::from_secs(5)).build()?;
/// shutdown.handle().spawn("workers", "mailer", |_| std::future::pending::<()>())?;
/// shutdown.handle().trigger("deploy");
/// let report = shutdown.wait().await;
/// assert_eq!(report.tasks[0].to_string(), "task `mailer` of phase `workers` did not stop in time and was aborted");
/// # Ok(()) }
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskReport {
    /// Its phase.
    pub phase: &'static str,
    /// Its name.
    pub name: Cow<'static, str>,
    /// How it ended.
    pub outcome: TaskOutcome,
    /// How often it was restarted.
    pub restarts: u32,
    /// Whether its end is the end of the process.
    pub critical: bool,
    /// Whether it ended before draining began.
    pub early: bool,
}

impl TaskReport {
    /// Whether it makes the [exit code](Report::exit_code) 1: it did not stop in time, or failed while that mattered.
    /// What is not critical may fail while the process runs.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        !self.outcome.is_ok() && (self.critical || !self.early)
    }
}

impl fmt::Display for TaskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task `{}` of phase `{}` {}", self.name, self.phase, self.outcome)?;
        match self.restarts {
            0 => Ok(()),
            1 => f.write_str(", after 1 restart"),
            n => write!(f, ", after {n} restarts"),
        }
    }
}

/// One step of a shutdown: `lame duck`, `calls`, each phase by its name, `abort`, and each hook by its name.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let shutdown = buttress::Shutdown::builder().build()?;
/// shutdown.handle().trigger("deploy");
/// let report = shutdown.wait().await;
/// assert_eq!(report.stages[0].name, "lame duck");
/// assert_eq!(report.stages[0].elapsed.as_secs(), 5);
/// # Ok(()) }
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What was waited for.
    pub name: &'static str,
    /// For how long.
    pub elapsed: Duration,
    /// Whether it was over its limit, or cut short.
    pub overran: bool,
}

/// What came of a shutdown: what began it, how long each step took, and what did not stop.
///
/// Its `Display` is worth logging: one line if all went well, else one more for everything that did not.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let shutdown = buttress::Shutdown::builder().build()?;
/// shutdown.handle().trigger("deploy");
/// let report = shutdown.wait().await;
/// assert!(report.is_clean());
/// assert_eq!(report.exit_code(), 0);
/// assert_eq!(report.to_string(), "shutdown by deploy: clean in 5.0s (lame duck 5.0s); calls: 0 drained, 0 rejected");
/// # Ok(()) }
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What began it.
    pub reason: Trigger,
    /// What forced it, if it was.
    pub forced: Option<Force>,
    /// From the trigger to the end.
    pub elapsed: Duration,
    /// Its steps, in their order.
    pub stages: Vec<Stage>,
    /// How many of the calls and guards that were in flight when the gate closed came to their end. A call has, once the
    /// server has all of its response; whether that gets through to the client is a matter of its connection.
    pub drained: usize,
    /// How many calls were refused since.
    pub rejected: u64,
    /// How many calls were dropped because it was forced, by the [name of their layer](super::InFlightLayer::named).
    pub cut: Vec<(&'static str, usize)>,
    /// How many calls and guards were still in flight at the end.
    pub left: usize,
    /// The guards among them, by name.
    pub guards: Vec<(&'static str, usize)>,
    /// How many connections were there to be cut when it was forced.
    pub connections_cut: usize,
    /// All tasks that were ever spawned, but for those below.
    pub tasks: Vec<TaskReport>,
    /// How many that had ended early are not in `tasks`: the oldest are forgotten when there are more than a thousand.
    pub forgotten: u64,
}

impl Report {
    /// Whether everything ended by itself, in time and without failing.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.exit_code() == 0
    }

    /// 0 if it is clean; 128 and the signal's number if a second signal forced it; else 1. (A critical task that returned
    /// without an error is no failure: the process stops because of it, and may still be clean.)
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        if let Some(force) = self.forced {
            return force.exit_code();
        }
        let failed = self.left > 0
            || self.stages.iter().any(|stage| stage.overran)
            || self.tasks.iter().any(TaskReport::is_failure);
        i32::from(failed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, drained, rejected, .. } = self;
        let elapsed = self.elapsed.as_secs_f64();
        write!(f, "shutdown by {reason}: ")?;
        match self.forced {
            Some(by) => write!(f, "forced by {by}, after {elapsed:.1}s")?,
            None if self.is_clean() => write!(f, "clean in {elapsed:.1}s")?,
            None => write!(f, "not clean, in {elapsed:.1}s")?,
        }
        let mut separator = " (";
        for stage in &self.stages {
            if stage.elapsed < Duration::from_millis(1) && !stage.overran {
                continue;
            }
            let over = if stage.overran { ", overran" } else { "" };
            write!(f, "{separator}{} {:.1}s{over}", stage.name, stage.elapsed.as_secs_f64())?;
            separator = "; ";
        }
        if separator == "; " {
            f.write_str(")")?;
        }
        write!(f, "; calls: {drained} drained, {rejected} rejected")?;
        if self.left > 0 {
            write!(f, ", {} left", self.left)?;
        }
        if self.connections_cut > 0 {
            write!(f, "; {} connections cut", self.connections_cut)?;
        }
        for (name, count) in &self.cut {
            write!(f, "\n  {count} of `{name}` did not end in time and were dropped")?;
        }
        for (name, count) in &self.guards {
            write!(f, "\n  {count} of guard `{name}` did not end and are still held")?;
        }
        for task in self.tasks.iter().filter(|task| task.is_failure()) {
            write!(f, "\n  {task}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean() -> Report {
        Report {
            reason: Trigger::Forced,
            forced: None,
            elapsed: Duration::from_secs(2),
            stages: Vec::new(),
            drained: 3,
            rejected: 0,
            cut: Vec::new(),
            left: 0,
            guards: Vec::new(),
            connections_cut: 0,
            tasks: Vec::new(),
            forgotten: 0,
        }
    }

    #[test]
    fn what_is_left_is_told_and_is_not_clean() {
        let report = Report { left: 2, connections_cut: 1, ..clean() };
        assert_eq!((clean().exit_code(), report.exit_code()), (0, 1));
        assert_eq!(
            (clean().to_string().as_str(), report.to_string().as_str()),
            (
                "shutdown by force: clean in 2.0s; calls: 3 drained, 0 rejected",
                "shutdown by force: not clean, in 2.0s; calls: 3 drained, 0 rejected, 2 left; 1 connections cut",
            )
        );
    }

    #[test]
    fn a_stage_is_told_that_took_a_millisecond_or_was_cut_short() {
        let stage = |name, micros, overran| Stage { name, elapsed: Duration::from_micros(micros), overran };
        let stages = vec![stage("lame duck", 999, false), stage("calls", 1_000, false), stage("abort", 0, true)];
        let report = Report { stages, ..clean() };
        assert!(report.to_string().contains(" (calls 0.0s; abort 0.0s, overran); "), "{report}");
    }
}
