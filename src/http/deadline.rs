//! A deadline on the wire: from the headers of a request into the current [`Deadline`], and from there into the headers
//! of the next one.
//!
//! What goes over the wire is the time that is left, never a point in time: no two machines' clocks need to agree.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use pin_project::pin_project;
use tower::{Layer, Service};

use crate::{Deadline, DeadlineLayer, DeadlineService, Outcome, Reason, Reject, Rejection, Rule, call::send};

static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The units of `grpc-timeout`, from the finest.
const UNITS: [(u8, Duration); 6] = [
    (b'n', Duration::from_nanos(1)),
    (b'u', Duration::from_micros(1)),
    (b'm', Duration::from_millis(1)),
    (b'S', Duration::from_secs(1)),
    (b'M', Duration::from_secs(60)),
    (b'H', Duration::from_secs(3600)),
];

/// What eight digits hold.
const MOST_UNITS: u32 = 99_999_999;

/// One to eight digits and a unit. `None` for everything else.
fn parse_grpc(value: &[u8]) -> Option<Duration> {
    let (letter, digits) = value.split_last()?;
    let (_, unit) = UNITS.iter().find(|(unit, _)| unit == letter)?;
    let count = u32::try_from(parse_number(digits)?).ok()?;
    (digits.len() <= 8).then(|| *unit * count)
}

/// In the finest unit that eight digits have room for, rounded down: the peer never believes to have more.
fn format_grpc(left: Duration) -> HeaderValue {
    let counted = UNITS.iter().map(|(letter, unit)| (left.as_nanos() / unit.as_nanos(), *letter));
    let (count, letter) = counted
        .into_iter()
        .find(|(count, _)| *count <= u128::from(MOST_UNITS))
        .unwrap_or((u128::from(MOST_UNITS), b'H'));
    let value = format!("{count}{}", char::from(letter));
    HeaderValue::try_from(value).expect("digits and a letter are a header's value")
}

/// Digits only; more than fit are for ever.
fn parse_millis(value: &[u8]) -> Option<Duration> {
    parse_number(value).map(Duration::from_millis)
}

/// Rounded down, but never to zero, which some proxies take for "no limit".
fn format_millis(left: Duration) -> HeaderValue {
    HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1))
}

fn parse_number(digits: &[u8]) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all_digits.then(|| {
        digits.iter().fold(0_u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    })
}

/// The shortest time that any value of this header says.
fn shortest(headers: &HeaderMap, name: &HeaderName, parse: fn(&[u8]) -> Option<Duration>) -> Option<Duration> {
    headers.get_all(name).iter().filter_map(|value| parse(value.as_bytes())).min()
}

/// A request that has headers: an `http::Request`, or with feature `reqwest` a `reqwest::Request`.
///
/// ```
/// use buttress::http::HasHeaders;
/// /// What a client of yours sends.
/// struct Query { headers: http::HeaderMap }
///
/// impl HasHeaders for Query {
///     fn headers(&self) -> &http::HeaderMap { &self.headers }
///     fn headers_mut(&mut self) -> &mut http::HeaderMap { &mut self.headers }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no request with headers",
    note = "an `http::Request` is one, and with buttress' feature `reqwest` a `reqwest::Request`; for a type of your own \
            implement `buttress::http::HasHeaders`"
)]
pub trait HasHeaders {
    /// The headers.
    fn headers(&self) -> &HeaderMap;

    /// The headers, to be changed.
    fn headers_mut(&mut self) -> &mut HeaderMap;
}

impl<B> HasHeaders for Request<B> {
    fn headers(&self) -> &HeaderMap {
        self.headers()
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        self.headers_mut()
    }
}

#[cfg(feature = "reqwest")]
impl HasHeaders for reqwest::Request {
    fn headers(&self) -> &HeaderMap {
        self.headers()
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        self.headers_mut()
    }
}

// ---------------------------------------------------------------- server

