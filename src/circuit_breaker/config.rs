//! What can I set?

use std::{fmt, sync::Arc, time::Duration};

use super::{CircuitBreaker, Shared, State, Transition};
use crate::{
    Backoff, ConfigError, Jitter,
    clock::now,
    config::Checks,
    random::Random,
    window::{self, CountWindow, TimeWindow, Window},
};

/// Fewer successes than this, per slot, may be counted late: a clock costs as much as a whole call.
const UNTIMED: u64 = 8;

/// Where no bound of a policy says better.
const SLOW_CALL: Duration = Duration::from_secs(1);
const PROBE_LEASE: Duration = Duration::from_secs(30);

/// What the calls are counted over.
#[derive(Clone, Copy, Debug)]
enum Span {
    Time(Duration),
    Calls(usize),
}

/// The rules, once checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) name: &'static str,
    pub(crate) failure_rate: Option<f64>,
    pub(crate) slow_call_rate: Option<f64>,
    pub(crate) consecutive_failures: Option<u32>,
    pub(crate) min_calls: u64,
    pub(crate) slow_call: Duration,
    pub(crate) count_throttled: bool,
    pub(crate) open_time: Backoff,
    pub(crate) probes: u32,
    /// Of the rounds after the first.
    pub(crate) then_probes: Vec<u32>,
    pub(crate) probe_failure_rate: f64,
    pub(crate) probe_lease: Duration,
}

impl Settings {
    /// How many probes go out in the round of this number, from zero on.
    pub(crate) fn probes_of(&self, round: usize) -> u32 {
        round.checked_sub(1).and_then(|further| self.then_probes.get(further)).map_or(self.probes, |probes| *probes)
    }

    pub(crate) fn rounds(&self) -> usize {
        1 + self.then_probes.len()
    }
}

pub(crate) type Listener = Arc<dyn Fn(&Transition) + Send + Sync>;

/// Builds a [`CircuitBreaker`], alone or as a part of a [`Policy`](crate::Policy).
///
/// The defaults, with their reasons:
///
/// | setting | default | because |
/// | --- | --- | --- |
/// | [`window`](Self::window) | 10 s | long enough to smooth a burst, short enough that an outage shows within seconds |
/// | [`failure_rate`](Self::failure_rate) | 0.5 | below it most calls still get through, and retry does the better job |
/// | [`min_calls`](Self::min_calls) | 20 | fewer calls make no rate worth acting on |
/// | [`slow_call_rate`](Self::slow_call_rate) | off | what is slow depends on the service |
/// | [`slow_call`](Self::slow_call) | half the attempt timeout or deadline of the policy, else 1 s | a caller who gives up later than that waited in vain |
/// | [`consecutive_failures`](Self::consecutive_failures) | off | at a low rate of calls it is the better rule; at a high one it trips by chance |
/// | [`open_time`](Self::open_time) | 5 s, doubling to 60 s, equal jitter | a restart takes seconds; jitter keeps a fleet from probing in step |
/// | [`probes`](Self::probes) | 3 | one probe is a coin toss, many are a load |
/// | [`then_probes`](Self::then_probes) | none: then all | enough for whatever is well once it answers |
/// | [`probe_failure_rate`](Self::probe_failure_rate) | 0.5 | two good answers of three close it |
/// | [`probe_lease`](Self::probe_lease) | 30 s, or twice the attempt timeout or deadline of the policy if that is longer | so that it ends only rounds in which a probe hangs |
///
/// ```
/// use buttress::{Backoff, CircuitBreaker};
/// use std::time::Duration;
///
/// let breaker = CircuitBreaker::builder()
///     .name("payments")
///     .window(Duration::from_secs(30))
///     .failure_rate(0.4)
///     .consecutive_failures(10)
///     .open_time(Backoff::exponential(Duration::from_secs(2)))
///     .on_transition(|t| println!("{}: {:?} -> {:?}", t.name, t.from, t.to))
///     .build()?;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct CircuitBreakerBuilder {
    name: Option<&'static str>,
    span: Span,
    slow_call: Option<Duration>,
    probe_lease: Option<Duration>,
    settings: Settings,
    state: State,
    listener: Option<Listener>,
    seed: Option<u64>,
}

impl Default for CircuitBreakerBuilder {
    fn default() -> Self {
        Self {
            name: None,
            span: Span::Time(Duration::from_secs(10)),
            slow_call: None,
            probe_lease: None,
            settings: Settings {
                name: "circuit_breaker",
                failure_rate: Some(0.5),
                slow_call_rate: None,
                consecutive_failures: None,
                min_calls: 20,
                slow_call: SLOW_CALL,
                count_throttled: true,
                open_time: Backoff::exponential(Duration::from_secs(5))
                    .max_delay(Duration::from_secs(60))
                    .jitter(Jitter::Equal),
                probes: 3,
                then_probes: Vec::new(),
                probe_failure_rate: 0.5,
                probe_lease: PROBE_LEASE,
            },
            state: State::Closed,
            listener: None,
            seed: None,
        }
    }
}

