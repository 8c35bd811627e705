//! A real hyper client and a real axum server on the loopback, by HTTP/1 and by HTTP/2.

use std::{future::Future, time::Duration};

use axum::extract::Request as Asked;
use axum::{Router, body::Body as Sent, http::StatusCode, routing::any};
use buttress::{
    Kind, Policy,
    http::{ByStatus, Idempotent, ReplayLayer},
    retry::Budget,
};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{Layer, ServiceExt};

use super::*;

type Judging = Kind<ByStatus, Idempotent>;

/// What the server has seen of one request.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    content_length: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    One,
    Two,
}

const BOTH: [Version; 2] = [Version::One, Version::Two];

/// A hang is a failure.
async fn in_time<F: Future>(test: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), test).await.expect("it hangs")
}

async fn serve<F, Fut>(handler: F) -> String
where
    F: Fn(usize, Asked) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = StatusCode> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let number = Arc::new(AtomicUsize::new(0));
    let router = Router::new().fallback(any(move |asked: Asked| handler(number.fetch_add(1, SeqCst) + 1, asked)));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

async fn read(asked: Asked) -> Result<Seen, axum::Error> {
    let header = asked.headers().get("content-length").map(|len| len.to_str().unwrap().to_owned());
    let all = asked.into_body().collect().await?;
    let trailers = all.trailers().cloned();
    Ok(Seen { body: all.to_bytes().to_vec(), trailers, content_length: header })
}