/// For servers: how long the caller waits, as its headers say, becomes the [`Deadline`] of the call.
///
/// Read are `grpc-timeout`, and a [header in milliseconds](Self::header) if you name one. The shortest time that any of
/// them says counts, from when the request comes to this layer. Values that cannot be read count as if they were not there.
/// Zero is a time that is past.
///
/// Everything inside sees the deadline as [`Deadline::current`], and policies inside never wait past it. It is enforced: a
/// call that is still running then is dropped, and one whose time is past is answered without being run, both with
/// [`DeadlineExceeded`](Reason::DeadlineExceeded). From an axum `Router` that is a 504. By itself it ends with
/// the head of the response; a policy inside that holds [until the body](crate::http::UntilBody), such as
/// [`Policy::http_server`](crate::Policy::http_server), takes it on into the body, and cuts that off.
///
/// The caller decides how short the time is. At the edge of a system set [`max`](Self::max), so that it does not also
/// decide how long, and [`default`](Self::default), as most callers say nothing. Without them a request without
/// headers has no deadline of this layer's. Nothing here can fail, so there is no `build()`: a `max` of zero answers
/// everything without running it, if it says so on purpose.
///
/// For a deadline that needs no header use [`DeadlineLayer`]; under it, or in any scope, the earlier one counts. It
/// goes outside of policies; only [`RespondLayer`](crate::http::RespondLayer) goes outside of it.
///
/// ```
/// use axum::{Router, routing::get};
/// use buttress::{Deadline, http::ReadDeadlineLayer};
/// use http::HeaderName;
/// use std::time::Duration;
///
/// let app: Router = Router::new().route("/", get(async || format!("{:?}", Deadline::current()))).layer(
///     ReadDeadlineLayer::new()
///         .header(HeaderName::from_static("x-envoy-expected-rq-timeout-ms"))
///         .max(Duration::from_secs(30))
///         .default(Duration::from_secs(10)),
/// );
/// # let _ = app;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ReadDeadlineLayer {
    guard: DeadlineLayer,
    read: Read,
}

/// What to make of headers.
#[derive(Clone, Debug)]
struct Read {
    millis: Option<HeaderName>,
    max: Duration,
    default: Option<Duration>,
}

impl Read {
    fn time(&self, headers: &HeaderMap) -> Option<Duration> {
        let grpc = shortest(headers, &GRPC_TIMEOUT, parse_grpc);
        let millis = self.millis.as_ref().and_then(|name| shortest(headers, name, parse_millis));
        let told = grpc.into_iter().chain(millis).min();
        told.or(self.default).map(|time| time.min(self.max))
    }
}

impl ReadDeadlineLayer {
    /// Reads `grpc-timeout`; no longest time, no default. The name in rejections and logs is `deadline`.
    #[allow(clippy::new_without_default)] // `default` is a setting
    pub fn new() -> Self {
        let read = Read { millis: None, max: Duration::MAX, default: None };
        Self { guard: DeadlineLayer::inherited(), read }
    }

    /// Reads this header too: whole milliseconds, in digits. Envoy, for one, tells a service how long it waits for it in
    /// `x-envoy-expected-rq-timeout-ms`.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.read.millis = Some(name);
        self
    }

    /// The longest time that a call gets, whatever it asks for. Default: none.
    pub fn max(mut self, time: Duration) -> Self {
        self.read.max = time;
        self
    }

    /// The time for a call that says nothing that can be read; [`max`](Self::max) holds for it too. Default: none, so
    /// that such a call has no deadline of this layer's.
    pub fn default(mut self, time: Duration) -> Self {
        self.read.default = Some(time);
        self
    }

    /// The name that rejections and logs carry.
    pub fn name(mut self, name: &'static str) -> Self {
        self.guard = self.guard.name(name);
        self
    }
}

impl<S> Layer<S> for ReadDeadlineLayer {
    type Service = ReadDeadlineService<S>;

    fn layer(&self, inner: S) -> ReadDeadlineService<S> {
        ReadDeadlineService { inner: self.guard.layer(inner), read: self.read.clone() }
    }
}

/// The service of [`ReadDeadlineLayer`].
///
/// ```
/// # use buttress::http::{ReadDeadlineLayer, ReadDeadlineService};
/// # use tower::Layer;
/// # #[derive(Clone)] struct Server;
/// fn bounded(server: Server) -> ReadDeadlineService<Server> {
///     ReadDeadlineLayer::new().layer(server)
/// }
/// # let _ = bounded;
/// ```
#[derive(Clone, Debug)]
pub struct ReadDeadlineService<S> {
    inner: DeadlineService<S>,
    read: Read,
}

impl<S> ReadDeadlineService<S> {
    /// The service below.
    pub fn get_ref(&self) -> &S {
        self.inner.get_ref()
    }

