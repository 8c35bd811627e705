//! What a server of ours gives out of its hands, or shares with others. Real TCP.
#![cfg(feature = "serve")]

use std::convert::Infallible;

use buttress::shutdown::{Handle, Signal, Trigger};
use http_body_util::Empty;
use hyper::{Request, Response, body::Bytes, body::Incoming, upgrade};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};
use tower::service_fn;
use tracing::{Event, Metadata, Subscriber, span};

use super::{
    life::prompt,
    serve::{at_once, in_time, listen},
};
use crate::support::settle;

type Answer = Result<Response<Empty<Bytes>>, Infallible>;

/// The filter that keeps newcomers away belongs to the socket, which others may hold: socket activation, a hand-over.
#[tokio::test]
async fn a_listener_that_somebody_else_holds_too_is_not_left_deaf() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let (addr, kept) = (listener.local_addr().unwrap(), listener.try_clone().unwrap());
    let shutdown = at_once().build().unwrap();
    let handle = shutdown.handle();
    let app = service_fn(async |_: Request<Incoming>| -> Answer { Ok(Response::new(Empty::new())) });
    let serving = tokio::spawn(shutdown.serve(TcpListener::from_std(listener).unwrap(), app));
    settle().await;
    handle.trigger("deploy");
    assert!(in_time(serving).await.unwrap().is_clean());
    let next = TcpListener::from_std(kept).unwrap();
    let (connected, accepted) = in_time(async { tokio::join!(TcpStream::connect(addr), next.accept()) }).await;
    assert!(connected.is_ok() && accepted.is_ok());
}

#[tokio::test]
async fn an_upgraded_connection_that_closes_one_end_reads_on() {
    let shutdown = at_once().build().unwrap();
    let (listener, addr) = listen().await;
    let (heard, mut hears) = mpsc::unbounded_channel();
    let app = service_fn(move |mut req: Request<Incoming>| {
        let heard = heard.clone();
        async move {
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade::on(&mut req).await.unwrap());
                io.write_all(b"bye").await.unwrap();
                io.shutdown().await.unwrap();
                let mut all = String::new();
                io.read_to_string(&mut all).await.unwrap();
                heard.send(all).unwrap();
            });
            let response = Response::builder().status(101).header("upgrade", "raw").header("connection", "upgrade");
            Answer::Ok(response.body(Empty::new()).unwrap())
        }
    });
    let serving = tokio::spawn(shutdown.serve(listener, app));
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n").await.unwrap();
    let mut all = String::new();
    in_time(client.read_to_string(&mut all)).await.unwrap();
    assert!(all.ends_with("\r\n\r\nbye"), "{all:?}");
    client.write_all(b"what I still have to say").await.unwrap();
    drop(client);
    assert_eq!(in_time(hears.recv()).await.unwrap(), "what I still have to say");
    serving.abort();
}

/// hyper has no call for a tunnel any more, and yet its connection is not quiet.
#[tokio::test]
async fn a_tunnel_over_http2_lives_as_long_as_its_guard() {
    let shutdown = at_once().build().unwrap();
    let handle = shutdown.handle();
    let (listener, addr) = listen().await;
    let (go, gone) = oneshot::channel::<()>();
    let gone = std::sync::Arc::new(std::sync::Mutex::new(Some(gone)));
    let app = service_fn({
        let handle: Handle = handle.clone();
        move |mut req: Request<Incoming>| {
            let (guard, gone) = (handle.guard("tunnel").unwrap(), gone.lock().unwrap().take());
            async move {
                tokio::spawn(async move {
                    let mut io = TokioIo::new(upgrade::on(&mut req).await.unwrap());
                    gone.unwrap().await.unwrap();
                    io.write_all(b"done").await.unwrap();
                    io.shutdown().await.unwrap();
                    drop(guard);
                });
                Answer::Ok(Response::new(Empty::new()))
            }
        }
    });
    let serving = tokio::spawn(shutdown.serve(listener, app));
    let stream = TokioIo::new(TcpStream::connect(addr).await.unwrap());
    let (mut requests, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let response = requests.send_request(Request::connect("a:1").body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let mut io = TokioIo::new(upgrade::on(response).await.unwrap());
    handle.trigger("deploy");
    // Longer than a quiet connection is left alone: told after half a second, cut after one.
    tokio::time::sleep(std::time::Duration::from_millis(1_800)).await;
    go.send(()).unwrap();
    let mut all = String::new();
    in_time(io.read_to_string(&mut all)).await.unwrap();
    assert_eq!(all, "done");
    drop((io, requests));
    let report = in_time(serving).await.unwrap();
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_signal_of_any_number_has_an_exit_code() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    handle.signal(Signal::Other(i32::MAX));
    handle.signal(Signal::Other(i32::MAX));
    assert_eq!(shutdown.wait().await.exit_code(), i32::MAX);
}

/// Whoever listens to logs is not our code.
struct Panics;

impl Subscriber for Panics {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "buttress"
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn event(&self, _: &Event<'_>) {
        panic!("the log is broken");
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_log_that_panics_does_not_keep_the_report_from_coming() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let broken = tracing::subscriber::set_default(Panics);
    let trigger = tokio::spawn({
        let handle = handle.clone();
        async move { handle.trigger("deploy") }
    });
    assert!(trigger.await.unwrap_err().is_panic());
    assert!(handle.is_draining());
    drop(broken);
    // The driver logs, too: if that was its end, it has forced the rest.
    assert_eq!(shutdown.wait().await.reason, Trigger::Asked("deploy".into()));
}
