//! Both windows against references that keep a log of everything and count it afresh each time.

use std::{
    fmt::Debug,
    mem::size_of_val,
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use proptest::{prelude::*, test_runner::TestCaseError};

use super::*;
use crate::clock;

const BUCKETS: u64 = 10;

/// As many successes as this, the last one included, are counted with the time of the last.
const UNTIMED: u64 = 8;

const THREADS: usize = 8;
const EACH: u64 = 10_000;

fn config() -> ProptestConfig {
    ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() }
}

#[derive(Clone, Copy, Debug)]
struct Outcome {
    failed: bool,
    slow: bool,
}

fn outcome() -> impl Strategy<Value = Outcome> {
    any::<(bool, bool)>().prop_map(|(failed, slow)| Outcome { failed, slow })
}

fn count<'a>(outcomes: impl Iterator<Item = &'a Outcome> + Clone) -> Totals {
    let number = |which: fn(&Outcome) -> bool| outcomes.clone().filter(|outcome| which(outcome)).count() as u64;
    Totals { successes: number(|o| !o.failed), failures: number(|o| o.failed), slow: number(|o| o.slow) }
}

// ---------------------------------------------------------------- time

/// A log of (bucket, outcome) of the present generation, and the successes that wait for a bucket.
struct TimeLog {
    width: u64,
    present: u64,
    generation: u64,
    log: Vec<(u64, Outcome)>,
    waiting: usize,
}

impl TimeLog {
    fn new(span: Duration) -> Self {
        Self { width: clock::nanos(span) / BUCKETS, present: 0, generation: 0, log: Vec::new(), waiting: 0 }
    }

    /// A clock that goes back changes nothing: the newest bucket stays the present one.
    fn look(&mut self, now: u64) {
        self.present = self.present.max(now / self.width);
    }

    fn fold(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.log.extend(std::iter::repeat_n((self.present, Outcome { failed: false, slow: false }), waiting));
    }

    fn tally(&mut self) -> bool {
        let counted = self.waiting + 1 < UNTIMED as usize;
        self.waiting += usize::from(counted);
        counted
    }

    fn record(&mut self, now: u64, outcome: Outcome) {
        self.look(now);
        self.fold();
        self.log.push((self.present, outcome));
    }

    fn totals(&mut self, now: u64) -> Totals {
        self.look(now);
        self.fold();
        let present = self.present;
        count(self.log.iter().filter(|(bucket, _)| bucket + BUCKETS > present).map(|(_, outcome)| outcome))
    }

