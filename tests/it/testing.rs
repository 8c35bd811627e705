//! The kit for tests: services that do what they are told, chaos, and simulations by seed.
#![cfg(feature = "testing")]
#![allow(clippy::disallowed_methods)] // tokio's clock, to see how long things took

use std::{io, task::Poll, time::Duration};

use buttress::{
    Backoff, CircuitBreaker, Jitter, Policy, Retry,
    testing::{Act, Calls, Chance, Chaos, Counted, Scripted, Simulation, run_paused},
};
use proptest::prelude::*;
use tokio::time::{Instant, timeout};
use tokio_test::{assert_pending, assert_ready, assert_ready_eq, assert_ready_err, assert_ready_ok, task::spawn};
use tower::{Layer, Service, ServiceExt};

use crate::support::{Counts, ms, secs};

type Script = Scripted<u64, &'static str>;

/// How often each end has come about: answered, failed, panicked, dropped, and still in flight.
fn ends(calls: &Calls) -> [u64; 5] {
    let Counted { started, answered, failed, panicked, dropped, in_flight, .. } = calls.counted();
    let ends = [answered, failed, panicked, dropped, in_flight];
    assert_eq!(ends.iter().sum::<u64>(), started, "each call is in one of them");
    ends
}

/// As `ServiceExt::ready`, for requests that say nothing.
async fn ready<S: Service<(), Error: std::fmt::Debug>>(service: &mut S) -> &mut S {
    service.ready().await.unwrap()
}

// ---------------------------------------------------------------- a script

#[tokio::test(start_paused = true)]
async fn a_script_is_played_in_its_order_and_counted() {
    let service = Script::in_turn([Act::answer(1), Act::error("down"), Act::answer(2).after(ms(20)), Act::hang()]);
    let started = Instant::now();
    assert_eq!(service.clone().oneshot(()).await, Ok(1));
    assert_eq!(service.clone().oneshot(()).await, Err("down"));
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(service.clone().oneshot(()).await, Ok(2));
    assert_eq!(started.elapsed(), ms(20));
    assert!(timeout(secs(60), service.clone().oneshot(())).await.is_err(), "it hangs");
    assert_eq!(ends(&service.calls()), [2, 1, 0, 1, 0]);
    assert_eq!(service.calls().starts(), [ms(0), ms(0), ms(0), ms(20)]);
}

#[tokio::test(start_paused = true)]
async fn how_many_run_at_once_is_counted() {
    let mut service = Script::by(|call| Act::answer(call).after(ms(10)));
    let mut running = Vec::new();
    for _ in 0..3 {
        ready(&mut service).await;
        running.push(spawn(service.call(())));
    }
    assert!(running.iter_mut().all(|call| call.poll().is_pending()));
    assert_eq!(service.calls().counted().in_flight, 3);
    tokio::time::advance(ms(10)).await;
    assert_ready_eq!(running[2].poll(), Ok(2));
    assert_ready_eq!(running[0].poll(), Ok(0));
    assert_eq!(ends(&service.calls()), [2, 0, 0, 0, 1], "one that has ended is not in flight before it is dropped");
    drop(running);
    let counted = service.calls().counted();
    assert_eq!((counted.dropped, counted.most_in_flight), (1, 3));
}

#[tokio::test]
async fn a_panic_on_purpose_is_counted_once() {
    let service = Script::in_turn([Act::panic()]);
    let panicked = tokio::spawn(service.clone().oneshot(())).await.unwrap_err();
    assert_eq!(panicked.into_panic().downcast_ref(), Some(&"a panic on purpose"));
    assert_eq!(ends(&service.calls()), [0, 0, 1, 0, 0]);
}

#[test]
#[should_panic(expected = "call 3 of a script that has 2 acts")]
fn a_script_has_an_end() {
    let service = Script::in_turn([Act::answer(1), Act::answer(2)]);
    for _ in 0..3 {
        let _ = assert_ready!(spawn(service.clone().oneshot(())).poll());
    }
}

#[test]
#[should_panic(expected = "called without having been polled ready")]
fn a_clone_that_was_not_polled_ready_may_not_be_called() {
    let mut service = Script::by(Act::answer);
    assert_ready!(spawn(ready(&mut service)).poll());
    drop(service.clone().call(()));
}

