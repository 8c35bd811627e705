//! Which signals mean what, and who hears them.

use std::fmt;

/// A signal of the system.
///
/// ```
/// use buttress::shutdown::Signal;
/// assert_eq!((Signal::Terminate.to_string(), Signal::Terminate.number()), ("SIGTERM".to_owned(), 15));
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// SIGTERM: what Kubernetes, systemd and `kill` send. On Windows the shutdown of the system.
    Terminate,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGHUP: a [reload](super::Handle::reload), if anybody listens to it; else it stops, as it does by default. On
    /// Windows the closing of the console.
    Hangup,
    /// SIGQUIT. On Windows Ctrl-Break.
    Quit,
    /// Any other, by its number. Unix only.
    Other(i32),
}

impl Signal {
    /// The number that Unix has for it; the exit code of a process that it forced is 128 more.
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Signal::Hangup => 1,
            Signal::Interrupt => 2,
            Signal::Quit => 3,
            Signal::Terminate => 15,
            Signal::Other(number) => number,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Signal::Terminate => f.write_str("SIGTERM"),
            Signal::Interrupt => f.write_str("SIGINT"),
            Signal::Hangup => f.write_str("SIGHUP"),
            Signal::Quit => f.write_str("SIGQUIT"),
            Signal::Other(number) => write!(f, "signal {number}"),
        }
    }
}

/// Which signals a [`Shutdown`](super::Shutdown) listens to. Each of them drains; a second one, of whatever kind,
/// forces. ([`Hangup`](Signal::Hangup) is a reload while anybody listens to those.)
///
/// The default, by feature `signal`: SIGTERM, SIGINT and SIGHUP, or what Windows has in their place. (The code for Windows
/// compiles, and no test has run it: this project has had no Windows to run it on.)
///
/// ```
/// use buttress::shutdown::{Signal, Signals};
/// // For tests, and where somebody else listens: `Handle::signal` tells of them.
/// let none = Signals::manual();
/// let one = Signals::manual().with(Signal::Terminate);
/// # let _ = (none, one);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Signals {
    which: Vec<Signal>,
}

impl Signals {
    /// None at all: [`Handle::signal`](super::Handle::signal) takes their place.
    pub fn manual() -> Self {
        Self { which: Vec::new() }
    }

    /// This one too. Without feature `signal` it cannot be installed.
    pub fn with(mut self, signal: Signal) -> Self {
        if !self.which.contains(&signal) {
            self.which.push(signal);
        }
        self
    }

    /// Not this one.
    pub fn without(mut self, signal: Signal) -> Self {
        self.which.retain(|other| *other != signal);
        self
    }
}

#[cfg(feature = "signal")]
impl Default for Signals {
    fn default() -> Self {
        Self::manual().with(Signal::Terminate).with(Signal::Interrupt).with(Signal::Hangup)
    }
}

pub(super) use listen::Installed;

#[cfg(feature = "signal")]
mod listen {
    use std::{
        io,
        panic::{AssertUnwindSafe, catch_unwind},
        sync::atomic::{AtomicBool, Ordering::*},
        task::{Context, Poll},
    };

    use super::{Signal, Signals};

    /// Whether a shutdown of this process has installed signals.
    static INSTALLED: AtomicBool = AtomicBool::new(false);

    /// Signals that are being listened to. What came before they are asked for is kept.
    #[derive(Debug, Default)]
    pub(in super::super) struct Installed {
        streams: Vec<(Signal, Stream)>,
        /// Whether [`INSTALLED`] is this one's.
        only: bool,
    }

    impl Installed {
        pub(in super::super) fn new(signals: &Signals) -> io::Result<Self> {
            if signals.which.is_empty() {
                return Ok(Self::default());
            }
            if tokio::runtime::Handle::try_current().is_err() {
                return Err(io::Error::other("signals need a tokio runtime: there is none here"));
            }
            // Acquire: pairs with the drop below, so what the last owner did is over.
            if INSTALLED.swap(true, Acquire) {
                let kind = io::ErrorKind::AlreadyExists;
                return Err(io::Error::new(kind, "another `Shutdown` of this process listens to signals already"));
            }
            // From here on its drop gives that back.
            let mut installed = Installed { streams: Vec::with_capacity(signals.which.len()), only: true };
            for signal in &signals.which {
                // tokio panics if its runtime has no I/O driver.
                let stream = catch_unwind(AssertUnwindSafe(|| stream(*signal)))
                    .unwrap_or_else(|_| Err(io::Error::other("the tokio runtime has no I/O: see `enable_io`")))
                    .map_err(|error| io::Error::new(error.kind(), format!("cannot listen to {signal}: {error}")))?;
                installed.streams.push((*signal, stream));
            }
            Ok(installed)
        }

        pub(in super::super) fn poll_signal(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
            for (signal, stream) in &mut self.streams {
                if let Poll::Ready(Some(())) = stream.poll_recv(cx) {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        }
    }

    impl Drop for Installed {
        fn drop(&mut self) {
            if self.only {
                INSTALLED.store(false, Release);
            }
        }
    }

    #[cfg(unix)]
    type Stream = tokio::signal::unix::Signal;

    #[cfg(unix)]
    fn stream(signal: Signal) -> io::Result<Stream> {
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::from_raw(signal.number()))
    }

    #[cfg(windows)]
    use windows::{Stream, stream};

    // Checked by the compiler for Windows, and never run there.
    #[cfg(windows)]
    mod windows {
        use std::{
            io,
            task::{Context, Poll},
        };

        use tokio::signal::windows::{self, CtrlBreak, CtrlC, CtrlClose, CtrlShutdown};

        use super::Signal;

        #[derive(Debug)]
        pub(super) enum Stream {
            C(CtrlC),
            Break(CtrlBreak),
            Close(CtrlClose),
            Shutdown(CtrlShutdown),
        }

        impl Stream {
            pub(super) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
                match self {
                    Stream::C(stream) => stream.poll_recv(cx),
                    Stream::Break(stream) => stream.poll_recv(cx),
                    Stream::Close(stream) => stream.poll_recv(cx),
                    Stream::Shutdown(stream) => stream.poll_recv(cx),
                }
            }
        }

        pub(super) fn stream(signal: Signal) -> io::Result<Stream> {
            match signal {
                Signal::Interrupt => windows::ctrl_c().map(Stream::C),
                Signal::Quit => windows::ctrl_break().map(Stream::Break),
                Signal::Hangup => windows::ctrl_close().map(Stream::Close),
                Signal::Terminate => windows::ctrl_shutdown().map(Stream::Shutdown),
                Signal::Other(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "Windows knows no such signal")),
            }
        }
    }
}

#[cfg(not(feature = "signal"))]
mod listen {
    use std::{
        io,
        task::{Context, Poll},
    };

    use super::{Signal, Signals};

    /// Without feature `signal` there are none.
    #[derive(Debug, Default)]
    pub(in super::super) struct Installed {}

    impl Installed {
        pub(in super::super) fn new(signals: &Signals) -> io::Result<Self> {
            match signals.which.first() {
                None => Ok(Self {}),
                Some(signal) => {
                    let what = format!("cannot listen to {signal}: buttress' feature `signal` is off");
                    Err(io::Error::new(io::ErrorKind::Unsupported, what))
                }
            }
        }

        pub(in super::super) fn poll_signal(&mut self, _: &mut Context<'_>) -> Poll<Signal> {
            Poll::Pending
        }
    }
}
