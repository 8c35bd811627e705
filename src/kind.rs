//! What differs from one protocol to the next, as one type parameter: how outcomes are judged, how requests are
//! repeated, and how long a call lasts.

use crate::{
    ByResult, UntilHeaders,
    call::Repeating,
    retry::{CloneRequest, Once},
};

/// A kind of service: how to [classify](crate::Classify) its outcomes, how to [repeat](crate::retry::Repeat) its
/// requests, and until when a call holds its permit: [`UntilHeaders`], or `http::UntilBody`.
///
/// The presets are aliases of it, so that a policy's type can be named; closures in
/// [`PolicyBuilder::classify`](crate::PolicyBuilder::classify) and [`repeat`](crate::PolicyBuilder::repeat) make others.
///
/// ```
/// use buttress::{ByResult, Kind, Retry, retry::CloneRequest};
/// let retry = Retry::constant(std::time::Duration::from_millis(10)).build()?;
/// let layer = retry.layer_with(Kind::new(ByResult, CloneRequest));
/// # let _ = layer;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Kind<C, R, H = UntilHeaders> {
    classify: C,
    again: Repeating<R>,
    hold: H,
}

/// Any requests, sent once, since any type must fit; `Err` is a transient failure. Closures can always be repeated.
pub type Plain = Kind<ByResult, Once>;

/// Requests that are safe to repeat, by `Clone`; `Err` is a transient failure.
pub type Cloned = Kind<ByResult, CloneRequest>;

impl<C, R> Kind<C, R> {
    /// A kind of your own.
    pub const fn new(classify: C, repeat: R) -> Self {
        Self { classify, again: Repeating(repeat), hold: UntilHeaders }
    }
}

impl<C, R, H> Kind<C, R, H> {
    pub(crate) fn with_classify<C2>(self, classify: C2) -> Kind<C2, R, H> {
        Kind { classify, again: self.again, hold: self.hold }
    }

    pub(crate) fn with_repeat<R2>(self, repeat: R2) -> Kind<C, R2, H> {
        Kind { classify: self.classify, again: Repeating(repeat), hold: self.hold }
    }

    pub(crate) fn with_hold<H2>(self, hold: H2) -> Kind<C, R, H2> {
        Kind { classify: self.classify, again: self.again, hold }
    }

    #[inline]
    pub(crate) fn classifier(&self) -> &C {
        &self.classify
    }

    #[inline]
    pub(crate) fn again(&self) -> &Repeating<R> {
        &self.again
    }

    #[inline]
    pub(crate) fn hold(&self) -> &H {
        &self.hold
    }
}

impl<C: Default, R: Default, H: Default> Default for Kind<C, R, H> {
    fn default() -> Self {
        Self { classify: C::default(), again: Repeating(R::default()), hold: H::default() }
    }
}
