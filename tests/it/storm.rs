//! What the storms of `examples/storm` show, held to for several seeds: shorter than the example's, so that it takes seconds.

#[allow(dead_code, reason = "the words of the example's chart")]
#[path = "../../examples/storm/sim/mod.rs"]
mod sim;

use std::{
    sync::{LazyLock, Mutex},
    thread,
    time::Duration,
};

use sim::{
    clients::{Run, run},
    contenders::Contender,
    figures::Figures,
    storms::{ATTEMPTS, CLIENTS, LINE, NETWORK, PATIENCE, RATE, Storm, Times},
};

use crate::support::secs;

const SEEDS: [u64; 3] = [1, 2, 3];
const TIMES: Times = Times { from: secs(5), until: secs(20), end: secs(40) };

/// How soon ours is back after any storm.
const BACK: Duration = secs(5);

/// One run, whose figures add up.
fn weathered(storm: &Storm, contender: Contender, times: Times, seed: u64) -> (Run, Figures) {
    let run = run(storm, contender, times, seed).unwrap();
    adds_up(&run, times);
    let figures = Figures::of(&run, times);
    (run, figures)
}

/// Each seed on a thread of its own.
fn for_all(storms: &[Storm], contender: Contender, check: impl Fn(&str, &Run, &Figures) + Sync) {
    thread::scope(|scope| {
        for seed in SEEDS {
            let check = &check;
            scope.spawn(move || {
                for storm in storms {
                    let (run, figures) = weathered(storm, contender, TIMES, seed);
                    check(&format!("{} through {}, seed {seed}", contender.name(), storm.name), &run, &figures);
                }
            });
        }
    });
}

