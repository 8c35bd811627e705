//! [`ConfigError`]: every bad setting of a builder, at once.

use std::{error::Error as StdError, fmt, time::Duration};

/// One setting that a builder refuses.
///
/// ```
/// let error = buttress::ConcurrencyLimit::builder().build().unwrap_err();
/// assert_eq!(error.problems()[0].setting, "concurrency_limit.max_in_flight");
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting, with the part it belongs to: `circuit_breaker.failure_rate`.
    pub setting: String,
    /// The value that was given.
    pub value: String,
    /// What is allowed, and why.
    pub allowed: &'static str,
}

impl Problem {
    /// For settings of yours, as of a [`Limit`](crate::concurrency_limit::Limit): names one, its value and what is allowed.
    #[must_use]
    pub fn new(setting: impl Into<String>, value: impl fmt::Debug, allowed: &'static str) -> Self {
        Self { setting: setting.into(), value: format!("{value:?}"), allowed }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.setting, self.value, self.allowed)
    }
}

/// The settings that `build()` refused: all of them, so that one run mends them all.
///
/// ```
/// use buttress::CircuitBreaker;
/// let error = CircuitBreaker::builder().failure_rate(1.5).probes(0).build().unwrap_err();
/// assert_eq!(error.problems().len(), 2);
/// assert_eq!(
///     error.problems()[0].to_string(),
///     "circuit_breaker.failure_rate = 1.5: must be above 0 and at most 1",
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// What was refused, in the order of the parts.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid configuration: ")?;
        for (i, problem) in self.problems.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl StdError for ConfigError {}

/// Collects problems while a builder checks its settings.
#[derive(Debug)]
pub(crate) struct Checks {
    part: &'static str,
    problems: Vec<Problem>,
}

impl Checks {
    pub(crate) fn new(part: &'static str) -> Self {
        Self { part, problems: Vec::new() }
    }

    /// From here on, settings belong to `part`.
    pub(crate) fn enter(&mut self, part: &'static str) {
        self.part = part;
    }

    pub(crate) fn require(&mut self, holds: bool, setting: &str, value: impl fmt::Debug, allowed: &'static str) {
        if !holds {
            self.report(Problem::new(setting, value, allowed));
        }
    }

    /// A problem of the part that is being checked.
    pub(crate) fn report(&mut self, problem: Problem) {
        let setting = format!("{}.{}", self.part, problem.setting);
        self.problems.push(Problem { setting, ..problem });
    }

    pub(crate) fn name(&mut self, name: Option<&'static str>) {
        self.require(name != Some(""), "name", "", "must not be empty: logs and rejections carry it");
    }

    /// A threshold of a rate.
    pub(crate) fn rate(&mut self, setting: &str, rate: f64) {
        self.require(rate > 0.0 && rate <= 1.0, setting, rate, "must be above 0 and at most 1");
    }

    /// A time that must not be zero.
    pub(crate) fn time(&mut self, setting: &str, time: Duration) {
        self.require(!time.is_zero(), setting, time, "must be longer than zero");
    }

    pub(crate) fn count(&mut self, setting: &str, count: usize, max: usize, allowed: &'static str) {
        self.require((1..=max).contains(&count), setting, count, allowed);
    }

    /// What somebody else's `build` refused.
    pub(crate) fn adopt(&mut self, error: ConfigError) {
        self.problems.extend(error.problems);
    }

    pub(crate) fn finish(self) -> Result<(), ConfigError> {
        if self.problems.is_empty() { Ok(()) } else { Err(ConfigError { problems: self.problems }) }
    }
}
