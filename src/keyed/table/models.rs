use std::sync::Arc as Plain;

use loom::{model, sync::atomic::AtomicU32, thread};

use super::*;
use crate::{
    Timeout,
    call::Inline,
    keyed::per_key::Sealed,
    spread::is_sole,
    sync::{Arc, models::interrupted},
};

/// A handle whose state is one word, written and read Relaxed: settled if it is zero.
#[derive(Clone)]
struct Held(Arc<AtomicU32>);

impl Held {
    fn new() -> Self {
        Self(Arc::new(AtomicU32::new(0)))
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

impl Sealed for Held {
    type Local = Inline<Timeout>;

    fn into_local(self) -> Self::Local {
        unreachable!("no calls are made")
    }

    fn is_sole(&self) -> bool {
        is_sole(Arc::strong_count(&self.0))
    }

    fn is_settled(&self) -> bool {
        self.0.load(Relaxed) == 0
    }
}

/// Its hashes are chosen, so that a model goes the same way each time.
type Keys = Table<u64, Held>;

fn with(max: usize, keys: &[u64]) -> Plain<Keys> {
    let table = Plain::new(Keys::new(max));
    for key in keys {
        table.place().expect("there is room").fill(*key, *key, Held::new());
        let mut shard = table.shard_of(*key);
        let at = shard.find(*key, key).unwrap();
        shard.entries[at].chances = 0;
    }
    table
}

#[test]
fn what_is_in_use_is_not_forgotten() {
    interrupted(2, || {
        let table = with(1, &[1]);
        let user = {
            let table = Plain::clone(&table);
            thread::spawn(move || {
                let Some(held) = table.find(1, &1, false) else { return };
                held.0.store(1, Relaxed);
                assert!(table.find(1, &1, false).is_some(), "one handle for a key");
                held.0.store(0, Relaxed);
            })
        };
        drop(table.place());
        user.join().unwrap();
    });
}

#[test]
fn what_is_not_at_rest_is_not_forgotten() {
    interrupted(2, || {
        let table = with(1, &[1]);
        let user = {
            let table = Plain::clone(&table);
            thread::spawn(move || table.find(1, &1, false).map(|held| held.0.store(1, Relaxed)))
        };
        let place = table.place();
        let used = user.join().unwrap().is_some();
        assert_eq!(place.is_none(), used, "what it was used for is seen");
    });
}

#[test]
fn there_are_never_more_places_than_the_bound() {
    model(|| {
        let table = with(1, &[]);
        let keeps_a_place = |table: &Keys| table.place().map(std::mem::forget).is_some();
        let other = {
            let table = Plain::clone(&table);
            thread::spawn(move || keeps_a_place(&table))
        };
        assert_ne!(keeps_a_place(&table), other.join().unwrap(), "one place");
        assert_eq!(table.len(), 1, "no more than the bound");
    });
}

#[test]
fn two_that_come_for_one_key_have_one_handle() {
    model(|| {
        let table = with(2, &[]);
        let come = |table: &Keys| match table.find(1, &1, true) {
            Some(held) => held,
            None => table.place().expect("there is room for both").fill(1, 1, Held::new()),
        };
        let other = {
            let table = Plain::clone(&table);
            thread::spawn(move || come(&table))
        };
        let ours = come(&table);
        ours.0.store(7, Relaxed);
        assert_eq!(other.join().unwrap().0.load(Relaxed), 7, "one handle for a key");
        assert_eq!(table.len(), 1, "and one place");
    });
}
