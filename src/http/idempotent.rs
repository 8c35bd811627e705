//! Which requests are repeated.

use http::{HeaderMap, Method, Request};

use crate::retry::{CloneRequest, Repeat};

/// Repeats GET, HEAD, OPTIONS, TRACE, PUT and DELETE, and whatever bears an `Idempotency-Key`; and of these what can be
/// copied: a body that is `Clone` or a [`Replay`](super::Replay), and what `reqwest::Request::try_clone` knows.
/// Everything else, a POST or a streaming body, is sent once.
///
/// ```
/// use buttress::{http::Idempotent, retry::Repeat};
/// let idempotent = Idempotent::default();
/// assert!(idempotent.repeat(&http::Request::put("/").body("story")?).is_some());
/// assert!(idempotent.repeat(&http::Request::post("/").body("story")?).is_none());
/// assert!(Idempotent::all().repeat(&http::Request::post("/").body("story")?).is_some());
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
        if !self.covers(req.method(), req.headers()) {
            return None;
        }
        let mut copy = Request::new(CloneRequest.repeat(req.body())?);
        *copy.method_mut() = req.method().clone();
        *copy.uri_mut() = req.uri().clone();
        *copy.version_mut() = req.version();
        *copy.headers_mut() = req.headers().clone();
        *copy.extensions_mut() = req.extensions().clone();
        Some(copy)
    }

    fn is_whole(&self, copy: &Request<B>) -> bool {
        CloneRequest.is_whole(copy.body())
    }

    fn take_over(&self, copy: &mut Request<B>) -> bool {
        CloneRequest.take_over(copy.body_mut())
    }
}

#[cfg(feature = "reqwest")]
impl Repeat<reqwest::Request> for Idempotent {
    fn repeat(&self, req: &reqwest::Request) -> Option<reqwest::Request> {
        if self.covers(req.method(), req.headers()) { req.try_clone() } else { None }
    }
}
