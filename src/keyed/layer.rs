//! The layer, which looks for the handle with each request.

use std::{fmt, hash::Hash};

use super::{Keyed, PerKey};
use crate::call::{For, Guard, Guarded, Handle, Owned};

impl<K: Hash + Eq, H: PerKey> Keyed<K, H> {
    /// As a tower layer: each request passes the handle of the key that `key_of` tells. `http::ByStatus` and other
    /// [classifiers](crate::Classify) are a [`Policy`](crate::Policy)'s business; a [`CircuitBreaker`](crate::CircuitBreaker)
    /// for each key judges by `Err`, and a [`Retry`](crate::Retry) clones requests, as their own `layer()` does.
    ///
    /// Take a key that is cheap to make: a number, an `Arc<str>`, a `http::uri::Authority`; a `String` costs
    /// an allocation for each request. One that does not tell keys apart that are the same service (`Example.org` and
    /// `example.org:443`) is yours to make so.
    ///
    /// A panic of `key_of` is one of [`call`](tower::Service::call).
    pub fn layer<Req, F>(&self, key_of: F) -> KeyedLayer<K, H, F>
    where
        F: Fn(&Req) -> K + Clone,
    {
        Guard::from(ByKey { keyed: self.clone(), key_of })
    }
}

/// A [`Keyed`] as a tower layer.
///
/// ```
/// use buttress::{ConcurrencyLimit, Keyed, KeyedLayer};
/// struct Request { tenant: u64 }
/// let tenants = Keyed::each(ConcurrencyLimit::builder().max_in_flight(4)).build().unwrap();
/// let layer: KeyedLayer<u64, ConcurrencyLimit, fn(&Request) -> u64> = tenants.layer(|request| request.tenant);
/// # let _ = layer;
/// ```
pub type KeyedLayer<K, H, F> = Guard<ByKey<K, H, F>>;

/// The service of [`KeyedLayer`].
pub type KeyedService<S, K, H, F> = Guarded<S, ByKey<K, H, F>>;

/// What the services of a [`KeyedLayer`] hold: no handle, so that a service that lives on keeps none from being
/// forgotten.
pub struct ByKey<K, H: PerKey, F> {
    keyed: Keyed<K, H>,
    key_of: F,
}

impl<K, H: PerKey, F: Clone> Clone for ByKey<K, H, F> {
    fn clone(&self) -> Self {
        Self { keyed: self.keyed.clone(), key_of: self.key_of.clone() }
    }
}

impl<K, H: PerKey, F> fmt::Debug for ByKey<K, H, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.keyed.fmt(f)
    }
}

impl<K, H: PerKey, F: Clone> Handle for ByKey<K, H, F> {
    type Local = H::Local;
}

impl<K: Hash + Eq, H: PerKey, F: Fn(&Req) -> K + Clone, Req> For<Req> for ByKey<K, H, F> {
    type Near<'a>
        = Owned<H::Local>
    where
        Self: 'a;

    #[inline]
    fn near(&mut self, req: &Req) -> Owned<H::Local> {
        Owned(self.keyed.get_owned((self.key_of)(req)).into_local())
    }
}
