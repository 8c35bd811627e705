use std::sync::Arc as Plain;

use loom::{model, sync::atomic::AtomicU32, thread};

use super::{threads::sit, *};

/// An owner reads and writes in two steps.
#[test]
fn what_an_owner_wrote_the_next_owner_sees() {
    model(|| {
        let slot = Plain::new((Taken(AtomicUsize::new(0)), AtomicU32::new(0)));
        let own = |(taken, word): &(Taken, AtomicU32)| match taken.take(1) {
            Some(slot) => {
                word.store(word.load(Relaxed) + 1, Relaxed);
                taken.give_back(slot);
                1
            }
            None => 0,
        };
        let other = {
            let slot = Plain::clone(&slot);
            thread::spawn(move || own(&slot))
        };
        let owners = own(&slot) + other.join().unwrap();
        assert_eq!(slot.1.load(Relaxed), owners, "each goes on from the last one's");
    });
}

#[test]
fn no_slot_has_two_owners() {
    model(|| {
        let taken = Plain::new(Taken(AtomicUsize::new(0)));
        let others = [0; 2].map(|_| {
            let taken = Plain::clone(&taken);
            thread::spawn(move || taken.take(2))
        });
        let [first, second] = others.map(|other| other.join().unwrap());
        assert!(first.is_some() && second.is_some() && first != second, "one each");
        assert_eq!(taken.take(2), None);
    });
}

#[test]
fn a_counter_counts_what_an_owner_and_others_count() {
    model(|| {
        let counter = Plain::new(Counter::new());
        let others = [true, false].map(|owns| {
            let counter = Plain::clone(&counter);
            thread::spawn(move || {
                sit(0, owns);
                counter.count();
            })
        });
        counter.count();
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(counter.total(), 3, "each");
    });
}

#[test]
fn a_clone_that_changes_slots_does_not_hide() {
    model(|| {
        let spread = Spread::new(());
        let clone = spread.clone();
        let wanders = thread::spawn(move || {
            sit(1, false);
            let there = clone.clone();
            drop(clone);
            sit(0, false);
            let back = there.clone();
            drop(there);
            back
        });
        assert!(!spread.is_sole(), "it is held");
        drop(wanders.join().unwrap());
        assert!(spread.is_sole());
    });
}

#[test]
fn whoever_is_alone_sees_what_the_others_did() {
    for moves in [false, true] {
        model(move || {
            let spread = Spread::new(AtomicU32::new(0));
            let clone = spread.clone();
            let other = thread::spawn(move || {
                sit(usize::from(moves), false);
                let mut clone = clone;
                clone.here().store(1, Relaxed);
            });
            if spread.is_sole() {
                assert_eq!(spread.load(Relaxed), 1, "what the last one did");
            }
            other.join().unwrap();
        });
    }
}