    /// Sends one request through a clone of this service: waits until it is ready, then calls it.
    ///
    /// # Errors
    /// The service's error, which is also where a rejection shows up.
    pub fn send<Req>(&self, req: Req) -> impl Future<Output = Result<S::Response, S::Error>> + use<S, Req>
    where
        Req: HasHeaders,
        S: Service<Req> + Clone,
        S::Error: Reject<S::Response>,
    {
        send(self.clone(), req)
    }
}

impl<S, Req> Service<Req> for ReadDeadlineService<S>
where
    Req: HasHeaders,
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = <DeadlineService<S> as Service<Req>>::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        match self.read.time(req.headers()) {
            // The call keeps the deadline that it was made under, wherever it is polled.
            Some(time) => Deadline::after(time).enter(|| self.inner.call(req)),
            None => self.inner.call(req),
        }
    }
}

// ---------------------------------------------------------------- client

/// For clients: tells the server how much time is left, as the [current](Deadline::current) deadline has it.
///
/// It writes `grpc-timeout`, and a [header in milliseconds](Self::header) if you name one. Without a current deadline it
/// changes nothing. A value that is there already stays if it says less, else it is replaced. Times are rounded down, so
/// that the server never believes to have more; but for the milliseconds of the very last one, which are 1, since zero
/// often means "no limit".
///
/// A call whose deadline is past is answered with [`DeadlineExceeded`](Reason::DeadlineExceeded) and not sent; and so is one
/// that fails when its time is over, as clients may heed the header, too, and call it by another name. This layer does not cut off what runs: whoever [set the deadline](crate::deadline) does. It knows nothing of an attempt timeout,
/// which may end the attempt before that; the server sees that by its connection or stream.
///
/// Put it inside of a policy or a retry, right around the client, so that each attempt says what is left then. The
/// client's error must be able to carry a rejection; put a [`LiftLayer`](crate::LiftLayer) around one that cannot:
///
/// ```
/// use buttress::{LiftLayer, Policy, http::WriteDeadlineLayer};
/// use http::{Request, Response};
/// use std::time::Duration;
/// use tower::ServiceBuilder;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = tower::service_fn(async |req: Request<String>| {
/// #     Ok::<_, std::fmt::Error>(Response::new(req.headers()["grpc-timeout"].clone()))
/// # });
/// let policy = Policy::plain("users").deadline(Duration::from_secs(5)).build()?;
/// let client = ServiceBuilder::new()
///     .layer(policy.layer())
///     .layer(WriteDeadlineLayer::new())
///     .layer(LiftLayer)
///     .service(client); // such as hyper-util's, or a `reqwest::Client`
/// let response = client.send(Request::new(String::new())).await?;
/// # assert!(response.into_body().to_str()?.ends_with('u'));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct WriteDeadlineLayer {
    write: Write,
}

/// What to write.
#[derive(Clone, Debug)]
struct Write {
    name: &'static str,
    grpc: bool,
    millis: Option<HeaderName>,
}

impl Write {
    fn write(&self, headers: &mut HeaderMap, left: Duration) {
        if self.grpc && shortest(headers, &GRPC_TIMEOUT, parse_grpc).is_none_or(|there| there > left) {
            headers.insert(&GRPC_TIMEOUT, format_grpc(left));
        }
        if let Some(name) = &self.millis {
            if shortest(headers, name, parse_millis).is_none_or(|there| there > left) {
                headers.insert(name, format_millis(left));
            }
        }
    }
}

impl Default for WriteDeadlineLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl WriteDeadlineLayer {
    /// Writes `grpc-timeout`. The name in rejections and logs is `deadline`.
    pub fn new() -> Self {
        Self { write: Write { name: "deadline", grpc: true, millis: None } }
    }

    /// Writes this header too, in whole milliseconds. Envoy, for one, reads `x-envoy-upstream-rq-timeout-ms`.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.write.millis = Some(name);
        self
    }

    /// Leaves `grpc-timeout` alone: for servers that know only the [header](Self::header).
    pub fn without_grpc_timeout(mut self) -> Self {
        self.write.grpc = false;
        self
    }

    /// The name that rejections and logs carry.
    pub fn name(mut self, name: &'static str) -> Self {
        self.write.name = name;
        self
    }
}

impl<S> Layer<S> for WriteDeadlineLayer {
    type Service = WriteDeadlineService<S>;

