use std::sync::Arc;

use loom::{model, thread};

use super::*;

fn at_once<R: Send + 'static>(
    size: usize,
    one: impl Fn(&CountWindow) -> R + Copy + Send + 'static,
) -> (Arc<CountWindow>, [R; 2]) {
    let window = Arc::new(CountWindow::new(size));
    let other = {
        let window = Arc::clone(&window);
        thread::spawn(move || one(&window))
    };
    let ours = one(&window);
    let theirs = other.join().unwrap();
    (window, [ours, theirs])
}

/// Or two failures at once would each find one call too few to open a circuit.
#[test]
fn of_two_that_fail_at_once_one_sees_both() {
    model(|| {
        let (_, seen) = at_once(2, |window| {
            window.record(0, true, false);
            window.totals(0).failures
        });
        assert!(seen.contains(&2), "one sees both");
    });
}

/// Where the second takes the first one's place.
#[test]
fn totals_are_what_the_slots_hold() {
    model(|| {
        let (window, _) = at_once(1, |window| window.record(0, true, true));
        assert_eq!(window.totals(0), Totals { successes: 0, failures: 1, slow: 1 }, "one of one");
        window.record(0, false, false);
        assert_eq!(window.totals(0), Totals { successes: 1, failures: 0, slow: 0 }, "nothing is left over");
    });
}

#[test]
fn every_call_has_a_position() {
    model(|| {
        let (window, _) = at_once(4, |window| window.record(0, true, false));
        assert_eq!(window.totals(0).failures, 2, "both");
    });
}

#[test]
fn a_late_one_of_a_generation_that_is_over_undoes_nothing() {
    model(|| {
        let window = Arc::new(CountWindow::new(1));
        window.record(0, false, false);
        let late = {
            let window = Arc::clone(&window);
            thread::spawn(move || window.record(0, true, false))
        };
        window.record(1, true, false);
        late.join().unwrap();
        assert_eq!(window.totals(1), Totals { successes: 0, failures: 1, slow: 0 }, "the new one's alone");
        // It finds in the slot what the totals hold of it.
        window.record(1, false, false);
        assert_eq!(window.totals(1), Totals { successes: 1, failures: 0, slow: 0 }, "the new one's alone");
    });
}
