//! tonic on both sides, over real TCP on the loopback: the echo service of the example.
#![cfg(feature = "tonic")]

// The example's own, so that there is one echo service.
#[path = "../../examples/tonic_service/echo.rs"]
mod echo;

use std::{convert::Infallible, future::pending, net::SocketAddr, sync::Arc};

use axum::http;
use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, Classify, ConcurrencyLimit, Deadline, Jitter, Keyed, LiftLayer,
    Policy, Reason, Rejection, Retry, Shutdown, Verdict,
    circuit_breaker::State,
    http::{ByGrpcStatus, ReadDeadlineLayer, RespondLayer, WriteDeadlineLayer},
};
use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use tokio::{sync::Semaphore, time::timeout};
use tokio_stream::StreamExt;
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    server::NamedService,
    transport::{
        Channel, Server,
        server::{Router, TcpIncoming},
    },
};
use tower::{Layer, Service, ServiceBuilder};

use self::echo::{Echo, EchoClient, EchoServer, Texts};
use crate::support::{Counts, ms, secs};

/// Fails instead of hanging.
#[track_caller]
fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move { timeout(secs(30), future).await.unwrap_or_else(|_| panic!("hangs: {caller}")) }
}

/// Does as it is told: `fail 14`, `fail 8 250` with a pushback, `wait`, `break off`; else it echoes.
#[derive(Clone)]
struct Parrot {
    seen: Counts,
    go: Arc<Semaphore>,
}

impl Parrot {
    fn new() -> Self {
        Self { seen: Counts::default(), go: Arc::new(Semaphore::new(0)) }
    }
}

fn failure(text: &str) -> Option<Status> {
    let mut words = text.strip_prefix("fail ")?.split(' ');
    let mut status = Status::new(Code::from(words.next()?.parse::<i32>().ok()?), "as told");
    if let Some(pushback) = words.next() {
        status.metadata_mut().insert("grpc-retry-pushback-ms", pushback.parse().unwrap());
    }
    Some(status)
}

impl Echo for Parrot {
    async fn say(&self, request: Request<String>) -> Result<Response<String>, Status> {
        let _running = self.seen.enter();
        let text = request.into_inner();
        match text.as_str() {
            "wait" => self.go.acquire().await.unwrap().forget(),
            "never" => pending().await,
            "deadline" => return Ok(Response::new(format!("{:?}", Deadline::current().map(Deadline::is_past)))),
            _ => {}
        }
        failure(&text).map_or_else(|| Ok(Response::new(text)), Err)
    }

    async fn repeat(&self, request: Request<String>) -> Result<Response<Texts>, Status> {
        let running = self.seen.enter();
        let text = request.into_inner();
        let end = failure(&text).map(Err);
        let go = Arc::clone(&self.go);
        let texts = tokio_stream::iter([Ok(text)]).chain(tokio_stream::iter(end)).then(move |text| {
            let (go, _running) = (Arc::clone(&go), &running);
            async move {
                go.acquire().await.unwrap().forget();
                text
            }
        });
        Ok(Response::new(Box::pin(texts)))
    }
}

async fn serve<L, B>(router: Router<L>) -> Channel
where
    L: Layer<tonic::service::Routes> + Clone + Send + 'static,
    L::Service: Service<http::Request<Body>, Response = http::Response<B>, Error = Infallible> + Clone + Send + 'static,
    <L::Service as Service<http::Request<Body>>>::Future: Send,
    B: hyper::body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let addr = incoming.local_addr().unwrap();
    tokio::spawn(router.serve_with_incoming(incoming));
    Channel::from_shared(format!("http://{addr}")).unwrap().connect_lazy()
}

async fn parrot(parrot: &Parrot) -> Channel {
    serve(Server::builder().add_service(EchoServer::new(parrot.clone()))).await
}

fn opening() -> CircuitBreakerBuilder {
    CircuitBreaker::builder().consecutive_failures(2).open_time(Backoff::constant(secs(600)).jitter(Jitter::None))
}

fn rejection(status: &Status) -> Option<Rejection> {
    Rejection::find(status).copied()
}

// ------------------------------------------------------------------------------------------------ clients

