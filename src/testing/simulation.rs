//! [`Simulation`]: one async test, for one seed after the other.

use std::{
    any::Any,
    env,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use tokio::{runtime::Builder, time::timeout};

/// Runs an async test for many seeds, each on a runtime of its own, on this thread, with a clock that is paused and moves on
/// when everybody waits: a day takes as long as what happens in it.
///
/// A case that panics, or that has not ended after a [day](Self::longest) of its own clock, ends the run with its seed;
/// `BUTTRESS_SEED=17` in the environment then runs that seed alone, and `BUTTRESS_CASES=100000` so many instead of what the test
/// says. Name the test beside them: they are for all simulations of a run.
///
/// It does not see: a panic in a task that the case has spawned and does not join; and a task that wakes itself without an end,
/// which keeps the clock where it is, so that the test hangs. There is no I/O in it.
///
/// ```
/// use buttress::testing::{Chance, Simulation};
/// use std::time::Duration;
/// Simulation::new().cases(100).run(|seed| async move {
///     let mut chance = Chance::new(seed);
///     let time = chance.duration(Duration::ZERO..=Duration::from_secs(3600));
///     let started = tokio::time::Instant::now();
///     tokio::time::sleep(time).await;
///     assert!(started.elapsed() >= time);
/// });
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Simulation {
    cases: u64,
    first_seed: u64,
    longest: Duration,
}

/// What the environment asks for.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    seed: Option<u64>,
    cases: Option<u64>,
}

impl Simulation {
    /// 1,000 cases, from seed 0.
    pub fn new() -> Self {
        Self { cases: 1000, first_seed: 0, longest: Duration::from_secs(86_400) }
    }

    /// How many seeds to try, at least one. Default 1,000.
    pub fn cases(self, cases: u64) -> Self {
        Self { cases, ..self }
    }

    /// The first seed; the next ones follow it. Default 0.
    pub fn first_seed(self, seed: u64) -> Self {
        Self { first_seed: seed, ..self }
    }

    /// A case that has not ended after this time, on its own clock, hangs. Default: a day.
    pub fn longest(self, time: Duration) -> Self {
        Self { longest: time, ..self }
    }

    /// Runs them.
    ///
    /// # Panics
    /// If a case does, or if it hangs: with its seed. If there are no cases, or the environment asks for what is not a number. And
    /// inside of an async runtime, where a test cannot block.
    #[track_caller]
    pub fn run<F, Fut>(self, case: F)
    where
        F: Fn(u64) -> Fut,
        Fut: Future<Output = ()>,
    {
        let asked = |name| env::var(name).ok().map(|value| number(name, &value));
        self.run_as(Asked { seed: asked("BUTTRESS_SEED"), cases: asked("BUTTRESS_CASES") }, case);
    }

    #[track_caller]
    fn run_as<F, Fut>(self, asked: Asked, case: F)
    where
        F: Fn(u64) -> Fut,
        Fut: Future<Output = ()>,
    {
        let cases = asked.cases.unwrap_or(self.cases);
        assert!(cases > 0, "a simulation of 0 cases shows nothing: there must be at least 1");
        let (first, count) = asked.seed.map_or((self.first_seed, cases), |seed| (seed, 1));
        for seed in (0..count).map(|number| first.wrapping_add(number)) {
            let run = || run_paused(async { timeout(self.longest, case(seed)).await });
            let failure = match catch_unwind(AssertUnwindSafe(run)) {
                Ok(Ok(())) => continue,
                Ok(Err(_)) => format!("it had not ended after {:?}", self.longest),
                Err(panic) => message(&*panic).to_owned(),
            };
            panic!("seed {seed}: {failure}\n(that seed alone: BUTTRESS_SEED={seed})");
        }
    }
}

impl Default for Simulation {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs one future on a runtime of its own, on this thread, with a clock that is paused and moves on when everybody waits.
///
/// ```
/// use std::time::Duration;
/// buttress::testing::run_paused(async { tokio::time::sleep(Duration::from_secs(86_400)).await });
/// ```
///
/// # Panics
/// If the future does; and inside of an async runtime, where a test cannot block.
pub fn run_paused<F: Future>(future: F) -> F::Output {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime of this thread alone, without I/O, asks nothing of the system").block_on(future)
}

#[track_caller]
fn number(name: &str, value: &str) -> u64 {
    value.parse().unwrap_or_else(|_| panic!("{name} = {value:?}: must be a number"))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::pending, panic::resume_unwind};

    use super::*;

    /// The seeds that are run.
    fn seeds(simulation: Simulation, asked: Asked) -> Vec<u64> {
        let seen = RefCell::new(Vec::new());
        simulation.run_as(asked, |seed| {
            seen.borrow_mut().push(seed);
            async {}
        });
        seen.into_inner()
    }

    #[test]
    fn each_seed_is_run_once() {
        let simulation = Simulation::new().cases(3);
        assert_eq!(seeds(simulation, Asked::default()), [0, 1, 2]);
        assert_eq!(seeds(simulation.first_seed(u64::MAX), Asked::default()), [u64::MAX, 0, 1]);
        assert_eq!(seeds(Simulation::default(), Asked::default()).len(), 1000);
    }

    #[test]
    fn the_environment_asks_for_one_seed_or_for_more_cases() {
        let simulation = Simulation::new().cases(3);
        assert_eq!(seeds(simulation, Asked { seed: Some(17), cases: None }), [17]);
        assert_eq!(seeds(simulation, Asked { seed: None, cases: Some(5) }).len(), 5);
        assert_eq!(number("BUTTRESS_SEED", "17"), 17);
    }

    #[test]
    #[should_panic(expected = "BUTTRESS_SEED = \"x\": must be a number")]
    fn the_environment_is_told_what_it_may_ask_for() {
        number("BUTTRESS_SEED", "x");
    }

    #[test]
    #[should_panic(expected = "a simulation of 0 cases shows nothing")]
    fn no_cases_at_all_are_refused() {
        Simulation::new().cases(0).run_as(Asked::default(), |_| async {});
    }

    #[test]
    #[should_panic(expected = "seed 2: it is two\n(that seed alone: BUTTRESS_SEED=2)")]
    fn whoever_fails_is_named() {
        Simulation::new().run_as(Asked::default(), |seed| async move { assert!(seed != 2, "it is two") });
    }

    #[test]
    #[should_panic(expected = "seed 0: it had not ended after 1s")]
    fn whoever_hangs_is_named() {
        Simulation::new().longest(Duration::from_secs(1)).run_as(Asked::default(), |_| pending());
    }

    #[test]
    #[should_panic(expected = "seed 0: a panic without a message")]
    fn a_panic_may_say_nothing() {
        Simulation::new().run_as(Asked::default(), |_| async { resume_unwind(Box::new(17)) });
    }
}
