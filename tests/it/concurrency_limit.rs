//! A concurrency limit, by every way into it.
#![allow(clippy::disallowed_methods)] // tokio's clock, to measure waits on it

mod admission;
mod model;
mod queue;
mod release;
mod stress;

use std::{
    convert::Infallible,
    future::{Future, pending},
};

use buttress::{ConcurrencyLimit, ConcurrencyLimitBuilder, Error, Policy, Rejection};
use tokio::sync::oneshot;
use tokio_test::task::{self, Spawn};
use tower::{Layer, Service, service_fn};

use crate::support::{Boxed, Counts};

type Call = Spawn<Boxed<Result<(), Rejection>>>;

fn at_most(in_flight: usize, queue: usize) -> ConcurrencyLimitBuilder {
    ConcurrencyLimit::builder().max_in_flight(in_flight).max_queue(queue)
}

fn limit(in_flight: usize, queue: usize) -> ConcurrencyLimit {
    at_most(in_flight, queue).build().unwrap()
}

/// The ways into a limit: by hand, as a function, as a layer, and as a part of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Acquire,
    Call,
    CallAs,
    Layer,
    PolicyCall,
    PolicyLayer,
    PolicyWrap,
}

impl Way {
    const ALL: [Way; 7] =
        [Way::Acquire, Way::Call, Way::CallAs, Way::Layer, Way::PolicyCall, Way::PolicyLayer, Way::PolicyWrap];

    /// Does `work` under the limit.
    fn enter(
        self,
        limit: &ConcurrencyLimit,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Boxed<Result<(), Rejection>> {
        let limit = limit.clone();
        let policy = Policy::plain("policy").concurrency_limit(&limit).build().unwrap();
        let (lifted, plain) = (service_fn(finish::<Error<Infallible>>), service_fn(finish::<Infallible>));
        let work: Boxed<()> = Box::pin(work);
        match self {
            Way::Acquire => Box::pin(async move {
                let _permit = limit.acquire().await?;
                work.await;
                Ok(())
            }),
            Way::Call => Box::pin(rejection_of(async move { limit.call(finish(work)).await })),
            Way::CallAs => Box::pin(rejection_of(async move { limit.call_as(finish(work)).await })),
            Way::Layer => Box::pin(rejection_of(limit.layer().layer(lifted).call(work))),
            Way::PolicyCall => Box::pin(rejection_of(async move {
                let mut work = Some(work);
                policy.call(|| finish(work.take().unwrap())).await
            })),
            Way::PolicyLayer => Box::pin(rejection_of(policy.layer().layer(lifted).call(work))),
            Way::PolicyWrap => Box::pin(rejection_of(policy.wrap(plain).call(work))),
        }
    }

    fn start(self, limit: &ConcurrencyLimit, work: impl Future<Output = ()> + Send + 'static) -> Call {
        task::spawn(self.enter(limit, work))
    }
}

async fn finish<E>(work: Boxed<()>) -> Result<(), E> {
    work.await;
    Ok(())
}

async fn rejection_of(call: impl Future<Output = Result<(), Error<Infallible>>>) -> Result<(), Rejection> {
    call.await.map_err(|error| *error.rejection().unwrap())
}

/// Work that ends when it is told to (never, if nobody can), and is counted for as long as it runs.
fn work(counts: &Counts) -> (oneshot::Sender<()>, impl Future<Output = ()> + Send + use<>) {
    let (end, ended) = oneshot::channel();
    let counts = counts.clone();
    let work = async move {
        let _running = counts.enter();
        if ended.await.is_err() {
            pending::<()>().await;
        }
    };
    (end, work)
}
