//! What perfect knowledge could serve: the mark that everybody is held to.
//!
//! Requests wait with the oracle, which knows when a host is any good, how long each piece of work takes and who is still there.
//! Nothing is asked in vain; whenever a worker is free, the oldest request that can still be answered in time goes to it. What
//! fails after all the work waits again, since that not even the oracle can know.

use std::{collections::VecDeque, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    arrivals::Arrival,
    faults::{Fault, Trouble},
    setup::{FROM, ONE_WAY, PATIENCE, Setup, UNTIL, WORKERS},
};

/// Sets its chances apart from others of the same seed.
const STREAM: u64 = 2 << 32;

/// Work that takes longer than this nobody can have done in time.
const LONGEST: Duration = Duration::from_millis(950);

/// For each arrival, whether it is answered in time.
pub fn serves(setup: &Setup, fault: &Fault, arrivals: &[Arrival], seed: u64) -> Vec<bool> {
    let mut random = SmallRng::seed_from_u64(seed ^ STREAM);
    let mut workers = Workers::new(fault);
    let mut served = vec![false; arrivals.len()];
    let mut waiting: VecDeque<usize> = VecDeque::new();
    let mut next = 0;
    while next < arrivals.len() || !waiting.is_empty() {
        let from = if waiting.is_empty() { arrivals[next].at } else { Duration::ZERO };
        let (worker, begins) = workers.first(from);
        while next < arrivals.len() && arrivals[next].at <= begins {
            waiting.push_back(next);
            next += 1;
        }
        let host = workers.host(worker);
        let work = setup.work.draw(random.random()).mul_f64(fault.slowness(host, begins));
        let (done, luck) = (begins + work, random.random());
        if work > LONGEST {
            waiting.pop_front();
            continue;
        }
        while waiting.front().is_some_and(|oldest| done + 2 * ONE_WAY > arrivals[*oldest].at + PATIENCE) {
            waiting.pop_front();
        }
        let Some(oldest) = waiting.front() else {
            workers.free[worker] = begins;
            continue;
        };
        workers.free[worker] = done;
        if !fault.fails(host, begins, luck) {
            served[*oldest] = true;
            waiting.pop_front();
        }
    }
    served
}

/// When each of them is free.
struct Workers<'a> {
    fault: &'a Fault,
    free: Vec<Duration>,
}

impl<'a> Workers<'a> {
    fn new(fault: &'a Fault) -> Self {
        Self { fault, free: vec![Duration::ZERO; WORKERS] }
    }

    fn host(&self, worker: usize) -> usize {
        worker * self.fault.hosts / WORKERS
    }

    /// The one that can begin first, not before `from`; and when.
    fn first(&self, from: Duration) -> (usize, Duration) {
        let begins = |(worker, free): (usize, &Duration)| (worker, self.usable(worker, from.max(*free)));
        self.free.iter().enumerate().map(begins).min_by_key(|(_, at)| *at).unwrap_or((0, Duration::MAX))
    }

    fn usable(&self, worker: usize, at: Duration) -> Duration {
        match self.fault.trouble {
            Trouble::Loses(share) if (FROM..UNTIL).contains(&at) && (worker as f64) < share * WORKERS as f64 => UNTIL,
            _ => self.fault.usable(self.host(worker), at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::arrivals::arrivals, *};

    /// Of what is called while the fault lasts, and of all else.
    fn shares(setup: &Setup, fault: &Fault) -> (f64, f64) {
        let arrivals = arrivals(setup, fault, 1);
        let served = serves(setup, fault, &arrivals, 1);
        let share = |during: bool| {
            let those = arrivals.iter().zip(&served).filter(|(call, _)| (FROM..UNTIL).contains(&call.at) == during);
            those.clone().filter(|(_, served)| **served).count() as f64 / those.count() as f64
        };
        (share(true), share(false))
    }

    fn assert_near(fault: &Fault, expected: f64) {
        let (during, calm) = shares(&Setup::USUAL, fault);
        assert!((during - expected).abs() < 0.02, "{}: {during}, not {expected}", fault.name);
        assert!(calm > 0.999, "{}: {calm}", fault.name);
    }

    #[test]
    fn it_serves_all_that_can_be_served() {
        for fault in [Fault::CHEAP_50, Fault::LEAK, Fault::BAD_HOST, Fault::SLOW_HOST] {
            assert_near(&fault, 1.0);
        }
    }

    /// And the second of patience at the end of it, which is worked off afterwards.
    #[test]
    fn it_serves_what_the_capacity_is_for() {
        assert_near(&Fault::OVERLOAD_3, 1.0 / 2.1 + 0.015);
        assert_near(&Fault::OVERLOAD_10, 1.0 / 7.0 + 0.005);
        assert_near(&Fault::HALF, 0.5 / 0.7 + 0.03);
        assert_near(&Fault::COSTLY_50, 0.5 / 0.7 + 0.03);
    }

    #[test]
    fn of_an_outage_it_serves_the_last_second() {
        assert_near(&Fault::REFUSE, 1.0 / 30.0);
        assert_near(&Fault::HANG, 1.0 / 30.0);
        // One second of each three is lost but for the last; the ends come with a crowd.
        let (flapping, _) = shares(&Setup::USUAL, &Fault::FLAPPING);
        assert!((0.6..0.7).contains(&flapping), "{flapping}");
    }

    #[test]
    fn with_less_to_do_it_serves_more() {
        let light = Setup { load: Some(0.4), ..Setup::USUAL };
        assert!(shares(&light, &Fault::HALF).0 > 0.999);
    }
}
