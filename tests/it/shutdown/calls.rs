//! Calls in flight: which are admitted, how long each counts, and what is refused.
#![allow(clippy::disallowed_methods)] // tokio's clock, to measure on it what a shutdown took

use std::{
    convert::Infallible,
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use buttress::{
    Error, Reason, Rule,
    shutdown::{Closed, State},
};
use tokio::time::{sleep, timeout};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};

use super::life::{assert_took, prompt};
use crate::support::{Counts, Echo, secs, settle};

// ---------------------------------------------------------------- any protocol

// SHUTDOWN: 1
#[tokio::test(start_paused = true)]
async fn a_call_that_was_admitted_before_the_gate_closed_completes_and_is_counted() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let slow = service_fn(|n: u64| async move {
        sleep(secs(4)).await;
        Ok::<_, Error<Infallible>>(n)
    });
    let service = handle.layer().layer(slow);
    let calls = [tokio::spawn(service.send(1)), tokio::spawn(service.send(2))];
    settle().await;
    assert_eq!(handle.in_flight(), 2);
    handle.trigger("deploy");
    handle.stopping().await;
    assert_eq!(handle.in_flight(), 2);
    let report = shutdown.wait().await;
    for (call, n) in calls.into_iter().zip(1..) {
        assert_eq!(call.await.unwrap(), Ok(n));
    }
    assert_took(report.elapsed, secs(4));
    assert_eq!((report.drained, report.rejected, report.left, report.exit_code()), (2, 0, 0, 0));
}

// SHUTDOWN: 6
#[tokio::test(start_paused = true)]
async fn once_the_gate_is_closed_the_service_is_not_called() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let counts = Counts::default();
    let inner = {
        let counts = counts.clone();
        service_fn(move |()| {
            counts.enter();
            async { Ok::<_, Error<Infallible>>(()) }
        })
    };
    let service = handle.layer().named("rpc").retry_after(secs(7)).layer(inner);
    service.send(()).await.unwrap();
    let _held = handle.guard("held").unwrap();
    handle.trigger("deploy");
    service.send(()).await.expect("the driver has not closed the gate yet");
    handle.stopping().await;
    for _ in 0..3 {
        let error = service.send(()).await.unwrap_err();
        let refused = error.rejection().unwrap();
        assert_eq!((refused.reason(), refused.rule(), refused.name()), (Reason::ShuttingDown, Rule::Stopping, "rpc"));
        assert_eq!(refused.retry_after(), Some(secs(7)));
        assert_eq!(refused.to_string(), "`rpc` is shutting down: nothing new is admitted; retry after 7.0s");
    }
    assert_eq!((counts.calls(), handle.in_flight()), (2, 1));
    handle.force();
    assert_eq!(shutdown.wait().await.rejected, 3);
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_gives_the_readiness_below_back() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let limited = ConcurrencyLimitLayer::new(1).layer(Echo);
    let mut service = handle.layer().layer(limited);
    let mut other = service.clone();
    assert_ready_ok!(task::spawn(()).enter(|cx, _| service.poll_ready(cx)));
    handle.force();
    let refused = service.call(1).await;
    assert!(refused.is_err());
    // The permit that `service` reserved is free, though `service` lives.
    assert_ready_ok!(task::spawn(()).enter(|cx, _| other.poll_ready(cx)));
}

// SHUTDOWN: 13
#[tokio::test(start_paused = true)]
async fn a_call_is_in_flight_from_call_until_its_future_ends_or_is_dropped() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let mut hangs = handle.layer().layer(service_fn(|()| pending::<Result<(), Error<Infallible>>>()));
    let mut echo = handle.layer().layer(Echo);

    let not_polled = hangs.ready().await.unwrap().call(());
    assert_eq!(handle.in_flight(), 1, "it is admitted in `call`");
    drop(not_polled);
    assert_eq!(handle.in_flight(), 0);

    let mut call = task::spawn(hangs.call(()));
    assert_pending!(call.poll());
    assert_eq!(handle.in_flight(), 1);
    drop(call);
    assert_eq!(handle.in_flight(), 0);

    let mut call = task::spawn(echo.call(3));
    assert_eq!(assert_ready!(call.poll()), Ok(3));
    assert_eq!(handle.in_flight(), 0, "though the future is kept");
    drop(call);
    assert_eq!(handle.in_flight(), 0, "and not given back twice");

    // Readying counts nothing.
    assert_ready_ok!(task::spawn(()).enter(|cx, _| echo.poll_ready(cx)));
    assert_eq!(handle.in_flight(), 0);
}

