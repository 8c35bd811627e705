//! [`Policy`]: the patterns in their right order.
//!
//! ```text
//! deadline ─► retry ─► circuit breaker ─► concurrency limit ─► attempt timeout ─► service
//! ```
//!
//! Retry is outside of the breaker, so that each attempt is counted and an open circuit stops it. The limit is
//! inside of retry, so that no permit is held during a backoff. The attempt timeout is innermost, so that it does
//! not count the queue. A [throttle](crate::throttle#in-a-policy) is asked after the breaker and before the limit. The order is
//! fixed; the single layers are there for any other.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use tower::Layer;

use crate::{
    CircuitBreaker, CircuitBreakerBuilder, Classify, ConcurrencyLimit, ConcurrencyLimitBuilder, ConfigError, Error,
    Hedge, HedgeBuilder, Reject, Retry, RetryBuilder, Throttle, ThrottleBuilder,
    call::{Beside, BodyTimes, Calls, Guard, Guarded, Holds, Parts, Repeating, ResponseFuture},
    circuit_breaker,
    clock::now,
    concurrency_limit,
    config::Checks,
    kind::{Cloned, Kind, Plain},
    lift::{Lift, LiftFuture},
    shutdown,
    spread::{Spread, is_sole},
    throttle,
};

/// Deadline, retry, circuit breaker, concurrency limit and attempt timeout around a service, each of them optional,
/// in one future with one timer and no allocation.
///
/// The state belongs to the policy: clones, layers and services made of it share one breaker, one limit and one
/// budget. Make one policy per service that you call, and keep it.
///
/// ```
/// use buttress::{CircuitBreaker, ConcurrencyLimit, Policy, Retry};
/// use std::time::Duration;
///
/// # async fn fetch_user(id: u32) -> Result<String, std::io::Error> { Ok(format!("user {id}")) }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let policy = Policy::plain("users")
///     .deadline(Duration::from_secs(5))
///     .retry(Retry::exponential(Duration::from_millis(50)).max_attempts(3))
///     .circuit_breaker(CircuitBreaker::builder().failure_rate(0.5))
///     .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(64).max_queue(128))
///     .timeout(Duration::from_millis(500))
///     .build()?;
///
/// let user = policy.call(|| fetch_user(42)).await?;
/// assert_eq!(user, "user 42");
/// # Ok(()) }
/// ```
pub struct Policy<K = Plain> {
    pub(crate) parts: Spread<PolicyParts<K>>,
}

/// The parts of a [`Policy`].
#[derive(Debug)]
pub struct PolicyParts<K> {
    name: &'static str,
    deadline: Option<Duration>,
    retry: Option<Retry>,
    breaker: Option<CircuitBreaker>,
    throttle: Option<Throttle>,
    limit: Option<ConcurrencyLimit>,
    /// Built alone, so others may hold it too.
    lent: Lent,
    timeout: Option<Duration>,
    hedge: Option<Hedge>,
    body: BodyTimes,
    kind: K,
}

/// Which parts of a policy were built alone.
#[derive(Clone, Copy, Debug)]
struct Lent {
    breaker: bool,
    throttle: bool,
    limit: bool,
}

impl Policy {
    /// For any service or closure; `Err` is a transient failure.
    ///
    /// Closures are repeated by [retry](PolicyBuilder::retry). **Requests are sent once**, since any type must fit:
    /// for a service whose requests can be repeated use [`cloned`](Self::cloned), a preset for its protocol, or
    /// [`repeat`](PolicyBuilder::repeat).
    pub fn plain(name: &'static str) -> PolicyBuilder<Plain> {
        PolicyBuilder::new(name, Plain::default())
    }

    /// [`plain`](Self::plain) with [`standard`](PolicyBuilder::standard) settings: nothing to tune.
    ///
    /// [`call`](Self::call) repeats its closure after a failure, and here **also beside an attempt that still runs**, if that is late: only
    /// for what may be done twice. Around a client use its preset, as `Policy::reqwest(name).standard()`, which judges by status and
    /// repeats what is idempotent.
    ///
    /// ```
    /// use buttress::Policy;
    /// use std::time::Duration;
    /// # async fn fetch_user(id: u32) -> Result<String, std::io::Error> { Ok(format!("user {id}")) }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let users = Policy::standard("users").deadline(Duration::from_secs(1)).build()?;
    /// assert_eq!(users.call(|| fetch_user(42)).await?, "user 42");
    /// # Ok(()) }
    /// ```
    pub fn standard(name: &'static str) -> PolicyBuilder<Plain> {
        Self::plain(name).standard()
    }

