//! What a review of bodies found: how a call that lasts as long as its body is counted, timed and sent again.
#![cfg(feature = "reqwest")]
#![allow(clippy::disallowed_methods)] // the paused clock, which readers let pass

use std::{
    convert::Infallible,
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::any};
use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, ConcurrencyLimit, Deadline, Error, Jitter, Kind, Policy, Retry,
    circuit_breaker::State,
    http::{ByStatus, UntilBody},
    retry::Once,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    time::sleep,
};
use tower::{BoxError, Layer, service_fn};

use crate::support::{Counts, ms, secs};

fn opening() -> CircuitBreakerBuilder {
    CircuitBreaker::builder().consecutive_failures(3).open_time(Backoff::constant(secs(600)).jitter(Jitter::None))
}

/// A body of so many pieces, each of which takes so long.
fn pieces(count: usize, every: Duration) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
    StreamBody::new(Box::pin(stream::iter(0..count).then(move |_| async move {
        sleep(every).await;
        Ok(Frame::data(Bytes::from_static(b"x")))
    })))
}

/// Answers with a stream that never ends; if asked for `down`, and says so.
async fn watched(
    req: Request<&'static str>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible> + Unpin>, BoxError> {
    let res = Response::builder();
    let res = if *req.body() == "down" { res.header("grpc-status", "14") } else { res };
    Ok(res.body(pieces(usize::MAX, ms(100)))?)
}