/// The policy's runs through that storm, made once for all tests.
fn for_a_policy(storm: &Storm, check: impl Fn(&str, &Run, &Figures)) {
    type Kept = Vec<(&'static str, u64, Run, Figures)>;
    static RUNS: LazyLock<Kept> = LazyLock::new(|| {
        let runs = Mutex::new(Kept::new());
        thread::scope(|scope| {
            for seed in SEEDS {
                let runs = &runs;
                scope.spawn(move || {
                    for storm in Storm::ALL {
                        let (run, figures) = weathered(&storm, Contender::Buttress, TIMES, seed);
                        runs.lock().unwrap().push((storm.name, seed, run, figures));
                    }
                });
            }
        });
        runs.into_inner().unwrap()
    });
    let mut seen = 0;
    for (_, seed, run, figures) in RUNS.iter().filter(|(name, ..)| *name == storm.name) {
        check(&format!("{}, seed {seed}", storm.name), run, figures);
        seen += 1;
    }
    assert_eq!(seen, SEEDS.len());
}

/// Each call has ended once, and in time; and what the servers counted is what came and what was heard.
fn adds_up(run: &Run, times: Times) {
    assert!(run.calls.is_sorted_by_key(|call| call.began));
    let base = RATE * times.end.as_secs_f64();
    assert!(run.calls.len() as f64 > base - 5.0 * base.sqrt(), "{} calls", run.calls.len());
    for call in &run.calls {
        assert!(call.took <= PATIENCE, "{call:?}");
        assert!(call.end != Ok(()) || call.took >= NETWORK, "nobody is answered before he has asked: {call:?}");
    }
    for host in &run.hosts {
        assert_eq!(host.reached, host.answered + host.failed + host.lost + host.refused, "{host:?}");
        assert_eq!(host.reached, host.heard + host.unheard, "{host:?}");
    }
    let reached = reached(run);
    assert_eq!(reached, run.asked.iter().sum::<u64>());
    assert!(reached <= run.calls.len() as u64 * u64::from(ATTEMPTS), "{reached} requests");
    // Who was answered heard an answer; and an answer that was heard ends its call.
    let answered = run.calls.iter().filter(|call| call.end.is_ok()).count() as u64;
    let (given, heard) = run.hosts.iter().fold((0, 0), |sum, host| (sum.0 + host.answered, sum.1 + host.heard));
    assert!(answered <= given.min(heard), "{answered} callers have answers; {given} were given, {heard} heard");
}

/// No budget allows more: a fifth of the calls, one retry a second and the ten of the seconds before the first, for each client.
fn bound(run: &Run) -> u64 {
    let seconds = TIMES.end.as_secs() + PATIENCE.as_secs() + 10;
    run.calls.len() as u64 * 12 / 10 + CLIENTS * seconds
}

fn reached(run: &Run) -> u64 {
    run.hosts.iter().map(|host| host.reached).sum()
}

/// HAZARD: R10
#[test]
fn naive_retry_stays_down_after_an_outage_that_is_long_over() {
    for_all(&[Storm::OUTAGE, Storm::SLOW], Contender::NaiveRetry, |what, run, figures| {
        assert_eq!(figures.back, None, "{what}");
        assert!(figures.after < 0.01, "{what}: {} answered", figures.after);
        // It is its own retries that keep it down: the server works, as fast as before, for callers that have gone.
        assert!(figures.at_last > 2.8, "{what}: {} requests per call", figures.at_last);
        assert!(reached(run) > 2 * bound(run) - run.calls.len() as u64, "{what}");
        let in_vain = run.hosts.iter().map(|host| host.unheard).sum::<u64>();
        assert!(in_vain > LINE as u64, "{what}: {in_vain} in vain");
    });
}

#[test]
fn without_a_retry_the_same_server_comes_back_by_itself() {
    for_all(&[Storm::OUTAGE, Storm::SLOW], Contender::NoPolicy, |what, _, figures| {
        assert!(figures.back.is_some(), "{what}");
    });
}

#[test]
fn a_policy_is_back_soon_after_every_storm_and_nearly_all_is_answered() {
    for storm in &Storm::ALL {
        for_a_policy(storm, |what, run, figures| {
            assert!(figures.back.is_some_and(|back| back <= BACK), "{what}: back after {:?}", figures.back);
            let settled = share(run, TIMES.until + BACK, TIMES.end);
            assert!(settled >= 0.99, "{what}: {settled} answered once it is back");
        });
    }
}

#[test]
fn a_policy_asks_no_more_than_its_budget_allows_in_any_storm() {
    for storm in &Storm::ALL {
        for_a_policy(storm, |what, run, _| {
            assert!(reached(run) <= bound(run), "{what}: {} requests, {} allowed", reached(run), bound(run));
        });
    }
}

#[test]
fn a_policy_serves_what_the_server_can_do_under_ten_times_the_calls() {
    for_a_policy(&Storm::OVERLOAD, |what, _, figures| {
        assert!(figures.storm > 0.19, "{what}: {} of a possible 0.2 answered", figures.storm);
        assert!(figures.median <= NETWORK, "{what}: who is refused knows at once, not after {:?}", figures.median);
    });
}

#[test]
fn a_policy_leaves_a_server_alone_that_hangs() {
    for storm in [Storm::OUTAGE, Storm::SLOW] {
        for_a_policy(&storm, |what, _, figures| {
            assert!(figures.amplification < 0.3, "{what}: {} requests per call", figures.amplification);
        });
    }
}

#[test]
fn one_bad_host_of_ten_is_hardly_noticed() {
    for_a_policy(&Storm::BAD_HOST, |what, run, figures| {
        assert!(figures.storm > 0.99, "{what}: {} answered", figures.storm);
        let (bad, good) = (run.hosts[0].reached, run.hosts[1..].iter().map(|host| host.reached).min().unwrap());
        assert!(bad < good, "{what}: the bad one was asked {bad} times, each good one at least {good} times");
    });
}

/// It does not do what naive retry does there, on purpose: see `docs/storms.md`.
#[test]
fn in_a_brown_out_a_policy_does_better_than_none_with_a_bounded_load() {
    for_a_policy(&Storm::BROWN_OUT, |what, _, figures| {
        assert!(figures.storm > 0.55, "{what}: {} answered", figures.storm);
    });
}

#[test]
fn every_call_ends_once_and_the_servers_counts_add_up() {
    // The others' runs are held to it too, by `weathered`. In this one the server loses requests and refuses some.
    for contender in Contender::ALL {
        let (run, _) = weathered(&Storm::LEAK, contender, TIMES, 1);
        let lost: u64 = run.hosts.iter().map(|host| host.lost.min(host.refused)).sum();
        assert!(lost > 0, "{contender:?}");
    }
}

#[test]
fn the_same_seed_has_the_same_end_to_the_last_call_and_another_has_not() {
    // Long enough for circuits to open.
    let times = Times { from: secs(1), until: secs(13), end: secs(18) };
    for (storm, contender) in
        Contender::ALL.map(|who| (Storm::OUTAGE, who)).into_iter().chain([(Storm::BAD_HOST, Contender::Buttress)])
    {
        let [once, again, other] =
            [1, 1, 2].map(|seed| thread::spawn(move || weathered(&storm, contender, times, seed)).join().unwrap());
        assert!(once == again, "{contender:?}");
        assert!(once != other, "{contender:?}");
    }
}

/// Answered in time of what was called then.
fn share(run: &Run, from: Duration, until: Duration) -> f64 {
    let called = || run.calls.iter().filter(|call| (from..until).contains(&call.began));
    called().filter(|call| call.end.is_ok()).count() as f64 / called().count() as f64
}