    fn reset(&mut self, now: u64, generation: u64) {
        self.look(now);
        self.generation = generation;
        self.log.clear();
        self.waiting = 0;
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Record(Outcome),
    /// So many untimed successes in a row.
    Tally(usize),
    /// A record of so many generations ago.
    Late(u64, Outcome),
    Look,
    Reset(u64),
    Wait(u64),
    WaitBuckets(u64),
    Back(u64),
}

fn step() -> impl Strategy<Value = Step> {
    // What a byte takes for the same bucket or the same generation, or for an earlier one.
    let aliases = || prop::sample::select(vec![127, 128, 129, 130, 200, 255, 256, 257, 512, 1271, 1279, 1280, 1281]);
    prop_oneof![
        8 => outcome().prop_map(Step::Record),
        4 => (1usize..12).prop_map(Step::Tally),
        // Nobody is later than this: a result is held against the present generation right before it is recorded.
        1 => (1u64..100, outcome()).prop_map(|(ago, outcome)| Step::Late(ago, outcome)),
        4 => Just(Step::Look),
        1 => (1u64..4).prop_map(Step::Reset),
        1 => aliases().prop_map(Step::Reset),
        2 => (0u64..2_000_000_000).prop_map(Step::Wait),
        3 => (0u64..25).prop_map(Step::WaitBuckets),
        1 => aliases().prop_map(Step::WaitBuckets),
        1 => any::<u64>().prop_map(Step::Wait),
        1 => any::<u64>().prop_map(|by| Step::Back(by % 5_000_000_000)),
        1 => Just(Step::Back(u64::MAX)),
    ]
}

fn time_window_is_its_log(span: Duration, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (window, mut log) = (TimeWindow::new(span, UNTIMED), TimeLog::new(span));
    let mut now = 0u64;
    for step in steps.into_iter().chain([Step::Look]) {
        let generation = log.generation;
        match step {
            Step::Record(outcome) => {
                window.record(now, generation, outcome.failed, outcome.slow);
                log.record(now, outcome);
            }
            Step::Tally(times) => {
                for _ in 0..times {
                    prop_assert_eq!(window.tally(generation), log.tally());
                }
            }
            Step::Late(ago, outcome) if ago <= generation => {
                window.record(now, generation - ago, outcome.failed, outcome.slow);
                log.look(now);
            }
            Step::Late(..) => {}
            Step::Look => prop_assert_eq!(window.totals(now, generation), log.totals(now), "at {}", now),
            Step::Reset(by) => {
                window.reset(now, generation + by);
                log.reset(now, generation + by);
            }
            Step::Wait(nanos) => now = now.saturating_add(nanos),
            Step::WaitBuckets(buckets) => now = now.saturating_add(buckets * log.width),
            Step::Back(nanos) => now = now.saturating_sub(nanos),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    // HAZARD: B6, B14, B18, R3
    #[test]
    fn a_time_window_holds_what_a_log_of_all_outcomes_holds(
        span in prop::sample::select(vec![Duration::from_millis(1), Duration::from_secs(10), Duration::from_secs(86_400)]),
        steps in prop::collection::vec(step(), 0..40),
    ) {
        time_window_is_its_log(span, steps)?;
    }
}

fn seconds(seconds: u64) -> u64 {
    seconds * 1_000_000_000
}

// HAZARD: B18
#[test]
fn a_time_window_forgets_after_any_pause_and_counts_again() {
    for pause in (10..3_000).chain([12_800, 25_600, 12_800 * 256]) {
        let window = TimeWindow::new(Duration::from_secs(10), UNTIMED);
        window.record(0, 0, true, true);
        assert_eq!(window.totals(seconds(pause), 0), Totals::default(), "after {pause} s");
        window.record(seconds(pause), 0, true, false);
        let after = window.totals(seconds(pause), 0);
        assert_eq!(after, Totals { successes: 0, failures: 1, slow: 0 }, "after {pause} s");
    }
}

#[test]
fn a_bucket_begins_with_its_first_nanosecond() {
    let window = TimeWindow::new(Duration::from_secs(10), UNTIMED);
    window.record(seconds(1), 0, true, false);
    assert_eq!(window.totals(seconds(11) - 1, 0).failures, 1, "with the second, which is in the span yet");
    assert_eq!(window.totals(seconds(11), 0).failures, 0);
}

/// Others look, so that the window moves on by little each time, and is never cleared as after a pause.
// HAZARD: B18
#[test]
fn a_thread_that_records_once_in_a_long_while_brings_nothing_back_and_loses_nothing() {
    for quiet in (10..300).chain([1_270, 1_280, 1_290]) {
        let window = TimeWindow::new(Duration::from_secs(10), UNTIMED);
        window.record(0, 0, true, true);
        for now in 0..=quiet {
            let held = u64::from(now < 10);
            let sum = Totals { successes: 0, failures: held, slow: held };
            assert_eq!(window.totals(seconds(now), 0), sum, "at {now} s");
        }
        window.record(seconds(quiet), 0, true, true);
        let sum = Totals { successes: 0, failures: 1, slow: 1 };
        assert_eq!(window.totals(seconds(quiet), 0), sum, "once more after {quiet} s");
    }
}

// HAZARD: B4
#[test]
fn a_reset_empties_a_time_window_however_many_generations_were_skipped() {
    for skipped in 1..1_000 {
        let window = TimeWindow::new(Duration::from_secs(10), UNTIMED);
        window.record(seconds(20), 0, true, true);
        window.reset(seconds(20), skipped);
        assert_eq!(window.totals(seconds(20), skipped), Totals::default(), "{skipped} generations later");
        window.record(seconds(20), skipped, true, false);
        assert_eq!(window.totals(seconds(20), skipped).failures, 1, "{skipped} generations later");
    }
}

// HAZARD: B4
#[test]
fn a_time_window_counts_in_buckets_that_no_earlier_generation_has_reached() {
    let window = TimeWindow::new(Duration::from_secs(10), UNTIMED);
    for generation in 1..=200 {
        window.reset(0, generation);
    }
    window.record(seconds(1), 200, true, false);
    assert_eq!(window.totals(seconds(1), 200).failures, 1);
}

// HAZARD: B4
#[test]
fn late_outcomes_change_no_window() {
    let time = Window::Time(TimeWindow::new(Duration::from_secs(10), UNTIMED));
    let calls = Window::Count(CountWindow::new(10));
    for window in [time, calls] {
        window.record(0, 0, true, true);
        window.reset(0, 2);
        assert!(window.succeed_untimed(2));
        window.record(0, 2, true, false);
        let before = window.totals(0, 2);
        for _ in 0..20 {
            window.record(0, 1, true, true);
            window.record(0, 0, false, false);
        }
        assert_eq!(window.totals(0, 2), before, "{window:?}");
        assert_eq!(before, Totals { successes: 1, failures: 1, slow: 0 });
    }
}

// HAZARD: B4
#[test]
fn a_late_untimed_success_takes_nothing_from_those_that_wait() {
    let window = TimeWindow::new(Duration::from_secs(10), UNTIMED);
    window.reset(0, 2);
    for _ in 0..3 {
        assert!(window.tally(2));
    }
    window.tally(1);
    assert_eq!(window.totals(0, 2), Totals { successes: 3, failures: 0, slow: 0 });
}

// ---------------------------------------------------------------- count

#[derive(Clone, Copy, Debug)]
enum Call {
    Record(Outcome),
    Late(u64, Outcome),
    NextGeneration(u64),
    Look,
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        16 => outcome().prop_map(Call::Record),
        1 => (1u64..300, outcome()).prop_map(|(ago, outcome)| Call::Late(ago, outcome)),
        1 => prop_oneof![1u64..4, prop::sample::select(vec![255, 256, 257, 1 << 12])].prop_map(Call::NextGeneration),
        4 => Just(Call::Look),
    ]
}

proptest! {
    #![proptest_config(config())]

    // HAZARD: B1, B4
    #[test]
    fn a_count_window_holds_the_last_outcomes_of_its_generation(
        size in 1usize..24,
        calls in prop::collection::vec(call(), 0..100),
    ) {
        let (window, mut log) = (CountWindow::new(size), Vec::new());
        // What was recorded of a generation shuts out those before it.
        let (mut generation, mut recorded) = (0, 0);
        for call in calls.into_iter().chain([Call::Look]) {
            match call {
                Call::Record(outcome) => {
                    window.record(generation, outcome.failed, outcome.slow);
                    log.push((generation, outcome));
                    recorded = generation;
                }
                Call::Late(ago, outcome) => {
                    let late = generation.saturating_sub(ago);
                    window.record(late, outcome.failed, outcome.slow);
                    if late >= recorded {
                        log.push((late, outcome));
                    }
                }
                Call::NextGeneration(by) => generation += by,
                Call::Look => {
                    let ours = log.iter().filter(|(of, _)| *of == generation).map(|(_, outcome)| outcome).rev();
                    prop_assert_eq!(window.totals(generation), count(ours.take(size)));
                }
            }
        }
    }
}

// HAZARD: B1
#[test]
fn ten_thousand_successes_do_not_weigh_on_the_last_ten_outcomes() {
    let window = CountWindow::new(10);
    for _ in 0..10_000 {
        window.record(0, false, false);
    }
    for failures in 1..=10 {
        window.record(0, true, false);
        assert_eq!(window.totals(0), Totals { successes: 10 - failures, failures, slow: 0 });
    }
}

#[test]
fn the_generation_of_a_count_window_may_wrap() {
    let window = CountWindow::new(3);
    for round in 0..40u64 {
        let generation = round << 20;
        for failed in [true, false, true, true] {
            window.record(generation, failed, false);
        }
        assert_eq!(window.totals(generation), Totals { successes: 1, failures: 2, slow: 0 }, "round {round}");
    }
}

#[test]
fn a_count_window_is_as_large_as_its_totals_can_count() {
    for (asked, size) in [(0, 1), (1, 1), (MAX_SIZE, MAX_SIZE), (usize::MAX, MAX_SIZE)] {
        let window = CountWindow::new(asked);
        for _ in 0..=size {
            window.record(0, true, true);
        }
        let full = size as u64;
        assert_eq!(window.totals(0), Totals { successes: 0, failures: full, slow: full });
    }
}

// ---------------------------------------------------------------- both

/// Every second outcome of a thread is a failure, every fourth is slow.
fn from_eight_threads(window: &Window, now: u64) {
    let together = Barrier::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                together.wait();
                for number in 0..EACH {
                    let (failed, slow) = (number % 2 == 1, number % 4 == 3);
                    if failed || slow || !window.succeed_untimed(0) {
                        window.record(now, 0, failed, slow);
                    }
                }
            });
        }
    });
}

