//! Whoever keeps the thread is named, and nobody else.
#![allow(clippy::disallowed_methods, reason = "what blocks a thread is measured on the real clock")]

use std::{
    convert::Infallible,
    future::{Future, Ready, poll_fn, ready},
    pin::pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use buttress::{SlowPoll, SlowPollLayer};
use tokio::task::yield_now;
use tower::{Layer, Service, ServiceExt};
use tracing::Level;

use crate::{
    observe::{Line, listen},
    support::{Echo, ms, secs},
};

const THRESHOLD: Duration = ms(2);

/// Longer than the threshold, whatever else the machine does. A measurement from before it until after it is longer still.
fn block() {
    let begun = Instant::now();
    while begun.elapsed() <= THRESHOLD {
        std::hint::spin_loop();
    }
}

/// Blocks in the three places where a service can.
#[derive(Clone, Copy)]
struct Blocking;

impl Service<()> for Blocking {
    type Response = ();
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<(), Infallible>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        block();
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        block();
        Box::pin(async {
            block();
            Ok(())
        })
    }
}

fn messages(lines: &[Line]) -> Vec<&str> {
    lines.iter().filter_map(|line| line.field("message")).collect()
}

#[test]
fn a_slow_poll_is_a_warning_with_its_name_its_time_and_the_threshold() {
    let (log, _guard) = listen();
    let mut future = pin!(SlowPoll::new("thumbnails", THRESHOLD).watch(async {
        block();
        7
    }));
    assert_eq!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(7));
    let lines = log.take();
    assert_eq!(lines.len(), 1);
    assert_eq!((lines[0].level, lines[0].target.as_str()), (Level::WARN, "buttress"));
    let shown = lines[0].of(["name", "threshold", "message"]);
    assert_eq!(shown, ["thumbnails", "2ms", "a poll kept its thread for too long"]);
    let took = lines[0].field("took").unwrap();
    assert!(took.ends_with("ms") && took.trim_end_matches("ms").parse::<f64>().unwrap() > 2.0, "{took}");
}

#[tokio::test]
async fn each_poll_counts_alone_and_is_told_when_it_ends() {
    let (log, _guard) = listen();
    let slow = SlowPoll::new("three polls", THRESHOLD);
    let mut watched = pin!(slow.watch(async {
        for _ in 0..2 {
            block();
            yield_now().await;
        }
        block();
    }));
    for nth in 1..=3 {
        let polled = poll_fn(|cx| Poll::Ready(watched.as_mut().poll(cx))).await;
        assert_eq!((polled.is_ready(), log.take().len()), (nth == 3, 1), "poll {nth}");
    }
}

#[tokio::test]
async fn readiness_the_call_and_its_future_are_measured_each() {
    let (log, _guard) = listen();
    SlowPollLayer::new("blocking", THRESHOLD).layer(Blocking).oneshot(()).await.unwrap();
    let lines = log.take();
    let expected = ["`poll_ready`", "`call`", "a poll"].map(|what| format!("{what} kept its thread for too long"));
    assert_eq!(messages(&lines), expected);
    assert!(lines.iter().all(|line| line.field("name") == Some("blocking")));
}

#[tokio::test]
async fn below_the_threshold_nothing_is_said() {
    let (log, _guard) = listen();
    for threshold in [secs(3_600), Duration::MAX] {
        let slow = SlowPoll::new("patient", threshold);
        slow.layer().layer(Blocking).oneshot(()).await.unwrap();
        slow.watch(async { block() }).await;
        // Waiting is not blocking, however long it is.
        slow.watch(yield_now()).await;
    }
    assert!(log.take().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_hides_nothing_and_its_jumps_are_no_polls() {
    let (log, _guard) = listen();
    let before = tokio::time::Instant::now();
    SlowPoll::new("blocks", THRESHOLD).watch(async { block() }).await;
    assert_eq!(tokio::time::Instant::now(), before, "tokio's clock has not moved");
    assert_eq!(log.take().len(), 1);
    SlowPoll::new("waits", secs(3_600)).watch(tokio::time::sleep(secs(7_200))).await;
    assert!(log.take().is_empty());
}

#[tokio::test]
async fn answers_and_errors_pass_through() {
    let watched = SlowPoll::new("echo", secs(3_600)).layer().layer(Echo);
    assert_eq!(watched.send(7).await, Ok(7));
    assert_eq!(watched.get_ref().oneshot(8).await, Ok(8));
    let failing = SlowPollLayer::new("fails", secs(3_600)).layer(tower::service_fn(fail));
    assert_eq!(failing.send(()).await, Err("no"));
}

fn fail((): ()) -> Ready<Result<(), &'static str>> {
    ready(Err("no"))
}

#[test]
fn it_shows_its_settings() {
    let slow = SlowPoll::new("shown", ms(10));
    assert_eq!(slow.threshold(), ms(10));
    assert_eq!(format!("{slow:?}"), r#"SlowPoll { name: "shown", threshold: 10ms }"#);
    // What is watched need not be `Debug`.
    assert_eq!(
        format!("{:?}", slow.watch(async {})),
        r#"Watched { slow: SlowPoll { name: "shown", threshold: 10ms }, .. }"#
    );
}

#[cfg(feature = "tonic")]
#[test]
fn a_tonic_service_keeps_its_name() {
    use tonic::server::NamedService;

    struct Greeter;

    impl NamedService for Greeter {
        const NAME: &'static str = "hello.Greeter";
    }

    assert_eq!(<buttress::SlowPollService<Greeter> as NamedService>::NAME, "hello.Greeter");
}
