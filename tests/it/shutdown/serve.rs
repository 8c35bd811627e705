//! `serve`, over real TCP on the loopback, in real time: what is waited for is an answer, an end or a report.
#![cfg(feature = "serve")]

use std::{
    collections::HashMap,
    future::Future,
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::Request,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{MethodRouter, any, get},
};
use buttress::{
    Shutdown, ShutdownBuilder,
    shutdown::{Force, Handle, PeerAddr, Report, State, Trigger},
};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::{Instant, Sleep, advance, pause, resume, sleep, timeout},
};

use crate::support::{Counts, ms, secs, settle};

// ------------------------------------------------------------------------------------------------ the server

/// Fails instead of hanging.
#[track_caller]
pub fn in_time<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match timeout(secs(30), future).await {
            Ok(output) => output,
            Err(_) => panic!("hangs: {caller}"),
        }
    }
}

/// Stops at once, and has long enough for everything.
pub fn at_once() -> ShutdownBuilder {
    Shutdown::builder().lame_duck(ms(0)).total(secs(20))
}

/// A server in a task of its own.
pub struct Server {
    pub handle: Handle,
    pub addr: SocketAddr,
    pub task: JoinHandle<Report>,
}

pub async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// Serves what is made around this handle, until its shutdown is done.
pub async fn serve(builder: ShutdownBuilder, app: impl FnOnce(&Handle) -> Router) -> Server {
    let shutdown = builder.build().unwrap();
    let handle = shutdown.handle();
    let (listener, addr) = listen().await;
    let task = tokio::spawn(shutdown.serve(listener, app(&handle)));
    Server { handle, addr, task }
}

impl Server {
    /// The report; nothing is left behind.
    pub async fn report(self) -> Report {
        let report = in_time(self.task).await.unwrap();
        assert_eq!((self.handle.connections(), self.handle.in_flight()), (0, 0), "{report}");
        assert_eq!(self.handle.state(), State::Done);
        assert_eq!((report.left, &report.guards[..]), (0, &[][..]), "{report}");
        report
    }

    /// The report of a shutdown in which all went well, with so many calls drained and rejected.
    pub async fn clean(self, drained: usize, rejected: u64) -> Report {
        let report = self.report().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.drained, report.rejected), (drained, rejected), "{report}");
        assert_eq!((report.connections_cut, &report.cut[..]), (0, &[][..]), "{report}");
        report
    }

    /// Told to stop, and nothing new is admitted.
    pub async fn stop(&self) {
        self.handle.trigger("deploy");
        in_time(self.handle.stopping()).await;
    }

    /// Until no connection is open.
    pub async fn nobody(&self) {
        in_time(async {
            while self.handle.connections() > 0 {
                sleep(ms(1)).await;
            }
        })
        .await;
    }
}

/// What the handlers of [`App::routes`] say and hear.
pub struct App {
    pub seen: Counts,
    /// Hears of every call of `/held`.
    pub began: mpsc::UnboundedReceiver<()>,
    told: mpsc::UnboundedSender<()>,
    /// Lets calls of `/held` go on.
    pub go: Arc<Semaphore>,
}

impl App {
    pub fn new() -> Self {
        let (told, began) = mpsc::unbounded_channel();
        Self { seen: Counts::default(), began, told, go: Arc::new(Semaphore::new(0)) }
    }

    /// `/` answers at once, `/held` when it may, `/echo` with its body; `/healthz` and `/readyz` are exempt.
    pub fn routes(&self, handle: &Handle) -> Router {
        let seen = self.seen.clone();
        let quick = move || async move {
            drop(seen.enter());
            "here"
        };
        let (seen, told, go) = (self.seen.clone(), self.told.clone(), self.go.clone());
        let held = move || async move {
            let _running = seen.enter();
            told.send(()).unwrap();
            go.acquire().await.unwrap().forget();
            "held"
        };
        let (seen, told) = (self.seen.clone(), self.told.clone());
        let echo = move |request: Request| async move {
            drop(seen.enter());
            told.send(()).unwrap();
            match request.into_body().collect().await {
                Ok(body) => body.to_bytes().into_response(),
                Err(_) => StatusCode::BAD_REQUEST.into_response(),
            }
        };
        Router::new()
            .route("/", any(quick))
            .route("/held", any(held))
            .route("/echo", any(echo))
            .route("/healthz", get(|| async { "alive" }))
            .layer(handle.in_flight_layer().exempt("/healthz").retry_after(secs(3)))
            .route("/readyz", get(handle.readiness()))
    }

    /// Until `/held` or `/echo` was called.
    pub async fn begun(&mut self) {
        in_time(self.began.recv()).await.unwrap();
    }

    pub fn let_go(&self) {
        self.go.add_permits(1);
    }
}

// ------------------------------------------------------------------------------------------------ clients

/// An HTTP/1 client that hides nothing.
pub struct Raw {
    pub stream: TcpStream,
    read: Vec<u8>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn closes(&self) -> bool {
        self.headers.get("connection").is_some_and(|value| value == "close")
    }

    fn length(&self) -> usize {
        self.headers.get("content-length").map_or(0, |length| length.parse().unwrap())
    }

    /// As the gate refuses: with when to come back, on a connection that is not kept.
    #[track_caller]
    pub fn assert_refused(&self) {
        assert_eq!((self.status, self.closes()), (503, true), "{self:?}");
        assert_eq!(self.headers["retry-after"], "3");
    }
}

/// A response's head, if it is whole, and how long it was.
fn head(bytes: &[u8]) -> Option<(Answer, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_ascii_lowercase())
    };
    Some((Answer { status, headers: lines.map(header).collect(), body: Vec::new() }, end + 4))
}

impl Raw {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self { stream: in_time(TcpStream::connect(addr)).await.unwrap(), read: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        in_time(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    pub async fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
    }

    async fn more(&mut self) -> io::Result<usize> {
        in_time(self.stream.read_buf(&mut self.read)).await
    }

    pub async fn head(&mut self) -> Answer {
        loop {
            if let Some((answer, length)) = head(&self.read) {
                self.read.drain(..length);
                return answer;
            }
            assert_ne!(self.more().await.expect("a response"), 0, "no response");
        }
    }