    /// For services whose requests are `Clone` and safe to repeat.
    pub fn cloned(name: &'static str) -> PolicyBuilder<Cloned> {
        PolicyBuilder::new(name, Cloned::default())
    }

    /// For HTTP servers, by [`layer`](Self::layer): an axum `Router`, or any service of `http::Request` and `http::Response`.
    ///
    /// Judges by status, so that a circuit breaker opens on 5xx though a router never fails; a call lasts until the body of
    /// its response ends or is dropped, so that a limit of 8 holds with streams, and the deadline goes on into the body.
    /// `.hold(UntilHeaders)` has it end with the headers. Requests are sent once: retry has nothing to do here.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use buttress::{ConcurrencyLimit, Policy};
    ///
    /// let policy = Policy::http_server("api")
    ///     .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(64))
    ///     .timeout(std::time::Duration::from_secs(1))
    ///     .build()?;
    /// let app: Router = Router::new().route("/", get(async || "hello")).layer(policy.layer());
    /// # let _ = app;
    /// # Ok::<(), buttress::ConfigError>(())
    /// ```
    #[cfg(feature = "http")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    pub fn http_server(name: &'static str) -> PolicyBuilder<crate::http::HttpServer> {
        PolicyBuilder::new(name, crate::http::HttpServer::default())
    }

    /// For HTTP clients, by [`wrap`](Self::wrap): hyper-util's, or any service of `http::Request` and `http::Response`.
    ///
    /// Judges by status, honours `Retry-After`, repeats what is idempotent; the permit is given back with the headers, the
    /// deadline goes on into the body. Feature `hyper` knows from the client's errors what was never sent. To have uploads
    /// repeated that are streamed put a [`ReplayLayer`](crate::http::ReplayLayer) outside; to tell the server the deadline, a
    /// [`WriteDeadlineLayer`](crate::http::WriteDeadlineLayer) inside.
    #[cfg(feature = "http")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    pub fn http_client(name: &'static str) -> PolicyBuilder<crate::http::HttpClient> {
        PolicyBuilder::new(name, crate::http::HttpClient::default().with_hold(crate::http::UntilBody::of_a_client()))
    }

    /// For gRPC: [`wrap`](Self::wrap) around a tonic `Channel`, [`layer`](Self::layer) around a tonic service or server, and
    /// [`call_as`](Self::call_as) around calls of a generated client. Judges by gRPC status, see
    /// [`ByGrpcStatus`](crate::http::ByGrpcStatus).
    ///
    /// - **`wrap` and `layer` send each request once, with or without retry**, as its body is a stream: to retry, use `call_as`
    ///   around the generated client, which makes the request anew.
    /// - On a server put [`RespondLayer::grpc_only`](crate::http::RespondLayer::grpc_only) outside, or callers without
    ///   buttress see an HTTP 503 or 504, which is UNAVAILABLE to them.
    /// - The deadline is not told to the server; for that put a
    ///   [`WriteDeadlineLayer`](crate::http::WriteDeadlineLayer) inside.
    #[cfg(feature = "http")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    pub fn grpc(name: &'static str) -> PolicyBuilder<crate::http::Grpc> {
        PolicyBuilder::new(name, crate::http::Grpc::default())
    }

    /// For `reqwest::Client`, by [`wrap`](Self::wrap): judges by status, honours `Retry-After`, repeats what is idempotent; the
    /// permit is given back with the headers, the deadline goes on into the body (which then fails with an error that has
    /// the [`Rejection`](crate::Rejection) among its sources).
    ///
    /// A body that is streamed is sent once, of a PUT too: to repeat uploads use [`http_client`](Self::http_client) and a
    /// [`ReplayLayer`](crate::http::ReplayLayer).
    ///
    /// [`call`](Self::call) repeats its closure **whatever request it makes, a POST too**: use `wrap` for what must not be
    /// sent twice. Around a server's router use [`http_server`](Self::http_server).
    ///
    /// ```no_run
    /// use buttress::{Policy, Retry};
    /// use std::time::Duration;
    ///
    /// # async fn fetch() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = reqwest::Client::new();
    /// let policy = Policy::reqwest("shop")
    ///     .deadline(Duration::from_secs(5))
    ///     .retry(Retry::exponential(Duration::from_millis(50)))
    ///     .build()?;
    /// let shop = policy.wrap(client.clone());
    /// let response = shop.send(client.get("https://shop.example/books").build()?).await?;
    /// println!("{}", response.text().await?);
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "reqwest")]
    #[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
    pub fn reqwest(name: &'static str) -> PolicyBuilder<crate::http::Reqwest> {
        PolicyBuilder::new(name, crate::http::Reqwest::default().with_hold(crate::http::UntilBody::of_a_client()))
    }
}