/// Reads each request, and fails the first of them. Tells what it has read.
async fn failing(failures: usize) -> (String, mpsc::UnboundedReceiver<Seen>) {
    let (told, seen) = mpsc::unbounded_channel();
    let url = serve(move |number, asked| {
        let told = told.clone();
        async move {
            told.send(read(asked).await.unwrap()).unwrap();
            if number <= failures { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
        }
    });
    (url.await, seen)
}

fn policy() -> Policy<Judging> {
    retrying(at_once())
}

fn retrying(retry: RetryBuilder) -> Policy<Judging> {
    let policy = Policy::plain("storage").classify(ByStatus).repeat(Idempotent::default());
    policy.deadline(Duration::from_secs(30)).retry(retry).build().unwrap()
}

/// Sends it through the policy.
async fn send(
    policy: &Policy<Judging>,
    version: Version,
    request: Request<Replay<Upload>>,
) -> Result<Response<Incoming>, BoxError> {
    let client = Client::builder(TokioExecutor::new()).http2_only(version == Version::Two).build_http();
    in_time(policy.wrap(client).send(request)).await.map_err(Into::into)
}

fn put(url: &str, body: Replay<Upload>) -> Request<Replay<Upload>> {
    Request::put(url).body(body).unwrap()
}

fn drain<T>(mut from: mpsc::UnboundedReceiver<T>) -> Vec<T> {
    std::iter::from_fn(|| from.try_recv().ok()).collect()
}

#[tokio::test]
async fn a_streaming_put_that_fails_twice_arrives_whole_three_times() {
    for version in BOTH {
        for known in [false, true] {
            let (url, seen) = failing(2).await;
            let mut upload = Upload::chunks(cut(50_000, 777));
            if known {
                upload = upload.known(50_000);
            }
            let watch = Watch::default();
            let body = watch.over(upload, 64 * 1024);
            let response = send(&policy(), version, put(&url, body)).await.unwrap();
            assert_eq!(response.status(), 200);
            let seen = drain(seen);
            assert_eq!(seen.len(), 3, "{version:?}");
            for seen in seen {
                assert_eq!(seen.body, bytes(50_000));
                assert_eq!(seen.content_length, known.then(|| "50000".to_owned()), "{version:?}");
            }
            assert_eq!(watch.most(), 50_000);
        }
    }
}

#[tokio::test]
async fn one_that_is_longer_than_the_cap_is_sent_once_and_spends_no_token_of_the_budget() {
    for version in BOTH {
        for known in [false, true] {
            let (url, seen) = failing(2).await;
            let mut upload = Upload::chunks(cut(50_000, 777));
            if known {
                upload = upload.known(50_000);
            }
            let watch = Watch::default();
            let body = watch.over(upload, 49_999);
            let budget = Budget::builder().min_per_second(1).build().unwrap();
            let policy = retrying(at_once().budget(budget.clone()));
            let response = send(&policy, version, put(&url, body)).await.unwrap();
            assert_eq!(response.status(), 503, "the answer to the one attempt");
            assert_eq!(drain(seen).into_iter().map(|seen| seen.body).collect::<Vec<_>>(), [bytes(50_000)]);
            assert_eq!(budget.balance(), 10);
            let most = watch.most();
            assert!(if known { most == 0 } else { (40_000..50_000).contains(&most) }, "{most} were recorded");
        }
    }
}

#[tokio::test]
async fn ten_megabytes_are_sent_once_and_not_buffered_past_the_cap() {
    const ALL: usize = 10 << 20;
    for version in BOTH {
        let (told, seen) = mpsc::unbounded_channel();
        let url = serve(move |_, asked: Asked| {
            let told = told.clone();
            async move {
                let mut body = asked.into_body();
                let mut read = 0;
                while let Some(frame) = body.frame().await {
                    read += frame.unwrap().into_data().unwrap().len();
                }
                told.send(read).unwrap();
                StatusCode::SERVICE_UNAVAILABLE
            }
        });
        let url = url.await;
        let watch = Watch::default();
        let body = watch.over(Upload::chunks(cut(ALL, 16 * 1024)), ReplayLayer::DEFAULT_CAP);
        let response = send(&policy(), version, put(&url, body)).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(drain(seen), [ALL]);
        let most = watch.most();
        assert!(most > 0 && most <= ReplayLayer::DEFAULT_CAP, "{most} were recorded");
    }
}

#[tokio::test]
async fn an_answer_before_the_body_was_read_leads_to_an_attempt_that_sends_all_of_it() {
    for version in BOTH {
        let (told, mut seen) = mpsc::unbounded_channel();
        let (kept, mut keep) = mpsc::unbounded_channel();
        let url = serve(move |number, asked: Asked| {
            let (told, kept) = (told.clone(), kept.clone());
            async move {
                if number == 1 {
                    let mut body = asked.into_body();
                    // The upload is under way, and the server does not let go of it.
                    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
                    assert_eq!(first[..], bytes(1_000)[..first.len()]);
                    kept.send(body).unwrap();
                    return StatusCode::SERVICE_UNAVAILABLE;
                }
                told.send(None).unwrap();
                told.send(Some(read(asked).await.unwrap())).unwrap();
                StatusCode::OK
            }
        });
        let url = url.await;
        let (sender, upload) = Upload::live();
        sender.send(Ok(Frame::data(bytes(1_000).into()))).unwrap();
        let policy = policy();
        let call = tokio::spawn(async move { send(&policy, version, put(&url, Replay::new(upload, 10_000))).await });

        // The second attempt has begun; the first holds its connection still.
        assert_eq!(in_time(seen.recv()).await, Some(None));
        let mut first: Sent = in_time(keep.recv()).await.unwrap();
        sender.send(Ok(Frame::data(vec![7; 500].into()))).unwrap();
        drop(sender);

        assert_eq!(in_time(call).await.unwrap().unwrap().status(), 200, "{version:?}");
        let whole = in_time(seen.recv()).await.flatten().unwrap();
        assert_eq!(whole.body, [bytes(1_000), vec![7; 500]].concat());
        let ended = in_time(async {
            loop {
                match first.frame().await {
                    Some(Ok(_)) => {}
                    ended => break ended.is_some(),
                }
            }
        });
        assert!(ended.await, "{version:?}: the first upload was broken off, not ended");
    }
}

#[tokio::test]
async fn a_post_is_sent_once_unless_it_bears_a_key() {
    for version in BOTH {
        for (key, times) in [(None, 1), (Some("order-42"), 3)] {
            let (url, seen) = failing(2).await;
            let request = Request::post(&url).body(Replay::new(Upload::chunks(cut(9_000, 100)), 10_000)).unwrap();
            let (mut parts, body) = request.into_parts();
            if let Some(key) = key {
                parts.headers.insert("idempotency-key", key.parse().unwrap());
            }
            let response = send(&policy(), version, Request::from_parts(parts, body)).await.unwrap();
            assert_eq!(response.status(), if times == 1 { 503 } else { 200 });
            let seen = drain(seen);
            assert_eq!(seen.len(), times);
            assert!(seen.iter().all(|seen| seen.body == bytes(9_000)));
        }
    }
}

#[tokio::test]
async fn trailers_arrive_with_every_attempt() {
    for version in BOTH {
        let (url, seen) = failing(2).await;
        let frames = [Frame::data(bytes(100).into()), Frame::trailers(trailers("1234"))];
        let body = Replay::new(Upload::of(frames.map(Ok)), 1_000);
        let (mut parts, body) = put(&url, body).into_parts();
        parts.headers.insert("trailer", "checksum".parse().unwrap());
        let response = send(&policy(), version, Request::from_parts(parts, body)).await.unwrap();
        assert_eq!(response.status(), 200);
        let seen = drain(seen);
        assert_eq!(seen.len(), 3);
        for seen in seen {
            assert_eq!((seen.body, seen.trailers), (bytes(100), Some(trailers("1234"))), "{version:?}");
        }
    }
}

#[tokio::test]
async fn a_body_that_fails_is_not_sent_again_and_its_error_comes_back() {
    for version in BOTH {
        let url = serve(|_, asked: Asked| async {
            assert!(read(asked).await.is_err());
            StatusCode::OK
        });
        let url = url.await;
        let broken = [Ok(Frame::data(bytes(100).into())), Err("the disk is gone".into())];
        let budget = Budget::builder().min_per_second(1).build().unwrap();
        let policy = retrying(at_once().budget(budget.clone()));
        let error = send(&policy, version, put(&url, Replay::new(Upload::of(broken), 1_000))).await.unwrap_err();
        assert_eq!(budget.balance(), 10, "no further attempt");
        // hyper's HTTP/2 client keeps it to itself.
        let mut sources = std::iter::successors(Some(&*error as &dyn std::error::Error), |error| error.source());
        let told = sources.any(|error| error.to_string() == "the disk is gone");
        assert!(told || version == Version::Two, "{error:?}");
    }
}

#[tokio::test]
async fn an_empty_body_is_repeated_as_an_empty_body() {
    for version in BOTH {
        for known in [false, true] {
            let (url, seen) = failing(2).await;
            let mut upload = Upload::of([]);
            if known {
                upload = upload.known(0);
            }
            let response = send(&policy(), version, put(&url, Replay::new(upload, 0))).await.unwrap();
            assert_eq!(response.status(), 200);
            let seen = drain(seen);
            assert_eq!(seen.len(), 3);
            assert!(seen.iter().all(|request| *request == seen[0] && request.body.is_empty()), "{seen:?}");
        }
    }
}

#[tokio::test]
async fn the_layer_makes_any_body_one_that_can_be_sent_again() {
    let (url, seen) = failing(2).await;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let client = ReplayLayer::default().layer(policy().wrap(client));
    let upload = Request::put(&url).body(Upload::chunks(cut(5_000, 99))).unwrap();
    assert_eq!(in_time(client.oneshot(upload)).await.unwrap().status(), 200);
    assert_eq!(drain(seen).into_iter().filter(|seen| seen.body == bytes(5_000)).count(), 3);
}
