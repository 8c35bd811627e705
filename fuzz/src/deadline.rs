//! Deadlines in headers, there and back: a server never believes to have more time than its caller gave it, nor none if there
//! is some.

use std::{convert::Infallible, future::ready, time::Duration};

use arbitrary::Arbitrary;
use buttress::{
    Deadline, Reason, Rejection,
    http::{ReadDeadlineLayer, WriteDeadlineLayer},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tower::{BoxError, Layer, service_fn};

use crate::{Span, paused, with};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    /// What stands in the headers of a request.
    grpc: Vec<Value<'a>>,
    millis: Vec<Value<'a>>,
    reads_millis: bool,
    max: Option<Span>,
    default: Option<Span>,
    /// The deadline of a caller, and so many nanoseconds more.
    left: (Span, u32),
    writes_grpc: bool,
    writes_millis: bool,
}

#[derive(Arbitrary, Debug)]
enum Value<'a> {
    /// As it should be: a number, and the number of a unit.
    Time(u64, u8),
    Raw(&'a [u8]),
}

const UNITS: [(char, u128); 6] =
    [('n', 1), ('u', 1_000), ('m', 1_000_000), ('S', 1_000_000_000), ('M', 60_000_000_000), ('H', 3_600_000_000_000)];

impl Value<'_> {
    fn header(&self, grpc: bool) -> Option<HeaderValue> {
        match self {
            Value::Time(count, unit) if grpc => {
                HeaderValue::from_str(&format!("{}{}", count % 1_000_000_000, UNITS[usize::from(unit % 6)].0)).ok()
            }
            Value::Time(count, _) => Some(HeaderValue::from(*count)),
            Value::Raw(bytes) => HeaderValue::from_bytes(bytes).ok(),
        }
    }
}

/// Nanoseconds, read with the means of the standard library.
fn nanos(value: &HeaderValue, grpc: bool) -> Option<u128> {
    let text = value.to_str().ok()?;
    let (digits, unit) = if grpc {
        let unit = text.chars().next_back()?;
        let (_, nanos) = UNITS.iter().find(|(letter, _)| *letter == unit)?;
        (&text[..text.len() - 1], *nanos)
    } else {
        (text, 1_000_000)
    };
    if digits.is_empty() || grpc && digits.len() > 8 || !digits.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    // More than fit are for ever.
    let count = digits.trim_start_matches('0').parse().unwrap_or(if digits.trim_matches('0').is_empty() {
        0
    } else {
        u64::MAX
    });
    Some(u128::from(count) * unit)
}

const GRPC: HeaderName = HeaderName::from_static("grpc-timeout");
const MILLIS: HeaderName = HeaderName::from_static("x-timeout-ms");

/// The shortest that any of the headers says.
fn told(headers: &HeaderMap, millis: bool) -> Option<u128> {
    let grpc = headers.get_all(GRPC).iter().filter_map(|value| nanos(value, true));
    let ms = headers.get_all(MILLIS).iter().filter(|_| millis).filter_map(|value| nanos(value, false));
    grpc.chain(ms).min()
}

/// What a server behind the layer sees as its time; `None`: it was not asked, as there is none.
async fn seen(layer: &ReadDeadlineLayer, headers: HeaderMap) -> Option<Option<Duration>> {
    let server = layer.layer(service_fn(|_: Request<()>| {
        ready(Ok::<_, Infallible>(Response::new(Deadline::current().map(Deadline::remaining))))
    }));
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    let Ok(response) = server.send(request).await;
    match response.extensions().get::<Rejection>() {
        Some(rejection) => {
            assert_eq!(rejection.reason(), Reason::DeadlineExceeded);
            None
        }
        None => Some(response.into_body()),
    }
}

/// As far as deadlines look.
const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);

pub fn run(data: &[u8]) {
    with(data, |input: Input| paused(story(input)));
}

