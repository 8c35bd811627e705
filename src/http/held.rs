//! A response body that keeps something for as long as it is sent.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

/// What a [`Held`] body keeps: told of what comes of the body, free to end it, and dropped after it.
pub trait Keep<E> {
    /// The error of a body whose own is `E`.
    type Error: From<E>;
    /// What ends a body that takes too long.
    type Over;

    /// Polls the body.
    fn run<R>(&mut self, poll: impl FnOnce() -> R) -> R {
        poll()
    }

    /// A frame has come, perhaps the trailers.
    fn came(&mut self, _trailers: Option<&HeaderMap>) {}

    /// The body has come to its end by itself, or `failed`. It may be kept for a while yet.
    fn end(&mut self, failed: bool);

    /// The body was found pending. Ready once it has taken too long.
    fn poll_over(&mut self, _cx: &mut Context<'_>) -> Poll<Self::Over> {
        Poll::Pending
    }

    /// The body took too long, and was dropped.
    fn cut_off(&mut self, over: Self::Over) -> Self::Error;
}

/// A response body that keeps `G` until it ends or is dropped: a call is not over when its headers are sent.
///
/// ```
/// use buttress::{Shutdown, http::Held};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use tower::{Layer, Service, ServiceExt, service_fn};
/// # let shutdown = Shutdown::builder().build()?;
/// # let handle = shutdown.handle();
/// let service = service_fn(async |_: http::Request<()>| {
///     Ok::<_, std::convert::Infallible>(http::Response::new("hello".to_owned()))
/// });
/// let mut service = handle.in_flight_layer().layer(service);
/// let response = service.ready().await?.call(http::Request::new(())).await?;
/// assert_eq!(handle.in_flight(), 1, "nobody has read the body yet");
/// drop(response);
/// assert_eq!(handle.in_flight(), 0);
/// # Ok(()) }
/// ```
#[pin_project]
#[derive(Debug)]
pub struct Held<B, G> {
    // In front of what is kept, so that it is dropped before that is let go of.
    /// `None` once it was cut off.
    #[pin]
    body: Option<B>,
    /// `None` once the body has ended.
    kept: Option<G>,
}

impl<B, G> Held<B, G> {
    pub(crate) fn new(body: B, kept: Option<G>) -> Self {
        Self { body: Some(body), kept }
    }

    /// The body; `None` once it was cut off.
    pub fn get_ref(&self) -> Option<&B> {
        self.body.as_ref()
    }
}

impl<B: Default, G> Default for Held<B, G> {
    fn default() -> Self {
        Self::new(B::default(), None)
    }
}

/// Keeps nothing.
impl<B: From<String>, G> From<String> for Held<B, G> {
    fn from(text: String) -> Self {
        Self::new(B::from(text), None)
    }
}

impl<B: Body, G: Keep<B::Error>> Body for Held<B, G> {
    type Data = B::Data;
    type Error = G::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, G::Error>>> {
        let mut this = self.project();
        let Some(mut body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let Some(kept) = this.kept else {
            return body.poll_frame(cx).map_err(G::Error::from);
        };
        let Poll::Ready(frame) = kept.run(|| body.as_mut().poll_frame(cx)) else {
            let over = ready!(kept.poll_over(cx));
            // Dropping it is the cancellation, before anyone hears of it.
            kept.run(|| this.body.set(None));
            let error = kept.cut_off(over);
            *this.kept = None;
            return Poll::Ready(Some(Err(error)));
        };
        if let Some(Ok(frame)) = &frame {
            kept.came(frame.trailers_ref());
        }
        let goes_on = matches!(frame, Some(Ok(_)));
        // Whoever takes a body need not ask once more when it says that it is at its end.
        if !goes_on || body.is_end_stream() {
            kept.end(matches!(frame, Some(Err(_))));
        }
        // After a frame it is kept: what was handed out is still to be sent.
        if !goes_on {
            *this.kept = None;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(G::Error::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(B::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), B::size_hint)
    }
}
