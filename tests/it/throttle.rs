//! Client throttling: who is refused by chance, what counts, and what does not.

use std::{future::pending, panic::AssertUnwindSafe, time::Duration};

use buttress::{
    Backoff, CircuitBreaker, ConcurrencyLimit, Deadline, Error, Hedge, Jitter, Keyed, Policy, Reason, Retry, Rule,
    Throttle, ThrottleBuilder, Timeout, Verdict, circuit_breaker::State, retry::Budget, throttle::Snapshot,
};
use futures_util::FutureExt;
use tokio::time::{Instant, advance, sleep, timeout};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt, limit, service_fn};

use crate::support::{Counts, Echo, ms, secs};

type Outcome<T> = Result<T, Error<&'static str>>;

/// Refuses everything once anything was not accepted: what it would do by chance it does for sure.
fn strict() -> ThrottleBuilder {
    Throttle::envoy().aggression(f64::MAX).max_rejection(1.0)
}

/// By Google's, as long as nothing is accepted.
fn strict_google() -> ThrottleBuilder {
    Throttle::google().multiplier(f64::MAX).aggression(1e300)
}

/// One that does.
async fn refusing(builder: ThrottleBuilder) -> Throttle {
    let throttle = builder.build().unwrap();
    fail(&throttle).await;
    throttle
}

async fn fail(throttle: &Throttle) {
    assert_eq!(throttle.call(async { Err::<(), _>("busy") }).await, Err(Error::Inner("busy")));
}

fn counted(throttle: &Throttle) -> (u64, u64) {
    let Snapshot { requests, accepts, .. } = throttle.snapshot();
    (requests, accepts)
}

fn rule<T>(outcome: &Outcome<T>) -> Option<Rule> {
    outcome.as_ref().err().and_then(|error| error.rejection()).map(|no| no.rule())
}

fn every(delay: Duration, attempts: u32) -> buttress::RetryBuilder {
    Retry::with(Backoff::constant(delay).jitter(Jitter::None)).max_attempts(attempts).without_budget()
}

// ---------------------------------------------------------------- by chance

/// Calls of a service that accepts so many of a hundred, each 5 ms after the last: what share of them reached it, of the last
/// thousand.
async fn sent_of(throttle: &Throttle, accepts: usize) -> f64 {
    let counts = Counts::default();
    let service = throttle.layer().layer(service_fn(|()| {
        drop(counts.enter());
        // Spread evenly.
        let accepted = (counts.calls() + 1) * accepts / 100 > counts.calls() * accepts / 100;
        async move { if accepted { Ok(()) } else { Err(Error::Inner("busy")) } }
    }));
    let mut before = 0;
    for call in 0..12_000 {
        if call == 11_000 {
            before = counts.calls();
        }
        let outcome: Outcome<()> = service.send(()).await;
        assert!(matches!(rule(&outcome), None | Some(Rule::AcceptRate)));
        advance(ms(5)).await;
    }
    (counts.calls() - before) as f64 / 1_000.0
}

#[tokio::test(start_paused = true)]
async fn in_a_brown_out_as_much_is_sent_as_envoys_formula_says() {
    for (accepts, expected) in [(100, 1.0), (95, 1.0), (75, 0.75 / 0.95), (50, 0.5 / 0.95), (0, 0.2)] {
        let throttle = Throttle::envoy().seed(7).build().unwrap();
        let sent = sent_of(&throttle, accepts).await;
        assert!((sent - expected).abs() < 0.04, "{sent} for {expected} where {accepts} % are accepted");
        let chance = throttle.snapshot().rejection_probability;
        assert!((chance - (1.0 - expected)).abs() < 0.02, "{chance}");
    }
}

