//! What the storms of `examples/storm` show, held to for two seeds; ours, through all faults, for one.

#[allow(dead_code, reason = "words and figures of the example's tables")]
#[path = "../../examples/storm/sim/mod.rs"]
mod sim;

use std::{
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use sim::{
    arrivals::arrivals,
    clients::{Run, run},
    contenders::{BUTTRESS, Contender, NAIVE_RETRY, NO_POLICY, TOWER},
    faults::Fault,
    figures::Figures,
    oracle,
    setup::{END, ONE_WAY, PATIENCE, Setup},
};

use crate::support::secs;

const SEEDS: [u64; 2] = [1, 2];

/// One run, whose figures add up.
fn weathered(setup: &Setup, fault: &Fault, contender: &Contender, seed: u64) -> (Run, Figures) {
    let run = run(setup, fault, contender, seed).unwrap();
    adds_up(&run);
    let figures = Figures::of(&run, &oracle::serves(setup, fault, &arrivals(setup, fault, seed), seed));
    (run, figures)
}

/// Each seed on a thread of its own.
fn for_all(setup: &Setup, faults: &[Fault], contender: Contender, check: impl Fn(&str, &Run, &Figures) + Sync) {
    thread::scope(|scope| {
        for seed in SEEDS {
            let check = &check;
            scope.spawn(move || {
                for fault in faults {
                    let (run, figures) = weathered(setup, fault, &contender, seed);
                    check(&format!("{} through {}, seed {seed}", contender.name, fault.name), &run, &figures);
                }
            });
        }
    });
}

/// The policy's runs through all faults, made once for all tests.
fn for_a_policy(mut check: impl FnMut(&Fault, &str, &Run, &Figures)) {
    type Kept = Vec<(&'static Fault, Run, Figures)>;
    static FAULTS: [Fault; 15] = Fault::ALL;
    static RUNS: LazyLock<Kept> = LazyLock::new(|| {
        let (runs, next) = (Mutex::new(Kept::new()), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(fault) = FAULTS.get(next.fetch_add(1, Relaxed)) {
                        let (run, figures) = weathered(&Setup::USUAL, fault, &BUTTRESS, SEEDS[0]);
                        runs.lock().unwrap().push((fault, run, figures));
                    }
                });
            }
        });
        runs.into_inner().unwrap()
    });
    assert_eq!(RUNS.len(), Fault::ALL.len());
    for (fault, run, figures) in &*RUNS {
        check(fault, fault.name, run, figures);
    }
}

/// Each call has ended once, and in time; and what the hosts counted is what was sent.
fn adds_up(run: &Run) {
    assert!(run.calls.is_sorted_by_key(|call| call.began));
    let base = 0.7 * Setup::capacity() * END.as_secs_f64();
    assert!(run.calls.len() as f64 > base - 5.0 * base.sqrt(), "{} calls", run.calls.len());
    for call in &run.calls {
        // The timer is good to a millisecond.
        assert!(call.took <= PATIENCE + Duration::from_millis(2), "{call:?}");
        assert!(call.end != Ok(()) || call.took >= 2 * ONE_WAY, "nobody is answered before he has asked: {call:?}");
    }
    let sum = |count: fn(&sim::server::Counts) -> u64| run.hosts.iter().map(count).sum::<u64>();
    let sent = run.asked.iter().sum::<u64>();
    // One that is dropped at once is on its way for ever.
    assert!(sum(|host| host.reached) <= sent);
    for host in &run.hosts {
        assert!(host.refused + host.dropped + host.begun <= host.reached, "{host:?}");
        assert!(host.in_vain <= host.begun, "{host:?}");
    }
    // Who was answered was worked for, and not in vain.
    let answered = run.calls.iter().filter(|call| call.end.is_ok()).count() as u64;
    assert!(answered <= sum(|host| host.begun - host.in_vain), "{answered} callers have answers");
}

