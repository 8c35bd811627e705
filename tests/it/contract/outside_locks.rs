//! User code never runs under a lock of ours: whatever it calls, it does not wait for itself.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
};

use buttress::{CircuitBreaker, ConcurrencyLimit, Policy, Verdict, circuit_breaker::State, classify};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{BoxError, Service};

use super::{breaker, limit, retry};
use crate::support::{Boxed, ms};

/// Uses every method that takes a lock, or tells of something.
fn meddle(breaker: &CircuitBreaker, limit: &ConcurrencyLimit) {
    breaker.force_open();
    let _ = (breaker.state(), breaker.snapshot(), breaker.watch());
    breaker.try_acquire().expect_err("forced open");
    breaker.reset();
    breaker.try_acquire().expect("closed").settle(Verdict::TRANSIENT);
    let most = limit.max_in_flight();
    limit.resize(most + 1);
    drop(limit.try_acquire());
    limit.resize(most);
    let mut queued = task::spawn(limit.acquire());
    let _ = queued.poll();
}

// HAZARD: C11
#[test]
fn a_listener_may_use_the_breaker_that_it_listens_to() {
    let own: Arc<OnceLock<CircuitBreaker>> = Arc::default();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (inner, log) = (own.clone(), heard.clone());
    let breaker = breaker()
        .consecutive_failures(1)
        .on_transition(move |transition| {
            log.lock().unwrap().push((transition.from, transition.to));
            let breaker = inner.get().unwrap();
            let _ = (breaker.state(), breaker.snapshot(), breaker.watch());
            if transition.to == State::Open {
                breaker.try_acquire().expect_err("open");
                breaker.reset();
                drop(breaker.try_acquire().expect("closed again"));
            }
        })
        .build()
        .unwrap();
    own.set(breaker.clone()).unwrap();
    breaker.try_acquire().unwrap().settle(Verdict::TRANSIENT);
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(*heard.lock().unwrap(), [(State::Closed, State::Open), (State::Open, State::Closed)]);
}

/// A service and requests of which everything that can run meddles.
struct Meddler(CircuitBreaker, ConcurrencyLimit, Arc<AtomicUsize>);

impl Meddler {
    fn meddle(&self) {
        self.2.fetch_add(1, SeqCst);
        meddle(&self.0, &self.1);
    }
}

impl Clone for Meddler {
    fn clone(&self) -> Self {
        self.meddle();
        Self(self.0.clone(), self.1.clone(), self.2.clone())
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.meddle();
    }
}

impl Service<Meddler> for Meddler {
    type Response = ();
    type Error = BoxError;
    type Future = Boxed<Result<(), BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
        self.meddle();
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Meddler) -> Self::Future {
        self.meddle();
        Box::pin(async move {
            req.meddle();
            tokio::time::sleep(ms(1)).await;
            Err("always".into())
        })
    }
}

// HAZARD: C11
#[tokio::test(start_paused = true)]
async fn requests_services_futures_classifiers_and_repeat_strategies_may_use_the_handles() {
    let (breaker, limit) = (breaker().build().unwrap(), limit().max_in_flight(1).build().unwrap());
    let meddler = Meddler(breaker.clone(), limit.clone(), Arc::default());
    let (judge, repeater, times) = (meddler.clone(), meddler.clone(), meddler.2.clone());
    let policy = Policy::plain("meddled with")
        .deadline(ms(1_000))
        .timeout(ms(100))
        .retry(retry())
        .circuit_breaker(&breaker)
        .concurrency_limit(&limit)
        .classify(classify::from_fn::<(), dyn std::error::Error + Send + Sync, _>(move |_| {
            judge.meddle();
            Verdict::TRANSIENT
        }))
        .repeat(move |req: &Meddler| {
            repeater.meddle();
            Some(req.clone())
        })
        .build()
        .unwrap();
    let service = tower::Layer::layer(&policy.layer(), meddler.clone());
    // One runs, one waits in the queue.
    let calls = [(); 2].map(|()| tokio::spawn(service.send(meddler.clone())));
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().to_string(), "always");
    }
    assert!(times.load(SeqCst) > 20);
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

/// A waker that takes what it is woken for.
struct Grabber(ConcurrencyLimit, AtomicUsize);

impl Wake for Grabber {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, SeqCst);
        let _ = (self.0.try_acquire(), self.0.waiting());
        self.0.resize(self.0.max_in_flight());
    }
}

// HAZARD: C11
#[test]
fn a_waker_may_use_the_limit_that_wakes_it() {
    let limit = limit().max_in_flight(1).max_wait(ms(1)).build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let _entered = runtime.enter();
    let held = limit.try_acquire().unwrap();
    let grabber = Arc::new(Grabber(limit.clone(), AtomicUsize::new(0)));
    let waker = Waker::from(grabber.clone());
    let mut queued = Box::pin(limit.acquire());
    assert!(queued.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(held);
    assert_eq!(grabber.1.load(SeqCst), 1);
    assert!(queued.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

// HAZARD: C11
#[tokio::test(start_paused = true)]
async fn a_handle_can_be_used_from_within_its_own_call() {
    let (breaker, limit) = (breaker().build().unwrap(), limit().max_in_flight(2).build().unwrap());
    let nested = task::spawn(breaker.call(limit.call(async {
        meddle(&breaker, &limit);
        breaker.call(limit.call(async { Ok::<_, BoxError>(7) })).await
    })));
    let mut nested = nested;
    match assert_ready_ok!(nested.poll()) {
        7 => {}
        other => panic!("{other}"),
    }
    let mut held = task::spawn(limit.call(std::future::pending::<Result<(), BoxError>>()));
    assert_pending!(held.poll());
    drop(held);
    assert_eq!(limit.in_flight(), 0);
}
