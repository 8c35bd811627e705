//! One handle for each key: kept apart, bounded, and what matters is never forgotten.

use std::{
    collections::HashSet,
    convert::Infallible,
    future::{Ready, pending, ready},
    hash::{Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use buttress::{
    Backoff, ByResult, CircuitBreaker, CircuitBreakerBuilder, Classify, Cloned, ConcurrencyLimit,
    ConcurrencyLimitBuilder, Error, Jitter, Keyed, KeyedService, Policy, Reason, Retry, Timeout, Verdict,
    circuit_breaker::State, concurrency_limit::Headroom,
};
use proptest::prelude::*;
use tokio::time::sleep;
use tower::{Layer, Service, service_fn};

use crate::support::{Counts, Echo, ms, secs};

/// Opens at the first failure, for longer than any test takes.
fn touchy() -> CircuitBreakerBuilder {
    CircuitBreaker::builder().consecutive_failures(1).open_time(Backoff::constant(secs(600)).jitter(Jitter::None))
}

fn breakers<K: Hash + Eq + 'static>(max_keys: usize) -> Keyed<K, CircuitBreaker> {
    Keyed::each(touchy()).max_keys(max_keys).build().unwrap()
}

fn one_at_once() -> ConcurrencyLimitBuilder {
    ConcurrencyLimit::builder().max_in_flight(1).max_queue(0)
}

fn fail(breaker: &CircuitBreaker) {
    breaker.try_acquire().unwrap().settle(Verdict::TRANSIENT);
}

/// Whether they are one and the same.
fn same(one: &ConcurrencyLimit, other: &ConcurrencyLimit) -> bool {
    let _held = one.try_acquire().unwrap();
    other.in_flight() == 1
}

/// Keys without end, the same each time.
fn random(mut seed: u64) -> impl Iterator<Item = u64> {
    std::iter::repeat_with(move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    })
}

// ---------------------------------------------------------------- kept apart

#[tokio::test(start_paused = true)]
async fn one_hosts_open_circuit_leaves_the_others_alone() {
    let hosts: Keyed<String, _> = Keyed::each(touchy()).build().unwrap();
    let down = hosts.get("down").call(async { Err::<(), _>("refused") }).await;
    assert_eq!(down, Err(Error::Inner("refused")));
    assert_eq!(hosts.get("down").state(), State::Open);
    let refused = hosts.get("down").call(async { Ok::<_, &str>(()) }).await.unwrap_err();
    assert_eq!(refused.rejection().map(|no| no.reason()), Some(Reason::CircuitOpen));
    for host in ["up", "well", "fine"] {
        assert_eq!(hosts.get(host).call(async { Ok::<_, &str>(()) }).await, Ok(()));
    }
    assert_eq!(hosts.len(), 4);
}

/// A request to a host, which answers unless it is named `down`.
async fn answer(host: String) -> Result<usize, Error<&'static str>> {
    if host == "down" { Err(Error::Inner("refused")) } else { Ok(host.len()) }
}

