//! A request body that is streamed, and sent again when the first attempt fails.
#![cfg(feature = "http")]

mod over_http;
mod views;

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use buttress::{Retry, RetryBuilder, http::Replay};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tower::BoxError;

use crate::support::ms;

type Came = Result<Frame<Bytes>, BoxError>;

/// A body of whatever is sent to it, which tells how much of it was asked for, and whether it still lives.
struct Upload {
    frames: mpsc::UnboundedReceiver<Came>,
    hint: SizeHint,
    /// Called on each poll.
    on_poll: Box<dyn FnMut() + Send + Sync>,
    alive: Arc<()>,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}

impl Upload {
    /// Ends when the sender is dropped.
    fn live() -> (mpsc::UnboundedSender<Came>, Self) {
        let (sender, frames) = mpsc::unbounded_channel();
        let upload = Self { frames, hint: SizeHint::default(), on_poll: Box::new(|| {}), alive: Arc::new(()) };
        (sender, upload)
    }

    /// Of these frames, and then it ends.
    fn of(came: impl IntoIterator<Item = Came>) -> Self {
        let (sender, upload) = Self::live();
        came.into_iter().for_each(|came| sender.send(came).unwrap());
        upload
    }

    fn chunks(chunks: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self::of(chunks.into_iter().map(|chunk| Ok(Frame::data(chunk.into()))))
    }

    fn known(self, len: usize) -> Self {
        Self { hint: SizeHint::with_exact(len as u64), ..self }
    }

    fn on_poll(self, on_poll: impl FnMut() + Send + Sync + 'static) -> Self {
        Self { on_poll: Box::new(on_poll), ..self }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Came>> {
        (self.on_poll)();
        let came = self.frames.poll_recv(cx);
        if let Poll::Ready(Some(Ok(frame))) = &came {
            let len = frame.data_ref().map_or(0, Bytes::len) as u64;
            if let Some(left) = self.hint.exact() {
                self.hint = SizeHint::with_exact(left - len);
            }
        }
        came
    }

    fn is_end_stream(&self) -> bool {
        self.hint.exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

/// So many bytes, none like its neighbours.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// The same, cut into chunks.
fn cut(len: usize, size: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut all = VecDeque::from(bytes(len));
    std::iter::from_fn(move || {
        let chunk: Vec<u8> = all.drain(..size.min(all.len())).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Asks again at once, three times in all.
fn at_once() -> RetryBuilder {
    Retry::constant(ms(0)).max_attempts(3)
}

/// The most that was ever recorded.
#[derive(Clone, Debug, Default)]
struct Watch {
    body: Arc<Mutex<Option<Replay<Upload>>>>,
    most: Arc<AtomicUsize>,
}

impl Watch {
    fn look(&self) {
        if let Some(body) = &*self.body.lock().unwrap() {
            self.most.fetch_max(body.recorded(), SeqCst);
        }
    }

    /// Looks whenever the body is polled.
    fn over(&self, upload: Upload, cap: usize) -> Replay<Upload> {
        let watch = self.clone();
        let body = Replay::new(upload.on_poll(move || watch.look()), cap);
        *self.body.lock().unwrap() = Some(body.again());
        body
    }

    /// The most, and an end to the watch.
    fn most(self) -> usize {
        self.look();
        *self.body.lock().unwrap() = None;
        self.most.load(SeqCst)
    }
}

fn trailers(checksum: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("checksum"), http::HeaderValue::from_static(checksum))])
}