#[test]
fn eight_threads_lose_no_outcome() {
    let all = THREADS as u64 * EACH;
    let sum = Totals { successes: all / 2, failures: all / 2, slow: all / 4 };
    let time = Window::Time(TimeWindow::new(Duration::from_secs(10), UNTIMED));
    let calls = Window::Count(CountWindow::new(100_000));
    for window in [time, calls] {
        from_eight_threads(&window, seconds(5));
        assert_eq!(window.totals(seconds(5), 0), sum);
    }
}

#[test]
fn eight_threads_leave_a_small_count_window_with_what_came_last() {
    for size in [1, 2, 3, 8] {
        let window = Window::Count(CountWindow::new(size));
        for round in 0..20 {
            from_eight_threads(&window, 0);
            for _ in 0..size {
                window.record(0, 0, false, false);
            }
            let sum = Totals { successes: size as u64, failures: 0, slow: 0 };
            assert_eq!(window.totals(0, 0), sum, "the last {size} were fast successes, round {round}");
        }
    }
}

#[test]
fn two_threads_that_meet_in_the_first_round_leave_nothing_behind() {
    // Spinning, as whoever wakes from a `Barrier` comes too late to meet anybody.
    let arrived = AtomicU64::new(0);
    let meet = |number: u64| {
        arrived.fetch_add(1, SeqCst);
        while arrived.load(SeqCst) < 2 * number {
            thread::yield_now();
        }
    };
    let window = CountWindow::new(1);
    let wrong = AtomicU64::new(0);
    let rounds = |first: bool| {
        for generation in 0..50_000 {
            meet(3 * generation + 1);
            window.record(generation, first, first);
            window.record(generation, !first, !first);
            meet(3 * generation + 2);
            if first {
                window.record(generation, false, false);
                let last = window.totals(generation) == Totals { successes: 1, failures: 0, slow: 0 };
                wrong.fetch_add(u64::from(!last), SeqCst);
            }
            meet(3 * generation + 3);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| rounds(true));
        scope.spawn(|| rounds(false));
    });
    assert_eq!(wrong.into_inner(), 0, "the last outcome was a fast success");
}

