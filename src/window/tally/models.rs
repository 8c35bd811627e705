use std::sync::Arc;

use loom::{model, thread};

use super::*;

const MOST: u64 = 64;

fn takes(tally: &Arc<Tally>, generation: u64, times: usize) -> thread::JoinHandle<u64> {
    let tally = Arc::clone(tally);
    thread::spawn(move || (0..times).map(|_| tally.take(generation)).sum())
}

#[test]
fn what_an_owner_counts_is_taken_once() {
    model(|| {
        let tally = Arc::new(Tally::default());
        let takers = [takes(&tally, 0, 1), takes(&tally, 0, 1)];
        assert!((0..2).all(|_| tally.count(true, 0, MOST)));
        let taken = takers.map(|taker| taker.join().unwrap()).iter().sum::<u64>();
        assert_eq!(taken + tally.take(0), 2, "each is taken once");
    });
}

#[test]
fn what_is_shared_is_taken_once() {
    model(|| {
        let tally = Arc::new(Tally::default());
        let taker = takes(&tally, 0, 1);
        let shares = {
            let tally = Arc::clone(&tally);
            thread::spawn(move || assert!(tally.count(false, 0, MOST)))
        };
        assert!(tally.count(false, 0, MOST));
        shares.join().unwrap();
        assert_eq!(taker.join().unwrap() + tally.take(0), 2, "each is taken once");
    });
}

/// The owner, a late taker of the generation before, and one of the new.
#[test]
fn a_late_taker_sets_nothing_back() {
    model(|| {
        let tally = Arc::new(Tally::default());
        assert!(tally.count(true, 7, MOST));
        let (late, new) = (takes(&tally, 7, 1), takes(&tally, 8, 1));
        tally.reset(8);
        assert!(tally.count(true, 8, MOST));
        assert!(tally.count(true, 7, MOST), "late ones are done with");
        assert!(late.join().unwrap() <= 1);
        assert_eq!(new.join().unwrap() + tally.take(8), 1, "each is taken once");
    });
}

#[test]
fn a_late_taker_takes_nothing_of_what_is_shared_in_a_new_generation() {
    model(|| {
        let tally = Arc::new(Tally::default());
        assert!(tally.count(false, 7, MOST));
        let late = takes(&tally, 7, 1);
        tally.reset(8);
        assert!(tally.count(false, 8, MOST));
        assert!(late.join().unwrap() <= 1);
        assert_eq!(tally.take(8), 1, "none is lost");
    });
}

#[test]
fn a_late_one_that_shares_the_slot_counts_nothing_in_a_new_generation() {
    model(|| {
        let tally = Arc::new(Tally::default());
        let late = {
            let tally = Arc::clone(&tally);
            thread::spawn(move || assert!(tally.count(false, 7, MOST)))
        };
        tally.reset(8);
        assert!(tally.count(false, 8, MOST));
        late.join().unwrap();
        assert_eq!(tally.take(8), 1, "the new one's alone");
    });
}