    fn layer(&self, inner: S) -> WriteDeadlineService<S> {
        WriteDeadlineService { inner, write: self.write.clone() }
    }
}

/// The service of [`WriteDeadlineLayer`].
///
/// ```
/// # use buttress::http::{WriteDeadlineLayer, WriteDeadlineService};
/// # use tower::Layer;
/// # #[derive(Clone)] struct Client;
/// fn telling(client: Client) -> WriteDeadlineService<Client> {
///     WriteDeadlineLayer::new().layer(client)
/// }
/// # let _ = telling;
/// ```
#[derive(Clone, Debug)]
pub struct WriteDeadlineService<S> {
    inner: S,
    write: Write,
}

impl<S> WriteDeadlineService<S> {
    /// The service below.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Sends one request through a clone of this service: waits until it is ready, then calls it.
    ///
    /// # Errors
    /// The service's error, which is also where a rejection shows up.
    pub fn send<Req>(&self, req: Req) -> impl Future<Output = Result<S::Response, S::Error>> + use<S, Req>
    where
        Req: HasHeaders,
        S: Service<Req> + Clone,
        S::Error: Reject<S::Response>,
    {
        send(self.clone(), req)
    }
}

impl<S, Req> Service<Req> for WriteDeadlineService<S>
where
    Req: HasHeaders,
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = WriteDeadlineFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut req: Req) -> Self::Future {
        let name = self.write.name;
        let deadline = Deadline::current();
        if let Some(deadline) = deadline {
            let left = deadline.remaining();
            if left.is_zero() {
                // The readiness that was reserved below is given back.
                self.inner = self.inner.clone();
                too_late(name).log();
                return WriteDeadlineFuture { state: State::TooLate, name };
            }
            self.write.write(req.headers_mut(), left);
        }
        WriteDeadlineFuture { state: State::Running { inner: self.inner.call(req), deadline }, name }
    }
}

fn too_late(name: &'static str) -> Rejection {
    Rejection::new(name, Reason::DeadlineExceeded, Rule::Deadline, f32::NAN, f32::NAN)
}

/// The future of [`WriteDeadlineService`]. Dropping it drops the call.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct WriteDeadlineFuture<F> {
    #[pin]
    state: State<F>,
    name: &'static str,
}

#[pin_project(project = StateProj)]
enum State<F> {
    Running {
        #[pin]
        inner: F,
        deadline: Option<Deadline>,
    },
    TooLate,
}

/// Whoever heeds the header below us, such as tonic's channel, may give up in the very moment in which whoever set the
/// deadline does, with an error of its own. A timer is exact to a millisecond.
const SAME_MOMENT: Duration = Duration::from_millis(2);

impl<F, T, E> Future for WriteDeadlineFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Reject<T>,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let StateProj::Running { inner, deadline } = this.state.project() else {
            return Poll::Ready(E::reject(too_late(this.name)));
        };
        let outcome = ready!(inner.poll(cx));
        let is_over = |deadline: &Deadline| deadline.remaining() < SAME_MOMENT;
        let timed_out = matches!(E::inspect(&outcome), Outcome::Err(_)) && deadline.as_ref().is_some_and(is_over);
        Poll::Ready(if timed_out { E::reject(too_late(this.name)) } else { outcome })
    }
}