#[test]
#[should_panic(expected = "called without having been polled ready")]
fn being_ready_is_good_for_one_call() {
    let mut service = Script::by(Act::answer);
    assert_ready!(spawn(ready(&mut service)).poll());
    drop(service.call(()));
    drop(service.call(()));
}

#[tokio::test(start_paused = true)]
async fn readiness_can_take_its_time() {
    let mut service = Script::by(Act::answer).ready_after(ms(30));
    for _ in 0..2 {
        let started = Instant::now();
        ready(&mut service).await;
        assert_eq!(started.elapsed(), ms(30), "for each call anew");
        assert!(service.call(()).await.is_ok());
    }
}

#[tokio::test]
async fn one_seed_has_one_fate_for_each_call() {
    let fates = |seed| {
        let service = Script::by_chance(seed, |chance| match chance.happens(0.5) {
            true => Act::answer(chance.number()),
            false => Act::error("down"),
        });
        let all = (0..100).map(move |_| assert_ready!(spawn(service.clone().oneshot(())).poll()));
        all.collect::<Vec<_>>()
    };
    assert_eq!(fates(1), fates(1));
    assert_ne!(fates(1), fates(2));
    let failed = fates(1).iter().filter(|fate| fate.is_err()).count();
    assert!((30..70).contains(&failed), "{failed}");
}

// ---------------------------------------------------------------- chaos

/// Answers at once with the call's number.
fn numbers() -> Scripted<u64, io::Error> {
    Scripted::by(Act::answer)
}

#[tokio::test(start_paused = true)]
async fn chaos_of_one_kind_is_that_and_nothing_else() {
    let service = numbers();
    let fails = Chaos::builder().errors(1.0, || io::Error::other("chaos")).build().unwrap();
    let error = fails.layer().layer(service.clone()).oneshot(()).await.unwrap_err();
    assert_eq!((error.to_string(), service.calls().counted().started), ("chaos".to_owned(), 0), "it is not asked");

    let delays = Chaos::builder().delays(1.0, ms(5)..=ms(9)).build().unwrap();
    let started = Instant::now();
    assert_eq!(delays.layer().layer(service.clone()).oneshot(()).await.unwrap(), 0);
    assert!((ms(5)..=ms(10)).contains(&started.elapsed()), "{:?}", started.elapsed());

    let hangs = Chaos::builder().hangs(1.0).build().unwrap();
    assert!(timeout(secs(3600), hangs.layer().layer(service.clone()).oneshot(())).await.is_err());

    let panics = Chaos::builder().panics(1.0).build().unwrap();
    assert!(tokio::spawn(panics.layer().layer(service.clone()).oneshot(())).await.unwrap_err().is_panic());

    assert_eq!(service.calls().counted().started, 1);
    for (chaos, counted) in
        [(fails, [1, 0, 0, 0]), (delays, [0, 1, 0, 0]), (hangs, [0, 0, 1, 0]), (panics, [0, 0, 0, 1])]
    {
        let injected = chaos.injected();
        assert_eq!([injected.errors, injected.delays, injected.hangs, injected.panics], counted);
        assert_eq!(injected.calls, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_delay_comes_on_top_of_what_the_service_takes() {
    let delays = Chaos::builder().delays(1.0, ms(100)..=ms(100)).build().unwrap();
    let service: Scripted<_, ()> = Scripted::by(|call| Act::answer(call).after(ms(100)));
    let started = Instant::now();
    assert_eq!(delays.layer().layer(service).oneshot(()).await, Ok(0));
    assert_eq!(started.elapsed(), ms(200));
}

/// Otherwise some faults would never meet.
#[tokio::test]
async fn chaos_and_a_script_of_one_seed_are_not_in_step() {
    for seed in 0..3 {
        let chaos = Chaos::builder().seed(seed).errors(0.5, || "chaos").build().unwrap();
        let halves = |chance: &mut Chance| Act::<_, ()>::answer(chance.happens(0.5));
        let (scripted, service) = (Scripted::by_chance(seed, halves), chaos.layer().layer(Scripted::by(Act::answer)));
        let mut met = [0; 4];
        for _ in 0..1000 {
            let scripted: bool = assert_ready_ok!(spawn(scripted.clone().oneshot(())).poll());
            let failed = assert_ready!(spawn(service.clone().oneshot(())).poll()).is_err();
            met[usize::from(scripted) * 2 + usize::from(failed)] += 1;
        }
        assert!(met.iter().all(|met| (190..310).contains(met)), "{met:?}");
    }
}

#[tokio::test]
async fn rates_of_faults_are_what_they_say_and_add_up() {
    let chaos = Chaos::builder().panics(0.25).hangs(0.25).errors(0.5, || "chaos").build().unwrap();
    let service = chaos.layer().layer(Script::by(Act::answer));
    for _ in 0..1000 {
        let call = spawn(service.clone().oneshot(()));
        let mut call = std::panic::AssertUnwindSafe(call);
        let _ = std::panic::catch_unwind(move || call.poll());
    }
    let injected = chaos.injected();
    assert_eq!(injected.panics + injected.hangs + injected.errors, 1000, "{injected:?}");
    assert!((190..310).contains(&injected.panics) && (190..310).contains(&injected.hangs), "{injected:?}");
    let error = Chaos::builder().hangs(0.6).errors(0.5, || "chaos").build().unwrap_err();
    assert_eq!(error.problems()[0].setting, "chaos.errors");
}

#[test]
fn a_script_that_panics_has_panicked_and_was_not_dropped() {
    let service: Script = Scripted::by(|call| panic!("no act for call {call}"));
    let mut called = service.clone();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        drop(assert_ready!(spawn(ready(&mut called)).poll()).call(()));
    }));
    assert!(caught.is_err());
    assert_eq!(ends(&service.calls()), [0, 0, 1, 0, 0]);
}

