//! Delays keep their bounds and their spread, whatever they are made of.
#![allow(clippy::disallowed_methods)] // tells the time that a backoff took, by the paused clock

use std::{collections::HashSet, time::Duration};

use buttress::{Backoff, Jitter, Retry, RetryBuilder};
use proptest::prelude::*;
use tokio::time::Instant;

use crate::support::{ms, secs};

#[derive(Clone, Copy, Debug)]
enum Shape {
    Constant,
    Linear(Duration),
    Exponential(f64),
    Decorrelated,
}

#[derive(Clone, Copy, Debug)]
struct Recipe {
    shape: Shape,
    base: Duration,
    max: Duration,
}

impl Recipe {
    fn with(self, jitter: Jitter) -> Backoff {
        let backoff = match self.shape {
            Shape::Constant => Backoff::constant(self.base),
            Shape::Linear(step) => Backoff::linear(self.base, step),
            Shape::Exponential(factor) => Backoff::exponential(self.base).factor(factor),
            Shape::Decorrelated => Backoff::decorrelated(self.base),
        };
        backoff.max_delay(self.max).jitter(jitter)
    }
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::MAX),
        Just(Duration::from_nanos(1)),
        (0u64..100_000).prop_map(Duration::from_millis),
        any::<u64>().prop_map(Duration::from_nanos),
        (any::<u64>(), 0u32..1_000_000_000).prop_map(|(secs, nanos)| Duration::new(secs, nanos)),
    ]
}

fn number() -> impl Strategy<Value = f64> {
    let odd = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE, -0.0, 0.0, -1.0];
    prop_oneof![prop::sample::select(odd), any::<f64>(), 0.0..4.0]
}

fn recipe(factor: impl Strategy<Value = f64>) -> impl Strategy<Value = Recipe> {
    let shape = prop_oneof![
        Just(Shape::Constant),
        duration().prop_map(Shape::Linear),
        factor.prop_map(Shape::Exponential),
        Just(Shape::Decorrelated),
    ];
    (shape, duration(), duration()).prop_map(|(shape, base, max)| Recipe { shape, base, max })
}

fn attempt() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..50, any::<u32>(), Just(u32::MAX)]
}

const JITTERS: [Jitter; 3] = [Jitter::None, Jitter::Full, Jitter::Equal];

