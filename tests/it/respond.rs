//! Rejections as answers: problem bodies, gRPC, and whatever the user makes of them.
#![cfg(feature = "http")]

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, Response, StatusCode, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::RETRY_AFTER},
    routing::get,
};
use buttress::{
    Backoff, CircuitBreaker, ConcurrencyLimit, DeadlineLayer, Jitter, LiftLayer, Policy, Rejection, Shutdown, Timeout,
    Verdict, http::RespondLayer,
};
use http_body_util::BodyExt;
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};

use crate::{
    support::ms,
    wire::{Over, ask, in_time, request, serve},
};

/// Refuses everything, and says to come back in so long.
fn open(name: &'static str, time: Duration) -> CircuitBreaker {
    let open_time = Backoff::constant(time).jitter(Jitter::None);
    let breaker = CircuitBreaker::builder().name(name).consecutive_failures(1).open_time(open_time).build().unwrap();
    breaker.try_acquire().unwrap().settle(Verdict::TRANSIENT);
    breaker
}

/// One route, which answers "here" to whatever is asked.
fn routes() -> Router {
    Router::new().route("/", get(async || "here").post(async || "here"))
}

async fn text(body: Body) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn grpc() -> Request<Body> {
    Request::post("/").header("content-type", "application/grpc+proto").body(Body::empty()).unwrap()
}

fn header<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

// ------------------------------------------------------------------------------------------------ problem bodies

#[tokio::test(start_paused = true)]
async fn an_open_circuit_is_a_503_with_a_problem_body_that_tells_no_internals() {
    let breaker = open("payments \"eu\"", ms(2_500));
    let app = routes().layer(ServiceBuilder::new().layer(RespondLayer::new()).layer(breaker.layer()));
    let Ok(response) = app.oneshot(request([])).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(header(&response, "content-type"), Some("application/problem+json"));
    assert_eq!(header(&response, "retry-after"), Some("3"), "rounded up");
    assert!(response.extensions().get::<Rejection>().is_some());
    assert_eq!(
        text(response.into_body()).await,
        r#"{"type":"about:blank","title":"Service Unavailable","status":503,"#.to_owned()
            + r#""detail":"The service is temporarily unavailable.","reason":"circuit_open","retry_after":3}"#,
    );
}

#[tokio::test(start_paused = true)]
async fn detailed_tells_all_and_escapes_it() {
    let breaker = open("payments \"eu\"\n", ms(2_500));
    let app = routes().layer(ServiceBuilder::new().layer(RespondLayer::new().detailed()).layer(breaker.layer()));
    let Ok(response) = app.clone().oneshot(request([])).await;
    let detail = r#"circuit breaker `payments \"eu\"\u000a` is open: 1 consecutive failures >= 1; retry after 2.5s"#;
    assert_eq!(
        text(response.into_body()).await,
        r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":""#.to_owned()
            + detail
            + r#"","reason":"circuit_open","retry_after":3,"name":"payments \"eu\"\u000a","#
            + r#""rule":"consecutive_failures","measured":1,"threshold":1}"#,
    );
    let Ok(response) = app.oneshot(grpc()).await;
    let message = "circuit breaker `payments \"eu\"%0A` is open: 1 consecutive failures >= 1; retry after 2.5s";
    assert_eq!(header(&response, "grpc-message"), Some(message));
}

