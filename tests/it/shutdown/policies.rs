//! A shutdown that policies are told of: once it drains, nothing waits and nothing is tried again.
#![allow(clippy::disallowed_methods)] // tokio's clock, to see that nothing took any time

use std::{
    future::{pending, ready},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

use buttress::{
    Backoff, CircuitBreaker, ConcurrencyLimit, ConcurrencyLimitBuilder, Error, Jitter, Policy, Reason, Rejection,
    Retry, RetryBuilder, Rule, Shutdown,
    circuit_breaker::State,
    shutdown::{Handle, Signal},
};
use tokio::{
    sync::oneshot,
    time::{Instant, advance, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt, service_fn};

use super::life::prompt;
use crate::support::{Boxed, Counts, ms, secs, settle};

const HOUR: Duration = secs(3_600);

fn shutdown() -> (Shutdown, Handle) {
    let shutdown = Shutdown::builder().build().unwrap();
    let handle = shutdown.handle();
    (shutdown, handle)
}

/// Three attempts, an hour after each other.
fn hourly() -> RetryBuilder {
    Retry::with(Backoff::constant(HOUR).max_delay(HOUR).jitter(Jitter::None)).max_attempts(3)
}

/// At most one; three may wait.
fn single() -> ConcurrencyLimitBuilder {
    ConcurrencyLimit::builder().max_in_flight(1).max_queue(3)
}

#[track_caller]
fn assert_draining(rejection: &Rejection, name: &str) {
    assert_eq!((rejection.reason(), rejection.rule()), (Reason::ShuttingDown, Rule::Draining));
    assert_eq!((rejection.name(), rejection.retry_after()), (name, None));
    assert_eq!(rejection.to_string(), format!("`{name}` is shutting down: nothing waits or is tried again"));
}

#[track_caller]
fn rejection<T: std::fmt::Debug, E: std::fmt::Debug>(outcome: Result<T, Error<E>>) -> Rejection {
    *outcome.unwrap_err().rejection().expect("a rejection")
}

/// Fails each time, and counts.
fn failing(counts: &Counts) -> impl FnMut() -> std::future::Ready<Result<(), &'static str>> + Send + use<> {
    let counts = counts.clone();
    move || {
        counts.enter();
        ready(Err("no luck"))
    }
}

/// The ways into a retry that knows of a shutdown.
fn every_way_to_retry(handle: &Handle, counts: &Counts) -> Vec<(&'static str, Boxed<Result<(), Error<&'static str>>>)> {
    let service = {
        let counts = counts.clone();
        service_fn(move |()| {
            counts.enter();
            ready(Err::<(), _>("no luck"))
        })
    };
    let policy = Policy::cloned("whole")
        .deadline(HOUR * 24)
        .retry(hourly())
        .circuit_breaker(CircuitBreaker::builder())
        .concurrency_limit(single())
        .timeout(secs(1))
        .shutdown(handle)
        .build()
        .unwrap();
    let bare = Policy::plain("bare").retry(hourly()).shutdown(handle).build().unwrap();
    let alone = hourly().name("alone").shutdown(handle).build().unwrap();
    let shared = Policy::plain("shared").retry(&alone).build().unwrap();
    let (whole, attempt) = (policy.wrap(service), failing(counts));
    let mut calls: Vec<(&'static str, Boxed<_>)> = vec![("whole", Box::pin(whole.oneshot(())))];
    calls.push(("bare", Box::pin(async move { bare.call(attempt).await })));
    let attempt = failing(counts);
    calls.push(("shared", Box::pin(async move { shared.call(attempt).await })));
    let mut attempt = failing(counts);
    calls.push(("alone", Box::pin(async move { alone.run(|_| attempt()).await })));
    calls
}

// ---------------------------------------------------------------- retry

#[tokio::test(start_paused = true)]
async fn a_call_in_a_backoff_is_answered_at_once_when_it_drains() {
    for force in [false, true] {
        let (_shutdown, handle) = shutdown();
        let counts = Counts::default();
        let calls: Vec<_> =
            every_way_to_retry(&handle, &counts).into_iter().map(|(name, call)| (name, tokio::spawn(call))).collect();
        settle().await;
        assert_eq!(counts.calls(), 4);
        assert!(calls.iter().all(|(_, call)| !call.is_finished()));
        let began = Instant::now();
        if force {
            handle.force();
        } else {
            handle.signal(Signal::Terminate);
        }
        for (name, call) in calls {
            assert_draining(&rejection(call.await.unwrap()), name);
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(counts.calls(), 4, "nothing was tried again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_in_its_second_backoff_is_answered_too() {
    let (_shutdown, handle) = shutdown();
    let counts = Counts::default();
    let policy = Policy::plain("users").retry(hourly()).shutdown(&handle).build().unwrap();
    let attempt = failing(&counts);
    let call = tokio::spawn(async move { policy.call(attempt).await });
    sleep(HOUR + secs(1)).await;
    assert_eq!(counts.calls(), 2);
    handle.trigger("deploy");
    settle().await;
    assert!(call.is_finished());
    assert_draining(&rejection(call.await.unwrap()), "users");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_woken_by_its_timer_once_it_drains_is_not_tried_again() {
    let (_shutdown, handle) = shutdown();
    let counts = Counts::default();
    let policy = Policy::plain("users").retry(hourly()).shutdown(&handle).build().unwrap();
    let mut call = task::spawn(policy.call(failing(&counts)));
    assert_pending!(call.poll());
    // Both have come when it is polled.
    advance(HOUR + secs(1)).await;
    handle.trigger("deploy");
    assert!(call.is_woken());
    assert_draining(&rejection(assert_ready!(call.poll())), "users");
    assert_eq!(counts.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_last_outcome_is_returned_unchanged_when_no_retry_may_start() {
    let (_shutdown, handle) = shutdown();
    let policy = Policy::plain("users").retry(hourly()).shutdown(&handle).build().unwrap();
    let (fail, failed) = oneshot::channel::<&'static str>();
    let mut failed = Some(failed);
    let mut call = task::spawn(policy.call(|| {
        let failed = failed.take().expect("one attempt");
        async move { Err::<(), _>(failed.await.unwrap()) }
    }));
    assert_pending!(call.poll());
    handle.trigger("deploy");
    assert!(!call.is_woken(), "an attempt that runs goes on");
    assert_pending!(call.poll());
    fail.send("no such user").unwrap();
    assert_eq!(assert_ready!(call.poll()), Err(Error::Inner("no such user")));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_timed_out_is_returned_as_such_when_no_retry_may_start() {
    let (_shutdown, handle) = shutdown();
    let policy = Policy::plain("users").retry(hourly()).timeout(secs(1)).shutdown(&handle).build().unwrap();
    let call = tokio::spawn(async move { policy.call(pending::<Result<(), ()>>).await });
    settle().await;
    handle.trigger("deploy");
    assert_eq!(rejection(call.await.unwrap()).reason(), Reason::Timeout);
}

// HAZARD: R8
#[tokio::test(start_paused = true)]
async fn what_is_refused_by_a_shutdown_is_never_retried() {
    let (_shutdown, handle) = shutdown();
    let retry = Retry::constant(ms(1)).max_attempts(3).retry_rejected(Reason::ShuttingDown).build().unwrap();
    let breaker = CircuitBreaker::builder().consecutive_failures(1).build().unwrap();
    let policy = Policy::cloned("users").retry(retry).circuit_breaker(&breaker).build().unwrap();
    let counts = Counts::default();
    let inner = {
        let counts = counts.clone();
        service_fn(move |()| {
            counts.enter();
            ready(Ok::<_, Error<&str>>(()))
        })
    };
    let mut service = policy.layer().layer(handle.layer().named("users").layer(inner));
    handle.force();
    let began = Instant::now();
    let refused = rejection(service.ready().await.unwrap().call(()).await);
    assert_eq!(began.elapsed(), Duration::ZERO, "there is no backoff");
    assert_eq!((refused.reason(), refused.rule(), refused.name()), (Reason::ShuttingDown, Rule::Stopping, "users"));
    assert_eq!(counts.calls(), 0);
    assert_eq!(breaker.state(), State::Closed, "it says nothing about the service");
    assert_eq!(breaker.snapshot().calls, 0);
}

/// A waker whose clones can be counted.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_in_a_backoff_or_leaves_it_leaves_nothing_behind() {
    let (_shutdown, handle) = shutdown();
    let policy = Policy::plain("users")
        .retry(hourly())
        .concurrency_limit(single())
        .circuit_breaker(CircuitBreaker::builder())
        .shutdown(&handle)
        .build()
        .unwrap();
    let counts = Counts::default();
    let (woken, other) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
    for leaves in [false, true] {
        let (waker, second) = (Waker::from(woken.clone()), Waker::from(other.clone()));
        let mut call = Box::pin(policy.call(failing(&counts)));
        assert_pending!(call.as_mut().poll(&mut Context::from_waker(&waker)));
        assert_pending!(call.as_mut().poll(&mut Context::from_waker(&waker)));
        drop(waker);
        assert!(Arc::strong_count(&woken) > 1);
        // Another task polls it: the former's waker is let go of.
        assert_pending!(call.as_mut().poll(&mut Context::from_waker(&second)));
        drop(second);
        assert_eq!(Arc::strong_count(&woken), 1);
        if leaves {
            // The last attempt ends it.
            for _ in 0..2 {
                advance(HOUR + secs(1)).await;
                let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            }
        } else {
            drop(call);
        }
        assert_eq!((Arc::strong_count(&woken), Arc::strong_count(&other)), (1, 1));
    }
    assert_eq!(counts.calls(), 4);
    let so_far = other.0.load(SeqCst);
    handle.trigger("deploy");
    assert_eq!((woken.0.load(SeqCst), other.0.load(SeqCst)), (0, so_far), "nobody is woken any more");
    assert_eq!(policy.concurrency_limit().unwrap().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn calls_that_come_and_go_do_not_mix_up_who_is_woken() {
    let (_shutdown, handle) = shutdown();
    let policy = Policy::plain("users").retry(hourly().without_budget()).shutdown(&handle).build().unwrap();
    let counts = Counts::default();
    let mut calls: Vec<_> = (0..6).map(|_| Some(task::spawn(policy.call(failing(&counts))))).collect();
    for call in calls.iter_mut().flatten() {
        assert_pending!(call.poll());
    }
    for gone in [4, 0, 2] {
        calls[gone] = None;
    }
    let mut again = task::spawn(policy.call(failing(&counts)));
    assert_pending!(again.poll());
    handle.trigger("deploy");
    for call in calls.iter_mut().flatten().chain([&mut again]) {
        assert!(call.is_woken());
        assert_draining(&rejection(assert_ready!(call.poll())), "users");
    }
}

// ---------------------------------------------------------------- the limit

#[tokio::test(start_paused = true)]
async fn the_queue_is_answered_at_once_and_who_has_a_permit_goes_on() {
    let (_shutdown, handle) = shutdown();
    let breaker = CircuitBreaker::builder().consecutive_failures(1).build().unwrap();
    let policy = Policy::plain("users")
        .retry(hourly())
        .circuit_breaker(&breaker)
        .concurrency_limit(single().max_wait(HOUR))
        .shutdown(&handle)
        .build()
        .unwrap();
    let limit = policy.concurrency_limit().unwrap();
    let (end, ended) = oneshot::channel::<u32>();
    let mut ended = Some(ended);
    let mut holder = task::spawn(policy.call(|| {
        let ended = ended.take().unwrap();
        async move { Ok::<_, ()>(ended.await.unwrap()) }
    }));
    assert_pending!(holder.poll());
    let mut queue: Vec<_> = (0..3).map(|_| task::spawn(policy.call(|| ready(Ok::<_, ()>(0))))).collect();
    for call in &mut queue {
        assert_pending!(call.poll());
    }
    assert_eq!((limit.in_flight(), limit.waiting()), (1, 3));

    handle.trigger("deploy");
    for call in &mut queue {
        assert!(call.is_woken());
        assert_draining(&rejection(assert_ready!(call.poll())), "users");
    }
    assert_eq!((limit.in_flight(), limit.waiting()), (1, 0));
    let mut late = task::spawn(policy.call(|| ready(Ok::<_, ()>(0))));
    assert_draining(&rejection(assert_ready!(late.poll())), "users");

    assert!(!holder.is_woken());
    end.send(42).unwrap();
    assert_eq!(assert_ready!(holder.poll()), Ok(42));
    assert_eq!(limit.in_flight(), 0);
    assert_eq!(policy.call(|| ready(Ok::<_, ()>(7))).await, Ok(7), "what need not wait is served");
    assert_eq!(limit.in_flight(), 0);
    assert_eq!((breaker.state(), breaker.snapshot().calls), (State::Closed, 2), "who waited counts as nothing");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_permit_by_hand_is_answered_too() {
    for max_wait in [None, Some(HOUR)] {
        let (_shutdown, handle) = shutdown();
        let builder = single().name("pool").shutdown(&handle);
        let limit = match max_wait {
            Some(time) => builder.max_wait(time),
            None => builder,
        };
        let limit = limit.build().unwrap();
        let held = limit.acquire().await.unwrap();
        let mut waiting: Vec<_> = (0..3).map(|_| task::spawn(limit.acquire())).collect();
        for waiter in &mut waiting {
            assert_pending!(waiter.poll());
        }
        handle.trigger("deploy");
        for mut waiter in waiting {
            assert!(waiter.is_woken());
            assert_draining(&assert_ready!(waiter.poll()).unwrap_err(), "pool");
        }
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 0), "the permit that is held is still held");
        assert_draining(&limit.acquire().await.unwrap_err(), "pool");
        assert_eq!(limit.try_acquire().unwrap_err().reason(), Reason::Overloaded);
        drop(held);
        assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
        let permit = limit.acquire().await.expect("what is free is had");
        assert_eq!(limit.in_flight(), 1);
        assert_eq!(limit.try_acquire().unwrap_err().reason(), Reason::Overloaded, "and it is still a limit of one");
        drop(permit);
    }
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_was_granted_before_it_drains_is_used() {
    let (_shutdown, handle) = shutdown();
    let limit = single().shutdown(&handle).build().unwrap();
    let held = limit.try_acquire().unwrap();
    let mut waiters = [task::spawn(limit.acquire()), task::spawn(limit.acquire())];
    for waiter in &mut waiters {
        assert_pending!(waiter.poll());
    }
    drop(held);
    handle.trigger("deploy");
    let [mut granted, mut late] = waiters;
    let permit = assert_ready!(granted.poll()).unwrap();
    assert_eq!(assert_ready!(late.poll()).unwrap_err().reason(), Reason::ShuttingDown);
    assert_eq!((limit.in_flight(), limit.waiting()), (1, 0));
    drop((permit, granted, late));
    assert_eq!(limit.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_comes_free_between_the_drain_and_the_answer_is_not_lost() {
    let (_shutdown, handle) = shutdown();
    let limit = single().shutdown(&handle).build().unwrap();
    let held = limit.try_acquire().unwrap();
    let mut waiters: Vec<_> = (0..3).map(|_| task::spawn(limit.call(pending::<Result<(), ()>>()))).collect();
    for waiter in &mut waiters {
        assert_pending!(waiter.poll());
    }
    handle.trigger("deploy");
    // It is granted to the first in the queue, which has not looked yet.
    drop(held);
    assert_pending!(waiters[0].poll(), "it has its permit");
    assert!(assert_ready!(waiters[1].poll()).is_err());
    drop(waiters);
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
    assert!(limit.try_acquire().is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_is_dropped_in_the_queue_once_it_drains_takes_nothing_along() {
    let (_shutdown, handle) = shutdown();
    let limit = single().shutdown(&handle).build().unwrap();
    let held = limit.try_acquire().unwrap();
    let mut by_hand = task::spawn(limit.acquire());
    let mut call = task::spawn(limit.call(ready(Ok::<_, ()>(()))));
    assert_pending!(by_hand.poll());
    assert_pending!(call.poll());
    handle.trigger("deploy");
    drop((by_hand, call));
    assert_eq!((limit.in_flight(), limit.waiting()), (1, 0));
    drop(held);
    assert_eq!(limit.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_comes_once_it_drains_takes_no_place_in_the_queue() {
    let (_shutdown, handle) = shutdown();
    let limit = single().name("pool").shutdown(&handle).build().unwrap();
    let _held = limit.try_acquire().unwrap();
    handle.trigger("deploy");
    // A service decides when it is called; nobody may ever poll what it returns.
    let late = limit.layer().layer(service_fn(|(): ()| ready(Ok::<_, Error<()>>(())))).call(());
    assert_eq!((limit.in_flight(), limit.waiting()), (1, 0));
    assert_draining(&rejection(late.await), "pool");
}

// "a call that finds no permit too": whatever the queue.
#[tokio::test(start_paused = true)]
async fn who_finds_no_permit_once_it_drains_hears_of_the_shutdown_without_a_queue_too() {
    let (_shutdown, handle) = shutdown();
    let limit = ConcurrencyLimit::builder().name("pool").max_in_flight(1).max_queue(0).shutdown(&handle);
    let limit = limit.build().unwrap();
    let _held = limit.try_acquire().unwrap();
    assert_eq!(limit.acquire().await.unwrap_err().reason(), Reason::Overloaded);
    handle.trigger("deploy");
    assert_draining(&limit.acquire().await.unwrap_err(), "pool");
}

// ---------------------------------------------------------------- who knows of it

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_built_once_it_drains_does_the_same() {
    for done in [false, true] {
        let shutdown = prompt().build().unwrap();
        let handle = shutdown.handle();
        handle.trigger("deploy");
        if done {
            shutdown.wait().await;
        }
        let counts = Counts::default();
        for (_, call) in every_way_to_retry(&handle, &counts) {
            let mut call = task::spawn(call);
            assert_eq!(assert_ready!(call.poll()), Err(Error::Inner("no luck")), "one attempt, and its outcome");
        }
        assert_eq!(counts.calls(), 4);
        let policy = Policy::plain("users").concurrency_limit(single()).shutdown(&handle).build().unwrap();
        let held = policy.concurrency_limit().unwrap().try_acquire().unwrap();
        assert_draining(&rejection(policy.call(|| ready(Ok::<_, ()>(()))).await), "users");
        drop(held);
        assert_eq!(policy.call(|| ready(Ok::<_, ()>(()))).await, Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn parts_that_were_built_alone_keep_their_own_and_others_know_of_none() {
    let (_shutdown, handle) = shutdown();
    let (alone, limit) = (hourly().without_budget().build().unwrap(), single().build().unwrap());
    let policy = Policy::plain("users").retry(&alone).concurrency_limit(&limit).shutdown(&handle).build().unwrap();
    let counts = Counts::default();
    let mut call = task::spawn(policy.call(failing(&counts)));
    assert_pending!(call.poll());
    handle.trigger("deploy");
    assert!(!call.is_woken());
    let _held = limit.try_acquire().unwrap();
    let mut waiting = task::spawn(limit.acquire());
    assert_pending!(waiting.poll());
}

#[tokio::test(start_paused = true)]
async fn one_shutdown_is_told_to_many_policies_and_some_are_gone() {
    let (_shutdown, handle) = shutdown();
    let make = || single().shutdown(&handle).build().unwrap();
    let kept: Vec<_> = (0..20).map(|_| (make(), drop(make())).0).collect();
    let held: Vec<_> = kept.iter().map(|limit| limit.try_acquire().unwrap()).collect();
    let mut waiting: Vec<_> = kept.iter().map(|limit| task::spawn(limit.acquire())).collect();
    for waiter in &mut waiting {
        assert_pending!(waiter.poll());
    }
    handle.trigger("deploy");
    for waiter in &mut waiting {
        assert!(waiter.is_woken());
        assert_eq!(assert_ready!(waiter.poll()).unwrap_err().reason(), Reason::ShuttingDown);
    }
    drop((waiting, held));
    assert!(kept.iter().all(|limit| limit.in_flight() == 0 && limit.waiting() == 0));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_finds_no_permit_while_it_drains_gives_its_place_back() {
    let (_shutdown, handle) = shutdown();
    let open_time = Backoff::constant(secs(1)).jitter(Jitter::None);
    let breaker = CircuitBreaker::builder().consecutive_failures(1).open_time(open_time).probes(1).build().unwrap();
    let policy =
        Policy::plain("users").circuit_breaker(&breaker).concurrency_limit(single()).shutdown(&handle).build().unwrap();
    assert!(policy.call(|| ready(Err::<(), _>("down"))).await.is_err());
    assert_eq!(breaker.state(), State::Open);
    advance(secs(2)).await;
    let held = policy.concurrency_limit().unwrap().try_acquire().unwrap();
    handle.trigger("deploy");
    for _ in 0..3 {
        assert_draining(&rejection(policy.call(|| ready(Ok::<_, &str>(()))).await), "users");
    }
    drop(held);
    assert_eq!(policy.call(|| ready(Ok::<_, &str>(()))).await, Ok(()), "the place of the probe is free");
}

// ---------------------------------------------------------------- stress

#[test]
fn whatever_waits_against_the_drain_is_answered() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    for round in 0..300 {
        let (shutdown, handle) = runtime.block_on(async {
            let shutdown = prompt().build().unwrap();
            let handle = shutdown.handle();
            (shutdown, handle)
        });
        let policy = Policy::plain("users")
            .retry(hourly().without_budget())
            .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(2).max_queue(100))
            .shutdown(&handle)
            .build()
            .unwrap();
        let limit = policy.concurrency_limit().unwrap().clone();
        let start = Arc::new(Barrier::new(3));
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let (policy, limit, start) = (policy.clone(), limit.clone(), start.clone());
                let runtime = runtime.handle().clone();
                std::thread::spawn(move || {
                    start.wait();
                    let spawn = |n: u32| {
                        let (policy, limit) = (policy.clone(), limit.clone());
                        runtime.spawn(async move {
                            match n % 3 {
                                0 => drop(limit.acquire().await),
                                1 => assert!(policy.call(|| ready(Err::<(), _>("no luck"))).await.is_err()),
                                _ => {
                                    let yields = || async {
                                        tokio::task::yield_now().await;
                                        Ok::<_, ()>(())
                                    };
                                    let _ = policy.call(yields).await;
                                }
                            }
                        })
                    };
                    (0..30).map(spawn).collect::<Vec<_>>()
                })
            })
            .collect();
        start.wait();
        for _ in 0..round {
            std::hint::spin_loop();
        }
        handle.trigger("deploy");
        let calls: Vec<_> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
        let all = async {
            for call in calls {
                call.await.unwrap();
            }
        };
        runtime.block_on(async { timeout(secs(20), all).await }).expect("nothing waits any more");
        assert_eq!((limit.in_flight(), limit.waiting()), (0, 0), "round {round}");
        drop(shutdown);
    }
}
