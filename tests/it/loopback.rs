//! A real axum server and a real reqwest client on the loopback. Real time, but nothing waits for a guess of
//! milliseconds: where time must pass, the clock is stopped once the server says that it is busy, and moved.
#![cfg(feature = "reqwest")]

use std::{error::Error as StdError, io, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header::RETRY_AFTER},
    routing::{any, get},
};
use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, Classify, ConcurrencyLimit, Error, Jitter, Policy, Reason,
    Rejection, Retry, RetryBuilder, Rule, Verdict,
    circuit_breaker::State,
    http::{ByStatus, ByStatusDirect, Reqwest},
    retry,
};
use reqwest::{Client, Method, Url};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Semaphore, mpsc},
    time::{advance, pause, resume},
};
use tower::{ServiceExt, util::MapRequest};

use crate::support::{Counts, ms, secs};

async fn serve(router: Router) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

fn request(method: Method, url: &Url) -> reqwest::Request {
    reqwest::Request::new(method, url.clone())
}

/// Opens after three failures, for longer than any test takes.
fn opening() -> CircuitBreakerBuilder {
    CircuitBreaker::builder().consecutive_failures(3).open_time(Backoff::constant(secs(600)).jitter(Jitter::None))
}

/// Asks again at once, three times in all.
fn at_once() -> RetryBuilder {
    Retry::constant(ms(0)).max_attempts(3)
}

fn retrying() -> Policy<Reqwest> {
    Policy::reqwest("shop").deadline(secs(30)).retry(at_once()).build().unwrap()
}

/// Answers 500 to the first `failures` requests, then 200; echoes the body.
fn failing(failures: usize, seen: &Counts) -> Router {
    let seen = seen.clone();
    Router::new().fallback(any(move |body: String| async move {
        drop(seen.enter());
        let status = if seen.calls() <= failures { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        (status, body)
    }))
}

// ------------------------------------------------------------------------------------------------ retry

#[tokio::test]
async fn a_get_that_fails_twice_is_answered_at_the_third_attempt() {
    let seen = Counts::default();
    let url = serve(failing(2, &seen)).await;
    let response = retrying().wrap(client()).send(request(Method::GET, &url)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(seen.calls(), 3);
}

#[tokio::test]
async fn a_call_that_keeps_failing_brings_back_the_last_response() {
    let seen = Counts::default();
    let url = serve(failing(usize::MAX, &seen)).await;
    let response = retrying().wrap(client()).send(request(Method::GET, &url)).await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(seen.calls(), 3);
}

// HAZARD: R8
#[tokio::test]
async fn a_post_is_sent_exactly_once() {
    let seen = Counts::default();
    let url = serve(failing(2, &seen)).await;
    let mut order = request(Method::POST, &url);
    *order.body_mut() = Some("one book".into());
    let response = retrying().wrap(client()).send(order).await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(response.text().await.unwrap(), "one book");
    assert_eq!(seen.calls(), 1);
}

#[tokio::test]
async fn a_post_with_an_idempotency_key_is_repeated_with_its_key_and_body() {
    let (told, mut keys) = mpsc::unbounded_channel();
    let seen = Counts::default();
    let noted = failing(2, &seen).layer(axum::middleware::map_request(move |request: Request| {
        told.send(request.headers()["idempotency-key"].clone()).unwrap();
        std::future::ready(request)
    }));
    let url = serve(noted).await;

    let mut order = request(Method::POST, &url);
    order.headers_mut().insert("idempotency-key", "order-42".parse().unwrap());
    *order.body_mut() = Some("one book".into());
    let response = retrying().wrap(client()).send(order).await.unwrap();

    assert_eq!(response.status(), 200);
    assert_eq!(response.text().await.unwrap(), "one book");
    for _ in 0..3 {
        assert_eq!(keys.recv().await.unwrap(), "order-42");
    }
    assert_eq!(seen.calls(), 3);
}

// HAZARD: R7
#[tokio::test]
async fn a_429_whose_hint_lies_past_the_deadline_comes_back_unchanged() {
    let seen = Counts::default();
    let handler = {
        let seen = seen.clone();
        move || async move {
            drop(seen.enter());
            (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "31")], "slow down")
        }
    };
    let url = serve(Router::new().route("/", get(handler))).await;

    // Slept through, the hint would end in a deadline that is exceeded.
    let response = retrying().wrap(client()).send(request(Method::GET, &url)).await.unwrap();

    assert_eq!(response.status(), 429);
    let hint = Some(secs(31));
    assert_eq!(ByStatus.classify(Ok(&response)), Verdict::Throttled { retry_after: hint });
    assert_eq!(response.headers()[RETRY_AFTER], "31");
    assert_eq!(response.text().await.unwrap(), "slow down");
    assert_eq!(seen.calls(), 1);
}

