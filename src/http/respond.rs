//! [`RespondLayer`]: rejections as answers that their callers understand.

use std::{
    convert::Infallible,
    fmt::{self, Write},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING},
};
use pin_project::pin_project;
use tower::{Layer, Service};

use super::{
    grpc::{PUSHBACK, STATUS},
    response::whole_seconds,
};
use crate::{Reason, Reject, Rejection, call::send};

static GRPC_STATUS: HeaderName = HeaderName::from_static(STATUS);
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
static GRPC_PUSHBACK: HeaderName = HeaderName::from_static(PUSHBACK);

/// What outsiders are told of a reason.
struct Told {
    reason: &'static str,
    detail: &'static str,
    /// As gRPC's own guidance has it: 4 is `DEADLINE_EXCEEDED`, 8 `RESOURCE_EXHAUSTED`, 14 `UNAVAILABLE`.
    grpc: u16,
}

fn told(reason: Reason) -> Told {
    let (reason, grpc, detail) = match reason {
        Reason::CircuitOpen => ("circuit_open", 14, "The service is temporarily unavailable."),
        Reason::Overloaded => ("overloaded", 8, "Too many requests are in progress."),
        Reason::Timeout => ("timeout", 4, "The request took too long; it may have taken effect."),
        Reason::DeadlineExceeded => {
            ("deadline_exceeded", 4, "The time for the request ran out; it may have taken effect.")
        }
        Reason::ShuttingDown => ("shutting_down", 14, "This instance is shutting down."),
    };
    Told { reason, detail, grpc }
}

/// The `grpc-status` for a reason.
pub(super) fn grpc_status(reason: Reason) -> u16 {
    told(reason).grpc
}

/// Turns rejections into answers that their callers understand. Outermost of all, so that it sees those of every layer.
///
/// | request | answer |
/// | --- | --- |
/// | `content-type: application/grpc`, also with `+proto` and such | 200 with `grpc-status`, `grpc-message`, and `grpc-retry-pushback-ms` if there is a time to come back |
/// | any other | the status that it has (503 or 504), `Retry-After` if there is a time to come back, and a problem body: `application/problem+json`, [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) |
/// | HEAD | the same without the body |
///
/// | [`Reason`] | HTTP status | `grpc-status` | `reason` in the body |
/// | --- | --- | --- | --- |
/// | `CircuitOpen` | 503 | 14 `UNAVAILABLE` | `circuit_open` |
/// | `Overloaded` | 503, or [yours](Self::overloaded) | 8 `RESOURCE_EXHAUSTED` | `overloaded` |
/// | `Timeout` | 504 | 4 `DEADLINE_EXCEEDED` | `timeout` |
/// | `DeadlineExceeded` | 504 | 4 `DEADLINE_EXCEEDED` | `deadline_exceeded` |
/// | `ShuttingDown` | 503 | 14 `UNAVAILABLE` | `shutting_down` |
///
/// The body of an open circuit, for one:
///
/// ```json
/// {"type":"about:blank","title":"Service Unavailable","status":503,
///  "detail":"The service is temporarily unavailable.","reason":"circuit_open","retry_after":3}
/// ```
///
/// Names of policies, rules and figures are not for outsiders; [`detailed`](Self::detailed) tells them. `retry_after`,
/// in seconds, is there if it is known, and like the header rounded up. Answers that are no rejection of ours pass
/// untouched. The [`Rejection`] stays in the extensions of the response.
///
/// It looks at responses with a rejection in their extensions, such as a router makes, and at errors that
/// [carry](Reject) one, which become answers too; other errors pass. gRPC-Web is not gRPC: put this layer inside of the one
/// that translates it.
///
/// When not to use it: if whoever calls you looks at nothing but the status. Then 503, 504 and `Retry-After` are there
/// without it.
///
/// `B` is the type of the bodies, and inferred: `axum::body::Body`, or what can be made of a `String`; for bodies that
/// cannot there is [`grpc_only`](Self::grpc_only).
///
/// ```
/// use axum::{Router, body::Body, http::StatusCode};
/// use buttress::{ConcurrencyLimit, http::RespondLayer};
/// use tower::ServiceBuilder;
///
/// # fn main() -> Result<(), buttress::ConfigError> {
/// let limit = ConcurrencyLimit::builder().max_in_flight(100).build()?;
/// let app: Router = Router::new().layer(
///     ServiceBuilder::new()
///         .layer(RespondLayer::new().overloaded(StatusCode::TOO_MANY_REQUESTS).with(|rejection, mut response| {
///             if rejection.name() == "uploads" {
///                 *response.body_mut() = Body::from("the archive is busy");
///             }
///             response
///         }))
///         .layer(limit.layer()),
/// );
/// # let _ = app; Ok(()) }
/// ```
#[must_use]
pub struct RespondLayer<B> {
    render: Render<B>,
}