#[tokio::test(start_paused = true)]
async fn through_a_layer_too_and_all_services_of_it_share_one_state() {
    let hosts: Keyed<String, _> = Keyed::each(touchy()).build().unwrap();
    let layer = hosts.layer(|host: &String| host.clone());
    let client = layer.layer(service_fn(answer));
    assert_eq!(client.send("down".into()).await, Err(Error::Inner("refused")));
    assert!(client.send("down".into()).await.unwrap_err().rejection().is_some());
    assert_eq!(client.send("up".into()).await, Ok(2));

    let of_another_connection = layer.clone().layer(service_fn(answer));
    assert!(of_another_connection.send("down".into()).await.unwrap_err().rejection().is_some());
    assert!(hosts.layer(|host: &String| host.clone()).layer(service_fn(answer)).send("down".into()).await.is_err());
    assert_eq!(of_another_connection.send("up".into()).await, Ok(2));
    assert_eq!(hosts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_policy_for_each_key_does_all_that_a_policy_does() {
    let each = Policy::cloned("hosts")
        .deadline(secs(5))
        .retry(Retry::constant(ms(10)).max_attempts(3))
        .circuit_breaker(touchy().consecutive_failures(4))
        .concurrency_limit(one_at_once().max_queue(1))
        .timeout(secs(1));
    let hosts: Keyed<&str, Policy<Cloned>> = Keyed::each(each).build().unwrap();
    let seen = Counts::default();
    let client = {
        let seen = seen.clone();
        hosts.layer(|host: &&'static str| *host).layer(service_fn(move |host: &'static str| {
            let (running, again) = (seen.enter(), seen.calls() < 3);
            async move {
                let _running = running;
                match host {
                    "stalls" => pending().await,
                    "fails" if again => Err(Error::Inner("again")),
                    _ => Ok(()),
                }
            }
        }))
    };
    assert_eq!(client.send("fails").await, Ok(()), "at the third attempt");
    assert_eq!(seen.calls(), 3);

    let stalls = client.send("stalls").await.unwrap_err();
    assert_eq!(stalls.rejection().map(|no| no.reason()), Some(Reason::Timeout));
    let (one, queued, shed) = tokio::join!(client.send("stalls"), client.send("stalls"), client.send("stalls"));
    assert!(one.is_err() && queued.is_err());
    assert_eq!(shed.unwrap_err().rejection().map(|no| no.reason()), Some(Reason::Overloaded));
    assert_eq!(seen.most(), 1);
    assert_eq!(hosts.get(&"stalls").circuit_breaker().unwrap().state(), State::Open);
    assert_eq!(client.send("other").await, Ok(()));
    assert_eq!(hosts.active().iter().map(|(host, _)| *host).collect::<Vec<_>>(), ["stalls"]);
}

#[tokio::test(start_paused = true)]
async fn every_handle_can_be_kept_by_key() {
    async fn passes<H: buttress::keyed::PerKey>(keyed: Keyed<u64, H>)
    where
        for<'a> KeyedService<Echo, u64, H, fn(&u64) -> u64>: Service<u64, Response = u64, Error = Error<Infallible>>,
    {
        let mut service = keyed.layer((|n| *n) as fn(&u64) -> u64).layer(Echo);
        assert!(matches!(service.call(7).await, Ok(7)));
        assert_eq!(keyed.len(), 1);
        (0..100).for_each(|key| drop(keyed.get(&key)));
        assert_eq!((keyed.len(), keyed.overflowed()), (8, 0), "each can be forgotten");
    }
    passes(breakers(8)).await;
    passes(Keyed::each(one_at_once()).max_keys(8).build().unwrap()).await;
    passes(Keyed::each(Retry::constant(ms(1))).max_keys(8).build().unwrap()).await;
    passes(Keyed::each(Policy::plain("plain")).max_keys(8).build().unwrap()).await;
    passes(Keyed::builder(|_| Timeout::new(secs(1))).max_keys(8).build().unwrap()).await;
}

#[test]
fn calls_that_come_with_a_new_key_at_once_share_one_handle() {
    for _ in 0..200 {
        let made = Arc::new(AtomicUsize::new(0));
        let keyed = {
            let made = made.clone();
            Keyed::builder(move |_: &u64| {
                made.fetch_add(1, SeqCst);
                thread::yield_now();
                one_at_once().build().unwrap()
            })
        };
        let keyed = keyed.max_keys(4).build().unwrap();
        let got: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| keyed.get(&7))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(got.windows(2).all(|pair| same(&pair[0], &pair[1])), "{} were made", made.load(SeqCst));
        assert_eq!((keyed.len(), keyed.overflowed()), (1, 0), "no place is lost");
    }
}

// ---------------------------------------------------------------- bounded

