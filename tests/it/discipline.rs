//! Who waits goes in which order, and who gives up a place: disciplines and priorities.

#![allow(clippy::disallowed_methods, reason = "a story looks at the clock, which is paused")]

use std::{future::pending, sync::Arc, time::Duration};

use buttress::{
    ConcurrencyLimit, ConcurrencyLimitBuilder, Deadline, Error, Policy, Priority, Retry, Rule,
    concurrency_limit::{Discipline, Permit},
    priority::PriorityLayer,
    retry::current_attempt,
};
use futures_util::future::join_all;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::support::{ms, secs};

fn limit(discipline: Discipline, queue: usize) -> ConcurrencyLimit {
    builder(discipline, queue).build().unwrap()
}

fn builder(discipline: Discipline, queue: usize) -> ConcurrencyLimitBuilder {
    ConcurrencyLimit::builder().max_in_flight(1).max_queue(queue).discipline(discipline)
}

type Told = mpsc::UnboundedReceiver<(u32, Result<(), Rule>)>;

/// Numbered callers who tell when they are granted a permit, which they give back after so long; or why not.
struct Callers {
    limit: ConcurrencyLimit,
    tell: mpsc::UnboundedSender<(u32, Result<(), Rule>)>,
}

impl Callers {
    fn new(limit: &ConcurrencyLimit) -> (Self, Told) {
        let (tell, told) = mpsc::unbounded_channel();
        (Self { limit: limit.clone(), tell }, told)
    }

    /// Has its place, or its permit, when this returns.
    async fn comes(&self, number: u32, priority: Priority, takes: Duration) -> JoinHandle<()> {
        let (limit, tell) = (self.limit.clone(), self.tell.clone());
        let caller = tokio::spawn(priority.scope(async move {
            match limit.acquire().await {
                Ok(permit) => {
                    tell.send((number, Ok(()))).unwrap();
                    sleep(takes).await;
                    drop::<Permit>(permit);
                }
                Err(no) => tell.send((number, Err(no.rule()))).unwrap(),
            }
        }));
        tokio::task::yield_now().await;
        caller
    }
}

async fn order(told: &mut Told, count: usize) -> Vec<u32> {
    let mut order = Vec::new();
    while order.len() < count {
        let (number, outcome) = told.recv().await.unwrap();
        assert_eq!(outcome, Ok(()), "{number}");
        order.push(number);
    }
    order
}

const LEVELS: [Priority; 4] = [Priority::CRITICAL, Priority::SHEDDABLE, Priority::CRITICAL_PLUS, Priority::CRITICAL];