/// How to render a rejection. Cloned for each call, and cheaply so.
struct Render<B> {
    /// `None` if only gRPC is answered.
    body: Option<fn(String) -> B>,
    overloaded: Option<StatusCode>,
    detailed: bool,
    with: Option<With<B>>,
}

type With<B> = Arc<dyn Fn(&Rejection, Response<B>) -> Response<B> + Send + Sync>;

impl<B> Clone for Render<B> {
    fn clone(&self) -> Self {
        let Self { body, overloaded, detailed, ref with } = *self;
        Self { body, overloaded, detailed, with: with.clone() }
    }
}

impl<B> fmt::Debug for Render<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Render")
            .field("grpc_only", &self.body.is_none())
            .field("overloaded", &self.overloaded)
            .field("detailed", &self.detailed)
            .finish_non_exhaustive()
    }
}

impl<B> Clone for RespondLayer<B> {
    fn clone(&self) -> Self {
        Self { render: self.render.clone() }
    }
}

impl<B> fmt::Debug for RespondLayer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RespondLayer").field(&self.render).finish()
    }
}

impl<B: Default + From<String>> Default for RespondLayer<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Default + From<String>> RespondLayer<B> {
    /// Answers gRPC as gRPC, everything else with a problem body.
    pub fn new() -> Self {
        Self { render: Render { body: Some(B::from), overloaded: None, detailed: false, with: None } }
    }
}

impl<B: Default> RespondLayer<B> {
    /// Answers gRPC; what comes as something else keeps its empty body. For bodies that no `String` can become, such as
    /// tonic's.
    pub fn grpc_only() -> Self {
        Self { render: Render { body: None, overloaded: None, detailed: false, with: None } }
    }

    /// The HTTP status for [`Overloaded`](Reason::Overloaded): 429 where a limit is one caller's, so that it is this
    /// caller who has to slow down. Default: what the response has, 503, as a limit is usually that of the server.
    pub fn overloaded(mut self, status: StatusCode) -> Self {
        self.render.overloaded = Some(status);
        self
    }

    /// Tells all: `detail` and `grpc-message` are the rejection's own text, and the body holds its `name` and `rule`, and
    /// `measured` and `threshold` if it has them. For callers that you trust.
    pub fn detailed(mut self) -> Self {
        self.render.detailed = true;
        self
    }

    /// Has the last word on each answer to a rejection, of gRPC too. A second closure replaces the first.
    pub fn with(mut self, customise: impl Fn(&Rejection, Response<B>) -> Response<B> + Send + Sync + 'static) -> Self {
        self.render.with = Some(Arc::new(customise));
        self
    }
}

impl<S, B> Layer<S> for RespondLayer<B> {
    type Service = RespondService<S, B>;

    fn layer(&self, inner: S) -> RespondService<S, B> {
        RespondService { inner, render: self.render.clone() }
    }
}

/// The service of [`RespondLayer`].
///
/// ```
/// # use buttress::http::{RespondLayer, RespondService};
/// # use tower::Layer;
/// # #[derive(Clone)] struct Server;
/// fn answering(server: Server) -> RespondService<Server, String> {
///     RespondLayer::new().layer(server)
/// }
/// # let _ = answering;
/// ```
pub struct RespondService<S, B> {
    inner: S,
    render: Render<B>,
}

impl<S: Clone, B> Clone for RespondService<S, B> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), render: self.render.clone() }
    }
}

impl<S: fmt::Debug, B> fmt::Debug for RespondService<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RespondService").field("render", &self.render).field("inner", &self.inner).finish()
    }
}

impl<S, B> RespondService<S, B> {
    /// The service below.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Sends one request through a clone of this service: waits until it is ready, then calls it.
    ///
    /// Cancel safe if the call is: dropped before the service is ready, the request is not sent.
    ///
    /// # Errors
    /// The service's own error; rejections are answers.
    pub fn send<A>(&self, req: Request<A>) -> impl Future<Output = Result<Response<B>, S::Error>> + use<S, A, B>
    where
        S: Service<Request<A>, Response = Response<B>> + Clone,
        S::Error: Reject<Response<B>>,
        B: Default,
    {
        send(self.clone(), req)
    }
}

