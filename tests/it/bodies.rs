//! What a review of bodies found: how a call that lasts as long as its body is counted, timed and sent again.
#![cfg(feature = "reqwest")]
#![allow(clippy::disallowed_methods)] // the paused clock, which readers let pass

use crate::support::{Counts, ms, secs};
use axum::{Router, http::StatusCode, routing::any};
use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, Deadline, Jitter, Policy, Retry, circuit_breaker::State,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use std::convert::Infallible;
use tokio::{net::TcpListener, time::sleep};
use tower::{Layer, service_fn};

fn opening() -> CircuitBreakerBuilder {
    CircuitBreaker::builder().consecutive_failures(3).open_time(Backoff::constant(secs(600)).jitter(Jitter::None))
}

// A connection that fails after a redirect: the server had its request.
async fn redirected(status: StatusCode) -> usize {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = format!("http://{}/result", dead.local_addr().unwrap());
    drop(dead);
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
        Ok::<_, tower::BoxError>(
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
fn pieces() -> impl Body<Data = Bytes, Error = Infallible> {
    StreamBody::new(futures_util::stream::iter((0..3).map(|_| Ok(Frame::data(Bytes::from_static(b"x"))))))
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
        Ok::<_, tower::BoxError>(Response::new(Box::pin(pieces())))
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
        let body =
            Box::pin(StreamBody::new(futures_util::StreamExt::then(futures_util::stream::iter(0..5), |_| async {
                sleep(ms(2)).await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")))
            })));
        Ok::<_, tower::BoxError>(Response::new(body))
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
    let service = policy.layer().layer(service_fn(|_: Request<()>| async {
        let body =
            Box::pin(StreamBody::new(futures_util::StreamExt::then(futures_util::stream::iter(0..3), |_| async {
                sleep(ms(2)).await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")))
            })));
        Ok::<_, tower::BoxError>(Response::new(body))
    }));
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
    let service = policy.layer().layer(service_fn(|_: Request<()>| async {
        let body =
            Box::pin(StreamBody::new(futures_util::StreamExt::then(futures_util::stream::iter(0..3), |_| async {
                sleep(ms(800)).await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")))
            })));
        Ok::<_, tower::BoxError>(Response::new(body))
    }));
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
        Ok::<_, tower::BoxError>(
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
    let service = policy.layer().layer(service_fn(|req: Request<&'static str>| async move {
        let body =
            Box::pin(StreamBody::new(futures_util::StreamExt::then(futures_util::stream::iter(0..), |_| async {
                sleep(ms(100)).await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")))
            })));
        let res = Response::builder();
        let res = if *req.body() == "down" { res.header("grpc-status", "14") } else { res };
        Ok::<_, tower::BoxError>(res.body(body).unwrap())
    }));
    drop(service.send(Request::new("down")).await.unwrap());
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Open);
    sleep(secs(2)).await;
    let mut watch = service.send(Request::new("watch")).await.unwrap().into_body();
    let (mut refused, mut opened) = (0, 0);
    for second in 0..120 {
        for _ in 0..10 {
            watch.frame().await.unwrap().unwrap();
        }
        match service.send(Request::new("watch")).await {
            Ok(_) => {}
            Err(e) => {
                refused += 1;
                if second % 20 == 0 {
                    println!("{second}: {e}")
                }
            }
        }
        if policy.circuit_breaker().unwrap().state() == State::Open {
            opened += 1
        }
    }
    assert_eq!((refused, opened), (0, 0), "of 120 calls; {:?}", policy.circuit_breaker().unwrap().state());
}

// A response of reqwest is as it was.
#[tokio::test]
async fn errors_of_a_reqwest_body_are_as_without_the_policy() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
                    sleep(secs(20)).await;
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
        println!("{a:?}\n{b:?}");
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
    let service = policy.layer().layer(service_fn(|req: Request<&'static str>| async move {
        let body =
            Box::pin(StreamBody::new(futures_util::StreamExt::then(futures_util::stream::iter(0..), |_| async {
                sleep(ms(100)).await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")))
            })));
        let res = Response::builder();
        let res = if *req.body() == "down" { res.header("grpc-status", "14") } else { res };
        Ok::<_, tower::BoxError>(res.body(body).unwrap())
    }));
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

struct Watch(
    std::sync::Arc<std::sync::OnceLock<buttress::ConcurrencyLimit>>,
    std::sync::Arc<std::sync::Mutex<Vec<usize>>>,
);
impl Body for Watch {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(None)
    }
}
impl Drop for Watch {
    fn drop(&mut self) {
        self.1.lock().unwrap().push(self.0.get().unwrap().in_flight());
    }
}
#[tokio::test(start_paused = true)]
async fn a_failed_response_is_dropped_before_its_permit_is_given_back() {
    let limit = buttress::ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let (cell, seen) = (
        std::sync::Arc::new(std::sync::OnceLock::from(limit.clone())),
        std::sync::Arc::new(std::sync::Mutex::new(vec![])),
    );
    let policy = Policy::http_client("api")
        .concurrency_limit(limit)
        .hold(buttress::http::UntilBody::new())
        .retry(Retry::constant(ms(1)).max_attempts(2))
        .build()
        .unwrap();
    let (c, s) = (cell.clone(), seen.clone());
    let service = policy.layer().layer(service_fn(move |_: Request<()>| {
        let w = Watch(c.clone(), s.clone());
        async move { Ok::<_, tower::BoxError>(Response::builder().status(503).body(w).unwrap()) }
    }));
    drop(service.send(Request::new(())).await.unwrap());
    assert_eq!(*seen.lock().unwrap(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_to_last_until_its_body_ends_holds_no_permit_in_a_backoff() {
    let limit = buttress::ConcurrencyLimit::builder().max_in_flight(2).build().unwrap();
    let policy = Policy::http_client("api")
        .concurrency_limit(&limit)
        .hold(buttress::http::UntilBody::new())
        .retry(Retry::constant(secs(5)).jitter(Jitter::None).max_attempts(2))
        .build()
        .unwrap();
    let seen = Counts::default();
    let service =
        policy.layer().layer(service_fn({
            let seen = seen.clone();
            move |_: Request<()>| {
                drop(seen.enter());
                let status = if seen.calls() == 1 { 503 } else { 200 };
                async move {
                    Ok::<_, buttress::Error<Infallible>>(Response::builder().status(status).body(pieces()).unwrap())
                }
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