#[test]
fn a_million_random_keys_stay_within_the_bound_and_no_open_circuit_is_forgotten() {
    const MAX: usize = 1_000;
    const OPEN: u64 = 100;
    let keyed = breakers::<u64>(MAX);
    // Above all random keys that are opened; all others are never this small.
    (0..OPEN).for_each(|key| fail(&keyed.get(&key)));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !done.load(SeqCst) {
                assert!(keyed.len() <= MAX);
                assert!(keyed.active().len() <= MAX);
                thread::yield_now();
            }
        });
        let floods: Vec<_> = [11, 22]
            .map(|seed| {
                let keyed = &keyed;
                scope.spawn(move || random(seed).take(500_000).for_each(|key| drop(keyed.get(&(key | 1 << 32)))))
            })
            .into_iter()
            .collect();
        floods.into_iter().for_each(|flood| flood.join().unwrap());
        done.store(true, SeqCst);
        watch.join().unwrap();
    });
    assert_eq!((keyed.len(), keyed.entries().len()), (MAX, MAX));
    assert_eq!(keyed.overflowed(), 0);
    for key in 0..OPEN {
        assert_eq!(keyed.peek(&key).map(|breaker| breaker.state()), Some(State::Open), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_not_closed_outlives_any_flood() {
    let keyed: Keyed<u64, _> =
        Keyed::each(touchy().probes(1).open_time(Backoff::constant(secs(1)))).max_keys(16).build().unwrap();
    fail(&keyed.get(&1));
    keyed.get(&2).force_open();
    keyed.get(&3).force_closed();
    keyed.get(&4).shadow();
    fail(&keyed.get(&5));
    sleep(secs(2)).await;
    let probe = keyed.get(&5).try_acquire().unwrap();
    let flood = || random(5).take(10_000).for_each(|key| drop(keyed.get(&(key | 1 << 32))));
    flood();
    let states: Vec<_> = (1..=5).map(|key| keyed.peek(&key).unwrap().state()).collect();
    assert_eq!(states, [State::Open, State::ForcedOpen, State::ForcedClosed, State::Shadow, State::HalfOpen]);

    probe.settle(Verdict::Success);
    (1..=4).for_each(|key| keyed.get(&key).reset());
    flood();
    assert!((1..=5).all(|key| keyed.peek(&key).is_none()), "closed, they are forgotten like others");
}

#[test]
fn a_breaker_that_was_built_in_shadow_mode_is_at_rest_in_it() {
    let keyed: Keyed<u64, _> = Keyed::each(touchy().shadow()).max_keys(4).build().unwrap();
    (0..1_000).for_each(|key| drop(keyed.get(&key)));
    assert_eq!((keyed.len(), keyed.overflowed()), (4, 0));
}

#[test]
fn as_many_keys_as_allowed_each_have_their_own_however_they_fall_into_shards() {
    for max in (1..40).chain([64, 100, 127, 128, 129, 1_000]) {
        let keyed = breakers::<usize>(max);
        (0..max).for_each(|key| fail(&keyed.get(&key)));
        assert_eq!((keyed.len(), keyed.overflowed()), (max, 0));
        assert!((0..max).all(|key| keyed.peek(&key).is_some()), "{max}");
        assert_eq!(keyed.active().len(), max);
    }
}

#[test]
fn without_room_newcomers_share_one_handle_until_there_is_room_again() {
    let keyed = breakers::<usize>(100);
    (0..100).for_each(|key| fail(&keyed.get(&key)));
    assert_eq!(keyed.get(&200).state(), State::Closed);
    fail(&keyed.get(&201));
    assert_eq!(keyed.get(&202).state(), State::Open, "it is one and the same");
    assert_eq!((keyed.len(), keyed.overflowed()), (100, 3));
    assert!(keyed.peek(&202).is_none());

    keyed.get(&42).reset();
    assert_eq!(keyed.get(&202).state(), State::Closed, "it has its own now");
    assert!(keyed.peek(&202).is_some() && keyed.peek(&42).is_none());
    assert_eq!((keyed.len(), keyed.overflowed()), (100, 3));
    assert_eq!(keyed.active().len(), 99);
}

// With one entry of many thousands to forget, a newcomer does not look for it to the end.
#[test]
fn a_newcomer_looks_at_a_bounded_number_of_entries() {
    const KEYS: u64 = 4_000;
    let keyed = Keyed::<u64, _>::each(one_at_once()).max_keys(KEYS as usize).build().unwrap();
    let mut held: Vec<_> = (0..KEYS).map(|key| keyed.get(&key)).collect();
    // Takes all the chances that there are, so that only those who hold entries keep them.
    (KEYS..2 * KEYS).for_each(|key| drop(keyed.get(&key)));
    assert_eq!(keyed.overflowed(), KEYS);
    let mut found = 0;
    for free in 0..40 {
        drop(held.swap_remove(free));
        let before = keyed.overflowed();
        let newcomer = keyed.get(&(3 * KEYS + free as u64));
        found += usize::from(keyed.overflowed() == before);
        held.push(newcomer);
    }
    assert!(found < 40, "each of 40 was found at once, wherever it stood");
}

#[test]
fn the_overflow_may_be_chosen_or_is_made_for_the_first_that_needs_it() {
    let made = Arc::new(AtomicUsize::new(0));
    let builder = || {
        let made = made.clone();
        Keyed::builder(move |_: &usize| {
            made.fetch_add(1, SeqCst);
            touchy().build().unwrap()
        })
    };
    let chosen = touchy().build().unwrap();
    chosen.force_open();
    for (builder, state, most) in [(builder().overflow(chosen), State::ForcedOpen, 1), (builder(), State::Closed, 2)] {
        made.store(0, SeqCst);
        let keyed = builder.max_keys(1).build().unwrap();
        fail(&keyed.get(&0));
        (1..10).for_each(|key| assert_eq!(keyed.get(&key).state(), state));
        assert_eq!(made.load(SeqCst), most, "nothing is made in vain");
    }
}

#[test]
fn what_was_used_stays_and_what_was_not_goes_first() {
    for max in [2, 10, 100, 1_000] {
        let keyed = breakers::<usize>(max);
        (0..max).for_each(|key| drop(keyed.get(&key)));
        let (used, unused) = (0..max / 2, max / 2..max);
        used.clone().for_each(|key| drop(keyed.get(&key)));
        // As many newcomers as there are that nobody uses.
        unused.clone().for_each(|key| drop(keyed.get(&(max + key))));
        assert!(used.clone().all(|key| keyed.peek(&key).is_some()), "of {max}");
        assert!(unused.clone().all(|key| keyed.peek(&key).is_none()), "of {max}");

        // A flood, while the same are used.
        for newcomer in 0..20 * max {
            let _ = keyed.get(&(10 * max + newcomer));
            used.clone().filter(|key| key % 16 == newcomer % 16).for_each(|key| drop(keyed.get(&key)));
        }
        assert!(max < 100 || used.clone().all(|key| keyed.peek(&key).is_some()), "of {max}");
    }
}

#[test]
fn looking_is_not_using() {
    let keyed = breakers::<usize>(2);
    let _ = (keyed.get(&1), keyed.get(&2), keyed.get(&2));
    (0..3).for_each(|_| assert!(keyed.peek(&1).is_some()));
    assert!(keyed.peek(&9).is_none() && keyed.len() == 2);
    let _ = keyed.get(&3);
    assert!(keyed.peek(&1).is_none() && keyed.peek(&2).is_some());
}

// ---------------------------------------------------------------- never doubled

#[test]
fn what_somebody_holds_is_not_forgotten() {
    let limits: Keyed<u64, _> = Keyed::each(one_at_once()).max_keys(4).build().unwrap();
    let policies: Keyed<u64, _> =
        Keyed::each(Policy::plain("all").concurrency_limit(one_at_once())).max_keys(4).build().unwrap();
    let retries: Keyed<u64, _> = Keyed::each(Retry::constant(ms(1))).max_keys(4).build().unwrap();
    fn held<H: buttress::keyed::PerKey, T>(keyed: &Keyed<u64, H>, hold: impl Fn(H) -> T) {
        let flood = || (100..200).for_each(|key| drop(keyed.get(&key)));
        let held = hold(keyed.get(&1));
        flood();
        assert!(keyed.peek(&1).is_some());
        drop(held);
        flood();
        assert!(keyed.peek(&1).is_none());
    }
    held(&limits, |limit| limit);
    held(&limits, |limit| limit.try_acquire().unwrap());
    held(&limits, |limit| limit.layer());
    held(&limits, |limit| limit.layer().layer(Echo));
    held(&limits, |limit| limit.layer().layer(service_fn(|_: ()| pending::<Result<(), Error<()>>>())).call(()));
    held(&policies, |policy| policy);
    held(&policies, |policy| thread::scope(|scope| scope.spawn(|| policy.clone()).join().unwrap()));
    held(&policies, |policy| policy.layer().layer(Echo));
    held(&policies, |policy| policy.concurrency_limit().cloned());
    held(&policies, |policy| policy.concurrency_limit().unwrap().try_acquire().unwrap());
    held(&policies, |policy| policy.layer().layer(service_fn(|_: ()| pending::<Result<(), Error<()>>>())).call(()));
    held(&retries, |retry| retry);
    let of_layer = policies.layer(|_: &()| 1).layer(service_fn(|_: ()| pending::<Result<(), Error<()>>>()));
    held(&policies, |_| of_layer.clone().call(()));
}

#[test]
fn a_service_of_the_layer_keeps_nothing_from_being_forgotten_once_its_calls_are_over() {
    let keyed: Keyed<u64, _> =
        Keyed::each(Policy::plain("all").concurrency_limit(one_at_once())).max_keys(4).build().unwrap();
    let mut service = keyed.layer(|n: &u64| *n).layer(Echo);
    (0..1_000).for_each(|key| drop(service.call(key)));
    assert_eq!((keyed.len(), keyed.overflowed()), (4, 0));
}

/// Threads take permits of few keys, in a map that has no room for all of them.
fn never_doubled<H: buttress::keyed::PerKey>(
    keyed: &Keyed<usize, H>,
    run: impl Fn(&H, &mut dyn FnMut()) -> bool + Sync,
) {
    const KEYS: usize = 6;
    let in_use: Vec<_> = (0..KEYS).map(|_| AtomicUsize::new(0)).collect();
    let ran = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 1..=4 {
            let (in_use, ran, run) = (&in_use, &ran, &run);
            scope.spawn(move || {
                for key in random(seed * 0x9e37_79b9).take(20_000).map(|n| n as usize % KEYS) {
                    let handle = keyed.get(&key);
                    if key % 2 == 0 {
                        thread::yield_now(); // between getting it and using it
                    }
                    let mut work = || {
                        assert_eq!(in_use[key].fetch_add(1, SeqCst), 0, "two at once for {key}");
                        thread::yield_now();
                        in_use[key].fetch_sub(1, SeqCst);
                    };
                    ran.fetch_add(usize::from(run(&handle, &mut work)), SeqCst);
                    assert!(keyed.len() <= keyed.max_keys());
                }
            });
        }
    });
    assert!(ran.load(SeqCst) > 1_000, "{ran:?}");
}

