//! A deadline on the wire: out of the headers of one request, and into those of the next.
#![cfg(feature = "http")]
#![allow(clippy::disallowed_methods)] // the stories tell at what time a call ended

use std::{convert::Infallible, future::pending, net::SocketAddr};

use axum::{
    Router,
    body::Body,
    http::{HeaderName, Request, Response, StatusCode, header::RETRY_AFTER},
    routing::get,
};
use buttress::{
    Backoff, Deadline, Error, Jitter, Lift, LiftLayer, Policy, Reason, Rejection, Retry, Timeout,
    http::{ReadDeadlineLayer, RespondLayer, WriteDeadlineLayer},
};
use http_body_util::BodyExt;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::{collection::vec, prelude::*};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::mpsc,
    time::{Duration, Instant, advance, sleep, timeout},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::support::{Counts, ms, secs};

/// In nanoseconds. No deadline is further away.
const THIRTY_YEARS: u64 = 30 * 365 * 86_400 * 1_000_000_000;
const MILLIS: HeaderName = HeaderName::from_static("x-timeout-ms");

/// Fails instead of hanging.
pub async fn in_time<F: Future>(future: F) -> F::Output {
    timeout(secs(30), future).await.expect("an answer, and no hanging")
}

/// On the loopback, over HTTP/1 and HTTP/2.
pub async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    addr
}

#[derive(Clone, Copy, Debug)]
pub enum Over {
    Http1,
    Http2,
}