// HAZARD: C12
#[tokio::test]
async fn a_refused_connection_is_retried_and_comes_back_with_its_sources() {
    // Bound but not listening: nobody else gets the port, and it refuses.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}/", socket.local_addr().unwrap()).parse().unwrap();
    let attempts = Counts::default();
    let counted = {
        let attempts = attempts.clone();
        MapRequest::new(client(), move |request: reqwest::Request| {
            drop(attempts.enter());
            assert_eq!(retry::current_attempt(), u32::try_from(attempts.calls()).ok());
            request
        })
    };

    let error = retrying().wrap(counted).send(request(Method::GET, &url)).await.unwrap_err();

    assert_eq!(attempts.calls(), 3);
    let first = StdError::source(&error).unwrap().to_string();
    let Error::Inner(inner) = &error else { panic!("a rejection instead: {error}") };
    assert!(inner.is_connect());
    assert_eq!(ByStatus.classify(Err::<&reqwest::Response, _>(inner)), Verdict::TRANSIENT, "there are redirects");
    assert_eq!(ByStatusDirect.classify(Err::<&reqwest::Response, _>(inner)), Verdict::Unsent);
    assert_eq!(inner.source().unwrap().to_string(), first, "the wrapper is no link of the chain");
    let mut sources = std::iter::successors(Some(&error as &dyn StdError), |error| (*error).source());
    let refused = sources.find_map(|error| error.downcast_ref::<io::Error>()).unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_loop_of_redirects_is_no_failure_that_asking_again_could_mend() {
    let seen = Counts::default();
    let handler = {
        let seen = seen.clone();
        async move || {
            drop(seen.enter());
            axum::response::Redirect::temporary("/")
        }
    };
    let url = serve(Router::new().route("/", get(handler))).await;
    let error = retrying().wrap(client()).send(request(Method::GET, &url)).await.unwrap_err();
    let Error::Inner(error) = error else { panic!("a rejection instead: {error}") };
    assert!(error.is_redirect());
    assert_eq!(ByStatus.classify(Err::<&reqwest::Response, _>(&error)), Verdict::Permanent);
    assert_eq!(seen.calls(), 11, "what the client itself follows, and once");
}

#[test]
fn an_error_in_a_box_says_what_it_says_outside_of_it() {
    let boxed: Box<dyn StdError + Send + Sync> = Box::new(io::Error::from(io::ErrorKind::BrokenPipe));
    let said = Classify::<axum::http::Response<()>, _>::classify(&ByStatus, Err(&*boxed));
    assert_eq!(said, Verdict::TRANSIENT);
}

#[test]
fn a_server_that_cannot_do_it_at_all_is_not_asked_again() {
    for (status, verdict) in [(500, Verdict::TRANSIENT), (501, Verdict::Permanent), (505, Verdict::Permanent)] {
        let mut response = axum::http::Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        assert_eq!(ByStatus.classify(Ok::<_, &io::Error>(&response)), verdict, "{status}");
    }
}

// ------------------------------------------------------------------------------------------------ circuit breaker

#[tokio::test]
async fn once_the_circuit_is_open_no_call_reaches_the_server() {
    let seen = Counts::default();
    let url = serve(failing(usize::MAX, &seen)).await;
    let policy = Policy::reqwest("shop").circuit_breaker(opening()).build().unwrap();
    let client = policy.wrap(client());

    for _ in 0..3 {
        assert_eq!(client.send(request(Method::GET, &url)).await.unwrap().status(), 500);
    }
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Open);
    for _ in 0..5 {
        let error = client.clone().send(request(Method::GET, &url)).await.unwrap_err();
        let refused = error.rejection().unwrap();
        assert_eq!((refused.name(), refused.reason()), ("shop", Reason::CircuitOpen));
        assert_eq!(refused.rule(), Rule::ConsecutiveFailures);
        assert!(refused.retry_after().is_some());
    }
    assert_eq!(seen.calls(), 3);
}

#[tokio::test]
async fn a_404_shows_that_the_server_is_alive() {
    let seen = Counts::default();
    let handler = {
        let seen = seen.clone();
        move || async move {
            drop(seen.enter());
            StatusCode::NOT_FOUND
        }
    };
    let url = serve(Router::new().fallback(handler)).await;
    let breaker = CircuitBreaker::builder().consecutive_failures(1);
    let policy = Policy::reqwest("shop").retry(at_once()).circuit_breaker(breaker).build().unwrap();
    for _ in 0..3 {
        assert_eq!(policy.wrap(client()).send(request(Method::GET, &url)).await.unwrap().status(), 404);
    }
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Closed);
    assert_eq!(seen.calls(), 3);
}