#[test]
fn a_limit_is_never_doubled_by_being_forgotten() {
    // The overflow admits nobody, so whoever gets in does so by the key's own.
    let nobody = one_at_once().build().unwrap();
    nobody.resize(0);
    let limits = Keyed::each(one_at_once()).max_keys(3).overflow(nobody.clone()).build().unwrap();
    never_doubled(&limits, |limit, work| limit.try_acquire().map(|_permit| work()).is_ok());

    let none = Policy::plain("none").concurrency_limit(&nobody).build().unwrap();
    let policies =
        Keyed::each(Policy::plain("one").concurrency_limit(one_at_once())).max_keys(3).overflow(none).build().unwrap();
    never_doubled(&policies, |policy, work| {
        let mut service = policy.layer().layer(service_fn(|_: ()| ready(Ok::<_, Error<()>>(()))));
        // It has its permit from `call` until it is dropped.
        let call = service.call(());
        let admitted = policy.concurrency_limit().is_some_and(|limit| limit.max_in_flight() > 0)
            && !format!("{call:?}").contains("rejected");
        admitted.then(work).is_some()
    });
}

// What it has found out about a service that is down is not forgotten, as an open circuit is not.
#[tokio::test(start_paused = true)]
async fn a_limit_that_holds_back_is_not_forgotten() {
    let limits = Keyed::each(ConcurrencyLimit::builder().adaptive(Headroom::default()).hold_back(true));
    let limits: Keyed<u64, _> = limits.max_keys(2).build().unwrap();
    for _ in 0..6 {
        assert!(limits.get(&1).call(async { Err::<(), _>("down") }).await.is_err());
        assert!(limits.get(&2).call(async { Ok::<_, &str>(()) }).await.is_ok());
        tokio::time::sleep(ms(50)).await;
    }
    let active: Vec<_> = limits.active().into_iter().map(|(key, _)| key).collect();
    assert_eq!(active, [1]);
    (3..100).for_each(|key| drop(limits.get(&key)));
    assert!(limits.peek(&1).is_some() && limits.peek(&2).is_none());
}