impl<F> fmt::Debug for WriteDeadlineFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Running { .. } => "running",
            State::TooLate => "too late",
        };
        f.debug_struct("WriteDeadlineFuture").field("state", &state).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn wire(value: &HeaderValue) -> &str {
        value.to_str().unwrap()
    }

    #[test]
    fn a_grpc_timeout_is_one_to_eight_digits_and_a_unit() {
        let ns = Duration::from_nanos;
        for (value, time) in [
            ("1H", Some(ns(3_600_000_000_000))),
            ("1M", Some(ns(60_000_000_000))),
            ("2S", Some(ns(2_000_000_000))),
            ("30m", Some(ns(30_000_000))),
            ("400u", Some(ns(400_000))),
            ("5n", Some(ns(5))),
            ("0S", Some(ns(0))),
            ("00000007S", Some(ns(7_000_000_000))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("000000007S", None),
            ("123456789n", None),
            ("99999999999999999999n", None),
            ("", None),
            ("S", None),
            ("5", None),
            ("5s", None),
            ("5h", None),
            ("-5S", None),
            ("+5S", None),
            ("1.5S", None),
            ("5 S", None),
            (" 5S", None),
            ("5S ", None),
            ("٣S", None),
        ] {
            assert_eq!(parse_grpc(value.as_bytes()), time, "{value:?}");
        }
    }

    #[test]
    fn milliseconds_are_digits_and_more_than_fit_are_for_ever() {
        for (value, time) in [
            ("0", Some(0)),
            ("0250", Some(250)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", Some(u64::MAX)),
            ("99999999999999999999999999", Some(u64::MAX)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("1e3", None),
            ("250ms", None),
            (" 250", None),
        ] {
            assert_eq!(parse_millis(value.as_bytes()), time.map(Duration::from_millis), "{value:?}");
        }
    }

    #[test]
    fn a_time_is_written_in_the_finest_unit_that_eight_digits_hold() {
        let ns = Duration::from_nanos;
        for (left, value) in [
            (ns(1), "1n"),
            (ns(99_999_999), "99999999n"),
            (ns(100_000_999), "100000u"),
            (Duration::from_secs(5), "5000000u"),
            (ns(99_999_999_999), "99999999u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::from_secs(6_000_000_000), "1666666H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(wire(&format_grpc(left)), value, "{left:?}");
        }
        assert_eq!(wire(&format_millis(ns(1))), "1");
        assert_eq!(wire(&format_millis(ns(2_999_999))), "2");
        assert_eq!(wire(&format_millis(Duration::MAX)), "18446744073709551615");
    }

    /// All magnitudes are as likely.
    fn times() -> impl Strategy<Value = Duration> {
        (any::<u64>(), 0..64_u32, 0..1_000_000_000_u32).prop_map(|(secs, shift, nanos)| {
            let secs = secs >> shift;
            if secs == 0 { Duration::from_nanos(u64::from(nanos >> (shift % 30))) } else { Duration::new(secs, nanos) }
        })
    }

    proptest! {
        #[test]
        fn what_is_read_back_is_never_more_and_hardly_less(left in times()) {
            let read = parse_grpc(format_grpc(left).as_bytes()).unwrap();
            prop_assert!(read <= left);
            // Six digits are left of any unit but the finest, where nothing is lost; and 11,000 years are the most.
            let most = Duration::from_secs(99_999_999 * 3600);
            prop_assert!(left.min(most) - read <= left / 100_000 || read == most, "{left:?} as {read:?}");
            prop_assert!(read > Duration::ZERO || left == Duration::ZERO);

            let read = parse_millis(format_millis(left).as_bytes()).unwrap();
            prop_assert!(read <= left.max(Duration::from_millis(1)));
            prop_assert!(left.saturating_sub(read) < Duration::from_millis(1) || read == Duration::from_millis(u64::MAX));
        }

        #[test]
        fn no_bytes_make_reading_panic(value in vec(any::<u8>(), 0..24)) {
            let told = parse_grpc(&value);
            prop_assert!(told.is_none() || (2..=9).contains(&value.len()));
            let _ = parse_millis(&value);
        }

        #[test]
        fn whatever_eight_digits_and_a_unit_say_is_read(count in 0..=MOST_UNITS, unit in 0..UNITS.len()) {
            let (letter, unit) = UNITS[unit];
            let value = format!("{count}{}", char::from(letter));
            prop_assert_eq!(parse_grpc(value.as_bytes()), Some(unit * count));
        }

        #[test]
        fn no_headers_give_more_than_the_max_or_less_than_the_shortest(
            grpc in vec("[0-9]{0,9}[HMSmunx]?", 0..3),
            millis in vec("[0-9]{0,22}", 0..3),
            max in 0..100_000_u64,
        ) {
            let name = HeaderName::from_static("x-timeout-ms");
            let mut headers = HeaderMap::new();
            for value in &grpc {
                headers.append(&GRPC_TIMEOUT, value.parse().unwrap());
            }
            for value in &millis {
                headers.append(&name, value.parse().unwrap());
            }
            let max = Duration::from_millis(max);
            let read = Read { millis: Some(name), max, default: None };
            let said = grpc.iter().filter_map(|value| parse_grpc(value.as_bytes()));
            let said: Vec<_> = said.chain(millis.iter().filter_map(|value| parse_millis(value.as_bytes()))).collect();
            prop_assert_eq!(read.time(&headers), said.into_iter().min().map(|time| time.min(max)));
        }
    }
}
