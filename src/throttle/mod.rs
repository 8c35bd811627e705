//! Client throttling: while a service refuses or fails many calls, send it fewer, by chance.
//!
//! **What for?** For a service that is overloaded, or half down: it answers 60 % of what it is asked. A
//! [`CircuitBreaker`](crate::CircuitBreaker) knows all or nothing: it lets the 40 % through that fail, or gives up the 60 % too. A
//! throttle refuses so many calls that what is sent is not much more than what is accepted. Refusing costs the caller a
//! sum over the window, and the service nothing, where a call that the service itself refuses costs both of them a round trip.
//!
//! **When not.** In front of a set of replicas that fail one by one (one throttle each, by [`Keyed`](crate::Keyed), is right
//! there). Where calls are so few that a share of them says nothing: after one call, which failed, half of the next are refused, so
//! there is [`min_calls_per_second`](ThrottleBuilder::min_calls_per_second). And where failures say nothing of the service, as when
//! each request fails or succeeds by itself: have a [classifier](crate::Classify) call that
//! [`Permanent`](crate::Verdict::Permanent).
//!
//! It bounds no calls at once: for a service of your own, or one that gets slow before it fails, a
//! [`ConcurrencyLimit`](crate::ConcurrencyLimit) that [adapts](crate::ConcurrencyLimitBuilder::adaptive) acts sooner. It is no part
//! of [`Policy::standard`](crate::Policy::standard), which has that.
//!
//! # How likely is a refusal?
//!
//! Of the requests of a sliding window some were accepted. With *n* requests and *a* that were accepted it is
//!
//! | | probability | at most | window | what it refuses itself |
//! | --- | --- | --- | --- | --- |
//! | [`Throttle::google`] | (n − K·a) / (n + 1), K = 2 | 1 | 2 min | counts in *n* |
//! | [`Throttle::envoy`] | ((n − a/threshold) / (n + 1))^(1/aggression), threshold 95 %, aggression 1 | 0.8 | 30 s | does not count |
//!
//! and zero where that is negative. The first is that of *Site Reliability Engineering* (Beyer et al., 2016), chapter "Handling
//! Overload"; the second that of Envoy's admission control filter. They are one formula (K is one over the threshold) but for the
//! last column, which makes them differ where it matters:
//!
//! - **By Google's** the requests that callers *want* to make are in *n*. If the service accepts a fixed number of calls a second, K times
//!   as many are sent to it, however many are wanted: the more there are, the more of them are refused here. If instead it fails a
//!   share of whatever it gets, nothing is refused until that share is 1 − 1/K, half of all, and **nearly everything beyond it**.
//! - **By Envoy's** the share of what was *sent* counts, so the chance goes by how ill the service is, and not by how much is wanted.
//!   Of a service that fails half of all it sheds 47 %.
//!
//! **After an outage** of everything, something must be sent to find out that it is over. Envoy's sends a fifth all along, and
//! is back when the failures have slid out of the window. Google's sends about one call a window, and each that is accepted lets K more
//! through: at a hundred calls a second that takes eleven minutes. If that is too long give it a
//! [`max_rejection`](ThrottleBuilder::max_rejection), with 0.9 it is three and a half; a shorter window shortens both.
//!
//! # What counts
//!
//! - *Accepted* is what the [classifier](crate::Classify) calls a [`Success`](crate::Verdict::Success) or
//!   [`Permanent`](crate::Verdict::Permanent). Every other failure is not, whether the service refused
//!   ([`Throttled`](crate::Verdict::Throttled)), failed, or was never reached ([`Unsent`](crate::Verdict::Unsent)); and so is an
//!   attempt that was cut off by the [attempt timeout](crate::Timeout), ours here or that of a layer below.
//! - Each attempt counts for itself, when the head of its response is there: a service that begins to answer has accepted the call,
//!   whatever becomes of the body (a gRPC status that follows a message is not heard). Nothing is counted before, so there is
//!   nothing to be taken back.
//! - Everything else is nothing, neither *n* nor *a*: what is [`Ignored`](crate::Verdict::Ignored), refused by another layer of
//!   ours, dropped by its caller, cut off by the [deadline](crate::Deadline), or ended by a panic. **So give a service that hangs
//!   an attempt timeout**: by a deadline alone, which a backoff may have used up, a throttle learns nothing.
//!
//! # In a policy
//!
//! It is asked after the circuit breaker and before the concurrency limit, once for each attempt. After the breaker, as an open
//! circuit refuses everything: those calls would be counted as refused by chance, and a circuit that is half-open would wait for probes
//! that chance keeps away. For the same reason **a probe is not asked for**: the breaker wants to know. Before the limit, so that who is
//! refused takes no place in the queue; who has waited there is not asked again. A [hedge](crate::Hedge) is not sent while the
//! throttle refuses anything.
//!
//! Its refusal is [`Rule::AcceptRate`](crate::Rule::AcceptRate), for [`Overloaded`](crate::Reason::Overloaded), which a retry does
//! not try again unless [told to](crate::RetryBuilder::retry_rejected), and then after a backoff and from its budget. It says no
//! time to come back, as chance knows none.
//!
//! # What it costs
//!
//! While nothing is to be refused, a word is read at admission, and counting a success writes one word of the thread's own; only
//! every eighth reads the clock. While something is, each call reads the clock and sums up the window. A success never makes a
//! refusal more likely, so only failures have the sum made; where successes slide out of the window and failures stay, the next
//! failure tells.

mod config;
mod formula;
mod gauge;
mod handle;
mod shared;

pub use config::ThrottleBuilder;
pub use handle::{Throttle, ThrottleLayer, ThrottleParts, ThrottleService};
pub use shared::Shared;

use crate::window::rate;

/// What a throttle sees at one moment.
///
/// ```
/// use buttress::Throttle;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::ConfigError> {
/// let throttle = Throttle::google().build()?;
/// for fails in [false, true, true, true] {
///     let _ = throttle.call(async { if fails { Err("busy") } else { Ok(()) } }).await;
/// }
/// let seen = throttle.snapshot();
/// // Unless chance has refused one of them already, which counts in the same way.
/// assert_eq!((seen.requests, seen.accepts, seen.accept_rate()), (4, 1, 0.25));
/// assert_eq!(seen.rejection_probability, (4.0 - 2.0) / 5.0);
/// # Ok(()) }
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Snapshot {
    /// Requests in the window; by [`Throttle::google`] with those that the throttle refused. An accepted one in eight is counted with
    /// its time; those before it count from when somebody looks, be it here.
    pub requests: u64,
    /// Those among them that the service accepted.
    pub accepts: u64,
    /// How likely it is that the next call is refused.
    pub rejection_probability: f64,
    /// Calls refused since the throttle was built.
    pub rejected: u64,
}

impl Snapshot {
    /// The share of requests that was accepted; one of none.
    #[must_use]
    pub fn accept_rate(&self) -> f64 {
        if self.requests == 0 { 1.0 } else { rate(self.accepts, self.requests) }
    }
}
