//! Which HTTP requests may be sent again.

use http::{HeaderMap, Method, Request};

use crate::retry::{CloneRequest, Repeat};

/// Repeats GET, HEAD, OPTIONS, TRACE, PUT and DELETE, and whatever bears an `Idempotency-Key`; anything else only if the
/// request provably [never reached](crate::Verdict::Unsent) the server.
///
/// And of these what can be copied: a body that is `Clone` or a [`Replay`](super::Replay), and what
/// `reqwest::Request::try_clone` knows, which is no stream. Everything else is sent once.
///
/// ```
/// use buttress::{http::Idempotent, retry::Repeat};
/// let idempotent = Idempotent::default();
/// assert!(idempotent.may_send(&http::Request::put("/").body("story")?, true));
/// let post = http::Request::post("/").body("story")?;
/// assert!(!idempotent.may_send(&post, true));
/// assert!(idempotent.may_send(&post, false), "it was never sent");
/// assert!(Idempotent::all().may_send(&post, true));
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Idempotent {
    all: bool,
}

impl Idempotent {
    /// Takes every request for idempotent, whatever its method: for a service that tells duplicates apart, or where all
    /// requests only read. For single requests of others set the header `Idempotency-Key`.
    #[must_use]
    pub const fn all() -> Self {
        Self { all: true }
    }

    /// Whether such a request may be sent again, as far as its head tells.
    #[inline]
    fn covers(self, method: &Method, headers: &HeaderMap) -> bool {
        // TRACE is safe, and `is_idempotent` knows it, with GET, HEAD, OPTIONS, PUT and DELETE.
        self.all || method.is_idempotent() || headers.contains_key("idempotency-key")
    }
}

impl<B> Repeat<Request<B>> for Idempotent
where
    CloneRequest: Repeat<B>,
{
    fn repeat(&self, req: &Request<B>) -> Option<Request<B>> {
        let mut copy = Request::new(CloneRequest.repeat(req.body())?);
        *copy.method_mut() = req.method().clone();
        *copy.uri_mut() = req.uri().clone();
        *copy.version_mut() = req.version();
        *copy.headers_mut() = req.headers().clone();
        *copy.extensions_mut() = req.extensions().clone();
        Some(copy)
    }

    fn may_send(&self, copy: &Request<B>, sent: bool) -> bool {
        (!sent || self.covers(copy.method(), copy.headers())) && CloneRequest.may_send(copy.body(), sent)
    }

    fn may_overlap(&self, copy: &Request<B>) -> bool {
        CloneRequest.may_overlap(copy.body())
    }

    fn take_over(&self, copy: &mut Request<B>) -> bool {
        CloneRequest.take_over(copy.body_mut())
    }
}

#[cfg(feature = "reqwest")]
impl Repeat<reqwest::Request> for Idempotent {
    fn repeat(&self, req: &reqwest::Request) -> Option<reqwest::Request> {
        req.try_clone()
    }

    fn may_send(&self, copy: &reqwest::Request, sent: bool) -> bool {
        !sent || self.covers(copy.method(), copy.headers())
    }
}
