use std::sync::Arc;

use loom::{model, thread};

use super::*;
use crate::sync::models::interrupted;

/// Of buckets one nanosecond long; every thread of a model has the first slot, and shares it.
fn window() -> Arc<TimeWindow> {
    Arc::new(TimeWindow::new(Duration::from_nanos(BUCKETS as u64), 64))
}

fn fails(window: &Arc<TimeWindow>, now: u64, generation: u64) -> thread::JoinHandle<()> {
    let window = Arc::clone(window);
    thread::spawn(move || window.record(now, generation, true, false))
}

#[test]
fn two_at_once_are_both_counted() {
    model(|| {
        let window = window();
        let other = fails(&window, 0, 0);
        window.record(0, 0, true, false);
        other.join().unwrap();
        assert_eq!(window.totals(0, 0).failures, 2, "both");
    });
}

#[test]
fn successes_that_waited_and_those_with_the_time_are_both_counted() {
    model(|| {
        let window = window();
        assert!(window.tally(0));
        let other = fails(&window, 0, 0);
        // None while the other one has it in hand.
        assert!(window.totals(0, 0).successes <= 1, "once");
        other.join().unwrap();
        assert_eq!(window.totals(0, 0), Totals { successes: 1, failures: 1, slow: 0 }, "once");
    });
}

/// A round of the buckets later.
const ROUND: u64 = BUCKETS as u64;

#[test]
fn a_late_one_of_a_bucket_that_fell_out_undoes_nothing() {
    model(|| {
        let window = window();
        (0..3).for_each(|_| window.record(0, 0, true, false));
        let late = fails(&window, 0, 0);
        window.record(ROUND, 0, true, false);
        late.join().unwrap();
        // It counts in the present bucket if it finds that.
        let failures = window.totals(ROUND, 0).failures;
        assert!((1..=2).contains(&failures), "the new one's, and nothing of what fell out");
    });
}

#[test]
fn a_late_one_of_a_generation_that_is_over_undoes_nothing() {
    model(|| {
        let window = window();
        (0..3).for_each(|_| window.record(0, 0, true, false));
        let late = fails(&window, 0, 0);
        window.reset(0, 1);
        window.record(0, 1, true, false);
        late.join().unwrap();
        assert_eq!(window.totals(0, 1).failures, 1, "the new one's alone");
    });
}

/// After a pause so long that eight bits would take the old for the new.
#[test]
fn after_a_long_pause_none_is_taken_for_an_old_one() {
    model(|| {
        let window = window();
        let other = fails(&window, 200, 0);
        window.record(200, 0, true, false);
        other.join().unwrap();
        assert_eq!(window.totals(200, 0).failures, 2, "both");
    });
}

/// Whoever looks sees the words nearly as new as the bucket that it finds, whatever it slept through: so eight bits can
/// tell older from newer.
#[test]
fn tags_lie_close_together() {
    // Moving on so often has too many interleavings.
    interrupted(2, || {
        let window = window();
        let looks = {
            let window = Arc::clone(&window);
            thread::spawn(move || {
                let present = window.advance(0, 0);
                let word = window.shards[0].outcomes[index(present)].load(Relaxed);
                assert!(present <= (word >> 48) + ROUND, "older by one round at most");
            })
        };
        (1..=2 * ROUND).for_each(|now| _ = window.advance(now, 0));
        looks.join().unwrap();
    });
}
