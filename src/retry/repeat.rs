//! How a request is repeated.

/// A strategy to send a request again. Any `Fn(&Req) -> Option<Req>` does.
///
/// ```
/// use buttress::retry::Repeat;
/// let reads = |request: &String| request.starts_with("get ").then(|| request.clone());
/// assert!(reads.repeat(&"get /".into()).is_some() && reads.repeat(&"post /".into()).is_none());
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not know how to repeat a `{Req}`",
    label = "this request cannot be repeated by `{Self}`",
    note = "`Policy::plain` sends any request once; `.repeat(|request| …)` takes a closure that makes a copy, or `None` to send it once; for HTTP bodies that are streamed there is `http::ReplayLayer`"
)]
pub trait Repeat<Req> {
    /// The request once more, or `None`: it is sent once then.
    ///
    /// Asked before each attempt that may not be the last, when nobody knows yet what comes of it.
    fn repeat(&self, req: &Req) -> Option<Req>;

    /// Whether `copy`, which was made before the attempt that has failed, can and may be sent now: asked before a retry is
    /// decided on; if not, none follows. `sent`: whether that attempt may have reached the service. And a body that is
    /// recorded as it goes by may have outgrown its recording.
    #[inline]
    fn may_send(&self, _copy: &Req, _sent: bool) -> bool {
        true
    }

    /// Whether `copy` can be sent while what it was copied from is still on its way, as a [hedge](crate::hedge).
    #[inline]
    fn may_overlap(&self, _copy: &Req) -> bool {
        true
    }

    /// A retry is decided on: from here on nobody but `copy` uses what it shares with the attempt that has failed. `false`
    /// if it turns out that it cannot be sent: the call ends with what there is.
    #[inline]
    fn take_over(&self, _copy: &mut Req) -> bool {
        true
    }
}

impl<Req, F: Fn(&Req) -> Option<Req>> Repeat<Req> for F {
    #[inline]
    fn repeat(&self, req: &Req) -> Option<Req> {
        self(req)
    }
}

/// Sends every request once, of whatever type it is.
///
/// ```
/// use buttress::retry::{Once, Repeat};
/// assert!(Once.repeat(&std::fs::File::open("/dev/null").ok()).is_none());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Once;

impl<Req> Repeat<Req> for Once {
    #[inline]
    fn repeat(&self, _: &Req) -> Option<Req> {
        None
    }
}

/// Clones the request. For requests that are safe to repeat. (By feature `http`, of a `Replay` body it makes a copy too.)
///
/// ```
/// use buttress::retry::{CloneRequest, Repeat};
/// assert_eq!(CloneRequest.repeat(&"get /"), Some("get /"));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloneRequest;

impl<Req: Clone> Repeat<Req> for CloneRequest {
    #[inline]
    fn repeat(&self, req: &Req) -> Option<Req> {
        Some(req.clone())
    }
}
