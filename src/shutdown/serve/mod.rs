//! Our own accept loop, on hyper-util's connections: HTTP/1 and HTTP/2.

mod connection;
mod stream;

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};
use tower::{BoxError, Service};
use tracing::warn;

use self::connection::Connected;
use super::{
    Handle, Report, Shutdown,
    state::Shared,
    timing::{First, either},
};

/// How long a connection that is quiet is left alone once the process stops: for a request that is on its way, and
/// for a fresh connection to say its first one. What is quiet for as long again is closed.
const QUIET: Duration = Duration::from_millis(500);

/// How long what is on its way may take to arrive: the rest of a handshake when the listener closes, requests of a client
/// that does not know yet that it is to begin no more.
const ROUND_TRIPS: Duration = Duration::from_millis(250);

/// How often that is waited for as long as more requests come of a client that was told to begin no more.
const FAREWELLS: u32 = 4;

/// How long those are served that are found in the backlog of a listener that comes after the end.
const LATE: Duration = Duration::from_secs(2);

/// After an error of `accept` that is not the connection's own, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whose request it is: `serve` puts it among the request's extensions, where axum's `Extension` finds it. Behind a proxy it is
/// the proxy's.
///
/// ```
/// use axum::{Extension, Router, routing::get};
/// use buttress::shutdown::PeerAddr;
///
/// let who = async |Extension(PeerAddr(peer)): Extension<PeerAddr>| peer.to_string();
/// let app: Router = Router::new().route("/who", get(who));
/// # let _ = app;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(docsrs, doc(cfg(feature = "serve")))]
pub struct PeerAddr(pub SocketAddr);

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
    /// `Router` is one. Each request carries its [`PeerAddr`]. TLS, other listeners: use the layer and [`wait`](Self::wait)
    /// around your own server.
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
        let connection = |stream: TcpStream| {
            // Small answers are not to wait for more; a failure costs nothing but that.
            let _ = stream.set_nodelay(true);
            connection::run(Connected::new(&self.shared, &stream), stream, app.clone())
        };
        let serve = |stream| drop(tokio::spawn(connection(stream)));
        let Some(sweeping) = Sweeping::enter(&self.shared) else {
            // It comes too late to be waited for, so it waits itself, a little: whoever has sent something is answered.
            let mut late: JoinSet<()> = JoinSet::new();
            sweep(&listener).into_iter().for_each(|stream| drop(late.spawn(connection(stream))));
            either(async { while late.join_next().await.is_some() {} }, sleep(LATE)).await;
            return;
        };
        self.ready();
        accept(&listener, self.stopping(), serve).await;
        let listener = Closing::new(listener);
        if listener.barred {
            let end = async {
                either(sleep(ROUND_TRIPS), self.forced()).await;
            };
            accept(&listener.listener, end, serve).await;
        }
        sweep(&listener.listener).into_iter().for_each(serve);
        drop(listener);
        drop(sweeping);
    }
}

/// Accepts until `end`.
async fn accept(listener: &TcpListener, end: impl Future<Output = ()>, mut serve: impl FnMut(TcpStream)) {
    let mut end = pin!(end);
    loop {
        match either(end.as_mut(), listener.accept()).await {
            First::Left(()) => return,
            First::Right(Ok((stream, _))) => serve(stream),
            First::Right(Err(error)) if is_of_the_connection(&error) => {}
            First::Right(Err(error)) => {
                warn!(target: "buttress", %error, "accept failed");
                if let First::Left(()) = either(end.as_mut(), sleep(ACCEPT_PAUSE)).await {
                    return;
                }
            }
        }
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

/// A listener to which nobody begins to connect any more; whoever has begun may finish.
///
/// Closing a listener resets what it has not accepted: connections that arrive after the last `accept`, and those whose
/// handshake is under way. Their clients believe to be connected, and may have sent their request. So first comes a filter
/// that drops every packet that would begin a connection, then a while for handshakes, and then the sweep.
///
/// The filter is the socket's and not the descriptor's: somebody else may hold that too (socket activation, a hand-over to
/// the next process), so it goes when this is dropped.
struct Closing {
    listener: TcpListener,
    /// Not everywhere is there such a filter.
    barred: bool,
}

impl Closing {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn new(listener: TcpListener) -> Self {
        use socket2::{SockFilter, SockRef};
        const SYN: u32 = 0x02;
        const ACK: u32 = 0x10;
        // Classic BPF over the TCP header; see `linux/filter.h`.
        let no_newcomers = [
            SockFilter::new(0x30, 0, 0, 13),        // load the byte of the flags
            SockFilter::new(0x54, 0, 0, SYN | ACK), // and with these
            SockFilter::new(0x15, 0, 1, SYN),       // SYN alone? else skip one
            SockFilter::new(0x06, 0, 0, 0),         // drop
            SockFilter::new(0x06, 0, 0, u32::MAX),  // keep
        ];
        let barred = SockRef::from(&listener).attach_filter(&no_newcomers).is_ok();
        Self { listener, barred }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn new(listener: TcpListener) -> Self {
        Self { listener, barred: false }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Drop for Closing {
    fn drop(&mut self) {
        if self.barred {
            let _ = socket2::SockRef::from(&self.listener).detach_filter();
        }
    }
}

/// Takes what the backlog holds.
fn sweep(listener: &TcpListener) -> Vec<TcpStream> {
    // Asks the socket itself: tokio knows of what has come only once its reactor has looked.
    let socket = socket2::SockRef::from(listener);
    let mut swept = Vec::new();
    loop {
        match socket.accept() {
            Ok((stream, _)) => {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream.into()));
                swept.extend(stream.inspect_err(|error| warn!(target: "buttress", %error, "connection lost")).ok());
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return swept,
            Err(error) => {
                warn!(target: "buttress", %error, "the backlog could not be swept");
                return swept;
            }
        }
    }
}
