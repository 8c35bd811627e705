//! Controlled delay: does the queue stand, or does it pass?
//!
//! Pure: times are nanoseconds since some moment, and come as arguments.

use std::time::Duration;

use crate::clock::nanos;

/// Tells a queue that takes up a burst from one that stands, by the shortest wait of each interval: while that is above a target,
/// whoever has waited for more than twice the target is refused. (Nichols and Jacobson, *Controlling Queue Delay*, 2012; refusing all
/// who waited for too long instead of ever more of them, and sparing the first of each interval, as folly's `Codel` does.)
#[derive(Clone, Copy, Debug)]
pub(super) struct Codel {
    target: u64,
    interval: u64,
    /// The shortest wait since the interval began; `None` before the first.
    shortest: Option<u64>,
    ends: u64,
    stands: bool,
}

impl Codel {
    pub(super) fn new(target: Duration, interval: Duration) -> Self {
        Self { target: nanos(target), interval: nanos(interval), shortest: None, ends: 0, stands: false }
    }

    /// Whether whoever has waited for `delay` and is next is refused.
    pub(super) fn refuses(&mut self, now: u64, delay: u64) -> bool {
        let shortest = match self.shortest {
            None => None,
            Some(shortest) if now > self.ends => {
                self.ends = now.saturating_add(self.interval);
                self.stands = shortest > self.target;
                None
            }
            known => known,
        };
        self.shortest = Some(shortest.map_or(delay, |shortest| shortest.min(delay)));
        shortest.is_some() && self.stands && delay > self.most()
    }

    /// Nobody waits: whoever comes now would not have to.
    pub(super) fn is_empty(&mut self) {
        self.shortest = Some(0);
    }

    /// How long one may wait in a queue that stands.
    pub(super) fn most(&self) -> u64 {
        self.target.saturating_mul(2)
    }
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn codel() -> Codel {
        Codel::new(Duration::from_millis(5), Duration::from_millis(100))
    }

    // VECTOR: G1, folly's `CodelTest.cpp`
    #[test]
    fn g1_the_basic_test_of_folly() {
        let mut codel = codel();
        for (at, delay, refused) in
            [(110, 100, false), (200, 50, false), (200, 50, true), (310, 2, false), (400, 20, true)]
        {
            assert_eq!(codel.refuses(at * MS, delay * MS), refused, "{delay} ms at {at} ms");
        }
    }

    /// folly, ibid.: `mediumLoad`, `reducingLoad`, `oneRequestNoDrop`.
    #[test]
    fn g1_the_first_is_spared_and_so_is_who_waited_for_less_than_twice_the_target() {
        for then in [8, 4] {
            let mut codel = codel();
            assert!(!codel.refuses(0, 20 * MS));
            assert!(!codel.refuses(90 * MS, then * MS));
        }
    }

    #[test]
    fn a_burst_that_passes_is_no_queue_that_stands() {
        let mut codel = codel();
        for round in 0..10 {
            for number in 0..10u64 {
                assert!(!codel.refuses(round * 1_000 * MS, number * 10 * MS));
            }
            codel.is_empty();
        }
    }
}
