//! Which handles can be kept by key, and when they may be forgotten.

use std::{fmt, sync::Arc};

use crate::{
    ByResult, CircuitBreaker, CircuitBreakerBuilder, Cloned, ConcurrencyLimit, ConcurrencyLimitBuilder, ConfigError,
    Policy, PolicyBuilder, Retry, RetryBuilder, Throttle, ThrottleBuilder, Timeout,
    call::{Holds, Inline, Parts},
    circuit_breaker::{self, BreakerParts},
    clock::now,
    concurrency_limit::{self, LimitParts},
    policy::PolicyParts,
    retry::RetryParts,
    spread::{Spread, is_sole},
    throttle::{self, ThrottleParts},
};

/// A handle of which a [`Keyed`](super::Keyed) can keep one for each key: [`CircuitBreaker`], [`ConcurrencyLimit`],
/// [`Policy`], [`Retry`], [`Throttle`] and [`Timeout`].
///
/// It is sealed, as what it asks is asked under a lock: for several at once there is [`Policy`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be kept by key",
    note = "a `CircuitBreaker`, `ConcurrencyLimit`, `Policy`, `Retry`, `Throttle` or `Timeout` can; several for one key are a `Policy`"
)]
pub trait PerKey: Sealed {}

impl<H: Sealed> PerKey for H {}

/// The settings of such a handle, from which one is made for each key.
///
/// ```
/// use buttress::{ConcurrencyLimit, ConfigError, Keyed, keyed::Settings};
///
/// /// Other settings than ours, read from elsewhere.
/// #[derive(Clone)]
/// struct Tenants { calls: usize }
///
/// impl Settings for Tenants {
///     type Handle = ConcurrencyLimit;
///
///     fn make(self) -> Result<ConcurrencyLimit, ConfigError> {
///         ConcurrencyLimit::builder().max_in_flight(self.calls).build()
///     }
/// }
///
/// let tenants: Keyed<u64, ConcurrencyLimit> = Keyed::each(Tenants { calls: 4 }).build()?;
/// assert_eq!(tenants.get(&7).max_in_flight(), 4);
/// # Ok::<(), ConfigError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how to make a handle for each key",
    note = "pass a builder that was not built, such as `CircuitBreaker::builder()`; for a closure there is `Keyed::builder`"
)]
pub trait Settings: Clone + Send + Sync + 'static {
    /// What is made of them.
    type Handle: PerKey;

    /// Makes one.
    ///
    /// # Errors
    /// Every setting that is out of its range; the same each time.
    fn make(self) -> Result<Self::Handle, ConfigError>;
}

/// Reads our own state and the clock only, since it runs under a lock.
pub trait Sealed: Clone + fmt::Debug + Send + Sync + 'static {
    /// What a call holds of it.
    type Local: Holds;

    /// A clone, which allocates nothing.
    #[inline]
    fn share(&self) -> Self {
        self.clone()
    }

    /// For one call.
    fn into_local(self) -> Self::Local;

    /// Whether nobody else holds it: neither a clone, nor a permit, nor a call.
    fn is_sole(&self) -> bool {
        true
    }

    /// Whether one made anew would do the same. What its window has counted does not matter, unless calls are refused for it.
    fn is_settled(&self) -> bool {
        true
    }
}

impl Sealed for CircuitBreaker {
    type Local = Inline<BreakerParts<Arc<circuit_breaker::Shared>, ByResult>>;

    #[inline]
    fn into_local(self) -> Self::Local {
        Inline(BreakerParts { breaker: self.shared, classify: ByResult })
    }

    fn is_sole(&self) -> bool {
        is_sole(Arc::strong_count(&self.shared))
    }

    fn is_settled(&self) -> bool {
        self.shared.is_as_built()
    }
}

impl Sealed for ConcurrencyLimit {
    type Local = Inline<LimitParts<Arc<concurrency_limit::Shared>>>;

    #[inline]
    fn into_local(self) -> Self::Local {
        Inline(LimitParts { limit: self.shared })
    }

    fn is_sole(&self) -> bool {
        is_sole(Arc::strong_count(&self.shared))
    }

    fn is_settled(&self) -> bool {
        self.shared.is_settled()
    }
}

impl Sealed for Throttle {
    type Local = Inline<ThrottleParts<Arc<throttle::Shared>, ByResult>>;

    #[inline]
    fn into_local(self) -> Self::Local {
        Inline(ThrottleParts { throttle: self.shared, classify: ByResult })
    }

    fn is_sole(&self) -> bool {
        is_sole(Arc::strong_count(&self.shared))
    }

    fn is_settled(&self) -> bool {
        self.shared.is_calm(now)
    }
}

impl<K: Send + Sync + 'static> Sealed for Policy<K>
where
    PolicyParts<K>: Parts,
{
    type Local = Spread<PolicyParts<K>>;

    /// In the slot where it was made: threads that meet at a key meet at its lock anyway.
    #[inline]
    fn share(&self) -> Self {
        Self { parts: self.parts.beside() }
    }

    #[inline]
    fn into_local(self) -> Self::Local {
        self.parts
    }

    fn is_sole(&self) -> bool {
        self.parts.is_sole() && PolicyParts::is_sole(&self.parts)
    }

    fn is_settled(&self) -> bool {
        self.parts.is_settled()
    }
}

impl Sealed for Retry {
    type Local = Inline<RetryParts<Retry, Cloned>>;

    #[inline]
    fn into_local(self) -> Self::Local {
        Inline(RetryParts { retry: self, kind: Cloned::default() })
    }

    fn is_sole(&self) -> bool {
        is_sole(Arc::strong_count(&self.random))
    }
}

impl Sealed for Timeout {
    type Local = Inline<Timeout>;

    #[inline]
    fn into_local(self) -> Self::Local {
        Inline(self)
    }
}

macro_rules! settings {
    ($($builder:ty => $handle:ty),*) => {$(
        impl Settings for $builder {
            type Handle = $handle;

            fn make(self) -> Result<$handle, ConfigError> {
                self.build()
            }
        }
    )*};
}

settings!(
    CircuitBreakerBuilder => CircuitBreaker,
    ConcurrencyLimitBuilder => ConcurrencyLimit,
    RetryBuilder => Retry,
    ThrottleBuilder => Throttle
);

impl<K: Clone + Send + Sync + 'static> Settings for PolicyBuilder<K>
where
    PolicyParts<K>: Parts,
{
    type Handle = Policy<K>;

    fn make(self) -> Result<Policy<K>, ConfigError> {
        self.build()
    }
}
