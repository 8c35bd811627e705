//! One connection: how it ends, and the calls that come over it.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use http::{Method, Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::{Buf, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use pin_project::pin_project;
use tokio::{
    net::TcpStream,
    time::{Sleep, sleep},
};
use tower::{BoxError, Service};
use tracing::debug;

use super::{FAREWELLS, PeerAddr, QUIET, ROUND_TRIPS, stream::Watched};
use crate::shutdown::{State, http::close, state::Shared};

/// A connection, as the shutdown counts it and looks at it.
#[derive(Debug)]
pub(super) struct Connected {
    shared: Arc<Shared>,
    /// Unless the peer has gone already.
    peer: Option<PeerAddr>,
    /// Whether the shutdown waits for it; if not, whoever serves it does.
    counted: bool,
    /// Calls whose bodies have not ended.
    calls: AtomicUsize,
    /// How many requests have come over HTTP/2.
    http2: AtomicUsize,
    /// Whether a stream was given away: a tunnel or a WebSocket over HTTP/2. hyper waits for those, so nobody else need.
    tunnels: AtomicBool,
    /// Whether HTTP is over: closed, or given away.
    over: AtomicBool,
    /// Whether the peer is to be told, over HTTP/2, to begin nothing more.
    goodbye: AtomicBool,
    /// Moves with every byte that comes or goes.
    progress: AtomicUsize,
    /// Whether the peer is slow to take what was written.
    blocked: AtomicBool,
}

impl Connected {
    pub(super) fn new(shared: &Arc<Shared>, stream: &TcpStream) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            peer: stream.peer_addr().ok().map(PeerAddr),
            counted: shared.connections.enter(),
            calls: AtomicUsize::new(0),
            http2: AtomicUsize::new(0),
            tunnels: AtomicBool::new(false),
            over: AtomicBool::new(false),
            goodbye: AtomicBool::new(false),
            progress: AtomicUsize::new(0),
            blocked: AtomicBool::new(false),
        })
    }

    // All of these are Relaxed: they are hints for a timer that looks at them twice, and publish nothing.

    pub(super) fn moved(&self) {
        self.progress.fetch_add(1, Relaxed);
    }

    /// Once, if it is asked for.
    pub(super) fn says_goodbye(&self) -> bool {
        self.goodbye.load(Relaxed) && self.goodbye.swap(false, Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    pub(super) fn blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Relaxed);
    }

    /// Nobody waits for anything: no call, and nothing left to be sent.
    fn is_quiet(&self) -> bool {
        self.calls.load(Relaxed) == 0 && !self.blocked.load(Relaxed) && !self.tunnels.load(Relaxed)
    }
}

/// Lets go of a connection once its task is over, whatever its streams still hold.
struct Leaving(Arc<Connected>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.over.store(true, Relaxed);
        if self.0.counted {
            self.0.shared.connections.exit();
        }
    }
}

pub(super) async fn run<S, B>(connected: Arc<Connected>, stream: TcpStream, app: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
    S: Clone + Send + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    // Declared first, dropped last: after the connection.
    let leaving = Leaving(Arc::clone(&connected));
    let shared = &leaving.0.shared;
    let io = TokioIo::new(Watched::new(stream, &connected));
    let app = App { app, connected: Arc::clone(&connected) };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // hyper's own limit on the time for headers runs while a kept connection is idle, too: a load balancer that keeps its
    // connections for longer than the 30 s would send into closing ones.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
    // WebSockets over HTTP/2.
    builder.http2().timer(TokioTimer::new()).enable_connect_protocol();
    let mut connection = pin!(builder.serve_connection_with_upgrades(io, app));
    let mut stopping = pin!(shared.reached(State::Stopping));
    // One that is not counted came after the end, which does not concern it.
    let counted = connected.counted;
    let mut forced = pin!(shared.moved.until(|| counted && shared.state() >= State::Forced));
    // There once it stops: until when the connection may be quiet.
    let mut quiet = pin!(None::<Sleep>);
    // There once an HTTP/2 peer was told: until when its requests may be on their way.
    let mut farewell = pin!(None::<Sleep>);
    let (mut farewells, mut requests) = (0, 0);
    let mut progress = 0;
    let mut told = false;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                if let Err(error) = ended {
                    debug!(target: "buttress", error, "connection failed");
                }
                return Poll::Ready(());
            }
            if forced.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            // ## Open => Closing
            let Some(timer) = quiet.as_mut().as_pin_mut() else {
                ready!(stopping.as_mut().poll(cx));
                progress = connected.progress.load(Relaxed);
                quiet.set(Some(sleep(QUIET)));
                continue;
            };
            // HTTP/2 can be told at once. HTTP/1 would just be closed while idle, with a request on its way perhaps; and a
            // fresh connection before its first one.
            let come = connected.http2.load(Relaxed);
            if !told && come > 0 {
                match farewell.as_mut().as_pin_mut() {
                    // hyper's own goodbye ends with the answer to a PING. But clients, h2 for one, answer that before
                    // they send what they had in their queue, and then those requests are not taken any more. So they are
                    // told a round trip ahead, as RFC 9113, 6.8, has it.
                    None => {
                        connected.goodbye.store(true, Relaxed);
                        farewell.set(Some(sleep(ROUND_TRIPS)));
                        requests = come;
                        continue;
                    }
                    Some(timer) => {
                        if timer.poll(cx).is_ready() {
                            // Whoever has sent more since then may not have heard it yet; or does not listen.
                            farewells += 1;
                            if come > requests && farewells < FAREWELLS {
                                requests = come;
                                farewell.set(Some(sleep(ROUND_TRIPS)));
                            } else {
                                told = true;
                                connection.as_mut().graceful_shutdown();
                            }
                            continue;
                        }
                    }
                }
            }
            ready!(timer.poll(cx));
            let now = connected.progress.load(Relaxed);
            if connected.is_quiet() && now == progress {
                if told {
                    return Poll::Ready(());
                }
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            progress = now;
            quiet.set(Some(sleep(QUIET)));
        }
    })
    .await;
}

