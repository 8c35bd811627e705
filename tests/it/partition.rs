//! Guaranteed shares of a limit, which others may borrow.

use std::{convert::Infallible, future::pending, task::Poll};

use buttress::{
    ConcurrencyLimit, ConcurrencyLimitBuilder, Deadline, Error, Hedge, Partition, Policy, Priority, Rejection, Rule,
    concurrency_limit::{Discipline, Headroom, Limit, Permit, Sample},
    partition::PartitionLayer,
};
use futures_util::{future::join_all, poll};
use proptest::prelude::*;
use tokio::{
    runtime,
    time::{advance, sleep},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::support::{Boxed, Counts, ms, secs};

const LIVE: Partition = Partition::new("live");
const BATCH: Partition = Partition::new("batch");
const OTHER: Partition = Partition::new("other");

fn builder() -> ConcurrencyLimitBuilder {
    ConcurrencyLimit::builder().max_in_flight(10).max_queue(0).partition(BATCH, 0.3).partition(LIVE, 0.7)
}

/// As many as there are to be had.
async fn all(limit: &ConcurrencyLimit, partition: Partition) -> Vec<Permit> {
    let mut permits = Vec::new();
    while let Ok(permit) = partition.scope(limit.acquire()).await {
        permits.push(permit);
    }
    permits
}

async fn take(limit: &ConcurrencyLimit, partition: Partition, count: usize) -> Vec<Permit> {
    let mut permits = Vec::new();
    for _ in 0..count {
        permits.push(partition.scope(limit.acquire()).await.unwrap());
    }
    permits
}

// VECTOR: F5
#[tokio::test(start_paused = true)]
async fn what_is_idle_is_borrowed_and_what_is_guaranteed_is_had() {
    let limit = builder().build().unwrap();
    let batch = all(&limit, BATCH).await;
    assert_eq!(batch.len(), 10, "nobody else asks");
    let live = all(&limit, LIVE).await;
    assert_eq!((live.len(), limit.in_flight()), (7, 17));
    assert_eq!((limit.in_flight_of(LIVE), limit.in_flight_of(BATCH), limit.in_flight_of(OTHER)), (7, 10, 0));
    let no = LIVE.scope(limit.acquire()).await.unwrap_err();
    assert_eq!((no.rule(), no.measured(), no.threshold()), (Rule::LimitReached, Some(17.0), Some(10.0)));
    drop((batch, live));

    let (_batch, _live) = (take(&limit, BATCH, 3).await, take(&limit, LIVE, 7).await);
    assert!(all(&limit, BATCH).await.is_empty() && all(&limit, LIVE).await.is_empty());

    limit.resize(20);
    assert_eq!(all(&limit, LIVE).await.len(), 10, "there is room in all");
    assert_eq!(limit.max_in_flight(), 20);
    let _live = all(&limit, LIVE).await;
    limit.resize(0);
    assert!(all(&limit, BATCH).await.is_empty(), "of nothing nobody has a share");
}

#[tokio::test(start_paused = true)]
async fn six_of_twenty_are_three_tenths() {
    let limit = builder().max_in_flight(20).build().unwrap();
    let live = all(&limit, LIVE).await;
    let batch = all(&limit, BATCH).await;
    assert_eq!((live.len(), batch.len()), (20, 6));
    drop(live);
    assert_eq!(all(&limit, BATCH).await.len(), 14, "whoever gave his share back lends it");
}

#[tokio::test(start_paused = true)]
async fn whoever_is_in_no_partition_has_what_is_idle() {
    let limit = builder().build().unwrap();
    let others = all(&limit, OTHER).await;
    assert_eq!(others.len(), 10);
    assert!(limit.try_acquire().is_err());
    assert_eq!(all(&limit, LIVE).await.len(), 7);
    drop(others);
    assert!(limit.try_acquire().is_ok(), "without any name too");
}

#[tokio::test(start_paused = true)]
async fn whoever_is_owed_waits_for_nobody_but_his_own() {
    let limit = builder().max_queue(3).build().unwrap();
    let borrowed = take(&limit, BATCH, 10).await;
    let mut owed = take(&limit, LIVE, 7).await;
    let mut of_batch = Box::pin(BATCH.scope(limit.acquire()));
    let mut first = Box::pin(LIVE.scope(limit.acquire()));
    let mut second = Box::pin(LIVE.scope(limit.acquire()));
    assert!(poll!(&mut of_batch).is_pending() && poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    assert_eq!(limit.waiting(), 3);

    // Of its share: to the first who waits for that, and not to who came before.
    owed.pop();
    let Poll::Ready(first) = poll!(&mut first) else { panic!("it is owed it") };
    assert!(poll!(&mut of_batch).is_pending() && poll!(&mut second).is_pending());
    // It leaves, and so does who waits: another one of its kind goes in, past a queue that others are in.
    drop((first, second));
    assert_eq!((limit.in_flight(), limit.waiting()), (16, 1));
    let newcomer = LIVE.scope(limit.acquire()).await;
    assert_eq!((limit.in_flight(), limit.waiting()), (17, 1));

    // What was borrowed comes back, and is nobody's until there is room in all.
    let mut borrowed = borrowed.into_iter();
    drop(borrowed.by_ref().take(7).collect::<Vec<_>>());
    assert!(poll!(&mut of_batch).is_pending(), "ten are in flight, of which three are its own");
    drop(borrowed.next());
    assert!(poll!(&mut of_batch).is_ready());
    drop((newcomer, owed, of_batch, borrowed));
    assert_eq!((limit.in_flight(), limit.in_flight_of(LIVE), limit.in_flight_of(BATCH)), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_owed_goes_in_where_the_queue_is_full() {
    let limit = builder().max_queue(1).build().unwrap();
    let _borrowed = take(&limit, BATCH, 10).await;
    let mut waits = Box::pin(BATCH.scope(limit.acquire()));
    assert!(poll!(&mut waits).is_pending());
    let _owed = take(&limit, LIVE, 7).await;
    assert_eq!(LIVE.scope(limit.acquire()).await.unwrap_err().rule(), Rule::QueueFull);
    // Places in the queue go by priority, and by nothing else.
    let mut higher = Box::pin(Priority::CRITICAL_PLUS.scope(LIVE.scope(limit.acquire())));
    assert!(poll!(&mut higher).is_pending());
    assert_eq!(waits.await.unwrap_err().rule(), Rule::QueueFull);
}

#[tokio::test(start_paused = true)]
async fn a_layer_puts_each_request_into_its_partition() {
    let limit = builder().build().unwrap();
    let hangs = service_fn(|_: Partition| pending::<Result<Infallible, Error<Infallible>>>());
    let layers = ServiceBuilder::new().layer(PartitionLayer::new(|of: &Partition| *of));
    let service = layers.layer(limit.layer()).service(hangs);
    let call = |of: Partition| {
        let mut service = service.clone();
        let call: Boxed<_> = Box::pin(async move { service.ready().await.unwrap().call(of).await });
        call
    };
    let mut calls: Vec<_> = [BATCH; 10].into_iter().chain([LIVE; 7]).map(call).collect();
    for call in &mut calls {
        assert!(poll!(call).is_pending());
    }
    assert_eq!((limit.in_flight_of(BATCH), limit.in_flight_of(LIVE)), (10, 7));
    for of in [BATCH, LIVE] {
        let no = call(of).await.unwrap_err();
        assert_eq!(no.rejection().map(Rejection::rule), Some(Rule::LimitReached));
    }
    // Dropped halfway.
    drop(calls.split_off(15));
    assert_eq!((limit.in_flight(), limit.in_flight_of(LIVE)), (15, 5));
    drop(calls);
    assert_eq!((limit.in_flight(), limit.in_flight_of(BATCH)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn in_a_policy_each_attempt_takes_its_share_and_gives_it_back() {
    let policy = Policy::plain("shared").concurrency_limit(builder().max_queue(20)).timeout(ms(10)).build().unwrap();
    let limit = policy.concurrency_limit().unwrap().clone();
    let hangs = policy.layer().layer(service_fn(|_: ()| pending::<Result<Infallible, Error<Infallible>>>()));
    let calls: Vec<_> = [LIVE; 20].map(|of| of.scope(hangs.send(()))).into();
    let mut calls = Box::pin(join_all(calls));
    assert!(poll!(&mut calls).is_pending());
    assert_eq!((limit.in_flight_of(LIVE), limit.waiting()), (10, 10));
    let mut owed = Box::pin(BATCH.scope(hangs.send(())));
    assert!(poll!(&mut owed).is_pending());
    assert_eq!((limit.in_flight(), limit.in_flight_of(BATCH)), (11, 1), "three are guaranteed");
    drop(owed);
    assert_eq!((limit.in_flight(), limit.in_flight_of(BATCH)), (10, 0));
    for answer in calls.await {
        assert_eq!(answer.unwrap_err().rejection().map(Rejection::rule), Some(Rule::AttemptTimeout));
    }
    assert_eq!((limit.in_flight(), limit.in_flight_of(LIVE)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn shares_of_a_limit_that_finds_itself_are_parts_of_what_it_finds() {
    let limit = builder().max_in_flight(1_000).adaptive(Headroom::default()).build().unwrap();
    let most = limit.max_in_flight();
    let batch = all(&limit, BATCH).await;
    assert_eq!(batch.len(), most);
    assert_eq!(all(&limit, LIVE).await.len(), (most * 7).div_ceil(10));
    drop(batch);
    // It learns of what has a share, as of all others.
    for _ in 0..100 {
        let work = || async {
            sleep(ms(10)).await;
            Ok::<_, Infallible>(())
        };
        let calls = (0..limit.max_in_flight()).map(|_| LIVE.scope(limit.call(work())));
        assert!(join_all(calls).await.iter().all(Result::is_ok));
    }
    assert!(limit.max_in_flight() > most, "{}", limit.max_in_flight());
    assert_eq!((limit.in_flight(), limit.in_flight_of(LIVE)), (0, 0));
}

/// While the service is silent one is let out now and then, of all who wait.
#[tokio::test(start_paused = true)]
async fn of_a_silent_service_nobody_is_owed_anything_before_those_who_are_more_important() {
    let limit = builder().max_in_flight(100).max_queue(100).adaptive(Headroom::default()).hold_back(true);
    let limit = limit.build().unwrap();
    let calls = |of: Partition, answers: bool| {
        let limit = limit.clone();
        let work = async move || {
            if !answers {
                pending::<()>().await;
            }
            sleep(ms(10)).await;
            Ok::<_, Infallible>(())
        };
        let call: Boxed<_> = Box::pin(async move { of.scope(limit.call(work())).await });
        call
    };
    for _ in 0..50 {
        calls(BATCH, true).await.unwrap();
    }
    let mut silent: Vec<_> = (0..5).map(|_| calls(BATCH, false)).collect();
    assert!(poll!(&mut silent[0]).is_pending());
    advance(ms(200)).await;
    for call in &mut silent[1..] {
        assert!(poll!(call).is_pending());
    }
    assert_eq!((limit.in_flight(), limit.waiting()), (2, 3));
    // The gate is open, and whoever looks out for it has yet to be polled.
    advance(secs(1)).await;
    let mut newcomer = Box::pin(Priority::SHEDDABLE.scope(calls(LIVE, false)));
    assert!(poll!(&mut newcomer).is_pending());
    assert_eq!((limit.in_flight(), limit.waiting(), limit.in_flight_of(LIVE)), (3, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn nobody_has_borrowed_anything_so_the_limit_holds() {
    let limit = builder().max_queue(100).build().unwrap();
    limit.resize(0);
    let mut waits: Vec<Boxed<_>> = Vec::new();
    for of in [BATCH; 20].into_iter().chain([LIVE; 20]) {
        let limit = limit.clone();
        let mut call: Boxed<_> = Box::pin(async move { of.scope(limit.acquire()).await });
        assert!(poll!(&mut call).is_pending());
        waits.push(call);
    }
    limit.resize(10);
    assert_eq!((limit.in_flight(), limit.in_flight_of(LIVE), limit.in_flight_of(BATCH)), (10, 7, 3));
}

/// How many attempts are made of a call that takes its time.
async fn attempts(limit: ConcurrencyLimit) -> usize {
    let asked = Counts::default();
    let policy = Policy::plain("hedged").hedge(Hedge::after(ms(10))).concurrency_limit(&limit).build().unwrap();
    let call = policy.call(|| {
        let running = asked.enter();
        async move {
            let _running = running;
            sleep(ms(100)).await;
            Ok::<_, Infallible>(())
        }
    });
    LIVE.scope(call).await.unwrap();
    assert_eq!((limit.in_flight(), limit.in_flight_of(LIVE)), (0, 0));
    asked.calls()
}

#[tokio::test(start_paused = true)]
async fn an_attempt_beside_another_takes_its_share_or_is_not_made() {
    assert_eq!(attempts(builder().build().unwrap()).await, 2);
    let limit = builder().max_in_flight(1).build().unwrap();
    assert_eq!(attempts(limit.clone()).await, 1, "there is one, which the first has");
    let limit = builder().build().unwrap();
    let _others = take(&limit, BATCH, 10).await;
    let limit = limit.clone();
    let policy = Policy::plain("hedged").hedge(Hedge::after(ms(10))).concurrency_limit(&limit).build().unwrap();
    let mut hung = Box::pin(LIVE.scope(policy.call(pending::<Result<(), Infallible>>)));
    assert!(poll!(&mut hung).is_pending());
    tokio::time::advance(ms(10)).await;
    assert!(poll!(&mut hung).is_pending());
    assert_eq!(limit.in_flight_of(LIVE), 2, "both are of its share");
    drop(hung);
    assert_eq!(limit.in_flight_of(LIVE), 0);
}

#[derive(Clone, Debug)]
struct Two;

impl Limit for Two {
    fn initial(&self) -> f64 {
        2.0
    }

    fn update(&mut self, _: f64, _: &Sample) -> f64 {
        2.0
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_owed_and_too_late_is_refused_all_the_same() {
    let limit = ConcurrencyLimit::builder().adaptive(Two).max_queue(10).discipline(Discipline::Deadline);
    let limit = limit.partition(LIVE, 0.5).partition(BATCH, 0.5).build().unwrap();
    // It learns that calls take 100 ms.
    for _ in 0..50 {
        let call = limit.call(async {
            sleep(ms(100)).await;
            Ok::<_, Infallible>(())
        });
        Deadline::after(secs(1)).scope(call).await.unwrap();
    }
    let _borrowed = take(&limit, BATCH, 2).await;
    let mut owed = take(&limit, LIVE, 1).await;
    let mut front = Box::pin(Priority::CRITICAL_PLUS.scope(BATCH.scope(limit.acquire())));
    assert!(poll!(&mut front).is_pending());
    let mut late = Box::pin(Deadline::after(ms(300)).scope(LIVE.scope(limit.acquire())));
    let mut in_time = Box::pin(Deadline::after(secs(1)).scope(LIVE.scope(limit.acquire())));
    assert!(poll!(&mut late).is_pending() && poll!(&mut in_time).is_pending());
    tokio::time::advance(ms(250)).await;
    owed.clear();
    assert_eq!(late.await.unwrap_err().rule(), Rule::TooLate);
    assert!(poll!(&mut in_time).is_ready(), "and the next who is owed goes");
    assert!(poll!(&mut front).is_pending());
}

#[test]
fn parts_that_are_none_are_named() {
    let says = |builder: ConcurrencyLimitBuilder| builder.build().unwrap_err().to_string();
    for part in [0.0, -0.1, 1.1, f64::NAN] {
        let no = says(ConcurrencyLimit::builder().max_in_flight(10).partition(LIVE, part));
        assert!(no.contains("partition") && no.contains(&part.to_string()) && no.contains("above 0"), "{no}");
    }
    let no = says(builder().partition(OTHER, 0.1));
    assert!(no.contains("at most 1 in all"), "{no}");
    let no = says(ConcurrencyLimit::builder().max_in_flight(10).partition(LIVE, 0.1).partition(LIVE, 0.2));
    assert!(no.contains("live") && no.contains("once"), "{no}");
    let tenths = (0..10).fold(ConcurrencyLimit::builder().max_in_flight(10), |builder, tenth| {
        builder.partition(Partition::new(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][tenth]), 0.1)
    });
    assert!(tenths.build().is_ok(), "ten tenths are one");
}

/// Somebody comes, or one of those who are there leaves, with a permit or without.
#[derive(Clone, Copy, Debug)]
enum Step {
    Comes(Partition),
    Leaves(prop::sample::Index),
    Resizes(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let of = prop::sample::select(vec![LIVE, BATCH, OTHER]);
    prop_oneof![
        5 => of.prop_map(Step::Comes),
        4 => any::<prop::sample::Index>().prop_map(Step::Leaves),
        1 => (1usize..8).prop_map(Step::Resizes),
    ]
}

type Waits = (Partition, Boxed<Result<Permit, Rejection>>);

/// Whoever has come, in this order.
struct Callers {
    limit: ConcurrencyLimit,
    max: usize,
    waits: Vec<Waits>,
    holds: Vec<(Partition, Permit)>,
}

impl Callers {
    fn owed(&self, of: Partition) -> bool {
        let part = if of == LIVE {
            0.5
        } else if of == BATCH {
            0.25
        } else {
            0.0
        };
        (self.limit.in_flight_of(of) as f64) < (self.max as f64 * part).ceil()
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Comes(of) => {
                let had_room = self.holds.len() < self.max && self.waits.is_empty() || self.owed(of);
                let limit = self.limit.clone();
                let mut call: Boxed<_> = Box::pin(of.scope(async move { limit.acquire().await }));
                let polled = poll!(&mut call);
                assert_eq!(polled.is_ready(), had_room, "who may go, goes, and nobody else does");
                match polled {
                    Poll::Ready(permit) => self.holds.push((of, permit.unwrap())),
                    Poll::Pending => self.waits.push((of, call)),
                }
            }
            Step::Leaves(index) if !self.waits.is_empty() && index.index(3) == 0 => {
                drop(self.waits.remove(index.index(self.waits.len())));
            }
            Step::Leaves(index) if !self.holds.is_empty() => {
                drop(self.holds.remove(index.index(self.holds.len())));
            }
            Step::Leaves(_) => {}
            Step::Resizes(max) => {
                self.max = max;
                self.limit.resize(max);
            }
        }
        self.settle().await;
    }

    /// Whoever was let in has its permit; and all is as it must be.
    async fn settle(&mut self) {
        let mut waits = Vec::new();
        for (of, mut call) in self.waits.drain(..) {
            match poll!(&mut call) {
                Poll::Ready(permit) => self.holds.push((of, permit.unwrap())),
                Poll::Pending => waits.push((of, call)),
            }
        }
        self.waits = waits;
        let limit = &self.limit;
        assert_eq!((limit.in_flight(), limit.waiting()), (self.holds.len(), self.waits.len()));
        for of in [LIVE, BATCH] {
            assert_eq!(limit.in_flight_of(of), self.holds.iter().filter(|(held, _)| *held == of).count());
        }
        assert!(self.waits.is_empty() || self.holds.len() >= self.max, "somebody waits while there is room");
        assert!(!self.waits.iter().any(|&(of, _)| self.owed(of)), "somebody waits who is owed");
    }
}

proptest! {
    #[test]
    fn whoever_may_go_goes_and_nothing_is_lost(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let limit = ConcurrencyLimit::builder().max_in_flight(4).max_queue(100);
            let limit = limit.partition(LIVE, 0.5).partition(BATCH, 0.25).build().unwrap();
            let mut callers = Callers { limit, max: 4, waits: Vec::new(), holds: Vec::new() };
            for step in steps {
                callers.step(step).await;
            }
        });
    }
}