impl<K> Policy<K> {
    /// As a tower layer. The error type of the service stays as it is; it must be able to carry a rejection.
    ///
    /// An axum `Router` never fails, so all its answers are successes, a 500 too, until you
    /// [judge](PolicyBuilder::classify) by `http::ByStatus`.
    pub fn layer(&self) -> PolicyLayer<K>
    where
        PolicyParts<K>: Parts,
    {
        Guard::from(self.parts.clone())
    }

    /// Around any service: its error `E` becomes [`Error<E>`]. Over a service that has an `Error<E>` already use
    /// [`layer`](Self::layer), so that its rejections are known as such.
    ///
    /// The result is a `tower::Service`; [`send`](Guarded::send) sends one request. Its type can be named:
    /// `PolicyService<Lift<reqwest::Client>, http::Reqwest>`. A [`plain`](Policy::plain) policy sends each request once here,
    /// with or without retry.
    pub fn wrap<S>(&self, service: S) -> PolicyService<Lift<S>, K>
    where
        PolicyParts<K>: Parts,
    {
        self.layer().layer(Lift::new(service))
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.parts.name
    }

    /// The circuit breaker, to look at or to force.
    #[must_use]
    pub fn circuit_breaker(&self) -> Option<&CircuitBreaker> {
        self.parts.breaker.as_ref()
    }

    /// The throttle, to look at.
    #[must_use]
    pub fn throttle(&self) -> Option<&Throttle> {
        self.parts.throttle.as_ref()
    }

    /// The concurrency limit, to look at or to resize.
    #[must_use]
    pub fn concurrency_limit(&self) -> Option<&ConcurrencyLimit> {
        self.parts.limit.as_ref()
    }

    /// The hedge, to see its delay.
    #[must_use]
    pub fn hedge(&self) -> Option<&Hedge> {
        self.parts.hedge.as_ref()
    }

    /// The retry, with its budget.
    #[must_use]
    pub fn retry(&self) -> Option<&Retry> {
        self.parts.retry.as_ref()
    }
}

impl<K> PolicyParts<K> {
    /// Whether a policy built anew would do the same. A limit or a throttle that was built alone does not count: it lives on.
    pub(crate) fn is_settled(&self) -> bool {
        self.breaker.as_ref().is_none_or(|breaker| breaker.shared.is_as_built())
            && self.own_throttle().is_none_or(|throttle| throttle.shared.is_calm(now))
            && self.own_limit().is_none_or(|limit| limit.shared.is_settled())
    }

    /// Whether nobody holds one of its own parts.
    pub(crate) fn is_sole(&self) -> bool {
        let own_breaker = self.breaker.as_ref().filter(|_| !self.lent.breaker);
        own_breaker.is_none_or(|breaker| is_sole(Arc::strong_count(&breaker.shared)))
            && self.own_throttle().is_none_or(|throttle| is_sole(Arc::strong_count(&throttle.shared)))
            && self.own_limit().is_none_or(|limit| is_sole(Arc::strong_count(&limit.shared)))
    }

    fn own_throttle(&self) -> Option<&Throttle> {
        self.throttle.as_ref().filter(|_| !self.lent.throttle)
    }

    fn own_limit(&self) -> Option<&ConcurrencyLimit> {
        self.limit.as_ref().filter(|_| !self.lent.limit)
    }
}

