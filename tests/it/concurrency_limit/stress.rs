//! Real threads: never one too many, never one lost.

use std::{
    future::{Future, ready},
    pin::pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

use buttress::ConcurrencyLimit;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::task::yield_now;
use tokio_test::task;

use super::{Way, limit};
use crate::support::Counts;

const THREADS: usize = 8;

/// Nobody is in, nobody waits, and all the permits are there.
fn assert_whole(limit: &ConcurrencyLimit) {
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
    let set: Vec<_> = (0..limit.max_in_flight()).map(|_| limit.try_acquire().unwrap()).collect();
    assert!(limit.try_acquire().is_err());
    drop(set);
}

// HAZARD: L1
#[test]
fn eight_threads_never_get_in_more_than_may_be() {
    for most in [1, 2] {
        let (limit, counts, barrier) = (limit(most, 0), Counts::default(), Barrier::new(THREADS));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    barrier.wait();
                    for _ in 0..50_000 {
                        if let Ok(_permit) = limit.try_acquire() {
                            let _running = counts.enter();
                        }
                    }
                });
            }
        });
        assert!((1..=most).contains(&counts.most()), "{} of {most} at once", counts.most());
        assert_whole(&limit);
    }
}

/// Lets nobody pass before all are here, and then all at once: `std`'s barrier lets them off one after the other.
struct StartingLine(AtomicUsize);

impl StartingLine {
    fn wait(&self, runners: usize) {
        let place = self.0.fetch_add(1, SeqCst);
        let full = place - place % runners + runners;
        let mut spins = 0_u32;
        while self.0.load(SeqCst) < full {
            spins += 1;
            if spins % 256 == 0 {
                std::thread::yield_now();
            }
        }
    }
}

// HAZARD: L1
#[test]
fn of_two_that_come_in_the_same_moment_one_gets_the_last_permit() {
    let (limit, counts, line) = (limit(1, 0), Counts::default(), StartingLine(AtomicUsize::new(0)));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..50_000 {
                    line.wait(2);
                    let permit = limit.try_acquire();
                    let running = permit.is_ok().then(|| counts.enter());
                    line.wait(2);
                    drop((running, permit));
                }
            });
        }
    });
    assert_eq!((counts.calls(), counts.most()), (50_000, 1));
    assert_whole(&limit);
}

// The permit goes from hand to hand; it is never free, however close one looks.
// HAZARD: L9
#[test]
fn nobody_gets_in_between_a_release_and_the_one_who_waits() {
    let (limit, over) = (limit(1, 1), AtomicBool::new(false));
    let mut held = limit.try_acquire().ok();
    std::thread::scope(|scope| {
        let barging = scope.spawn(|| {
            let tries = std::iter::repeat_with(|| limit.try_acquire().is_ok());
            tries.take_while(|_| !over.load(SeqCst)).filter(|got_in| *got_in).count()
        });
        let handed_on = (0..100_000).all(|_| {
            let mut waiting = task::spawn(limit.acquire());
            let queued = waiting.poll().is_pending();
            held.take();
            if let Poll::Ready(granted) = waiting.poll() {
                held = granted.ok();
            }
            queued && held.is_some()
        });
        over.store(true, SeqCst);
        assert_eq!((handed_on, barging.join().unwrap()), (true, 0));
    });
}

// Whoever waits is served: a wake-up that is lost would hang this test.
// HAZARD: L1, L6
#[test]
fn eight_threads_that_wait_their_turn_are_all_served() {
    let (limit, counts) = (limit(3, 8), Counts::default());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async {
                    for _ in 0..5_000 {
                        let work = async {
                            let _running = counts.enter();
                            yield_now().await;
                            Ok::<_, std::io::Error>(())
                        };
                        limit.call(work).await.unwrap();
                    }
                });
            });
        }
    });
    assert_eq!(counts.calls(), 40_000);
    assert!(counts.most() <= 3, "{} of 3 at once", counts.most());
    assert_whole(&limit);
}

// The queue is so short that it is full, empty and full again between one look and the next.
// HAZARD: L1, L2, L6
#[test]
fn eight_threads_that_lose_patience_lose_no_permit() {
    for (most, queue) in [(1, 1), (2, 1), (2, 3)] {
        let (limit, counts, barrier) = (limit(most, queue), Counts::default(), Barrier::new(THREADS));
        std::thread::scope(|scope| {
            for seed in 0..THREADS {
                let (limit, counts, barrier) = (&limit, &counts, &barrier);
                scope.spawn(move || {
                    let mut random = SmallRng::seed_from_u64(seed as u64);
                    barrier.wait();
                    for _ in 0..20_000 {
                        let work = async {
                            let _running = counts.enter();
                            yield_now().await;
                            Ok::<_, std::io::Error>(())
                        };
                        poll_for_a_while(limit.call(work), random.random_range(1..5));
                        assert!(limit.waiting() <= queue);
                    }
                });
            }
        });
        assert!(counts.most() <= most, "{} of {most} at once", counts.most());
        assert_whole(&limit);
    }
}

// With the limit opened at one blow, the queue can empty between a look at it and the next.
// HAZARD: L1, L7
#[test]
fn a_limit_that_opens_and_shuts_all_the_time_loses_no_permit() {
    let (limit, over) = (limit(4, 1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                limit.resize(0);
                limit.resize(4);
            }
        });
        let callers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..150_000 {
                        let call = || limit.call(ready(Ok::<_, std::io::Error>(())));
                        poll_for_a_while(async { tokio::join!(call(), call(), call(), call(), call(), call()) }, 1);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
        over.store(true, SeqCst);
        ended.into_iter().for_each(Result::unwrap);
    });
    assert_whole(&limit);
}

fn poll_for_a_while(call: impl Future, polls: u32) {
    let (mut call, mut cx) = (pin!(call), Context::from_waker(Waker::noop()));
    for _ in 0..polls {
        if call.as_mut().poll(&mut cx).is_ready() {
            return;
        }
        std::thread::yield_now();
    }
}

// HAZARD: L1, L5, L6, L7
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_dropped_at_random_while_the_limit_moves_lose_no_permit() {
    let (limit, counts, over) = (limit(4, 6), Counts::default(), Arc::new(AtomicBool::new(false)));
    let stop = over.clone();
    let resized = limit.clone();
    let resizing = tokio::spawn(async move {
        let mut random = SmallRng::seed_from_u64(99);
        while !stop.load(SeqCst) {
            resized.resize(random.random_range(0..=4));
            yield_now().await;
        }
        resized.resize(4);
    });
    let tasks: Vec<_> = (0..32)
        .map(|seed| {
            let (limit, counts) = (limit.clone(), counts.clone());
            tokio::spawn(async move {
                let mut random = SmallRng::seed_from_u64(seed);
                for _ in 0..300 {
                    let way = Way::ALL[random.random_range(0..7)];
                    let work = steps(counts.clone(), random.random_range(0..4));
                    let call = way.enter(&limit, work);
                    let patience = random.random_range(0..12);
                    tokio::select! { biased; _ = call => {}, () = yields(patience) => {} }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    over.store(true, SeqCst);
    resizing.await.unwrap();
    assert!(counts.calls() > 0 && counts.most() <= 4, "{} of 4 at once", counts.most());
    assert_whole(&limit);
}

async fn steps(counts: Counts, yields: u32) {
    let _running = counts.enter();
    self::yields(yields).await;
}

async fn yields(times: u32) {
    for _ in 0..times {
        yield_now().await;
    }
}
