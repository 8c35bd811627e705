//! What an error instead of a response says.

use std::{error::Error, io, iter};

use crate::Verdict;

/// Looks at the error and what caused it. `redirects`: whether the client may have followed some, so that a failed connection
/// may be that to another place, after the server had its request.
pub(super) fn failed(error: &(dyn Error + 'static), redirects: bool) -> Verdict {
    let mut verdict = Verdict::TRANSIENT;
    for error in sources(error) {
        #[cfg(feature = "reqwest")]
        if let Some(error) = error.downcast_ref::<reqwest::Error>() {
            if error.is_builder() || error.is_redirect() {
                // The request is at fault, or the server answered with a loop: asking again changes nothing.
                return Verdict::Permanent;
            }
            if redirects {
                return Verdict::TRANSIENT;
            }
        }
        if is_unsent(error) {
            verdict = Verdict::Unsent;
        }
    }
    let _ = redirects; // no other client follows any
    verdict
}

/// The error, and what caused it.
fn sources<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |error| {
        let error: &'a (dyn Error + 'static) = *error;
        error.source()
    })
}

/// Whether it shows that the server has seen nothing of the request.
fn is_unsent(error: &(dyn Error + 'static)) -> bool {
    #[cfg(feature = "reqwest")]
    if error.downcast_ref().is_some_and(reqwest::Error::is_connect) {
        return true;
    }
    #[cfg(feature = "hyper")]
    if error.downcast_ref().is_some_and(hyper_util::client::legacy::Error::is_connect) {
        return true;
    }
    #[cfg(feature = "tonic")]
    if error.is::<tonic::ConnectError>() {
        return true;
    }
    // RFC 9113, 8.7: refused means that nothing was done. Only the server can know.
    #[cfg(feature = "http2")]
    if error
        .downcast_ref()
        .is_some_and(|error: &h2::Error| error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
    {
        return true;
    }
    error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused)
}
