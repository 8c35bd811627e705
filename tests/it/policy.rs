//! The patterns joined: one type, one order, one error.

mod errors;

use std::{
    cell::Cell,
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, Cloned, ConcurrencyLimit, ConcurrencyLimitBuilder, Deadline,
    DeadlineLayer, Error, Jitter, Plain, Policy, PolicyService, Reason, Retry, RetryBuilder, Rule,
    circuit_breaker::State,
    retry::{Budget, current_attempt},
};
use tokio::time::{advance, sleep};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::support::{Counts, Echo, ms, secs};

fn retry() -> RetryBuilder {
    Retry::constant(ms(50)).jitter(Jitter::None).max_attempts(3).without_budget()
}

fn breaker() -> CircuitBreakerBuilder {
    let open_time = Backoff::constant(secs(60)).jitter(Jitter::None);
    CircuitBreaker::builder().without_failure_rate().consecutive_failures(100).open_time(open_time)
}

fn limit_of_one() -> ConcurrencyLimitBuilder {
    ConcurrencyLimit::builder().max_in_flight(1)
}

fn reason<T: std::fmt::Debug, E: std::fmt::Debug>(answer: Result<T, Error<E>>) -> Reason {
    answer.expect_err("refused").rejection().expect("refused").reason()
}

// ---------------------------------------------------------------- one type

#[tokio::test]
async fn the_type_is_the_same_whatever_is_switched_on() {
    let mut service: PolicyService<Echo, Cloned> = Policy::cloned("none").build().unwrap().layer().layer(Echo);
    assert_eq!(service.ready().await.unwrap().call(0).await, Ok(0));
    for parts in 1..32 {
        let on = |part: u64| parts & part != 0;
        let mut policy = Policy::cloned("some");
        if on(1) {
            policy = policy.deadline(secs(5));
        }
        if on(2) {
            policy = policy.retry(retry());
        }
        if on(4) {
            policy = policy.circuit_breaker(breaker());
        }
        if on(8) {
            policy = policy.concurrency_limit(limit_of_one());
        }
        if on(16) {
            policy = policy.timeout(secs(1));
        }
        let policy = policy.build().unwrap();
        assert_eq!(policy.retry().is_some(), on(2));
        assert_eq!(policy.circuit_breaker().is_some(), on(4));
        assert_eq!(policy.concurrency_limit().is_some(), on(8));
        service = policy.layer().layer(Echo);
        assert_eq!(service.ready().await.unwrap().call(parts).await, Ok(parts));
    }
}

/// A user's struct names the type without naming the parts.
struct Client {
    service: PolicyService<buttress::Lift<Odd>, Plain>,
}

/// A service whose error nobody but itself can make.
#[derive(Clone)]
struct Odd;

#[derive(Debug, PartialEq)]
struct IsEven(u64);

impl Service<u64> for Odd {
    type Response = u64;
    type Error = IsEven;
    type Future = std::future::Ready<Result<u64, IsEven>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), IsEven>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, n: u64) -> Self::Future {
        std::future::ready(if n % 2 == 1 { Ok(n) } else { Err(IsEven(n)) })
    }
}

#[tokio::test]
async fn wrap_fits_any_service_and_its_error_stays_within() {
    let policy = Policy::plain("odd").circuit_breaker(breaker()).build().unwrap();
    let client = Client { service: policy.wrap(Odd) };
    assert_eq!(client.service.send(3).await, Ok(3));
    assert_eq!(client.service.send(4).await, Err(Error::Inner(IsEven(4))));
    policy.circuit_breaker().unwrap().force_open();
    assert_eq!(reason(client.service.send(3).await), Reason::CircuitOpen);
}

// ---------------------------------------------------------------- calling functions

#[tokio::test(start_paused = true)]
async fn a_call_may_borrow_locals_and_change_them() {
    let policy = Policy::plain("borrows").retry(retry()).timeout(secs(1)).build().unwrap();
    let (words, mut attempts, seen) = (vec!["a".to_owned(), "b".to_owned()], 0, Cell::new(0));
    let answer = policy
        .call(|| {
            attempts += 1;
            let (words, seen) = (&words, &seen);
            async move {
                seen.set(seen.get() + words.len());
                if current_attempt() == Some(3) { Ok(words[1].as_str()) } else { Err("not yet") }
            }
        })
        .await;
    assert_eq!((answer, attempts, seen.get()), (Ok("b"), 3, 6));
    drop(words);
}

