//! Our own accept loop, on hyper-util's connections: HTTP/1 and HTTP/2.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use pin_project::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Sleep, sleep},
};
use tower::{BoxError, Service};
use tracing::{debug, warn};

use super::{
    Handle, Report, Shutdown, State,
    http::close,
    state::Shared,
    timing::{First, either},
};
use crate::http::{Held, Hold};

/// How long a connection that is quiet is left alone once the process stops: for a request that is on its way, and
/// for a fresh connection to say its first one. What is quiet for as long again is closed.
const QUIET: Duration = Duration::from_millis(500);

/// After an error of `accept` that is not the connection's own, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Shutdown {
    /// Serves HTTP/1 and HTTP/2 on this listener until it is told to stop, goes through the whole shutdown, and returns the
    /// report. [Ready](Handle::ready) from here on.
    ///
    /// While draining it accepts and serves on. Then whatever the backlog holds is still accepted and answered, the
    /// listener is closed, and connections are closed gracefully: HTTP/2 is sent a GOAWAY, HTTP/1 may send the request that is
    /// on its way. Put the [in-flight layer](Handle::in_flight_layer) around the app, so that late requests are
    /// refused instead of begun.
    ///
    /// `app` is any clonable tower service from `http::Request<hyper::body::Incoming>` to an `http::Response`; an axum
    /// `Router` is one. TLS, other listeners: use the layer and [`wait`](Self::wait) around your own server.
    ///
    /// # Cancel safety
    /// Dropping the future drops the `Shutdown`, and that aborts everything.
    pub async fn serve<S, B>(self, listener: TcpListener, app: S) -> Report
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
        S: Clone + Send + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        self.handle().serve(listener, app).await;
        self.wait().await
    }
}

impl Handle {
    /// Serves on one more listener, such as one for an admin port; returns when that is closed. Its connections are part of
    /// the shutdown. See [`Shutdown::serve`].
    ///
    /// # Cancel safety
    /// Dropped, it closes the listener at once, and what is in its backlog is lost; connections go on.
    pub async fn serve<S, B>(&self, listener: TcpListener, app: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
        S: Clone + Send + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let Some(sweeping) = Sweeping::enter(&self.shared) else { return };
        self.ready();
        let mut stopping = pin!(self.stopping());
        loop {
            match either(stopping.as_mut(), listener.accept()).await {
                First::Left(()) => break,
                First::Right(Ok((stream, _))) => self.connect(stream, &app),
                First::Right(Err(error)) if is_of_the_connection(&error) => {}
                First::Right(Err(error)) => {
                    warn!(target: "buttress", %error, "accept failed");
                    either(stopping.as_mut(), sleep(ACCEPT_PAUSE)).await;
                }
            }
        }
        for stream in sweep(listener) {
            self.connect(stream, &app);
        }
        drop(sweeping);
    }

    fn connect<S, B>(&self, stream: TcpStream, app: &S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
        S: Clone + Send + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let Some(connection) = Connected::enter(&self.shared) else { return };
        // Small answers are not to wait for more; a failure costs nothing but that.
        let _ = stream.set_nodelay(true);
        tokio::spawn(run(connection, stream, app.clone()));
    }
}

/// A listener whose backlog is still to be swept.
struct Sweeping(Arc<Shared>);

impl Sweeping {
    fn enter(shared: &Arc<Shared>) -> Option<Self> {
        shared.listeners.enter().then(|| Self(Arc::clone(shared)))
    }
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        self.0.listeners.exit();
    }
}

/// Failures that say nothing about the listener.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), ConnectionAborted | ConnectionReset | ConnectionRefused | Interrupted)
}

/// Takes what the backlog holds and closes the listener, with nothing lost in between.
fn sweep(listener: TcpListener) -> Vec<TcpStream> {
    // Closing a listener resets what has arrived since the last accept. On Linux nothing arrives any more behind a
    // filter that drops all packets: whoever begins to connect finds nobody a moment later, and has sent nothing yet.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let drop_all = [socket2::SockFilter::new(0x06, 0, 0, 0)]; // BPF_RET | BPF_K: keep 0 bytes
        if let Err(error) = socket2::SockRef::from(&listener).attach_filter(&drop_all) {
            debug!(target: "buttress", %error, "a connection that arrives while the listener closes may be reset");
        }
    }
    let mut swept = Vec::new();
    let Ok(listener) = listener.into_std() else { return swept };
    loop {
        // It does not block: tokio's never do.
        match listener.accept() {
            Ok((stream, _)) => {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                swept.extend(stream.inspect_err(|error| warn!(target: "buttress", %error, "connection lost")).ok());
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(_) => return swept,
        }
    }
}