/// The app, as one connection calls it.
pub(super) struct App<S> {
    app: S,
    connected: Arc<Connected>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for App<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone,
{
    type Response = Response<Sent<B>>;
    type Error = S::Error;
    type Future = Answer<S, S::Future>;

    fn call(&self, mut req: Request<Incoming>) -> Self::Future {
        if let Some(peer) = self.connected.peer {
            req.extensions_mut().insert(peer);
        }
        let http2 = req.version() == Version::HTTP_2;
        if http2 {
            self.connected.http2.fetch_add(1, Relaxed);
        }
        let call = Some(CallOn::new(&self.connected));
        let tunnel = http2 && req.method() == Method::CONNECT;
        let state = AnswerState::Readying { app: self.app.clone(), req: Some(req) };
        Answer { state, call, http2, tunnel }
    }
}

/// A call, as its connection counts it: until all of its response is written.
struct CallOn(Arc<Connected>);

impl CallOn {
    fn new(connected: &Arc<Connected>) -> Self {
        connected.calls.fetch_add(1, Relaxed);
        Self(Arc::clone(connected))
    }
}

impl Clone for CallOn {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for CallOn {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Relaxed);
        self.0.moved();
    }
}

/// A response body whose pieces keep the call: hyper takes as many as it can get, and writes them when it can.
#[pin_project]
pub(super) struct Sent<B> {
    #[pin]
    body: B,
    call: Option<CallOn>,
}

/// Bytes that are still to be written.
pub(super) struct Piece<D> {
    data: D,
    _call: Option<CallOn>,
}

impl<B: Body> Body for Sent<B> {
    type Data = Piece<B::Data>;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        let piece = |data| Piece { data, _call: this.call.clone() };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<D: Buf> Buf for Piece<D> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [io::IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}

/// The future of one call: the app gets ready, and is called.
#[pin_project]
pub(super) struct Answer<S, F> {
    #[pin]
    state: AnswerState<S, F>,
    /// `None` once it has answered.
    call: Option<CallOn>,
    http2: bool,
    /// Whether it asks for a stream of its own.
    tunnel: bool,
}

#[pin_project(project = AnswerProj)]
#[allow(clippy::large_enum_variant)] // the request's place becomes that of the future, which holds it
enum AnswerState<S, F> {
    /// The request is there until the app is called.
    Readying { app: S, req: Option<Request<Incoming>> },
    Running {
        #[pin]
        inner: F,
    },
}

impl<S, B> Future for Answer<S, S::Future>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    type Output = Result<Response<Sent<B>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                AnswerProj::Readying { app, req } => {
                    ready!(app.poll_ready(cx))?;
                    let Some(req) = req.take() else { panic!("an answer was polled after completion") };
                    let inner = app.call(req);
                    this.state.set(AnswerState::Running { inner });
                }
                AnswerProj::Running { inner } => {
                    let mut res = ready!(inner.poll(cx))?;
                    let call = this.call.take();
                    if let Some(call) = call.as_ref().filter(|_| *this.tunnel && res.status().is_success()) {
                        call.0.tunnels.store(true, Relaxed);
                    }
                    if !*this.http2 && call.as_ref().is_some_and(|call| call.0.shared.is_draining()) {
                        close(&mut res);
                    }
                    return Poll::Ready(Ok(res.map(|body| Sent { body, call })));
                }
            }
        }
    }
}