#[test]
fn a_limit_that_all_keys_share_does_not_keep_them_from_being_forgotten() {
    let all = one_at_once().build().unwrap();
    let each = Policy::plain("each").circuit_breaker(touchy()).concurrency_limit(&all);
    let keyed: Keyed<u64, _> = Keyed::each(each).max_keys(4).build().unwrap();
    let _busy = all.try_acquire().unwrap();
    fail(keyed.get(&1_000).circuit_breaker().unwrap());
    (0..100).for_each(|key| drop(keyed.get(&key)));
    assert_eq!((keyed.len(), keyed.overflowed()), (4, 0));
    assert!(keyed.peek(&1_000).is_some());
}

#[test]
fn a_breaker_that_was_built_alone_is_not_forgotten_while_it_is_open() {
    let made = |_: &u64| Policy::plain("each").circuit_breaker(touchy().build().unwrap()).build().unwrap();
    let keyed = Keyed::builder(made).max_keys(4).build().unwrap();
    fail(keyed.get(&1_000).circuit_breaker().unwrap());
    (0..100).for_each(|key| drop(keyed.get(&key)));
    assert_eq!(keyed.peek(&1_000).unwrap().circuit_breaker().unwrap().state(), State::Open);
}

// ---------------------------------------------------------------- code of the user's