#[tokio::test(start_paused = true)]
async fn each_reason_has_its_status_in_http_and_in_grpc() {
    let shutdown = Shutdown::builder().lame_duck(ms(0)).build().unwrap();
    let stopping = shutdown.handle();
    stopping.trigger("deploy");
    stopping.stopping().await;

    let full = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
    let _held = full.try_acquire().unwrap();
    let respond = || ServiceBuilder::new().layer(RespondLayer::new());
    let slow = || Router::new().fallback(std::future::pending::<()>);
    for (app, reason, status, grpc_status, pushback) in [
        (
            routes().layer(respond().layer(open("b", Duration::from_micros(1_000_500)).layer())),
            "circuit_open",
            503,
            "14",
            Some("1001"),
        ),
        (routes().layer(respond().layer(full.layer())), "overloaded", 503, "8", None),
        (slow().layer(respond().layer(Timeout::new(ms(5)).layer())), "timeout", 504, "4", None),
        (slow().layer(respond().layer(DeadlineLayer::new(ms(5)))), "deadline_exceeded", 504, "4", None),
        (routes().layer(respond().layer(stopping.layer())), "shutting_down", 503, "14", Some("1000")),
    ] {
        let Ok(problem) = app.clone().oneshot(request([])).await;
        assert_eq!(problem.status(), status, "{reason}");
        let body = text(problem.into_body()).await;
        assert!(body.contains(&format!(r#""status":{status},"#)), "{body}");
        assert!(body.contains(&format!(r#""reason":"{reason}""#)), "{body}");

        let Ok(answer) = app.oneshot(grpc()).await;
        assert_eq!((answer.status(), header(&answer, "grpc-status")), (StatusCode::OK, Some(grpc_status)), "{reason}");
        assert_eq!(header(&answer, "grpc-retry-pushback-ms"), pushback, "{reason}");
        assert_eq!(header(&answer, "content-type"), Some("application/grpc"));
        assert_eq!(header(&answer, "retry-after"), None);
        assert_eq!(text(answer.into_body()).await, "");
    }
}

#[tokio::test]
async fn overloaded_is_429_for_those_who_say_so_and_nothing_else_is() {
    let full = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
    let _held = full.try_acquire().unwrap();
    let respond = || RespondLayer::new().overloaded(StatusCode::TOO_MANY_REQUESTS);
    let Ok(response) =
        routes().layer(ServiceBuilder::new().layer(respond()).layer(full.layer())).oneshot(request([])).await;
    assert_eq!(response.status(), 429);
    let body = text(response.into_body()).await;
    assert!(body.contains(r#""title":"Too Many Requests","status":429"#), "{body}");

    let breaker = open("b", ms(600_000));
    let Ok(response) =
        routes().layer(ServiceBuilder::new().layer(respond()).layer(breaker.layer())).oneshot(request([])).await;
    assert_eq!(response.status(), 503);
}

// ------------------------------------------------------------------------------------------------ who gets which

#[tokio::test]
async fn answers_that_are_no_rejection_pass_untouched() {
    let own = Router::new()
        .route("/", get(async || (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "7")], "maintenance")))
        .layer(RespondLayer::new());
    for req in [request([]), request([("content-type", "application/grpc")])] {
        let Ok(response) = own.clone().oneshot(req).await;
        assert_eq!((response.status().as_u16(), header(&response, "retry-after")), (503, Some("7")));
        assert_eq!(text(response.into_body()).await, "maintenance");
    }
}

#[tokio::test]
async fn over_real_connections_a_problem_is_read_and_head_gets_no_body_but_its_length() {
    let breaker = open("payments", ms(600_000));
    let app = routes().layer(ServiceBuilder::new().layer(RespondLayer::new()).layer(breaker.layer()));
    let addr = serve(app).await;
    for over in [Over::Http1, Over::Http2] {
        let (status, headers, body) = ask(addr, over, request([])).await;
        assert_eq!(
            (status, &headers[CONTENT_TYPE]),
            (StatusCode::SERVICE_UNAVAILABLE, &"application/problem+json".parse().unwrap())
        );
        assert_eq!(headers[CONTENT_LENGTH], body.len().to_string()[..]);
        assert!(body.starts_with(r#"{"type":"about:blank","#) && body.ends_with('}'), "{body}");
        assert!(!body.contains("payments"));
        let seconds = headers[RETRY_AFTER].to_str().unwrap();
        assert!(body.contains(&format!(r#""retry_after":{seconds}}}"#)), "{body}");

        let mut req = request([]);
        *req.method_mut() = Method::HEAD;
        let (status, headers, nothing) = ask(addr, over, req).await;
        assert_eq!((status, &nothing[..]), (StatusCode::SERVICE_UNAVAILABLE, ""));
        assert_eq!(headers[CONTENT_LENGTH], body.len().to_string()[..], "as GET has it");
    }
}

#[tokio::test]
async fn a_grpc_call_is_answered_by_headers_alone() {
    let breaker = open("payments", ms(600_000));
    let app = routes().layer(ServiceBuilder::new().layer(RespondLayer::new()).layer(breaker.layer()));
    let addr = serve(app).await;
    let (status, headers, body) = ask(addr, Over::Http2, grpc()).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, ""));
    assert_eq!(headers[CONTENT_TYPE], "application/grpc");
    assert_eq!(headers["grpc-status"], "14");
    assert_eq!(headers["grpc-message"], "The service is temporarily unavailable.");
    let pushback: u32 = headers["grpc-retry-pushback-ms"].to_str().unwrap().parse().unwrap();
    assert!((590_000..=600_000).contains(&pushback), "{pushback}");

    let web = Request::post("/").header("content-type", "application/grpc-web+proto").body(Body::empty()).unwrap();
    assert_eq!(ask(addr, Over::Http1, web).await.0, StatusCode::SERVICE_UNAVAILABLE, "another protocol");
}

/// Such as tonic's: there is no making it of a `String`.
#[derive(Debug, Default, PartialEq)]
struct Frames;

#[tokio::test]
async fn bodies_that_no_string_can_become_are_for_grpc_only() {
    let breaker = open("users", ms(600_000));
    let service = ServiceBuilder::new()
        .layer(RespondLayer::grpc_only())
        .layer(breaker.layer())
        .service(service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Frames))));
    let req = Request::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(response) = service.send(req).await;
    assert_eq!((response.status().as_u16(), header(&response, "grpc-status")), (200, Some("14")));
    assert_eq!(response.body(), &Frames);
    let Ok(response) = service.send(Request::new(())).await;
    assert_eq!((response.status().as_u16(), header(&response, "content-type")), (503, None));
}

// ------------------------------------------------------------------------------------------------ errors, and the last word

#[tokio::test(start_paused = true)]
async fn an_error_that_carries_a_rejection_becomes_an_answer_and_others_pass() {
    let failing = service_fn(async |_: Request<()>| Err::<Response<String>, BoxError>("boom".into()));
    let breaker = open("b", ms(2_500));
    let service = ServiceBuilder::new().layer(RespondLayer::new()).layer(breaker.layer()).service(failing);
    let response = service.send(Request::new(())).await.unwrap();
    assert_eq!((response.status().as_u16(), header(&response, "retry-after")), (503, Some("3")));
    assert!(response.body().contains("circuit_open"));
    let response = service.send(Request::head("/").body(()).unwrap()).await.unwrap();
    assert_eq!(response.body(), "", "though no server takes it away here");
    let error = RespondLayer::new().layer(failing).send(Request::new(())).await.unwrap_err();
    assert_eq!(error.to_string(), "boom");

    // A router's rejection, behind something that made another error of `Infallible`.
    let router = routes().layer(open("b", ms(2_500)).layer());
    let lifted = ServiceBuilder::new().layer(RespondLayer::new()).layer(LiftLayer).service(router);
    let response = lifted.send(request([])).await.unwrap();
    assert!(text(response.into_body()).await.contains("circuit_open"));
}

#[tokio::test(start_paused = true)]
async fn a_closure_has_the_last_word_on_both() {
    let policy = Policy::plain("orders").circuit_breaker(open("orders", ms(2_500))).build().unwrap();
    let app = routes().layer(
        ServiceBuilder::new()
            .layer(RespondLayer::new().with(|rejection, mut response| {
                response.headers_mut().insert("x-policy", rejection.name().parse().unwrap());
                if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                    *response.body_mut() = Body::from("come back later");
                }
                response
            }))
            .layer(policy.layer()),
    );
    let Ok(answer) = app.clone().oneshot(grpc()).await;
    assert_eq!((header(&answer, "x-policy"), header(&answer, "grpc-status")), (Some("orders"), Some("14")));

    // Its body may have another length.
    let addr = serve(app).await;
    let (status, headers, body) = in_time(ask(addr, Over::Http1, request([]))).await;
    assert_eq!((status.as_u16(), &body[..]), (503, "come back later"));
    assert_eq!(headers["x-policy"], "orders");
}

#[tokio::test]
async fn what_described_the_body_before_goes_with_it() {
    let breaker = open("b", ms(600_000));
    let described = |mut response: Response<Body>| {
        for (name, value) in [("content-length", "0"), ("content-encoding", "gzip"), ("x-request-id", "7")] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    };
    let app = routes().layer(
        ServiceBuilder::new()
            .layer(RespondLayer::new())
            .layer(tower::util::MapResponseLayer::new(described))
            .layer(breaker.layer()),
    );
    let addr = serve(app).await;
    let (_, headers, body) = ask(addr, Over::Http1, request([])).await;
    assert!(body.ends_with('}'), "{body}");
    assert!(!headers.contains_key("content-encoding"));
    assert_eq!(headers["x-request-id"], "7");
}
