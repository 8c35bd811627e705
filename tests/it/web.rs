//! The presets for servers and clients, over real TCP on the loopback. Real time, but what is waited for is an event; where time
//! must pass, the clock is paused.
#![cfg(feature = "hyper")]
#![allow(clippy::disallowed_methods)] // tokio's clock, to see what was waited for

use std::{
    convert::Infallible,
    error::Error as StdError,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{Method, Request, StatusCode, Version, header::RETRY_AFTER},
    response::Response,
    routing::{any, get},
};
use buttress::{
    CircuitBreaker, CircuitBreakerBuilder, Classify, ConcurrencyLimit, Deadline, Kind, Policy, PolicyBuilder, Reason,
    Rejection, Retry, Rule, UntilHeaders, Verdict,
    circuit_breaker::State,
    http::{ByStatus, ByStatusAt, ReadDeadlineLayer, RespondLayer, UntilBody},
    retry::Once,
};
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use proptest::prelude::*;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, advance, pause, resume, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{ServiceBuilder, ServiceExt, util::MapRequest};

use crate::support::{Counts, Running, ms, secs, settle};

/// Fails instead of hanging.
#[track_caller]
fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move { timeout(secs(30), future).await.unwrap_or_else(|_| panic!("hangs: {caller}")) }
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    base
}

type HyperClient<B> = Client<HttpConnector, B>;

fn client<B>(version: Version) -> HyperClient<B>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
{
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).http2_only(version == Version::HTTP_2).build_http()
}

const BOTH: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

fn request(method: Method, url: &str) -> Request<Empty<Bytes>> {
    Request::builder().method(method).uri(url).body(Empty::new()).unwrap()
}

fn opening() -> CircuitBreakerBuilder {
    CircuitBreaker::builder().consecutive_failures(3)
}

