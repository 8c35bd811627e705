//! What differs from one protocol to the next, as one type parameter: how outcomes are judged and how requests are
//! repeated.

use crate::{
    ByResult,
    call::Repeating,
    retry::{CloneRequest, Once},
};

/// A kind of service: how to [classify](crate::Classify) its outcomes and how to [repeat](crate::retry::Repeat) its
/// requests.
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
pub struct Kind<C, R> {
    classify: C,
    again: Repeating<R>,
}

/// Any requests, sent once, since any type must fit; `Err` is a transient failure. Closures can always be repeated.
pub type Plain = Kind<ByResult, Once>;

/// Requests that are safe to repeat, by `Clone`; `Err` is a transient failure.
pub type Cloned = Kind<ByResult, CloneRequest>;

impl<C, R> Kind<C, R> {
    /// A kind of your own.
    pub const fn new(classify: C, repeat: R) -> Self {
        Self { classify, again: Repeating(repeat) }
    }

    pub(crate) fn with_classify<C2>(self, classify: C2) -> Kind<C2, R> {
        Kind { classify, again: self.again }
    }

    pub(crate) fn with_repeat<R2>(self, repeat: R2) -> Kind<C, R2> {
        Kind::new(self.classify, repeat)
    }

    #[inline]
    pub(crate) fn classifier(&self) -> &C {
        &self.classify
    }

    #[inline]
    pub(crate) fn again(&self) -> &Repeating<R> {
        &self.again
    }
}

impl<C: Default, R: Default> Default for Kind<C, R> {
    fn default() -> Self {
        Self::new(C::default(), R::default())
    }
}
