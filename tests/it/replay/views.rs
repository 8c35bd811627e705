//! The attempts at one body, without a network.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use buttress::{
    ByResult, Error, Kind, Policy,
    http::{BodyGone, Idempotent},
    retry::{Budget, Repeat, current_attempt},
};
use http::Request;
use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio_test::{assert_pending, task};
use tower::service_fn;

use super::*;
use crate::support::{Counts, secs};

type Polled = Poll<Option<Came>>;

/// Polls it once, with a waker that is not heard.
fn poll(body: &mut Replay<Upload>) -> Polled {
    task::spawn(body).enter(|cx, body| body.poll_frame(cx))
}

/// The data of one frame.
fn chunk(polled: Polled) -> Vec<u8> {
    let Poll::Ready(Some(Ok(frame))) = polled else { panic!("{polled:?} instead of a frame") };
    frame.into_data().unwrap().to_vec()
}

fn gone(polled: Polled) -> BodyGone {
    let Poll::Ready(Some(Err(error))) = polled else { panic!("{polled:?} instead of an error") };
    *error.downcast_ref().unwrap()
}

async fn all(body: Replay<Upload>) -> Vec<u8> {
    body.collect().await.unwrap().to_bytes().to_vec()
}

fn repeating(retry: impl Into<RetryBuilder>) -> Policy<Kind<ByResult, Idempotent>> {
    Policy::plain("storage").repeat(Idempotent::default()).retry(retry.into()).build().unwrap()
}

fn put(body: Replay<Upload>) -> Request<Replay<Upload>> {
    Request::put("/").body(body).unwrap()
}

// ------------------------------------------------------------------------------------------------ one after the other

#[tokio::test]
async fn an_attempt_that_is_dropped_at_any_point_leaves_all_of_the_body_to_the_next() {
    for frames in 0..12 {
        let mut first = Replay::new(Upload::chunks(cut(100, 10)), 100);
        let second = first.again();
        for _ in 0..frames {
            let _ = poll(&mut first);
        }
        drop(first);
        assert_eq!(all(second).await, bytes(100), "dropped after {frames} polls");
    }
}

#[test]
fn an_attempt_that_was_under_way_is_told_that_it_has_lost_the_body() {
    let (sender, upload) = Upload::live();
    let first = Replay::new(upload, 100);
    let mut second = first.again();
    let mut first = task::spawn(first);
    assert_pending!(first.enter(|cx, body| body.poll_frame(cx)));

    assert!(second.take_over());
    assert!(first.is_woken(), "it may hold on to a connection");
    sender.send(Ok(Frame::data(bytes(10).into()))).unwrap();
    assert_eq!(gone(first.enter(|cx, body| body.poll_frame(cx))), BodyGone::TakenOver);
    assert_eq!(chunk(poll(&mut second)), bytes(10));
}

#[test]
fn a_body_that_is_gone_says_why() {
    let gone = [BodyGone::NotRecorded, BodyGone::TakenOver, BodyGone::Failed].map(|gone| gone.to_string());
    let expected = [
        "the request body was sent before and is not recorded",
        "a later attempt sends the request body",
        "the request body has failed before",
    ];
    assert_eq!(gone, expected);
}

#[test]
fn the_first_poll_of_a_later_attempt_takes_the_body_too_and_wakes_the_one_before() {
    let (_sender, upload) = Upload::live();
    let first = Replay::new(upload, 100);
    let mut second = first.again();
    let mut first = task::spawn(first);
    assert_pending!(first.enter(|cx, body| body.poll_frame(cx)));
    assert_pending!(poll(&mut second));
    assert!(first.is_woken());
    assert_eq!(gone(first.enter(|cx, body| body.poll_frame(cx))), BodyGone::TakenOver);
}

#[test]
fn an_attempt_that_begins_late_does_not_take_the_body_back() {
    let mut first = Replay::new(Upload::chunks(cut(20, 10)), 100);
    let (mut outer, mut inner) = (first.again(), first.again());
    assert!(inner.take_over());
    assert_eq!(gone(poll(&mut first)), BodyGone::TakenOver);
    assert_eq!(chunk(poll(&mut inner)), bytes(10));

    // A copy that is older, but whose attempt is later: that of a retry around a retry.
    assert!(outer.take_over());
    assert_eq!(chunk(poll(&mut outer)), bytes(10));
    assert_eq!(gone(poll(&mut inner)), BodyGone::TakenOver);
    assert_eq!(chunk(poll(&mut outer)), bytes(20)[10..]);
}

