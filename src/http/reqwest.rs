//! The preset for `reqwest::Client`.

use http::Method;
use reqwest::{Request, Response};

use super::{ByStatus, status::judge};
use crate::{Classify, Kind, Verdict, retry::Repeat};

/// What [`Policy::reqwest`](crate::Policy::reqwest) makes: judges by [status](ByStatus), repeats what is
/// [idempotent](Idempotent).
pub type Reqwest = Kind<ByStatus, Idempotent>;

impl Classify<Response, reqwest::Error> for ByStatus {
    fn classify(&self, outcome: Result<&Response, &reqwest::Error>) -> Verdict {
        match outcome {
            Ok(res) => judge(res.status(), res.headers()),
            // The request is at fault, or the server answered with a loop: asking again changes nothing.
            Err(error) if error.is_builder() || error.is_redirect() => Verdict::Permanent,
            Err(_) => Verdict::TRANSIENT,
        }
    }
}

/// Repeats GET, HEAD, OPTIONS, TRACE, PUT and DELETE, and whatever bears an `Idempotency-Key`; and of these what
/// [`Request::try_clone`] can copy. Everything else, a POST or a streaming body, is sent once.
///
/// ```
/// use buttress::{http::Idempotent, retry::Repeat};
/// let url: reqwest::Url = "http://localhost/".parse().unwrap();
/// assert!(Idempotent.repeat(&reqwest::Request::new(reqwest::Method::GET, url.clone())).is_some());
/// assert!(Idempotent.repeat(&reqwest::Request::new(reqwest::Method::POST, url)).is_none());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Idempotent;

impl Repeat<Request> for Idempotent {
    fn repeat(&self, req: &Request) -> Option<Request> {
        let method = req.method();
        // TRACE is safe, and `is_idempotent` knows it, with GET, HEAD, OPTIONS, PUT and DELETE.
        let safe = Method::is_idempotent(method) || req.headers().contains_key("idempotency-key");
        if safe { req.try_clone() } else { None }
    }
}
