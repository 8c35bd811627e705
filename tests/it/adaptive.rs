//! A limit that finds itself, and what it does while the service is down.

#![allow(clippy::disallowed_methods, reason = "a story looks at the clock, which is paused")]

use std::{
    convert::Infallible,
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use buttress::{
    ConcurrencyLimit, Deadline, Error, Partition, Policy, Reason, Rule, Verdict,
    concurrency_limit::{Aimd, Discipline, Gradient2, Headroom, Limit, Sample, Vegas},
};
use futures_util::{future::join_all, poll};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, yield_now},
    time::{Instant, advance, sleep, timeout},
};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::support::{Counts, ms, secs};

/// Always says this.
#[derive(Clone, Copy, Debug)]
struct Says(f64);

impl Limit for Says {
    fn initial(&self) -> f64 {
        self.0
    }

    fn update(&mut self, _: f64, _: &Sample) -> f64 {
        self.0
    }
}

/// A service of so many workers, each call of which takes 20 ms; what it cannot do waits.
#[derive(Clone)]
struct Workers {
    workers: Arc<Semaphore>,
    counts: Counts,
    fails: Arc<AtomicBool>,
}

impl Workers {
    fn new(workers: usize) -> Self {
        Self { workers: Arc::new(Semaphore::new(workers)), counts: Counts::default(), fails: Arc::default() }
    }

    async fn ask(&self) -> Result<(), &'static str> {
        let _running = self.counts.enter();
        if self.fails.load(SeqCst) {
            sleep(ms(1)).await;
            return Err("refused");
        }
        let _worker = self.workers.acquire().await.unwrap();
        sleep(ms(20)).await;
        Ok(())
    }
}

/// Calls that come every so many milliseconds, for as long as is said: how many were answered of all.
async fn load(policy: &Policy, service: &Workers, every: u64, lasts: u64) -> (usize, usize) {
    let mut calls = JoinSet::new();
    let began = Instant::now();
    while began.elapsed() < ms(lasts) {
        let (policy, service) = (policy.clone(), service.clone());
        calls.spawn(async move { policy.call(|| service.ask()).await.is_ok() });
        sleep(ms(every)).await;
    }
    let ends = calls.join_all().await;
    (ends.iter().filter(|ok| **ok).count(), ends.len())
}

