//! How a rejection shows up: in errors of ours, of others and of the user, and in words.

use std::{error::Error as StdError, fmt, io};

use buttress::{
    CircuitBreaker, Classify, ConcurrencyLimit, Deadline, Error, Outcome, Policy, Reason, Reject, Rejection, Rule,
    Timeout, Verdict, circuit_breaker, impl_reject,
};
use tokio::time::{advance, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{BoxError, Layer, ServiceExt, service_fn};

use super::{breaker, limit_of_one, reason, retry};
use crate::support::{Counts, ms, secs};

fn a_rejection() -> Rejection {
    let breaker = breaker().name("stock").build().unwrap();
    breaker.force_open();
    breaker.try_acquire().unwrap_err()
}

/// A user's error that names a rejection as its source, one link down.
#[derive(Debug)]
struct Because<E>(E);

impl<E> fmt::Display for Because<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("could not load the page")
    }
}

impl<E: StdError + 'static> StdError for Because<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

/// A user's enum that carries rejections.
#[derive(Debug, PartialEq)]
enum ApiError {
    NotFound,
    Rejected(Rejection),
}
impl_reject!(ApiError, ApiError::Rejected);

/// Whether this is known for a rejection.
fn is_known<E: Reject<()>>(error: E) -> bool {
    matches!(E::inspect(&Err(error)), Outcome::Rejected(found) if *found == a_rejection())
}

fn comes_back_as_it_went_in<E: Reject<()> + fmt::Debug>() -> E {
    let outcome: Result<(), E> = E::reject(a_rejection());
    assert!(matches!(E::inspect(&outcome), Outcome::Rejected(found) if *found == a_rejection()));
    assert!(matches!(E::inspect(&Ok(())), Outcome::Ok(())));
    outcome.unwrap_err()
}

#[test]
fn a_rejection_comes_out_of_every_error_type_as_it_went_in() {
    assert_eq!(comes_back_as_it_went_in::<Error<u8>>(), Error::Rejected(a_rejection()));
    assert_eq!(comes_back_as_it_went_in::<ApiError>(), ApiError::Rejected(a_rejection()));
    assert_eq!(comes_back_as_it_went_in::<BoxError>().to_string(), a_rejection().to_string());
    let error = comes_back_as_it_went_in::<io::Error>();
    assert_eq!((error.kind(), error.to_string()), (io::ErrorKind::ConnectionRefused, a_rejection().to_string()));
}