/// How many words it is made of.
fn words(window: &impl Debug) -> usize {
    format!("{window:#?}").lines().count()
}

// HAZARD: B6
#[test]
fn ten_million_records_take_no_memory() {
    let time = Window::Time(TimeWindow::new(Duration::from_secs(10), UNTIMED));
    let calls = Window::Count(CountWindow::new(100));
    for window in [time, calls] {
        let before = (size_of_val(&window), words(&window));
        for number in 0..10_000_000u64 {
            window.record(number * 1_000_000, 0, number % 3 == 0, number % 5 == 0);
        }
        assert_eq!((size_of_val(&window), words(&window)), before);
    }
}

#[test]
fn counters_of_a_bucket_stop_at_their_most_and_spill_into_nothing() {
    const MOST: u64 = (1 << 24) - 1;
    let window = TimeWindow::new(Duration::from_secs(10), UNTIMED);
    for _ in 0..3 {
        window.record(0, 7, false, false);
    }
    for _ in 0..MOST + 10 {
        window.record(0, 7, true, true);
    }
    assert_eq!(window.totals(0, 7), Totals { successes: 3, failures: MOST, slow: MOST });
    for _ in 0..MOST + 10 {
        window.record(0, 7, false, false);
    }
    assert_eq!(window.totals(0, 7), Totals { successes: MOST, failures: MOST, slow: MOST }, "nor into the tag");
}
