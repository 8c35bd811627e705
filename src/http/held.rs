//! A response body that holds something for as long as it is sent.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

/// What a [`Held`] body holds: dropped with the body, or told of its end.
pub trait Hold {
    /// The body has come to its end by itself, or failed. It may be held for a while yet.
    fn end(&mut self);
}

/// A response body that holds `G` until it ends or is dropped: a call is not over when its headers are sent.
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
    #[pin]
    body: B,
    /// `None` once the body has ended.
    hold: Option<G>,
}

impl<B, G> Held<B, G> {
    pub(crate) fn new(body: B, hold: Option<G>) -> Self {
        Self { body, hold }
    }

    /// The body.
    pub fn get_ref(&self) -> &B {
        &self.body
    }
}

impl<B: Default, G> Default for Held<B, G> {
    fn default() -> Self {
        Self::new(B::default(), None)
    }
}

impl<B: Body, G: Hold> Body for Held<B, G> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        let goes_on = matches!(frame, Some(Ok(_)));
        // Whoever takes a body need not ask once more when it says that it is at its end.
        if !goes_on || this.body.is_end_stream() {
            this.hold.iter_mut().for_each(G::end);
        }
        // After a frame it is held on to: what was handed out is still to be sent.
        if !goes_on {
            *this.hold = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