#[tokio::test]
async fn nothing_happens_before_the_first_poll() {
    let (policy, calls) = (Policy::plain("lazy").concurrency_limit(limit_of_one()).build().unwrap(), Counts::default());
    let call = policy.call(|| {
        let running = calls.enter();
        async move {
            drop(running);
            Ok::<_, Infallible>(())
        }
    });
    assert_eq!((calls.calls(), policy.concurrency_limit().unwrap().in_flight()), (0, 0));
    drop(call);
    assert_eq!(calls.calls(), 0);
}

// ---------------------------------------------------------------- the order of the parts

#[tokio::test(start_paused = true)]
async fn the_attempt_timeout_does_not_count_the_queue() {
    let policy = Policy::plain("queues").concurrency_limit(limit_of_one()).timeout(ms(100)).build().unwrap();
    for (takes, outcome) in [(90, Ok(())), (110, Err(Reason::Timeout))] {
        let held = policy.concurrency_limit().unwrap().try_acquire().unwrap();
        let mut call = task::spawn(policy.call(|| async {
            sleep(ms(takes)).await;
            Ok::<_, Infallible>(())
        }));
        assert_pending!(call.poll());
        advance(secs(10)).await;
        assert_pending!(call.poll());
        drop(held);
        // From here on it runs, and its time counts.
        assert_pending!(call.poll());
        advance(ms(takes.min(100))).await;
        let answer = assert_ready!(call.poll());
        assert_eq!(answer.map_err(|error| error.rejection().unwrap().reason()), outcome);
    }
}

