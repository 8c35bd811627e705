//! Which HTTP requests may be sent again.

use http::{HeaderMap, Method, Request};

use crate::retry::Repeat;

/// Repeats GET, HEAD, OPTIONS, TRACE, PUT and DELETE, and whatever bears an `Idempotency-Key`; anything else only if the
/// request provably [never reached](crate::Verdict::Unsent) the server.
///
/// And of these what can be copied: an `http::Request` whose body is `Clone`, a `reqwest::Request` whose body is no stream.
/// To have others repeated, tell which: `.repeat(|req: &http::Request<Full<Bytes>>| Some(req.clone()))`.
///
/// ```
/// use buttress::{http::Idempotent, retry::Repeat};
/// let get = http::Request::get("/").body("")?;
/// assert!(Idempotent.may_send(&get, true));
/// let post = http::Request::post("/").body("")?;
/// assert!(!Idempotent.may_send(&post, true) && Idempotent.may_send(&post, false));
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Idempotent;

/// TRACE is safe, and `is_idempotent` knows it, with GET, HEAD, OPTIONS, PUT and DELETE.
fn is_idempotent(method: &Method, headers: &HeaderMap) -> bool {
    method.is_idempotent() || headers.contains_key("idempotency-key")
}

impl<B: Clone> Repeat<Request<B>> for Idempotent {
    fn repeat(&self, req: &Request<B>) -> Option<Request<B>> {
        Some(req.clone())
    }

    fn may_send(&self, copy: &Request<B>, sent: bool) -> bool {
        !sent || is_idempotent(copy.method(), copy.headers())
    }
}

#[cfg(feature = "reqwest")]
impl Repeat<reqwest::Request> for Idempotent {
    fn repeat(&self, req: &reqwest::Request) -> Option<reqwest::Request> {
        req.try_clone()
    }

    fn may_send(&self, copy: &reqwest::Request, sent: bool) -> bool {
        !sent || is_idempotent(copy.method(), copy.headers())
    }
}
