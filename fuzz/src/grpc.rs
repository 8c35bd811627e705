//! What a gRPC answer says, in its headers or its trailers: by a reading of our own, and the same from both.

use std::{convert::Infallible, time::Duration};

use arbitrary::Arbitrary;
use buttress::{
    Classify, Verdict,
    http::{ByGrpcStatus, ByGrpcTrailers, Trailers},
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::with;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    http: u16,
    in_headers: Option<Status<'a>>,
    in_trailers: Vec<Option<Status<'a>>>,
}

#[derive(Arbitrary, Debug)]
struct Status<'a> {
    code: Value<'a>,
    pushback: Option<Value<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Value<'a> {
    Small(u8),
    Number(i64),
    Raw(&'a [u8]),
}

impl Value<'_> {
    fn header(&self) -> Option<HeaderValue> {
        match self {
            Value::Small(number) => Some(HeaderValue::from(u16::from(number % 20))),
            Value::Number(number) => Some(HeaderValue::from(*number)),
            Value::Raw(bytes) => HeaderValue::from_bytes(bytes).ok(),
        }
    }
}

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

fn headers(status: Option<&Status>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(Status { code, pushback }) = status {
        let pushback = pushback.as_ref().and_then(Value::header);
        headers.extend(code.header().map(|value| (STATUS, value)));
        headers.extend(pushback.map(|value| (PUSHBACK, value)));
    }
    headers
}

/// A number of 32 bits, with or without a sign.
fn number(value: &HeaderValue) -> Option<i64> {
    let bytes = value.as_bytes();
    let (sign, digits) = match bytes.split_first()? {
        (b'-', digits) => (-1, digits),
        (b'+', digits) => (1, digits),
        _ => (1, bytes),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = sign * digits.iter().fold(0, |number, digit| (number * 10 + i64::from(digit - b'0')).min(1 << 40));
    (i64::from(i32::MIN)..=i64::from(i32::MAX)).contains(&number).then_some(number)
}

/// As the table in the documentation has it.
fn meaning(code: i64, pushback: Option<&HeaderValue>) -> Verdict {
    let never = Some(Duration::MAX);
    let told = pushback.map(|value| match number(value) {
        Some(ms @ 0..) => Ok(Duration::from_millis(ms as u64)),
        _ => Err(never),
    });
    match (code, told) {
        (0, _) => Verdict::Success,
        (1, _) => Verdict::Ignored,
        (2 | 4 | 13 | 15, _) => Verdict::Failed,
        (8, None) => Verdict::THROTTLED,
        (8, Some(Ok(after))) => Verdict::Throttled { retry_after: Some(after) },
        (8, Some(Err(never))) => Verdict::Throttled { retry_after: never },
        (14, None) => Verdict::TRANSIENT,
        (14, Some(Ok(after))) => Verdict::Transient { retry_after: Some(after) },
        // The server says not to try again.
        (14, Some(Err(_))) => Verdict::Failed,
        (3 | 5 | 6 | 7 | 9..=12 | 16, _) => Verdict::Permanent,
        _ => Verdict::Failed,
    }
}

fn said(headers: &HeaderMap) -> Option<Verdict> {
    let code = headers.get(STATUS)?;
    Some(meaning(number(code).unwrap_or(2), headers.get(PUSHBACK)))
}

pub fn run(data: &[u8]) {
    with(data, |Input { http, in_headers, in_trailers }: Input| {
        let Ok(http) = StatusCode::from_u16(200 + http % 400) else { return };
        let mut response = Response::new(());
        *response.status_mut() = http;
        *response.headers_mut() = headers(in_headers.as_ref());

        let of_headers = said(response.headers()).or_else(|| {
            let code = match http.as_u16() {
                200 => return None,
                400 => 13,
                401 => 16,
                403 => 7,
                404 => 12,
                429 | 502..=504 => 14,
                _ => 2,
            };
            Some(meaning(code, response.headers().get(PUSHBACK)))
        });
        let verdict = ByGrpcStatus.classify(Ok::<_, &Infallible>(&response));
        // Without a status it goes well so far: it comes with the trailers.
        assert_eq!(verdict, of_headers.unwrap_or(Verdict::Success));

        let mut trailers = ByGrpcTrailers::default();
        trailers.begin(http, response.headers());
        let mut latest = of_headers;
        // One that was broken off has failed.
        assert_eq!(trailers.verdict(), Some(latest.unwrap_or(Verdict::Failed)));
        for status in &in_trailers {
            let came = headers(status.as_ref());
            trailers.came(&came);
            latest = said(&came).or(latest);
            assert_eq!(trailers.verdict(), Some(latest.unwrap_or(Verdict::Failed)));
        }
    });
}