    pub async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        let length = answer.length();
        while self.read.len() < length {
            assert_ne!(self.more().await.expect("a body"), 0, "the response is cut short");
        }
        answer.body = self.read.drain(..length).collect();
        answer
    }

    pub async fn ask(&mut self, path: &str) -> Answer {
        self.get(path).await;
        self.answer().await
    }

    /// What still comes until the connection is closed, cleanly.
    pub async fn rest(mut self) -> Vec<u8> {
        while self.more().await.expect("a clean end") > 0 {}
        self.read
    }

    pub async fn closed(self) {
        assert_eq!(String::from_utf8(self.rest().await), Ok(String::new()));
    }
}

pub type H1 = http1::SendRequest<Body>;
pub type H2 = http2::SendRequest<Body>;

pub async fn h1(addr: SocketAddr) -> (H1, JoinHandle<hyper::Result<()>>) {
    let io = TokioIo::new(in_time(TcpStream::connect(addr)).await.unwrap());
    let (client, connection) = http1::handshake(io).await.unwrap();
    (client, tokio::spawn(connection))
}

pub async fn h2(addr: SocketAddr) -> (H2, JoinHandle<hyper::Result<()>>) {
    let stream = in_time(TcpStream::connect(addr)).await.unwrap();
    h2_over(stream, http2::Builder::new(TokioExecutor::new())).await
}

pub async fn h2_over<T>(io: T, builder: http2::Builder<TokioExecutor>) -> (H2, JoinHandle<hyper::Result<()>>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, connection) = in_time(builder.handshake(TokioIo::new(io))).await.unwrap();
    (client, tokio::spawn(connection))
}

pub fn request(path: &str) -> Request {
    Request::get(format!("http://localhost{path}")).body(Body::empty()).unwrap()
}

pub async fn text(response: axum::http::Response<Incoming>) -> String {
    let bytes = in_time(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

// ------------------------------------------------------------------------------------------------ calls in flight

// SHUTDOWN: 1
#[tokio::test]
async fn a_call_that_was_admitted_before_the_gate_closed_is_answered_and_counted() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut client = Raw::connect(server.addr).await;
    client.get("/held").await;
    app.begun().await;
    assert_eq!((server.handle.in_flight(), server.handle.connections()), (1, 1));

    server.stop().await;
    app.let_go();

    let answer = client.answer().await;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"held"[..]));
    assert!(answer.closes());
    client.closed().await;
    let report = server.clean(1, 0).await;
    assert_eq!(report.reason, Trigger::Asked("deploy".into()));
}

// SHUTDOWN: 1
#[tokio::test]
async fn over_http2_too_and_all_streams_of_a_connection_count() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let (client, connection) = h2(server.addr).await;
    let mut calls = Vec::new();
    for _ in 0..3 {
        calls.push(tokio::spawn(client.clone().send_request(request("/held"))));
        app.begun().await;
    }
    server.stop().await;
    for _ in 0..3 {
        app.let_go();
    }
    for call in calls {
        let response = in_time(call).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key(header::CONNECTION), "illegal on HTTP/2");
        assert_eq!(text(response).await, "held");
    }
    in_time(connection).await.unwrap().unwrap();
    server.clean(3, 0).await;
}

// SHUTDOWN: 4
#[tokio::test]
async fn a_request_on_a_kept_connection_in_the_lame_duck_time_is_answered_and_its_connection_ends() {
    let app = App::new();
    let server = serve(at_once().lame_duck(secs(2)), |handle| app.routes(handle)).await;
    let mut client = Raw::connect(server.addr).await;
    let answer = client.ask("/").await;
    assert_eq!((answer.status, answer.closes()), (200, false));

    server.handle.trigger("deploy");
    let answer = client.ask("/").await;
    assert_eq!((answer.status, answer.closes()), (200, true));
    client.closed().await;

    // A new connection is as welcome, and told the same; that holds for what is exempt and for what does not exist.
    for (path, status) in [("/", 200), ("/healthz", 200), ("/readyz", 503), ("/nothing", 404)] {
        let mut client = Raw::connect(server.addr).await;
        let answer = client.ask(path).await;
        assert_eq!((answer.status, answer.closes()), (status, true), "{path}");
        client.closed().await;
    }
    assert_eq!(server.handle.state(), State::Draining, "the test was too slow");
    server.clean(0, 0).await;
}

// SHUTDOWN: 4
#[tokio::test]
async fn an_http_1_0_client_that_asks_to_be_kept_is_told_too() {
    let app = App::new();
    let server = serve(at_once().lame_duck(secs(1)), |handle| app.routes(handle)).await;
    let mut client = Raw::connect(server.addr).await;
    let kept = "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n";
    client.send(kept).await;
    assert!(!client.answer().await.closes());
    server.handle.trigger("deploy");
    client.send(kept).await;
    // hyper adds its `keep-alive` to what it was asked of in that version, but closes.
    assert!(client.answer().await.headers["connection"].starts_with("close"));
    client.closed().await;
    server.clean(0, 0).await;
}

// SHUTDOWN: 5
#[tokio::test]
async fn an_http2_connection_is_told_to_go_away_once_nothing_is_admitted_and_its_streams_finish() {
    let mut app = App::new();
    let server = serve(at_once().lame_duck(ms(500)), |handle| app.routes(handle)).await;
    let mut client = Frames::connect(server.addr).await;
    client.get(1, "/held").await;
    app.begun().await;
    server.handle.trigger("deploy");

    // In the lame-duck time there is no GOAWAY: everything up to its end comes before it.
    client.get(3, "/").await;
    client.until(|frame| frame.is(DATA, 3)).await;
    assert_eq!(server.handle.state(), State::Draining, "the test was too slow");
    let first = client.until(|frame| frame.kind == GOAWAY).await;
    assert_eq!(server.handle.state(), State::Stopping);
    assert_eq!(first.last_stream(), i32::MAX as u32, "first that there will be one");
    let second = client.until(|frame| frame.kind == GOAWAY).await;
    assert_eq!(second.last_stream(), i32::MAX as u32, "then hyper's own, after what was on its way has come");
    let last = client.until(|frame| frame.kind == GOAWAY).await;
    assert_eq!(last.last_stream(), 3, "then, once that was heard, up to where");
    assert_eq!(last.error(), 0);

    app.let_go();
    client.until(|frame| frame.is(DATA, 1)).await;
    client.closed().await;
    server.clean(1, 0).await;
}