impl<S, A, B> Service<Request<A>> for RespondService<S, B>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Error: Reject<Response<B>>,
    B: Default,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = RespondFuture<S::Future, B>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Request<A>) -> Self::Future {
        let speaks = Speaks::of(&req);
        RespondFuture { inner: self.inner.call(req), speaks, render: self.render.clone() }
    }
}

/// The future of [`RespondService`]. Cancel safe if the service's is: dropping it drops the call.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct RespondFuture<F, B> {
    #[pin]
    inner: F,
    speaks: Speaks,
    render: Render<B>,
}

impl<F, B, E> Future for RespondFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Reject<Response<B>>,
    B: Default,
{
    type Output = Result<Response<B>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = ready!(this.inner.poll(cx));
        Poll::Ready(match rejection(&outcome) {
            None => outcome,
            Some(rejection) => Ok(this.render.answer(*this.speaks, &rejection, outcome.ok())),
        })
    }
}

impl<F, B> fmt::Debug for RespondFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RespondFuture").field("speaks", &self.speaks).finish_non_exhaustive()
    }
}

/// In the extensions of a response, whoever made it, or in an error.
#[inline]
fn rejection<B, E: Reject<Response<B>>>(outcome: &Result<Response<B>, E>) -> Option<Rejection> {
    match outcome {
        Ok(res) => res.extensions().get().copied(),
        Err(_) => match E::inspect(outcome) {
            crate::Outcome::Rejected(rejection) => Some(*rejection),
            _ => None,
        },
    }
}

/// What kind of answer the caller understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http,
    /// An answer without a body.
    Head,
    Grpc,
}

impl Speaks {
    fn of<A>(req: &Request<A>) -> Self {
        match req.headers().get(CONTENT_TYPE) {
            Some(content) if is_grpc(content.as_bytes()) => Speaks::Grpc,
            _ if req.method() == Method::HEAD => Speaks::Head,
            _ => Speaks::Http,
        }
    }
}

/// `application/grpc`, with a subtype or parameters, but not `application/grpc-web`.
fn is_grpc(content: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some((start, rest)) = content.split_at_checked(GRPC.len()) else { return false };
    start.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

impl<B: Default> Render<B> {
    #[cold]
    fn answer(&self, speaks: Speaks, rejection: &Rejection, res: Option<Response<B>>) -> Response<B> {
        let mut res = res.unwrap_or_else(|| {
            let Ok(res) = <Infallible as Reject<Response<B>>>::reject(*rejection);
            res
        });
        match (speaks, self.body) {
            (Speaks::Grpc, _) => self.grpc(rejection, &mut res),
            (_, body) => {
                if let (Reason::Overloaded, Some(status)) = (rejection.reason(), self.overloaded) {
                    *res.status_mut() = status;
                }
                if let Some(body) = body {
                    let problem = self.problem(rejection, res.status());
                    let headers = unframed(res.headers_mut());
                    headers.insert(CONTENT_TYPE, const { HeaderValue::from_static("application/problem+json") });
                    *res.body_mut() = if speaks == Speaks::Head {
                        // That of the body which is left out; a server would say zero. Else it is left to the server,
                        // as the body may yet be replaced.
                        headers.insert(CONTENT_LENGTH, HeaderValue::from(problem.len()));
                        B::default()
                    } else {
                        body(problem)
                    };
                }
            }
        }
        match &self.with {
            Some(with) => with(rejection, res),
            None => res,
        }
    }

    fn detail<'a>(&self, rejection: &Rejection, own: &'a mut String) -> &'a str {
        if self.detailed {
            own.clear();
            let _ = write!(own, "{rejection}");
            own
        } else {
            told(rejection.reason()).detail
        }
    }

    fn problem(&self, rejection: &Rejection, status: StatusCode) -> String {
        let mut own = String::new();
        let title = status.canonical_reason().unwrap_or("Error");
        let detail = Json(self.detail(rejection, &mut own));
        let reason = told(rejection.reason()).reason;
        let mut json = format!(
            r#"{{"type":"about:blank","title":"{title}","status":{},"detail":{detail},"reason":"{reason}""#,
            status.as_u16(),
        );
        // Nothing here can fail: a String takes everything.
        let mut put = |key: &str, value: &dyn fmt::Display| {
            let _ = write!(json, r#","{key}":{value}"#);
        };
        if let Some(after) = rejection.retry_after() {
            put("retry_after", &whole_seconds(after));
        }
        if self.detailed {
            put("name", &Json(rejection.name()));
            put("rule", &Json(rejection.rule().as_str()));
            for (key, figure) in [("measured", rejection.measured()), ("threshold", rejection.threshold())] {
                if let Some(figure) = figure.filter(|figure| figure.is_finite()) {
                    put(key, &figure);
                }
            }
        }
        json.push('}');
        json
    }

    /// An answer that is over with its headers: what gRPC calls "trailers only".
    fn grpc(&self, rejection: &Rejection, res: &mut Response<B>) {
        *res.status_mut() = StatusCode::OK;
        *res.body_mut() = B::default();
        let mut own = String::new();
        let message = Percent(self.detail(rejection, &mut own)).to_string();
        let headers = unframed(res.headers_mut());
        // The pushback says it here.
        headers.remove(RETRY_AFTER);
        headers.insert(CONTENT_TYPE, const { HeaderValue::from_static("application/grpc") });
        headers.insert(&GRPC_STATUS, HeaderValue::from(grpc_status(rejection.reason())));
        if let Ok(message) = HeaderValue::try_from(message) {
            headers.insert(&GRPC_MESSAGE, message);
        }
        if let Some(after) = rejection.retry_after() {
            headers.insert(&GRPC_PUSHBACK, HeaderValue::from(pushback(after)));
        }
    }
}