#[tokio::test(start_paused = true)]
async fn an_io_error_of_ours_has_a_kind_that_fits() {
    let fails = || Err::<(), io::Error>(io::ErrorKind::NotFound.into());
    let timed_out = Timeout::new(ms(1)).call_as(std::future::pending::<io::Result<()>>()).await.unwrap_err();
    assert_eq!(timed_out.kind(), io::ErrorKind::TimedOut);
    let limit = limit_of_one().max_queue(0).build().unwrap();
    let _held = limit.try_acquire().unwrap();
    assert_eq!(limit.call_as(async { fails() }).await.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    let kept = Timeout::new(ms(1)).call_as(async { fails() }).await.unwrap_err();
    assert_eq!(kept.kind(), io::ErrorKind::NotFound, "the service's own error is left alone");
}

#[test]
fn what_is_no_rejection_is_not_taken_for_one() {
    assert!(!is_known::<BoxError>(Because(io::Error::other("disk")).into()));
    assert!(!is_known::<BoxError>("plain".into()));
    assert!(!is_known(io::Error::from(io::ErrorKind::TimedOut)));
    assert!(!is_known(io::Error::other(Because(fmt::Error))));
    assert!(!is_known(ApiError::NotFound));
    assert!(!is_known(Error::Inner(3)));
}

// HAZARD: C12
#[test]
fn a_rejection_is_known_in_a_users_chain_of_sources() {
    assert!(is_known::<BoxError>(Because(a_rejection()).into()));
    assert!(is_known::<BoxError>(Because(Because(a_rejection())).into()));
    assert!(is_known(io::Error::other(Because(a_rejection()))));
}

// HAZARD: B17, C12, R8
#[test]
fn a_rejection_that_became_an_io_error_is_known_in_a_box() {
    let io_error = || <io::Error as Reject<()>>::reject(a_rejection()).unwrap_err();
    assert!(is_known::<BoxError>(io_error().into()));
    assert!(is_known::<BoxError>(Because(io_error()).into()));
    assert!(is_known(io::Error::other(io_error())));
}

// HAZARD: B17, C12, R8
#[test]
fn a_rejection_that_came_as_our_error_is_known_in_a_box() {
    let ours = || Error::<fmt::Error>::Rejected(a_rejection());
    assert!(is_known::<BoxError>(ours().into_boxed()));
    assert!(is_known::<BoxError>(ours().into()), "as `?` makes it");
    assert!(is_known::<BoxError>(Because(ours()).into()));
    assert!(is_known(io::Error::other(ours())));
}

// HAZARD: B17, R8
#[tokio::test(start_paused = true)]
async fn what_an_inner_policy_refused_is_neither_repeated_nor_counted_by_the_outer() {
    let inner = Policy::plain("inner").circuit_breaker(breaker()).build().unwrap();
    inner.circuit_breaker().unwrap().force_open();
    let outer = Policy::plain("outer").retry(retry()).circuit_breaker(breaker()).build().unwrap();
    let attempts = Counts::default();

    // A handler as anybody would write it.
    let answer: Result<u32, BoxError> = outer
        .call_as(|| async {
            attempts.enter();
            let stock = inner.call(|| async { Ok::<_, io::Error>(7) }).await?;
            Ok(stock + 1)
        })
        .await;
    assert!(answer.is_err());
    assert_eq!(attempts.calls(), 1, "not repeated");
    assert_eq!(outer.circuit_breaker().unwrap().snapshot().calls, 0, "not counted");
}

// HAZARD: C12
#[test]
fn our_error_reads_as_what_it_holds_and_can_be_boxed() {
    let inner = Error::Inner(Because(io::Error::other("disk")));
    assert_eq!(inner.to_string(), "could not load the page");
    assert_eq!(inner.source().unwrap().to_string(), "disk");
    let boxed = inner.into_boxed();
    assert!(boxed.downcast_ref::<Because<io::Error>>().is_some());

    let boxed = Error::<BoxError>::Rejected(a_rejection()).into_boxed();
    assert_eq!(boxed.downcast_ref::<Rejection>(), Some(&a_rejection()));
    assert_eq!(Error::<BoxError>::Inner("plain".into()).into_boxed().to_string(), "plain");

    let (kept, refused) = (Error::Inner(7), Error::<u8>::Rejected(a_rejection()));
    assert_eq!((kept.inner(), kept.rejection(), kept.into_inner()), (Some(&7), None, Some(7)));
    assert_eq!((refused.inner(), refused.rejection(), refused.into_inner()), (None, Some(&a_rejection()), None));
}

#[test]
fn our_error_merges_into_an_error_that_a_rejection_converts_to() {
    #[derive(Debug, PartialEq)]
    struct Report(String);
    impl From<Rejection> for Report {
        fn from(rejection: Rejection) -> Self {
            Self(rejection.to_string())
        }
    }
    assert_eq!(Error::Inner(Report("disk".into())).merge(), Report("disk".into()));
    assert_eq!(Error::<Report>::Rejected(a_rejection()).merge(), Report(a_rejection().to_string()));
}

#[test]
fn a_clone_of_a_classifier_judges_as_the_first_does() {
    let judge = buttress::classify::from_fn(|answer: Result<&u16, &io::Error>| match answer {
        Ok(status) if *status >= 500 => Verdict::TRANSIENT,
        _ => Verdict::Permanent,
    });
    for judge in [judge.clone(), judge] {
        let said = [Ok(&200), Ok(&503), Err(&io::Error::other("disk"))].map(|answer| judge.classify(answer));
        assert_eq!(said, [Verdict::Permanent, Verdict::TRANSIENT, Verdict::Permanent]);
    }
}

// ---------------------------------------------------------------- a user's enum

#[tokio::test(start_paused = true)]
async fn call_as_keeps_the_error_type() {
    let policy = Policy::plain("api").circuit_breaker(breaker()).timeout(ms(10)).build().unwrap();
    let missing: Result<(), ApiError> = policy.call_as(|| async { Err(ApiError::NotFound) }).await;
    assert_eq!(missing, Err(ApiError::NotFound));
    let stalled: Result<(), ApiError> = policy.call_as(std::future::pending).await;
    assert!(matches!(stalled, Err(ApiError::Rejected(no)) if no.reason() == Reason::Timeout));
}

#[tokio::test(start_paused = true)]
async fn layers_over_a_users_enum_know_each_others_rejections() {
    let calls = Counts::default();
    let counts = calls.clone();
    let service = service_fn(move |found: bool| {
        counts.enter();
        async move { if found { Ok("page") } else { Err(ApiError::NotFound) } }
    });
    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
    let outer = CircuitBreaker::builder().consecutive_failures(1).build().unwrap();
    let stack = retry().build().unwrap().layer().layer(outer.layer().layer(limit.layer().layer(service)));
    assert_eq!(stack.clone().oneshot(true).await, Ok("page"));

    let held = limit.try_acquire().unwrap();
    let refused = stack.clone().oneshot(true).await;
    assert!(matches!(refused, Err(ApiError::Rejected(no)) if no.reason() == Reason::Overloaded));
    assert_eq!((calls.calls(), outer.state()), (1, circuit_breaker::State::Closed));
    drop(held);

    let refused = stack.clone().oneshot(false).await;
    assert!(matches!(refused, Err(ApiError::Rejected(no)) if no.reason() == Reason::CircuitOpen));
    assert_eq!(calls.calls(), 2, "a retry knows a circuit that opened below it, and stops");
}

#[tokio::test]
async fn a_classifier_over_a_users_enum_sees_the_enum() {
    let judge = buttress::classify::from_fn(|answer: Result<&(), &ApiError>| match answer {
        Err(ApiError::NotFound) => Verdict::Permanent,
        _ => Verdict::Success,
    });
    let breaker = breaker().consecutive_failures(1).build().unwrap();
    let policy = Policy::plain("api").circuit_breaker(&breaker).retry(retry()).classify(judge).build().unwrap();
    assert_eq!(policy.call_as(|| async { Err(ApiError::NotFound) }).await, Err(ApiError::NotFound));
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (1, 0));
}