// SHUTDOWN: 5
#[tokio::test]
async fn a_stream_in_the_lame_duck_time_is_answered_without_the_header_of_http_1() {
    let app = App::new();
    let server = serve(at_once().lame_duck(secs(1)), |handle| app.routes(handle)).await;
    let (mut client, connection) = h2(server.addr).await;
    server.handle.trigger("deploy");
    for _ in 0..2 {
        let response = in_time(client.send_request(request("/"))).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key(header::CONNECTION));
    }
    assert_eq!(server.handle.state(), State::Draining, "the test was too slow");
    in_time(connection).await.unwrap().unwrap();
    server.clean(0, 0).await;
}

// SHUTDOWN: 1
#[tokio::test]
async fn what_began_in_the_lame_duck_time_is_drained_as_well() {
    let mut app = App::new();
    let server = serve(at_once().lame_duck(ms(300)), |handle| app.routes(handle)).await;
    server.handle.trigger("deploy");
    let mut client = Raw::connect(server.addr).await;
    client.get("/held").await;
    app.begun().await;
    in_time(server.handle.stopping()).await;
    app.let_go();
    assert_eq!(client.answer().await.status, 200);
    server.clean(1, 0).await;
}

// ------------------------------------------------------------------------------------------------ the gate

// SHUTDOWN: 6
#[tokio::test]
async fn a_request_after_the_gate_closed_is_refused_and_told_when_to_come_back() {
    let app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let (mut kept, mut second) = (Raw::connect(server.addr).await, Raw::connect(server.addr).await);
    assert_eq!(kept.ask("/").await.status, 200);
    assert_eq!(second.ask("/").await.status, 200);
    assert_eq!(app.seen.calls(), 2);

    server.stop().await;
    for mut client in [kept, second] {
        client.ask("/").await.assert_refused();
        client.closed().await;
    }
    assert_eq!(app.seen.calls(), 2, "the app is not called");
    server.clean(0, 2).await;
}

// SHUTDOWN: 6
#[tokio::test]
async fn a_stream_after_the_gate_closed_is_refused_as_well() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    // By hand, as a client that has heard the GOAWAY would not send it.
    let mut client = Frames::connect(server.addr).await;
    client.acks = false;
    client.get(1, "/held").await;
    app.begun().await;
    server.stop().await;
    client.until(|frame| frame.kind == GOAWAY).await;
    client.get(3, "/").await;
    let refused = client.until(|frame| frame.is(HEADERS, 3)).await;
    // `:status: 503` and `retry-after: 3`, by RFC 7541: the first is a literal of a known name, plain or Huffman.
    let has = |what: &[u8]| refused.payload.windows(what.len()).any(|window| window == what);
    assert!(has(b"503") || has(&[0x6c, 0x0c, 0xff]), "{:02x?}", refused.payload);
    assert_eq!(app.seen.calls(), 1, "the app is not called");
    app.let_go();
    client.until(|frame| frame.is(DATA, 1)).await;
    client.rest().await;
    server.clean(1, 1).await;
}

// SHUTDOWN: 7
#[tokio::test]
async fn what_is_exempt_passes_to_the_end_and_readiness_turns_before_anything_is_refused() {
    let mut app = App::new();
    let server = serve(at_once().lame_duck(ms(500)), |handle| app.routes(handle)).await;
    let mut holding = Raw::connect(server.addr).await;
    holding.get("/held").await;
    app.begun().await;
    // One connection for each question, as each is answered with a close.
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Raw::connect(server.addr).await;
        assert_eq!(client.ask("/readyz").await.status, 200);
        clients.push(client);
    }
    let mut next = || clients.pop().unwrap();

    server.handle.trigger("deploy");
    let unready = next().ask("/readyz").await;
    assert_eq!((unready.status, &unready.body[..]), (503, &b"draining"[..]));
    assert_eq!(next().ask("/").await.status, 200, "nothing is refused yet");
    assert_eq!(server.handle.state(), State::Draining, "the test was too slow");

    in_time(server.handle.stopping()).await;
    assert_eq!(next().ask("/healthz").await.body, b"alive");
    let unready = next().ask("/readyz").await;
    assert_eq!((unready.status, &unready.body[..]), (503, &b"stopping"[..]));
    next().ask("/").await.assert_refused();
    app.let_go();
    assert_eq!(holding.answer().await.status, 200);
    server.clean(1, 1).await;
}

// ------------------------------------------------------------------------------------------------ kept connections

// hyper closes a kept HTTP/1 connection as soon as it is told to stop, whatever is on its way.
#[tokio::test]
async fn a_kept_connection_gets_an_answer_to_what_was_on_its_way_and_an_idle_one_is_closed() {
    let app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let (mut busy, mut idle) = (Raw::connect(server.addr).await, Raw::connect(server.addr).await);
    for client in [&mut busy, &mut idle] {
        assert!(!client.ask("/").await.closes());
    }
    server.stop().await;
    // Well within the time that a connection may be quiet.
    sleep(ms(100)).await;
    busy.ask("/").await.assert_refused();
    busy.closed().await;
    idle.closed().await;
    server.clean(0, 1).await;
}

#[tokio::test]
async fn a_response_that_began_before_draining_has_promised_to_keep_the_connection_and_that_holds_for_one_more() {
    let app = App::new();
    let (sender, body) = streaming();
    let server =
        serve(at_once(), |handle| app.routes(handle).route("/stream", once(body).layer(handle.in_flight_layer())))
            .await;
    let mut client = Raw::connect(server.addr).await;
    client.get("/stream").await;
    assert!(!client.head().await.closes());
    server.stop().await;
    // Longer than a quiet connection is left alone.
    sleep(ms(1_200)).await;
    sender.send(Ok("late".into())).unwrap();
    drop(sender);
    while !client.read.ends_with(b"0\r\n\r\n") {
        assert_ne!(client.more().await.unwrap(), 0, "cut short: {:?}", client.read);
    }
    assert_eq!(client.read, b"4\r\nlate\r\n0\r\n\r\n");
    client.read.clear();
    client.ask("/").await.assert_refused();
    client.closed().await;
    server.clean(1, 1).await;
}