#[test]
fn a_closure_that_panics_takes_no_place_and_breaks_nothing() {
    let keyed = Keyed::builder(|key: &u64| {
        assert!(key % 2 == 0, "odd");
        touchy().build().unwrap()
    });
    let keyed = keyed.max_keys(2).build().unwrap();
    for key in 0..10 {
        let got = catch_unwind(AssertUnwindSafe(|| keyed.get(&key)));
        assert_eq!(got.is_err(), key % 2 == 1);
    }
    assert_eq!(keyed.len(), 1, "the last one has had a place made for it");
    let _ = [2, 4].map(|key| fail(&keyed.get(&key)));
    assert!(catch_unwind(AssertUnwindSafe(|| keyed.get(&7))).is_err(), "the overflow, for which it is asked too");
    assert_eq!(keyed.get(&8).state(), State::Closed);
    assert_eq!(keyed.len(), 2);
}

#[test]
fn a_closure_that_asks_for_other_keys_does_not_hang_not_even_without_room() {
    // With room for one, nothing is there yet that could be forgotten when it asks.
    for max in [1, 2] {
        let itself: Arc<OnceLock<Keyed<u64, CircuitBreaker>>> = Arc::default();
        let keyed = {
            let itself = itself.clone();
            Keyed::builder(move |key: &u64| {
                if *key > 0 {
                    drop(itself.get().unwrap().get(&(key - 1)));
                }
                let breaker = touchy().build().unwrap();
                breaker.force_open();
                breaker
            })
        };
        let _ = itself.set(keyed.max_keys(max).build().unwrap());
        let keyed = itself.get().unwrap();
        assert_eq!(keyed.get(&9).state(), State::ForcedOpen);
        assert_eq!(keyed.get(&9).state(), State::ForcedOpen);
        assert_eq!(keyed.len(), max);
        assert!(keyed.overflowed() > 0);
    }
}

/// Looks at the map, as it is dropped.
#[derive(Clone)]
struct Nosy(Arc<OnceLock<Keyed<u64, Policy<NosyKind>>>>);