#[test]
fn what_comes_for_an_attempt_that_has_just_lost_its_turn_is_sent_by_the_later_one() {
    // The later attempt begins while the first one polls the body: as on another thread, but at a known point.
    let later: Arc<Mutex<Option<task::Spawn<Replay<Upload>>>>> = Arc::default();
    let begin = {
        let later = later.clone();
        let mut polls = 0;
        move || {
            polls += 1;
            if polls == 2 {
                let mut later = later.lock().unwrap();
                let later = later.as_mut().unwrap();
                assert_eq!(chunk(later.enter(|cx, body| body.poll_frame(cx))), bytes(10));
                assert_pending!(later.enter(|cx, body| body.poll_frame(cx)));
            }
        }
    };
    // Longer than the cap: what the first attempt has no more to do with must not tear its recording.
    let mut first = Replay::new(Upload::chunks(cut(20, 10)).on_poll(begin), 19);
    *later.lock().unwrap() = Some(task::spawn(first.again()));
    assert_eq!(chunk(poll(&mut first)), bytes(10));

    assert_eq!(gone(poll(&mut first)), BodyGone::TakenOver);
    let mut later = later.lock().unwrap().take().unwrap();
    assert!(later.is_woken(), "the body is back in its place");
    assert_eq!(chunk(later.enter(|cx, body| body.poll_frame(cx))), bytes(20)[10..]);
    assert!(matches!(later.enter(|cx, body| body.poll_frame(cx)), Poll::Ready(None)));
}

#[test]
fn a_body_that_panics_has_failed_for_every_attempt() {
    let mut first = Replay::new(Upload::of([]).on_poll(|| panic!("a bug")), 100);
    let mut second = first.again();
    assert!(catch_unwind(AssertUnwindSafe(|| poll(&mut first))).is_err());
    assert!(!second.is_whole() && !second.take_over());
    assert_eq!(gone(poll(&mut first)), BodyGone::Failed);
    assert_eq!(gone(poll(&mut second)), BodyGone::Failed);
}

#[test]
fn the_last_attempt_records_nothing_and_gives_back_what_was_recorded() {
    let mut first = Replay::new(Upload::chunks(cut(30, 10)), 100);
    let mut second = first.again();
    let _ = poll(&mut first);
    drop(first);
    assert_eq!(second.recorded(), 10);
    assert_eq!(chunk(poll(&mut second)), bytes(10));
    assert_eq!(chunk(poll(&mut second)), bytes(20)[10..]);
    assert_eq!(second.recorded(), 0);

    let mut alone = Replay::new(Upload::chunks(cut(30, 10)), 100);
    let _ = poll(&mut alone);
    assert_eq!(alone.recorded(), 0);
    let late = alone.again();
    assert!(!late.is_whole(), "something has gone by unrecorded");
}

#[test]
fn a_body_is_dropped_when_it_is_over_although_copies_are_left() {
    let upload = Upload::chunks(cut(10, 10));
    let alive = Arc::downgrade(&upload.alive);
    let mut first = Replay::new(upload, 100);
    let _second = first.again();
    let _ = poll(&mut first);
    assert!(alive.upgrade().is_some());
    assert!(matches!(poll(&mut first), Poll::Ready(None)));
    assert!(alive.upgrade().is_none());
}

#[test]
fn a_copy_knows_its_length_and_its_end_as_the_first_attempt_does() {
    let mut first = Replay::new(Upload::chunks(cut(20, 10)).known(20), 100);
    let mut second = first.again();
    assert_eq!((first.size_hint().exact(), first.is_end_stream()), (Some(20), false));
    let _ = poll(&mut first);
    assert_eq!((first.size_hint().exact(), first.is_end_stream()), (Some(10), false));
    let _ = poll(&mut first);
    assert_eq!((first.size_hint().exact(), first.is_end_stream()), (Some(0), true), "without one more poll");
    assert_eq!((second.size_hint().exact(), second.is_end_stream()), (Some(20), false));
    let _ = poll(&mut second);
    assert_eq!((second.size_hint().exact(), second.is_end_stream()), (Some(0), true), "without one more poll");

    let empty = Replay::new(Upload::of([]).known(0), 0);
    for mut body in [empty.again(), empty] {
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
        assert!(matches!(poll(&mut body), Poll::Ready(None)));
    }
}