#[tokio::test]
async fn of_requests_that_are_pipelined_the_one_that_runs_is_answered_in_full() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut client = Raw::connect(server.addr).await;
    client.send("GET /held HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    app.begun().await;
    server.stop().await;
    app.let_go();
    // It says that the connection closes; by RFC 9112, 9.3.2, the client then knows that the others were not looked at.
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.closes(), &answer.body[..]), (200, true, &b"held"[..]));
    assert_eq!(app.seen.calls(), 1);
    server.clean(1, 0).await;
}

#[tokio::test]
async fn a_request_whose_body_is_being_uploaded_is_waited_for() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut client = Raw::connect(server.addr).await;
    client.send("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nfirst").await;
    app.begun().await;
    server.stop().await;
    // Longer than a connection without a call may be quiet.
    sleep(ms(1_200)).await;
    client.send("later").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.closes(), &answer.body[..]), (200, true, &b"firstlater"[..]));
    client.closed().await;
    server.clean(1, 0).await;
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it_if_it_is_in_and_503_if_it_is_not() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let (mut inside, mut outside) = (Raw::connect(server.addr).await, Raw::connect(server.addr).await);
    let expecting = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n";
    assert_eq!(outside.ask("/").await.status, 200);
    inside.send(expecting).await;
    app.begun().await;
    server.stop().await;

    outside.send(expecting).await;
    outside.answer().await.assert_refused();
    outside.closed().await;

    assert_eq!(inside.head().await.status, 100);
    inside.send("body").await;
    let answer = inside.answer().await;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"body"[..]));
    inside.closed().await;
    server.clean(1, 1).await;
}

// A server that closes a socket with unread bytes in it resets the connection, and what it said is lost with that.
#[tokio::test]
async fn whoever_uploads_a_large_body_hears_that_it_was_refused() {
    let app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let (mut client, connection) = h1(server.addr).await;
    let response = in_time(client.send_request(request("/"))).await.unwrap();
    assert_eq!(text(response).await, "here");
    in_time(client.ready()).await.unwrap();
    server.stop().await;
    let upload = Request::post("/echo").body(Body::from(vec![b'x'; 8 << 20])).unwrap();
    let response = in_time(client.send_request(upload)).await.expect("an answer");
    assert_eq!(response.status(), 503);
    let _ = in_time(connection).await.unwrap();
    server.clean(0, 1).await;
}

// The same by hand: everything is written, then the answer is read to a clean end.
#[tokio::test]
async fn a_refused_upload_ends_without_a_reset() {
    let app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut client = Raw::connect(server.addr).await;
    assert_eq!(client.ask("/").await.status, 200);
    server.stop().await;
    let length = 4 << 20;
    client.send(format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n")).await;
    let (mut read, mut write) = client.stream.into_split();
    let writing = tokio::spawn(async move {
        let written = write.write_all(&vec![b'x'; length]).await;
        (written, write)
    });
    let mut all = Vec::new();
    let ended = in_time(read.read_to_end(&mut all)).await;
    let (answer, _) = head(&all).expect("an answer");
    answer.assert_refused();
    ended.expect("no reset");
    drop(in_time(writing).await);
    server.clean(0, 1).await;
}

/// While the process runs, an idle connection is the client's: a load balancer keeps one for a minute and more, and a
/// server that closes it sooner loses the request that is on its way.
#[tokio::test]
async fn while_it_runs_an_idle_connection_is_kept_for_as_long_as_load_balancers_keep_theirs() {
    let app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut client = Raw::connect(server.addr).await;
    assert_eq!(client.ask("/").await.status, 200);
    pause();
    advance(secs(75)).await;
    resume();
    settle().await;
    assert_eq!(server.handle.connections(), 1, "it was closed");
    assert_eq!(client.ask("/").await.status, 200);
    server.stop().await;
    server.clean(0, 0).await;
}

// ------------------------------------------------------------------------------------------------ the backlog

/// Connects and asks, without the runtime.
fn ask_outside(addr: SocketAddr) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    stream
}

/// The status, or how it ended; to be called outside of the runtime.
fn hear_outside(mut stream: std::net::TcpStream) -> io::Result<u16> {
    stream.set_read_timeout(Some(secs(20))).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    head(&all).map(|(answer, _)| answer.status).ok_or_else(|| ErrorKind::UnexpectedEof.into())
}

async fn hear_all(streams: Vec<std::net::TcpStream>) -> Vec<io::Result<u16>> {
    in_time(tokio::task::spawn_blocking(|| streams.into_iter().map(hear_outside).collect())).await.unwrap()
}

// SHUTDOWN: 8
#[tokio::test]
async fn what_waits_in_the_backlog_when_the_gate_closes_is_answered() {
    for round in 0..10 {
        let app = App::new();
        let shutdown = at_once().build().unwrap();
        let handle = shutdown.handle();
        let (listener, addr) = listen().await;
        // It waits in front of the accept loop, and there is one thread: once nothing is admitted, this comes first. Not if
        // both are woken in between, so it is ready before.
        handle.ready();
        let arriving = {
            let stopping = handle.stopping();
            tokio::spawn(async move {
                stopping.await;
                (0..100).map(|_| ask_outside(addr)).collect::<Vec<_>>()
            })
        };
        settle().await;
        let task = tokio::spawn(shutdown.serve(listener, app.routes(&handle)));
        settle().await;
        handle.trigger("deploy");
        let answers = hear_all(in_time(arriving).await.unwrap()).await;
        assert!(answers.iter().all(|answer| matches!(answer, Ok(503))), "round {round}: {answers:?}");
        Server { handle, addr, task }.clean(0, 100).await;
        assert_eq!(app.seen.calls(), 0);
    }
}

// SHUTDOWN: 8, 15
#[tokio::test]
async fn what_waits_in_the_backlog_of_a_server_that_was_told_to_stop_before_it_served_is_answered() {
    let app = App::new();
    let shutdown = at_once().build().unwrap();
    let handle = shutdown.handle();
    let (listener, addr) = listen().await;
    let streams: Vec<_> = (0..50).map(|_| ask_outside(addr)).collect();
    assert!(handle.trigger("early"));
    let task = tokio::spawn(shutdown.serve(listener, app.routes(&handle)));
    let answers = hear_all(streams).await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(200 | 503))), "{answers:?}");
    // The report may have been made before they came.
    let report = in_time(task).await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.reason, Trigger::Asked("early".into()));
}