#[tokio::test(start_paused = true)]
async fn googles_leaves_a_service_alone_that_accepts_less_than_half() {
    for (accepts, expected) in [(100, 1.0..=1.0), (60, 0.99..=1.0), (0, 0.0..=0.02)] {
        let throttle = Throttle::google().window(secs(20)).seed(7).build().unwrap();
        let sent = sent_of(&throttle, accepts).await;
        assert!(expected.contains(&sent), "{sent} for {expected:?} where {accepts} % are accepted");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_what_was_measured_and_the_service_is_not_asked() {
    let throttle = strict().name("stock").build().unwrap();
    assert_eq!(throttle.call(async { Ok::<_, &str>(1) }).await, Ok(1));
    fail(&throttle).await;
    let refused = throttle.call(async { unreachable!("it is not polled") }).await;
    let Err::<(), _>(Error::<&str>::Rejected(no)) = refused else { panic!("{refused:?}") };
    assert_eq!((no.name(), no.rule(), no.reason()), ("stock", Rule::AcceptRate, Reason::Overloaded));
    assert_eq!((no.measured(), no.threshold(), no.retry_after()), (Some(0.5), Some(0.95), None));
    assert_eq!(no.to_string(), "service behind `stock` is overloaded: accept rate 0.50 < 0.95");
    assert_eq!(throttle.snapshot().rejected, 1);

    let google = Throttle::google().seed(7).build().unwrap();
    let no = loop {
        if let Err(Error::Rejected(no)) = google.call(async { Err::<(), _>("busy") }).await {
            break no;
        }
    };
    assert_eq!(no.to_string(), "service behind `throttle` is overloaded: accept rate 0.00 < 0.50");
}

#[tokio::test(start_paused = true)]
async fn what_it_refuses_is_a_request_by_googles_formula_and_none_by_envoys() {
    for (builder, requests) in [(strict_google(), 4), (strict(), 1)] {
        let throttle = refusing(builder).await;
        for _ in 0..3 {
            let refused = throttle.call(async { Ok::<_, &str>(()) }).await;
            assert_eq!(rule(&refused), Some(Rule::AcceptRate));
        }
        assert_eq!((counted(&throttle), throttle.snapshot().rejected), ((requests, 0), 3));
    }
}

#[tokio::test(start_paused = true)]
async fn once_the_window_has_gone_by_nothing_is_refused() {
    for builder in [strict(), strict_google().window(secs(30))] {
        let throttle = refusing(builder).await;
        sleep(secs(26)).await;
        assert_eq!(throttle.snapshot().rejection_probability, 1.0);
        sleep(secs(4)).await;
        assert_eq!(throttle.snapshot().rejection_probability, 0.0);
        assert_eq!(throttle.call(async { Ok::<_, &str>(1) }).await, Ok(1));
        assert_eq!((counted(&throttle), throttle.snapshot().accept_rate()), ((1, 1), 1.0));
    }
}

#[tokio::test(start_paused = true)]
async fn it_says_how_likely_a_refusal_is_of_the_next_call_and_not_of_one_after_the_next_failure() {
    let throttle = Throttle::google().window(secs(10)).build().unwrap();
    for accepted in [true; 8].into_iter().chain([false; 8]) {
        let _ = throttle.call(async { if accepted { Ok(()) } else { Err("busy") } }).await;
        sleep(ms(500)).await;
    }
    sleep(ms(5_500)).await;
    let seen = throttle.snapshot();
    assert_eq!((seen.accept_rate() < 0.5, seen.rejection_probability), (true, 0.0), "{seen:?}");
    assert_eq!(throttle.call(async { Err::<(), _>("busy") }).await, Err(Error::Inner("busy")), "it is not even drawn");
    assert!(throttle.snapshot().rejection_probability > 0.5);
}

/// Which of a hundred calls are refused.
async fn refused(throttle: &Throttle) -> Vec<bool> {
    fail(throttle).await;
    let mut refused = Vec::new();
    for _ in 0..100 {
        refused.push(rule(&throttle.call(async { Err::<(), _>("busy") }).await).is_some());
    }
    refused
}

#[tokio::test(start_paused = true)]
async fn a_seed_makes_chance_reproducible_its_own_or_that_of_the_policy() {
    let own = |seed| Throttle::envoy().seed(seed).build().unwrap();
    let one = refused(&own(1)).await;
    assert_eq!(one, refused(&own(1)).await);
    assert_ne!(one, refused(&own(2)).await);

    let of_policy = |seed, throttle: ThrottleBuilder| {
        let policy = Policy::plain("stock").seed(seed).throttle(throttle).build().unwrap();
        policy.throttle().unwrap().clone()
    };
    let two = refused(&of_policy(1, Throttle::envoy())).await;
    assert_eq!(two, refused(&of_policy(1, Throttle::envoy())).await);
    assert_ne!(two, refused(&of_policy(2, Throttle::envoy())).await);
    assert_eq!(one, refused(&of_policy(2, Throttle::envoy().seed(1))).await, "its own comes first");
}

// ---------------------------------------------------------------- what counts

#[tokio::test(start_paused = true)]
async fn every_verdict_is_accepted_not_accepted_or_nothing() {
    let table = [
        (Verdict::Success, (1, 1)),
        (Verdict::Permanent, (1, 1)),
        (Verdict::TRANSIENT, (1, 0)),
        (Verdict::THROTTLED, (1, 0)),
        (Verdict::Unsent, (1, 0)),
        (Verdict::Failed, (1, 0)),
        (Verdict::Ignored, (0, 0)),
    ];
    for (verdict, expected) in table {
        for answer in [Ok(()), Err("busy")] {
            let throttle = Throttle::google().build().unwrap();
            let judge = move |_: Result<&(), &&'static str>| verdict;
            let _ = throttle.call_with(judge, async { answer }).await;
            assert_eq!(counted(&throttle), expected, "{verdict:?} of {answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_way_to_call_counts_in_one_place() {
    let throttle = Throttle::google().build().unwrap();
    let clone = throttle.clone();
    assert_eq!(clone.call(async { Ok::<_, &str>(1) }).await, Ok(1));
    assert_eq!(clone.call_as(async { Ok::<_, Error<&str>>(2) }).await, Ok(2));
    assert_eq!(clone.layer().layer(Echo).send(3).await, Ok(3));
    assert_eq!(throttle.clone().layer().layer(Echo).send(4).await, Ok(4));
    let policy = Policy::plain("stock").throttle(&throttle).build().unwrap();
    assert_eq!(policy.call(|| async { Ok::<_, &str>(5) }).await, Ok(5));
    assert_eq!(policy.wrap(service_fn(async |n: u32| Ok::<_, &str>(n))).send(6).await, Ok(6));
    assert_eq!(counted(&throttle), (6, 6));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_or_out_of_time_or_panics_is_nothing() {
    let throttle = Throttle::google().build().unwrap();
    let policy = Policy::plain("stock").deadline(secs(1)).throttle(&throttle).build().unwrap();
    let hangs = || pending::<Result<(), &str>>();

    drop(throttle.call(hangs()));
    timeout(secs(9), throttle.call(hangs())).await.unwrap_err();
    timeout(ms(9), policy.call(hangs)).await.unwrap_err();
    assert_eq!(rule(&policy.call(hangs).await), Some(Rule::Deadline));
    let late = Deadline::after(ms(1)).enforce(throttle.call_as(pending::<Outcome<()>>())).await;
    late.unwrap_err();

    let panics = throttle.call(async { panic!("on purpose") as Result<(), &str> });
    AssertUnwindSafe(panics).catch_unwind().await.unwrap_err();
    let in_call = policy.layer().layer(service_fn(|_: ()| -> std::future::Ready<Outcome<()>> { panic!("on purpose") }));
    AssertUnwindSafe(in_call.send(())).catch_unwind().await.unwrap_err();
    assert_eq!(counted(&throttle), (0, 0));

    // It lasts for longer than the slow threshold of the breaker beside it, to which it is a failure.
    let breaker = CircuitBreaker::builder().slow_call(ms(1)).build().unwrap();
    let policy = Policy::plain("stock").circuit_breaker(&breaker).throttle(&throttle).build().unwrap();
    timeout(ms(9), policy.call(hangs)).await.unwrap_err();
    assert_eq!((breaker.snapshot().failures, counted(&throttle)), (1, (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_cut_off_by_its_own_time_was_not_accepted() {
    let throttle = strict().build().unwrap();
    let policy = Policy::plain("stock").timeout(ms(10)).throttle(&throttle).build().unwrap();
    let hangs = || pending::<Result<(), &str>>();
    assert_eq!(rule(&policy.call(hangs).await), Some(Rule::AttemptTimeout));
    assert_eq!((rule(&policy.call(hangs).await), counted(&throttle)), (Some(Rule::AcceptRate), (1, 0)));

    // Also by a layer below.
    let throttle = Throttle::google().build().unwrap();
    let inner = Timeout::new(ms(10));
    let cut_off: Outcome<()> = throttle.call_as(inner.call(hangs())).await;
    assert_eq!((rule(&cut_off), counted(&throttle)), (Some(Rule::AttemptTimeout), (1, 0)));
}

#[tokio::test(start_paused = true)]
async fn what_another_layer_of_ours_refuses_is_nothing() {
    let throttle = Throttle::google().build().unwrap();
    let breaker = CircuitBreaker::builder().build().unwrap();
    breaker.force_open();
    let refused: Outcome<()> = throttle.call_as(breaker.call(async { Ok(()) })).await;
    assert_eq!((rule(&refused), counted(&throttle)), (Some(Rule::Forced), (0, 0)));

    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
    let policy = Policy::plain("stock").throttle(&throttle).concurrency_limit(&limit).build().unwrap();
    let _held = limit.try_acquire().unwrap();
    let refused = policy.call(|| async { Ok::<_, &str>(()) }).await;
    assert_eq!((rule(&refused), counted(&throttle)), (Some(Rule::LimitReached), (0, 0)));
}

/// The service has accepted a call that it begins to answer, whatever becomes of the body.
#[cfg(feature = "http")]
#[tokio::test(start_paused = true)]
async fn a_response_counts_when_its_head_is_there() {
    use std::convert::Infallible;

    use axum::body::Body;
    use http::{Request, Response, StatusCode};

    let throttle = Throttle::google().build().unwrap();
    let policy = Policy::http_server("api").throttle(&throttle).build().unwrap();
    for (status, expected) in [(StatusCode::OK, (1, 1)), (StatusCode::SERVICE_UNAVAILABLE, (2, 1))] {
        let service = policy.layer().layer(service_fn(move |_: Request<Body>| async move {
            let body = Body::from_stream(futures_util::stream::pending::<Result<&str, std::io::Error>>());
            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
        }));
        let response = service.send(Request::new(Body::empty())).await.unwrap();
        assert_eq!(counted(&throttle), expected);
        drop(response);
        assert_eq!(counted(&throttle), expected, "once");
    }
}

// ---------------------------------------------------------------- beside others

#[tokio::test(start_paused = true)]
async fn each_attempt_counts_and_asks() {
    let throttle = Throttle::google().max_rejection(f64::MIN_POSITIVE).build().unwrap();
    let policy = Policy::plain("stock").retry(every(ms(1), 3)).throttle(&throttle).build().unwrap();
    let mut attempt = 0;
    let outcome = policy.call(|| {
        attempt += 1;
        async move { if attempt == 2 { Ok(attempt) } else { Err("busy") } }
    });
    assert_eq!((outcome.await, counted(&throttle)), (Ok(2), (2, 1)));

    // The first is not accepted, so the second is refused.
    let policy = Policy::plain("stock").retry(every(ms(1), 3)).throttle(strict()).build().unwrap();
    let counts = Counts::default();
    let refused = policy.call(|| {
        drop(counts.enter());
        async { Err::<(), _>("busy") }
    });
    assert_eq!((rule(&refused.await), counts.calls()), (Some(Rule::AcceptRate), 1));
}

#[tokio::test(start_paused = true)]
#[allow(clippy::disallowed_methods, reason = "a story looks at the clock, which is paused")]
async fn a_refusal_is_tried_again_only_if_told_to_after_a_backoff_and_within_the_budget() {
    for (retry, took, refusals) in [
        (every(ms(100), 3), ms(0), 1),
        (every(ms(100), 3).retry_rejected(Reason::Overloaded), ms(200), 3),
        (
            every(ms(100), 30)
                .budget(Budget::builder().ratio(0.0).min_per_second(1).build().unwrap())
                .retry_rejected(Reason::Overloaded),
            ms(1000),
            11,
        ),
    ] {
        let throttle = refusing(strict()).await;
        let policy = Policy::plain("stock").retry(retry).throttle(&throttle).build().unwrap();
        let start = Instant::now();
        assert_eq!(rule(&policy.call(|| async { Ok::<_, &str>(()) }).await), Some(Rule::AcceptRate));
        assert_eq!((start.elapsed(), throttle.snapshot().rejected), (took, refusals));
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_takes_no_permit_and_no_place_in_the_queue() {
    let throttle = refusing(strict()).await;
    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(1).build().unwrap();
    let policy = Policy::plain("stock").throttle(&throttle).concurrency_limit(&limit).build().unwrap();
    assert_eq!(rule(&policy.call(|| async { Ok::<_, &str>(()) }).await), Some(Rule::AcceptRate));
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
    let _held = limit.try_acquire().unwrap();
    assert_eq!(rule(&policy.call(|| async { Ok::<_, &str>(()) }).await), Some(Rule::AcceptRate));
    assert_eq!(limit.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_in_the_queue_is_not_asked_again() {
    let throttle = strict().build().unwrap();
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let policy = Policy::plain("stock").throttle(&throttle).concurrency_limit(&limit).build().unwrap();
    let held = limit.try_acquire().unwrap();
    let mut waits = task::spawn(policy.call(|| async { Ok::<_, &str>(()) }));
    assert_pending!(waits.poll());
    fail(&throttle).await;
    drop(held);
    assert_ready_ok!(waits.poll());
    assert_eq!((counted(&throttle), throttle.snapshot().rejected), ((2, 1), 0));
}

/// Until the circuit is open nobody is refused by chance; and chance keeps no probe away.
#[tokio::test(start_paused = true)]
async fn an_open_circuit_and_its_probes_are_not_left_to_chance() {
    let breaker = CircuitBreaker::builder()
        .without_failure_rate()
        .consecutive_failures(2)
        .probes(2)
        .open_time(Backoff::constant(secs(1)).jitter(Jitter::None))
        .build()
        .unwrap();
    let throttle = strict_google().build().unwrap();
    let policy = Policy::plain("stock").circuit_breaker(&breaker).throttle(&throttle).build().unwrap();
    assert_eq!(policy.call(|| async { Err::<(), _>("busy") }).await, Err(Error::Inner("busy")));
    assert_eq!(rule(&policy.call(|| async { Ok::<_, &str>(()) }).await), Some(Rule::AcceptRate));
    assert_eq!((breaker.snapshot().calls, counted(&throttle)), (1, (2, 0)), "its refusals are nothing to the breaker");

    breaker.try_acquire().unwrap().settle(Verdict::TRANSIENT);
    assert_eq!(breaker.state(), State::Open);
    let refused = policy.call(|| async { Ok::<_, &str>(()) }).await;
    assert_eq!((rule(&refused), counted(&throttle)), (Some(Rule::ConsecutiveFailures), (2, 0)));

    sleep(secs(1)).await;
    assert_eq!(throttle.snapshot().rejection_probability, 1.0);
    for _ in 0..2 {
        assert_eq!(policy.call(|| async { Ok::<_, &str>(()) }).await, Ok(()), "a probe");
    }
    assert_eq!((breaker.state(), counted(&throttle)), (State::Closed, (4, 2)));
    assert_eq!(policy.call(|| async { Ok::<_, &str>(()) }).await, Ok(()), "half of them were accepted");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_twice_while_anything_is_refused() {
    for (fails, calls) in [(0, 2), (1, 1)] {
        // Of many that were accepted one was not: nearly nothing is refused.
        let (throttle, counts) = (Throttle::envoy().accept_rate(1.0).seed(1).build().unwrap(), Counts::default());
        for call in 0..1_000 {
            let _ = throttle.call(async { if call < fails { Err("busy") } else { Ok(()) } }).await;
        }
        let policy = Policy::plain("stock").hedge(Hedge::after(ms(10))).throttle(&throttle).build().unwrap();
        let slow = policy.call(|| {
            drop(counts.enter());
            async {
                sleep(ms(30)).await;
                Ok::<_, &str>(())
            }
        });
        assert_eq!((slow.await, counts.calls()), (Ok(()), calls));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_gives_back_the_readiness_that_was_reserved_below() {
    let throttle = strict().build().unwrap();
    let one = limit::ConcurrencyLimit::new(Echo, 1);
    let mut other = one.clone();
    let mut service = throttle.layer().layer(one);
    service.ready().await.unwrap();
    fail(&throttle).await;
    let refused = service.call(7);
    assert!(task::spawn(other.ready()).poll().is_ready(), "held by nobody");
    assert_eq!(refused.await.unwrap_err().rejection().map(|no| no.rule()), Some(Rule::AcceptRate));
}

#[tokio::test(start_paused = true)]
async fn it_needs_no_timer_and_no_runtime() {
    let throttle = strict().build().unwrap();
    let asked = std::thread::spawn(move || {
        let mut call = task::spawn(throttle.call(async { Err::<(), _>("busy") }));
        assert_eq!(assert_ready!(call.poll()), Err(Error::Inner("busy")));
        rule(&assert_ready!(task::spawn(throttle.call(async { Ok::<_, &str>(()) })).poll()))
    });
    assert_eq!(asked.join().unwrap(), Some(Rule::AcceptRate));
}

// ---------------------------------------------------------------- by key

#[tokio::test(start_paused = true)]
async fn one_hosts_throttle_leaves_the_others_alone() {
    let hosts: Keyed<&str, _> = Keyed::each(strict()).build().unwrap();
    fail(&hosts.get(&"busy")).await;
    let service = hosts.layer(|host: &&'static str| *host);
    let service = service.layer(service_fn(async |host: &'static str| Outcome::Ok(host)));
    assert_eq!(rule(&service.send("busy").await), Some(Rule::AcceptRate));
    assert_eq!(service.send("fine").await, Ok("fine"));
    assert_eq!(hosts.active().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_refuses_is_not_forgotten_until_its_window_has_gone_by() {
    let policies = Keyed::each(Policy::plain("hosts").throttle(strict())).max_keys(1).build().unwrap();
    let throttles = Keyed::each(strict()).max_keys(1).build().unwrap();
    let _ = policies.get(&0).call(|| async { Err::<(), _>("busy") }).await;
    fail(&throttles.get(&0)).await;
    sleep(secs(26)).await;
    let _ = (policies.get(&1), throttles.get(&1));
    assert!(policies.peek(&0).is_some() && throttles.peek(&0).is_some());
    assert_eq!((policies.overflowed(), throttles.overflowed()), (1, 1));
    // Though nobody has asked it since.
    sleep(secs(4)).await;
    let _ = (policies.get(&1), throttles.get(&1));
    assert!(policies.peek(&0).is_none() && throttles.peek(&0).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_throttle_that_somebody_holds_is_kept_and_one_that_was_built_alone_keeps_no_policy() {
    let own = Keyed::each(Policy::plain("hosts").throttle(strict())).max_keys(1).build().unwrap();
    let held = own.get(&0).throttle().cloned();
    let _ = own.get(&1);
    assert!(own.peek(&0).is_some());
    drop(held);

    let shared = refusing(strict()).await;
    let alone = Keyed::each(Policy::plain("hosts").throttle(&shared)).max_keys(1).build().unwrap();
    let _ = alone.get(&0);
    let _ = alone.get(&1);
    assert!(alone.peek(&0).is_none(), "it lives on");
}

// ---------------------------------------------------------------- settings

#[test]
fn what_cannot_work_is_refused_by_name_value_and_range() {
    let (new, envoy) = (Throttle::google, Throttle::envoy);
    let back = ", to find out when the service is back";
    let number = "must be a finite number of at least 1";
    let share = "must be above 0 and at most 1";
    let table = [
        (new().name(""), "name = \"\": must not be empty: logs and rejections carry it".to_owned()),
        (new().window(ms(99)), "window = 99ms: must be between 100 ms and 1 h".to_owned()),
        (new().window(secs(3_601)), "window = 3601s: must be between 100 ms and 1 h".to_owned()),
        (envoy().multiplier(0.999), format!("multiplier = 0.999: {number}")),
        (envoy().multiplier(f64::NAN), format!("multiplier = NaN: {number}")),
        (envoy().multiplier(f64::INFINITY), format!("multiplier = inf: {number}")),
        (new().multiplier(1.0), format!("multiplier = 1.0: must be a finite number above 1{back}")),
        (new().multiplier(f64::NAN), format!("multiplier = NaN: must be a finite number above 1{back}")),
        (new().multiplier(f64::INFINITY), format!("multiplier = inf: must be a finite number above 1{back}")),
        (envoy().accept_rate(0.009), "accept_rate = 0.009: must be between 0.01 and 1".to_owned()),
        (envoy().accept_rate(1.01), "accept_rate = 1.01: must be between 0.01 and 1".to_owned()),
        (envoy().accept_rate(f64::NAN), "accept_rate = NaN: must be between 0.01 and 1".to_owned()),
        (new().accept_rate(0.009), format!("accept_rate = 0.009: must be at least 0.01 and below 1{back}")),
        (new().accept_rate(1.0), format!("accept_rate = 1.0: must be at least 0.01 and below 1{back}")),
        (new().aggression(0.5), format!("aggression = 0.5: {number}")),
        (new().aggression(f64::INFINITY), format!("aggression = inf: {number}")),
        (new().aggression(2.0), format!("aggression = 2.0: must be below the multiplier{back}")),
        (new().accept_rate(0.4).aggression(2.5), format!("aggression = 2.5: must be below the multiplier{back}")),
        (new().max_rejection(0.0), format!("max_rejection = 0.0: {share}")),
        (new().max_rejection(1.5), format!("max_rejection = 1.5: {share}")),
        (new().max_rejection(f64::NAN), format!("max_rejection = NaN: {share}")),
    ];
    for (builder, problem) in table {
        let error = builder.clone().build().unwrap_err();
        assert_eq!(error.to_string(), format!("invalid configuration: throttle.{problem}"));
        assert_eq!(Policy::plain("stock").throttle(builder).build().unwrap_err(), error);
    }
    let extreme = [
        envoy().window(ms(100)).multiplier(1.0),
        new().window(secs(3_600)).multiplier(f64::MAX).aggression(1e300),
        new().aggression(1.999),
        envoy().accept_rate(0.01).aggression(f64::MAX).max_rejection(f64::MIN_POSITIVE),
        envoy().accept_rate(1.0).min_calls_per_second(u32::MAX),
    ];
    for builder in extreme {
        assert!(builder.clone().build().is_ok(), "{builder:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn below_a_rate_of_calls_nothing_is_refused() {
    let throttle = strict().min_calls_per_second(2).build().unwrap();
    sleep(secs(60)).await;
    for _ in 0..59 {
        fail(&throttle).await;
    }
    assert_eq!(throttle.snapshot().rejection_probability, 0.0);
    fail(&throttle).await;
    assert_eq!(throttle.snapshot().rejection_probability, 1.0);
}