// SHUTDOWN: 14
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_call_or_in_its_future_lets_go_of_it() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let mut panics = handle.layer().layer(service_fn(|at_once: bool| {
        assert!(!at_once, "in the call");
        async { if true { panic!("in the future") } else { Ok::<_, Error<Infallible>>(()) } }
    }));
    let caught = catch_unwind(AssertUnwindSafe(|| drop(panics.call(true))));
    assert!(caught.is_err());
    assert_eq!(handle.in_flight(), 0);
    let joined = tokio::spawn(panics.call(false)).await;
    assert!(joined.unwrap_err().is_panic());
    assert_eq!(handle.in_flight(), 0);
    handle.trigger("deploy");
    assert!(shutdown.wait().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_polled_again_after_its_answer_says_so() {
    let shutdown = prompt().build().unwrap();
    let mut call = task::spawn(shutdown.handle().layer().layer(Echo).call(1));
    assert!(call.poll().is_ready());
    let again = catch_unwind(AssertUnwindSafe(|| call.poll().is_ready())).unwrap_err();
    assert_eq!(again.downcast_ref::<&str>(), Some(&"a response future was polled after completion"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_because_it_was_forced_is_named() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let hangs = || service_fn(|()| pending::<Result<(), Error<Infallible>>>());
    let (calls, events) = (handle.layer().layer(hangs()), handle.layer().named("events").layer(hangs()));
    let calls = [tokio::spawn(calls.send(())), tokio::spawn(events.send(())), tokio::spawn(events.send(()))];
    let client_gone = tokio::spawn(handle.layer().layer(hangs()).send(()));
    settle().await;
    handle.trigger("deploy");
    settle().await;
    client_gone.abort();
    settle().await;
    handle.force();
    for call in calls {
        call.abort();
    }
    let report = shutdown.wait().await;
    assert_eq!(report.cut, [("calls", 1), ("events", 2)]);
    assert_eq!((report.drained, report.left), (1, 0), "the client that went away before it was forced has drained");
    assert_eq!(
        report.to_string(),
        "shutdown by deploy: forced by request, after 0.0s (calls 0.0s, overran); calls: 1 drained, 0 rejected\
         \n  1 of `calls` did not end in time and were dropped\
         \n  2 of `events` did not end in time and were dropped",
    );
}

// SHUTDOWN: 2
#[test]
fn each_call_against_the_close_is_served_and_awaited_or_refused() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let mut totals = (0, 0);
    for round in 0_u32..400 {
        let shutdown = runtime.block_on(async { prompt().build().unwrap() });
        let handle = shutdown.handle();
        let (running, after) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let inner = {
            let (handle, running, after) = (handle.clone(), running.clone(), after.clone());
            service_fn(move |yields: u32| {
                let (handle, running, after) = (handle.clone(), running.clone(), after.clone());
                async move {
                    running.fetch_add(1, SeqCst);
                    let mut late = handle.state() == State::Done;
                    for _ in 0..yields {
                        tokio::task::yield_now().await;
                    }
                    late |= handle.state() == State::Done;
                    after.fetch_add(usize::from(late), SeqCst);
                    running.fetch_sub(1, SeqCst);
                    Ok::<_, Error<Infallible>>(())
                }
            })
        };
        let service = handle.layer().layer(inner);
        let start = Arc::new(Barrier::new(4));
        // Two threads of their own, and many tasks.
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (service, start, runtime) = (service.clone(), start.clone(), runtime.handle().clone());
                thread::spawn(move || {
                    start.wait();
                    let outcomes = (0..50).map(|n| runtime.block_on(service.send(n % 3)));
                    outcomes.map(|outcome| outcome.is_ok()).collect::<Vec<_>>()
                })
            })
            .collect();
        let spawner = {
            let (service, start, runtime) = (service.clone(), start.clone(), runtime.handle().clone());
            thread::spawn(move || {
                start.wait();
                (0..50).map(|n| runtime.spawn(service.send(n % 5))).collect::<Vec<_>>()
            })
        };
        start.wait();
        for _ in 0..round * 20 {
            std::hint::spin_loop();
        }
        handle.trigger("deploy");
        let report = runtime.block_on(async { timeout(secs(30), shutdown.wait()).await.expect("it hangs") });
        assert_eq!(running.load(SeqCst), 0, "round {round}: a call runs when the report is there");

        let mut outcomes: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        for call in spawner.join().unwrap() {
            let outcome = runtime.block_on(call).unwrap();
            if let Err(error) = &outcome {
                assert_eq!(error.rejection().unwrap().rule(), Rule::Stopping);
            }
            outcomes.push(outcome.is_ok());
        }
        let served = outcomes.iter().filter(|served| **served).count();
        let refused = outcomes.len() - served;
        assert_eq!(outcomes.len(), 150, "none is lost");
        assert_eq!(after.load(SeqCst), 0, "round {round}: a call ran after the report");
        assert_eq!((report.left, handle.in_flight()), (0, 0), "round {round}");
        assert!(report.drained <= served && report.rejected as usize <= refused, "{report}");
        assert_eq!(report.exit_code(), 0, "{report}");
        totals = (totals.0 + served, totals.1 + refused);
    }
    assert!(totals.0 > 0 && totals.1 > 0, "it was no race: {totals:?}");
}

