//! What the compiler knows of the contract: bounds, names and sizes.

use std::{
    any::type_name,
    cell::Cell,
    convert::Infallible,
    marker::PhantomData,
    rc::Rc,
    task::{Context, Poll},
};

use buttress::{
    CircuitBreaker, CircuitBreakerService, Cloned, ConcurrencyLimit, ConcurrencyLimitService, Deadline, DeadlineLayer,
    DeadlineService, Error, Plain, Policy, PolicyService, Rejection, Retry, RetryService, SlowPoll, Timeout,
    TimeoutService,
};
use tower::{Layer, Service};

use crate::support::{Echo, ms, secs};

/// Neither `Clone`, `Debug`, `Send`, `Sync` nor anything else.
pub(super) struct Bare<T>(PhantomData<(Rc<Cell<()>>, T)>);
pub(super) struct Req;
pub(super) struct Res;
pub(super) struct Fail;

impl<T> Bare<T> {
    fn new() -> Self {
        Self(PhantomData)
    }
}

/// Asks the least of its own types that a service can.
pub(super) struct Bland;

impl Clone for Bland {
    fn clone(&self) -> Self {
        Self
    }
}

impl Service<Bare<Req>> for Bland {
    type Response = Bare<Res>;
    type Error = Error<Bare<Fail>>;
    type Future = std::future::Ready<Result<Bare<Res>, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Bare<Req>) -> Self::Future {
        std::future::ready(Ok(Bare::new()))
    }
}

async fn serves<S>(mut service: S)
where
    S: Service<Bare<Req>, Response = Bare<Res>, Error = Error<Bare<Fail>>>,
{
    std::future::poll_fn(|cx| service.poll_ready(cx)).await.map_err(drop).unwrap();
    let _: Bare<Res> = service.call(Bare::new()).await.map_err(drop).unwrap();
}

fn a_policy() -> buttress::PolicyBuilder<Plain> {
    Policy::plain("all")
        .deadline(secs(5))
        .retry(Retry::constant(ms(1)))
        .circuit_breaker(CircuitBreaker::builder())
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(8))
        .timeout(secs(1))
}

// HAZARD: C9, C15
#[tokio::test]
async fn nothing_is_asked_of_requests_responses_and_errors() {
    serves(Timeout::new(secs(1)).layer().layer(Bland)).await;
    serves(DeadlineLayer::new(secs(1)).layer(Bland)).await;
    serves(SlowPoll::new("bland", secs(1)).layer().layer(Bland)).await;
    serves(Retry::constant(ms(1)).build().unwrap().layer_with(Plain::default()).layer(Bland)).await;
    serves(CircuitBreaker::builder().build().unwrap().layer().layer(Bland)).await;
    serves(ConcurrencyLimit::builder().max_in_flight(1).build().unwrap().layer().layer(Bland)).await;
    serves(a_policy().build().unwrap().layer().layer(Bland)).await;

    let answer = a_policy().build().unwrap().call(|| async { Err::<Bare<Res>, _>(Bare::<Fail>::new()) }).await;
    assert!(matches!(answer, Err(Error::Inner(_))), "nor of what closures return");
}

/// A service that cannot be cloned.
struct Once;

impl Service<u64> for Once {
    type Response = u64;
    type Error = Error<Infallible>;
    type Future = std::future::Ready<Result<u64, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: u64) -> Self::Future {
        std::future::ready(Ok(req))
    }
}

// HAZARD: C9
#[tokio::test]
async fn a_timeout_does_not_ask_for_clone_of_its_service() {
    assert_eq!(Timeout::new(secs(1)).layer().layer(Once).call(7).await, Ok(7));
}

fn shareable<T: Clone + Send + Sync + 'static>(value: T) -> T {
    value
}

fn sendable<T: Send>(value: T) -> T {
    value
}

// HAZARD: C14
#[tokio::test]
async fn everything_can_be_cloned_shared_and_sent() {
    let (timeout, deadline) = (shareable(Timeout::new(secs(1))), shareable(Deadline::after(secs(1))));
    let breaker = shareable(CircuitBreaker::builder().build().unwrap());
    let limit = shareable(ConcurrencyLimit::builder().max_in_flight(1).build().unwrap());
    let retry = shareable(Retry::constant(ms(1)).build().unwrap());
    let policy = shareable(a_policy().build().unwrap());
    shareable(retry.budget().cloned());
    let _ = shareable(a_policy());
    shareable(policy.wrap(tower::service_fn(|()| async { Ok::<_, Infallible>(()) })));
    macro_rules! services {
        ($($layer:expr),*) => { $(sendable(shareable(shareable($layer).layer(Echo)).call(1)).await.unwrap();)* };
    }
    services![
        timeout.layer(),
        DeadlineLayer::new(secs(1)),
        breaker.layer(),
        limit.layer(),
        retry.layer(),
        policy.layer()
    ];

    drop(sendable(sendable(breaker.try_acquire()).unwrap()));
    drop(sendable(sendable(limit.acquire()).await.unwrap()));
    let fine = || async { Ok::<_, std::fmt::Error>(1) };
    sendable(timeout.call(fine())).await.unwrap();
    sendable(deadline.enforce(fine())).await.unwrap();
    sendable(breaker.call(fine())).await.unwrap();
    sendable(limit.call(fine())).await.unwrap();
    sendable(retry.run(|_| fine())).await.unwrap();
    sendable(policy.call(fine)).await.unwrap();
    sendable(policy.layer().layer(Echo).send(1)).await.unwrap();
}

