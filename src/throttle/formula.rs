//! How likely is a refusal? Pure: by what was counted.

use crate::window::Totals;

/// As the [module](super) has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Formula {
    pub(super) allowance: Allowance,
    pub(super) aggression: f64,
    pub(super) max_rejection: f64,
    /// With fewer calls a second nothing is refused.
    pub(super) min_calls_per_second: u32,
}

/// How many requests are fine beside those that were accepted, said in either of two ways: each as it was set, so that a figure that
/// stands on the edge is not moved by rounding.
#[derive(Clone, Copy, Debug)]
pub(super) enum Allowance {
    /// So many to each.
    Multiplier(f64),
    /// So that this share of them is accepted.
    Rate(f64),
}

impl Allowance {
    fn covers(self, accepts: f64) -> f64 {
        match self {
            Allowance::Multiplier(multiplier) => multiplier * accepts,
            Allowance::Rate(rate) => accepts / rate,
        }
    }

    /// How many requests are fine for each that is accepted.
    pub(super) fn multiplier(self) -> f64 {
        match self {
            Allowance::Multiplier(multiplier) => multiplier,
            Allowance::Rate(rate) => rate.recip(),
        }
    }

    /// Below which share of accepted requests something is refused.
    pub(super) fn rate(self) -> f64 {
        match self {
            Allowance::Multiplier(multiplier) => multiplier.recip(),
            Allowance::Rate(rate) => rate,
        }
    }
}

impl Formula {
    /// How likely a refusal is after these, which came within so many seconds.
    pub(super) fn chance(&self, totals: Totals, seconds: f64) -> f64 {
        // Counts stay far below 2^52.
        let (requests, accepts) = (totals.calls() as f64, totals.successes as f64);
        if requests < f64::from(self.min_calls_per_second) * seconds {
            return 0.0;
        }
        let excess = (requests - self.allowance.covers(accepts)) / (requests + 1.0);
        if excess > 0.0 { excess.powf(self.aggression.recip()).min(self.max_rejection) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOGLE: Formula =
        Formula { allowance: Allowance::Multiplier(2.0), aggression: 1.0, max_rejection: 1.0, min_calls_per_second: 0 };
    const ENVOY: Formula = Formula { allowance: Allowance::Rate(0.95), max_rejection: 0.8, ..GOOGLE };

    fn chance(formula: Formula, requests: u64, accepts: u64) -> f64 {
        formula.chance(Totals { successes: accepts, failures: requests - accepts, slow: 0 }, 1.0)
    }

    #[track_caller]
    fn about(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
    }

    // VECTOR: G3, Envoy's `admission_control_filter_test.cc`
    #[test]
    fn it_is_that_of_envoys_own_tests() {
        let tested = Formula { allowance: Allowance::Rate(1.0), max_rejection: 1.0, ..ENVOY };
        let refuses = |requests, accepts, random: u32| f64::from(random) / 1e4 < chance(tested, requests, accepts);
        assert!(refuses(1000, 0, 0) && refuses(1000, 0, 9_900), "1000 requests, none accepted");
        assert!(!refuses(0, 0, 0), "nothing known");
        about(chance(tested, 1000, 500), 500.0 / 1001.0);
        assert!(!refuses(1000, 500, 5_500));
        assert!(refuses(1000, 500, 4_500));
    }

    #[test]
    fn googles_refuses_nothing_while_half_are_accepted() {
        for (requests, accepts) in [(0, 0), (1, 1), (2, 1), (1000, 1000), (1000, 500), (999, 500)] {
            about(chance(GOOGLE, requests, accepts), 0.0);
        }
        about(chance(GOOGLE, 1001, 500), 1.0 / 1002.0);
        about(chance(GOOGLE, 1000, 100), 800.0 / 1001.0);
        about(chance(GOOGLE, 1, 0), 0.5);
        about(chance(GOOGLE, 99, 0), 0.99);
        let eager = Formula { allowance: Allowance::Multiplier(1.1), ..GOOGLE };
        about(chance(eager, 1000, 900), 10.0 / 1001.0);
    }

    #[test]
    fn envoys_refuses_nothing_at_its_threshold_and_never_more_than_its_cap() {
        for (requests, accepts) in [(0, 0), (1000, 1000), (1000, 950), (100, 95)] {
            assert_eq!(chance(ENVOY, requests, accepts), 0.0, "{accepts} of {requests}");
        }
        about(chance(ENVOY, 1000, 475), 500.0 / 1001.0);
        about(chance(ENVOY, 1000, 0), 0.8);
    }

    #[test]
    fn aggression_makes_it_likelier_and_leaves_nothing_and_all_as_they_are() {
        let aggressive = Formula { aggression: 2.0, max_rejection: 1.0, ..ENVOY };
        about(chance(aggressive, 1000, 475), (500.0_f64 / 1001.0).sqrt());
        assert_eq!(chance(aggressive, 1000, 950), 0.0);
        assert_eq!(chance(Formula { aggression: f64::MAX, ..aggressive }, 1000, 475), 1.0);
        assert_eq!(chance(Formula { aggression: f64::MAX, ..aggressive }, 1000, 950), 0.0);
    }

    /// Of a service that accepts all it is sent again, where what is refused counts: the share that is sent grows from any, or falls
    /// to none for good.
    #[test]
    fn below_the_multiplier_no_aggression_shuts_a_service_out_for_good() {
        let grows = |multiplier, aggression, sent: u64| {
            let formula = Formula { allowance: Allowance::Multiplier(multiplier), aggression, ..GOOGLE };
            1.0 - chance(formula, 1_000_000, sent) > sent as f64 / 1e6
        };
        for (multiplier, aggression) in [(1.01, 1.0), (1.1, 1.09), (2.0, 1.0), (2.0, 1.9), (3.0, 2.0), (9.0, 8.9)] {
            for sent in [100, 1_000, 10_000, 100_000, 300_000, 500_000, 900_000] {
                assert!(grows(multiplier, aggression, sent), "{multiplier}, {aggression}: {sent}");
            }
        }
        for (multiplier, aggression) in [(2.0, 2.1), (2.0, 3.0), (8.9, 9.0)] {
            assert!(!grows(multiplier, aggression, 100), "{multiplier}, {aggression}");
        }
    }

    #[test]
    fn few_calls_a_second_are_too_few() {
        let formula = Formula { min_calls_per_second: 10, ..ENVOY };
        let none_of = |failures, seconds| formula.chance(Totals { failures, ..Totals::default() }, seconds);
        assert_eq!(none_of(299, 30.0), 0.0);
        about(none_of(300, 30.0), 0.8);
        about(none_of(299, 29.9), 0.8);
    }

    #[test]
    fn whatever_is_set_and_counted_it_is_a_probability() {
        let counts = [0, 1, 2, 1000, 1 << 24, 1 << 40];
        let allowances = [1.0, 2.0, f64::MAX].map(Allowance::Multiplier).into_iter();
        for allowance in allowances.chain([0.01, 0.95, 1.0].map(Allowance::Rate)) {
            for (accepts, others) in counts.iter().flat_map(|a| counts.iter().map(move |b| (*a, *b))) {
                for aggression in [1.0, 1.5, f64::MAX] {
                    let formula = Formula { allowance, aggression, ..GOOGLE };
                    let found = chance(formula, accepts + others, accepts);
                    assert!((0.0..=1.0).contains(&found), "{formula:?}: {found}");
                    assert!(others != 0 || found == 0.0, "{formula:?}: {found} where all are accepted");
                }
            }
        }
    }
}