#[tokio::test]
async fn a_policy_around_a_channel_answers_with_the_right_code() {
    let bird = Parrot::new();
    let policy = Policy::grpc("parrot")
        .deadline(secs(20))
        .circuit_breaker(opening())
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(1).max_queue(0))
        .timeout(ms(300))
        .build()
        .unwrap();
    let mut client = EchoClient::new(policy.wrap(parrot(&bird).await));
    assert_eq!(soon(client.say("hello")).await.unwrap().into_inner(), "hello");

    let late = soon(client.say("never")).await.unwrap_err();
    assert_eq!((late.code(), rejection(&late).unwrap().reason()), (Code::DeadlineExceeded, Reason::Timeout));

    let _held = policy.concurrency_limit().unwrap().try_acquire().unwrap();
    let full = soon(client.say("hello")).await.unwrap_err();
    assert_eq!((full.code(), rejection(&full).unwrap().reason()), (Code::ResourceExhausted, Reason::Overloaded));

    policy.circuit_breaker().unwrap().force_open();
    let open = soon(client.say("hello")).await.unwrap_err();
    assert_eq!((open.code(), rejection(&open).unwrap().reason()), (Code::Unavailable, Reason::CircuitOpen));
}

#[tokio::test]
async fn the_breaker_hears_the_status_whether_it_comes_with_the_headers_or_at_the_end() {
    for (code, opens) in [(14, true), (13, true), (4, true), (8, true), (5, false), (1, false), (10, false)] {
        // Trailers only: a unary call that fails.
        let bird = Parrot::new();
        let policy = Policy::grpc("parrot").circuit_breaker(opening()).build().unwrap();
        let mut client = EchoClient::new(policy.wrap(parrot(&bird).await));
        for _ in 0..2 {
            assert_eq!(soon(client.say(format!("fail {code}"))).await.unwrap_err().code(), Code::from(code));
        }
        let state = policy.circuit_breaker().unwrap().state();
        assert_eq!(state == State::Open, opens, "{code} in the headers: {state:?}");

        // After a message: a stream that fails.
        let policy = Policy::grpc("parrot").circuit_breaker(opening()).build().unwrap();
        let mut client = EchoClient::new(policy.wrap(parrot(&bird).await));
        bird.go.add_permits(4);
        for _ in 0..2 {
            let mut texts = soon(client.repeat(format!("fail {code}"))).await.unwrap().into_inner();
            assert!(soon(texts.message()).await.unwrap().is_some());
            assert_eq!(policy.circuit_breaker().unwrap().state(), State::Closed);
            assert_eq!(soon(texts.message()).await.unwrap_err().code(), Code::from(code));
        }
        let state = policy.circuit_breaker().unwrap().state();
        assert_eq!(state == State::Open, opens, "{code} at the end: {state:?}");
    }
}

#[tokio::test]
async fn a_stream_gives_its_permit_back_with_the_headers_unless_it_is_to_be_held() {
    let bird = Parrot::new();
    let channel = parrot(&bird).await;
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let policy = Policy::grpc("parrot").concurrency_limit(&limit).build().unwrap();
    let texts = soon(EchoClient::new(policy.wrap(channel.clone())).repeat("hello")).await.unwrap();
    assert_eq!(limit.in_flight(), 0);
    drop(texts);

    let policy =
        Policy::grpc("parrot").concurrency_limit(&limit).hold(buttress::http::UntilBody::new()).build().unwrap();
    let texts = soon(EchoClient::new(policy.wrap(channel)).repeat("hello")).await.unwrap();
    assert_eq!(limit.in_flight(), 1);
    drop(texts);
    assert_eq!(limit.in_flight(), 0);
}

#[tokio::test]
async fn calls_of_a_generated_client_are_retried_by_their_status() {
    let bird = Parrot::new();
    let client = EchoClient::new(parrot(&bird).await);
    let attempts = async |retry: buttress::RetryBuilder, text: &str| {
        let policy = Policy::grpc("parrot").retry(retry.max_attempts(3).without_budget()).build().unwrap();
        let before = bird.seen.calls();
        let call = policy.call_as(|| {
            let mut client = client.clone();
            async move { client.say(text).await }
        });
        let _ = soon(call).await.unwrap_err();
        bird.seen.calls() - before
    };
    let at_once = || Retry::constant(ms(0));
    assert_eq!(attempts(at_once(), "fail 14").await, 3, "UNAVAILABLE is transient");
    for code in [2, 4, 5, 10, 13, 15] {
        assert_eq!(attempts(at_once(), &format!("fail {code}")).await, 1, "{code}");
    }
    assert_eq!(attempts(at_once(), "fail 8").await, 1, "RESOURCE_EXHAUSTED is not retried by default");
    assert_eq!(attempts(at_once().retry_throttled(true), "fail 8").await, 3, "but if asked for");
    assert_eq!(attempts(at_once(), "fail 8 0").await, 3, "or if the server says when");
    assert_eq!(attempts(at_once(), "fail 14 -1").await, 1, "below zero means not to try again");
    assert_eq!(attempts(at_once(), "fail 14 soon").await, 1, "and so does what cannot be read");
    assert_eq!(attempts(at_once().max_retry_after(secs(1)), "fail 14 1001").await, 1, "over the cap: stop");
}

