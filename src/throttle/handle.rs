//! The handle and its layer.

use std::{convert::Infallible, fmt, future::Future, ops::Deref, sync::Arc};

use super::{Shared, Snapshot, ThrottleBuilder};
use crate::{
    ByResult, Classify, Error, Reject,
    call::{Given, Guard, Guarded, Holds, Inline, Parts, ResponseFuture, Unrepeated, UntilHeaders},
    clock::now,
    spread::Spread,
};

/// Refuses calls by chance, the likelier the fewer the service accepts: one count, shared by its clones, its layers and their
/// services. See the [module](crate::throttle) for which formula to take, what counts, and when not to use it.
///
/// ```
/// use buttress::{Rule, Throttle};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::ConfigError> {
/// let throttle = Throttle::envoy().name("stock").build()?;
/// let mut refused = 0;
/// for _ in 0..1_000 {
///     let error = throttle.call(async { Err::<u32, _>("busy") }).await.unwrap_err();
///     refused += u32::from(error.rejection().is_some_and(|no| no.rule() == Rule::AcceptRate));
/// }
/// assert!((700..900).contains(&refused), "four of five: {refused}");
/// assert_eq!(throttle.snapshot().rejection_probability, 0.8);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Throttle {
    pub(crate) shared: Arc<Shared>,
}

impl Throttle {
    /// By the formula of *Site Reliability Engineering*: refuses what goes beyond twice as many requests as are accepted.
    ///
    /// For a service that accepts so many calls a second and refuses the rest, and for callers that are many: it heeds how many calls
    /// are *wanted*.
    pub fn google() -> ThrottleBuilder {
        ThrottleBuilder::google()
    }

    /// By the formula of Envoy's admission control: refuses the more, the further the share of accepted calls is below 95 %, but
    /// never more than 80 %.
    ///
    /// For a service that fails a share of whatever it is sent. (Envoy counts for each of its threads by itself; here it is one
    /// count.)
    pub fn envoy() -> ThrottleBuilder {
        ThrottleBuilder::envoy()
    }

    /// As a tower layer, where `Err` was not accepted. A service that never fails, such as an axum `Router`, wants
    /// [`layer_with`](Self::layer_with)`(http::ByStatus)`.
    pub fn layer(&self) -> ThrottleLayer {
        self.layer_with(ByResult)
    }

    /// As a tower layer, with a classifier of your own; closures want
    /// [`classify::from_fn`](crate::classify::from_fn).
    pub fn layer_with<C>(&self, classify: C) -> ThrottleLayer<C> {
        Guard::from(Spread::new(ThrottleParts { throttle: Arc::clone(&self.shared), classify }))
    }

    /// Runs `future` if it is admitted, where `Err` was not accepted. Cancel safe if `future` is; dropped, it counts as nothing.
    ///
    /// # Errors
    /// The future's own error, or a rejection: [`Overloaded`](crate::Reason::Overloaded).
    pub fn call<F, T, E>(&self, future: F) -> impl Future<Output = Result<T, Error<E>>> + use<'_, F, T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.call_with(ByResult, future)
    }

    /// As [`call`](Self::call), with a classifier of your own; closures want
    /// [`classify::from_fn`](crate::classify::from_fn). Cancel safe if `future` is.
    ///
    /// # Errors
    /// The future's own error, or the rejection.
    pub fn call_with<C, F, T, E>(
        &self,
        classify: C,
        future: F,
    ) -> impl Future<Output = Result<T, Error<E>>> + use<'_, C, F, T, E>
    where
        C: Classify<T, E>,
        F: Future<Output = Result<T, E>>,
    {
        ResponseFuture::lazy(Inline(ThrottleParts { throttle: &*self.shared, classify }), Given::lifted(future))
    }

    /// As [`call`](Self::call), for a future whose error can carry the rejection itself. Cancel safe if `future` is.
    ///
    /// # Errors
    /// The future's own error, or the rejection.
    pub fn call_as<F, T, E>(&self, future: F) -> impl Future<Output = Result<T, E>> + use<'_, F, T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: Reject<T>,
    {
        ResponseFuture::lazy(Inline(ThrottleParts { throttle: &*self.shared, classify: ByResult }), Given::new(future))
    }

    /// What the throttle sees.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.snapshot(now())
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// A throttle and a classifier.
#[derive(Debug)]
pub struct ThrottleParts<T, C> {
    pub(crate) throttle: T,
    pub(crate) classify: C,
}

impl<T: Deref<Target = Shared>, C> Parts for ThrottleParts<T, C> {
    type Classify = C;
    type Again = Unrepeated;
    type Hold = UntilHeaders;
    type Seat<F, H: Holds> = Infallible;
    const TAKES: bool = false;

    #[inline]
    fn name(&self) -> &'static str {
        self.throttle.name()
    }

    #[inline]
    fn classify(&self) -> &C {
        &self.classify
    }

    #[inline]
    fn again(&self) -> &Unrepeated {
        &Unrepeated::ONCE
    }

    #[inline]
    fn hold(&self) -> &UntilHeaders {
        &UntilHeaders::HERE
    }

    #[inline]
    fn throttle(&self) -> Option<&Shared> {
        Some(&self.throttle)
    }
}

/// A [`Throttle`] as a tower layer.
pub type ThrottleLayer<C = ByResult> = Guard<Spread<ThrottleParts<Arc<Shared>, C>>>;

/// The service of [`ThrottleLayer`].
pub type ThrottleService<S, C = ByResult> = Guarded<S, Spread<ThrottleParts<Arc<Shared>, C>>>;