/// Without what described the body before.
fn unframed(headers: &mut HeaderMap) -> &mut HeaderMap {
    for name in [CONTENT_LENGTH, CONTENT_ENCODING, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers
}

/// In milliseconds, rounded up. No more than clients can read: those take what they cannot for "do not retry".
pub(super) fn pushback(after: Duration) -> i32 {
    i32::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

/// A string of JSON, with its quotes.
struct Json<'a>(&'a str);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\0'..='\x1f' => write!(f, "\\u{:04x}", u32::from(c))?,
                _ => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// A `grpc-message`: what is not printable ASCII, and the percent sign, as `%` and two hexadecimal digits a byte.
struct Percent<'a>(&'a str);

impl fmt::Display for Percent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b' '..=b'~' if byte != b'%' => f.write_char(char::from(byte))?,
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a reader of JSON makes of a string.
    fn unquoted(json: &str) -> String {
        let mut chars = json.strip_prefix('"').and_then(|json| json.strip_suffix('"')).unwrap().chars();
        let mut text = String::new();
        while let Some(c) = chars.next() {
            assert!(c >= ' ' && c != '"', "a bare {c:?}");
            text.push(match c {
                '\\' => match chars.next().unwrap() {
                    'u' => {
                        let digits: String = chars.by_ref().take(4).collect();
                        char::from_u32(u32::from_str_radix(&digits, 16).unwrap()).unwrap()
                    }
                    c @ ('"' | '\\') => c,
                    c => panic!("no such escape: {c:?}"),
                },
                c => c,
            });
        }
        text
    }

    fn decoded(message: &str) -> Vec<u8> {
        let mut bytes = message.bytes();
        let mut decoded = Vec::new();
        while let Some(byte) = bytes.next() {
            decoded.push(if byte == b'%' {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            } else {
                byte
            });
        }
        decoded
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_json_and_from_a_grpc_message(text in any::<String>()) {
            prop_assert_eq!(unquoted(&Json(&text).to_string()), text.clone());
            let message = Percent(&text).to_string();
            prop_assert!(HeaderValue::from_str(&message).is_ok() && message.is_ascii());
            prop_assert_eq!(decoded(&message), text.into_bytes());
        }

        #[test]
        fn no_content_type_panics(content in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = is_grpc(&content);
        }

        #[test]
        fn a_pushback_is_never_too_short(nanos in any::<u64>(), shift in 0..64_u32) {
            let after = Duration::from_nanos(nanos >> shift);
            let told = pushback(after);
            prop_assert!(told == i32::MAX || Duration::from_millis(u64::try_from(told).unwrap()) >= after);
            prop_assert!(u128::try_from(told).unwrap() <= after.as_millis() + 1);
        }
    }

    #[test]
    fn quotes_and_control_characters_are_escaped() {
        assert_eq!(Json("a \"b\" \\ c\n\0 é").to_string(), r#""a \"b\" \\ c\u000a\u0000 é""#);
        assert_eq!(Percent("100 % é\n~").to_string(), "100 %25 %C3%A9%0A~");
    }

    #[test]
    fn grpc_is_grpc_and_its_subtypes_but_not_grpc_web() {
        for (content, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("Application/gRPC", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpcx", false),
            ("application/grp", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(content.as_bytes()), grpc, "{content}");
        }
    }
}
