//! tower's own layers.

use std::{
    future::{Ready, ready},
    sync::Arc,
};

use ::tower::{
    BoxError, Service, ServiceBuilder,
    limit::ConcurrencyLimit,
    load_shed::LoadShed,
    retry::{
        Policy, Retry,
        budget::{Budget, TpsBudget},
    },
    timeout::Timeout,
};
use futures_util::FutureExt;

use super::{AMPLE, SCARCE, SHORT};
use crate::inner::{Client, Inner};

pub fn timeout(inner: impl Inner<BoxError>) -> impl Client {
    Timeout::new(inner, SHORT)
}

pub fn limit(inner: impl Inner<BoxError>) -> impl Client {
    ConcurrencyLimit::new(inner, AMPLE)
}

pub fn full(inner: impl Inner<BoxError>) -> impl Client {
    let limit = ConcurrencyLimit::new(inner, 1);
    // A service that is polled ready has the permit.
    let mut holder = limit.clone();
    assert!(std::future::poll_fn(|cx| holder.poll_ready(cx)).now_or_never().is_some());
    std::mem::forget(holder);
    LoadShed::new(limit)
}

pub fn saturated(inner: impl Inner<BoxError>) -> impl Client {
    ConcurrencyLimit::new(inner, SCARCE)
}

pub fn retry(inner: impl Inner<BoxError>) -> impl Client {
    Retry::new(Errors::default(), inner)
}

pub fn policy(inner: impl Inner<BoxError>) -> impl Client {
    policy_of(AMPLE, inner)
}

/// So many calls at once.
pub fn policy_of(limit: usize, inner: impl Inner<BoxError>) -> impl Client {
    ServiceBuilder::new().retry(Errors::default()).concurrency_limit(limit).timeout(SHORT).service(inner)
}

/// Retries errors while the budget lasts: tower leaves the policy to its users.
#[derive(Clone, Default)]
struct Errors(Arc<TpsBudget>);

impl<T, E> Policy<u64, T, E> for Errors {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut u64, result: &mut Result<T, E>) -> Option<Self::Future> {
        match result {
            Ok(_) => {
                self.0.deposit();
                None
            }
            Err(_) => self.0.withdraw().then(|| ready(())),
        }
    }

    fn clone_request(&mut self, req: &u64) -> Option<u64> {
        Some(*req)
    }
}
