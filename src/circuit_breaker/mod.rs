//! The circuit breaker: stop asking a service that fails, and find out when it works again.
//!
//! ```text
//!            a trip rule is met                      open time over,
//!            by a failed or slow call                first caller comes
//!  ┌────────┐ ───────────────────────────► ┌────────┐ ──────────────► ┌──────────┐
//!  │ Closed │                              │  Open  │                 │ HalfOpen │
//!  └────────┘                              └────────┘ ◄────────────── └──────────┘
//!      ▲                                     too many probes failed, or       │
//!      │                                     the lease ended undecided        │
//!      └──────────────────────────────────────────────────────────────────────┘
//!                              enough probes succeeded
//! ```
//!
//! **Use it** where failing calls cost something: time that callers wait, load on a service that is trying to get
//! up. **Do not use it** in front of a set of replicas that fail one by one (one breaker each is right there), or in
//! place of a timeout: a breaker only sees calls that end.
//!
//! What counts is told by a [classifier](crate::Classify): transient failures are failures, permanent ones show that
//! the service is alive, rejections of our own layers say nothing (but for our own time-outs). A rejection is known as
//! one where layers are stacked and by the `…_as` functions; to `call` and `wrap` an inner policy's error is an error like
//! any other. A call that is dropped, or cut off by the deadline, counts as failed if it has outrun the slow threshold,
//! else as nothing. A panic is a failure.
//!
//! Where libraries differ, this one: trips at `rate >= threshold`; calls a call slow at `duration > slow_call`; lets
//! probes in at `now >= opened + open_time`; drops results of an earlier state; never opens because of a success;
//! decides a round of probes by their ratio, as soon as the rest cannot change it.

mod config;
mod handle;
mod machine;
mod shared;

use std::time::Duration;

pub use config::CircuitBreakerBuilder;
pub use handle::{BreakerParts, CircuitBreaker, CircuitBreakerLayer, CircuitBreakerService, Gate, Permit, WhenOpen};
pub use shared::Shared;

use crate::{Rule, window::rate};

/// The state of a circuit breaker.
///
/// ```
/// use buttress::{circuit_breaker::State, CircuitBreaker};
/// let breaker = CircuitBreaker::builder().shadow().build().unwrap();
/// assert_eq!(breaker.state(), State::Shadow);
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass and are counted.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls pass, to see.
    HalfOpen,
    /// Refused until somebody says otherwise.
    ForcedOpen,
    /// Calls pass and are counted, whatever the counts say, until somebody says otherwise.
    ForcedClosed,
    /// Calls pass and are counted, and logs and listeners hear what would be done.
    Shadow,
}

impl State {
    /// The stable name that logs carry.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half_open",
            State::ForcedOpen => "forced_open",
            State::ForcedClosed => "forced_closed",
            State::Shadow => "shadow",
        }
    }
}

/// One move of a circuit breaker, as its listener hears it.
///
/// ```
/// use buttress::{circuit_breaker::Transition, CircuitBreaker};
/// let page = |t: &Transition| println!("{}: {:?} -> {:?}, {} calls refused", t.name, t.from, t.to, t.rejected);
/// let breaker = CircuitBreaker::builder().on_transition(page).build().unwrap();
/// breaker.force_open();
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// The breaker's name.
    pub name: &'static str,
    /// From this state.
    pub from: State,
    /// To this one: the same, if a breaker in shadow mode [would open](Self::would_open), if a closed one is reset, or if a half-open one
    /// goes on to its [next round](CircuitBreakerBuilder::then_probes) of probes.
    pub to: State,
    /// The rule that moved it, if one did.
    pub rule: Option<Rule>,
    /// What was measured, in the rule's unit (`NaN`: nothing).
    pub measured: f32,
    /// What it was held against (`NaN`: nothing).
    pub threshold: f32,
    /// How long the circuit is, or would be, open.
    pub open_for: Option<Duration>,
    /// Calls refused since the last transition.
    pub rejected: u64,
}

impl Transition {
    /// Whether this is a breaker in shadow mode saying that it would open.
    #[must_use]
    pub fn would_open(&self) -> bool {
        self.from == State::Shadow && self.to == State::Shadow
    }
}

/// What a circuit breaker sees at one moment.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let breaker = buttress::CircuitBreaker::builder().build().unwrap();
/// let _ = breaker.call(async { Err::<(), _>("no") }).await;
/// let seen = breaker.snapshot();
/// assert_eq!((seen.calls, seen.failures, seen.failure_rate()), (1, 1, 1.0));
/// # }
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Snapshot {
    /// The state.
    pub state: State,
    /// Calls in the window.
    pub calls: u64,
    /// Failed ones among them.
    pub failures: u64,
    /// Slow ones among them.
    pub slow_calls: u64,
    /// Failures since the last success.
    pub consecutive_failures: u32,
    /// Calls refused since the breaker was built.
    pub rejected: u64,
    /// When an open circuit lets probes in, or a half-open one is decided at the latest.
    pub retry_after: Option<Duration>,
}

impl Snapshot {
    /// The share of failed calls; zero of none.
    #[must_use]
    pub fn failure_rate(&self) -> f64 {
        rate(self.failures, self.calls)
    }

    /// The share of slow calls; zero of none.
    #[must_use]
    pub fn slow_call_rate(&self) -> f64 {
        rate(self.slow_calls, self.calls)
    }
}

#[cfg(test)]
mod tests;