impl<C, R, H> Policy<Kind<C, R, H>> {
    /// Calls an async function through the policy, as often as need be. It may borrow; the attempt's number is
    /// [`retry::current_attempt`](crate::retry::current_attempt). With [retry](PolicyBuilder::retry) the closure is repeated
    /// on every kind of policy: the strategy for requests has no say here.
    ///
    /// Cancel safe if the attempts are: dropped at any point, it gives everything back and starts nothing more.
    ///
    /// # Errors
    /// The last attempt's error, unchanged, or the rejection.
    ///
    /// # Panics
    /// If it must wait outside of a tokio runtime with its timers enabled.
    pub fn call<F, Fut, T, E>(
        &self,
        mut f: F,
    ) -> impl Future<Output = Result<T, Error<E>>> + use<'_, F, Fut, T, E, C, R, H>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        C: Classify<T, E>,
    {
        ResponseFuture::lazy(&*self.parts, Calls(move |_| LiftFuture { inner: f() }))
    }

    /// As [`call`](Self::call), for an error that can carry the rejection itself. **Use it to nest**: in
    /// `outer.call_as(|| inner.call(…))` the error stays one flat [`Error<E>`], and a rejection by `inner` is known as one;
    /// `outer.call(|| inner.call(…))` would retry it and count it as a failure. Cancel safe if the attempts are.
    ///
    /// # Errors
    /// As `call`.
    ///
    /// # Panics
    /// As `call`.
    pub fn call_as<F, Fut, T, E>(&self, mut f: F) -> impl Future<Output = Result<T, E>> + use<'_, F, Fut, T, E, C, R, H>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: Reject<T>,
        C: Classify<T, E::Cause>,
    {
        ResponseFuture::lazy(&*self.parts, Calls(move |_| f()))
    }
}

impl<K> Clone for Policy<K> {
    fn clone(&self) -> Self {
        Self { parts: self.parts.clone() }
    }
}

impl<K> fmt::Debug for Policy<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = &*self.parts;
        f.debug_struct("Policy")
            .field("name", &parts.name)
            .field("deadline", &parts.deadline)
            .field("retry", &parts.retry)
            .field("circuit_breaker", &parts.breaker)
            .field("throttle", &parts.throttle)
            .field("concurrency_limit", &parts.limit)
            .field("timeout", &parts.timeout)
            .field("hedge", &parts.hedge)
            .finish_non_exhaustive()
    }
}

impl<C, R, H> Parts for PolicyParts<Kind<C, R, H>> {
    type Classify = C;
    type Again = Repeating<R>;
    type Hold = H;
    type Seat<F, L: Holds> = Beside<F, L>;
    const SCOPED: bool = true;

    #[inline]
    fn name(&self) -> &'static str {
        self.name
    }

    #[inline]
    fn classify(&self) -> &C {
        self.kind.classifier()
    }

    #[inline]
    fn again(&self) -> &Repeating<R> {
        self.kind.again()
    }

    #[inline]
    fn hold(&self) -> &H {
        self.kind.hold()
    }

    #[inline]
    fn body(&self) -> BodyTimes {
        self.body
    }

    #[inline]
    fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    #[inline]
    fn retry(&self) -> Option<&Retry> {
        self.retry.as_ref()
    }

    #[inline]
    fn breaker(&self) -> Option<&circuit_breaker::Shared> {
        self.breaker.as_ref().map(|breaker| &*breaker.shared)
    }

    #[inline]
    fn throttle(&self) -> Option<&throttle::Shared> {
        self.throttle.as_ref().map(|throttle| &*throttle.shared)
    }

    #[inline]
    fn limit(&self) -> Option<&concurrency_limit::Shared> {
        self.limit.as_ref().map(|limit| &*limit.shared)
    }

    #[inline]
    fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    #[inline]
    fn hedge(&self) -> Option<&Hedge> {
        self.hedge.as_ref()
    }
}

/// A [`Policy`] as a tower layer.
pub type PolicyLayer<K = Plain> = Guard<Spread<PolicyParts<K>>>;

/// The service of [`PolicyLayer`]; of [`Policy::wrap`] over [`Lift<S>`]. The same type, whatever is switched on.
pub type PolicyService<S, K = Plain> = Guarded<S, Spread<PolicyParts<K>>>;