#[tokio::test]
async fn a_seed_of_chaos_meets_the_same_calls() {
    let failed = |seed| {
        let chaos = Chaos::builder().seed(seed).errors(0.2, || io::Error::other("chaos")).build().unwrap();
        let service = chaos.layer().layer(numbers());
        let calls = (0..200).map(|_| assert_ready!(spawn(service.clone().oneshot(())).poll()).is_err());
        let failed: Vec<_> = calls.collect();
        assert_eq!(failed.iter().filter(|failed| **failed).count() as u64, chaos.injected().errors);
        failed
    };
    assert_eq!(failed(1), failed(1));
    assert_ne!(failed(1), failed(2));
    let count = failed(1).iter().filter(|failed| **failed).count();
    assert!((20..60).contains(&count), "{count}");
}

#[tokio::test]
async fn the_bad_times_begin_and_end() {
    let chaos = Chaos::builder().errors(1.0, || io::Error::other("chaos")).build().unwrap();
    let mut service = chaos.layer().layer(numbers());
    assert!(chaos.is_enabled() && ready(&mut service).await.call(()).await.is_err());
    chaos.set_enabled(false);
    assert!(!chaos.is_enabled() && ready(&mut service).await.call(()).await.is_ok());
    chaos.clone().set_enabled(true);
    assert!(ready(&mut service).await.call(()).await.is_err());
    assert_eq!(chaos.injected().calls, 2, "only bad times are counted");
}

// HAZARD: C2
#[tokio::test]
async fn a_call_that_chaos_fails_gives_back_what_the_service_reserved_for_it() {
    let chaos = Chaos::builder().errors(1.0, || io::Error::other("chaos")).build().unwrap();
    let limited = tower::limit::ConcurrencyLimit::new(numbers(), 1);
    let mut service = chaos.layer().layer(limited.clone());
    assert!(ready(&mut service).await.call(()).await.is_err());
    let mut other = limited;
    assert_ready!(spawn(ready(&mut other)).poll(), "the one permit is free, though `service` lives");
}

#[tokio::test]
async fn chaos_leaves_readiness_alone() {
    let chaos = Chaos::builder().errors(1.0, || io::Error::other("chaos")).build().unwrap();
    let mut service = spawn(chaos.layer().layer(numbers().ready_after(secs(1))));
    assert_pending!(service.enter(|cx, mut service| Service::<()>::poll_ready(&mut *service, cx)));
}

#[test]
fn chaos_out_of_range_is_refused_setting_by_setting() {
    let error = Chaos::builder()
        .errors(f64::NAN, || "no")
        .delays(-0.1, ms(2)..=ms(1))
        .hangs(1.1)
        .panics(f64::INFINITY)
        .build()
        .unwrap_err();
    let refused: Vec<_> = error.problems().iter().map(|problem| problem.setting.as_str()).collect();
    assert_eq!(refused, ["chaos.errors", "chaos.delays", "chaos.hangs", "chaos.panics", "chaos.delays"]);
    assert!(Chaos::builder().errors(0.0, || "no").hangs(1.0).build().is_ok());
}

