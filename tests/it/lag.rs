//! The lag guard: who is late, who sees it, and for how long.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use buttress::{Error, LagGuard, LagGuardBuilder, Reason, Rule};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::yield_now,
    time::{advance, sleep},
};
use tokio_test::{assert_pending, task};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimit, service_fn};

use crate::support::{Counts, Echo, ms, secs};

fn guard() -> LagGuardBuilder {
    LagGuard::builder().max_lag(ms(100)).period(ms(20))
}

/// As a task that blocks for so long looks to itself: nobody else has run meanwhile.
fn block(time: Duration) {
    assert_pending!(task::spawn(advance(time)).poll());
}

/// Until timers were looked at, and the beat was at the back of the queue.
async fn beat() {
    for _ in 0..4 {
        yield_now().await;
    }
}

fn is_late(guard: &LagGuard) -> bool {
    guard.check().is_err()
}

#[tokio::test(start_paused = true)]
async fn while_the_runtime_is_late_nothing_is_run_and_the_rejection_says_how_late() {
    let (guard, counts) = (guard().name("api").start().unwrap(), Counts::default());
    let service = guard.layer().layer(service_fn(|n: u32| {
        drop(counts.enter());
        async move { Ok::<_, Error<Infallible>>(n) }
    }));
    sleep(ms(10)).await;
    assert_eq!(service.send(7).await, Ok(7));
    advance(ms(300)).await;
    let Err(Error::Rejected(no)) = service.send(7).await else { panic!("it is late") };
    assert_eq!((no.name(), no.rule(), no.reason()), ("api", Rule::RuntimeLate, Reason::Overloaded));
    assert_eq!((no.threshold(), no.retry_after()), (Some(0.1), None));
    assert_eq!(no.to_string(), "runtime of `api` is overloaded: 0.290 s late, 0.100 s allowed");
    assert_eq!(counts.calls(), 1);
}

/// The requests that came while a handler blocked are seen before any timer is: each would block for as long again.
#[tokio::test(start_paused = true)]
async fn who_comes_first_after_a_block_is_refused_before_any_beat() {
    let guard = guard().start().unwrap();
    sleep(ms(10)).await;
    block(ms(110));
    assert_eq!((guard.lag(), is_late(&guard)), (ms(100), false), "as late as it may be");
    block(ms(1));
    assert_eq!((guard.lag(), is_late(&guard)), (ms(101), true));
}

#[tokio::test(start_paused = true)]
async fn one_late_beat_has_calls_refused_until_the_next_one_is_on_time_and_no_longer() {
    let guard = guard().start().unwrap();
    advance(secs(1)).await;
    beat().await;
    assert_eq!(guard.lag(), ms(980), "by the last beat: nothing is overdue");
    sleep(ms(19)).await;
    assert!(is_late(&guard));
    // Timers tick by the millisecond.
    sleep(ms(3)).await;
    assert!(!is_late(&guard) && guard.lag() < ms(3));
}

/// A queue that is always as long shows at each beat, and between them.
#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_always_late_is_so_at_any_time() {
    let guard = guard().start().unwrap();
    for turn in 0..10 {
        block(ms(150));
        assert_eq!((guard.lag(), is_late(&guard)), (ms(130), true), "before the beat of turn {turn}");
        beat().await;
        assert_eq!((guard.lag(), is_late(&guard)), (ms(130), true), "after the beat of turn {turn}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_day_on_a_paused_clock_is_never_late() {
    let guard = guard().start().unwrap();
    for _ in 0..100 {
        sleep(secs(1)).await;
        assert!(!is_late(&guard));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_gives_back_the_readiness_that_was_reserved_below() {
    let guard = guard().start().unwrap();
    let one = ConcurrencyLimit::new(Echo, 1);
    let mut other = one.clone();
    let mut service = guard.layer().layer(one);
    service.ready().await.unwrap();
    block(secs(1));
    let refused = service.call(7);
    assert!(task::spawn(other.ready()).poll().is_ready(), "held by nobody");
    assert_eq!(refused.await.unwrap_err().rejection().map(|no| no.rule()), Some(Rule::RuntimeLate));
}

// ---------------------------------------------------------------- its task

fn alive() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[tokio::test(start_paused = true)]
async fn it_measures_for_as_long_as_anybody_can_ask() {
    let handle = guard().start().unwrap();
    let service = handle.clone().layer().layer(Echo);
    drop(handle);
    sleep(secs(1)).await;
    assert_eq!(alive(), 1);
    advance(secs(1)).await;
    beat().await;
    assert!(service.send(7).await.is_err());
    drop(service);
    sleep(secs(1)).await;
    assert_eq!(alive(), 0);
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

#[test]
fn a_runtime_ends_in_spite_of_it_and_is_not_late_from_then_on() {
    let runtime = runtime();
    // From outside of it, as an app that is put together before its runtime runs.
    let guard = guard().start_on(runtime.handle()).unwrap();
    runtime.block_on(async {
        advance(secs(1)).await;
        beat().await;
        assert!(is_late(&guard));
    });
    drop(runtime);
    assert_eq!((guard.lag(), is_late(&guard)), (Duration::ZERO, false));
}

#[test]
#[should_panic(expected = "timers are disabled")]
fn a_runtime_without_timers_is_told_at_once() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let _ = guard().start_on(runtime.handle());
}

// ---------------------------------------------------------------- on the real clock

/// Keeps the thread busy.
#[allow(clippy::disallowed_methods)] // the point of it
fn really_block(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Says nothing of how fast anything is: only that what was late is late, and that it ends.
#[test]
fn a_task_that_really_blocks_is_seen() {
    for runtime in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let mut runtime = runtime;
        let runtime = runtime.worker_threads(1).enable_time().build().unwrap();
        runtime.block_on(async {
            let guard = LagGuard::builder().max_lag(ms(20)).period(ms(5)).start().unwrap();
            // On the worker, where there is one.
            let seen = tokio::spawn({
                let guard = guard.clone();
                async move {
                    really_block(ms(60));
                    is_late(&guard)
                }
            });
            assert!(seen.await.unwrap(), "by the next call");
            while is_late(&guard) {
                sleep(ms(5)).await;
            }
        });
    }
}

/// 200 tasks that take turns of a millisecond: none blocks for long, and everybody waits for 200 ms.
#[test]
fn a_long_queue_of_tasks_is_seen() {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let guard = LagGuard::builder().max_lag(ms(20)).period(ms(5)).start().unwrap();
        let crowd: Vec<_> = (0..200)
            .map(|_| {
                tokio::spawn(async {
                    loop {
                        really_block(ms(1));
                        yield_now().await;
                    }
                })
            })
            .collect();
        while !is_late(&guard) {
            yield_now().await;
        }
        crowd.iter().for_each(|task| task.abort());
        while is_late(&guard) {
            sleep(ms(5)).await;
        }
    });
}