/// The rejection that a body failed with.
fn rejection(error: &(dyn StdError + 'static)) -> Rejection {
    *Rejection::find(error).unwrap()
}

/// Bodies that are fed by hand.
#[derive(Clone, Default)]
struct Streams {
    counts: Counts,
}

type Feed = mpsc::UnboundedSender<Result<Bytes, std::io::Error>>;

impl Streams {
    /// A router that streams what its feeds get, and where to get those.
    fn router(&self) -> (Router, mpsc::UnboundedReceiver<Feed>) {
        let (feeds, fed) = mpsc::unbounded_channel();
        let counts = self.counts.clone();
        let handler = async move || {
            let (feed, pieces) = mpsc::unbounded_channel();
            feeds.send(feed).unwrap();
            let running: Running = counts.enter();
            let pieces = tokio_stream::StreamExt::map(UnboundedReceiverStream::new(pieces), move |piece| {
                let _ = &running;
                piece
            });
            Body::from_stream(pieces)
        };
        (Router::new().route("/", get(handler)), fed)
    }
}

// ------------------------------------------------------------------------------------------------ servers

async fn eight_streams_of(version: Version) {
    let streams = Streams::default();
    let (router, mut fed) = streams.router();
    let policy = Policy::http_server("streams")
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(8).max_queue(192))
        .build()
        .unwrap();
    let limit = policy.concurrency_limit().unwrap().clone();
    let base = serve(router.layer(policy.layer())).await;
    let mut calls = JoinSet::new();
    for _ in 0..200 {
        // A client each, so that axum makes the layer's service anew for each connection.
        let client = client(version);
        let call = client.request(request(Method::GET, &format!("{base}/")));
        calls.spawn(async move { call.await.unwrap().into_body().collect().await.unwrap().to_bytes() });
    }
    for done in 0..200 {
        let feed = soon(fed.recv()).await.unwrap();
        assert!(streams.counts.running() <= 8, "{done}: {:?}", streams.counts);
        if done == 0 {
            soon(async {
                while limit.in_flight() + limit.waiting() < 200 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            assert_eq!((limit.in_flight(), limit.waiting()), (8, 192), "headers were sent, bodies were not");
        }
        feed.send(Ok(Bytes::from_static(b"all"))).unwrap();
        drop(feed);
    }
    while let Some(body) = soon(calls.join_next()).await {
        assert_eq!(body.unwrap(), "all");
    }
    assert_eq!(streams.counts.most(), 8);
    soon(async {
        while limit.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

// HAZARD: L8, C3
#[tokio::test]
async fn a_limit_of_8_holds_with_200_streaming_responses_over_http_1() {
    eight_streams_of(Version::HTTP_11).await;
}

// HAZARD: L8, C3
#[tokio::test]
async fn a_limit_of_8_holds_with_200_streaming_responses_over_http_2() {
    eight_streams_of(Version::HTTP_2).await;
}

// HAZARD: L8
#[tokio::test]
async fn a_permit_until_the_headers_is_free_while_the_body_streams() {
    let streams = Streams::default();
    let (router, mut fed) = streams.router();
    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
    let policy = |hold| Policy::http_server("streams").concurrency_limit(&limit).hold(hold).build().unwrap();
    let app = router.layer(policy(UntilBody::new().release_at_headers()).layer());
    let Ok(one) = app.clone().oneshot(Request::get("/").body(Body::empty()).unwrap()).await;
    assert_eq!((one.status(), limit.in_flight()), (StatusCode::OK, 0));
    let _feed = fed.recv().await;

    let plain = Policy::http_server("streams").concurrency_limit(&limit).hold(UntilHeaders).build().unwrap();
    let (router, mut fed) = Streams::default().router();
    let Ok(two) = router.layer(plain.layer()).oneshot(Request::get("/").body(Body::empty()).unwrap()).await;
    assert_eq!((two.status(), limit.in_flight()), (StatusCode::OK, 0));
    let _feed = fed.recv().await;
}

/// It goes by how long the headers take, and would hear of nothing once streams have filled it.
#[tokio::test]
async fn a_limit_that_finds_itself_is_not_shut_by_streams() {
    let streams = Streams::default();
    let (router, mut fed) = streams.router();
    let policy = Policy::http_server("streams").standard().build().unwrap();
    let app = router.layer(policy.layer());
    let mut open = Vec::new();
    for _ in 0..50 {
        let Ok(response) = soon(app.clone().oneshot(Request::get("/").body(Body::empty()).unwrap())).await;
        assert_eq!(response.status(), StatusCode::OK);
        open.push((response, fed.recv().await));
    }
    assert_eq!(policy.concurrency_limit().unwrap().in_flight(), 0);
}

#[tokio::test]
async fn a_reader_that_goes_away_gives_the_permit_back() {
    for version in BOTH {
        let streams = Streams::default();
        let (router, mut fed) = streams.router();
        let policy = Policy::http_server("streams")
            .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(1))
            .circuit_breaker(opening().consecutive_failures(1))
            .build()
            .unwrap();
        let base = serve(router.layer(policy.layer())).await;
        let client = client::<Empty<Bytes>>(version);
        let response = soon(client.request(request(Method::GET, &base))).await.unwrap();
        let feed = fed.recv().await.unwrap();
        let limit = policy.concurrency_limit().unwrap();
        assert_eq!(limit.in_flight(), 1);
        drop((response, client));
        // A server sees a reader's end when it writes, if not before.
        soon(async {
            while limit.in_flight() > 0 {
                let _ = feed.send(Ok(Bytes::from_static(b"more")));
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(policy.circuit_breaker().unwrap().state(), State::Closed, "its headers said that it works");
    }
}

#[tokio::test]
async fn the_breaker_opens_on_503s_though_a_router_never_fails() {
    for version in BOTH {
        let seen = Counts::default();
        let handler = {
            let seen = seen.clone();
            async move || {
                drop(seen.enter());
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        let policy = Policy::http_server("api").circuit_breaker(opening()).build().unwrap();
        let app = Router::new().route("/", get(handler)).layer(policy.layer()).layer(RespondLayer::new());
        let base = serve(app).await;
        let client = client::<Empty<Bytes>>(version);
        for _ in 0..3 {
            let response = soon(client.request(request(Method::GET, &base))).await.unwrap();
            assert_eq!(response.status(), 503);
            assert!(!response.headers().contains_key(RETRY_AFTER));
        }
        let refused = soon(client.request(request(Method::GET, &base))).await.unwrap();
        assert_eq!((refused.status(), seen.calls()), (StatusCode::SERVICE_UNAVAILABLE, 3));
        assert!(refused.headers().contains_key(RETRY_AFTER));
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
    }
}

#[tokio::test]
async fn everything_composes_in_one_expression_whatever_the_response_body_is() {
    let policy = Policy::http_server("api").deadline(secs(5)).timeout(secs(1)).build().unwrap();
    // Straight in a stack, the answer of `RespondLayer` is a body that the policy has wrapped.
    let service = ServiceBuilder::new()
        .layer(RespondLayer::new())
        .layer(ReadDeadlineLayer::new())
        .layer(policy.layer())
        .service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Body::from("hello"))));
    let Ok(response) =
        service.oneshot(Request::get("/").header("grpc-timeout", "0m").body(Body::empty()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"{\"type\""), "{text:?}");
}

// ------------------------------------------------------------------------------------------------ bodies

/// A response whose body is fed by hand, straight from the policy: no socket, so that the clock can be paused.
macro_rules! streamed {
    ($policy:expr) => {{
        let (router, mut fed) = Streams::default().router();
        let response = $policy.wrap(router).send(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
        (response.into_body(), fed.recv().await.unwrap())
    }};
}

#[test]
fn a_status_says_what_asking_again_would_bring() {
    let soon = Some(secs(3));
    for (status, verdict, with_hint) in [
        (200, Verdict::Success, Verdict::Success),
        (304, Verdict::Success, Verdict::Success),
        (400, Verdict::Permanent, Verdict::Permanent),
        (404, Verdict::Permanent, Verdict::Permanent),
        (408, Verdict::TRANSIENT, Verdict::Transient { retry_after: soon }),
        (425, Verdict::TRANSIENT, Verdict::Transient { retry_after: soon }),
        (429, Verdict::THROTTLED, Verdict::Throttled { retry_after: soon }),
        (500, Verdict::TRANSIENT, Verdict::Transient { retry_after: soon }),
        (501, Verdict::Permanent, Verdict::Permanent),
        (503, Verdict::TRANSIENT, Verdict::Throttled { retry_after: soon }),
        (505, Verdict::Permanent, Verdict::Permanent),
        (599, Verdict::TRANSIENT, Verdict::Transient { retry_after: soon }),
    ] {
        let mut res = Response::builder().status(status).body(()).unwrap();
        assert_eq!(ByStatus.classify(Ok::<_, &Infallible>(&res)), verdict, "{status}");
        res.headers_mut().insert("retry-after", "3".parse().unwrap());
        assert_eq!(ByStatus.classify(Ok::<_, &Infallible>(&res)), with_hint, "{status}");
    }
}

fn downloads() -> PolicyBuilder<Kind<ByStatus, Once, UntilBody>> {
    Policy::http_client("downloads")
        .repeat(Once)
        .hold(UntilBody::new())
        .circuit_breaker(opening().consecutive_failures(1))
}

fn piece() -> Result<Bytes, std::io::Error> {
    Ok(Bytes::from_static(b"piece"))
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_silent_for_too_long_is_cut_off() {
    let policy = downloads().body_idle_timeout(secs(5)).build().unwrap();
    let (mut body, feed) = streamed!(policy);
    for _ in 0..3 {
        tokio::time::sleep(secs(60)).await; // nobody waits for the body: that is no silence of the server's
        feed.send(piece()).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
    }
    let feeding = tokio::spawn(async move {
        tokio::time::sleep(ms(4_900)).await;
        feed.send(piece()).unwrap();
        tokio::time::sleep(secs(60)).await;
        feed.send(piece()).unwrap_err();
    });
    assert!(body.frame().await.unwrap().is_ok(), "a piece in time starts it anew");
    let begun = Instant::now();
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(begun.elapsed(), secs(5));
    let rejection = rejection(&*error);
    assert_eq!((rejection.reason(), rejection.rule()), (Reason::Timeout, Rule::BodyIdle));
    assert_eq!(rejection.to_string(), "response of `downloads` timed out: its body was silent for 5.000 s");
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Open);
    assert!(body.frame().await.is_none());
    feeding.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deadline_runs_on_from_the_headers_while_nobody_reads() {
    let (mut body, _feed) = streamed!(downloads().deadline(secs(1)).build().unwrap());
    tokio::time::sleep(ms(600)).await;
    let begun = Instant::now();
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!((begun.elapsed(), rejection(&*error).reason()), (ms(400), Reason::DeadlineExceeded));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_takes_too_long_in_all_is_cut_off_however_many_pieces_come() {
    let policy = downloads().body_timeout(secs(10)).body_idle_timeout(secs(5)).build().unwrap();
    let (mut body, feed) = streamed!(policy);
    tokio::spawn(async move {
        while feed.send(piece()).is_ok() {
            tokio::time::sleep(secs(1)).await;
        }
    });
    let begun = Instant::now();
    let mut pieces = 0;
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(_) => pieces += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((begun.elapsed(), pieces), (secs(10), 10));
    assert_eq!(rejection(&*error).rule(), Rule::BodyTimeout);
    let expected = "response of `downloads` timed out: its body took more than 10.000 s";
    assert_eq!(rejection(&*error).to_string(), expected);
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_goes_on_into_the_body() {
    let policy = downloads().deadline(secs(3)).body_idle_timeout(secs(60)).build().unwrap();
    let (mut body, _feed) = streamed!(policy);
    let begun = Instant::now();
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(begun.elapsed(), secs(3));
    assert_eq!(rejection(&*error).reason(), Reason::DeadlineExceeded);
    assert_eq!(rejection(&*error).to_string(), "deadline of `downloads` exceeded: no time left of 3.000 s");
    // It had been waited for longer than is slow.
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn an_outer_deadline_goes_on_into_the_body_too_and_what_makes_it_sees_it() {
    let policy = downloads().build().unwrap();
    let deadline = Deadline::after(secs(2));
    let (mut body, feed) = deadline.scope(async { streamed!(policy) }).await;
    feed.send(piece()).unwrap();
    assert!(body.frame().await.unwrap().is_ok());
    let begun = Instant::now();
    assert_eq!(rejection(&*body.frame().await.unwrap().unwrap_err()).reason(), Reason::DeadlineExceeded);
    assert_eq!(begun.elapsed(), secs(2));

    // Whoever makes the body is polled under the deadline of the call.
    let seen = Router::new().route(
        "/",
        get(async || {
            Body::from_stream(futures_util::stream::once(async {
                Ok::<_, Infallible>(format!("{:?}", Deadline::current()))
            }))
        }),
    );
    let call = downloads().build().unwrap().wrap(seen).send(Request::get("/").body(Body::empty()).unwrap());
    let response = Deadline::after(secs(9)).scope(call).await.unwrap();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "Some(Deadline(9s left))");
}

#[tokio::test(start_paused = true)]
async fn the_breaker_hears_how_a_body_ended() {
    let policy = downloads().build().unwrap();
    let breaker = policy.circuit_breaker().unwrap();

    let (mut body, feed) = streamed!(policy);
    feed.send(piece()).unwrap();
    assert!(body.frame().await.unwrap().is_ok());
    assert_eq!(breaker.snapshot().calls, 0, "it goes on");
    drop(feed);
    assert!(body.frame().await.is_none());
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (1, 0));

    let (body, _feed) = streamed!(policy);
    drop(body);
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (2, 0), "seen enough");

    let (mut body, _feed) = streamed!(policy);
    let waited = timeout(ms(500), body.frame()).await;
    assert!(waited.is_err());
    drop(body);
    assert_eq!((breaker.snapshot().calls, breaker.snapshot().failures), (3, 0), "given up on before it was slow");

    let (mut body, _feed) = streamed!(policy);
    assert!(timeout(ms(1_500), body.frame()).await.is_err());
    drop(body);
    assert_eq!(breaker.state(), State::Open, "it was silent for longer than is slow");

    breaker.reset();
    let (mut body, feed) = streamed!(policy);
    feed.send(Err(std::io::Error::other("gone"))).unwrap();
    assert!(body.frame().await.unwrap().is_err());
    assert_eq!(breaker.state(), State::Open, "it broke off");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_panics_is_a_failure_and_gives_the_permit_back() {
    let policy = Policy::http_server("api")
        .circuit_breaker(opening().consecutive_failures(1))
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(1))
        .build()
        .unwrap();
    let bomb = Router::new().route(
        "/",
        get(async || {
            Body::from_stream(futures_util::stream::once(async {
                if true { panic!("boom") } else { Ok::<_, Infallible>("") }
            }))
        }),
    );
    let response = policy.wrap(bomb).send(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(policy.concurrency_limit().unwrap().in_flight(), 1);
    let reading = tokio::spawn(async move { response.into_body().collect().await.map(drop) });
    assert!(reading.await.unwrap_err().is_panic());
    assert_eq!(policy.concurrency_limit().unwrap().in_flight(), 0);
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Open);
}

#[tokio::test]
async fn an_answer_without_a_body_is_over_at_once() {
    let policy = Policy::http_server("api")
        .circuit_breaker(opening())
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(1))
        .build()
        .unwrap();
    let router = Router::new().route("/", get(async || StatusCode::NO_CONTENT));
    let response = policy.wrap(router).send(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(policy.concurrency_limit().unwrap().in_flight(), 0);
    assert_eq!(policy.circuit_breaker().unwrap().snapshot().calls, 1);
    drop(response);
    assert_eq!(policy.circuit_breaker().unwrap().snapshot().calls, 1);
}

// ------------------------------------------------------------------------------------------------ clients

#[tokio::test]
async fn a_client_retries_a_get_and_sends_a_post_once_over_http_1_and_http_2() {
    for version in BOTH {
        let seen = Counts::default();
        let handler = {
            let seen = seen.clone();
            async move || {
                drop(seen.enter());
                if seen.calls() % 3 == 0 { StatusCode::OK } else { StatusCode::BAD_GATEWAY }
            }
        };
        let base = serve(Router::new().route("/", any(handler))).await;
        let policy = Policy::http_client("shop").deadline(secs(30)).retry(Retry::constant(ms(0))).build().unwrap();
        let shop = policy.wrap(client(version));
        let response = soon(shop.send(request(Method::GET, &base))).await.unwrap();
        assert_eq!((response.status(), seen.calls()), (StatusCode::OK, 3));
        let response = soon(shop.send(request(Method::POST, &base))).await.unwrap();
        assert_eq!((response.status(), seen.calls()), (StatusCode::BAD_GATEWAY, 4));
        let mut keyed = request(Method::POST, &base);
        keyed.headers_mut().insert("idempotency-key", "order-42".parse().unwrap());
        let response = soon(shop.send(keyed)).await.unwrap();
        assert_eq!((response.status(), seen.calls()), (StatusCode::OK, 6));
    }
}

/// A clock that tells the time by tokio's, from the moment it is first asked.
fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + secs(1_000_000) + Duration::from_nanos(NANOS.load(SeqCst))
}

static NANOS: AtomicU64 = AtomicU64::new(0);

// HAZARD: R7
#[tokio::test]
async fn a_429_with_a_date_is_waited_out_and_never_undercut() {
    // The wall clock is half a second past a full one: a date has no fractions.
    NANOS.store(500_000_000, SeqCst);
    let seen = Counts::default();
    let handler = {
        let seen = seen.clone();
        async move || {
            drop(seen.enter());
            let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + secs(1_000_007));
            if seen.calls() == 1 {
                (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, date)])
            } else {
                (StatusCode::OK, [(RETRY_AFTER, String::new())])
            }
        }
    };
    let base = serve(Router::new().route("/", get(handler))).await;
    let retry = Retry::constant(ms(1)).max_attempts(2);
    let policy = Policy::http_client("shop").retry(retry).classify(ByStatusAt(wall)).build().unwrap();
    let shop = policy.wrap(client(Version::HTTP_11));
    let call = tokio::spawn({
        let base = base.clone();
        async move { shop.send(request(Method::GET, &base)).await.unwrap().status() }
    });
    soon(async {
        while seen.calls() < 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Its answer is on its way to the client; once that has it, it sleeps.
    pause();
    settle().await;
    let begun = Instant::now();
    while seen.calls() < 2 {
        assert!(begun.elapsed() <= secs(8), "it is waited out, not given up");
        let before = begun.elapsed();
        advance(ms(100)).await;
        for _ in 0..20 {
            std::thread::yield_now();
            settle().await;
        }
        assert!(seen.calls() < 2 || before + ms(100) >= ms(6_500), "undercut: {before:?}");
    }
    resume();
    assert_eq!(soon(call).await.unwrap(), 200);
}

#[tokio::test]
async fn a_post_that_never_reached_the_server_is_sent_again() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let base = format!("http://{}", socket.local_addr().unwrap());
    let seen = Counts::default();
    let router = {
        let seen = seen.clone();
        Router::new().route(
            "/",
            any(async move || {
                drop(seen.enter());
                StatusCode::INTERNAL_SERVER_ERROR
            }),
        )
    };
    // The port refuses the first attempt. It listens from the second on.
    let server = Arc::new(std::sync::Mutex::new(Some((socket, router))));
    let attempts = Counts::default();
    let counted = {
        let attempts = attempts.clone();
        MapRequest::new(client(Version::HTTP_11), move |request: Request<Empty<Bytes>>| {
            drop(attempts.enter());
            if attempts.calls() == 2 {
                let (socket, router) = server.lock().unwrap().take().unwrap();
                let listener = socket.listen(16).unwrap();
                tokio::spawn(async move { axum::serve(listener, router).await });
            }
            request
        })
    };
    let policy = Policy::http_client("shop").retry(Retry::constant(ms(0)).max_attempts(5)).build().unwrap();
    let response = soon(policy.wrap(counted).send(request(Method::POST, &base))).await.unwrap();
    assert_eq!((response.status(), attempts.calls(), seen.calls()), (StatusCode::INTERNAL_SERVER_ERROR, 2, 1));
}

/// An HTTP/2 server that refuses the first `refused` streams, for this reason.
async fn refusing(refused: usize, reason: h2::Reason, seen: &Counts) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let seen = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_request, mut respond))) = connection.accept().await {
                    drop(seen.enter());
                    if seen.calls() <= refused {
                        respond.send_reset(reason);
                    } else {
                        respond.send_response(Response::new(()), true).unwrap();
                    }
                }
            });
        }
    });
    base
}