// SHUTDOWN: 8, 15
#[tokio::test]
async fn even_if_nothing_was_admitted_any_more_when_it_began_to_serve() {
    let app = App::new();
    let shutdown = at_once().build().unwrap();
    let handle = shutdown.handle();
    // Something holds the shutdown, so that it is not done yet.
    let guard = handle.guard("starting up").unwrap();
    let (listener, addr) = listen().await;
    let streams: Vec<_> = (0..10).map(|_| ask_outside(addr)).collect();
    handle.trigger("early");
    in_time(handle.stopping()).await;
    let task = tokio::spawn(shutdown.serve(listener, app.routes(&handle)));
    let answers = hear_all(streams).await;
    drop(guard);
    assert!(answers.iter().all(|answer| matches!(answer, Ok(503))), "{answers:?}");
    Server { handle, addr, task }.clean(1, 10).await;
}

// SHUTDOWN: 15
#[tokio::test]
async fn told_to_stop_before_it_serves_it_still_serves_for_the_lame_duck_time() {
    let app = App::new();
    let shutdown = at_once().lame_duck(ms(500)).build().unwrap();
    let handle = shutdown.handle();
    handle.trigger("early");
    let (listener, addr) = listen().await;
    let task = tokio::spawn(shutdown.serve(listener, app.routes(&handle)));
    let mut client = Raw::connect(addr).await;
    let answer = client.ask("/").await;
    assert_eq!((answer.status, answer.closes()), (200, true));
    assert!(!handle.is_ready());
    let report = Server { handle, addr, task }.clean(0, 0).await;
    assert_eq!(report.reason, Trigger::Asked("early".into()));
}

// SHUTDOWN: 8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_clients_that_go_on_connecting_through_the_stop_each_is_answered_or_never_connected() {
    for round in 0..5 {
        let app = App::new();
        let server = serve(at_once().lame_duck(ms(50)), |handle| app.routes(handle)).await;
        let addr = server.addr;
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(move || {
                    let mut statuses = Vec::new();
                    loop {
                        let Ok(mut stream) = std::net::TcpStream::connect(addr) else { return statuses };
                        let asked = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
                        statuses.push(asked.and_then(|()| hear_outside(stream)));
                    }
                })
            })
            .collect();
        while app.seen.calls() < 50 {
            sleep(ms(1)).await;
        }
        server.handle.trigger("deploy");
        let report = server.report().await;
        let all = tokio::task::spawn_blocking(|| {
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let all = in_time(all).await.unwrap();
        let lost: Vec<_> = all.iter().filter(|answer| !matches!(answer, Ok(200 | 503))).collect();
        assert!(lost.is_empty(), "round {round}: lost {} of {}: {lost:?}", lost.len(), all.len());
        let refused = all.iter().filter(|answer| matches!(answer, Ok(503))).count();
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.rejected, refused as u64);
        assert_eq!(app.seen.calls() + refused, all.len());
    }
}

#[tokio::test]
async fn once_the_listener_is_closed_nobody_connects() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut client = Raw::connect(server.addr).await;
    client.get("/held").await;
    app.begun().await;
    server.stop().await;
    in_time(async { while TcpStream::connect(server.addr).await.is_ok() {} }).await;
    assert_eq!(server.handle.connections(), 1);
    app.let_go();
    client.answer().await;
    server.clean(1, 0).await;
}

// ------------------------------------------------------------------------------------------------ several listeners

#[tokio::test]
async fn several_listeners_are_one_shutdown() {
    let mut app = App::new();
    let shutdown = at_once().build().unwrap();
    let handle = shutdown.handle();
    let (admin, admin_addr) = listen().await;
    let (listener, addr) = listen().await;
    let router = app.routes(&handle);
    let serving = {
        let (handle, router) = (handle.clone(), router.clone());
        tokio::spawn(async move { handle.serve(admin, router).await })
    };
    let task = tokio::spawn(shutdown.serve(listener, router));
    let server = Server { handle, addr, task };
    let (mut one, mut two) = (Raw::connect(addr).await, Raw::connect(admin_addr).await);
    one.get("/held").await;
    app.begun().await;
    two.get("/held").await;
    app.begun().await;
    server.stop().await;
    in_time(serving).await.unwrap();
    assert_eq!((server.handle.in_flight(), server.handle.connections()), (2, 2));
    for mut client in [one, two] {
        app.let_go();
        assert_eq!(client.answer().await.status, 200);
        client.closed().await;
    }
    server.clean(2, 0).await;
}

#[tokio::test]
async fn a_listener_whose_future_is_dropped_is_closed_and_its_connections_go_on() {
    let mut app = App::new();
    let shutdown = at_once().build().unwrap();
    let handle = shutdown.handle();
    let (admin, admin_addr) = listen().await;
    let serving = {
        let (handle, router) = (handle.clone(), app.routes(&handle));
        tokio::spawn(async move { handle.serve(admin, router).await })
    };
    let mut client = Raw::connect(admin_addr).await;
    client.get("/held").await;
    app.begun().await;
    serving.abort();
    assert!(in_time(serving).await.unwrap_err().is_cancelled());
    assert_eq!(handle.connections(), 1);
    handle.trigger("deploy");
    in_time(handle.stopping()).await;
    app.let_go();
    assert_eq!(client.answer().await.status, 200);
    client.closed().await;
    let report = in_time(shutdown.wait()).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.drained, handle.connections()), (1, 0));
}

// ------------------------------------------------------------------------------------------------ forced