#[tokio::test(start_paused = true)]
async fn no_permit_is_held_through_a_backoff() {
    let policy = Policy::plain("p").retry(retry()).concurrency_limit(limit_of_one().max_queue(0)).build().unwrap();
    let mut fails = task::spawn(policy.call(|| async { Err::<(), _>("no") }));
    assert_pending!(fails.poll());
    assert_eq!(policy.concurrency_limit().unwrap().in_flight(), 0);
    assert_eq!(policy.call(|| async { Ok::<_, Infallible>(7) }).await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn each_attempt_is_counted_by_the_breaker() {
    let policy = Policy::plain("p").retry(retry()).circuit_breaker(breaker()).build().unwrap();
    let answer = policy.call(|| async { if current_attempt() == Some(3) { Ok(7) } else { Err("no") } }).await;
    assert_eq!(answer, Ok(7));
    let seen = policy.circuit_breaker().unwrap().snapshot();
    assert_eq!((seen.calls, seen.failures), (3, 2));
}

// HAZARD: R8
#[tokio::test(start_paused = true)]
async fn an_open_circuit_stops_the_retry_and_the_last_outcome_is_returned_unchanged() {
    let calls = AtomicUsize::new(0);
    let policy = Policy::plain("p")
        .retry(retry().max_attempts(10))
        .circuit_breaker(breaker().consecutive_failures(2))
        .build()
        .unwrap();
    let mut call = task::spawn(policy.call(|| {
        let n = calls.fetch_add(1, SeqCst) + 1;
        async move { Err::<(), _>(format!("failure {n}")) }
    }));
    assert_pending!(call.poll());
    advance(ms(50)).await;
    let answer = assert_ready!(call.poll());
    assert_eq!(answer, Err(Error::Inner("failure 2".to_owned())), "at once: no backoff before giving up");
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Open);
    assert_eq!(reason(policy.call(|| async { Ok::<_, Infallible>(()) }).await), Reason::CircuitOpen);
}

// HAZARD: R8
#[tokio::test(start_paused = true)]
async fn a_circuit_that_was_forced_open_stops_the_retry_too() {
    let policy = Policy::plain("p").retry(retry()).circuit_breaker(breaker()).build().unwrap();
    let down = || async {
        policy.circuit_breaker().unwrap().force_open();
        Err::<(), _>("down")
    };
    let mut call = task::spawn(policy.call(down));
    assert_eq!(assert_ready!(call.poll()), Err(Error::Inner("down")), "at once, and what the service said");
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_opens_during_a_backoff_refuses_the_next_attempt() {
    let policy = Policy::plain("p").retry(retry()).circuit_breaker(breaker()).build().unwrap();
    let calls = AtomicUsize::new(0);
    let mut call = task::spawn(policy.call(|| {
        calls.fetch_add(1, SeqCst);
        async { Err::<(), _>("no") }
    }));
    assert_pending!(call.poll());
    policy.circuit_breaker().unwrap().force_open();
    advance(ms(50)).await;
    assert_eq!(reason(assert_ready!(call.poll())), Reason::CircuitOpen);
    assert_eq!(calls.load(SeqCst), 1);
}

// HAZARD: B10, C6
#[tokio::test(start_paused = true)]
async fn a_call_whose_circuit_opened_while_it_queued_is_refused_and_passes_the_permit_on() {
    let policy = Policy::plain("p").circuit_breaker(breaker()).concurrency_limit(limit_of_one()).build().unwrap();
    let (circuit, limit) = (policy.circuit_breaker().unwrap(), policy.concurrency_limit().unwrap());
    let held = limit.try_acquire().unwrap();
    let mut queued = task::spawn(policy.call(|| async { Ok::<_, Infallible>(()) }));
    assert_pending!(queued.poll());
    circuit.force_open();
    drop(held);
    assert_eq!(reason(assert_ready!(queued.poll())), Reason::CircuitOpen);
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0), "although the future is still there");
    drop(queued);
    assert_eq!(limit.in_flight(), 0, "given back once");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_covers_the_queue_the_attempts_and_the_backoff() {
    let policy = Policy::plain("p").deadline(ms(100)).retry(retry()).concurrency_limit(limit_of_one());
    let policy = policy.timeout(ms(80)).build().unwrap();
    let limit = policy.concurrency_limit().unwrap();
    let held = limit.try_acquire().unwrap();
    assert_eq!(reason(policy.call(|| async { Ok::<_, Infallible>(()) }).await), Reason::DeadlineExceeded);
    drop(held);

    // 60 ms, 50 ms of backoff do not fit: what there is is returned, and nothing sleeps past the deadline.
    let slow = || async {
        sleep(ms(60)).await;
        Err::<(), _>("slow")
    };
    assert_eq!(policy.call(slow).await, Err(Error::Inner("slow")));
    // Cut off by the deadline, which is nearer than the timeout of the second attempt.
    let slower = || async {
        sleep(ms(if current_attempt() == Some(1) { 40 } else { 1_000 })).await;
        Err::<(), _>("slow")
    };
    assert_eq!(reason(policy.call(slower).await), Reason::DeadlineExceeded);
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

// HAZARD: B17
#[tokio::test(start_paused = true)]
async fn what_the_limit_refuses_is_no_failure_to_the_breaker() {
    let policy = Policy::plain("p")
        .circuit_breaker(breaker().consecutive_failures(1))
        .concurrency_limit(limit_of_one().max_queue(0))
        .build()
        .unwrap();
    let held = policy.concurrency_limit().unwrap().try_acquire().unwrap();
    for _ in 0..10 {
        assert_eq!(reason(policy.call(|| async { Ok::<_, Infallible>(()) }).await), Reason::Overloaded);
    }
    drop(held);
    let seen = policy.circuit_breaker().unwrap().snapshot();
    assert_eq!((seen.state, seen.calls), (State::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn the_attempt_timeout_bounds_each_attempt_and_is_a_failure_to_the_breaker() {
    let policy = Policy::plain("p").retry(retry()).circuit_breaker(breaker()).timeout(ms(100)).build().unwrap();
    let third_is_quick = || async {
        match current_attempt() {
            Some(3) => Ok::<_, Infallible>(7),
            _ => std::future::pending().await,
        }
    };
    let mut call = task::spawn(policy.call(third_is_quick));
    for wait in [100, 50, 100, 50] {
        assert_pending!(call.poll());
        advance(ms(wait)).await;
    }
    assert_eq!(assert_ready_ok!(call.poll()), 7);
    assert_eq!(policy.circuit_breaker().unwrap().snapshot().failures, 2);
}

// ---------------------------------------------------------------- seen from within

#[tokio::test(start_paused = true)]
async fn a_nested_policy_never_outlives_the_outer_deadline() {
    let outer = Policy::plain("outer").deadline(ms(100)).build().unwrap();
    let inner = Policy::plain("inner").deadline(secs(60)).retry(retry().max_attempts(100)).build().unwrap();
    let nested = outer.call_as(|| {
        inner.call(|| async {
            assert!(Deadline::current().unwrap().remaining() <= ms(100));
            std::future::pending::<Result<(), Infallible>>().await
        })
    });
    let mut nested = task::spawn(nested);
    assert_pending!(nested.poll());
    advance(ms(100)).await;
    assert_eq!(reason(assert_ready!(nested.poll())), Reason::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn an_attempts_number_is_seen_through_layers_that_do_not_retry() {
    assert_eq!(current_attempt(), None);
    let number = service_fn(|()| async { Err::<(), _>(Error::Inner(current_attempt())) });
    let retry = retry().build().unwrap();
    let direct = retry.layer().layer(number).send(()).await;
    assert_eq!(direct, Err(Error::Inner(Some(3))));
    let through = retry.layer().layer(DeadlineLayer::new(secs(1)).layer(number)).send(()).await;
    assert_eq!(through, Err(Error::Inner(Some(3))), "a deadline makes no attempts of its own");
    let alone = DeadlineLayer::new(secs(1)).layer(number).send(()).await;
    assert_eq!(alone, Err(Error::Inner(None)), "there is no retry at all");
}

// ---------------------------------------------------------------- sharing

#[tokio::test(start_paused = true)]
async fn two_policies_can_share_a_breaker_a_limit_and_a_retry() {
    let breaker = breaker().name("database").consecutive_failures(1).build().unwrap();
    let limit = limit_of_one().max_queue(0).build().unwrap();
    let budget = Budget::builder().ratio(0.0).min_per_second(1).build().unwrap();
    let retry = retry().budget(budget).build().unwrap();
    let build = |name| Policy::plain(name).retry(&retry).concurrency_limit(&limit).build().unwrap();
    let (reads, writes) = (build("reads"), build("writes"));
    let (guarded, other) = (
        Policy::plain("guarded").circuit_breaker(&breaker).build().unwrap(),
        Policy::plain("other").circuit_breaker(breaker.clone()).build().unwrap(),
    );

    let mut stalled = task::spawn(reads.call(std::future::pending::<Result<(), Infallible>>));
    assert_pending!(stalled.poll());
    assert_eq!(reason(writes.call(|| async { Ok::<_, Infallible>(()) }).await), Reason::Overloaded);
    drop(stalled);

    // Ten retries in ten seconds for both together: five calls of three attempts.
    let calls = AtomicUsize::new(0);
    for _ in 0..10 {
        for policy in [&reads, &writes] {
            let _ = policy.call(|| async { Err::<(), _>(calls.fetch_add(1, SeqCst)) }).await;
        }
    }
    assert_eq!(calls.load(SeqCst), 20 + 10);

    guarded.call(|| async { Err::<(), _>("down") }).await.unwrap_err();
    let refused = other.call(|| async { Ok::<_, Infallible>(()) }).await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().name(), "database", "a shared breaker keeps its name");
}

#[tokio::test(start_paused = true)]
async fn parts_of_a_policy_bear_its_name() {
    let policy = Policy::plain("users")
        .circuit_breaker(breaker())
        .concurrency_limit(limit_of_one().max_queue(0))
        .timeout(ms(1))
        .build()
        .unwrap();
    let mut names = Vec::new();
    let mut note = |answer: Result<(), Error<Infallible>>| {
        let refused = answer.unwrap_err();
        let refused = refused.rejection().unwrap();
        names.push((refused.name(), refused.rule()));
    };
    note(policy.call(std::future::pending).await);
    let held = policy.concurrency_limit().unwrap().try_acquire().unwrap();
    note(policy.call(|| async { Ok(()) }).await);
    drop(held);
    policy.circuit_breaker().unwrap().force_open();
    note(policy.call(|| async { Ok(()) }).await);
    assert_eq!(names, [("users", Rule::AttemptTimeout), ("users", Rule::LimitReached), ("users", Rule::Forced)]);
}
