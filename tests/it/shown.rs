//! What can be seen of things from outside: what `{:?}` shows where it is logged, and the service below.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

use buttress::{
    Backoff, CircuitBreaker, ConcurrencyLimit, DeadlineLayer, Error, Jitter, Keyed, LiftLayer, Policy, Retry, Rule,
    Shutdown, Throttle, Timeout,
    shutdown::{Closed, Force, Signal, State},
};
use tokio::{
    sync::{Mutex, mpsc},
    time::advance,
};
use tower::{Layer, Service};

use crate::support::{Boxed, Echo, ms, secs};

fn shown(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}")
}

// ---------------------------------------------------------------- handles

#[tokio::test(start_paused = true)]
async fn handles_show_their_name_and_where_they_stand() {
    let breaker = CircuitBreaker::builder().name("stock").build().unwrap();
    breaker.force_open();
    assert_eq!(shown(&breaker), r#"CircuitBreaker { name: "stock", state: ForcedOpen }"#);

    let limit = ConcurrencyLimit::builder().name("stock").max_in_flight(1).build().unwrap();
    let _held = limit.try_acquire().unwrap();
    let expected = r#"ConcurrencyLimit { name: "stock", in_flight: 1, max_in_flight: 1, waiting: 0 }"#;
    assert_eq!(shown(&limit), expected);
    let refused = limit.try_acquire().unwrap_err();
    let expected = "Rejection { name: \"stock\", retry_after: None, measured: Some(1.0), threshold: Some(1.0), \
                    reason: Overloaded, rule: LimitReached }";
    assert_eq!((refused.rule(), shown(&refused).as_str()), (Rule::LimitReached, expected));

    let throttle = Throttle::google().name("stock").build().unwrap();
    assert_eq!(shown(&throttle), r#"Throttle { name: "stock", refuses: false }"#);

    let policy = Policy::plain("api").deadline(secs(1)).circuit_breaker(&breaker).timeout(ms(100)).build().unwrap();
    let expected = "Policy { name: \"api\", deadline: Some(1s), retry: None, \
                    circuit_breaker: Some(CircuitBreaker { name: \"stock\", state: ForcedOpen }), throttle: None, \
                    concurrency_limit: None, timeout: Some(100ms), hedge: None, .. }";
    assert_eq!((policy.name(), shown(&policy).as_str()), ("api", expected));
    assert_eq!(Timeout::new(ms(100)).duration(), ms(100));

    let hosts: Keyed<u32, _> = Keyed::each(CircuitBreaker::builder()).max_keys(8).build().unwrap();
    assert!(hosts.is_empty());
    let _held = hosts.get(&1);
    assert!(!hosts.is_empty());
    assert_eq!(shown(&hosts), "Keyed { keys: 1, max_keys: 8, overflowed: 0, .. }");

    let shutdown = Shutdown::builder().build().unwrap();
    let _guard = shutdown.handle().guard("socket").unwrap();
    let expected = "Shutdown { state: Starting, in_flight: 1, connections: 0, .. }";
    assert_eq!((shown(&shutdown).as_str(), shown(&shutdown.handle()).as_str()), (expected, expected));
    assert!(shown(&shutdown.handle().condition("migrated")).contains("\"migrated\""));
    assert_eq!(Closed.to_string(), "shutting down: nothing new is admitted");
}

#[test]
fn builders_show_what_was_set() {
    let breaker = CircuitBreaker::builder().window_calls(77);
    let shows = shown(&breaker);
    assert!(
        shows.starts_with("CircuitBreakerBuilder { span: Calls(77)") && shows.contains("listener: false"),
        "{shows}"
    );
    assert!(shown(&breaker.on_transition(|_| {})).contains("listener: true"));

    let shows = shown(&Keyed::<u32, _>::each(Retry::constant(ms(1))).max_keys(77));
    assert!(shows.starts_with("KeyedBuilder { max_keys: 77"), "{shows}");

    let shows = shown(&Shutdown::builder().phase("workers", secs(77)));
    assert!(shows.contains("\"workers\"") && shows.contains("77s"), "{shows}");
}

#[test]
fn what_begins_and_forces_a_shutdown_and_where_it_stands_has_names() {
    let signals = [Signal::Terminate, Signal::Interrupt, Signal::Quit, Signal::Hangup, Signal::Other(12)];
    assert_eq!(signals.map(|signal| signal.to_string()), ["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "signal 12"]);
    let forces = [Force::Deadline, Force::Signal(Signal::Quit), Force::Asked, Force::Dropped, Force::RuntimeGone];
    let expected =
        ["its total time", "a second signal, SIGQUIT", "request", "the drop of `Shutdown`", "the end of its runtime"];
    assert_eq!(forces.map(|force| force.to_string()), expected);
    let states = [State::Starting, State::Running, State::Draining, State::Stopping, State::Forced, State::Done];
    let expected = ["starting", "running", "draining", "stopping", "forced", "done"];
    assert_eq!(states.map(State::as_str), expected);
}

// ---------------------------------------------------------------- calls

/// Is ready when it is open, and answers what it is told.
#[derive(Clone, Debug)]
struct Staged {
    open: Arc<AtomicBool>,
    answers: Arc<Mutex<mpsc::UnboundedReceiver<Result<(), Error<&'static str>>>>>,
}

impl Service<()> for Staged {
    type Response = ();
    type Error = Error<&'static str>;
    type Future = Boxed<Result<(), Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.open.load(SeqCst) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let answers = self.answers.clone();
        Box::pin(async move { answers.lock().await.recv().await.unwrap() })
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_shows_where_it_stands() {
    let retry = Retry::with(Backoff::constant(ms(50)).jitter(Jitter::None)).max_attempts(2);
    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(1);
    let policy = Policy::cloned("api").retry(retry).concurrency_limit(limit).build().unwrap();
    let (answer, answers) = mpsc::unbounded_channel();
    let staged = Staged { open: Arc::default(), answers: Arc::new(Mutex::new(answers)) };
    let mut service = policy.layer().layer(staged.clone());
    let mut cx = Context::from_waker(Waker::noop());
    let at = |state: &str| format!(r#"ResponseFuture {{ name: "api", state: "{state}", .. }}"#);

    let held = policy.concurrency_limit().unwrap().try_acquire().unwrap();
    let mut call = Box::pin(service.call(()));
    assert_eq!(shown(&call), at("queued"));
    let mut refused = Box::pin(service.call(()));
    assert_eq!(shown(&refused), r#"ResponseFuture { state: "rejected", .. }"#, "of a call that holds nothing");

    let breaker = CircuitBreaker::builder().name("stock").build().unwrap();
    let expected = r#"ResponseFuture { name: "stock", state: "running", .. }"#;
    assert_eq!(shown(&breaker.layer().layer(Echo).call(1)), expected, "of a layer alone");
    assert!(refused.as_mut().poll(&mut cx).is_ready());

    drop(held);
    assert!(call.as_mut().poll(&mut cx).is_pending());
    assert_eq!(shown(&call), at("readying"));
    staged.open.store(true, SeqCst);
    assert!(call.as_mut().poll(&mut cx).is_pending());
    assert_eq!(shown(&call), at("running"));
    answer.send(Err(Error::Inner("no"))).unwrap();
    assert!(call.as_mut().poll(&mut cx).is_pending());
    assert_eq!(shown(&call), at("backoff"));
    advance(ms(50)).await;
    answer.send(Ok(())).unwrap();
    assert_eq!(call.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
    assert_eq!(shown(&call), at("done"));
}

// ---------------------------------------------------------------- services

#[tokio::test(start_paused = true)]
async fn services_show_and_give_back_what_they_guard() {
    macro_rules! check {
        ($($layer:expr),*) => { $(
            let mut service = $layer.layer(Echo);
            assert!(shown(&service).ends_with("inner: Echo }"), "{service:?}");
            let _: (&Echo, &mut Echo) = (service.clone().get_ref(), service.get_mut());
            assert_eq!(service.into_inner().call(7).await, Ok(7));
        )* };
    }
    let policy = Policy::cloned("api").timeout(secs(1)).build().unwrap();
    check![
        Timeout::new(secs(1)).layer(),
        DeadlineLayer::new(secs(1)),
        Retry::constant(ms(1)).build().unwrap().layer(),
        CircuitBreaker::builder().build().unwrap().layer(),
        ConcurrencyLimit::builder().max_in_flight(1).build().unwrap().layer(),
        policy.layer()
    ];
    let lifted = LiftLayer.layer(Echo);
    let _: &Echo = lifted.get_ref();
    assert_eq!(lifted.into_inner().call(7).await, Ok(7));

    let shutdown = Shutdown::builder().build().unwrap();
    let counted = shutdown.handle().layer().named("rpc").layer(Echo);
    let expected = "InFlightService { name: \"rpc\", shutdown: Shutdown { state: Starting, in_flight: 0, \
                    connections: 0, .. }, inner: Echo }";
    assert_eq!(shown(&counted), expected);
    assert_eq!(counted.get_ref().clone().call(7).await, Ok(7));
}

#[cfg(feature = "http")]
#[tokio::test(start_paused = true)]
async fn services_and_bodies_of_http_show_and_give_back_what_they_guard() {
    use std::convert::Infallible;

    use axum::{
        body::Body,
        http::{Request, Response, Version},
    };
    use buttress::http::{ReadDeadlineLayer, ReplayLayer, RespondLayer, WriteDeadlineLayer};
    use http_body_util::BodyExt;
    use tower::service_fn;

    let _: &Echo = ReadDeadlineLayer::new().layer(Echo).get_ref();
    let _: &Echo = WriteDeadlineLayer::new().layer(Echo).get_ref();
    let _: &Echo = ReplayLayer::default().layer(Echo).get_ref();
    let respond = RespondLayer::<String>::new();
    assert!(shown(&respond).starts_with("RespondLayer(Render {"), "{respond:?}");
    let _: &Echo = respond.layer(Echo).get_ref();

    let hello = service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Body::from("hello"))));
    let policy = Policy::http_server("api").deadline(secs(1)).build().unwrap();
    let mut body = policy.layer().layer(hello).send(Request::new(Body::empty())).await.unwrap().into_body();
    assert!(body.get_ref().is_some());
    assert!(shown(&body).contains(r#"name: "api""#), "{body:?}");
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");

    // A body that can be replayed shows how far it is; a request that is sent through the layer itself reads it.
    let length = service_fn(async |req: Request<buttress::http::Replay<Body>>| {
        assert!(shown(req.body()).starts_with("Replay { at: "), "{:?}", req.body());
        Ok::<_, Infallible>((req.version(), req.into_body().collect().await.unwrap().to_bytes().len()))
    });
    let sent = ReplayLayer::default().layer(length).send(Request::new(Body::from("hello"))).await;
    assert_eq!(sent, Ok((Version::HTTP_11, 5)));
}