// ---------------------------------------------------------------- in words

/// Dashboards and callers' `match`es are built on these.
#[test]
fn each_rule_has_its_name_and_its_reason() {
    let rules = [
        (Rule::FailureRate, "failure_rate", Reason::CircuitOpen),
        (Rule::SlowCallRate, "slow_call_rate", Reason::CircuitOpen),
        (Rule::ConsecutiveFailures, "consecutive_failures", Reason::CircuitOpen),
        (Rule::ProbesFailed, "probes_failed", Reason::CircuitOpen),
        (Rule::ProbeLease, "probe_lease", Reason::CircuitOpen),
        (Rule::ProbesOut, "probes_out", Reason::CircuitOpen),
        (Rule::Forced, "forced", Reason::CircuitOpen),
        (Rule::LimitReached, "limit_reached", Reason::Overloaded),
        (Rule::QueueFull, "queue_full", Reason::Overloaded),
        (Rule::MaxWait, "max_wait", Reason::Overloaded),
        (Rule::QueueStands, "queue_stands", Reason::Overloaded),
        (Rule::TooLate, "too_late", Reason::Overloaded),
        (Rule::RuntimeLate, "runtime_late", Reason::Overloaded),
        (Rule::AcceptRate, "accept_rate", Reason::Overloaded),
        (Rule::AttemptTimeout, "attempt_timeout", Reason::Timeout),
        (Rule::BodyIdle, "body_idle", Reason::Timeout),
        (Rule::BodyTimeout, "body_timeout", Reason::Timeout),
        (Rule::Deadline, "deadline", Reason::DeadlineExceeded),
        (Rule::Draining, "draining", Reason::ShuttingDown),
        (Rule::Stopping, "stopping", Reason::ShuttingDown),
    ];
    for (rule, name, reason) in rules {
        assert_eq!((rule.as_str(), rule.reason()), (name, reason), "{rule:?}");
    }
}