fn standard() -> Policy {
    Policy::standard("service").deadline(secs(1)).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_overload_is_answered_as_far_as_the_service_can() {
    let (policy, service) = (standard(), Workers::new(4));
    assert_eq!(load(&policy, &service, 10, 2_000).await, (200, 200), "half of what it can do");
    // Four workers answer 200 a second; a thousand come.
    let (answered, of) = load(&policy, &service, 1, 5_000).await;
    assert_eq!(of, 5_000);
    assert!(answered >= 920, "{answered} of the 1,000 that it can do, and another second's in its line");
    let asked = service.counts.calls();
    assert!((asked - 200) * 4 <= answered * 5, "next to nothing was asked in vain: {asked} for {answered}");
    assert_eq!(load(&policy, &service, 10, 2_000).await, (200, 200), "and then all is as before");
}

#[tokio::test(start_paused = true)]
async fn what_waits_while_the_service_fails_every_call_is_answered_when_it_is_back() {
    let (policy, service) = (standard(), Workers::new(4));
    load(&policy, &service, 10, 1_000).await;
    service.fails.store(true, SeqCst);
    let before = service.counts.calls();
    assert_eq!(load(&policy, &service, 20, 3_000).await.0, 0);
    let asked = service.counts.calls() - before;
    assert!(asked <= 2 * 150 + 20, "no more than two for each of 150 calls: {asked}");
    let waiting: Vec<_> = (0..10).map(|_| policy.call(|| service.ask())).collect();
    let back = async {
        sleep(ms(700)).await;
        service.fails.store(false, SeqCst);
    };
    let (ends, ()) = tokio::join!(join_all(waiting), back);
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_service_is_asked_now_and_then() {
    let (policy, service) = (standard(), Workers::new(4));
    load(&policy, &service, 10, 1_000).await;
    let workers = service.workers.clone().acquire_many_owned(4).await.unwrap();
    let before = service.counts.calls();
    let (answered, of) = load(&policy, &service, 10, 10_000).await;
    let asked = service.counts.calls() - before;
    assert_eq!((answered, of), (0, 1_000));
    assert!((5..=25).contains(&asked), "its line is not filled with what nobody waits for: {asked}");
    drop(workers);
    load(&policy, &service, 10, 3_000).await;
    assert_eq!(load(&policy, &service, 10, 1_000).await, (100, 100));
}

#[tokio::test(start_paused = true)]
async fn a_limit_below_one_pauses_between_calls() {
    let limit = ConcurrencyLimit::builder().adaptive(Says(0.25)).max_queue(10).build().unwrap();
    let service = Workers::new(9);
    let began = Instant::now();
    let calls = (0..5).map(|_| limit.call(service.ask()));
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    // Each takes 20 ms, and is followed by 60 ms of rest.
    assert_eq!(began.elapsed().as_millis() / 10, 34);
    assert_eq!((service.counts.most(), limit.max_in_flight()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn through_a_layer_it_learns_from_a_service() {
    let limit = ConcurrencyLimit::builder().adaptive(Aimd::default().slow(ms(50))).build().unwrap();
    let mut service = limit.layer().layer(service_fn(|time: u64| async move {
        sleep(ms(time)).await;
        Ok::<_, Error<Infallible>>(())
    }));
    for time in [10, 60, 60] {
        service.ready().await.unwrap().call(time).await.unwrap();
    }
    assert_eq!(limit.max_in_flight(), 16, "of 20 a tenth less, twice");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_has_been_dropped_if_it_took_long() {
    let seen = Arc::<Mutex<Vec<(bool, u128)>>>::default();

    #[derive(Clone, Debug)]
    struct Writes(Arc<Mutex<Vec<(bool, u128)>>>);

    impl Limit for Writes {
        fn update(&mut self, limit: f64, sample: &Sample) -> f64 {
            self.0.lock().unwrap().push((sample.dropped, sample.rtt.as_millis()));
            limit
        }
    }

    let limit = ConcurrencyLimit::builder().adaptive(Writes(seen.clone())).build().unwrap();
    let policy = Policy::plain("service").concurrency_limit(&limit).timeout(ms(200)).build().unwrap();
    let call = |time| {
        policy.call(move || async move {
            sleep(ms(time)).await;
            Ok::<_, ()>(())
        })
    };
    call(10).await.unwrap();
    assert!(call(500).await.is_err(), "the attempt timeout");
    assert!(timeout(ms(100), call(150)).await.is_err(), "its caller leaves");
    assert!(timeout(ms(15), call(150)).await.is_err(), "and another one, too soon to say anything");
    assert_eq!(*seen.lock().unwrap(), [(false, 10), (true, 200), (true, 100)]);
    assert_eq!(limit.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn verdicts_say_what_a_failure_is_to_a_limit() {
    let limit = ConcurrencyLimit::builder().adaptive(Aimd::default()).build().unwrap();
    let judge = |outcome: Result<&(), &Verdict>| outcome.map_or_else(|verdict| *verdict, |()| Verdict::Success);
    let policy = Policy::plain("service")
        .classify(buttress::classify::from_fn(judge))
        .concurrency_limit(&limit)
        .build()
        .unwrap();
    for (verdict, calls) in
        [(Verdict::Permanent, 20), (Verdict::TRANSIENT, 20), (Verdict::Ignored, 20), (Verdict::THROTTLED, 18)]
    {
        let call = policy.call(|| async {
            sleep(ms(10)).await;
            Err::<(), _>(verdict)
        });
        assert!(call.await.is_err());
        assert_eq!(limit.max_in_flight(), calls, "{verdict:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_least_time_left_goes_first_and_who_is_too_late_is_told() {
    let limit =
        ConcurrencyLimit::builder().max_in_flight(1).max_queue(9).discipline(Discipline::Deadline).build().unwrap();
    let held = limit.acquire().await.unwrap();
    let order = Arc::<Mutex<Vec<u64>>>::default();
    let mut calls = JoinSet::new();
    for time in [300, 100, 900, 200] {
        let (limit, order) = (limit.clone(), order.clone());
        calls.spawn(async move {
            let call = limit.call(async {
                order.lock().unwrap().push(time);
                sleep(ms(10)).await;
                Ok::<_, Infallible>(())
            });
            Deadline::after(ms(time)).scope(call).await.map_err(|no| no.rejection().unwrap().rule())
        });
    }
    sleep(ms(150)).await;
    drop(held);
    let ends = calls.join_all().await;
    assert_eq!(*order.lock().unwrap(), [200, 300, 900]);
    assert_eq!(ends.iter().filter(|end| **end == Err(Rule::Deadline)).count(), 1, "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn who_has_less_time_left_than_an_answer_takes_is_refused_at_the_door() {
    let limit = ConcurrencyLimit::builder()
        .name("service")
        .adaptive(Says(1.0))
        .max_queue(9)
        .discipline(Discipline::Deadline)
        .build()
        .unwrap();
    let service = Workers::new(1);
    for _ in 0..10 {
        Deadline::after(secs(1)).scope(limit.call(service.ask())).await.unwrap();
    }
    let runs = tokio::spawn({
        let (limit, service) = (limit.clone(), service.clone());
        async move { limit.call(service.ask()).await }
    });
    sleep(ms(1)).await;
    let late = Deadline::after(ms(30)).scope(limit.call(service.ask())).await.unwrap_err();
    let late = late.rejection().unwrap();
    assert_eq!((late.reason(), late.rule()), (Reason::Overloaded, Rule::TooLate));
    assert_eq!(late.to_string(), "concurrency limit `service` is overloaded: 0.030 s left, 0.080 s needed");
    runs.await.unwrap().unwrap();
    assert_eq!(service.counts.calls(), 11, "it was not asked in vain");
    // With nobody before it, there is nothing to lose by asking.
    Deadline::after(ms(30)).scope(limit.call(service.ask())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_looks_out_hands_on_when_it_leaves() {
    let limit = ConcurrencyLimit::builder().adaptive(Says(0.1)).max_queue(9).build().unwrap();
    let service = Workers::new(1);
    limit.call(service.ask()).await.unwrap();
    let first = tokio::spawn({
        let (limit, service) = (limit.clone(), service.clone());
        async move { limit.call(service.ask()).await }
    });
    sleep(ms(1)).await;
    let second = tokio::spawn({
        let (limit, service) = (limit.clone(), service.clone());
        async move { limit.call(service.ask()).await }
    });
    sleep(ms(1)).await;
    first.abort();
    // It rests for nine times 20 ms, and nobody else would wake the second.
    timeout(ms(300), second).await.expect("somebody looks out").unwrap().unwrap();
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn permits_wait_and_rest_as_calls_do_and_say_nothing() {
    let limit = ConcurrencyLimit::builder().adaptive(Says(0.1)).max_queue(9).max_wait(ms(50)).build().unwrap();
    limit.call(Workers::new(1).ask()).await.unwrap();
    assert_eq!(limit.try_acquire().unwrap_err().rule(), Rule::LimitReached, "it rests");
    let began = Instant::now();
    assert_eq!(limit.acquire().await.unwrap_err().rule(), Rule::MaxWait);
    assert_eq!(began.elapsed().as_millis() / 10, 5);
    sleep(ms(200)).await;
    drop(limit.try_acquire().unwrap());
    let began = Instant::now();
    drop(limit.acquire().await.unwrap());
    assert!(began.elapsed() < ms(1), "nothing was told of the permit, so there is nothing to rest from");
}

/// A limit that panics, once.
#[derive(Clone, Debug)]
struct Panics(Arc<AtomicUsize>);

impl Limit for Panics {
    fn update(&mut self, limit: f64, _: &Sample) -> f64 {
        assert!(self.0.fetch_add(1, SeqCst) != 1, "I panic");
        limit + 1.0
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_panics_is_there_again_for_the_next_call() {
    let asked = Arc::<AtomicUsize>::default();
    let limit = ConcurrencyLimit::builder().adaptive(Panics(asked.clone())).build().unwrap();
    let service = Workers::new(1);
    limit.call(service.ask()).await.unwrap();
    let call = tokio::spawn({
        let (limit, service) = (limit.clone(), service.clone());
        async move { limit.call(service.ask()).await }
    });
    assert!(call.await.unwrap_err().is_panic());
    limit.call(service.ask()).await.unwrap();
    assert_eq!((asked.load(SeqCst), limit.max_in_flight(), limit.in_flight()), (3, 22, 0));
}

/// A limit that asks for itself.
#[derive(Clone, Debug)]
struct Looks(Arc<OnceLock<ConcurrencyLimit>>);

impl Limit for Looks {
    fn update(&mut self, limit: f64, _: &Sample) -> f64 {
        if let Some(own) = self.0.get() {
            own.resize(7);
            drop(own.try_acquire());
        }
        limit
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_may_use_its_own_handle() {
    let own = Arc::<OnceLock<ConcurrencyLimit>>::default();
    let limit = ConcurrencyLimit::builder().adaptive(Looks(own.clone())).build().unwrap();
    own.set(limit.clone()).unwrap();
    limit.call(Workers::new(1).ask()).await.unwrap();
    assert_eq!(limit.max_in_flight(), 7);
}

#[tokio::test(start_paused = true)]
async fn every_strategy_keeps_within_its_bounds() {
    async fn bounds(limit: impl Limit + Clone + Sync) {
        let limit = ConcurrencyLimit::builder()
            .adaptive(limit)
            .min_in_flight(3.0)
            .max_in_flight(9)
            .max_queue(99)
            .build()
            .unwrap();
        for took in [1, 1, 5_500, 1, 400, 1] {
            let calls = (0..40).map(|_| {
                limit.call(async {
                    sleep(ms(took)).await;
                    Ok::<_, Infallible>(())
                })
            });
            join_all(calls).await.into_iter().for_each(|end| end.unwrap());
            assert!((3..=9).contains(&limit.max_in_flight()), "{limit:?}");
        }
    }
    bounds(Aimd::default()).await;
    bounds(Vegas::default()).await;
    bounds(Gradient2::default()).await;
    bounds(Headroom::default()).await;
}

#[test]
fn what_only_an_adaptive_limit_has_is_refused_elsewhere() {
    let error = ConcurrencyLimit::builder().max_in_flight(1).hold_back(true).min_in_flight(0.0).build().unwrap_err();
    let problems: Vec<_> = error.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "concurrency_limit.min_in_flight = 0.0: must be above 0 and at most 2^30",
            "concurrency_limit.min_in_flight = 0.0: must not be set unless the limit is adaptive",
            "concurrency_limit.hold_back = true: must not be set unless the limit is adaptive",
        ]
    );
}

#[test]
fn each_handle_of_the_same_settings_finds_its_own() {
    let settings = ConcurrencyLimit::builder().adaptive(Headroom::default());
    let (one, other) = (settings.clone().build().unwrap(), settings.build().unwrap());
    one.resize(2);
    assert_eq!((one.max_in_flight(), other.max_in_flight()), (2, 10));
    assert!(catch_unwind(AssertUnwindSafe(|| one.resize(0))).is_ok());
    assert!(one.try_acquire().is_err(), "zero admits nobody");
}

// While it drains nobody waits, but whoever finds room goes.
#[tokio::test(start_paused = true)]
async fn while_it_drains_a_limit_that_wants_to_be_asked_is() {
    let shutdown = buttress::shutdown::Shutdown::builder().build().unwrap();
    let limit =
        ConcurrencyLimit::builder().adaptive(Says(0.5)).max_queue(9).shutdown(&shutdown.handle()).build().unwrap();
    let service = Workers::new(1);
    limit.call(service.ask()).await.unwrap();
    shutdown.handle().trigger("test");
    let refused = limit.call(service.ask()).await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().reason(), Reason::ShuttingDown, "it rests");
    sleep(ms(20)).await;
    limit.call(service.ask()).await.unwrap();
}

// One call was given up, and then there was nothing for a while: who comes next does not come into a silence.
#[tokio::test(start_paused = true)]
async fn what_was_given_up_long_ago_is_no_silence() {
    let (policy, service) = (standard(), Workers::new(9));
    load(&policy, &service, 10, 500).await;
    let workers = service.workers.clone().acquire_many_owned(9).await.unwrap();
    assert!(timeout(ms(100), policy.call(|| service.ask())).await.is_err());
    drop(workers);
    sleep(secs(60)).await;
    let held = policy.concurrency_limit().unwrap().acquire().await.unwrap();
    let began = Instant::now();
    let calls = (0..2).map(|_| policy.call(|| service.ask()));
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(began.elapsed().as_millis() / 10, 2, "all at once");
    drop(held);
}

// Those who wait have last looked when nothing was wrong, so nobody knows yet when to look again.
#[tokio::test(start_paused = true)]
async fn whoever_waits_when_a_silence_is_found_is_let_out_though_nobody_comes() {
    let limit = ConcurrencyLimit::builder().max_in_flight(100).max_queue(100).adaptive(Says(2.0)).hold_back(true);
    let limit = limit.build().unwrap();
    let calls = |takes| {
        let limit = limit.clone();
        let work = async move || {
            sleep(takes).await;
            Ok::<_, Infallible>(())
        };
        tokio::spawn(async move { limit.call(work()).await.is_ok() })
    };
    for _ in 0..50 {
        assert!(calls(ms(10)).await.unwrap());
    }
    let [hangs, given_up, next, last] = [ms(1_000_000), ms(1_000_000), ms(1_000_000), ms(10)].map(calls);
    sleep(ms(100)).await;
    assert_eq!((limit.in_flight(), limit.waiting()), (2, 2));
    given_up.abort();
    assert!(timeout(secs(2), last).await.expect("nobody looks").unwrap());
    drop((hangs, next));
}

/// As many calls as are said, one every so many milliseconds, each of which takes so long: how many of them were answered.
async fn answered(policy: &Policy, takes: u64, every: u64, count: usize) -> usize {
    let mut calls = JoinSet::new();
    for _ in 0..count {
        let policy = policy.clone();
        let work = move || async move {
            sleep(ms(takes)).await;
            Ok::<_, Infallible>(())
        };
        calls.spawn(async move { policy.call(work).await.is_ok() });
        sleep(ms(every)).await;
    }
    calls.join_all().await.into_iter().filter(|ok| *ok).count()
}

// Of a service on which nothing is wrong. Whoever is let out when it is too late for an answer is asked for in vain, for ever.
#[tokio::test(start_paused = true)]
async fn calls_may_take_most_of_the_time_that_they_have() {
    for (takes, deadline) in [(550, 1_000), (900, 1_000), (2_000, 3_000), (10_000, 30_000)] {
        let policy = Policy::standard("slow").deadline(ms(deadline)).build().unwrap();
        let every = takes / 5;
        answered(&policy, takes, every, 200).await;
        let later = answered(&policy, takes, every, 200).await;
        assert!(later >= 198, "{later} of 200 that take {takes} ms of {deadline}");
    }
}

/// One call hangs for ever, and its hedge with it, as the service does for a moment.
async fn after_one_that_hangs(policy: Policy) -> usize {
    assert_eq!(answered(&policy, 10, 20, 50).await, 50);
    let hung = policy.clone();
    tokio::spawn(async move { hung.call(pending::<Result<(), Infallible>>).await.is_ok() });
    sleep(ms(200)).await;
    answered(&policy, 10, 100, 50).await;
    answered(&policy, 10, 100, 50).await
}

// Nobody goes where those that hang have every permit, so nobody finds that the service is silent; nor that it is back.
#[tokio::test(start_paused = true)]
async fn whoever_hangs_for_ever_takes_no_others_with_it() {
    assert_eq!(after_one_that_hangs(Policy::standard("well").build().unwrap()).await, 50);
    assert_eq!(after_one_that_hangs(Policy::standard("well").deadline(secs(30)).build().unwrap()).await, 50);
    // Where the limit stays what it is, one goes now and then, to see.
    let one = ConcurrencyLimit::builder().adaptive(Says(1.0)).hold_back(true).max_wait(secs(10));
    let seen = after_one_that_hangs(Policy::plain("one").concurrency_limit(one).build().unwrap()).await;
    assert!((5..15).contains(&seen), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn what_was_found_is_still_so_after_a_time_of_nothing() {
    let policy = Policy::standard("paused").build().unwrap();
    answered(&policy, 20, 2, 1_000).await;
    let limit = policy.concurrency_limit().unwrap();
    let found = limit.max_in_flight();
    assert!(found >= 10, "{found}");
    limit.resize(0);
    assert_eq!(limit.max_in_flight(), 0);
    limit.resize(1_000);
    assert_eq!(limit.max_in_flight(), found);
}

// Whatever comes of a cache, at once, is an answer.
#[tokio::test(start_paused = true)]
async fn a_service_that_answers_at_once_is_not_silent() {
    let settings = ConcurrencyLimit::builder().adaptive(Says(8.0)).hold_back(true);
    for settings in [settings.clone(), settings.partition(Partition::new("batch"), 0.5)] {
        let limit = settings.build().unwrap();
        let calls = |takes| {
            let limit = limit.clone();
            let work = async move || {
                if takes > 0 {
                    sleep(ms(takes)).await;
                }
                Ok::<_, Infallible>(())
            };
            tokio::spawn(async move { limit.call(work()).await.is_ok() })
        };
        for _ in 0..10 {
            assert!(calls(10).await.unwrap());
        }
        let _first = calls(2_000);
        for _ in 0..50 {
            sleep(ms(10)).await;
            assert!(calls(0).await.unwrap());
        }
        let _second = calls(2_000);
        sleep(ms(10)).await;
        let began = Instant::now();
        assert!(calls(0).await.unwrap());
        assert!(began.elapsed().is_zero(), "it was held back: {:?}", began.elapsed());
    }
}

// Of answers that take more than half a second silence is known after more than three.
#[tokio::test(start_paused = true)]
async fn the_silence_of_a_slow_service_is_heard() {
    let limit = ConcurrencyLimit::builder().adaptive(Says(1_000.0)).hold_back(true).max_queue(1_000).build().unwrap();
    for _ in 0..10 {
        limit.call(answers(700)).await.unwrap();
    }
    let mut hanging = JoinSet::new();
    for _ in 0..200 {
        let limit = limit.clone();
        hanging.spawn(async move { limit.call(pending::<Result<(), ()>>()).await });
        sleep(ms(100)).await;
    }
    let (asked, waiting) = (limit.in_flight(), limit.waiting());
    assert!(asked <= 60 && asked + waiting == 200, "{asked} in 20 s, {waiting} wait");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_cut_off_is_heard_however_much_time_the_call_has() {
    let limit = ConcurrencyLimit::builder().adaptive(Headroom::default()).max_queue(1_000).build().unwrap();
    let policy = Policy::plain("service").concurrency_limit(&limit).timeout(ms(100)).build().unwrap();
    let batch = |takes| join_all((0..40).map(move |_| takes).map(|takes| policy.call(move || answers(takes))));
    for _ in 0..20 {
        batch(50).await;
    }
    let before = limit.max_in_flight();
    for _ in 0..20 {
        batch(200).await;
    }
    assert!(before >= 20 && limit.max_in_flight() < before / 4, "{before}, {}", limit.max_in_flight());
}

/// Counts what it is told of.
#[derive(Clone, Debug, Default)]
struct Told(Arc<AtomicUsize>, Arc<AtomicUsize>);

impl Limit for Told {
    fn update(&mut self, limit: f64, sample: &Sample) -> f64 {
        self.0.fetch_add(1, SeqCst);
        self.1.fetch_add(sample.answers, SeqCst);
        limit
    }
}

// The clock costs as much as all the rest of a call.
#[tokio::test(start_paused = true)]
async fn of_answers_close_together_few_are_told_and_of_what_comes_later_each() {
    let told = Told::default();
    let limit = ConcurrencyLimit::builder().adaptive(told.clone()).build().unwrap();
    let (times, stands) = (|micros| advance(Duration::from_micros(micros)), told.1.clone());
    let told = || told.0.swap(0, SeqCst);
    let call = async |after| {
        let mut call = pin!(limit.call(async {
            yield_now().await;
            Ok::<_, Infallible>(())
        }));
        assert!(poll!(&mut call).is_pending());
        times(after).await;
        call.await.unwrap();
    };
    for _ in 0..10 {
        call(25).await;
    }
    assert_eq!(told(), 10, "25 us apart");
    for _ in 0..100 {
        call(10).await;
    }
    assert_eq!(told(), 50, "10 us apart");
    for _ in 0..100 {
        call(1).await;
    }
    // One, seven that are too close to it, and seven after each that is for which nobody looks at the clock: of 24 one.
    assert_eq!(told(), 4, "1 us apart");
    times(500).await;
    call(100).await;
    assert_eq!(told(), 1, "it began later");
    assert_eq!(stands.load(SeqCst), 10 + 100 + 100 + 1, "and one stands for the others");
}

/// So many calls a second, evenly, for so many seconds: how many were answered of those of each second.
async fn seconds<F: Future<Output = Result<(), &'static str>> + Send>(
    policy: &Policy,
    rate: u64,
    lasts: u64,
    work: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Vec<usize> {
    let mut calls = JoinSet::new();
    let began = Instant::now();
    for number in 0..rate * lasts {
        tokio::time::sleep_until(began + secs(1) * number as u32 / rate as u32).await;
        let (policy, work) = (policy.clone(), work.clone());
        calls.spawn(async move { (number / rate, policy.call(work).await.is_ok()) });
    }
    let mut answered = vec![0; lasts as usize];
    for (second, ok) in calls.join_all().await {
        answered[second as usize] += usize::from(ok);
    }
    answered
}

async fn answers(takes: u64) -> Result<(), &'static str> {
    sleep(ms(takes)).await;
    Ok(())
}

// Eighty at a time, each for nearly half of its deadline; nothing is wrong.
#[tokio::test(start_paused = true)]
async fn many_slow_calls_find_their_way_from_the_start() {
    let answered = seconds(&standard(), 200, 20, || answers(400)).await;
    assert!(answered[6..].iter().all(|answered| *answered == 200), "{answered:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_starts_while_its_service_fails_at_once_learns_nothing_from_it() {
    let policy = standard();
    let began = Instant::now();
    let work = move || async move {
        if began.elapsed() < secs(3) {
            sleep(ms(1)).await;
            return Err("refused");
        }
        answers(20).await
    };
    let answered = seconds(&policy, 1_000, 10, work).await;
    assert!(answered[5..].iter().all(|answered| *answered == 1_000), "{answered:?}");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_gets_slower_for_good_is_asked_as_before() {
    for (before, after) in [(20, 80), (20, 400), (2, 100)] {
        let policy = standard();
        seconds(&policy, 100, 10, move || answers(before)).await;
        let answered = seconds(&policy, 100, 100, move || answers(after)).await;
        assert!(answered[90..].iter().all(|answered| *answered == 100), "{before} to {after} ms: {answered:?}");
    }
}

// All who work share what it can do, and it works on for those who have gone.
#[tokio::test(start_paused = true)]
async fn nobody_is_let_out_in_vain_where_all_get_slower_together() {
    let policy = standard();
    let working = Arc::<AtomicUsize>::default();
    let work = {
        let working = working.clone();
        move || {
            let working = working.clone();
            async move {
                let work = tokio::spawn(async move {
                    working.fetch_add(1, SeqCst);
                    let mut left = 1.0;
                    while left > 0.0 {
                        // Each alone takes 20 ms, and more than ten share what ten can do.
                        left -= 0.1 / (working.load(SeqCst) as f64 / 10.0).max(1.0);
                        sleep(ms(2)).await;
                    }
                    working.fetch_sub(1, SeqCst);
                });
                work.await.map_err(|_| "it panicked")
            }
        }
    };
    let calm = seconds(&policy, 250, 4, work.clone()).await;
    assert_eq!(calm, [250; 4]);
    // It can do 500 a second.
    let answered = seconds(&policy, 1_500, 10, work.clone()).await;
    assert!(answered[3..].iter().all(|answered| *answered >= 400), "{answered:?}");
    let after = seconds(&policy, 250, 4, work).await;
    assert!(after[2..].iter().all(|answered| *answered == 250), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_thousands_is_no_overload() {
    let policy = standard();
    for _ in 0..3 {
        let calls = (0..5_000).map(|_| policy.call(|| answers(20)));
        let answered = join_all(calls).await.into_iter().filter(Result::is_ok).count();
        assert_eq!(answered, 5_000);
        sleep(secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_than_twice_the_calls_is_sent() {
    let (policy, sent) = (standard(), Arc::<AtomicUsize>::default());
    let work = {
        let sent = sent.clone();
        move || {
            // A brown-out: of ten, one is answered.
            let number = sent.fetch_add(1, SeqCst);
            async move {
                sleep(ms(5)).await;
                if number % 10 == 0 { Ok(()) } else { Err("no") }
            }
        }
    };
    seconds(&policy, 100, 30, work).await;
    let sent = sent.load(SeqCst);
    assert!((3_001..=6_000 + 2 * 30 + 20).contains(&sent), "two a second more, for those who call rarely: {sent}");
}

#[tokio::test(start_paused = true)]
async fn that_it_is_too_much_is_heard_however_soon_it_is_said() {
    let limit = ConcurrencyLimit::builder().adaptive(Aimd::default()).build().unwrap();
    let judge = |outcome: Result<&(), &Verdict>| outcome.map_or_else(|verdict| *verdict, |()| Verdict::Success);
    let classify = buttress::classify::from_fn(judge);
    let policy = Policy::plain("service").classify(classify).concurrency_limit(&limit).build().unwrap();
    assert!(policy.call(async || Err::<(), _>(Verdict::THROTTLED)).await.is_err());
    assert_eq!(limit.max_in_flight(), 18);
}

#[test]
fn what_cannot_work_of_a_limit_that_adapts_is_refused() {
    let problems = |limit: buttress::ConcurrencyLimitBuilder| limit.build().unwrap_err().to_string();
    let range = ConcurrencyLimit::builder().adaptive(Headroom::default()).min_in_flight(50.0).max_in_flight(10);
    assert_eq!(
        problems(range),
        "invalid configuration: concurrency_limit.min_in_flight = 50.0: must be at most max_in_flight, which is 1,000 unless it is set"
    );
    assert!(ConcurrencyLimit::builder().adaptive(Says(1.0)).min_in_flight(1_001.0).build().is_err());
    assert!(ConcurrencyLimit::builder().adaptive(Says(1.0)).min_in_flight(10.0).max_in_flight(10).build().is_ok());
    assert_eq!(
        problems(ConcurrencyLimit::builder().adaptive(Vegas::default().smoothing(f64::NAN))),
        "invalid configuration: concurrency_limit.adaptive.smoothing = NaN: must be above 0 and at most 1"
    );
}