// SHUTDOWN: 2
// More threads than there are cores: the close finds some of them stopped anywhere in `call`.
#[test]
fn of_many_threads_on_few_cores_none_is_admitted_and_not_awaited() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for round in 0..300 {
        let shutdown = runtime.block_on(async { prompt().build().unwrap() });
        let (start, late) = (Barrier::new(9), AtomicUsize::new(0));
        let report = thread::scope(|scope| {
            for _ in 0..8 {
                let (handle, start, late) = (shutdown.handle(), &start, &late);
                scope.spawn(move || {
                    let mut service = handle.layer().layer(Echo);
                    start.wait();
                    loop {
                        let mut call = task::spawn(service.call(1));
                        // Inside of the gate, if it was admitted: nobody may have made the report.
                        let done = handle.state() == State::Done;
                        if assert_ready!(call.poll()).is_err() {
                            break;
                        }
                        late.fetch_add(usize::from(done), SeqCst);
                    }
                });
            }
            start.wait();
            shutdown.handle().trigger("deploy");
            runtime.block_on(async { timeout(secs(30), shutdown.wait()).await.expect("it hangs") })
        });
        assert_eq!(late.into_inner(), 0, "round {round}");
        assert_eq!((report.left, shutdown.handle().in_flight()), (0, 0), "round {round}");
        assert_eq!(report.exit_code(), 0, "round {round}: {report}");
    }
}

// ---------------------------------------------------------------- guards

// SHUTDOWN: 27
#[tokio::test(start_paused = true)]
async fn a_guard_holds_the_drain_and_there_is_none_after_the_close() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let guard = handle.guard("websocket").unwrap();
    assert_eq!((guard.name(), handle.in_flight()), ("websocket", 1));
    handle.trigger("deploy");
    let second = handle.guard("websocket").expect("it drains, but the gate is open");
    handle.stopping().await;
    assert_eq!(handle.guard("websocket").map(drop), Err(Closed));
    // It can be moved; a panic lets go of it.
    let task = tokio::spawn(async move {
        let _second = second;
        sleep(secs(1)).await;
        panic!("a broken frame");
    });
    sleep(secs(2)).await;
    assert!(task.await.is_err());
    assert_eq!(handle.in_flight(), 1);
    drop(guard);
    let report = shutdown.wait().await;
    assert_took(report.elapsed, secs(2));
    assert_eq!((report.drained, report.rejected, report.exit_code()), (2, 0, 0));
    assert!(handle.guard("websocket").is_err());
}

// SHUTDOWN: 27
#[test]
fn a_guard_against_the_close_is_awaited_or_refused() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut totals = (0, 0);
    for round in 0_u32..400 {
        let shutdown = runtime.block_on(async { prompt().build().unwrap() });
        let (start, held) = (Barrier::new(4), AtomicUsize::new(0));
        let report = thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let (handle, start, held) = (shutdown.handle(), &start, &held);
                    scope.spawn(move || {
                        start.wait();
                        let mut admitted = 0;
                        for _ in 0..500 {
                            let Ok(guard) = handle.guard("job") else { break };
                            held.fetch_add(1, SeqCst);
                            assert_ne!(handle.state(), State::Done);
                            held.fetch_sub(1, SeqCst);
                            drop(guard);
                            admitted += 1;
                        }
                        admitted
                    })
                })
                .collect();
            start.wait();
            for _ in 0..round * 10 {
                std::hint::spin_loop();
            }
            shutdown.handle().trigger("deploy");
            let report = runtime.block_on(async { timeout(secs(30), shutdown.wait()).await.expect("it hangs") });
            assert_eq!(held.load(SeqCst), 0, "round {round}");
            for admitted in threads {
                let admitted: usize = admitted.join().unwrap();
                totals = (totals.0 + admitted, totals.1 + usize::from(admitted < 500));
            }
            report
        });
        assert_eq!((report.left, report.exit_code(), &*report.guards), (0, 0, &[][..]), "round {round}: {report}");
    }
    assert!(totals.0 > 0 && totals.1 > 0, "it was no race: {totals:?}");
}