// SHUTDOWN: 28
#[tokio::test]
async fn dropping_the_future_of_serve_aborts_the_connections() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut one = Raw::connect(server.addr).await;
    one.get("/held").await;
    app.begun().await;
    let (mut client, connection) = h2(server.addr).await;
    let call = tokio::spawn(async move { client.send_request(request("/held")).await });
    app.begun().await;
    assert_eq!(app.seen.running(), 2);

    server.task.abort();
    assert!(in_time(server.task).await.unwrap_err().is_cancelled());
    let report = in_time(server.handle.wait()).await;

    assert_eq!(report.forced, Some(Force::Dropped));
    assert_eq!((report.connections_cut, &report.cut[..]), (2, &[("calls", 2)][..]), "{report}");
    assert_eq!((report.drained, report.left), (0, 0), "{report}");
    assert_eq!(app.seen.running(), 0, "the handlers are dropped");
    assert_eq!((server.handle.connections(), server.handle.in_flight()), (0, 0));
    one.closed().await;
    assert!(in_time(call).await.unwrap().is_err());
    let _ = in_time(connection).await.unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err(), "the listener is closed");
}

/// On paused time, which goes on when nobody has anything to do: what is waited for shows.
#[tokio::test]
#[allow(clippy::disallowed_methods)] // tokio's clock, to see that nothing took any time
async fn who_is_forced_waits_for_no_handshake() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut one = Raw::connect(server.addr).await;
    one.get("/held").await;
    app.begun().await;
    pause();
    let begun = Instant::now();
    server.handle.force();
    let report = server.task.await.unwrap();
    assert_eq!((report.forced, begun.elapsed()), (Some(Force::Asked), ms(0)), "{report}");
}

#[tokio::test]
async fn the_app_is_told_who_asks() {
    let whom = |handle: &Handle| {
        let who = async |Extension(PeerAddr(peer)): Extension<PeerAddr>| peer.to_string();
        Router::new().route("/who", get(who)).layer(handle.in_flight_layer())
    };
    let server = serve(at_once(), whom).await;
    let mut one = Raw::connect(server.addr).await;
    let addr = one.stream.local_addr().unwrap().to_string();
    one.get("/who").await;
    assert_eq!(one.answer().await.body, addr.as_bytes());
    server.stop().await;
    one.closed().await;
    assert!(server.report().await.is_clean());
}

#[tokio::test]
async fn what_is_not_over_at_the_deadline_is_cut_and_counted() {
    let mut app = App::new();
    let server = serve(at_once().total(ms(300)), |handle| app.routes(handle)).await;
    let mut one = Raw::connect(server.addr).await;
    one.get("/held").await;
    app.begun().await;
    let (client, _connection) = h2(server.addr).await;
    for _ in 0..2 {
        let mut client = client.clone();
        tokio::spawn(async move { client.send_request(request("/held")).await });
        app.begun().await;
    }
    // This one comes to its end in time.
    let mut other = client.clone();
    let good = tokio::spawn(async move { other.send_request(request("/echo")).await });
    app.begun().await;
    assert_eq!(text(in_time(good).await.unwrap().unwrap()).await, "");
    server.stop().await;
    one.closed().await;
    let report = server.report().await;
    assert_eq!(report.forced, Some(Force::Deadline));
    assert_eq!((report.drained, report.connections_cut, &report.cut[..]), (0, 2, &[("calls", 3)][..]), "{report}");
    assert_eq!(report.exit_code(), 1);
}

// ------------------------------------------------------------------------------------------------ bodies

fn streaming() -> (mpsc::UnboundedSender<io::Result<Bytes>>, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Body::from_stream(tokio_stream::wrappers::UnboundedReceiverStream::new(receiver)))
}

/// Answers with this body, to one request.
fn once(body: Body) -> MethodRouter {
    let body = Arc::new(Mutex::new(Some(body)));
    get(move || async move { body.lock().unwrap().take().unwrap() })
}

/// So many bytes, none of which stands for its neighbour.
fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// A stream that takes its time.
pub struct Slow {
    stream: TcpStream,
    /// So many bytes, then a pause.
    step: usize,
    taken: usize,
    pause: Duration,
    waiting: Pin<Box<Sleep>>,
}

impl Slow {
    /// With a small receive buffer, so that the rest is still in the server's.
    pub async fn connect(addr: SocketAddr, buffer: u32, step: usize, pause: Duration) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(buffer).unwrap();
        let stream = in_time(socket.connect(addr)).await.unwrap();
        Self { stream, step, taken: 0, pause, waiting: Box::pin(sleep(ms(0))) }
    }
}

impl AsyncRead for Slow {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.waiting.as_mut().poll(cx));
        let mut bytes = vec![0; self.step.min(buf.remaining())];
        let mut part = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        self.taken += part.filled().len();
        if self.taken >= self.step {
            self.taken = 0;
            let pause = self.pause;
            self.waiting = Box::pin(sleep(pause));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Slow {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Answers with this at `/big`.
fn big(body: Bytes) -> impl FnOnce(&Handle) -> Router {
    move |handle| Router::new().route("/big", get(|| async { body })).layer(handle.in_flight_layer())
}

async fn collect(mut body: Incoming) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    while let Some(frame) = in_time(body.frame()).await {
        match frame {
            Ok(frame) => all.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(error) => return Err(format!("{error:?} after {} bytes", all.len())),
        }
    }
    Ok(all)
}

// SHUTDOWN: 12
#[tokio::test]
async fn fifty_megabytes_arrive_whole_at_a_slow_reader_over_http_1() {
    let body = pattern(50 << 20);
    let server = serve(at_once(), big(body.clone())).await;
    let io = Slow::connect(server.addr, 1 << 20, 256 << 10, ms(5)).await;
    let (mut client, connection) = http1::handshake::<_, Body>(TokioIo::new(io)).await.unwrap();
    let connection = tokio::spawn(connection);
    let response = in_time(client.send_request(request("/big"))).await.unwrap();
    server.stop().await;
    assert_eq!(collect(response.into_body()).await.map(|all| all == body), Ok(true));
    in_time(connection).await.unwrap().unwrap();
    let report = server.report().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.connections_cut, 0);
}

// SHUTDOWN: 12
#[tokio::test]
async fn fifty_megabytes_arrive_whole_at_a_slow_reader_over_http2() {
    let body = pattern(50 << 20);
    let server = serve(at_once(), big(body.clone())).await;
    let io = Slow::connect(server.addr, 1 << 20, 256 << 10, ms(5)).await;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1 << 20).initial_connection_window_size(1 << 20);
    let (mut client, connection) = h2_over(io, builder).await;
    let response = in_time(client.send_request(request("/big"))).await.unwrap();
    server.stop().await;
    assert_eq!(collect(response.into_body()).await.map(|all| all == body), Ok(true));
    in_time(connection).await.unwrap().unwrap();
    let report = server.report().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.connections_cut, 0);
}

