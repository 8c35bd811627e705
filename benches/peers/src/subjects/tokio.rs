//! What tokio itself has, as one writes it around a call.

use std::sync::Arc;

use ::tokio::{
    sync::{AcquireError, Semaphore, TryAcquireError},
    time::{self, error::Elapsed},
};
use tower::service_fn;

use super::{AMPLE, SCARCE, SHORT};
use crate::inner::{Client, Inner};

pub fn timeout(inner: impl Inner<Elapsed>) -> impl Client {
    service_fn(move |req| {
        let mut inner = inner;
        async move { time::timeout(SHORT, inner.call(req)).await? }
    })
}

pub fn limit(inner: impl Inner<TryAcquireError>) -> impl Client {
    refusing(inner, Semaphore::new(AMPLE))
}

pub fn full(inner: impl Inner<TryAcquireError>) -> impl Client {
    let semaphore = Semaphore::new(1);
    semaphore.try_acquire().unwrap().forget();
    refusing(inner, semaphore)
}

fn refusing(inner: impl Inner<TryAcquireError>, semaphore: Semaphore) -> impl Client {
    let semaphore = Arc::new(semaphore);
    service_fn(move |req| {
        let (mut inner, semaphore) = (inner, semaphore.clone());
        async move {
            let _permit = semaphore.try_acquire()?;
            inner.call(req).await
        }
    })
}

pub fn saturated(inner: impl Inner<AcquireError>) -> impl Client {
    let semaphore = Arc::new(Semaphore::new(SCARCE));
    service_fn(move |req| {
        let (mut inner, semaphore) = (inner, semaphore.clone());
        async move {
            let _permit = semaphore.acquire().await?;
            inner.call(req).await
        }
    })
}