#[tokio::test(start_paused = true)]
async fn the_higher_priority_goes_first_in_every_discipline() {
    for discipline in [Discipline::Fifo, Discipline::Deadline, Discipline::LIFO, Discipline::CODEL] {
        let limit = limit(discipline, 9);
        let (callers, mut told) = Callers::new(&limit);
        let held = limit.acquire().await.unwrap();
        for (number, level) in (0..).zip(LEVELS) {
            callers.comes(number, level, ms(0)).await;
        }
        drop(held);
        assert_eq!(order(&mut told, 4).await, [2, 0, 3, 1], "{discipline:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_full_queue_the_last_of_the_lowest_gives_up_its_place() {
    let limit = limit(Discipline::Fifo, 3);
    let (callers, mut told) = Callers::new(&limit);
    let held = limit.acquire().await.unwrap();
    callers.comes(0, Priority::SHEDDABLE, ms(0)).await;
    callers.comes(1, Priority::CRITICAL, ms(0)).await;
    callers.comes(2, Priority::SHEDDABLE, ms(0)).await;
    callers.comes(3, Priority::SHEDDABLE, ms(0)).await;
    assert_eq!(told.recv().await, Some((3, Err(Rule::QueueFull))), "it is no higher");
    callers.comes(4, Priority::CRITICAL, ms(0)).await;
    assert_eq!(told.recv().await, Some((2, Err(Rule::QueueFull))));
    callers.comes(5, Priority::CRITICAL_PLUS, ms(0)).await;
    assert_eq!(told.recv().await, Some((0, Err(Rule::QueueFull))));
    callers.comes(6, Priority::CRITICAL, ms(0)).await;
    assert_eq!(told.recv().await, Some((6, Err(Rule::QueueFull))));
    assert_eq!((limit.waiting(), limit.in_flight()), (3, 1));
    drop(held);
    assert_eq!(order(&mut told, 3).await, [5, 1, 4]);
    sleep(ms(1)).await;
    assert_eq!((limit.waiting(), limit.in_flight()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_given_up_and_is_dropped_unheard_is_given_back_once() {
    let limit = limit(Discipline::Fifo, 1);
    let held = limit.acquire().await.unwrap();
    let mut low = Box::pin(Priority::SHEDDABLE.scope(limit.acquire()));
    assert!(futures_util::poll!(&mut low).is_pending());
    let mut high = Box::pin(limit.acquire());
    assert!(futures_util::poll!(&mut high).is_pending());
    drop(low);
    assert_eq!((limit.waiting(), limit.in_flight()), (1, 1));
    drop(held);
    drop(high.await.unwrap());
    assert_eq!((limit.waiting(), limit.in_flight()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn where_nothing_waits_nobody_gives_up_anything() {
    let limit = limit(Discipline::Fifo, 0);
    let _held = limit.acquire().await.unwrap();
    let no = Priority::CRITICAL_PLUS.scope(limit.acquire()).await.unwrap_err();
    assert_eq!(no.rule(), Rule::LimitReached);
}

#[tokio::test(start_paused = true)]
async fn the_newest_go_first_once_the_queue_stands() {
    let limit = limit(Discipline::Lifo { after: ms(100) }, 9);
    let (callers, mut told) = Callers::new(&limit);
    callers.comes(0, Priority::CRITICAL, ms(60)).await;
    for number in 1..5 {
        callers.comes(number, Priority::CRITICAL, ms(60)).await;
    }
    // At 0, 60 and 120 ms: from 100 on it stands. At 240 nobody waits any more, and it begins anew.
    assert_eq!(order(&mut told, 5).await, [0, 1, 4, 3, 2]);
    sleep(ms(100)).await;
    for number in 5..8 {
        callers.comes(number, Priority::CRITICAL, ms(10)).await;
    }
    assert_eq!(order(&mut told, 3).await, [5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_stands_refuses_who_waited_for_too_long_and_one_that_passes_does_not() {
    let codel = Discipline::Codel { target: ms(5), interval: ms(100) };
    // A burst of twenty, each of which takes 4 ms: all go.
    let limit = limit(codel, 99);
    let (callers, mut told) = Callers::new(&limit);
    for number in 0..20 {
        callers.comes(number, Priority::CRITICAL, ms(4)).await;
    }
    assert_eq!(order(&mut told, 20).await, (0..20).collect::<Vec<_>>());
    sleep(secs(1)).await;
    // Twice what can be done, for two seconds: it sheds half, and those that go have waited for little more than 10 ms.
    let began = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..1_000 {
        tasks.push(callers.comes(number, Priority::CRITICAL, ms(4)).await);
        sleep(ms(2)).await;
    }
    join_all(tasks).await;
    let (mut went, mut stood) = (0, 0);
    while let Ok((_, outcome)) = told.try_recv() {
        match outcome {
            Ok(()) => went += 1,
            Err(Rule::QueueStands) => stood += 1,
            Err(rule) => panic!("{rule:?}"),
        }
    }
    assert_eq!(went + stood, 1_000);
    assert!((480..=560).contains(&went), "{went} went, {stood} were refused");
    let late = began.elapsed() - ms(2_000);
    assert!(late < ms(60), "the queue is short at the end: {late:?}");
    assert_eq!((limit.waiting(), limit.in_flight()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_stood_for_too_long_hears_for_how_long() {
    let limit = limit(Discipline::CODEL, 9);
    let calls = (0..9).map(|_| {
        limit.call(async {
            sleep(ms(30)).await;
            Ok::<_, ()>(())
        })
    });
    let refused: Vec<_> = join_all(calls).await.into_iter().filter_map(Result::err).collect();
    // An interval begins at 30 ms. At 150 it is over, the queue is known to stand, and the first is spared.
    assert_eq!(
        refused[0].rejection().unwrap().to_string(),
        "concurrency limit `concurrency_limit` is overloaded: waited 0.180 s in a queue that stands, 0.010 s allowed"
    );
}

// The shortest wait of an interval is that of whoever finds nobody before him.
#[tokio::test(start_paused = true)]
async fn one_burst_after_the_other_is_no_queue_that_stands() {
    let limit = limit(Discipline::CODEL, 9);
    for _ in 0..50 {
        let calls = (0..5).map(|_| {
            limit.call(async {
                sleep(ms(20)).await;
                Ok::<_, ()>(())
            })
        });
        assert!(join_all(calls).await.iter().all(Result::is_ok));
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_gives_each_request_its_priority_for_all_limits_below() {
    let limit = limit(Discipline::Fifo, 1);
    let held = limit.acquire().await.unwrap();
    let seen = service_fn(|_: Priority| async { Ok::<_, Error<std::io::Error>>(Priority::current()) });
    let layers = ServiceBuilder::new().layer(PriorityLayer::new(|level: &Priority| *level)).layer(limit.layer());
    let mut service = layers.service(seen);
    let low = tokio::spawn(service.ready().await.unwrap().call(Priority::SHEDDABLE));
    tokio::task::yield_now().await;
    let high = tokio::spawn(service.ready().await.unwrap().call(Priority::CRITICAL_PLUS));
    let no = low.await.unwrap().unwrap_err();
    assert_eq!(no.rejection().map(|no| no.rule()), Some(Rule::QueueFull));
    drop(held);
    assert_eq!(high.await.unwrap().unwrap(), Priority::CRITICAL_PLUS, "the service sees it too");
    assert_eq!(Priority::current(), Priority::CRITICAL);
}

#[tokio::test(start_paused = true)]
async fn a_priority_is_the_tasks_own_and_comes_back_after_a_panic() {
    let nested = async { (Priority::current(), Priority::new(7).scope(async { Priority::current() }).await) };
    assert_eq!(Priority::SHEDDABLE.scope(nested).await, (Priority::SHEDDABLE, Priority::new(7)));
    let panics = tokio::spawn(async {
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut panics = Box::pin(Priority::SHEDDABLE.scope(async { panic!("on purpose") }));
            let _ = futures_util::FutureExt::now_or_never(&mut panics);
        }));
        (caught.is_err(), Priority::current())
    });
    assert_eq!(panics.await.unwrap(), (true, Priority::CRITICAL));
}

#[tokio::test(start_paused = true)]
async fn a_limit_below_a_retry_of_somebody_else_knows_who_was_sent_before() {
    // While the service is silent those that were sent the least often go first: the attempts are known through the task.
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let service = limit.layer().layer(service_fn(|(): ()| async {
        Err::<(), _>(Error::Inner(std::io::Error::other(format!("{:?}", current_attempt()))))
    }));
    let retry = Retry::constant(ms(1)).max_attempts(2).build().unwrap();
    let error = retry.layer().layer(service).oneshot(()).await.unwrap_err();
    assert_eq!(error.to_string(), "Some(2)");
}

#[test]
fn bad_input_is_named() {
    let said = |discipline| builder(discipline, 1).build().unwrap_err().to_string();
    assert_eq!(
        said(Discipline::Codel { target: ms(5), interval: ms(5) }),
        "invalid configuration: concurrency_limit.discipline.interval = 5ms: must be longer than the target"
    );
    assert_eq!(
        said(Discipline::Lifo { after: Duration::ZERO }),
        "invalid configuration: concurrency_limit.discipline.after = 0ns: must be longer than zero"
    );
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_evicts_as_any_other() {
    let policy = Policy::plain("users")
        .concurrency_limit(
            ConcurrencyLimit::builder()
                .adaptive(buttress::concurrency_limit::Headroom::default())
                .max_in_flight(1)
                .max_queue(1)
                .discipline(Discipline::Deadline),
        )
        .build()
        .unwrap();
    let hangs = Arc::new(policy.clone());
    let first = tokio::spawn(async move { hangs.call(pending::<Result<(), ()>>).await });
    tokio::task::yield_now().await;
    let mut low = Box::pin(Priority::SHEDDABLE.scope(policy.call(|| async { Ok::<_, ()>(1) })));
    assert!(futures_util::poll!(&mut low).is_pending());
    let mut high = Box::pin(policy.call(|| async { Ok::<_, ()>(2) }));
    assert!(futures_util::poll!(&mut high).is_pending());
    assert_eq!(low.await.unwrap_err().rejection().map(|no| no.rule()), Some(Rule::QueueFull));
    first.abort();
    assert_eq!(timeout(secs(5), high).await.unwrap().unwrap(), 2);
}

// The queue is full of somebody who is too late and was not polled since: the place is free for whoever comes.
#[tokio::test(start_paused = true)]
async fn a_place_that_somebody_held_for_too_long_is_had_by_who_outranks_him() {
    let limit = limit(Discipline::Deadline, 1);
    let held = limit.acquire().await.unwrap();
    let mut low = Box::pin(Deadline::after(ms(10)).scope(Priority::SHEDDABLE.scope(limit.acquire())));
    assert!(futures_util::poll!(&mut low).is_pending());
    tokio::time::advance(ms(20)).await;
    let mut high = Box::pin(limit.acquire());
    assert!(futures_util::poll!(&mut high).is_pending(), "it waits in his place");
    assert_eq!(limit.waiting(), 1);
    drop(held);
    drop(high.await.unwrap());
    assert_eq!(low.await.unwrap_err().rule(), Rule::Deadline);
}

/// Those without a deadline have waited for so long that the newest goes first; those with one go by it all the same.
#[tokio::test(start_paused = true)]
async fn of_those_with_a_deadline_never_the_one_with_the_most_time_left_goes_first() {
    let limit = limit(Discipline::Deadline, 9);
    let held = limit.acquire().await.unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let mut calls = JoinSet::new();
    for (number, left) in [None, Some(12), Some(60), None].into_iter().enumerate() {
        let (limit, tell) = (limit.clone(), tell.clone());
        let call = async move {
            let _permit = limit.acquire().await.unwrap();
            tell.send(number).unwrap();
        };
        match left {
            Some(left) => calls.spawn(Deadline::after(secs(left)).scope(call)),
            None => calls.spawn(call),
        };
        tokio::task::yield_now().await;
    }
    sleep(ms(200)).await;
    drop(held);
    calls.join_all().await;
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [3, 0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn where_the_newest_go_first_the_oldest_of_the_lowest_gives_up_its_place() {
    let limit = limit(Discipline::LIFO, 3);
    let held = limit.acquire().await.unwrap();
    let (callers, mut told) = Callers::new(&limit);
    callers.comes(0, Priority::CRITICAL, ms(10)).await;
    callers.comes(1, Priority::SHEDDABLE, ms(10)).await;
    callers.comes(2, Priority::SHEDDABLE, ms(10)).await;
    // Not yet: whoever came first goes first.
    callers.comes(3, Priority::CRITICAL, ms(10)).await;
    assert_eq!(told.recv().await, Some((2, Err(Rule::QueueFull))));
    sleep(ms(200)).await;
    callers.comes(4, Priority::CRITICAL, ms(10)).await;
    assert_eq!(told.recv().await, Some((1, Err(Rule::QueueFull))));
    callers.comes(5, Priority::CRITICAL_PLUS, ms(10)).await;
    assert_eq!(told.recv().await, Some((0, Err(Rule::QueueFull))), "it has waited for the longest");
    drop(held);
    assert_eq!(order(&mut told, 3).await, [5, 4, 3]);
}