// ------------------------------------------------------------------------------------------------ any order

#[derive(Clone, Copy, Debug)]
enum Do {
    Send,
    Poll(usize),
    Again(usize),
    TakeOver(usize),
    Drop(usize),
}

fn anything() -> impl Strategy<Value = Do> {
    prop_oneof![
        3 => Just(Do::Send),
        6 => (0_usize..4).prop_map(Do::Poll),
        2 => (0_usize..4).prop_map(Do::Again),
        1 => (0_usize..4).prop_map(Do::TakeOver),
        1 => (0_usize..4).prop_map(Do::Drop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_any_order_an_attempt_sends_the_body_from_its_start_or_says_why_not(
        sizes in prop::collection::vec(0_usize..30, 0..12),
        cap in 0_usize..200,
        known in any::<bool>(),
        trailed in any::<bool>(),
        steps in prop::collection::vec(anything(), 0..80),
    ) {
        let total = sizes.iter().sum();
        let body = bytes(total);
        let mut at = 0;
        let mut frames: VecDeque<Frame<Bytes>> = sizes.iter().map(|size| {
            at += size;
            Frame::data(Bytes::copy_from_slice(&body[at - size..at]))
        }).collect();
        if trailed {
            frames.push_back(Frame::trailers(trailers("1234")));
        }
        let (sender, mut upload) = Upload::live();
        if known && !trailed {
            upload = upload.known(total);
        }
        let mut sender = Some(sender);
        let mut views = vec![(Replay::new(upload, cap), Vec::new(), false)];
        for step in steps {
            match step {
                Do::Send => match frames.pop_front() {
                    Some(frame) => drop(sender.as_ref().unwrap().send(Ok(frame))),
                    None => sender = None,
                },
                Do::Again(index) => {
                    let again = views.get(index).map(|(view, ..)| view.again());
                    views.extend(again.filter(|_| views.len() < 4).map(|view| (view, Vec::new(), false)));
                }
                Do::TakeOver(index) => if let Some((view, sent, _)) = views.get_mut(index) {
                    let whole = view.is_whole();
                    prop_assert_eq!(view.take_over(), whole);
                    prop_assert!(!whole || sent.is_empty() || total == 0);
                    // It is its own from here on: no other attempt can spoil it.
                    if whole {
                        for (index, (other, ..)) in views.iter_mut().enumerate().filter(|(other, _)| *other != index) {
                            let begun = !matches!(poll(other), Poll::Ready(Some(Err(_)) | None));
                            prop_assert!(!begun || total == 0, "{} goes on", index);
                        }
                        prop_assert!(views[index].0.is_whole());
                    }
                },
                Do::Drop(index) => if index < views.len() && views.len() > 1 {
                    drop(views.remove(index));
                },
                Do::Poll(index) => if let Some((view, sent, trailed_by)) = views.get_mut(index) {
                    match poll(view) {
                        Poll::Pending => prop_assert!(sender.is_some()),
                        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                            Ok(data) => sent.extend_from_slice(&data),
                            Err(_) => *trailed_by = true,
                        },
                        Poll::Ready(Some(Err(error))) => {
                            let gone = error.downcast_ref::<BodyGone>();
                            prop_assert!(matches!(gone, Some(BodyGone::TakenOver | BodyGone::NotRecorded)), "{error}");
                        }
                        Poll::Ready(None) => prop_assert_eq!((sent.len(), *trailed_by), (total, trailed)),
                    }
                },
            }
            for (view, sent, trailed_by) in &views {
                prop_assert!(view.recorded() <= cap);
                prop_assert!(body.starts_with(sent));
                let left = (total - sent.len()) as u64;
                let hint = view.size_hint();
                prop_assert!(hint.lower() <= left && hint.upper().is_none_or(|upper| left <= upper));
                prop_assert!(!known || trailed || hint.exact() == Some(left));
                prop_assert!(!view.is_end_stream() || (left == 0 && *trailed_by == trailed));
            }
        }
    }
}

#[test]
fn on_two_threads_the_later_attempt_gets_all_of_it() {
    for round in 0..300 {
        let first = Replay::new(Upload::chunks(cut(2_000, 10)), 2_000);
        let mut second = first.again();
        let old = thread::spawn(move || {
            let mut first = first;
            while let Poll::Ready(Some(Ok(_))) = poll(&mut first) {}
        });
        if round % 2 == 0 {
            assert!(second.take_over());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let sent = runtime.block_on(async { tokio::time::timeout(secs(30), all(second)).await });
        assert_eq!(sent.expect("a lost wake"), bytes(2_000));
        old.join().unwrap();
    }
}

// ------------------------------------------------------------------------------------------------ under a policy

#[tokio::test]
async fn an_attempt_that_read_nothing_is_repeated_however_long_the_body_is() {
    for known in [false, true] {
        let seen = Counts::default();
        let service = service_fn(async |request: Request<Replay<Upload>>| {
            drop(seen.enter());
            // As a connection that is refused.
            if current_attempt() < Some(3) { Err("refused".to_owned()) } else { Ok(all(request.into_body()).await) }
        });
        let mut upload = Upload::chunks(cut(5_000, 100));
        if known {
            upload = upload.known(5_000);
        }
        assert_eq!(repeating(at_once()).wrap(service).send(put(Replay::new(upload, 10))).await.unwrap(), bytes(5_000));
        assert_eq!(seen.calls(), 3);
    }
}

/// Fails every attempt at once, and reads its body on in a task of its own, which tells what it has read.
fn early(told: mpsc::UnboundedSender<Result<usize, BodyGone>>) -> impl Fn(Request<Replay<Upload>>) -> Failed + Clone {
    move |request| {
        let told = told.clone();
        tokio::spawn(async move {
            let all = request.into_body().collect().await;
            let _ = told.send(all.map(|all| all.to_bytes().len()).map_err(|gone| *gone.downcast_ref().unwrap()));
        });
        std::future::ready(Err("early".to_owned()))
    }
}

type Failed = std::future::Ready<Result<(), String>>;

#[tokio::test]
async fn a_call_that_gives_up_leaves_the_upload_alone() {
    let poor = Budget::builder().ratio(0.0).min_per_second(0).build().unwrap();
    for retry in [at_once().budget(poor), at_once().max_attempts(1)] {
        let (told, mut read) = mpsc::unbounded_channel();
        let (sender, upload) = Upload::live();
        sender.send(Ok(Frame::data(bytes(50).into()))).unwrap();
        let service = service_fn(early(told));
        let mut call = task::spawn(repeating(retry).wrap(service).send(put(Replay::new(upload, 1_000))));
        assert!(matches!(call.poll(), Poll::Ready(Err(Error::Inner(_)))), "no further attempt");
        sender.send(Ok(Frame::data(bytes(50).into()))).unwrap();
        drop(sender);
        assert_eq!(read.recv().await, Some(Ok(100)), "the server has answered, and may still want the rest");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_decided_on_breaks_the_old_upload_off_before_the_backoff() {
    let (told, mut read) = mpsc::unbounded_channel();
    let (sender, upload) = Upload::live();
    sender.send(Ok(Frame::data(bytes(50).into()))).unwrap();
    let retry = Retry::constant(secs(3_600)).max_delay(secs(3_600)).jitter(buttress::Jitter::None);
    let call = repeating(retry).wrap(service_fn(early(told))).send(put(Replay::new(upload, 60)));
    let call = tokio::spawn(call);
    let taken_over = tokio::time::timeout(secs(1), read.recv()).await;
    assert_eq!(taken_over, Ok(Some(Err(BodyGone::TakenOver))));
    // Nobody reads on and tears the recording while the call sleeps.
    sender.send(Ok(Frame::data(bytes(50).into()))).unwrap();
    crate::support::settle().await;
    assert!(!call.is_finished());
    call.abort();
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stalls_past_the_attempt_timeout_goes_on_where_it_was() {
    let (sender, upload) = Upload::live();
    sender.send(Ok(Frame::data(bytes(50).into()))).unwrap();
    let service =
        service_fn(async |request: Request<Replay<Upload>>| Ok::<_, Infallible>(all(request.into_body()).await));
    let policy = Policy::plain("storage").repeat(Idempotent::default()).retry(at_once()).timeout(secs(1));
    let call = policy.build().unwrap().wrap(service).send(put(Replay::new(upload, 1_000)));
    let mut call = task::spawn(call);
    assert_pending!(call.poll());
    tokio::time::advance(secs(1)).await;
    assert_pending!(call.poll());
    sender.send(Ok(Frame::data(bytes(30).into()))).unwrap();
    drop(sender);
    assert_eq!(call.await.unwrap(), [bytes(50), bytes(30)].concat());
}

#[tokio::test]
async fn a_call_that_is_dropped_at_any_poll_gives_everything_back() {
    for polls in 0..40 {
        let upload = Upload::chunks(cut(100, 10));
        let alive = Arc::downgrade(&upload.alive);
        let seen = Counts::default();
        let service = service_fn(async |request: Request<Replay<Upload>>| {
            let _running = seen.enter();
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                frame?;
                tokio::task::yield_now().await;
            }
            if seen.calls() == 3 { Ok(()) } else { Err("again".into()) }
        });
        let mut call = task::spawn(repeating(at_once()).wrap(service).send(put(Replay::new(upload, 1_000))));
        let done = (0..polls).any(|_| call.poll().map(|end: Result<(), Error<BoxError>>| end.unwrap()).is_ready());
        drop(call);
        assert!(alive.upgrade().is_none(), "dropped at poll {polls}");
        assert_eq!(seen.running(), 0);
        if done {
            assert!(polls > 10 && seen.calls() == 3);
            return;
        }
    }
    panic!("it never ends");
}

#[tokio::test]
async fn a_retry_around_a_retry_sends_all_of_it_each_time() {
    let read = Mutex::new(Vec::new());
    let service = service_fn(async |request: Request<Replay<Upload>>| {
        let mut body = request.into_body();
        let number = read.lock().unwrap().len();
        // Each attempt gets somewhat further.
        let mut sent = Vec::new();
        while sent.len() < 20 * (number + 1) {
            match body.frame().await {
                Some(frame) => sent.extend_from_slice(&frame?.into_data().unwrap()),
                None => break,
            }
        }
        let len = sent.len();
        read.lock().unwrap().push(sent);
        if len == 100 { Ok(()) } else { Err::<(), BoxError>("again".into()) }
    });
    let kind = || Kind::new(ByResult, Idempotent::default());
    let retry = || at_once().budget(Budget::builder().min_per_second(10).build().unwrap()).build().unwrap();
    let inner = tower::Layer::layer(&retry().layer_with(kind()), service);
    let outer = retry().layer_with(kind());
    tower::Layer::layer(&outer, inner).send(put(Replay::new(Upload::chunks(cut(100, 10)), 100))).await.unwrap();
    let read = read.into_inner().unwrap();
    assert_eq!(read.len(), 5);
    assert!(read.iter().all(|sent| bytes(100).starts_with(sent)));
}

// ------------------------------------------------------------------------------------------------ which are repeated

#[test]
fn what_is_repeated_is_told_by_method_and_key_and_a_copy_is_the_same_request() {
    #[derive(Clone, Debug, PartialEq)]
    struct Mark(u8);
    let ask = |method: &str| {
        let request = Request::builder().method(method).uri("http://a/b").version(http::Version::HTTP_2);
        request.header("x", "1").header("x", "2").extension(Mark(7)).body("book").unwrap()
    };
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
        let copy = Idempotent::default().repeat(&ask(method)).unwrap();
        assert_eq!(format!("{copy:?}"), format!("{:?}", ask(method)));
        assert_eq!(copy.extensions().get(), Some(&Mark(7)));
        assert!(Idempotent::default().may_send(&copy, true));
    }
    for method in ["POST", "PATCH", "CONNECT", "BREW"] {
        let mut asked = ask(method);
        assert!(!Idempotent::default().may_send(&asked, true), "{method}");
        assert!(Idempotent::default().may_send(&asked, false), "it was never sent");
        assert!(Idempotent::all().may_send(&asked, true));
        asked.headers_mut().insert("Idempotency-Key", "1".parse().unwrap());
        assert!(Idempotent::default().may_send(&asked, true));
    }
}
