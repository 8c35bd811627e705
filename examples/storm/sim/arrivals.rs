//! When users call: an open loop, in which calls come when they come, whether the ones before were answered or not.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    faults::Fault,
    setup::{END, FROM, Setup, UNTIL},
};

/// Sets these chances apart from those of the same seed that the hosts and the oracle draw.
const STREAM: u64 = 1 << 32;

/// A user calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    pub at: Duration,
    /// The process that makes the call.
    pub client: usize,
}

/// By Poisson's law at the usual rate, and while the fault lasts as many again as make up its load; in order. The same for every
/// contender.
pub fn arrivals(setup: &Setup, fault: &Fault, seed: u64) -> Vec<Arrival> {
    let mut random = SmallRng::seed_from_u64(seed ^ STREAM);
    let rate = setup.load.unwrap_or(fault.load) * Setup::capacity();
    let streams = [(Duration::ZERO, END, rate), (FROM, UNTIL, rate * (fault.calls - 1.0))];
    let mut arrivals = Vec::new();
    for (from, until, rate) in streams.into_iter().filter(|(.., rate)| *rate > 0.0) {
        let gap = |random: &mut SmallRng| Duration::from_secs_f64(-(1.0 - random.random::<f64>()).ln() / rate);
        let mut at = from + gap(&mut random);
        while at < until {
            arrivals.push(Arrival { at, client: random.random_range(0..setup.clients) });
            at += gap(&mut random);
        }
    }
    arrivals.sort_unstable();
    arrivals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_times_the_calls_while_the_fault_lasts_and_the_same_ones_again_for_a_seed() {
        let all = arrivals(&Setup::USUAL, &Fault::OVERLOAD_3, 1);
        let during = all.iter().filter(|call| (FROM..UNTIL).contains(&call.at)).count() as f64;
        let calm = all.len() as f64 - during;
        assert!((calm / 14_000.0 - 1.0).abs() < 0.03 && (during / 31_500.0 - 1.0).abs() < 0.03, "{calm}, {during}");
        assert!(all.is_sorted());
        assert_eq!(all, arrivals(&Setup::USUAL, &Fault::OVERLOAD_3, 1));
        assert_ne!(all, arrivals(&Setup::USUAL, &Fault::OVERLOAD_3, 2));
    }
}
