//! Answers to rejections, for any request and any settings: well formed by a reader of JSON that is not ours, and with all that
//! is known in them.

use std::{cell::RefCell, collections::HashSet, future::ready, time::Duration};

use arbitrary::Arbitrary;
use buttress::{
    Backoff, CircuitBreaker, ConcurrencyLimit, Jitter, Reason, Reject, Rejection, Verdict,
    http::{RespondLayer, retry_after},
};
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING},
};
use serde_json::Value;
use tower::{BoxError, Layer, service_fn};

use crate::{Span, paused, with};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    method: Option<&'a [u8]>,
    content: Option<Content<'a>>,
    name: &'a str,
    why: Why,
    /// It comes as an error, and not as a response.
    as_error: bool,
    overloaded: Option<u16>,
    detailed: bool,
    grpc_only: bool,
}

#[derive(Arbitrary, Debug)]
enum Content<'a> {
    /// `application/grpc`, some of it in capitals, and what follows.
    Grpc(u8, Then<'a>),
    Raw(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
enum Then<'a> {
    Nothing,
    Subtype,
    Parameter,
    Blank,
    Web,
    Raw(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
enum Why {
    None,
    Open(Span),
    Forced,
    Full { in_flight: u8 },
}

/// Names live as long as the program does.
fn kept(name: &str) -> &'static str {
    thread_local!(static NAMES: RefCell<HashSet<&'static str>> = RefCell::default());
    NAMES.with_borrow_mut(|names| {
        if let Some(known) = names.get(name) {
            return *known;
        }
        if name.is_empty() || names.len() > 100_000 {
            return "any";
        }
        let kept: &'static str = Box::leak(name.into());
        names.insert(kept);
        kept
    })
}

fn rejection(why: Why, name: &'static str) -> Option<Rejection> {
    match why {
        Why::None => None,
        Why::Open(time) => {
            let time = time.or_a_nano();
            let open_time = Backoff::constant(time).max_delay(time).jitter(Jitter::None);
            let breaker = CircuitBreaker::builder().name(name).consecutive_failures(1).open_time(open_time);
            let breaker = breaker.build().expect("sensible settings");
            breaker.try_acquire().expect("it is closed").settle(Verdict::TRANSIENT);
            breaker.try_acquire().err()
        }
        Why::Forced => {
            let breaker = CircuitBreaker::builder().name(name).build().expect("sensible settings");
            breaker.force_open();
            breaker.try_acquire().err()
        }
        Why::Full { in_flight } => {
            let most = usize::from(in_flight) + 1;
            let limit = ConcurrencyLimit::builder().name(name).max_in_flight(most).build().expect("sensible settings");
            let _held: Vec<_> = (0..most).map(|_| limit.try_acquire()).collect();
            limit.try_acquire().err()
        }
    }
}

fn is_grpc(content: &[u8]) -> bool {
    let content = content.to_ascii_lowercase();
    content.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest, [] | [b'+' | b';' | b' ', ..]))
}

fn request(method: Option<&[u8]>, content: Option<&HeaderValue>) -> Option<Request<()>> {
    let mut request = Request::builder().method(method.unwrap_or(b"HEAD"));
    if let Some(content) = content {
        request = request.header(CONTENT_TYPE, content);
    }
    request.body(()).ok()
}

fn unpercent(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).expect("two digits"));
        bytes.extend(part[2..].bytes());
    }
    bytes
}

pub fn run(data: &[u8]) {
    with(data, |input: Input| paused(story(input)));
}

