//! [`Scripted`]: a service that does what it is told.

use std::{
    fmt,
    future::{Future, Ready},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};
use tower::Service;

use super::{Act, Calls, Chance, ResponseFuture};

/// A service that does what a script says, call after call, and [counts](Self::calls) them. Its clones share both.
///
/// It is strict about the tower contract, and panics if a clone of it is called that was not polled ready. It takes requests
/// of any type.
///
/// ```
/// use buttress::{CircuitBreaker, Error, Policy, Reason, testing::{Act, Scripted}};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let service = Scripted::in_turn([Act::error("down"), Act::error("down"), Act::answer("up again")]);
/// let policy = Policy::plain("demo")
///     .circuit_breaker(CircuitBreaker::builder().consecutive_failures(2))
///     .build()
///     .unwrap();
/// let mut client = policy.wrap(service.clone());
/// assert!(matches!(client.send(()).await, Err(Error::Inner("down"))));
/// assert!(matches!(client.send(()).await, Err(Error::Inner("down"))));
/// let no = client.send(()).await.unwrap_err();
/// assert_eq!(no.rejection().unwrap().reason(), Reason::CircuitOpen);
/// assert_eq!(service.calls().counted().started, 2);
/// # }
/// ```
pub struct Scripted<T, E> {
    script: Script<T, E>,
    calls: Calls,
    ready_after: Duration,
    readiness: Readiness,
}

type Script<T, E> = Arc<dyn Fn(u64) -> Act<T, E> + Send + Sync>;

/// Of one clone.
#[derive(Debug)]
enum Readiness {
    NotAsked,
    Readying(Pin<Box<Sleep>>),
    Ready,
}

impl<T, E> Scripted<T, E> {
    /// Does one of these for each call, in their order.
    ///
    /// # Panics
    /// Not here, but in a call that is one more than there are acts.
    pub fn in_turn(acts: impl IntoIterator<Item = Act<T, E>>) -> Self
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let acts: Vec<_> = acts.into_iter().collect();
        let (count, acts) = (acts.len(), Mutex::new(acts.into_iter()));
        Self::by(move |call| {
            let act = acts.lock().unwrap_or_else(PoisonError::into_inner).next();
            act.unwrap_or_else(|| panic!("call {} of a script that has {count} acts", call + 1))
        })
    }

    /// Does what `script` says for the call of this number; the first has number 0.
    pub fn by(script: impl Fn(u64) -> Act<T, E> + Send + Sync + 'static) -> Self {
        let script = Arc::new(script);
        Self { script, calls: Calls::new(), ready_after: Duration::ZERO, readiness: Readiness::NotAsked }
    }

    /// Does what `script` makes of each call's [`Chance`], which depends on the seed and the call's number, and on nothing
    /// else. So two scripts of one seed do the same.
    pub fn by_chance(seed: u64, script: impl Fn(&mut Chance) -> Act<T, E> + Send + Sync + 'static) -> Self {
        Self::by(move |call| script(&mut Chance::of_nth(seed, call)))
    }

    /// Each clone takes this time to be ready, before each of its calls. Default: none.
    #[must_use]
    pub fn ready_after(self, time: Duration) -> Self {
        Self { ready_after: time, ..self }
    }

    /// What became of the calls.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }
}

impl<T, E, Req> Service<Req> for Scripted<T, E> {
    type Response = T;
    type Error = E;
    type Future = ResponseFuture<Ready<Result<T, E>>, Result<T, E>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        if matches!(self.readiness, Readiness::NotAsked) && !self.ready_after.is_zero() {
            self.readiness = Readiness::Readying(Box::pin(sleep(self.ready_after)));
        }
        if let Readiness::Readying(sleep) = &mut self.readiness {
            ready!(sleep.as_mut().poll(cx));
        }
        self.readiness = Readiness::Ready;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Req) -> Self::Future {
        let readied = std::mem::replace(&mut self.readiness, Readiness::NotAsked);
        assert!(matches!(readied, Readiness::Ready), "called without having been polled ready");
        let (number, call) = self.calls.start();
        (self.script)(number).begin(call)
    }
}

impl<T, E> Clone for Scripted<T, E> {
    fn clone(&self) -> Self {
        Self {
            script: Arc::clone(&self.script),
            calls: self.calls.clone(),
            ready_after: self.ready_after,
            readiness: Readiness::NotAsked,
        }
    }
}

impl<T, E> fmt::Debug for Scripted<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { script: _, calls, ready_after, readiness } = self;
        f.debug_struct("Scripted")
            .field("calls", &calls.counted())
            .field("ready_after", ready_after)
            .field("readiness", readiness)
            .finish_non_exhaustive()
    }
}