/// What a breaker says to the next caller.
fn says(breaker: &CircuitBreaker) -> String {
    breaker.try_acquire().unwrap_err().to_string()
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_says_why_and_when_to_come_back() {
    let named = || breaker().name("stock").probes(1);
    let settle = |breaker: &CircuitBreaker, verdict, times| {
        for _ in 0..times {
            breaker.try_acquire().unwrap().settle(verdict);
        }
    };

    let rate = named().failure_rate(0.4).min_calls(5).build().unwrap();
    settle(&rate, Verdict::Success, 3);
    settle(&rate, Verdict::TRANSIENT, 2);
    assert_eq!(says(&rate), "circuit breaker `stock` is open: failure rate 0.40 >= 0.40; retry after 60.0s");

    let slow = named().slow_call_rate(0.5).slow_call(ms(10)).min_calls(1).build().unwrap();
    slow.try_acquire().unwrap().settle_after(Verdict::Success, ms(11));
    assert_eq!(says(&slow), "circuit breaker `stock` is open: slow-call rate 1.00 >= 0.50; retry after 60.0s");

    let streak = named().consecutive_failures(3).build().unwrap();
    settle(&streak, Verdict::TRANSIENT, 3);
    assert_eq!(says(&streak), "circuit breaker `stock` is open: 3 consecutive failures >= 3; retry after 60.0s");

    sleep(secs(60)).await;
    let probe = streak.try_acquire().unwrap();
    assert_eq!(says(&streak), "circuit breaker `stock` is half-open: all 1 probes are out; retry after 30.0s");
    probe.settle(Verdict::TRANSIENT);
    assert_eq!(says(&streak), "circuit breaker `stock` is open: probe failure rate 1.00 >= 0.50; retry after 60.0s");

    sleep(secs(60)).await;
    let _hangs = streak.try_acquire().unwrap();
    sleep(secs(30)).await;
    let lease = "circuit breaker `stock` is open: 0 of 1 probes answered within their lease; retry after 60.0s";
    assert_eq!(says(&streak), lease);

    streak.force_open();
    assert_eq!(says(&streak), "circuit breaker `stock` is open: forced open");
}

#[tokio::test(start_paused = true)]
async fn a_full_limit_says_how_full() {
    let fine = || async { Ok::<_, fmt::Error>(()) };
    let shed = ConcurrencyLimit::builder().name("db").max_in_flight(2).max_queue(0).build().unwrap();
    let _held = (shed.try_acquire().unwrap(), shed.try_acquire().unwrap());
    let no = shed.call(fine()).await.unwrap_err();
    assert_eq!(no.to_string(), "concurrency limit `db` is overloaded: 2 in flight, 2 allowed");

    let queue = ConcurrencyLimit::builder().name("db").max_in_flight(1).max_queue(1).max_wait(ms(250)).build().unwrap();
    let _held = queue.try_acquire().unwrap();
    let mut waits = task::spawn(queue.call(fine()));
    assert_pending!(waits.poll());
    let no = queue.call(fine()).await.unwrap_err();
    assert_eq!(no.to_string(), "concurrency limit `db` is overloaded: 1 waiting, 1 allowed");
    advance(ms(250)).await;
    let no = assert_ready!(waits.poll()).unwrap_err();
    assert_eq!(no.to_string(), "concurrency limit `db` is overloaded: waited 0.250 s, 0.250 s is the most");
}

#[tokio::test(start_paused = true)]
async fn a_call_cut_off_says_what_it_was_allowed() {
    let stall = || std::future::pending::<Result<(), fmt::Error>>();
    let no = Timeout::new(ms(100)).name("t").call(stall()).await.unwrap_err();
    assert_eq!(no.to_string(), "attempt of `t` timed out: 0.100 s, 0.100 s allowed");
    let policy = Policy::plain("d").deadline(secs(1)).build().unwrap();
    let no = policy.call(stall).await.unwrap_err();
    assert_eq!(no.to_string(), "deadline of `d` exceeded: no time left of 1.000 s");
    let policy = Policy::plain("d").deadline(secs(1)).timeout(secs(1)).build().unwrap();
    let no = policy.call(stall).await.unwrap_err();
    assert_eq!(
        no.to_string(),
        "attempt of `d` timed out: 1.000 s, 1.000 s allowed",
        "of two at once, the nearer part's"
    );
    let no = Deadline::after(ms(1)).enforce(stall()).await.unwrap_err();
    assert_eq!(no.to_string(), "deadline of `deadline` exceeded: no time left", "it was given as a point in time");
    let bounded = Deadline::after(ms(1)).scope(Timeout::new(secs(1)).name("t").call(stall()));
    let no = bounded.await.unwrap_err();
    assert_eq!(no.to_string(), "deadline of `t` exceeded: no time left", "which is not the layer's own");
    assert_eq!(reason(Err::<(), _>(no)), Reason::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn a_call_cut_off_by_an_outer_deadline_does_not_blame_its_own() {
    let stall = || std::future::pending::<Result<(), fmt::Error>>();
    let policy = Policy::plain("inner").deadline(secs(60)).build().unwrap();
    let no = Deadline::after(ms(100)).scope(policy.call(stall)).await.unwrap_err();
    assert_eq!(no.rejection().unwrap().threshold(), None, "it had not 60 s");
}

/// What is never told is no rule, and a figure that never comes is none.
// HAZARD: C12
#[cfg(feature = "http")]
#[tokio::test(start_paused = true)]
async fn each_rule_is_told_by_something_that_happens_and_with_its_figures() {
    use axum::{
        body::Body,
        http::{Request, Response},
    };
    use http_body_util::BodyExt;

    let stall = || std::future::pending::<Result<(), fmt::Error>>();
    let refused = |answer: Result<(), Error<fmt::Error>>| *answer.unwrap_err().rejection().unwrap();

    let asked = |breaker: &CircuitBreaker| breaker.try_acquire().unwrap_err();
    let tripped = |builder: buttress::CircuitBreakerBuilder, verdict, took| {
        let breaker = builder.min_calls(1).probes(1).build().unwrap();
        breaker.try_acquire().unwrap().settle_after(verdict, took);
        breaker
    };
    let rate = tripped(breaker().failure_rate(0.5), Verdict::TRANSIENT, ms(0));
    let slow = tripped(breaker().slow_call_rate(0.5).slow_call(ms(1)), Verdict::Success, ms(2));
    let streak = tripped(breaker().consecutive_failures(1), Verdict::TRANSIENT, ms(0));
    let mut told = vec![asked(&rate), asked(&slow), asked(&streak)];
    sleep(secs(60)).await;
    let probe = rate.try_acquire().unwrap();
    let probes_out = asked(&rate);
    probe.settle(Verdict::TRANSIENT);
    let _hangs = slow.try_acquire().unwrap();
    sleep(secs(30)).await;
    streak.force_open();
    told.extend([asked(&rate), asked(&slow), probes_out, asked(&streak)]);

    let limit = limit_of_one().max_queue(1).max_wait(ms(1)).build().unwrap();
    let _held = limit.try_acquire().unwrap();
    let mut waits = task::spawn(limit.call(stall()));
    assert_pending!(waits.poll());
    told.extend([limit.try_acquire().unwrap_err(), refused(limit.call(stall()).await), refused(waits.await)]);

    told.push(refused(Timeout::new(ms(1)).call(stall()).await));
    let of_body = |policy: buttress::PolicyBuilder<buttress::http::HttpServer>| async {
        let stalled = service_fn(|_: Request<Body>| async {
            let body = Body::from_stream(futures_util::stream::pending::<io::Result<&str>>());
            Ok::<_, std::convert::Infallible>(Response::new(body))
        });
        let response = policy.build().unwrap().layer().layer(stalled).oneshot(Request::new(Body::empty())).await;
        let error = response.unwrap().into_body().collect().await.unwrap_err();
        *Rejection::find(&*error).unwrap()
    };
    told.push(of_body(Policy::http_server("silent").body_idle_timeout(ms(1))).await);
    told.push(of_body(Policy::http_server("long").body_timeout(ms(1))).await);
    told.push(refused(Policy::plain("late").deadline(ms(1)).build().unwrap().call(stall).await));

    let shutdown = buttress::Shutdown::builder().build().unwrap();
    let handle = shutdown.handle();
    let policy = Policy::plain("full").concurrency_limit(limit_of_one().max_queue(1)).shutdown(&handle);
    let policy = policy.build().unwrap();
    let _held = policy.concurrency_limit().unwrap().try_acquire().unwrap();
    handle.trigger("deploy");
    told.push(refused(policy.call(stall).await));
    handle.force();
    let gated = handle.layer().layer(service_fn(|()| async { Err::<(), _>(Error::Inner(fmt::Error)) }));
    told.push(refused(gated.oneshot(()).await));

    let figures = |no: &Rejection| (no.measured().is_some(), no.threshold().is_some(), no.retry_after().is_some());
    let told: Vec<_> = told.iter().map(|no| (no.rule().as_str(), figures(no))).collect();
    let expected = [
        ("failure_rate", (true, true, true)),
        ("slow_call_rate", (true, true, true)),
        ("consecutive_failures", (true, true, true)),
        ("probes_failed", (true, true, true)),
        ("probe_lease", (true, true, true)),
        ("probes_out", (true, true, true)),
        ("forced", (false, false, false)),
        ("limit_reached", (true, true, false)),
        ("queue_full", (true, true, false)),
        ("max_wait", (true, true, false)),
        ("attempt_timeout", (true, true, false)),
        ("body_idle", (false, true, false)),
        ("body_timeout", (false, true, false)),
        ("deadline", (false, true, false)),
        ("draining", (false, false, false)),
        ("stopping", (false, false, true)),
    ];
    assert_eq!(told, expected);
}