// ---------------------------------------------------------------- http

#[cfg(feature = "http")]
mod over_http {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use axum::{
        Router,
        body::{Body, Bytes, HttpBody},
        http::{
            Method, Request, Response, StatusCode, Version,
            header::{CONNECTION, RETRY_AFTER, UPGRADE},
        },
        routing::{any, get},
    };
    use buttress::{Rejection, Shutdown, shutdown::Handle};
    use http_body_util::BodyExt;
    use hyper::body::Frame;
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::support::ms;

    fn get_at(path: &str, version: Version) -> Request<Body> {
        Request::builder().method(Method::GET).uri(path).version(version).body(Body::empty()).unwrap()
    }

    async fn ask(router: &Router, path: &str, version: Version) -> Response<Body> {
        router.clone().oneshot(get_at(path, version)).await.unwrap()
    }

    fn says_close<B>(response: &Response<B>) -> bool {
        response.headers().get(CONNECTION).is_some_and(|value| value == "close")
    }

    /// `/` counts, `/healthz` is exempt, `/readyz` is the probe.
    fn router(handle: &Handle, counts: &Counts) -> Router {
        let counts = counts.clone();
        let handler = move || {
            let counts = counts.clone();
            async move {
                counts.enter();
                "hello"
            }
        };
        Router::new()
            .route("/", get(handler.clone()))
            .route("/healthz", get(handler))
            .layer(handle.in_flight_layer().exempt("/healthz").retry_after(ms(1_500)))
            .route("/readyz", get(handle.readiness()))
    }