// ------------------------------------------------------------------------------------------------ attempt timeout

#[derive(Debug, PartialEq)]
enum Heard {
    Began,
    Cancelled,
}

/// Tells when it is dropped.
struct OnDrop(mpsc::UnboundedSender<Heard>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(Heard::Cancelled);
    }
}

/// Stalls on the first request, and tells when it begins and when it is cancelled; answers the others.
fn stalling_once(seen: &Counts) -> (Router, mpsc::UnboundedReceiver<Heard>) {
    let (told, heard) = mpsc::unbounded_channel();
    let seen = seen.clone();
    let handler = move || async move {
        drop(seen.enter());
        if seen.calls() == 1 {
            let _guard = OnDrop(told.clone());
            told.send(Heard::Began).unwrap();
            std::future::pending::<()>().await;
        }
        "here"
    };
    (Router::new().route("/", get(handler)), heard)
}

/// Lets the attempt timeout of a call that is under way come, without waiting for it.
async fn let_pass(time: std::time::Duration) {
    pause();
    advance(time).await;
    resume();
}

// HAZARD: T7
#[tokio::test]
async fn a_stalled_attempt_is_cut_off_and_the_server_sees_it_cancelled() {
    let seen = Counts::default();
    let (router, mut heard) = stalling_once(&seen);
    let url = serve(router).await;
    let breaker = opening().consecutive_failures(1);
    let policy = Policy::reqwest("shop").timeout(secs(600)).circuit_breaker(breaker).build().unwrap();
    let call = tokio::spawn(policy.wrap(client()).send(request(Method::GET, &url)));

    assert_eq!(heard.recv().await, Some(Heard::Began));
    let_pass(secs(601)).await;

    let error = call.await.unwrap().unwrap_err();
    let rejection = error.rejection().unwrap();
    assert_eq!((rejection.reason(), rejection.rule()), (Reason::Timeout, Rule::AttemptTimeout));
    assert_eq!(heard.recv().await, Some(Heard::Cancelled));
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Open, "no answer is a failure");
    assert_eq!(seen.calls(), 1);
}

#[tokio::test]
async fn a_stalled_attempt_is_cut_off_and_the_next_one_is_answered() {
    let seen = Counts::default();
    let (router, mut heard) = stalling_once(&seen);
    let url = serve(router).await;
    let policy = Policy::reqwest("shop").timeout(secs(600)).retry(at_once()).build().unwrap();
    let call = tokio::spawn(policy.wrap(client()).send(request(Method::GET, &url)));

    assert_eq!(heard.recv().await, Some(Heard::Began));
    let_pass(secs(601)).await;

    assert_eq!(call.await.unwrap().unwrap().text().await.unwrap(), "here");
    assert_eq!(heard.recv().await, Some(Heard::Cancelled));
    assert_eq!(seen.calls(), 2);
}

// ------------------------------------------------------------------------------------------------ the server's side

fn server_request() -> Request {
    Request::new(Body::empty())
}

