//! The stream of a connection: it tells of its progress, and closes without losing what was written.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::{QUIET, connection::Connected};

/// How long a peer that goes on talking may take to read the end of its response, at most.
const LINGER: Duration = Duration::from_secs(30);

pub(super) struct Watched {
    stream: TcpStream,
    connected: Arc<Connected>,
    /// Once our end is closed: until when the peer may be quiet, and until when it may talk.
    lingering: Option<[Pin<Box<Sleep>>; 2]>,
    /// What is left to write of a [`GOODBYE`].
    goodbye: &'static [u8],
}

/// An HTTP/2 frame: GOAWAY, without an error. The peer is to begin no more streams, but all that it has begun are taken.
const GOODBYE: [u8; 17] = [
    0, 0, 8, 7, 0, 0, 0, 0, 0, // length 8, type GOAWAY, no flags, stream 0
    0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, // up to the last of all streams; NO_ERROR
];

impl Watched {
    pub(super) fn new(stream: TcpStream, connected: &Arc<Connected>) -> Self {
        Self { stream, connected: Arc::clone(connected), lingering: None, goodbye: &[] }
    }

    /// Writes what is left of the goodbye; nothing may come in between.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.goodbye.is_empty() {
            let result = Pin::new(&mut self.stream).poll_write(cx, self.goodbye);
            let written = ready!(self.wrote(result))?;
            self.goodbye = &self.goodbye[written..];
        }
        Poll::Ready(Ok(()))
    }

    /// After an attempt to write.
    fn wrote<T>(&self, result: Poll<T>) -> Poll<T> {
        self.connected.blocked(result.is_pending());
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
        ready!(self.poll_goodbye(cx))?;
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_goodbye(cx))?;
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // h2 flushes when it has written out all that it has: between two frames.
        if self.connected.says_goodbye() {
            self.goodbye = &GOODBYE;
        }
        ready!(self.poll_goodbye(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes our end, and then reads what the peer still says, until it closes its own or is quiet.
    ///
    /// A socket that is closed with bytes unread, or that gets more of them, is reset, and what it had still to send is
    /// thrown away: the end of a response whose reader pipelines, uploads, or speaks HTTP/2, where reading is talking.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.connected.is_over() {
            // It was given away: whoever has it may close one end and read on.
            return Pin::new(&mut this.stream).poll_shutdown(cx);
        }
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let [quiet, talk] = this.lingering.get_or_insert_with(|| [QUIET, LINGER].map(|time| Box::pin(sleep(time))));
        let mut thrown_away = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut thrown_away);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    this.connected.moved();
                    quiet.set(sleep(QUIET));
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        if quiet.as_mut().poll(cx).is_ready() || talk.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}