    // SHUTDOWN: 6
    #[tokio::test(start_paused = true)]
    async fn once_the_gate_is_closed_the_answer_is_503_with_when_to_come_back() {
        let shutdown = prompt().build().unwrap();
        let handle = shutdown.handle();
        let counts = Counts::default();
        let router = router(&handle, &counts);
        let _held = handle.guard("held").unwrap();
        handle.trigger("deploy");
        handle.stopping().await;
        for (version, close) in
            [(Version::HTTP_10, true), (Version::HTTP_11, true), (Version::HTTP_2, false), (Version::HTTP_3, false)]
        {
            let response = ask(&router, "/", version).await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[RETRY_AFTER], "2", "in whole seconds, rounded up");
            assert_eq!(says_close(&response), close, "{version:?}");
            let rejection = *response.extensions().get::<Rejection>().unwrap();
            assert_eq!((rejection.reason(), rejection.rule()), (Reason::ShuttingDown, Rule::Stopping));
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "");
        }
        assert_eq!((counts.calls(), handle.in_flight()), (0, 1));
        handle.force();
        assert_eq!(shutdown.wait().await.rejected, 4);
    }

    // SHUTDOWN: 4, 5
    #[tokio::test(start_paused = true)]
    async fn in_the_lame_duck_time_calls_are_served_and_told_to_close_over_http_1() {
        let shutdown = Shutdown::builder().build().unwrap();
        let handle = shutdown.handle();
        let router = router(&handle, &Counts::default());
        for (draining, version, close) in [
            (false, Version::HTTP_11, false),
            (true, Version::HTTP_10, true),
            (true, Version::HTTP_11, true),
            (true, Version::HTTP_2, false),
        ] {
            if draining {
                handle.trigger("deploy");
            }
            for path in ["/", "/healthz"] {
                let response = ask(&router, path, version).await;
                assert_eq!((response.status(), says_close(&response)), (StatusCode::OK, close), "{path} {version:?}");
            }
        }
        assert_eq!(handle.state(), State::Draining);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_began_before_it_drained_is_told_to_close_when_it_ends() {
        let shutdown = Shutdown::builder().build().unwrap();
        let handle = shutdown.handle();
        let (answer, answered) = oneshot::channel::<&'static str>();
        let answered = Arc::new(tokio::sync::Mutex::new(Some(answered)));
        let slow = move || async move { answered.lock().await.take().unwrap().await.unwrap() };
        let router = Router::new().route("/", get(slow)).layer(handle.in_flight_layer());
        let mut call = task::spawn(router.oneshot(get_at("/", Version::HTTP_11)));
        assert_pending!(call.poll());
        handle.trigger("deploy");
        answer.send("late").unwrap();
        assert!(says_close(&assert_ready_ok!(call.poll())));
    }

    #[tokio::test(start_paused = true)]
    async fn an_upgrade_is_not_told_to_close() {
        let shutdown = Shutdown::builder().build().unwrap();
        let handle = shutdown.handle();
        let upgrades = any(|| async {
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            response.header(CONNECTION, "upgrade").header(UPGRADE, "websocket").body(Body::empty()).unwrap()
        });
        let router = Router::new().route("/", upgrades).layer(handle.in_flight_layer());
        handle.trigger("deploy");
        let response = ask(&router, "/", Version::HTTP_11).await;
        assert_eq!(response.headers()[CONNECTION], "upgrade");
    }

    // SHUTDOWN: 7
    #[tokio::test(start_paused = true)]
    async fn the_probe_turns_before_the_first_rejection_and_what_is_exempt_is_served_to_the_end() {
        let shutdown = Shutdown::builder().build().unwrap();
        let handle = shutdown.handle();
        let counts = Counts::default();
        let router = router(&handle, &counts);
        let ask = async |path| ask(&router, path, Version::HTTP_11).await.status().as_u16();
        assert_eq!((ask("/readyz").await, ask("/").await), (503, 200), "it is still starting");
        handle.ready();
        assert_eq!((ask("/readyz").await, ask("/").await, ask("/healthz").await), (200, 200, 200));
        let held = handle.guard("held").unwrap();
        handle.signal(buttress::shutdown::Signal::Terminate);
        let mut turned = 0;
        while handle.state() == State::Draining {
            assert_eq!((ask("/readyz").await, ask("/").await, ask("/healthz").await), (503, 200, 200));
            turned += 1;
            sleep(secs(1)).await;
            settle().await;
        }
        assert_eq!(turned, 5, "for the whole lame-duck time");
        assert_eq!((ask("/readyz").await, ask("/").await, ask("/healthz").await), (503, 503, 200));
        drop(held);
        let report = shutdown.wait().await;
        assert_eq!((report.rejected, report.exit_code()), (1, 0));
        assert_eq!((ask("/readyz").await, ask("/").await, ask("/healthz").await), (503, 503, 200));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_exempt_is_this_path_and_no_other_and_does_not_count() {
        let shutdown = prompt().build().unwrap();
        let handle = shutdown.handle();
        let layer = handle.in_flight_layer().exempt("/healthz").exempt("/livez".to_owned());
        let app = Router::new().fallback(|| async { "hello" }).layer(layer);
        let mut responses = Vec::new();
        for path in ["/healthz", "/livez", "/healthz?verbose=1"] {
            responses.push(ask(&app, path, Version::HTTP_11).await);
        }
        assert_eq!(handle.in_flight(), 0, "whose bodies nobody has read");
        handle.trigger("deploy");
        let report = shutdown.wait().await;
        assert_eq!((report.drained, report.exit_code()), (0, 0));
        for (path, status) in
            [("/healthz?verbose=1", 200), ("/livez", 200), ("/healthz/", 503), ("/Healthz", 503), ("/health", 503)]
        {
            assert_eq!(ask(&app, path, Version::HTTP_11).await.status(), status, "{path}");
        }
    }

    // SHUTDOWN: 13
    #[tokio::test(start_paused = true)]
    async fn a_call_counts_until_its_body_has_ended() {
        let shutdown = prompt().build().unwrap();
        let handle = shutdown.handle();
        let (send, chunks) = mpsc::channel::<Result<Bytes, Infallible>>(1);
        let chunks = Arc::new(std::sync::Mutex::new(Some(chunks)));
        let streams = get(move || async move {
            let chunks = chunks.lock().unwrap().take().unwrap();
            Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(chunks))
        });
        let router = Router::new().route("/", streams).layer(handle.in_flight_layer());
        let mut body = ask(&router, "/", Version::HTTP_11).await.into_body();
        assert_eq!(handle.in_flight(), 1);
        handle.trigger("deploy");
        for n in 1..=3 {
            sleep(secs(1)).await;
            send.send(Ok(Bytes::from_static(b"data"))).await.unwrap();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data");
            assert_eq!((handle.state(), handle.in_flight()), (State::Stopping, 1), "chunk {n}");
        }
        drop(send);
        assert!(body.frame().await.is_none());
        assert_eq!(handle.in_flight(), 0, "though the body is kept");
        let report = shutdown.wait().await;
        assert_took(report.elapsed, secs(3));
        assert_eq!((report.drained, report.left, report.exit_code()), (1, 0, 0));
        drop(body);
        assert_eq!(handle.in_flight(), 0);
    }

    /// A body of one frame, and then of trouble.
    struct Troubled {
        sent: bool,
        panics: bool,
    }

    impl HttpBody for Troubled {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            if !self.sent {
                self.sent = true;
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"data")))));
            }
            assert!(!self.panics, "in the body");
            Poll::Ready(Some(Err(axum::Error::new("broken pipe"))))
        }
    }

    // SHUTDOWN: 13, 14
    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_dropped_half_way_panics_or_fails_lets_go_of_its_call() {
        for (panics, read) in [(false, false), (true, false), (true, true), (false, true)] {
            let shutdown = prompt().build().unwrap();
            let handle = shutdown.handle();
            let handler = get(move || async move { Body::new(Troubled { sent: false, panics }) });
            let router = Router::new().route("/", handler).layer(handle.in_flight_layer());
            let mut body = ask(&router, "/", Version::HTTP_11).await.into_body();
            assert!(body.frame().await.unwrap().is_ok());
            assert_eq!(handle.in_flight(), 1);
            handle.trigger("deploy");
            settle().await;
            assert_eq!(handle.state(), State::Stopping);
            match (read, panics) {
                (false, _) => drop(body),
                (true, false) => {
                    assert!(body.frame().await.unwrap().is_err());
                    assert_eq!(handle.in_flight(), 0, "a body that failed has ended");
                }
                (true, true) => {
                    let reader = tokio::spawn(async move { drop(body.frame().await) });
                    assert!(reader.await.unwrap_err().is_panic());
                }
            }
            assert_eq!(handle.in_flight(), 0);
            let report = shutdown.wait().await;
            assert_eq!((report.drained, report.left, report.exit_code()), (1, 0, 0));
        }
    }

    // SHUTDOWN: 13, 14
    #[tokio::test(start_paused = true)]
    async fn a_handler_that_panics_or_whose_client_is_gone_lets_go_of_its_call() {
        let shutdown = prompt().build().unwrap();
        let handle = shutdown.handle();
        let panics = || async {
            tokio::task::yield_now().await;
            if true {
                panic!("in the handler");
            }
        };
        let app = Router::new()
            .route("/panics", get(panics))
            .route("/hangs", get(pending::<()>))
            .layer(handle.in_flight_layer());
        let call = tokio::spawn(app.clone().oneshot(get_at("/panics", Version::HTTP_11)));
        assert!(call.await.unwrap_err().is_panic());
        assert_eq!(handle.in_flight(), 0);
        let call = tokio::spawn(app.oneshot(get_at("/hangs", Version::HTTP_11)));
        settle().await;
        assert_eq!(handle.in_flight(), 1);
        call.abort();
        settle().await;
        assert_eq!(handle.in_flight(), 0);
        handle.trigger("deploy");
        assert!(shutdown.wait().await.is_clean());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_cut_because_it_was_forced_is_named() {
        let shutdown = prompt().build().unwrap();
        let handle = shutdown.handle();
        let handler = get(|| async { Body::new(Troubled { sent: false, panics: false }) });
        let router = Router::new().route("/", handler).layer(handle.in_flight_layer().named("events"));
        let response = ask(&router, "/", Version::HTTP_11).await;
        handle.force();
        drop(response);
        let report = shutdown.wait().await;
        assert_eq!((&*report.cut, report.drained, report.left), (&[("events", 1)][..], 0, 0));
    }

    // hyper asks a body whether it is at its end, and then neither polls nor keeps it.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_was_taken_to_its_end_is_not_cut_when_it_is_dropped() {
        let shutdown = prompt().build().unwrap();
        let handle = shutdown.handle();
        let app = Router::new().route("/full", get(|| async { "hello" })).layer(handle.in_flight_layer());
        let mut full = ask(&app, "/full", Version::HTTP_11).await.into_body();
        handle.force();
        assert_eq!(full.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        assert!(full.is_end_stream());
        drop(full);
        let report = shutdown.wait().await;
        assert_eq!(report.cut, [], "it was sent whole, though nobody asked once more");
        assert_eq!((report.drained, report.left), (1, 0));
    }
}