async fn story(Input { method, content, name, why, as_error, overloaded, detailed, grpc_only }: Input<'_>) {
    let content = content.and_then(|content| match content {
        Content::Grpc(capitals, then) => {
            let rest = match then {
                Then::Nothing => b"",
                Then::Subtype => &b"+proto"[..],
                Then::Parameter => b";charset=utf-8",
                Then::Blank => b" ; q=1",
                Then::Web => b"-web+proto",
                Then::Raw(bytes) => bytes,
            };
            let mut content = b"application/grpc".to_vec();
            (0..8)
                .filter(|bit| capitals >> bit & 1 == 1)
                .for_each(|bit| content[bit] = content[bit].to_ascii_uppercase());
            HeaderValue::from_bytes(&[&content, rest].concat()).ok()
        }
        Content::Raw(bytes) => HeaderValue::from_bytes(bytes).ok(),
    });
    let Some(asked) = request(method, content.as_ref()) else { return };
    let rejection = rejection(why, kept(name));
    let mut layer = if grpc_only { RespondLayer::grpc_only() } else { RespondLayer::<String>::new() };
    if detailed {
        layer = layer.detailed();
    }
    let overloaded = overloaded.and_then(|status| StatusCode::from_u16(status % 1_000).ok());
    if let Some(status) = overloaded {
        layer = layer.overloaded(status);
    }
    let service = layer.layer(service_fn(|_: Request<()>| {
        ready(match rejection {
            Some(rejection) if as_error => Err(BoxError::from(rejection)),
            Some(rejection) => {
                let Ok(mut response) = <std::convert::Infallible as Reject<Response<String>>>::reject(rejection);
                // Said of another body.
                response
                    .headers_mut()
                    .extend([CONTENT_LENGTH, CONTENT_ENCODING, TRANSFER_ENCODING].map(|of| (of, 7.into())));
                Ok(response)
            }
            None => Ok(Response::new("an answer".into())),
        })
    }));
    let head = asked.method() == http::Method::HEAD;
    let answer = service.send(asked).await.expect("an answer");

    let Some(rejection) = rejection else {
        assert_eq!((answer.status(), answer.body().as_str()), (StatusCode::OK, "an answer"));
        assert!(answer.headers().is_empty(), "it is not ours");
        return;
    };
    assert_eq!(answer.extensions().get(), Some(&rejection));
    let headers = answer.headers();
    let text = |name: &str| headers.get(name).map(|value| value.to_str().expect("visible"));
    let after = rejection.retry_after();

    if content.as_ref().is_some_and(|content| is_grpc(content.as_bytes())) {
        assert_eq!((answer.status(), answer.body().as_str()), (StatusCode::OK, ""));
        assert_eq!(text("content-type"), Some("application/grpc"));
        for name in [CONTENT_LENGTH, CONTENT_ENCODING, TRANSFER_ENCODING, RETRY_AFTER] {
            assert!(!headers.contains_key(&name), "{name}");
        }
        assert_eq!(text("grpc-status"), Some(if rejection.reason() == Reason::Overloaded { "8" } else { "14" }));
        let message = unpercent(text("grpc-message").expect("a message"));
        assert!(!message.is_empty() && (!detailed || message == rejection.to_string().as_bytes()));
        let pushback = text("grpc-retry-pushback-ms").map(|ms| ms.parse::<i32>().expect("a number"));
        assert_eq!(pushback.is_some(), after.is_some());
        if let (Some(pushback), Some(after)) = (pushback, after) {
            // Never too short, but for what clients cannot read; and less than a millisecond too long.
            let told = Duration::from_millis(pushback.try_into().expect("a time"));
            assert!(told >= after || pushback == i32::MAX, "{told:?} for {after:?}");
            assert!(told < after + Duration::from_millis(1), "{told:?} for {after:?}");
        }
        return;
    }

    let status = match (rejection.reason(), overloaded) {
        (Reason::Overloaded, Some(status)) => status,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    assert_eq!(answer.status(), status);
    let told = retry_after(headers, std::time::SystemTime::UNIX_EPOCH);
    assert_eq!(told.is_some(), after.is_some());
    if let (Some(told), Some(after)) = (told, after) {
        assert!(told >= after && told < after + Duration::from_secs(1), "{told:?} for {after:?}");
    }
    if grpc_only {
        assert_eq!((answer.body().as_str(), headers.get(CONTENT_TYPE)), ("", None));
        return;
    }
    assert_eq!(text("content-type"), Some("application/problem+json"));
    assert!(!headers.contains_key(CONTENT_ENCODING) && !headers.contains_key(TRANSFER_ENCODING));
    let (length, body) = if head {
        assert_eq!(answer.body(), "");
        let length = text("content-length").map(|length| length.parse::<usize>().expect("a length"));
        // That of the same answer to somebody who wants it.
        let whole = service.send(request(Some(b"GET"), content.as_ref()).expect("a request")).await.expect("an answer");
        (length, whole.into_body())
    } else {
        assert!(!headers.contains_key(CONTENT_LENGTH), "the server's business");
        (Some(answer.body().len()), answer.body().clone())
    };
    assert_eq!(length, Some(body.len()));

    let Ok(Value::Object(problem)) = serde_json::from_str(&body) else { panic!("no object: {body}") };
    let string = |key: &str| problem.get(key).and_then(Value::as_str);
    assert_eq!(problem["status"], status.as_u16());
    assert_eq!(string("title"), Some(status.canonical_reason().unwrap_or("Error")));
    assert_eq!(string("type"), Some("about:blank"));
    assert_eq!(
        string("reason"),
        Some(if rejection.reason() == Reason::Overloaded { "overloaded" } else { "circuit_open" })
    );
    assert_eq!(problem.get("retry_after").and_then(Value::as_u64), told.map(|told| told.as_secs()));
    let figure = |key: &str| problem.get(key).map(|figure| figure.as_f64().expect("a number") as f32);
    if detailed {
        assert_eq!(string("detail"), Some(rejection.to_string().as_str()));
        assert_eq!(string("name"), Some(rejection.name()));
        assert_eq!(string("rule"), Some(rejection.rule().as_str()));
        assert_eq!((figure("measured"), figure("threshold")), (rejection.measured(), rejection.threshold()));
    } else {
        let told = 5 + usize::from(told.is_some());
        assert_eq!(problem.len(), told, "outsiders are told no more: {body}");
        assert!(string("detail").is_some_and(|detail| !detail.is_empty()));
    }
}