async fn story(Input { grpc, millis, reads_millis, max, default, left, writes_grpc, writes_millis }: Input<'_>) {
    let mut headers = HeaderMap::new();
    headers.extend(grpc.iter().filter_map(|value| Some((GRPC, value.header(true)?))));
    for value in millis.iter().filter_map(|value| value.header(false)) {
        headers.append(MILLIS, value);
    }

    // ## a server reads

    let mut layer = ReadDeadlineLayer::new();
    if reads_millis {
        layer = layer.header(MILLIS);
    }
    if let Some(Span(max)) = max {
        layer = layer.max(max);
    }
    if let Some(Span(default)) = default {
        layer = layer.default(default);
    }
    let time = told(&headers, reads_millis).or(default.map(|Span(default)| default.as_nanos()));
    let time = time.map(|time| time.min(max.map_or(u128::MAX, |Span(max)| max.as_nanos())));
    let expected = match time {
        None => Some(None),
        Some(0) => None,
        Some(nanos) => Some(Some(nanos.min(FAR.as_nanos()))),
    };
    let read = seen(&layer, headers.clone()).await;
    assert_eq!(read.map(|read| read.map(|time| time.as_nanos())), expected, "{headers:?}");

    // ## a client writes

    let mut layer = WriteDeadlineLayer::new();
    if !writes_grpc {
        layer = layer.without_grpc_timeout();
    }
    if writes_millis {
        layer = layer.header(MILLIS);
    }
    let client =
        layer.layer(service_fn(|request: Request<()>| ready(Ok::<_, BoxError>(request.into_parts().0.headers))));
    let send = || {
        let mut request = Request::new(());
        *request.headers_mut() = headers.clone();
        client.send(request)
    };
    assert_eq!(send().await.unwrap(), headers, "without a deadline nothing changes");

    let (Span(left), more) = left;
    let left = (left + Duration::from_nanos(more.into())).min(FAR);
    let written = match Deadline::after(left).scope(send()).await {
        Ok(written) => written,
        Err(error) => {
            let rejection = error.downcast::<Rejection>().expect("a rejection");
            assert_eq!((rejection.reason(), left), (Reason::DeadlineExceeded, Duration::ZERO), "nothing is left");
            return;
        }
    };
    assert!(!left.is_zero(), "a call without time is not sent");
    for (name, writes, of_grpc) in [(GRPC, writes_grpc, true), (MILLIS, writes_millis, false)] {
        let times = |headers: &HeaderMap| headers.get_all(&name).iter().filter_map(|value| nanos(value, of_grpc)).min();
        if !writes {
            assert!(written.get_all(&name).iter().eq(headers.get_all(&name)), "not its own");
            continue;
        }
        let (before, after) = (times(&headers), times(&written).expect("it says something"));
        // Zero often means "no limit", so the last millisecond is a whole one.
        let most = if of_grpc { left } else { left.max(Duration::from_millis(1)) };
        assert!(after <= most.as_nanos(), "{after} of {left:?}");
        assert_eq!(after == 0, before == Some(0), "some of {left:?}");
        match before {
            Some(before) if before <= left.as_nanos() => assert_eq!(after, before, "what says less stays"),
            _ => {
                assert_eq!(written.get_all(&name).iter().count(), 1, "what says more is replaced");
                // Six digits are left, or a millisecond.
                let lost = left.as_nanos().saturating_sub(after);
                assert!(lost <= if of_grpc { left.as_nanos() / 100_000 } else { 999_999 }, "{after} of {left:?}");
            }
        }
    }

    // ## and a server reads that

    if writes_grpc || writes_millis {
        let layer = ReadDeadlineLayer::new().header(MILLIS);
        let time = seen(&layer, written.clone()).await;
        let zero = told(&written, true) == Some(0);
        assert_eq!(time.is_none(), zero, "{written:?}");
        if let Some(time) = time {
            let most = if writes_grpc { left } else { left.max(Duration::from_millis(1)) };
            assert!(time.expect("a deadline") <= most, "{time:?} of {left:?}");
        }
    }
}