type NosyKind = buttress::Kind<Nosy, buttress::retry::Once>;

impl<T, E> Classify<T, E> for Nosy {
    fn classify(&self, outcome: Result<&T, &E>) -> Verdict {
        ByResult.classify(outcome)
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        if let Some(keyed) = self.0.get() {
            assert!(keyed.entries().len() <= 4);
            (0..8).for_each(|key| drop(keyed.peek(&key)));
        }
    }
}

#[test]
fn what_is_forgotten_is_dropped_outside_of_the_locks() {
    let itself = Arc::default();
    let nosy = Nosy(Arc::clone(&itself));
    let made = move |_: &u64| Policy::plain("nosy").classify(nosy.clone()).build().unwrap();
    let _ = itself.set(Keyed::builder(made).max_keys(4).build().unwrap());
    let keyed = itself.get().unwrap();
    (0..1_000).for_each(|key| drop(keyed.get(&key)));
    assert_eq!(keyed.len(), 4);
}

/// Its hash says next to nothing, and it may be told to panic.
#[derive(Clone, Debug)]
struct Poor(u64);

static SPITEFUL: AtomicBool = AtomicBool::new(false);

impl Hash for Poor {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0 % 3).hash(state);
    }
}

impl PartialEq for Poor {
    fn eq(&self, other: &Self) -> bool {
        assert!(self.0 < 1 << 40 || !SPITEFUL.load(SeqCst), "asked for");
        self.0 == other.0
    }
}

impl Eq for Poor {}