/// Reads nothing for longer than a connection may be quiet, and then everything.
async fn pause_and_read(server: Server, response: axum::http::Response<Incoming>, body: &Bytes) {
    server.stop().await;
    sleep(ms(2_500)).await;
    assert_eq!(server.handle.state(), State::Stopping, "it was not waited for");
    assert_eq!(collect(response.into_body()).await.map(|all| all == *body), Ok(true));
    let report = server.report().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.connections_cut, 0);
}

// SHUTDOWN: 12
// The socket is blocked meanwhile.
#[tokio::test]
async fn a_reader_that_pauses_for_longer_than_a_connection_may_be_quiet_loses_nothing_over_http_1() {
    let body = pattern(4 << 20);
    let server = serve(at_once(), big(body.clone())).await;
    let io = Slow::connect(server.addr, 32 << 10, usize::MAX, ms(0)).await;
    let (mut client, connection) = http1::handshake::<_, Body>(TokioIo::new(io)).await.unwrap();
    let connection = tokio::spawn(connection);
    let response = in_time(client.send_request(request("/big"))).await.unwrap();
    pause_and_read(server, response, &body).await;
    in_time(connection).await.unwrap().unwrap();
}

// SHUTDOWN: 12
// The socket is not blocked: the rest waits for the peer's window, and the body was handed over long ago.
#[tokio::test]
async fn a_reader_that_pauses_for_longer_than_a_connection_may_be_quiet_loses_nothing_over_http2() {
    let body = pattern(4 << 20);
    let server = serve(at_once(), big(body.clone())).await;
    let (mut client, connection) = h2(server.addr).await;
    let response = in_time(client.send_request(request("/big"))).await.unwrap();
    pause_and_read(server, response, &body).await;
    in_time(connection).await.unwrap().unwrap();
}

/// What has been written is still in the socket's buffer when the server closes it, and a client of HTTP/2 goes on talking:
/// it acknowledges with every window update. What comes for a closed socket resets it, and with that the rest is lost.
#[tokio::test]
async fn the_end_of_a_response_is_not_lost_because_its_reader_still_talks() {
    let body = pattern(3 << 20);
    let server = serve(at_once(), big(body.clone())).await;
    // Slow on the socket, so that the tail is in the server's buffer; windows so large that it gets there.
    let io = Slow::connect(server.addr, 32 << 10, 16 << 10, ms(2)).await;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(2 << 20).initial_connection_window_size(2 << 20);
    let (mut client, connection) = h2_over(io, builder).await;
    let response = in_time(client.send_request(request("/big"))).await.unwrap();
    server.stop().await;
    assert_eq!(collect(response.into_body()).await.map(|all| all == body), Ok(true));
    let _ = in_time(connection).await.unwrap();
    let report = server.report().await;
    assert!(report.is_clean(), "{report}");
}

/// The same over HTTP/1: a client that pipelines, or sends more of a body than anybody wants.
#[tokio::test]
async fn the_end_of_a_response_is_not_lost_because_more_was_sent_than_is_read() {
    let body = pattern(2 << 20);
    let server = serve(at_once(), big(body.clone())).await;
    let mut io = Slow::connect(server.addr, 32 << 10, 16 << 10, ms(2)).await;
    io.stream.write_all(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut all = vec![0; 1];
    in_time(io.stream.read_exact(&mut all)).await.unwrap();
    server.stop().await;
    // The second is read by hyper, which looks whether the client is still there; the third stays in the socket.
    for _ in 0..2 {
        io.stream.write_all(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        sleep(ms(50)).await;
    }
    let ended = in_time(io.read_to_end(&mut all)).await;
    let (answer, length) = head(&all).unwrap();
    let read = all.len() - length;
    assert!(read >= answer.length(), "{ended:?} after {read} of {} bytes", answer.length());
    server.report().await;
}

// SHUTDOWN: 13
#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_leaves_nothing_behind() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut one = Raw::connect(server.addr).await;
    one.get("/held").await;
    app.begun().await;
    let mut other = Frames::connect(server.addr).await;
    other.get(1, "/held").await;
    app.begun().await;
    assert_eq!(server.handle.in_flight(), 2);

    drop((one, other));
    server.nobody().await;
    in_time(async {
        while server.handle.in_flight() > 0 {
            sleep(ms(1)).await;
        }
    })
    .await;
    assert_eq!(app.seen.running(), 0);
    server.stop().await;
    server.clean(0, 0).await;
}

// SHUTDOWN: 13
#[tokio::test]
async fn a_client_that_goes_away_while_it_drains_is_not_waited_for() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut one = Raw::connect(server.addr).await;
    one.get("/held").await;
    app.begun().await;
    let (mut client, connection) = h2(server.addr).await;
    let call = tokio::spawn(async move { client.send_request(request("/held")).await });
    app.begun().await;
    server.stop().await;
    drop(one);
    // One stream is reset, on a connection that stays.
    call.abort();
    in_time(connection).await.unwrap().unwrap();
    // They were there when the gate closed, and are gone by themselves: nothing was cut.
    server.clean(2, 0).await;
    assert_eq!(app.seen.running(), 0);
}

// SHUTDOWN: 14
#[tokio::test]
async fn a_panic_of_a_handler_or_of_a_body_leaves_nothing_behind() {
    let app = |handle: &Handle| {
        let body = || {
            let frames = tokio_stream::iter([0, 1]).map(|n| match n {
                0 => Ok::<_, io::Error>(Bytes::from_static(b"first")),
                _ => panic!("the body panics, as it should"),
            });
            Body::from_stream(frames)
        };
        use tokio_stream::StreamExt;
        async fn handler() -> &'static str {
            panic!("the handler panics, as it should")
        }
        Router::new()
            .route("/handler", get(handler))
            .route("/body", get(move || async move { body() }))
            .layer(handle.in_flight_layer())
    };
    let server = serve(at_once(), app).await;
    for path in ["/handler", "/body"] {
        let mut client = Raw::connect(server.addr).await;
        client.get(path).await;
        let _ = client.rest().await;
        let (mut client, connection) = h2(server.addr).await;
        if let Ok(response) = in_time(client.send_request(request(path))).await {
            assert!(collect(response.into_body()).await.is_err());
        }
        drop(client);
        let _ = in_time(connection).await;
    }
    server.nobody().await;
    assert_eq!(server.handle.in_flight(), 0);
    server.stop().await;
    server.clean(0, 0).await;
}