#[tokio::test]
async fn a_post_that_http_2_refused_is_sent_again_and_one_that_was_reset_is_not() {
    let policy = Policy::http_client("shop").retry(Retry::constant(ms(0)).max_attempts(3)).build().unwrap();
    let seen = Counts::default();
    let base = refusing(2, h2::Reason::REFUSED_STREAM, &seen).await;
    let shop = policy.wrap(client(Version::HTTP_2));
    let response = soon(shop.send(request(Method::POST, &base))).await.unwrap();
    assert_eq!((response.status(), seen.calls()), (StatusCode::OK, 3));

    let seen = Counts::default();
    let base = refusing(2, h2::Reason::INTERNAL_ERROR, &seen).await;
    let error = soon(shop.send(request(Method::POST, &base))).await.unwrap_err();
    assert_eq!(seen.calls(), 1, "{error:?}");
}

// ------------------------------------------------------------------------------------------------ hostile input

proptest! {
    /// Whatever a server sends, it is a verdict.
    #[test]
    fn no_retry_after_panics(value in prop::collection::vec(prop::num::u8::ANY, 0..40), status in 100_u16..600) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if let Ok(value) = axum::http::HeaderValue::from_bytes(&value) {
            response.headers_mut().insert(RETRY_AFTER, value);
        }
        let verdict = ByStatus.classify(Ok::<_, &Infallible>(&response));
        prop_assert_eq!(verdict == Verdict::Success, status < 400);
    }

    #[test]
    fn a_retry_after_in_digits_is_that_many_seconds(seconds in prop::num::u64::ANY, more in prop::sample::select(vec!["", "0", "99", "123456789012345678901"])) {
        let mut headers = axum::http::HeaderMap::new();
        headers.insert(RETRY_AFTER, format!("{seconds}{more}").parse().unwrap());
        let told = buttress::http::retry_after(&headers, SystemTime::now()).unwrap();
        prop_assert_eq!(told.as_secs(), format!("{seconds}{more}").parse().unwrap_or(u64::MAX));
    }
}