#[tokio::test]
async fn a_nested_rejection_in_a_status_is_known_as_one() {
    let inner = Policy::grpc("inner").circuit_breaker(opening()).build().unwrap();
    inner.circuit_breaker().unwrap().force_open();
    let outer = Policy::grpc("outer").retry(Retry::constant(ms(0))).circuit_breaker(opening()).build().unwrap();
    let mut calls = 0;
    let refused = outer
        .call_as(|| {
            calls += 1;
            inner.call_as(async || Ok::<_, Status>(Response::new(())))
        })
        .await
        .unwrap_err();
    assert_eq!((refused.code(), calls), (Code::Unavailable, 1));
    assert_eq!(rejection(&refused).unwrap().name(), "inner");
    assert_eq!(outer.circuit_breaker().unwrap().snapshot().calls, 0, "it says nothing about the service");
}

#[tokio::test]
async fn a_channel_that_cannot_connect_has_sent_nothing() {
    // Bound but not listening: it refuses.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut channel = Channel::from_shared(format!("http://{}", socket.local_addr().unwrap())).unwrap().connect_lazy();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let error = soon(channel.call(http::Request::new(Body::empty()))).await.unwrap_err();
    assert_eq!(Classify::<http::Response<()>, _>::classify(&ByGrpcStatus, Err(&error)), Verdict::Unsent);
}

// ------------------------------------------------------------------------------------------------ servers

// What a client without any policy sees.
#[tokio::test]
async fn a_server_says_no_in_grpcs_own_words() {
    let bird = Parrot::new();
    let policy = Policy::grpc("echo")
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(1).max_queue(0))
        .timeout(ms(300))
        .build()
        .unwrap();
    let limit = policy.concurrency_limit().unwrap().clone();
    let mut server = Server::builder()
        .layer(RespondLayer::grpc_only().detailed())
        .layer(ReadDeadlineLayer::new())
        .layer(policy.layer());
    let mut client = EchoClient::new(serve(server.add_service(EchoServer::new(bird.clone()))).await);
    assert_eq!(soon(client.say("hello")).await.unwrap().into_inner(), "hello");

    let late = soon(client.say("never")).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "and not UNKNOWN");
    assert!(late.message().starts_with("attempt of `echo` timed out"), "{late:?}");

    let held = limit.try_acquire().unwrap();
    let full = soon(client.say("hello")).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    drop(held);
    assert_eq!(soon(client.say("hello")).await.unwrap().into_inner(), "hello");
}

#[tokio::test]
async fn a_layer_around_one_service_keeps_its_name() {
    fn name<S: NamedService>(_: &S) -> &'static str {
        S::NAME
    }
    let bird = Parrot::new();
    let policy = Policy::grpc("echo").timeout(secs(5)).build().unwrap();
    let shutdown = Shutdown::builder().build().unwrap();
    let layers = ServiceBuilder::new().layer(shutdown.handle().in_flight_layer()).layer(policy.layer());
    let service = layers.service(EchoServer::new(bird));
    assert_eq!(name(&service), "buttress.Echo");
    let mut client = EchoClient::new(serve(Server::builder().add_service(service)).await);
    assert_eq!(soon(client.say("hello")).await.unwrap().into_inner(), "hello");
}

#[tokio::test]
async fn a_deadline_travels_from_client_to_server() {
    let bird = Parrot::new();
    let server = Server::builder().layer(ReadDeadlineLayer::new()).add_service(EchoServer::new(bird.clone()));
    let channel = serve(server).await;
    let policy = Policy::grpc("parrot").deadline(secs(20)).build().unwrap();
    let stack = ServiceBuilder::new().layer(policy.layer()).layer(WriteDeadlineLayer::new()).layer(LiftLayer);
    let mut client = EchoClient::new(stack.service(channel.clone()));
    assert_eq!(soon(client.say("deadline")).await.unwrap().into_inner(), "Some(false)");
    let mut plain = EchoClient::new(channel);
    assert_eq!(soon(plain.say("deadline")).await.unwrap().into_inner(), "None");
}