// SHUTDOWN: 14
#[tokio::test]
async fn a_panic_while_it_drains_does_not_keep_it() {
    let (told, mut began) = mpsc::unbounded_channel();
    let go = Arc::new(Semaphore::new(0));
    let server = {
        let go = go.clone();
        serve(at_once(), move |handle| {
            let handler = move || async move {
                told.send(()).unwrap();
                go.acquire().await.unwrap().forget();
                if true {
                    panic!("as it should");
                }
            };
            Router::new().route("/", get(handler)).layer(handle.in_flight_layer())
        })
        .await
    };
    let mut one = Raw::connect(server.addr).await;
    one.get("/").await;
    in_time(began.recv()).await.unwrap();
    let (mut client, connection) = h2(server.addr).await;
    let call = tokio::spawn(async move { client.send_request(request("/")).await });
    in_time(began.recv()).await.unwrap();
    server.stop().await;
    go.add_permits(2);
    assert!(in_time(call).await.unwrap().is_err());
    one.closed().await;
    in_time(connection).await.unwrap().unwrap();
    server.clean(2, 0).await;
}

// SHUTDOWN: 10
#[tokio::test]
async fn events_end_on_draining_and_those_that_do_not_are_forced_and_named() {
    let app = |handle: &Handle| {
        let events = |ends: bool, handle: &Handle| {
            let handle = handle.clone();
            move || async move {
                let (sender, body) = streaming();
                sender.send(Ok("data: hello\n\n".into())).unwrap();
                tokio::spawn(async move {
                    if ends {
                        handle.draining().await;
                        sender.send(Ok("data: bye\n\n".into())).unwrap();
                    } else {
                        sender.closed().await;
                    }
                });
                ([(header::CONTENT_TYPE, "text/event-stream")], body)
            }
        };
        Router::new()
            .route("/good", get(events(true, handle)).layer(handle.in_flight_layer().named("good events")))
            .route("/bad", get(events(false, handle)).layer(handle.in_flight_layer().named("bad events")))
    };
    let server = serve(at_once().lame_duck(ms(300)).total(secs(1)), app).await;
    let mut good = Raw::connect(server.addr).await;
    good.get("/good").await;
    assert_eq!(good.head().await.status, 200);
    let mut bad = Raw::connect(server.addr).await;
    bad.get("/bad").await;
    assert_eq!(bad.head().await.status, 200);
    let (mut client, _connection) = h2(server.addr).await;
    let also_bad = in_time(client.send_request(request("/bad"))).await.unwrap();
    assert_eq!(server.handle.in_flight(), 3);

    server.handle.trigger("deploy");
    while !good.read.ends_with(b"0\r\n\r\n") {
        assert_ne!(good.more().await.unwrap(), 0, "cut short");
    }
    assert!(String::from_utf8_lossy(&good.read).contains("data: bye\n\n"));
    assert_eq!(server.handle.state(), State::Draining, "the test was too slow");
    in_time(server.handle.stopping()).await;
    assert_eq!(server.handle.in_flight(), 2);
    let told = bad.rest().await;
    assert!(!told.ends_with(b"0\r\n\r\n"), "cut, and not as if it had ended");
    assert!(collect(also_bad.into_body()).await.is_err());
    let report = server.report().await;
    assert_eq!(report.forced, Some(Force::Deadline));
    assert_eq!(report.drained, 0, "{report}");
    assert_eq!(report.cut, [("bad events", 2)]);
    assert!(report.to_string().contains("2 of `bad events` did not end in time"), "{report}");
}

// ------------------------------------------------------------------------------------------------ frames of HTTP/2

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
const ACK: u8 = 1;

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn is(&self, kind: u8, stream: u32) -> bool {
        (self.kind, self.stream) == (kind, stream)
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    fn last_stream(&self) -> u32 {
        self.word(0)
    }

    fn error(&self) -> u32 {
        self.word(4)
    }
}

/// An HTTP/2 client that does only what it is told.
pub struct Frames {
    pub stream: TcpStream,
    /// Whether it answers SETTINGS and PING.
    pub acks: bool,
}

impl Frames {
    /// Sends the preface and these settings.
    pub async fn with_settings(addr: SocketAddr, settings: &[u8]) -> Self {
        let mut stream = in_time(TcpStream::connect(addr)).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut client = Self { stream, acks: true };
        client.send(SETTINGS, 0, 0, settings).await;
        client
    }

    pub async fn connect(addr: SocketAddr) -> Self {
        Self::with_settings(addr, &[]).await
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        in_time(self.stream.write_all(&frame)).await.unwrap();
    }

    /// `GET`, with END_STREAM and END_HEADERS.
    pub async fn get(&mut self, stream: u32, path: &str) {
        // Method, scheme, path and authority, by the static table of RFC 7541.
        let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        block.extend(path.as_bytes());
        block.extend([0x41, 9]);
        block.extend(b"localhost");
        self.send(HEADERS, 0x5, stream, &block).await;
    }

    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 9];
        match in_time(self.stream.read_exact(&mut head)).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        in_time(self.stream.read_exact(&mut payload)).await?;
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        if self.acks && frame.flags & ACK == 0 {
            match frame.kind {
                SETTINGS => self.send(SETTINGS, ACK, 0, &[]).await,
                PING => self.send(PING, ACK, 0, &frame.payload).await,
                _ => {}
            }
        }
        Ok(Some(frame))
    }

    /// The first such frame.
    pub async fn until(&mut self, is_it: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().await.expect("a frame").expect("a frame, not the end");
            if is_it(&frame) {
                return frame;
            }
        }
    }

    /// Everything until the end.
    pub async fn rest(mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// Nothing comes any more but the end of a connection.
    pub async fn closed(mut self) {
        while let Some(frame) = self.next().await.expect("a clean end") {
            assert!([GOAWAY, PING, SETTINGS].contains(&frame.kind) || frame.is(DATA, 1), "{frame:?}");
        }
    }
}