#[tokio::test]
async fn nothing_is_injected_unless_it_is_asked_for() {
    let chaos = Chaos::<io::Error>::builder().build().unwrap();
    let counts = Counts::default();
    let service = chaos.layer().layer(tower::service_fn(|()| {
        let running = counts.enter();
        async move {
            drop(running);
            Ok::<_, io::Error>(())
        }
    }));
    for _ in 0..100 {
        assert_ready_ok!(spawn(service.clone().oneshot(())).poll());
    }
    let injected = chaos.injected();
    assert_eq!((injected.calls, injected.errors + injected.delays + injected.hangs + injected.panics), (100, 0));
    assert_eq!(counts.calls(), 100);
}

// ---------------------------------------------------------------- one seed, one run

/// When a policy asked again, and when its circuit let probes in.
fn times(seed: u64) -> Vec<Duration> {
    run_paused(async move {
        let service: Scripted<u64, &str> = Scripted::by(|_| Act::error("down"));
        let policy = Policy::cloned("seeded")
            .retry(Retry::exponential(ms(50)).max_attempts(4).without_budget())
            .circuit_breaker(
                CircuitBreaker::builder()
                    .consecutive_failures(3)
                    .open_time(Backoff::constant(secs(1)).jitter(Jitter::Equal))
                    .seed(seed),
            )
            .seed(seed)
            .build()
            .unwrap();
        let client = policy.wrap(service.clone());
        for _ in 0..20 {
            let _ = client.send(()).await;
            tokio::time::sleep(ms(100)).await;
        }
        service.calls().starts()
    })
}

#[test]
fn a_policy_with_a_seed_does_the_same_in_every_run() {
    assert_eq!(times(1), times(1));
    assert_ne!(times(1), times(2));
}

#[test]
fn a_part_keeps_the_seed_of_its_own() {
    let delays = |policy_seed: u64| {
        run_paused(async move {
            let service: Scripted<u64, &str> = Scripted::by(|_| Act::error("down"));
            let retry = Retry::exponential(ms(50)).max_attempts(4).seed(7);
            let policy = Policy::cloned("seeded").retry(retry).seed(policy_seed).build().unwrap();
            let _ = policy.wrap(service.clone()).send(()).await;
            service.calls().starts()
        })
    };
    assert_eq!(delays(1), delays(2));
    assert_eq!(delays(1).len(), 4);
}

#[test]
fn a_simulation_moves_its_own_clock() {
    let started = std::cell::Cell::new(false);
    Simulation::new().cases(50).first_seed(3).run(|seed| {
        started.set(true);
        async move {
            let time = Chance::new(seed).duration(Duration::ZERO..=secs(86_000));
            let before = Instant::now();
            tokio::time::sleep(time).await;
            let passed = before.elapsed();
            assert!(passed >= time && passed < time + ms(2), "{passed:?}");
        }
    });
    assert!(started.get());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn chance_stays_in_its_range(seed: u64, end: u64, start in 0_u64..1 << 40, span in 0_u64..1 << 40) {
        let mut chance = Chance::new(seed);
        prop_assert!(chance.below(end) < end.max(1));
        prop_assert!((0.0..1.0).contains(&chance.unit()));
        let (start, end) = (Duration::from_nanos(start), Duration::from_nanos(start + span));
        prop_assert!((start..=end).contains(&chance.duration(start..=end)));
    }
}

#[test]
fn what_a_kit_shows_of_itself_names_its_counts() {
    let service = numbers();
    assert!(matches!(spawn(service.clone().oneshot(())).poll(), Poll::Ready(Ok(0))));
    let shown = format!("{service:?}");
    assert!(shown.contains("answered: 1"), "{shown}");
    let chaos = Chaos::builder().seed(9).errors(1.0, || "no").build().unwrap();
    let service = chaos.layer().layer(Script::by(Act::answer));
    assert_ready_err!(spawn(service.clone().oneshot(())).poll());
    let shown = format!("{service:?} {:?}", chaos.layer());
    assert!(shown.contains("seed: 9") && shown.contains("errors: 1"), "{shown}");
}