/// A part of a policy: settings, or a handle that exists already and is shared with others. Each turns into one by itself.
///
/// ```
/// use buttress::{CircuitBreaker, Policy};
/// # fn main() -> Result<(), buttress::ConfigError> {
/// let own = Policy::plain("reads").circuit_breaker(CircuitBreaker::builder()).build()?;
/// // Both open and close together.
/// let shared = own.circuit_breaker().unwrap();
/// let writes = Policy::plain("writes").circuit_breaker(shared).build()?;
/// # let _ = writes;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub enum Part<B, H> {
    /// Made when the policy is built, under the policy's name.
    New(B),
    /// Shared.
    Shared(H),
}

macro_rules! part {
    ($builder:ty, $handle:ty) => {
        impl From<$builder> for Part<$builder, $handle> {
            fn from(builder: $builder) -> Self {
                Part::New(builder)
            }
        }

        impl From<$handle> for Part<$builder, $handle> {
            fn from(handle: $handle) -> Self {
                Part::Shared(handle)
            }
        }

        impl From<&$handle> for Part<$builder, $handle> {
            fn from(handle: &$handle) -> Self {
                Part::Shared(handle.clone())
            }
        }
    };
}

part!(RetryBuilder, Retry);
part!(HedgeBuilder, Hedge);
part!(CircuitBreakerBuilder, CircuitBreaker);
part!(ThrottleBuilder, Throttle);
part!(ConcurrencyLimitBuilder, ConcurrencyLimit);

impl<B, H> Part<B, H> {
    fn check(part: &Option<Self>, check: impl FnOnce(&B)) {
        if let Some(Part::New(builder)) = part {
            check(builder);
        }
    }

    fn assemble(part: Option<Self>, assemble: impl FnOnce(B) -> H) -> Option<H> {
        part.map(|part| match part {
            Part::New(builder) => assemble(builder),
            Part::Shared(handle) => handle,
        })
    }
}

/// Builds a [`Policy`]. What is not set is not done, and nothing but [`build`](Self::build) makes a policy of it: there is
/// no `call`, `wrap` or `layer` here.
///
/// ```
/// use buttress::{CircuitBreaker, Policy};
/// use std::time::Duration;
/// let error = Policy::plain("users")
///     .deadline(Duration::ZERO)
///     .circuit_breaker(CircuitBreaker::builder().failure_rate(f64::NAN))
///     .build()
///     .unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "invalid configuration: policy.deadline = 0ns: must be longer than zero; \
///      circuit_breaker.failure_rate = NaN: must be above 0 and at most 1",
/// );
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct PolicyBuilder<K = Plain> {
    name: &'static str,
    deadline: Option<Duration>,
    retry: Option<Part<RetryBuilder, Retry>>,
    breaker: Option<Part<CircuitBreakerBuilder, CircuitBreaker>>,
    throttle: Option<Part<ThrottleBuilder, Throttle>>,
    limit: Option<Part<ConcurrencyLimitBuilder, ConcurrencyLimit>>,
    timeout: Option<Duration>,
    hedge: Option<Part<HedgeBuilder, Hedge>>,
    body: BodyTimes,
    seed: Option<u64>,
    shutdown: Option<shutdown::Handle>,
    kind: K,
}

impl<K> PolicyBuilder<K> {
    fn new(name: &'static str, kind: K) -> Self {
        Self {
            name,
            deadline: None,
            retry: None,
            breaker: None,
            throttle: None,
            limit: None,
            timeout: None,
            hedge: None,
            body: BodyTimes::default(),
            seed: None,
            shutdown: None,
            kind,
        }
    }

    /// What is known to get services through the usual outages, whichever it is: an adaptive concurrency limit that holds calls back
    /// while the service is down, with a queue that goes by deadlines and in which nobody waits for more than ten seconds; and retries,
    /// up to seven for a call and one for each call over all, which is as many as it takes where every other answer is an error; and a
    /// hedge from the same budget, where a call takes five times as long as three quarters of them. There is no circuit breaker
    /// in it, and no attempt timeout.
    ///
    /// Every `Err` is a failure to it until you [judge](Self::classify) otherwise: a service of which most calls end with "not found" is
    /// not down.
    ///
    /// Set a [`deadline`](Self::deadline) with it, or have callers set one: those who have a deadline are let out in the right order, and
    /// not at all if it would be in vain; and a call that hangs for ever keeps its permit for as long. What was set before is replaced, what is set after it replaces its part.
    pub fn standard(self) -> Self {
        self.retry(RetryBuilder::standard())
            .hedge(HedgeBuilder::standard())
            .concurrency_limit(ConcurrencyLimitBuilder::standard())
    }