/// HAZARD: R10
#[test]
fn naive_retry_stays_down_after_a_fault_that_is_long_over() {
    for_all(&Setup::USUAL, &[Fault::HANG, Fault::COSTLY_50], NAIVE_RETRY, |what, run, figures| {
        assert_eq!(figures.back, None, "{what}");
        // It is its own retries that keep it down: the service works, as fast as before, for callers that have gone.
        let last = run.asked[END.as_secs() as usize - 5..END.as_secs() as usize].iter().sum::<u64>();
        let calls = run.calls.iter().filter(|call| call.began >= END - secs(5)).count() as u64;
        assert!(last > 2 * calls, "{what}: {last} requests for {calls} calls");
        assert!(run.hosts[0].in_vain > run.hosts[0].begun / 3, "{what}: {:?}", run.hosts);
    });
}

#[test]
fn without_a_retry_the_same_service_comes_back_by_itself() {
    for_all(&Setup::USUAL, &[Fault::COSTLY_50, Fault::PAUSES], NO_POLICY, |what, _, figures| {
        assert!(figures.back.is_some(), "{what}");
    });
}

/// What keeps it down otherwise is a line of callers that have gone.
#[test]
fn a_service_that_notices_who_has_gone_is_back_when_one_that_does_not_stays_down() {
    for notices in [true, false] {
        let setup = Setup { notices, ..Setup::USUAL };
        for_all(&setup, &[Fault::HANG, Fault::OVERLOAD_3], NO_POLICY, |what, run, figures| {
            assert_eq!(figures.back.is_some(), notices, "{what}");
            assert_eq!(run.hosts[0].dropped > 0, notices, "{what}: {:?}", run.hosts);
            assert_eq!(run.hosts[0].in_vain > 0, !notices, "{what}: {:?}", run.hosts);
        });
    }
}

#[test]
fn a_policy_is_back_soon_after_every_fault() {
    for_a_policy(|fault, what, _, figures| {
        // The slow host has a line of its own for minutes, into which a tenth of the requests is sent: for a balancer to mend.
        if fault.name != Fault::SLOW_HOST.name {
            assert!(figures.back.is_some_and(|back| back <= secs(5)), "{what}: back after {:?}", figures.back);
        }
    });
}

/// Where something can be served at all while the fault lasts, and in the mean over all of them.
#[test]
fn a_policy_serves_most_of_what_can_be_served() {
    let (mut sum, mut count) = (0.0, 0.0);
    for_a_policy(|fault, what, _, figures| {
        let outages = [Fault::REFUSE, Fault::HANG, Fault::SLOW].map(|outage| outage.name);
        assert!(figures.of_possible > 0.85 || outages.contains(&fault.name), "{what}: {}", figures.of_possible);
        sum += figures.of_possible;
        count += 1.0;
    });
    assert!(sum / count > 0.78, "{}", sum / count);
}

#[test]
fn a_policy_sends_two_requests_for_a_call_and_hardly_more_whatever_happens() {
    for_a_policy(|_, what, _, figures| assert!(figures.load < 2.1, "{what}: {}", figures.load));
}

#[test]
fn nearly_nobody_is_refused_on_a_calm_day() {
    for_a_policy(|fault, what, _, figures| {
        // At one host of ten, by chance, there may be much to do.
        let most = if fault.hosts == 1 { 0.0 } else { 0.002 };
        assert!(figures.lost_in_calm <= most, "{what}: {}", figures.lost_in_calm);
    });
}

#[test]
fn nobody_serves_more_than_the_oracle() {
    for_a_policy(|_, what, _, figures| assert!(figures.of_possible < 1.005, "{what}: {}", figures.of_possible));
}

#[test]
fn the_same_seed_has_the_same_end_to_the_last_call_and_another_has_not() {
    let runs = [(Fault::FLAPPING, TOWER), (Fault::FLAPPING, BUTTRESS), (Fault::BAD_HOST, BUTTRESS)];
    for (fault, contender) in &runs {
        let [once, again, other] = thread::scope(|scope| {
            [1, 1, 2]
                .map(|seed| scope.spawn(move || weathered(&Setup::USUAL, fault, contender, seed)))
                .map(|run| run.join().unwrap())
        });
        assert!(once == again, "{}", contender.name);
        assert!(once != other, "{}", contender.name);
    }
}
