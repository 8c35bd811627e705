//! Random policies around random services, with calls that are dropped at random, on a paused clock: after every step all is as
//! it must be.
//!
//! Each run is a [`Plan`](plan::Plan), which shrinks; the seeds of those that have failed are kept in
//! `simulation.regressions`, and run first. (They are seeds of how a plan is made: whoever changes that, finds other plans there.) `BUTTRESS_CASES=100000` runs so many, as the gate does.
#![cfg(feature = "testing")]
#![allow(clippy::disallowed_methods)] // tokio's clock, which is paused

mod plan;
mod watch;
mod world;

use buttress::testing::run_paused;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{FileFailurePersistence, TestCaseError, TestRunner},
};

const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/simulation.regressions");

/// How many, here and in the gate.
fn cases() -> u32 {
    std::env::var("BUTTRESS_CASES").map_or(3_000, |cases| cases.parse().expect("BUTTRESS_CASES is a number"))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]
    // HAZARD: L1
    #[test]
    fn whatever_befalls_a_policy_all_is_as_it_must_be(plan in plan::plan()) {
        run_paused(world::run(&plan)).map_err(TestCaseError::fail)?;
    }
}

/// Every move of a circuit, every rule to reject by, every way to end: without these the runs above would prove little.
const COMES_ABOUT: [&str; 54] = [
    "Closed -> Closed",
    "Closed -> ForcedClosed",
    "Closed -> ForcedOpen",
    "Closed -> Open",
    "Closed -> Shadow",
    "ForcedClosed -> Closed",
    "ForcedClosed -> ForcedOpen",
    "ForcedClosed -> Shadow",
    "ForcedOpen -> Closed",
    "ForcedOpen -> ForcedClosed",
    "ForcedOpen -> Shadow",
    "HalfOpen -> Closed",
    "HalfOpen -> ForcedClosed",
    "HalfOpen -> ForcedOpen",
    "HalfOpen -> HalfOpen",
    "HalfOpen -> Open",
    "HalfOpen -> Shadow",
    "Open -> Closed",
    "Open -> ForcedClosed",
    "Open -> ForcedOpen",
    "Open -> HalfOpen",
    "Open -> Shadow",
    "Shadow -> Closed",
    "Shadow -> ForcedClosed",
    "Shadow -> ForcedOpen",
    "Shadow -> Shadow",
    "answered",
    "attempt 1",
    "attempt 2",
    "attempt 3",
    "attempt 4",
    "dropped: elsewhere",
    "dropped: in flight",
    "failed",
    "beyond the limit, by a share",
    "hedged",
    "panicked",
    "panicked in `call`",
    "queued",
    "rejected: AcceptRate",
    "rejected: AttemptTimeout",
    "rejected: ConsecutiveFailures",
    "rejected: Deadline",
    "rejected: Draining",
    "rejected: FailureRate",
    "rejected: Forced",
    "rejected: LimitReached",
    "rejected: MaxWait",
    "rejected: ProbeLease",
    "rejected: ProbesFailed",
    "rejected: ProbesOut",
    "rejected: QueueFull",
    "rejected: SlowCallRate",
    "rejected: TooLate",
];

#[test]
fn all_that_can_happen_happens() {
    let mut runner = TestRunner::deterministic();
    let mut reached = world::Reached::new();
    for _ in 0..3_000 {
        let plan = plan::plan().new_tree(&mut runner).unwrap().current();
        reached.extend(run_paused(world::run(&plan)).unwrap());
    }
    let missing: Vec<_> = COMES_ABOUT.into_iter().filter(|what| !reached.contains(*what)).collect();
    assert!(missing.is_empty(), "of {reached:#?} {missing:?} have not come about");
}