#[tokio::test]
async fn one_hosts_open_circuit_leaves_the_others_alone() {
    let birds = [Parrot::new(), Parrot::new()];
    let channels = [parrot(&birds[0]).await, parrot(&birds[1]).await];
    let hosts = Keyed::each(Policy::grpc("hosts").circuit_breaker(opening())).build().unwrap();
    let mut clients = [0, 1].map(|host: usize| {
        let layer = hosts.layer(move |_: &http::Request<Body>| host);
        EchoClient::new(ServiceBuilder::new().layer(layer).layer(LiftLayer).service(channels[host].clone()))
    });
    for _ in 0..2 {
        let _ = soon(clients[0].say("fail 14")).await.unwrap_err();
    }
    let refused = soon(clients[0].say("hello")).await.unwrap_err();
    assert_eq!(rejection(&refused).unwrap().reason(), Reason::CircuitOpen);
    assert_eq!(soon(clients[1].say("hello")).await.unwrap().into_inner(), "hello");
    assert_eq!((birds[0].seen.calls(), birds[1].seen.calls()), (2, 1));
}

// ------------------------------------------------------------------------------------------------ hostile input

proptest! {
    /// Whatever a server sends, it is a verdict.
    #[test]
    fn no_status_and_no_pushback_panics(
        status in prop::collection::vec(prop::num::u8::ANY, 0..12),
        pushback in prop::collection::vec(prop::num::u8::ANY, 0..12),
    ) {
        let mut response = http::Response::new(());
        for (name, value) in [("grpc-status", &status), ("grpc-retry-pushback-ms", &pushback)] {
            if let Ok(value) = http::HeaderValue::from_bytes(value) {
                response.headers_mut().insert(name, value);
            }
        }
        let verdict = ByGrpcStatus.classify(Ok::<_, &Infallible>(&response));
        // What is no number is UNKNOWN.
        if response.headers().contains_key("grpc-status") && !status.iter().any(u8::is_ascii_digit) {
            prop_assert_eq!(verdict, Verdict::Failed);
        }
    }

    #[test]
    fn a_pushback_is_milliseconds_to_the_letter_or_the_end(
        ms in prop_oneof![prop::num::i32::ANY.prop_map(i64::from), prop::num::i64::ANY],
    ) {
        let response = http::Response::builder()
            .header("grpc-status", "14")
            .header("grpc-retry-pushback-ms", ms.to_string())
            .body(())
            .unwrap();
        let verdict = ByGrpcStatus.classify(Ok::<_, &Infallible>(&response));
        match i32::try_from(ms).ok().and_then(|ms| u64::try_from(ms).ok()) {
            Some(told) => prop_assert_eq!(verdict.retry_after(), Some(crate::support::ms(told))),
            None => prop_assert!(verdict == Verdict::Failed),
        }
    }
}

#[test]
fn an_answer_that_is_no_grpc_counts_by_its_http_status() {
    let judge = |status: u16| {
        let response = http::Response::builder().status(status).body(()).unwrap();
        ByGrpcStatus.classify(Ok::<_, &Infallible>(&response))
    };
    for status in [429, 502, 503, 504] {
        assert_eq!(judge(status), Verdict::TRANSIENT, "{status}");
    }
    for status in [400, 500, 418] {
        assert_eq!(judge(status), Verdict::Failed, "{status}");
    }
    for status in [401, 403, 404] {
        assert_eq!(judge(status), Verdict::Permanent, "{status}");
    }
}

// ---------------------------------------------------------------- rejections as a status

#[tokio::test(start_paused = true)]
async fn a_rejection_becomes_a_status_that_says_when_to_come_back_and_is_known_again() {
    let breaker = opening().build().unwrap();
    for _ in 0..2 {
        breaker.try_acquire().unwrap().settle(Verdict::TRANSIENT);
    }
    let open = breaker.call_as(async { Ok::<_, Status>(()) }).await.unwrap_err();
    let after = breaker.snapshot().retry_after.unwrap().as_millis().to_string();
    let pushback = open.metadata().get("grpc-retry-pushback-ms").unwrap();
    assert_eq!((open.code(), pushback.to_str().unwrap()), (Code::Unavailable, after.as_str()));
    assert_eq!(Rejection::find(&open).unwrap().reason(), Reason::CircuitOpen);

    breaker.force_open();
    let forced = breaker.call_as(async { Ok::<_, Status>(()) }).await.unwrap_err();
    assert!(!forced.metadata().contains_key("grpc-retry-pushback-ms"), "nobody knows when");
    breaker.reset();
    assert_eq!(breaker.call_as(async { Ok::<_, Status>(7) }).await.unwrap(), 7);
}