// HAZARD: C15
#[tokio::test(start_paused = true)]
async fn a_router_stays_infallible_and_answers_503_when_overloaded_and_504_when_slow() {
    let (told, mut began) = mpsc::unbounded_channel();
    let handler = move || async move {
        told.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    let policy = Policy::plain("server")
        .retry(at_once())
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(1).max_queue(0))
        .timeout(secs(1))
        .build()
        .unwrap();
    let app: Router = Router::new().route("/", get(handler)).layer(policy.layer());
    let slow = tokio::spawn(app.clone().oneshot(server_request()));
    began.recv().await.unwrap();

    let Ok(busy) = app.oneshot(server_request()).await;
    assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!busy.headers().contains_key(RETRY_AFTER), "a limit cannot know");
    let rejection = busy.extensions().get::<Rejection>().unwrap();
    assert_eq!((rejection.name(), rejection.rule()), ("server", Rule::LimitReached));
    assert_eq!((rejection.measured(), rejection.threshold()), (Some(1.0), Some(1.0)));

    let Ok(late) = slow.await.unwrap();
    assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
    let rejection = late.extensions().get::<Rejection>().unwrap();
    assert_eq!((rejection.reason(), rejection.rule()), (Reason::Timeout, Rule::AttemptTimeout));
    assert!(began.try_recv().is_err(), "a request that cannot be cloned is sent once");
    assert_eq!(policy.concurrency_limit().unwrap().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_answers_503_and_says_in_whole_seconds_when_to_come_back() {
    let failing = failing(3, &Counts::default());
    let open_time = Backoff::constant(ms(2_500)).jitter(Jitter::None);
    let policy = Policy::plain("server").classify(ByStatus).circuit_breaker(opening().open_time(open_time));
    let app = failing.layer(policy.build().unwrap().layer());
    let ask = async |after| {
        advance(after).await;
        let Ok(response) = app.clone().oneshot(server_request()).await;
        let hint = response.headers().get(RETRY_AFTER).map(|seconds| seconds.to_str().unwrap().to_owned());
        (response.status().as_u16(), hint)
    };
    for _ in 0..3 {
        assert_eq!(ask(ms(0)).await, (500, None));
    }
    // Rounded up: whoever came back after the rounded-down time would be refused again.
    assert_eq!(ask(ms(0)).await, (503, Some("3".into())));
    assert_eq!(ask(ms(500)).await, (503, Some("2".into())));
    assert_eq!(ask(ms(1_999)).await, (503, Some("1".into())));
    assert_eq!(ask(ms(1)).await, (200, None));
}

// HAZARD: C3
#[tokio::test]
async fn the_breaker_of_a_router_trips_across_connections_and_routes() {
    let seen = Counts::default();
    let handler = {
        let seen = seen.clone();
        move || async move {
            drop(seen.enter());
            StatusCode::BAD_GATEWAY
        }
    };
    let policy = Policy::plain("server").classify(ByStatus).circuit_breaker(opening()).build().unwrap();
    let router = Router::new().route("/", get(handler.clone())).route("/other", get(handler)).layer(policy.layer());
    let url = serve(router).await;

    // A client of its own is a connection of its own.
    for path in ["", "other", ""] {
        let response = client().get(url.join(path).unwrap()).send().await.unwrap();
        assert_eq!(response.status(), 502);
    }
    for path in ["", "other"] {
        let response = client().get(url.join(path).unwrap()).send().await.unwrap();
        assert_eq!(response.status(), 503);
        let verdict = ByStatus.classify(Ok(&response));
        assert!(matches!(verdict, Verdict::Throttled { retry_after: Some(_) }), "a client of ours understands");
    }
    assert_eq!(seen.calls(), 3);
}

// HAZARD: C3
#[tokio::test]
async fn the_limit_of_a_router_limits_across_connections() {
    let seen = Counts::default();
    let gate = Arc::new(Semaphore::new(0));
    let (told, mut began) = mpsc::unbounded_channel();
    let handler = {
        let (seen, gate) = (seen.clone(), gate.clone());
        move || async move {
            let _running = seen.enter();
            if seen.calls() <= 2 {
                told.send(()).unwrap();
                let _ = gate.acquire().await;
            }
        }
    };
    let limit = ConcurrencyLimit::builder().max_in_flight(2).max_queue(0).build().unwrap();
    let url = serve(Router::new().route("/", get(handler)).layer(limit.layer())).await;

    let held: Vec<_> = (0..2).map(|_| tokio::spawn(client().get(url.clone()).send())).collect();
    for _ in 0..2 {
        began.recv().await.unwrap();
    }
    for _ in 0..3 {
        assert_eq!(client().get(url.clone()).send().await.unwrap().status(), 503);
    }
    gate.add_permits(2);
    for call in held {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(client().get(url).send().await.unwrap().status(), 200);
    assert_eq!((seen.calls(), seen.most()), (3, 2));
}

// ------------------------------------------------------------------------------------------------ bodies

#[tokio::test]
async fn the_deadline_goes_on_into_the_body_and_the_response_is_still_one_of_reqwest() {
    let (feed, pieces) = mpsc::unbounded_channel::<Result<&str, io::Error>>();
    let pieces = Arc::new(std::sync::Mutex::new(Some(pieces)));
    let handler = async move || {
        let pieces = pieces.lock().unwrap().take().unwrap();
        Body::from_stream(tokio_stream::wrappers::UnboundedReceiverStream::new(pieces))
    };
    let url = serve(Router::new().route("/", get(handler))).await;
    let policy = Policy::reqwest("shop").deadline(secs(20)).circuit_breaker(opening()).build().unwrap();
    let mut response = policy.wrap(client()).send(request(Method::GET, &url)).await.unwrap();
    assert_eq!((response.url(), response.content_length()), (&url, None));
    assert!(response.remote_addr().is_some());
    feed.send(Ok("one piece")).unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "one piece");
    assert_eq!(policy.circuit_breaker().unwrap().snapshot().calls, 0, "it goes on");

    pause(); // with nothing to do but to wait, its clock goes on by itself
    let error = response.chunk().await.unwrap_err();
    assert_eq!(Rejection::find(&error).unwrap().reason(), Reason::DeadlineExceeded);
    assert_eq!(policy.circuit_breaker().unwrap().snapshot().failures, 1);
}