#[test]
fn a_key_that_panics_when_compared_leaves_the_others_in_peace() {
    let keyed = breakers::<Poor>(8);
    (0..6).for_each(|key| fail(&keyed.get(&Poor(key))));
    let _ = keyed.get(&Poor(1 << 40));
    SPITEFUL.store(true, SeqCst);
    let asked = catch_unwind(AssertUnwindSafe(|| (1 << 40..(1 << 40) + 3).for_each(|key| drop(keyed.get(&Poor(key))))));
    SPITEFUL.store(false, SeqCst);
    assert!(asked.is_err());
    (0..6).for_each(|key| assert_eq!(keyed.get(&Poor(key)).state(), State::Open));
    (100..200).for_each(|key| drop(keyed.get(&Poor(key))));
    assert_eq!((keyed.len(), keyed.entries().len(), keyed.active().len(), keyed.overflowed()), (8, 8, 6, 0));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Get(u64),
    Open(u64),
    Reset(u64),
    Hold(u64),
    LetGo,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..24_u64;
    prop_oneof![
        6 => key.clone().prop_map(Step::Get),
        1 => key.clone().prop_map(Step::Open),
        1 => key.clone().prop_map(Step::Reset),
        1 => key.prop_map(Step::Hold),
        1 => Just(Step::LetGo),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Against a set of what must be kept. The keys' hashes meet all the time.
    #[test]
    fn whatever_is_done_the_bound_holds_and_what_is_busy_stays(
        max in 1..12_usize,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let nothing = touchy().build().unwrap();
        nothing.force_closed();
        let keyed = Keyed::<Poor, _>::each(touchy()).max_keys(max).overflow(nothing).build().unwrap();
        let (mut open, mut held) = (HashSet::new(), Vec::new());
        for step in steps {
            // The overflow is in a state that none is in otherwise.
            let get = |key| Some(keyed.get(&Poor(key))).filter(|breaker| breaker.state() != State::ForcedClosed);
            match step {
                Step::Get(key) => {
                    let kept = keyed.peek(&Poor(key)).is_some();
                    let got = get(key);
                    prop_assert!(got.is_some() || !kept);
                    prop_assert_eq!(keyed.peek(&Poor(key)).is_some(), got.is_some());
                }
                Step::Open(key) => if let Some(breaker) = get(key) {
                    breaker.force_open();
                    open.insert(key);
                },
                Step::Reset(key) => if let Some(breaker) = get(key) {
                    breaker.reset();
                    open.remove(&key);
                },
                Step::Hold(key) => held.extend(get(key).map(|breaker| (key, breaker))),
                Step::LetGo => held.truncate(held.len() / 2),
            }
            let entries = keyed.entries();
            let kept: HashSet<_> = entries.iter().map(|(key, _)| key.0).collect();
            prop_assert_eq!(kept.len(), entries.len(), "each key once");
            prop_assert_eq!(kept.len(), keyed.len());
            prop_assert!(kept.len() <= max);
            prop_assert!(open.is_subset(&kept) && held.iter().all(|(key, _)| kept.contains(key)));
            prop_assert!(kept.iter().all(|key| keyed.peek(&Poor(*key)).is_some()), "each can be found");
            let active: HashSet<_> = keyed.active().iter().map(|(key, _)| key.0).collect();
            prop_assert_eq!(&active, &open);
        }
    }
}

// ---------------------------------------------------------------- settings, and what is seen

#[test]
fn bad_settings_are_told_all_at_once_and_before_any_call() {
    let error = Keyed::<u64, _>::each(touchy().failure_rate(2.0).probes(0)).max_keys(0).build().unwrap_err();
    let named: Vec<_> = error.problems().iter().map(|problem| problem.setting.as_str()).collect();
    assert_eq!(named, ["keyed.max_keys", "circuit_breaker.failure_rate", "circuit_breaker.probes"]);
    assert!(Keyed::builder(|_: &u64| touchy().build().unwrap()).max_keys((1 << 24) + 1).build().is_err());
    assert!(Keyed::builder(|_: &u64| touchy().build().unwrap()).max_keys(1 << 24).build().is_ok());
}

#[test]
fn it_shows_itself_without_its_keys() {
    let keyed = breakers::<&str>(4);
    let _ = keyed.get(&"a secret");
    assert_eq!(format!("{keyed:?}"), "Keyed { keys: 1, max_keys: 4, overflowed: 0, .. }");
    let service = keyed.layer(|key: &&'static str| *key).layer(Echo);
    assert!(format!("{service:?}").starts_with("Guarded { by: Keyed { keys: 1"));
}

#[test]
fn it_is_send_and_sync_and_so_are_its_services() {
    fn check<T: Clone + Send + Sync + 'static>(_: &T) {}
    let keyed: Keyed<String, _> = Keyed::each(Policy::plain("all")).build().unwrap();
    check(&keyed);
    let service = keyed
        .layer(|key: &String| key.clone())
        .layer(service_fn(|_: String| -> Ready<Result<(), Error<()>>> { ready(Ok(())) }));
    check(&service);
}

// ---------------------------------------------------------------- a server

#[cfg(all(feature = "http", feature = "reqwest"))]
#[tokio::test]
async fn in_axum_all_connections_share_the_limit_of_a_tenant() {
    use axum::{Router, extract::Request, routing::get};
    use tokio::{net::TcpListener, sync::mpsc, time::timeout};

    timeout(secs(30), async {
        let (entered, mut seen) = mpsc::unbounded_channel();
        let tenants: Keyed<String, _> = Keyed::each(one_at_once()).build().unwrap();
        let of = |request: &Request| request.headers().get("tenant").map_or(String::new(), |v| format!("{v:?}"));
        let app = Router::new()
            .route(
                "/stall",
                get(move || {
                    entered.send(()).unwrap();
                    pending::<()>()
                }),
            )
            .route("/", get(|| async {}))
            .layer(tenants.layer(of));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });

        // A client each, so a connection each.
        let ask = |path: &str, tenant: &'static str| {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            client.get(format!("{url}{path}")).header("tenant", tenant).send()
        };
        let stalls = tokio::spawn(ask("/stall", "one"));
        seen.recv().await.unwrap();
        assert_eq!(ask("/", "one").await.unwrap().status(), 503);
        assert_eq!(ask("/", "two").await.unwrap().status(), 200);
        assert_eq!(tenants.active().len(), 1);
        stalls.abort();
        while !tenants.active().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(ask("/", "one").await.unwrap().status(), 200);
    })
    .await
    .unwrap();
}