/// The generators and floats of a delay agree to this much of it.
fn nearly(a: Duration, b: Duration) -> bool {
    a.abs_diff(b) <= Duration::from_nanos(1) + a.max(b) / (1 << 30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    // HAZARD: R1, R2
    #[test]
    fn whatever_goes_in_a_delay_comes_out_between_its_bounds(
        recipe in recipe(number()),
        attempt in attempt(),
        previous in duration(),
        unit in number(),
    ) {
        let [none, full, equal] = JITTERS.map(|jitter| recipe.with(jitter).delay(attempt, previous, unit));
        prop_assert!(none.max(full).max(equal) <= recipe.max);
        if !matches!(recipe.shape, Shape::Decorrelated) {
            prop_assert!(full <= none && equal <= none && equal >= none / 2, "{:?} {:?} {:?}", none, full, equal);
        } else {
            prop_assert!(none == full && none == equal, "its jitter is its own");
            prop_assert!(none >= recipe.base.min(recipe.max));
            prop_assert!(none <= previous.max(recipe.base).saturating_mul(3));
        }
    }

    // HAZARD: R1
    #[test]
    fn chance_moves_a_delay_evenly_from_one_end_to_the_other(
        recipe in recipe(1.0..4.0),
        attempt in attempt(),
        previous in duration(),
        unit in 0.0f64..=1.0,
        more in 0.0f64..=1.0,
    ) {
        for jitter in JITTERS {
            let delay = |unit| recipe.with(jitter).delay(attempt, previous, unit);
            let (least, most) = (delay(0.0), delay(1.0));
            prop_assert!(delay(unit.min(more)) <= delay(unit.max(more)));
            prop_assert!(nearly(delay(0.5), least + (most - least) / 2));
            prop_assert_eq!((delay(f64::NAN), delay(-7.0), delay(7.0)), (least, least, most));
            match (recipe.shape, jitter) {
                (Shape::Decorrelated, _) => prop_assert_eq!(least, recipe.base.min(recipe.max)),
                (_, Jitter::Full) => prop_assert_eq!(least, Duration::ZERO),
                (_, Jitter::Equal) => prop_assert!(nearly(least, most / 2)),
                _ => prop_assert_eq!(least, most),
            }
        }
    }

    #[test]
    fn without_jitter_a_delay_never_gets_shorter_and_ends_at_the_cap(
        recipe in recipe(1.0..4.0),
        attempt in 0u32..u32::MAX,
    ) {
        let delay = |attempt| recipe.with(Jitter::None).delay(attempt, Duration::ZERO, 0.0);
        prop_assert!(delay(attempt) <= delay(attempt + 1));
        prop_assert_eq!(delay(0), delay(1), "attempts are counted from 1");
        prop_assert_eq!(delay(1), recipe.base.min(recipe.max));
    }
}

// HAZARD: R2
#[test]
fn a_backoff_of_zero_stays_zero() {
    for factor in [1.0, 2.0, 10.0, f64::MAX] {
        let backoff = Backoff::exponential(Duration::ZERO).factor(factor).jitter(Jitter::None);
        for attempt in [1, 2, 400, 1_000, 1_100, u32::MAX] {
            assert_eq!(
                backoff.delay(attempt, Duration::ZERO, 0.5),
                Duration::ZERO,
                "attempt {attempt}, factor {factor}"
            );
        }
    }
}

// HAZARD: R2
#[test]
fn the_third_delay_is_four_times_the_first_and_not_a_million_seconds() {
    let delays: Vec<_> = Backoff::exponential(ms(10)).jitter(Jitter::None).delays(1).take(3).collect();
    assert_eq!(delays, [ms(10), ms(20), ms(40)]);
}

// HAZARD: R1
#[test]
fn a_thousand_clients_that_have_reached_the_cap_do_not_march_in_step() {
    let at_the_cap = |backoff: Backoff| {
        let delays: Vec<_> = (0..1_000).map(|client| backoff.delays(client).nth(30).unwrap()).collect();
        let distinct = delays.iter().collect::<HashSet<_>>().len();
        assert!(distinct >= 900, "{distinct} distinct delays of 1,000 for {backoff:?}");
        (*delays.iter().min().unwrap(), *delays.iter().max().unwrap())
    };
    let cap = ms(100);
    for jitter in [Jitter::Full, Jitter::Equal] {
        let (first, step) = (ms(10), ms(10));
        for backoff in [Backoff::constant(cap), Backoff::linear(first, step), Backoff::exponential(first)] {
            let (shortest, longest) = at_the_cap(backoff.max_delay(cap).jitter(jitter));
            let least = if jitter == Jitter::Full { Duration::ZERO } else { cap / 2 };
            assert!(least <= shortest && shortest < least + cap / 20, "{shortest:?} is near the least");
            assert!(cap - cap / 20 < longest && longest <= cap, "{longest:?} is near the cap");
        }
    }
    let (shortest, longest) = at_the_cap(Backoff::decorrelated(ms(10)).max_delay(cap));
    assert!(ms(10) <= shortest && shortest < ms(20) && ms(90) < longest && longest <= cap);
}

// HAZARD: R1
#[test]
fn jitter_is_finer_than_seconds() {
    let backoff = Backoff::exponential(ms(50));
    let delays: HashSet<_> = (0..1_000).map(|client| backoff.delays(client).next().unwrap()).collect();
    assert!(delays.len() >= 900, "{} distinct delays of 1,000", delays.len());
    assert!(delays.iter().all(|delay| *delay <= ms(50)));
}

#[test]
fn a_sequence_of_delays_is_its_seeds() {
    let backoff = Backoff::exponential(ms(10));
    let delays = |seed| backoff.delays(seed).take(20).collect::<Vec<_>>();
    assert_eq!(delays(7), delays(7));
    assert_ne!(delays(7), delays(8));
}

/// How long each of 19 backoffs of one call took.
async fn waits(retry: &Retry) -> Vec<Duration> {
    let mut starts = Vec::new();
    let outcome = retry
        .run(|_| {
            starts.push(Instant::now());
            async { Err::<(), _>("no") }
        })
        .await;
    assert_eq!(outcome, Err(buttress::Error::Inner("no")));
    starts.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

fn twenty_attempts() -> RetryBuilder {
    Retry::constant(secs(10)).max_attempts(20).without_budget()
}

// HAZARD: R13
#[tokio::test(start_paused = true)]
async fn two_policies_and_two_calls_of_one_draw_their_own_jitter() {
    let (one, other) = (twenty_attempts().build().unwrap(), twenty_attempts().build().unwrap());
    let calls = [waits(&one).await, waits(&one).await, waits(&one.clone()).await, waits(&other).await];
    let distinct: HashSet<_> = calls.iter().collect();
    assert_eq!(distinct.len(), 4, "{calls:?}");
}

// HAZARD: R13
#[tokio::test(start_paused = true)]
async fn a_seed_makes_two_policies_draw_the_same_jitter_but_not_two_calls() {
    let seeded = || twenty_attempts().seed(42).build().unwrap();
    let (one, other) = (seeded(), seeded());
    let first = waits(&one).await;
    assert_eq!(first, waits(&other).await);
    let second = waits(&one.clone()).await;
    assert_ne!(second, first, "clones draw on from one generator");
    assert_eq!(second, waits(&other).await);
    assert_ne!(waits(&twenty_attempts().seed(43).build().unwrap()).await, first);
}