/// Boxed things are named with a `Box` or are `dyn` something; strings and closures would show as well.
fn is_flat<S: Service<u64>>() {
    let name = type_name::<S::Future>();
    for boxed in ["Box<", "dyn ", "String", "Vec<"] {
        assert!(!name.contains(boxed), "{name}");
    }
}

// HAZARD: C10
#[test]
fn futures_are_named_and_flat() {
    is_flat::<TimeoutService<Echo>>();
    is_flat::<DeadlineService<Echo>>();
    is_flat::<RetryService<Echo>>();
    is_flat::<CircuitBreakerService<Echo>>();
    is_flat::<ConcurrencyLimitService<Echo>>();
    is_flat::<PolicyService<Echo, Cloned>>();
    is_flat::<PolicyService<Echo, Plain>>();
}

// HAZARD: C10
#[test]
fn a_rejection_is_plain_data() {
    fn plain<T: Copy + Send + Sync + 'static>() {}
    plain::<Rejection>();
}

#[cfg(feature = "http")]
mod in_axum {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use axum::{
        Router,
        body::{Body, to_bytes},
        http::{Request, Response, StatusCode, header::RETRY_AFTER},
        routing::post,
    };
    use buttress::http::ByStatus;
    use tower::ServiceExt;

    use super::*;

    /// Counts the requests, and answers with their bodies and this status.
    fn echoing(calls: &Arc<AtomicUsize>, status: StatusCode) -> Router {
        let calls = calls.clone();
        Router::new().route(
            "/",
            post(move |req: Request<Body>| async move {
                calls.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
                (status, req.into_body())
            }),
        )
    }

    fn request() -> Request<Body> {
        Request::post("/").body(Body::from("once")).unwrap()
    }

    async fn text(response: Response<Body>) -> String {
        String::from_utf8(to_bytes(response.into_body(), 100).await.unwrap().to_vec()).unwrap()
    }

    // HAZARD: C14, C15, R6
    #[tokio::test(start_paused = true)]
    async fn a_request_with_a_body_passes_through_a_policy_in_a_router_and_is_sent_once() {
        let (calls, breaker) = (Arc::default(), CircuitBreaker::builder().build().unwrap());
        let policy = a_policy().circuit_breaker(&breaker).classify(ByStatus).build().unwrap();
        let router = echoing(&calls, StatusCode::INTERNAL_SERVER_ERROR).layer(policy.layer());
        let response = router.oneshot(request()).await.unwrap();
        assert_eq!((response.status(), text(response).await.as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "once"));
        assert_eq!(calls.load(SeqCst), 1, "retry is on, but the request cannot be repeated");
        assert_eq!(breaker.snapshot().failures, 1);
    }

    // HAZARD: C3, C15
    #[tokio::test(start_paused = true)]
    async fn single_layers_fit_a_router_and_their_state_is_shared_by_its_clones() {
        let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
        let breaker = CircuitBreaker::builder().build().unwrap();
        let calls = Arc::default();
        let router = echoing(&calls, StatusCode::OK)
            .layer(Timeout::new(secs(1)).layer())
            .layer(limit.layer())
            .layer(breaker.layer_with(ByStatus))
            .layer(Retry::constant(ms(1)).build().unwrap().layer_with(Plain::default()))
            .layer(DeadlineLayer::new(secs(2)));
        let held = limit.try_acquire().unwrap();
        let refused = router.clone().oneshot(request()).await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.extensions().get::<Rejection>().is_some());
        drop(held);
        assert_eq!(text(router.clone().oneshot(request()).await.unwrap()).await, "once");
        breaker.force_open();
        assert_eq!(router.clone().oneshot(request()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(calls.load(SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_router_says_when_to_come_back_in_whole_seconds_never_too_soon() {
        let open_time = buttress::Backoff::constant(ms(1_500)).jitter(buttress::Jitter::None);
        let breaker = CircuitBreaker::builder().consecutive_failures(1).open_time(open_time).build().unwrap();
        let calls = Arc::default();
        let router = echoing(&calls, StatusCode::BAD_GATEWAY).layer(breaker.layer_with(ByStatus));
        assert_eq!(router.clone().oneshot(request()).await.unwrap().status(), StatusCode::BAD_GATEWAY);
        let refused = router.oneshot(request()).await.unwrap();
        assert_eq!(
            (refused.status(), &refused.headers()[RETRY_AFTER]),
            (StatusCode::SERVICE_UNAVAILABLE, &"2".parse().unwrap())
        );
        assert_eq!(text(refused).await, "");
    }
}
