//! More and more keys, each with a breaker of its own.

use std::{
    collections::HashMap,
    future::ready,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use buttress::{CircuitBreaker, Keyed, circuit_breaker::State};
use futures_util::FutureExt;
use tokio::runtime::Runtime;
use tower::{BoxError, Layer};

use super::{
    random::Random,
    sweep::{Column, Sweep},
};
use crate::{
    allocations,
    figures::grouped,
    inner::{AtOnce, Client},
    measure::{Ends, Runner, one},
    subject::Runtimes,
};

/// In a turn: a small part of the largest table, which therefore is in no cache when its turn comes.
const CALLS: u64 = 50_000;

pub fn sweep(runtimes: &Runtimes) -> Sweep {
    let runtime = runtimes.by_hand;
    let sizes = vec![1, 100, 10_000, 1_000_000];
    let tables: Vec<Table> = sizes.iter().map(|keys| Table::filled(*keys, runtime)).collect();
    let of = |keys| tables.iter().find(|it| it.keys == keys).expect("each size has its table");
    let columns = vec![
        Column::cost("buttress, `Keyed`: a call", &sizes, |keys| {
            let mut service = of(keys).service();
            asked(keys, move |key| one(&mut service, key, Ends::Answered, runtime))
        }),
        Column::cost("the same breakers in a `Mutex<HashMap>`: a call", &sizes, |keys| {
            let map = of(keys).map.clone();
            asked(keys, move |key| {
                let answer = found(&map, key).call(ready(Ok::<_, BoxError>(key))).now_or_never();
                assert_eq!(answer.expect("it is ready").expect("it is closed"), key);
            })
        }),
        Column::cost("looking up their state there", &sizes, |keys| {
            let map = of(keys).map.clone();
            asked(keys, move |key| assert_eq!(found(&map, key).state(), State::Closed))
        }),
        Column::notes("`Keyed`: bytes allocated per key", tables.iter().map(Table::bytes_per_key).collect()),
    ];
    Sweep {
        title: "Keys: ns per call of a random key's breaker",
        of: "keys",
        sizes,
        columns,
        because: "What grows is the way to memory, for all three alike: 100 breakers of 2 KB stay in the core's own caches, \
                  10,000 in the cache that cores share, a million in none. A lookup takes three such ways: the entry, the \
                  count of references, the state. A call goes on to the window; `Keyed` takes one more, as its entries \
                  stand apart from their index. Nothing is searched, and bytes per key stay the same (what tables leave \
                  behind when they grow is counted too).",
    }
}

/// As many breakers as keys, and where to find them.
struct Table {
    keys: u64,
    keyed: Keyed<u64, CircuitBreaker>,
    /// The very same breakers, as one would keep them by hand.
    map: Map,
    bytes: u64,
}

type Map = Arc<Mutex<HashMap<u64, CircuitBreaker>>>;

impl Table {
    fn filled(keys: u64, runtime: &Runtime) -> Self {
        let mut table = Self {
            keys,
            keyed: Keyed::each(CircuitBreaker::builder()).max_keys(keys as usize).build().unwrap(),
            map: Map::default(),
            bytes: 0,
        };
        let mut service = table.service();
        let allocated = allocations::of(|| {
            for key in 0..keys {
                one(&mut service, key, Ends::Answered, runtime);
            }
        });
        assert_eq!((table.keyed.len() as u64, table.keyed.overflowed()), (keys, 0));
        table.bytes = allocated.bytes;
        table.map = Arc::new(Mutex::new(table.keyed.entries().into_iter().collect()));
        table
    }

    fn service(&self) -> impl Client + use<> {
        self.keyed.layer(|key: &u64| *key).layer(AtOnce::<BoxError>::new())
    }

    fn bytes_per_key(&self) -> String {
        grouped(self.bytes / self.keys)
    }
}

fn found(map: &Map, key: u64) -> CircuitBreaker {
    map.lock().unwrap()[&key].clone()
}

/// Calls for random keys.
struct Asked<F> {
    keys: u64,
    random: Random,
    call: F,
}

/// It, and how many calls it makes in a turn.
fn asked<F: FnMut(u64)>(keys: u64, call: F) -> Option<(Asked<F>, u64)> {
    Some((Asked { keys, random: Random::default(), call }, CALLS))
}

impl<F: FnMut(u64)> Runner for Asked<F> {
    fn run(&mut self, calls: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..calls {
            (self.call)(self.random.below(self.keys));
        }
        start.elapsed()
    }
}