// A connection that fails after a redirect: the server had its request.
async fn redirected(status: StatusCode) -> usize {
    // Bound but not listening: nobody else gets the port, and it refuses.
    let dead = TcpSocket::new_v4().unwrap();
    dead.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = format!("http://{}/result", dead.local_addr().unwrap());
    let seen = Counts::default();
    let counts = seen.clone();
    let router = Router::new().fallback(any(move || async move {
        drop(counts.enter());
        (status, [("location", to)])
    }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/orders", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let policy = Policy::reqwest("shop").retry(Retry::constant(ms(0)).max_attempts(3)).build().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = reqwest::Request::new(reqwest::Method::POST, url.parse().unwrap());
    let _ = policy.wrap(client).send(post).await.unwrap_err();
    seen.calls()
}

#[tokio::test]
async fn a_post_that_was_answered_by_a_redirect_is_not_sent_again_303() {
    assert_eq!(redirected(StatusCode::SEE_OTHER).await, 1);
}

// An answer to gRPC that is none, with a body or without.
async fn no_grpc(status: u16, body: &'static str) -> State {
    let policy = Policy::grpc("users").circuit_breaker(opening()).build().unwrap();
    let service = policy.layer().layer(service_fn(move |_: Request<()>| async move {
        Ok::<_, BoxError>(
            Response::builder().status(status).body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap(),
        )
    }));
    for _ in 0..3 {
        if let Ok(res) = service.send(Request::new(())).await {
            let _ = res.into_body().collect().await;
        }
    }
    policy.circuit_breaker().unwrap().state()
}

#[tokio::test]
async fn a_404_without_body_is_permanent() {
    assert_eq!(no_grpc(404, "").await, State::Closed);
}

#[tokio::test]
async fn a_404_with_a_body_is_permanent_too() {
    assert_eq!(no_grpc(404, "<html>").await, State::Closed);
}

#[tokio::test]
async fn a_401_with_a_body_is_permanent_too() {
    assert_eq!(no_grpc(401, "<html>").await, State::Closed);
}

#[tokio::test]
async fn a_200_without_status_fails_with_a_body() {
    assert_eq!(no_grpc(200, "x").await, State::Open);
}

#[tokio::test]
async fn a_200_without_status_fails_without_body_too() {
    assert_eq!(no_grpc(200, "").await, State::Open);
}

// Readers that take their time.

/// Three pieces that are there.
fn ready() -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
    StreamBody::new(stream::iter((0..3).map(|_| Ok(Frame::data(Bytes::from_static(b"x"))))))
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_does_not_make_the_service_slow() {
    let policy = Policy::http_server("api")
        .circuit_breaker(
            CircuitBreaker::builder().without_failure_rate().slow_call_rate(0.5).slow_call(secs(1)).min_calls(3),
        )
        .build()
        .unwrap();
    let service = policy.layer().layer(service_fn(|_: Request<()>| async {
        sleep(ms(1)).await;
        Ok::<_, BoxError>(Response::new(ready()))
    }));
    for _ in 0..3 {
        let mut body = service.send(Request::new(())).await.unwrap().into_body();
        while let Some(frame) = body.frame().await {
            frame.unwrap();
            sleep(secs(1)).await;
        }
    }
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_that_outruns_the_deadline_is_no_failure_of_the_service() {
    let policy = Policy::http_server("api").deadline(secs(10)).circuit_breaker(opening()).build().unwrap();
    let service = policy.layer().layer(service_fn(|_: Request<()>| async {
        sleep(ms(1)).await;
        Ok::<_, BoxError>(Response::new(pieces(5, ms(2))))
    }));
    for _ in 0..3 {
        let mut body = service.send(Request::new(())).await.unwrap().into_body();
        while let Some(Ok(_)) = body.frame().await {
            sleep(secs(4)).await;
        }
    }
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_pauses_is_not_timed() {
    let policy = Policy::http_client("api").body_timeout(secs(5)).build().unwrap();
    let service =
        policy.layer().layer(service_fn(|_: Request<()>| async { Ok::<_, BoxError>(Response::new(pieces(3, ms(2)))) }));
    let mut body = service.send(Request::new(())).await.unwrap().into_body();
    while let Some(frame) = body.frame().await {
        frame.unwrap();
        sleep(secs(4)).await;
    }
}

// A scope around one piece.
#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_scope_ends_with_the_scope() {
    let policy = Policy::http_client("files").deadline(secs(60)).build().unwrap();
    let service = policy
        .layer()
        .layer(service_fn(|_: Request<()>| async { Ok::<_, BoxError>(Response::new(pieces(3, ms(800)))) }));
    let mut body = service.send(Request::new(())).await.unwrap().into_body();
    for piece in 0..3 {
        // Each piece within a second.
        let frame = Deadline::after(secs(1)).scope(body.frame()).await.unwrap();
        assert!(frame.is_ok(), "piece {piece}: {}", frame.unwrap_err());
    }
}

#[tokio::test]
async fn a_throttled_answer_stays_throttled_with_a_hostile_pushback() {
    let policy = Policy::grpc("users").circuit_breaker(opening().ignore_throttled()).build().unwrap();
    let service = policy.layer().layer(service_fn(|_: Request<()>| async {
        Ok::<_, BoxError>(
            Response::builder()
                .header("grpc-status", "8")
                .header("grpc-retry-pushback-ms", "-1")
                .body(Full::<Bytes>::default())
                .unwrap(),
        )
    }));
    for _ in 0..3 {
        let _ = service.send(Request::new(())).await.unwrap();
    }
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Closed);
}

// Streams as probes.
#[tokio::test(start_paused = true)]
async fn a_healthy_stream_that_is_the_probe_closes_the_circuit() {
    let policy = Policy::grpc("users")
        .circuit_breaker(
            CircuitBreaker::builder()
                .consecutive_failures(1)
                .probes(1)
                .open_time(Backoff::constant(secs(1)).jitter(Jitter::None)),
        )
        .build()
        .unwrap();
    let service = policy.layer().layer(service_fn(watched));
    drop(service.send(Request::new("down")).await.unwrap());
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Open);
    sleep(secs(2)).await;
    let mut watch = service.send(Request::new("watch")).await.unwrap().into_body();
    let (mut refused, mut opened) = (0, 0);
    for _ in 0..120 {
        for _ in 0..10 {
            watch.frame().await.unwrap().unwrap();
        }
        refused += usize::from(service.send(Request::new("watch")).await.is_err());
        opened += usize::from(policy.circuit_breaker().unwrap().state() == State::Open);
    }
    assert_eq!((refused, opened), (0, 0), "of 120 calls; {:?}", policy.circuit_breaker().unwrap().state());
}

// A response of reqwest is as it was.
#[tokio::test]
async fn errors_of_a_reqwest_body_are_as_without_the_policy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: reqwest::Url = format!("http://{}/x", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buf = [0; 1024];
                let n = stream.read(&mut buf).await.unwrap();
                let stall = buf[..n].starts_with(b"GET /stall");
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345").await.unwrap();
                if stall {
                    pending().await
                }
            });
        }
    });
    let client = reqwest::Client::builder().no_proxy().read_timeout(ms(100)).build().unwrap();
    let policy = Policy::reqwest("shop").deadline(secs(30)).circuit_breaker(opening()).build().unwrap();
    for path in ["/cut", "/stall"] {
        let mut url = url.clone();
        url.set_path(path);
        let req = || reqwest::Request::new(reqwest::Method::GET, url.clone());
        let plain = client.execute(req()).await.unwrap();
        let held = policy.wrap(client.clone()).send(req()).await.unwrap();
        let look = |r: &reqwest::Response| {
            format!(
                "{:?} {:?} {:?} {:?} {}",
                r.content_length(),
                r.url().as_str(),
                r.version(),
                r.remote_addr(),
                r.extensions().len()
            )
        };
        assert_eq!(look(&plain), look(&held));
        let (a, b) = (plain.bytes().await.unwrap_err(), held.bytes().await.unwrap_err());
        let kind = |e: &reqwest::Error| {
            format!(
                "body {} decode {} timeout {} request {} connect {} url {:?}",
                e.is_body(),
                e.is_decode(),
                e.is_timeout(),
                e.is_request(),
                e.is_connect(),
                e.url().map(|u| u.as_str().to_owned())
            )
        };
        assert_eq!(kind(&a), kind(&b), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_circuit_over_healthy_streams_closes() {
    let policy = Policy::grpc("users")
        .circuit_breaker(
            CircuitBreaker::builder()
                .consecutive_failures(1)
                .open_time(Backoff::constant(secs(1)).jitter(Jitter::None)),
        )
        .build()
        .unwrap();
    let service = policy.layer().layer(service_fn(watched));
    drop(service.send(Request::new("down")).await.unwrap());
    let mut refused = 0;
    for _ in 0..600 {
        sleep(secs(1)).await;
        match service.send(Request::new("watch")).await {
            Ok(res) => drop(tokio::spawn(res.into_body().collect())),
            Err(_) => refused += 1,
        }
    }
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Closed, "after ten minutes; {refused} of 600 refused");
}

// What is held until when.

/// A body that tells, when it is dropped, how many are in flight.
struct Watch(ConcurrencyLimit, Arc<Mutex<Vec<usize>>>);

impl Body for Watch {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.1.lock().unwrap().push(self.0.in_flight());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_response_is_dropped_before_its_permit_is_given_back() {
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let policy = Policy::http_client("api")
        .concurrency_limit(&limit)
        .hold(UntilBody::new())
        .retry(Retry::constant(ms(1)).max_attempts(2))
        .build()
        .unwrap();
    let told = Arc::clone(&seen);
    let service = policy.layer().layer(service_fn(move |_: Request<()>| {
        let body = Watch(limit.clone(), Arc::clone(&told));
        async move { Ok::<_, BoxError>(Response::builder().status(503).body(body).unwrap()) }
    }));
    drop(service.send(Request::new(())).await.unwrap());
    assert_eq!(*seen.lock().unwrap(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_to_last_until_its_body_ends_holds_no_permit_in_a_backoff() {
    let limit = ConcurrencyLimit::builder().max_in_flight(2).build().unwrap();
    let policy = Policy::http_client("api")
        .concurrency_limit(&limit)
        .hold(UntilBody::new())
        .retry(Retry::constant(secs(5)).jitter(Jitter::None).max_attempts(2))
        .build()
        .unwrap();
    let seen = Counts::default();
    let service = policy.layer().layer(service_fn({
        let seen = seen.clone();
        move |_: Request<()>| {
            drop(seen.enter());
            let status = if seen.calls() == 1 { 503 } else { 200 };
            async move { Ok::<_, Error<Infallible>>(Response::builder().status(status).body(ready()).unwrap()) }
        }
    }));
    let call = tokio::spawn(async move { service.send(Request::new(())).await.unwrap() });
    sleep(secs(1)).await;
    assert_eq!((seen.calls(), limit.in_flight()), (1, 0), "in its backoff");
    let response = call.await.unwrap();
    assert_eq!((seen.calls(), limit.in_flight()), (2, 1), "its body is still to come");
    drop(response);
    assert_eq!(limit.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_says_failure_counts_before_the_body_ends() {
    let policy = until_the_end(CircuitBreaker::builder().consecutive_failures(1));
    let service = policy.layer().layer(service_fn(async |_: Request<()>| {
        Ok::<_, Error<Infallible>>(Response::builder().status(500).body(ready()).unwrap())
    }));
    let response = service.send(Request::new(())).await.unwrap();
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Open);
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_slow_by_its_headers_if_its_body_is_not() {
    let slow = CircuitBreaker::builder().slow_call_rate(1.0).slow_call(secs(1)).min_calls(2);
    let policy = until_the_end(slow);
    let service = policy.layer().layer(service_fn(async |_: Request<()>| {
        sleep(secs(2)).await;
        Ok::<_, Error<Infallible>>(Response::new(ready()))
    }));
    for state in [State::Closed, State::Open] {
        let response = service.send(Request::new(())).await.unwrap();
        response.into_body().collect().await.unwrap();
        assert_eq!(policy.circuit_breaker().unwrap().state(), state);
    }
}

fn until_the_end(breaker: CircuitBreakerBuilder) -> Policy<Kind<ByStatus, Once, UntilBody>> {
    Policy::http_client("api").repeat(Once).hold(UntilBody::new()).circuit_breaker(breaker).build().unwrap()
}