// ---------------------------------------------------------------- one connection

/// A connection, as the shutdown counts it and looks at it.
#[derive(Debug)]
struct Connected {
    shared: Arc<Shared>,
    /// Calls whose bodies have not ended.
    calls: AtomicUsize,
    /// Whether a request has come over HTTP/2.
    http2: AtomicBool,
    /// Moves with every byte that comes or goes.
    progress: AtomicUsize,
    /// Whether the peer is slow to take what was written.
    blocked: AtomicBool,
}

impl Connected {
    fn enter(shared: &Arc<Shared>) -> Option<Arc<Self>> {
        shared.connections.enter().then(|| {
            Arc::new(Self {
                shared: Arc::clone(shared),
                calls: AtomicUsize::new(0),
                http2: AtomicBool::new(false),
                progress: AtomicUsize::new(0),
                blocked: AtomicBool::new(false),
            })
        })
    }

    // All of these are Relaxed: they are hints for a timer that looks at them twice, and publish nothing.

    fn moved(&self) {
        self.progress.fetch_add(1, Relaxed);
    }

    /// Nobody waits for anything: no call, and nothing left to be sent.
    fn is_quiet(&self) -> bool {
        self.calls.load(Relaxed) == 0 && !self.blocked.load(Relaxed)
    }
}

/// Lets go of a connection once its task is over, whatever its streams still hold.
struct Leaving(Arc<Connected>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.shared.connections.exit();
    }
}

async fn run<S, B>(connected: Arc<Connected>, stream: TcpStream, app: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
    S: Clone + Send + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    // Declared first, dropped last: after the connection.
    let leaving = Leaving(Arc::clone(&connected));
    let shared = &leaving.0.shared;
    let io = TokioIo::new(Watched { stream, connected: Arc::clone(&connected) });
    let app = App { app, connected: Arc::clone(&connected) };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    let mut connection = pin!(builder.serve_connection_with_upgrades(io, app));
    let mut stopping = pin!(shared.reached(State::Stopping));
    let mut forced = pin!(shared.reached(State::Forced));
    // There once it stops: until when the connection may be quiet.
    let mut quiet = pin!(None::<Sleep>);
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
            // HTTP/2 tells its peer which requests it still takes, so it is told at once. HTTP/1 would just be closed
            // while idle, with a request on its way perhaps; and a fresh connection before its first one.
            if !told && connected.http2.load(Relaxed) {
                told = true;
                connection.as_mut().graceful_shutdown();
                continue;
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
struct App<S> {
    app: S,
    connected: Arc<Connected>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for App<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone,
{
    type Response = Response<Held<B, CallOn>>;
    type Error = S::Error;
    type Future = Answer<S, S::Future>;

    fn call(&self, req: Request<Incoming>) -> Self::Future {
        let http2 = req.version() == Version::HTTP_2;
        if http2 {
            self.connected.http2.store(true, Relaxed);
        }
        let call = Some(CallOn::new(&self.connected));
        let state = AnswerState::Readying { app: self.app.clone(), req: Some(req) };
        Answer { state, call, http2 }
    }
}

/// A call, as its connection counts it: until its body ends.
struct CallOn(Arc<Connected>);

impl CallOn {
    fn new(connected: &Arc<Connected>) -> Self {
        connected.calls.fetch_add(1, Relaxed);
        Self(Arc::clone(connected))
    }
}

impl Drop for CallOn {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Relaxed);
        self.0.moved();
    }
}

impl Hold for CallOn {
    fn end(self) {}
}

/// The future of one call: the app gets ready, and is called.
#[pin_project]
struct Answer<S, F> {
    #[pin]
    state: AnswerState<S, F>,
    /// `None` once it has answered.
    call: Option<CallOn>,
    http2: bool,
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
    type Output = Result<Response<Held<B, CallOn>>, S::Error>;

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
                    if !*this.http2 && call.as_ref().is_some_and(|call| call.0.shared.is_draining()) {
                        close(&mut res);
                    }
                    return Poll::Ready(Ok(res.map(|body| Held::new(body, call))));
                }
            }
        }
    }
}

// ---------------------------------------------------------------- what moves on it

/// A stream that tells of its progress.
struct Watched {
    stream: TcpStream,
    connected: Arc<Connected>,
}

impl Watched {
    /// After an attempt to write, flush or close.
    fn wrote<T>(&self, result: Poll<T>) -> Poll<T> {
        self.connected.blocked.store(result.is_pending(), Relaxed);
        if result.is_ready() {
            self.connected.moved();
        }
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if result.is_ready() {
            self.connected.moved();
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // A TCP stream has nothing to flush, and closing it does not wait.

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
