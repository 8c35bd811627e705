//! What can I set?

use std::{sync::Arc, time::Duration};

use super::{
    Shared, Throttle,
    formula::{Allowance, Formula},
    gauge::Gauge,
};
use crate::{ConfigError, clock::now, config::Checks, random::Random};

/// Builds a [`Throttle`], alone or as a part of a [`Policy`](crate::Policy). Begun by [`Throttle::google`] or [`Throttle::envoy`].
///
/// | setting | `google` | `envoy` | because |
/// | --- | --- | --- | --- |
/// | [`window`](Self::window) | 2 min | 30 s | as published: the one counts what is wanted, which says more the longer it is counted; the other is to be back soon |
/// | [`multiplier`](Self::multiplier) or [`accept_rate`](Self::accept_rate) | 2, which is 0.5 | 0.95 | as published: at 2 the service gets a few calls too many, by which it shows that it is better |
/// | [`aggression`](Self::aggression) | 1 | 1 | the chance goes by the share of calls that are not accepted |
/// | [`max_rejection`](Self::max_rejection) | 1 | 0.8 | as published. At 1 a service that is down is left alone, and found out late when it is back |
/// | [`min_calls_per_second`](Self::min_calls_per_second) | 0 | 0 | a service that is rarely called may be overloaded by others |
///
/// ```
/// use buttress::Throttle;
/// use std::time::Duration;
///
/// let throttle = Throttle::google()
///     .name("payments")
///     .window(Duration::from_secs(60))
///     .multiplier(1.5)
///     .max_rejection(0.95)
///     .build()?;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ThrottleBuilder {
    name: Option<&'static str>,
    window: Duration,
    formula: Formula,
    counts_refused: bool,
    seed: Option<u64>,
}

impl ThrottleBuilder {
    pub(super) fn google() -> Self {
        let formula = Formula {
            allowance: Allowance::Multiplier(2.0),
            aggression: 1.0,
            max_rejection: 1.0,
            min_calls_per_second: 0,
        };
        Self { name: None, window: Duration::from_secs(120), formula, counts_refused: true, seed: None }
    }

    pub(super) fn envoy() -> Self {
        let google = Self::google();
        let formula = Formula { allowance: Allowance::Rate(0.95), max_rejection: 0.8, ..google.formula };
        Self { window: Duration::from_secs(30), formula, counts_refused: false, ..google }
    }

    /// The name that rejections and logs carry. Default: the policy's, or `throttle`.
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// Count the requests of the last `span`, which slides in tenths. Between 100 ms and 1 h.
    pub fn window(mut self, span: Duration) -> Self {
        self.window = span;
        self
    }

    /// So many requests are fine for each that is accepted: what goes beyond is refused. The lower, the fewer calls the service has
    /// to refuse, and the later it is noticed that it can take more: by [`Throttle::google`], for which it is above 1, what is sent
    /// grows as many times a window. It is the K of the book, and one over the [`accept_rate`](Self::accept_rate): whichever is set
    /// last holds.
    pub fn multiplier(mut self, requests: f64) -> Self {
        self.formula.allowance = Allowance::Multiplier(requests);
        self
    }

    /// While this share of the requests is accepted, nothing is refused. Envoy's `sr_threshold`, as a part of one.
    pub fn accept_rate(mut self, rate: f64) -> Self {
        self.formula.allowance = Allowance::Rate(rate);
        self
    }

    /// Above 1, refuse more already when few calls are not accepted: the chance is raised to the power of one over this. By
    /// [`Throttle::google`] it is below the [`multiplier`](Self::multiplier): what is refused counts as a request, and would keep it
    /// from finding out that the service is back.
    pub fn aggression(mut self, aggression: f64) -> Self {
        self.formula.aggression = aggression;
        self
    }

    /// Never refuse a larger share than this, so that whatever else is sent tells when the service is back.
    pub fn max_rejection(mut self, share: f64) -> Self {
        self.formula.max_rejection = share;
        self
    }

    /// With fewer calls a second than this, refuse nothing. On the average of the [window](Self::window), or of the time since the
    /// throttle was built while that is shorter (but of a second at least). Envoy's `rps_threshold`.
    pub fn min_calls_per_second(mut self, calls: u32) -> Self {
        self.formula.min_calls_per_second = calls;
        self
    }

    /// Makes it reproducible which calls are refused.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The throttle.
    ///
    /// # Errors
    /// Every setting that is out of its range.
    pub fn build(self) -> Result<Throttle, ConfigError> {
        let mut checks = Checks::new("throttle");
        self.check(&mut checks);
        checks.finish()?;
        Ok(self.assemble("throttle"))
    }

    pub(crate) fn check(&self, checks: &mut Checks) {
        checks.enter("throttle");
        checks.name(self.name);
        checks.require(
            (Duration::from_millis(100)..=Duration::from_secs(3_600)).contains(&self.window),
            "window",
            self.window,
            "must be between 100 ms and 1 h",
        );
        let at_least_one = |number: f64| (1.0..f64::INFINITY).contains(&number);
        let Formula { allowance, aggression, max_rejection, .. } = self.formula;
        match allowance {
            Allowance::Multiplier(k) if self.counts_refused => {
                let more = at_least_one(k) && k > 1.0;
                checks.require(
                    more,
                    "multiplier",
                    k,
                    "must be a finite number above 1, to find out when the service is back",
                );
            }
            Allowance::Multiplier(k) => {
                checks.require(at_least_one(k), "multiplier", k, "must be a finite number of at least 1");
            }
            Allowance::Rate(rate) if self.counts_refused => {
                let less = (0.01..1.0).contains(&rate);
                checks.require(
                    less,
                    "accept_rate",
                    rate,
                    "must be at least 0.01 and below 1, to find out when the service is back",
                );
            }
            Allowance::Rate(rate) => {
                checks.require((0.01..=1.0).contains(&rate), "accept_rate", rate, "must be between 0.01 and 1");
            }
        }
        checks.require(at_least_one(aggression), "aggression", aggression, "must be a finite number of at least 1");
        // Where little is sent, and all of that accepted, it is multiplier / aggression times as much a window later.
        let multiplier = allowance.multiplier();
        let shuts = self.counts_refused && multiplier > 1.0 && (multiplier..f64::INFINITY).contains(&aggression);
        let allowed = "must be below the multiplier, to find out when the service is back";
        checks.require(!shuts, "aggression", aggression, allowed);
        checks.rate("max_rejection", max_rejection);
    }

    /// This seed, if it has none of its own.
    pub(crate) fn seed_by_default(mut self, seed: Option<u64>) -> Self {
        self.seed = self.seed.or(seed);
        self
    }

    /// After the checks.
    pub(crate) fn assemble(self, name: &'static str) -> Throttle {
        let gauge = Gauge::new(self.formula, self.counts_refused, self.window);
        let shared = Shared::new(self.name.unwrap_or(name), gauge, Random::seeded(self.seed), now());
        Throttle { shared: Arc::new(shared) }
    }
}
