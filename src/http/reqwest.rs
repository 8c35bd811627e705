//! The preset for `reqwest::Client`.

use reqwest::Response;

use super::{ByStatus, Idempotent, status::judge};
use crate::{Classify, Kind, Verdict};

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