    /// How long the whole call may take, retries and waits included.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.deadline = Some(time);
        self
    }

    /// How to ask again: settings, or a [`Retry`] to share. Whether a *request* can be sent again is the kind's
    /// business: [`plain`](Policy::plain), `grpc` and `http_server` send each once, and then this has nothing to do.
    pub fn retry(mut self, retry: impl Into<Part<RetryBuilder, Retry>>) -> Self {
        self.retry = Some(retry.into());
        self
    }

    /// When not to ask: settings, or a [`CircuitBreaker`] to share. One that was built alone knows nothing of the
    /// policy's deadline: set its [`slow_call`](CircuitBreakerBuilder::slow_call) below that, or calls that the deadline
    /// cuts off count as nothing. (The attempt timeout always counts as a failure.)
    pub fn circuit_breaker(mut self, breaker: impl Into<Part<CircuitBreakerBuilder, CircuitBreaker>>) -> Self {
        self.breaker = Some(breaker.into());
        self
    }

    /// How many not to ask for while the service accepts few: settings, or a [`Throttle`] to share. Where the service may hang, set
    /// a [`timeout`](Self::timeout) with it: an attempt that is cut off by that was not accepted, while one that the deadline
    /// cuts off says nothing.
    pub fn throttle(mut self, throttle: impl Into<Part<ThrottleBuilder, Throttle>>) -> Self {
        self.throttle = Some(throttle.into());
        self
    }

    /// How many may ask at once: settings, or a [`ConcurrencyLimit`] to share.
    pub fn concurrency_limit(mut self, limit: impl Into<Part<ConcurrencyLimitBuilder, ConcurrencyLimit>>) -> Self {
        self.limit = Some(limit.into());
        self
    }

    /// When to send an attempt once more, beside the first: settings, or a [`Hedge`] to share. It draws on the budget of the
    /// [retries](Self::retry) unless it has one of its own, and counts as an attempt. Requests are repeated as for a retry.
    pub fn hedge(mut self, hedge: impl Into<Part<HedgeBuilder, Hedge>>) -> Self {
        self.hedge = Some(hedge.into());
        self
    }

    /// How long each attempt may take.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self
    }

    /// Makes what this policy leaves to chance reproducible: the jitter of its backoffs and of its circuit's open times, and what
    /// its throttle refuses. For the parts that this policy makes and that have no seed of their own.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Once this shutdown drains, nothing waits and nothing is tried again, from the beginning of the lame-duck time on: see
    /// [`RetryBuilder::shutdown`] and [`ConcurrencyLimitBuilder::shutdown`]. For the parts that this policy makes; those that
    /// were built alone keep their own.
    pub fn shutdown(mut self, handle: &shutdown::Handle) -> Self {
        self.shutdown = Some(handle.clone());
        self
    }

    /// The policy.
    ///
    /// # Errors
    /// Every setting of every part that is out of its range, all at once.
    pub fn build(self) -> Result<Policy<K>, ConfigError> {
        let mut checks = Checks::new("policy");
        checks.name(Some(self.name));
        let times = [
            ("deadline", self.deadline),
            ("timeout", self.timeout),
            ("body_idle_timeout", self.body.idle),
            ("body_timeout", self.body.whole),
        ];
        for (setting, time) in times {
            if let Some(time) = time {
                checks.time(setting, time);
            }
        }
        Part::check(&self.retry, |retry| retry.check(&mut checks));
        Part::check(&self.breaker, |breaker| breaker.check(&mut checks));
        Part::check(&self.breaker, |breaker| breaker.check_deadline(&mut checks, self.deadline));
        Part::check(&self.throttle, |throttle| throttle.check(&mut checks));
        Part::check(&self.limit, |limit| limit.check(&mut checks));
        Part::check(&self.hedge, |hedge| hedge.check(&mut checks));
        checks.finish()?;

        let (name, shutdown) = (self.name, self.shutdown.as_ref());
        let bound = self.timeout.into_iter().chain(self.deadline).min();
        let lent = Lent {
            breaker: matches!(self.breaker, Some(Part::Shared(_))),
            throttle: matches!(self.throttle, Some(Part::Shared(_))),
            limit: matches!(self.limit, Some(Part::Shared(_))),
        };
        let retry = Part::assemble(self.retry, |retry| {
            told(shutdown, retry.seed_by_default(self.seed), RetryBuilder::shutdown).assemble(name)
        });
        let budget = retry.as_ref().and_then(Retry::budget);
        let parts = PolicyParts {
            name,
            deadline: self.deadline,
            hedge: Part::assemble(self.hedge, |hedge| {
                told(shutdown, hedge, HedgeBuilder::shutdown).assemble(name, budget)
            }),
            retry,
            // Another one each, so that they are not in step.
            breaker: Part::assemble(self.breaker, |breaker| {
                breaker.seed_by_default(self.seed.map(|seed| seed.wrapping_add(1))).assemble(name, bound)
            }),
            throttle: Part::assemble(self.throttle, |throttle| {
                throttle.seed_by_default(self.seed.map(|seed| seed.wrapping_add(2))).assemble(name)
            }),
            limit: Part::assemble(self.limit, |limit| {
                told(shutdown, limit, ConcurrencyLimitBuilder::shutdown).assemble(name)
            }),
            lent,
            timeout: self.timeout,
            body: self.body,
            kind: self.kind,
        };
        Ok(Policy { parts: Spread::new(parts) })
    }
}