/// What one request is answered, on a connection of its own.
pub async fn ask(addr: SocketAddr, over: Over, mut req: Request<Body>) -> (StatusCode, axum::http::HeaderMap, String) {
    let io = TokioIo::new(in_time(TcpStream::connect(addr)).await.unwrap());
    let response = match over {
        Over::Http1 => {
            let (mut client, connection) = in_time(http1::handshake(io)).await.unwrap();
            tokio::spawn(connection);
            req.headers_mut().insert("host", "localhost".parse().unwrap());
            in_time(client.send_request(req)).await.unwrap()
        }
        Over::Http2 => {
            let (mut client, connection) = in_time(http2::handshake(TokioExecutor::new(), io)).await.unwrap();
            tokio::spawn(connection);
            *req.uri_mut() = format!("http://localhost{}", req.uri().path()).parse().unwrap();
            in_time(client.send_request(req)).await.unwrap()
        }
    };
    let (head, body) = response.into_parts();
    let body = in_time(body.collect()).await.unwrap().to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

/// A request with these headers.
pub fn request<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Request<Body> {
    let mut req = Request::get("/");
    for (name, value) in headers {
        req = req.header(name, value);
    }
    req.body(Body::empty()).unwrap()
}

async fn left() -> Result<Option<Duration>, Infallible> {
    Ok(Deadline::current().map(Deadline::remaining))
}

/// What a service inside of this layer has left, told by a response's extensions.
async fn seen(layer: &ReadDeadlineLayer, req: Request<Body>) -> Result<Option<Duration>, Rejection> {
    let service = service_fn(async |_: Request<Body>| {
        let mut response = Response::new(());
        response.extensions_mut().insert(left().await);
        Ok::<_, Error<Infallible>>(response)
    });
    match layer.layer(service).send(req).await {
        Ok(response) => Ok(response.extensions().get::<Result<_, Infallible>>().unwrap().unwrap()),
        Err(error) => Err(*error.rejection().unwrap()),
    }
}

// ------------------------------------------------------------------------------------------------ the server reads

#[tokio::test(start_paused = true)]
async fn the_shortest_time_of_all_headers_becomes_the_deadline() {
    let layer = ReadDeadlineLayer::new().header(MILLIS);
    for (headers, time) in [
        (&[("grpc-timeout", "2S")][..], Some(secs(2))),
        (&[("x-timeout-ms", "1500")], Some(ms(1_500))),
        (&[("grpc-timeout", "2S"), ("x-timeout-ms", "1500")], Some(ms(1_500))),
        (&[("grpc-timeout", "1S"), ("x-timeout-ms", "1500")], Some(secs(1))),
        (&[("grpc-timeout", "3S"), ("grpc-timeout", "2S")], Some(secs(2))),
        (&[("grpc-timeout", "soon"), ("x-timeout-ms", "1500")], Some(ms(1_500))),
        (&[("grpc-timeout", "soon"), ("x-timeout-ms", "-1")], None),
        (&[("another-header", "5")], None),
        (&[], None),
    ] {
        assert_eq!(seen(&layer, request(headers.iter().copied())).await, Ok(time), "{headers:?}");
    }
    let only_grpc = ReadDeadlineLayer::new();
    assert_eq!(seen(&only_grpc, request([("x-timeout-ms", "5")])).await, Ok(None), "nobody asked for this header");
}

#[tokio::test(start_paused = true)]
async fn the_max_caps_what_a_caller_asks_for_and_the_default_is_for_those_that_say_nothing() {
    let layer = ReadDeadlineLayer::new().max(secs(5)).default(secs(3));
    assert_eq!(seen(&layer, request([("grpc-timeout", "99999999H")])).await, Ok(Some(secs(5))));
    assert_eq!(seen(&layer, request([("grpc-timeout", "4S")])).await, Ok(Some(secs(4))), "longer than the default");
    for silent in [&[][..], &[("grpc-timeout", "9 S")]] {
        assert_eq!(seen(&layer, request(silent.iter().copied())).await, Ok(Some(secs(3))));
    }
    assert_eq!(seen(&layer.default(secs(9)), request([])).await, Ok(Some(secs(5))), "the cap is for all");
    assert_eq!(seen(&ReadDeadlineLayer::new().max(secs(5)), request([])).await, Ok(None), "a cap is no default");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_deadline_that_is_there_already_counts() {
    let layer = ReadDeadlineLayer::new();
    let ask = |time| seen(&layer, request([("grpc-timeout", time)]));
    assert_eq!(Deadline::after(secs(1)).scope(ask("2S")).await, Ok(Some(secs(1))));
    assert_eq!(Deadline::after(secs(2)).scope(ask("1S")).await, Ok(Some(secs(1))));
    assert_eq!(left().await, Ok(None), "and nothing stays behind");
}

#[tokio::test(start_paused = true)]
async fn the_service_is_called_inside_and_the_time_runs_from_the_call() {
    let req = || Request::builder().header("grpc-timeout", "2S").body(()).unwrap();
    let service = service_fn(|_: Request<()>| {
        let called = Deadline::current().map(Deadline::remaining);
        async move { Ok::<_, Error<()>>(called) }
    });
    let call = ReadDeadlineLayer::new().layer(service).call(req());
    assert_eq!(Deadline::current(), None);
    assert_eq!(call.await, Ok(Some(secs(2))));

    // Nobody asks in the call, and then nobody polls it for a second.
    let service = service_fn(async |_: Request<()>| Ok::<_, Error<()>>(Deadline::current().map(Deadline::remaining)));
    let call = ReadDeadlineLayer::new().layer(service).call(req());
    advance(secs(1)).await;
    assert_eq!(call.await, Ok(Some(secs(1))));
}

#[tokio::test(start_paused = true)]
async fn a_call_is_cut_off_on_time_and_one_whose_time_is_past_is_not_run() {
    let runs = Counts::default();
    let slow = {
        let runs = runs.clone();
        move || async move {
            let _running = runs.enter();
            pending::<()>().await;
        }
    };
    let app = Router::new().route("/", get(slow)).layer(ReadDeadlineLayer::new().header(MILLIS).name("wire"));
    for (header, time, calls) in [
        (("grpc-timeout", "50m"), 50, 1),
        (("x-timeout-ms", "70"), 70, 2),
        (("grpc-timeout", "0S"), 0, 2),
        (("x-timeout-ms", "0"), 0, 2),
    ] {
        let start = Instant::now();
        let Ok(response) = app.clone().oneshot(request([header])).await;
        assert_eq!((response.status(), start.elapsed()), (StatusCode::GATEWAY_TIMEOUT, ms(time)), "{header:?}");
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!((rejection.name(), rejection.reason()), ("wire", Reason::DeadlineExceeded));
        assert_eq!((runs.calls(), runs.running()), (calls, 0), "{header:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_inside_does_not_wait_past_it() {
    let attempts = Counts::default();
    let service = {
        let attempts = attempts.clone();
        service_fn(move |_: Request<()>| {
            drop(attempts.enter());
            async { Err::<Response<()>, _>(Error::Inner("down")) }
        })
    };
    // The second attempt would start after the deadline: what there is comes back at once.
    let backoff = Backoff::constant(secs(1)).jitter(Jitter::None);
    let policy = Policy::cloned("inside").retry(Retry::with(backoff).max_attempts(5)).build().unwrap();
    let app = ServiceBuilder::new().layer(ReadDeadlineLayer::new()).layer(policy.layer()).service(service);
    let start = Instant::now();
    let req = Request::builder().header("grpc-timeout", "100m").body(()).unwrap();
    assert_eq!(app.send(req).await.unwrap_err(), Error::Inner("down"));
    assert_eq!((start.elapsed() < ms(100), attempts.calls()), (true, 1));
}

#[tokio::test]
async fn a_real_server_answers_504_on_time_over_http1_and_http2_and_composes_in_one_expression() {
    let policy = Policy::plain("server").timeout(secs(60)).build().unwrap();
    let (told, mut seen) = mpsc::unbounded_channel();
    let handler = move || async move {
        told.send(Deadline::current().map(Deadline::remaining)).unwrap();
        pending::<()>().await;
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(ServiceBuilder::new().layer(RespondLayer::new()).layer(ReadDeadlineLayer::new()).layer(policy.layer()));
    let addr = serve(app).await;
    for over in [Over::Http1, Over::Http2] {
        let start = Instant::now();
        let (status, headers, _) = ask(addr, over, request([("grpc-timeout", "50m")])).await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
        assert!(start.elapsed() >= ms(50), "{:?}", start.elapsed());
        assert!(!headers.contains_key(RETRY_AFTER));
        let left = seen.recv().await.unwrap().expect("the handler sees it, through the policy");
        assert!(left <= ms(50), "{left:?}");

        let (status, ..) = ask(addr, over, request([("grpc-timeout", "0m")])).await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
        assert!(seen.try_recv().is_err(), "not run");
    }
}

// ------------------------------------------------------------------------------------------------ the client writes

/// Answers with the headers that it was sent.
fn echo() -> impl Service<Request<()>, Response = Vec<String>, Error = Error<()>, Future: Send> + Clone + Send {
    service_fn(async |req: Request<()>| {
        let both = [req.headers().get_all("grpc-timeout"), req.headers().get_all(MILLIS)];
        Ok(both.iter().flatten().map(|value| value.to_str().unwrap().to_owned()).collect())
    })
}

/// What is sent with these values of `grpc-timeout` and of the header in milliseconds there already.
async fn sent(layer: WriteDeadlineLayer, grpc: &[&str], millis: &[&str]) -> Result<Vec<String>, Error<()>> {
    let mut req = Request::new(());
    for (name, values) in [("grpc-timeout", grpc), ("x-timeout-ms", millis)] {
        for value in values {
            req.headers_mut().append(name, value.parse().unwrap());
        }
    }
    layer.layer(echo()).send(req).await
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_written_and_nothing_without_a_deadline() {
    let layer = WriteDeadlineLayer::new;
    let both = || layer().header(MILLIS);
    assert_eq!(sent(both(), &[], &[]).await.unwrap(), [""; 0]);
    assert_eq!(sent(both(), &["1S"], &[]).await.unwrap(), ["1S"], "nor is anything taken away");

    let scope = Deadline::after(secs(2));
    assert_eq!(scope.scope(sent(layer(), &[], &[])).await.unwrap(), ["2000000u"]);
    assert_eq!(scope.scope(sent(both(), &[], &[])).await.unwrap(), ["2000000u", "2000"]);
    assert_eq!(scope.scope(sent(both().without_grpc_timeout(), &[], &[])).await.unwrap(), ["2000"]);
    advance(ms(1_990)).await;
    assert_eq!(scope.scope(sent(both(), &[], &[])).await.unwrap(), ["10000000n", "10"]);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_there_stays_if_it_is_shorter() {
    let layer = || WriteDeadlineLayer::new().header(MILLIS);
    let within = async |grpc: &[&str], millis: &[&str]| {
        Deadline::after(secs(2)).scope(sent(layer(), grpc, millis)).await.unwrap()
    };
    assert_eq!(within(&["1S"], &["1999"]).await, ["1S", "1999"]);
    assert_eq!(within(&["2S"], &["2000"]).await, ["2S", "2000"], "as long is not longer");
    assert_eq!(within(&["3S"], &["2001"]).await, ["2000000u", "2000"]);
    assert_eq!(within(&["soon"], &[""]).await, ["2000000u", "2000"], "what nobody can read says nothing");
    assert_eq!(within(&["3S", "9S"], &[]).await, ["2000000u", "2000"], "all of them are replaced");
    assert_eq!(within(&["9S", "1S"], &[]).await, ["9S", "1S", "2000"]);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_deadline_is_past_is_not_sent() {
    let past = Deadline::after(ms(10));
    advance(ms(10)).await;
    let no = past.scope(sent(WriteDeadlineLayer::new().name("users"), &[], &[])).await.unwrap_err();
    let no = no.rejection().unwrap();
    assert_eq!((no.name(), no.reason()), ("users", Reason::DeadlineExceeded));
    assert_eq!(no.to_string(), "deadline of `users` exceeded: no time left");

    let seen = Counts::default();
    let counting = {
        let seen = seen.clone();
        service_fn(move |_: Request<()>| {
            drop(seen.enter());
            async { Ok::<_, Error<()>>(()) }
        })
    };
    let service = WriteDeadlineLayer::new().layer(counting);
    assert!(past.scope(service.send(Request::new(()))).await.is_err());
    assert_eq!(seen.calls(), 0);
    assert!(Deadline::after(ms(1)).scope(service.send(Request::new(()))).await.is_ok());
    assert_eq!(seen.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn within_a_retry_each_attempt_says_what_is_left_then() {
    let (told, mut seen) = mpsc::unbounded_channel();
    let failing = service_fn(move |req: Request<()>| {
        told.send(req.headers()["x-timeout-ms"].to_str().unwrap().to_owned()).unwrap();
        async {
            sleep(ms(100)).await;
            Err::<Response<()>, _>("down")
        }
    });
    let backoff = Backoff::constant(ms(300)).jitter(Jitter::None);
    let policy = Policy::cloned("users").deadline(secs(1)).retry(Retry::with(backoff).max_attempts(3)).build().unwrap();
    let client = ServiceBuilder::new()
        .layer(policy.layer())
        .layer(WriteDeadlineLayer::new().header(MILLIS))
        .layer(LiftLayer)
        .service(failing);
    assert_eq!(client.send(Request::new(())).await.unwrap_err(), Error::Inner("down"));
    for left in ["1000", "600", "200"] {
        assert_eq!(seen.recv().await.unwrap(), left);
    }
}

#[tokio::test(start_paused = true)]
async fn it_tells_and_leaves_cutting_off_to_whoever_set_the_deadline() {
    let slow = service_fn(async |_: Request<()>| {
        sleep(secs(2)).await;
        Ok::<_, Error<()>>("late")
    });
    let service = WriteDeadlineLayer::new().layer(slow);
    assert_eq!(Deadline::after(secs(1)).scope(service.send(Request::new(()))).await, Ok("late"));
}

/// The server cuts the call off in the same moment, with an error of its own.
#[tokio::test(start_paused = true)]
async fn an_error_as_the_deadline_passes_is_the_deadlines() {
    let broken = service_fn(async |after: Request<Duration>| {
        sleep(*after.body()).await;
        Err::<(), _>(Error::Inner("broken"))
    });
    let service = WriteDeadlineLayer::new().layer(broken);
    for (after, is_the_deadlines) in [(997, false), (998, false), (999, true), (1_000, true), (2_000, true)] {
        let outcome = Deadline::after(secs(1)).scope(service.send(Request::new(ms(after)))).await;
        let is_ours = outcome.unwrap_err().rejection().is_some();
        assert_eq!(is_ours, is_the_deadlines, "after {after} ms");
    }
}

#[tokio::test]
async fn a_readiness_that_was_reserved_is_given_back_by_a_call_that_is_too_late() {
    let inner = ServiceBuilder::new().concurrency_limit(1).layer(LiftLayer).service(echo());
    // tower's limit reserves in `poll_ready`.
    let mut service = WriteDeadlineLayer::new().layer(inner.map_err(|error| error.into_inner().unwrap()));
    let mut other = service.clone();
    let past = Deadline::after(Duration::ZERO);
    service.ready().await.unwrap();
    let mut refused = None;
    past.scope(async { refused = Some(service.call(Request::new(()))) }).await;
    assert!(in_time(other.ready()).await.is_ok());
    assert!(refused.unwrap().await.is_err());
}

#[cfg(feature = "reqwest")]
#[tokio::test(start_paused = true)]
async fn into_a_request_of_reqwest_too_and_what_is_there_is_heeded() {
    let service = WriteDeadlineLayer::new().layer(service_fn(async |req: reqwest::Request| {
        Ok::<_, Error<()>>(req.headers().get("grpc-timeout").map(|value| value.to_str().unwrap().to_owned()))
    }));
    let sent = |there: Option<&'static str>| {
        let mut req = reqwest::Request::new(reqwest::Method::GET, "http://localhost/".parse().unwrap());
        let there = there.map(axum::http::HeaderValue::from_static);
        there.into_iter().for_each(|there| drop(req.headers_mut().insert("grpc-timeout", there)));
        Deadline::after(secs(2)).scope(service.send(req))
    };
    assert_eq!(sent(None).await, Ok(Some("2000000u".to_owned())));
    assert_eq!(sent(Some("1S")).await, Ok(Some("1S".to_owned())), "it is shorter");
    assert_eq!(sent(Some("3S")).await, Ok(Some("2000000u".to_owned())));

    let mut req = reqwest::Request::new(reqwest::Method::GET, "http://localhost/".parse().unwrap());
    req.headers_mut().insert("grpc-timeout", axum::http::HeaderValue::from_static("1S"));
    let service = ReadDeadlineLayer::new().layer(service_fn(async |_: reqwest::Request| {
        Ok::<_, Error<()>>(Deadline::current().map(Deadline::remaining))
    }));
    assert_eq!(service.send(req).await, Ok(Some(secs(1))), "and out of it");
}

#[cfg(feature = "reqwest")]
#[tokio::test]
async fn a_server_that_calls_another_passes_on_what_is_left() {
    let (told, mut seen) = mpsc::unbounded_channel();
    let behind = {
        let told = told.clone();
        move |headers: axum::http::HeaderMap| async move {
            let header = headers.get("grpc-timeout").map(|value| value.to_str().unwrap().to_owned());
            told.send((Deadline::current().map(Deadline::remaining), header)).unwrap();
            if headers.contains_key("x-stall") {
                pending::<()>().await;
            }
            "behind"
        }
    };
    let behind = serve(Router::new().route("/", get(behind)).layer(ReadDeadlineLayer::new())).await;

    let url: reqwest::Url = format!("http://{behind}/").parse().unwrap();
    let policy = Policy::reqwest("behind").retry(Retry::constant(ms(0))).build().unwrap();
    let client = ServiceBuilder::new()
        .layer(policy.layer())
        .layer(WriteDeadlineLayer::new())
        .layer(LiftLayer)
        .service(reqwest::Client::builder().no_proxy().build().unwrap());
    let front = move |headers: axum::http::HeaderMap| async move {
        let left = Deadline::current().map(Deadline::remaining);
        told.send((left, None)).unwrap();
        let mut req = reqwest::Request::new(reqwest::Method::GET, url);
        if let Some(stall) = headers.get("x-stall") {
            req.headers_mut().insert("x-stall", stall.clone());
        }
        match client.send(req).await {
            Ok(response) => (response.status(), response.text().await.unwrap()),
            Err(error) => (StatusCode::GATEWAY_TIMEOUT, error.to_string()),
        }
    };
    let front = serve(Router::new().route("/", get(front)).layer(ReadDeadlineLayer::new())).await;

    for over in [Over::Http1, Over::Http2] {
        let (status, _, body) = ask(front, over, request([("grpc-timeout", "20S")])).await;
        assert_eq!((status, &body[..]), (StatusCode::OK, "behind"));
        let (at_front, _) = in_time(seen.recv()).await.unwrap();
        let (at_back, header) = in_time(seen.recv()).await.unwrap();
        assert!(header.is_some_and(|header| header.ends_with('u')));
        assert!(at_back.unwrap() < at_front.unwrap() && at_front.unwrap() <= secs(20), "{at_back:?} of {at_front:?}");

        // Without a time there is none to pass on.
        assert_eq!(ask(front, over, request([])).await.0, StatusCode::OK);
        assert_eq!(in_time(seen.recv()).await.unwrap(), (None, None));
        assert_eq!(in_time(seen.recv()).await.unwrap(), (None, None));

        let (status, ..) = ask(front, over, request([("grpc-timeout", "300m"), ("x-stall", "1")])).await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "the stalled one behind holds nobody up");
        let (at_back, _) = [in_time(seen.recv()).await.unwrap(), in_time(seen.recv()).await.unwrap()][1];
        assert!(at_back.unwrap() < ms(300));
    }
}

// ------------------------------------------------------------------------------------------------ whatever is sent

proptest! {
    #[test]
    fn no_header_panics_and_a_deadline_is_never_longer_than_the_max(
        grpc in vec(vec(any::<u8>(), 0..16), 0..3),
        millis in vec(vec(any::<u8>(), 0..24), 0..3),
    ) {
        let mut req = Request::new(Body::empty());
        for (name, values) in [("grpc-timeout", grpc), ("x-timeout-ms", millis)] {
            for value in values.iter().filter_map(|value| axum::http::HeaderValue::from_bytes(value).ok()) {
                req.headers_mut().append(name, value);
            }
        }
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let layer = ReadDeadlineLayer::new().header(MILLIS).max(secs(5)).default(secs(1));
        match runtime.block_on(seen(&layer, req)) {
            Ok(left) => prop_assert!(left.is_some_and(|left| left <= secs(5))),
            Err(rejection) => prop_assert_eq!(rejection.reason(), Reason::DeadlineExceeded),
        }
    }

    #[test]
    fn what_a_client_writes_a_server_reads_as_no_more(nanos in 1..THIRTY_YEARS) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let time = Duration::from_nanos(nanos);
        let at_server = runtime.block_on(async {
            let server = ReadDeadlineLayer::new().layer(service_fn(async |_: Request<()>| {
                Ok::<_, Error<Infallible>>(Deadline::current().unwrap().remaining())
            }));
            // The client's deadline stays with the client.
            let server = service_fn(move |req| {
                let call = tokio::spawn(server.send(req));
                async { call.await.unwrap() }
            });
            let client = WriteDeadlineLayer::new().layer(server);
            Deadline::after(time).scope(client.send(Request::new(()))).await.unwrap()
        });
        prop_assert!(at_server <= time && time - at_server <= time / 100_000, "{at_server:?} of {time:?}");
    }
}

#[test]
fn they_are_plain_layers() {
    fn plain<T: Clone + Send + Sync + std::fmt::Debug + 'static>(_: T) {}
    plain(ReadDeadlineLayer::new().layer(Lift::new(())));
    plain(WriteDeadlineLayer::default().layer(Lift::new(())));
    plain(RespondLayer::<Body>::default());
    let service = RespondLayer::<Body>::new().layer(Timeout::new(secs(1)).layer().layer(()));
    plain(service.clone());
    assert!(!format!("{service:?}").is_empty());
}
