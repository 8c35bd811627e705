//! How long a call lasts: until its response is there, or for longer.

use std::time::Duration;

use super::core::Claims;
use crate::Verdict;

/// Whether a call is over with its response, or lasts for as long as the response's body.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not know the body of a `{Res}`",
    note = "`UntilHeaders` takes any response; `http::UntilBody` is for `http::Response`"
)]
pub trait Hold<Res, H> {
    /// What the caller gets for the response.
    type Response;

    /// Whether anything lasts beyond the response.
    const BEYOND: bool;

    /// The response of a call that has nothing.
    fn bare(res: Res) -> Self::Response;

    /// The response of a call that may have something left.
    fn hold(&self, res: Res, ending: Ending<'_, H>) -> Self::Response;
}

/// A call is over with its response: what any response allows, and the default.
///
/// ```
/// use buttress::{ByResult, Kind, UntilHeaders, retry::Once};
/// let plain: Kind<ByResult, Once, UntilHeaders> = Kind::new(ByResult, Once);
/// # let _ = plain;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UntilHeaders;

impl UntilHeaders {
    /// For what has a reference to give.
    pub(crate) const HERE: UntilHeaders = UntilHeaders;
}

impl<Res, H> Hold<Res, H> for UntilHeaders {
    type Response = Res;
    const BEYOND: bool = false;

    #[inline(always)]
    fn bare(res: Res) -> Res {
        res
    }

    #[inline(always)]
    fn hold(&self, res: Res, _: Ending<'_, H>) -> Res {
        res
    }
}

/// How long the body of a response may take.
#[derive(Clone, Copy, Debug, Default)]
pub struct BodyTimes {
    /// Between one piece and the next.
    pub(crate) idle: Option<Duration>,
    /// All of it.
    pub(crate) whole: Option<Duration>,
}

/// A call whose response is there. What nobody takes over is given back.
#[allow(missing_debug_implementations)] // lives for the one call that it is made for
#[cfg_attr(not(feature = "http"), allow(dead_code))] // nothing else has a body
pub struct Ending<'a, H> {
    pub(super) claims: &'a mut Claims,
    pub(super) held: &'a H,
    pub(super) verdict: Verdict,
}