/// A part that knows of the shutdown, if there is one.
fn told<B>(shutdown: Option<&shutdown::Handle>, part: B, tell: fn(B, &shutdown::Handle) -> B) -> B {
    match shutdown {
        Some(handle) => tell(part, handle),
        None => part,
    }
}

impl<C, R, H> PolicyBuilder<Kind<C, R, H>> {
    /// Judges outcomes by a classifier of your own. A closure whose argument's type is
    /// not written out wants to be wrapped in [`classify::from_fn`](crate::classify::from_fn), which pins it down.
    pub fn classify<C2>(self, classify: C2) -> PolicyBuilder<Kind<C2, R, H>> {
        self.with_kind(|kind| kind.with_classify(classify))
    }

    /// Repeats requests by a [strategy](crate::retry::Repeat) of your own.
    pub fn repeat<R2>(self, repeat: R2) -> PolicyBuilder<Kind<C, R2, H>> {
        self.with_kind(|kind| kind.with_repeat(repeat))
    }

    /// How long a call lasts: [`UntilHeaders`](crate::UntilHeaders), or `http::UntilBody`, with which the deadline goes on
    /// into the response's body.
    pub fn hold<H2>(self, hold: H2) -> PolicyBuilder<Kind<C, R, H2>> {
        self.with_kind(|kind| kind.with_hold(hold))
    }

    fn with_kind<K2>(self, with: impl FnOnce(Kind<C, R, H>) -> K2) -> PolicyBuilder<K2> {
        let Self { name, deadline, retry, breaker, throttle, limit, timeout, hedge, body, seed, shutdown, kind } = self;
        let kind = with(kind);
        PolicyBuilder { name, deadline, retry, breaker, throttle, limit, timeout, hedge, body, seed, shutdown, kind }
    }
}

#[cfg(feature = "http")]
impl<C, R, T> PolicyBuilder<Kind<C, R, crate::http::UntilBody<T>>> {
    /// How long the response's body may be silent, between one piece and the next; a body that is cut off fails with the
    /// [`Rejection`](crate::Rejection), for [`Timeout`](crate::Reason::Timeout). Counted while its reader waits for it.
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    pub fn body_idle_timeout(mut self, time: Duration) -> Self {
        self.body.idle = Some(time);
        self
    }

    /// How long its reader may wait for the body in all; what the reader does in between does not count. The
    /// [deadline](Self::deadline) goes on into the body in any case.
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    pub fn body_timeout(mut self, time: Duration) -> Self {
        self.body.whole = Some(time);
        self
    }
}