/// At the door: while the one in front takes what is left, a request with too little time is not begun.
#[tokio::test(start_paused = true)]
async fn a_request_with_too_little_time_left_is_refused_at_the_door_and_nothing_of_it_runs() {
    use axum::http::header::CONTENT_TYPE;
    use buttress::concurrency_limit::{Discipline, Headroom};

    let policy = Policy::http_server("api")
        .concurrency_limit(
            ConcurrencyLimit::builder()
                .adaptive(Headroom::default())
                .max_in_flight(1)
                .max_queue(9)
                .discipline(Discipline::Deadline),
        )
        .build()
        .unwrap();
    let counts = Counts::default();
    let handler = {
        let counts = counts.clone();
        async move || {
            let _running = counts.enter();
            tokio::time::sleep(ms(40)).await;
            "done"
        }
    };
    let app = Router::new().route("/", get(handler)).layer(
        tower::ServiceBuilder::new()
            .layer(RespondLayer::new())
            .layer(ReadDeadlineLayer::new().header("x-timeout-ms".parse().unwrap()))
            .layer(policy.layer()),
    );
    let ask = |left: &str| {
        let request = Request::get("/").header("x-timeout-ms", left).body(Body::empty()).unwrap();
        app.clone().oneshot(request)
    };
    // It learns how long an answer takes.
    for _ in 0..10 {
        let Ok(response) = ask("1000").await;
        assert_eq!(response.status(), StatusCode::OK);
        drop(response.into_body().collect().await);
    }
    let first = tokio::spawn(ask("1000"));
    tokio::time::sleep(ms(1)).await;

    let start = Instant::now();
    let Ok(response) = ask("30").await;
    assert_eq!(start.elapsed(), ms(0), "at once");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    let refused = response.extensions().get::<Rejection>().map(|no| (no.name(), no.rule()));
    assert_eq!(refused, Some(("api", Rule::TooLate)));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(body.contains(r#""status":503"#) && body.contains(r#""reason":"overloaded""#), "{body}");

    // Past already: that is the caller's own doing, and no sign of load.
    let Ok(response) = ask("0").await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(response.extensions().get::<Rejection>().map(Rejection::rule), Some(Rule::Deadline));

    let Ok(response) = first.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!((counts.calls(), counts.running()), (11, 0), "nothing else was begun");
}