impl CircuitBreakerBuilder {
    /// The name that rejections, logs and transitions carry. Default: the policy's, or `circuit_breaker`.
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// Count the calls of the last `span`, which slides in tenths. The default window, and the cheaper one. Between
    /// 100 ms and 1 h.
    pub fn window(mut self, span: Duration) -> Self {
        self.span = Span::Time(span);
        self
    }

    /// Count the last `calls` calls: exact, but all threads meet at one counter. At most 1,048,575.
    pub fn window_calls(mut self, calls: usize) -> Self {
        self.span = Span::Calls(calls);
        self
    }

    /// Open when this share of the calls in the window has failed (`rate >=` it).
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.settings.failure_rate = Some(rate);
        self
    }

    /// Do not open because of the failure rate.
    pub fn without_failure_rate(mut self) -> Self {
        self.settings.failure_rate = None;
        self
    }

    /// Open when this share of the calls in the window was [slow](Self::slow_call), answered or not.
    pub fn slow_call_rate(mut self, rate: f64) -> Self {
        self.settings.slow_call_rate = Some(rate);
        self
    }

    /// A call that takes longer than this is slow. Dropped or cut off after that it counts as failed, before it as
    /// nothing: otherwise a timeout outside of the breaker would blind it.
    pub fn slow_call(mut self, longer_than: Duration) -> Self {
        self.slow_call = Some(longer_than);
        self
    }

    /// Open when so many calls have failed one after the other.
    pub fn consecutive_failures(mut self, failures: u32) -> Self {
        self.settings.consecutive_failures = Some(failures);
        self
    }

    /// No rate opens the circuit before so many calls are in the window.
    pub fn min_calls(mut self, calls: u64) -> Self {
        self.settings.min_calls = calls;
        self
    }

    /// Do not count [throttled](crate::Verdict::Throttled) calls at all.
    pub fn ignore_throttled(mut self) -> Self {
        self.settings.count_throttled = false;
        self
    }

    /// How long the circuit stays open; the sequence goes on with each re-opening and starts again once the circuit
    /// has closed. A server's hint stretches it, as far as the backoff's cap.
    ///
    /// [Full](Jitter::Full) jitter is taken as [equal](Jitter::Equal) jitter: an open time near zero would be none.
    pub fn open_time(mut self, backoff: Backoff) -> Self {
        self.settings.open_time = backoff.at_least_half();
        self
    }

    /// How many calls a half-open circuit lets through.
    pub fn probes(mut self, probes: u32) -> Self {
        self.settings.probes = probes;
        self
    }

    /// Re-opens the road gradually: when the [first](Self::probes) round of probes has succeeded so many go out, and so on, and all only
    /// after the last of these rounds. Each is judged as the first is, has its own [lease](Self::probe_lease), and is told as a
    /// transition from half-open to half-open.
    ///
    /// For what falls over again when everybody comes back at once, such as a service whose caches are cold. Where it is a matter of how
    /// many at a time and not of how many in all, an [adaptive](crate::ConcurrencyLimitBuilder::adaptive) limit behind the breaker
    /// does it better; and a share of the calls that follows the share of failures is for a [`Throttle`](crate::Throttle).
    ///
    /// ```
    /// // One, then ten, then all.
    /// let breaker = buttress::CircuitBreaker::builder().probes(1).then_probes([10]).build()?;
    /// # Ok::<(), buttress::ConfigError>(())
    /// ```
    pub fn then_probes(mut self, rounds: impl IntoIterator<Item = u32>) -> Self {
        self.settings.then_probes = rounds.into_iter().collect();
        self
    }

    /// The share of failed probes that opens the circuit again; with [`slow_call_rate`](Self::slow_call_rate) a slow
    /// probe is a failed one.
    pub fn probe_failure_rate(mut self, rate: f64) -> Self {
        self.settings.probe_failure_rate = rate;
        self
    }

    /// A round of probes counts as failed if so long after the latest of them one is still out, so that a probe that hangs cannot
    /// keep the circuit half-open. Where calls are rare, a round may take far longer.
    pub fn probe_lease(mut self, lease: Duration) -> Self {
        self.probe_lease = Some(lease);
        self
    }

    /// Begin in shadow mode: count, and say what would be done, but refuse nothing.
    pub fn shadow(mut self) -> Self {
        self.state = State::Shadow;
        self
    }

    /// Hears of every transition, in order, outside of any lock. It must not block. If it panics, the panic is
    /// caught.
    pub fn on_transition(mut self, listener: impl Fn(&Transition) + Send + Sync + 'static) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// Makes the jitter of the open times reproducible.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The breaker.
    ///
    /// # Errors
    /// Every setting that is out of its range, or rules that can never be met.
    pub fn build(self) -> Result<CircuitBreaker, ConfigError> {
        let mut checks = Checks::new("circuit_breaker");
        self.check(&mut checks);
        checks.finish()?;
        Ok(self.assemble("circuit_breaker", None))
    }

    pub(crate) fn check(&self, checks: &mut Checks) {
        checks.enter("circuit_breaker");
        checks.name(self.name);
        let s = &self.settings;
        match self.span {
            Span::Time(span) => checks.require(
                (Duration::from_millis(100)..=Duration::from_secs(3_600)).contains(&span),
                "window",
                span,
                "must be between 100 ms and 1 h",
            ),
            Span::Calls(calls) => {
                checks.count("window_calls", calls, window::MAX_SIZE, "must be between 1 and 1048575");
                checks.require(
                    s.min_calls <= calls as u64 || s.failure_rate.is_none() && s.slow_call_rate.is_none(),
                    "min_calls",
                    s.min_calls,
                    "must be at most window_calls, or no rate could ever be reached",
                );
            }
        }
        if let Some(rate) = s.failure_rate {
            checks.rate("failure_rate", rate);
        }
        if let Some(rate) = s.slow_call_rate {
            checks.rate("slow_call_rate", rate);
        }
        if let Some(failures) = s.consecutive_failures {
            checks.require(failures > 0, "consecutive_failures", failures, "must be at least 1");
        }
        checks.require(
            s.failure_rate.is_some() || s.slow_call_rate.is_some() || s.consecutive_failures.is_some(),
            "failure_rate",
            s.failure_rate,
            "at least one of failure_rate, slow_call_rate and consecutive_failures must be set, or it never opens",
        );
        checks.require(s.min_calls > 0, "min_calls", s.min_calls, "must be at least 1");
        if let Some(slow) = self.slow_call {
            checks.time("slow_call", slow);
        }
        s.open_time.check(checks, "open_time");
        checks.require(!s.open_time.is_zero(), "open_time", Duration::ZERO, "must be longer than zero");
        checks.count("probes", s.probes as usize, 1_000_000, "must be between 1 and 1000000");
        for &probes in &s.then_probes {
            checks.count("then_probes", probes as usize, 1_000_000, "must each be between 1 and 1000000");
        }
        checks.rate("probe_failure_rate", s.probe_failure_rate);
        if let Some(lease) = self.probe_lease {
            checks.time("probe_lease", lease);
        }
    }

    /// A deadline cuts calls off that no attempt timeout has: they count only if they were slow by then.
    pub(crate) fn check_deadline(&self, checks: &mut Checks, deadline: Option<Duration>) {
        if let (Some(slow), Some(deadline)) = (self.slow_call, deadline) {
            checks.require(
                slow < deadline || deadline == Duration::MAX,
                "slow_call",
                slow,
                "must be shorter than policy.deadline, or calls that it cuts off count as nothing",
            );
        }
    }

    /// This seed, if it has none of its own.
    pub(crate) fn seed_by_default(mut self, seed: Option<u64>) -> Self {
        self.seed = self.seed.or(seed);
        self
    }

    /// After the checks.
    /// `bound` is what cuts a call off.
    pub(crate) fn assemble(self, name: &'static str, bound: Option<Duration>) -> CircuitBreaker {
        // So that what is cut off has outrun the one and has not yet the other.
        let slow_call = bound.map_or(SLOW_CALL, |bound| bound / 2);
        let probe_lease = bound.map_or(PROBE_LEASE, |bound| bound.saturating_mul(2).max(PROBE_LEASE));
        let settings = Settings {
            name: self.name.unwrap_or(name),
            slow_call: self.slow_call.unwrap_or(slow_call),
            probe_lease: self.probe_lease.unwrap_or(probe_lease),
            ..self.settings
        };
        let window = match self.span {
            Span::Time(span) => Window::Time(TimeWindow::new(span, UNTIMED)),
            Span::Calls(calls) => Window::Count(CountWindow::new(calls)),
        };
        let random = Random::seeded(self.seed);
        CircuitBreaker { shared: Arc::new(Shared::new(settings, window, self.state, self.listener, random, now())) }
    }
}

impl fmt::Debug for CircuitBreakerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerBuilder")
            .field("span", &self.span)
            .field("settings", &self.settings)
            .field("listener", &self.listener.is_some())
            .finish_non_exhaustive()
    }
}
