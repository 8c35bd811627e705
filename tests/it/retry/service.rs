//! Retry as a layer: what becomes of requests, responses and services between two attempts.

use std::{
    future::{Future, Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use buttress::{ByResult, ConcurrencyLimit, Error, Kind, Policy, Reason, Verdict, classify, retry::CloneRequest};
use tokio::{
    sync::Semaphore,
    time::{Instant, advance, timeout},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, limit::GlobalConcurrencyLimitLayer, service_fn};

use super::{budget, every};
use crate::support::{Counts, Running, ms, secs, settle};

/// A request that counts how often it was cloned, and how many of it there are.
#[derive(Debug)]
struct Request {
    clones: Arc<AtomicUsize>,
    alive: Arc<()>,
}

impl Request {
    fn new() -> (Self, Arc<AtomicUsize>, Arc<()>) {
        let (clones, alive) = (Arc::default(), Arc::default());
        (Self { clones: Arc::clone(&clones), alive: Arc::clone(&alive) }, clones, alive)
    }
}

impl Clone for Request {
    fn clone(&self) -> Self {
        self.clones.fetch_add(1, SeqCst);
        Self { clones: Arc::clone(&self.clones), alive: Arc::clone(&self.alive) }
    }
}

/// Fails at once, and counts.
fn failing<Req>(
    counts: &Counts,
) -> impl Service<Req, Response = (), Error = Error<&'static str>, Future: Send> + Clone + Send + 'static {
    let counts = counts.clone();
    service_fn(move |_: Req| {
        counts.enter();
        ready(Err(Error::Inner("down")))
    })
}

// HAZARD: R4
#[tokio::test(start_paused = true)]
async fn a_failed_response_is_gone_before_the_wait_begins() {
    let counts = Counts::default();
    let server = counts.clone();
    // The future and its response each pin a connection for as long as they live.
    let service = service_fn(move |(): ()| {
        let (attempt, response) = (server.enter(), server.enter());
        async move {
            let _attempt = attempt;
            Ok::<Running, Error<()>>(response)
        }
    });
    let down = classify::from_fn(|_: Result<&Running, &()>| Verdict::TRANSIENT);
    let layer = every(secs(1), 2).build().unwrap().layer_with(Kind::new(down, CloneRequest));

    let mut call = task::spawn(layer.layer(service).call(()));
    assert_pending!(call.poll());
    assert_eq!((counts.calls(), counts.running()), (2, 0), "asleep, and nothing pinned");
    advance(secs(1)).await;
    let last = assert_ready!(call.poll()).unwrap();
    assert_eq!((counts.calls(), counts.running()), (4, 1), "the last response is the caller's");
    drop(last);
    assert_eq!(counts.running(), 0);
}

// HAZARD: R4
#[tokio::test(start_paused = true)]
async fn no_permit_is_held_through_the_wait() {
    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
    let policy = Policy::plain("stock").retry(every(secs(1), 2)).concurrency_limit(&limit).build().unwrap();
    let mut call = task::spawn(policy.call(async || Err::<(), _>("down")));
    assert_pending!(call.poll());
    assert_eq!(limit.in_flight(), 0);
}

// HAZARD: R5, R9
#[tokio::test(start_paused = true)]
async fn a_request_is_cloned_for_further_attempts_and_never_for_the_last() {
    for attempts in 1..=4 {
        let retry = every(ms(10), attempts as u32).build().unwrap();
        let policy = Policy::cloned("stock").retry(&retry).build().unwrap();

        let (counts, (request, clones, _)) = (Counts::default(), Request::new());
        retry.layer().layer(failing(&counts)).send(request).await.unwrap_err();
        assert_eq!((counts.calls(), clones.load(SeqCst)), (attempts, attempts - 1), "layer");

        let (counts, (request, clones, _)) = (Counts::default(), Request::new());
        policy.layer().layer(failing(&counts)).send(request).await.unwrap_err();
        assert_eq!((counts.calls(), clones.load(SeqCst)), (attempts, attempts - 1), "policy");
    }
}

// HAZARD: R5
#[tokio::test(start_paused = true)]
async fn a_request_that_had_to_queue_is_not_cloned_for_that() {
    for attempts in 1..=3 {
        let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
        let retry = every(ms(10), attempts as u32);
        let policy = Policy::cloned("stock").retry(retry).concurrency_limit(&limit).build().unwrap();
        let permit = limit.try_acquire().unwrap();

        let (counts, (request, clones, alive)) = (Counts::default(), Request::new());
        let call = tokio::spawn(policy.layer().layer(failing(&counts)).send(request));
        settle().await;
        assert_eq!((limit.waiting(), counts.calls(), clones.load(SeqCst)), (1, 0, 0));
        drop(permit);
        call.await.unwrap().unwrap_err();
        assert_eq!((counts.calls(), clones.load(SeqCst), Arc::strong_count(&alive)), (attempts, attempts - 1, 1));
    }
}

// HAZARD: R6, C15
#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_repeated_is_sent_once() {
    /// Not `Clone`, as a request with a streaming body.
    struct Stream;

    let start = Instant::now();
    let counts = Counts::default();
    let policy = Policy::plain("upload").retry(every(secs(1), 3)).build().unwrap();
    let failed = policy.layer().layer(failing(&counts)).send(Stream).await;
    assert_eq!((failed, counts.calls()), (Err(Error::Inner("down")), 1));

    let layer = every(secs(1), 3).build().unwrap().layer_with(Kind::new(ByResult, |_: &Stream| None));
    let failed = layer.layer(failing(&counts)).send(Stream).await;
    assert_eq!((failed, counts.calls()), (Err(Error::Inner("down")), 2));
    assert_eq!(start.elapsed(), secs(0), "nothing to wait for");
}

// HAZARD: R6
#[tokio::test(start_paused = true)]
async fn a_strategy_decides_anew_after_each_attempt() {
    // The second copy of this body can no longer be had: two attempts, though three were allowed.
    let counts = Counts::default();
    let copies = |left: &u32| left.checked_sub(1);
    let layer = every(ms(10), 3).build().unwrap().layer_with(Kind::new(ByResult, copies));
    assert_eq!(layer.layer(failing(&counts)).send(1).await, Err(Error::Inner("down")));
    assert_eq!(counts.calls(), 2);
}

// HAZARD: C1
#[tokio::test(start_paused = true)]
async fn a_further_attempt_goes_through_a_fresh_clone_that_was_polled_ready() {
    // tower's limit panics if it is called without having been polled ready, and a clone of it is not ready.
    let (permits, counts) = (Arc::new(Semaphore::new(1)), Counts::default());
    let limited = GlobalConcurrencyLimitLayer::with_semaphore(Arc::clone(&permits)).layer(failing(&counts));
    let service = every(ms(10), 3).build().unwrap().layer().layer(limited);
    assert_eq!(service.send(()).await, Err(Error::Inner("down")));
    assert_eq!((counts.calls(), permits.available_permits()), (3, 1));
}

/// Fails its first call, and is dead from then on: readiness is an error.
#[derive(Clone)]
struct Dying {
    dead: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Service<()> for Dying {
    type Response = ();
    type Error = Error<&'static str>;
    type Future = Ready<Result<(), Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.asked.fetch_add(1, SeqCst);
        Poll::Ready(if self.dead.load(SeqCst) { Err(Error::Inner("dead")) } else { Ok(()) })
    }

    fn call(&mut self, (): ()) -> Self::Future {
        self.dead.store(true, SeqCst);
        ready(Err(Error::Inner("down")))
    }
}

// HAZARD: R11
#[tokio::test(start_paused = true)]
async fn a_service_that_died_between_two_attempts_is_not_retried() {
    let service = Dying { dead: Arc::default(), asked: Arc::default() };
    let budget = budget(0.0, 1);
    let retry = every(ms(10), 5).budget(budget.clone()).build().unwrap();
    let start = Instant::now();
    assert_eq!(retry.layer().layer(service.clone()).send(()).await, Err(Error::Inner("dead")));
    assert_eq!((service.asked.load(SeqCst), start.elapsed()), (2, ms(10)));
    assert_eq!(budget.balance(), 9);
}

// HAZARD: R12
#[tokio::test(start_paused = true)]
async fn dropped_during_the_wait_nothing_leaks_and_nothing_is_sent() {
    let (counts, (request, _, alive)) = (Counts::default(), Request::new());
    let permits = Arc::new(Semaphore::new(1));
    let limited = GlobalConcurrencyLimitLayer::with_semaphore(Arc::clone(&permits)).layer(failing(&counts));
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let policy = Policy::cloned("stock").retry(every(secs(1), 3)).concurrency_limit(&limit).build().unwrap();

    let mut call = task::spawn(policy.layer().layer(limited).send(request));
    assert_pending!(call.poll());
    assert_eq!((counts.calls(), Arc::strong_count(&alive)), (1, 2), "one copy waits to be sent");
    drop(call);
    assert_eq!(Arc::strong_count(&alive), 1);
    assert_eq!((permits.available_permits(), limit.in_flight(), limit.waiting()), (1, 0, 0));

    advance(secs(3600)).await;
    settle().await;
    assert_eq!(counts.calls(), 1);
}

/// A policy around tower's limit of one; its first attempt fails, and then somebody else takes the permit.
async fn second_attempt_not_ready(
    policy: Policy<buttress::Cloned>,
) -> (impl Future<Output = Result<(), Error<&'static str>>>, Arc<Semaphore>, tokio::sync::OwnedSemaphorePermit, Counts)
{
    let (permits, counts) = (Arc::new(Semaphore::new(1)), Counts::default());
    let limited = GlobalConcurrencyLimitLayer::with_semaphore(Arc::clone(&permits)).layer(failing(&counts));
    let call = tokio::spawn(policy.layer().layer(limited).send(()));
    settle().await;
    let taken = Arc::clone(&permits).try_acquire_owned().expect("not held through the wait");
    (async { timeout(secs(3600), call).await.expect("not for ever").unwrap() }, permits, taken, counts)
}

// HAZARD: T2
#[tokio::test(start_paused = true)]
async fn an_attempt_that_waits_for_readiness_is_cut_off_by_its_timeout() {
    let policy = Policy::cloned("stock").retry(every(ms(10), 2)).timeout(ms(100)).build().unwrap();
    let start = Instant::now();
    let (call, _permits, _taken, counts) = second_attempt_not_ready(policy).await;
    let refused = call.await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().reason(), Reason::Timeout);
    assert_eq!((counts.calls(), start.elapsed()), (1, ms(110)));
}

// HAZARD: R7, T6
#[tokio::test(start_paused = true)]
async fn an_attempt_that_waits_for_readiness_is_cut_off_by_the_deadline() {
    let policy = Policy::cloned("stock").retry(every(ms(10), 2)).deadline(secs(1)).build().unwrap();
    let start = Instant::now();
    let (call, _permits, _taken, counts) = second_attempt_not_ready(policy).await;
    let refused = call.await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().reason(), Reason::DeadlineExceeded);
    assert_eq!((counts.calls(), start.elapsed()), (1, secs(1)));
}

// HAZARD: C2, R4
#[tokio::test(start_paused = true)]
async fn a_place_in_line_below_is_given_up_when_the_attempt_times_out() {
    let policy = Policy::cloned("stock").retry(every(secs(60), 3)).timeout(ms(100)).build().unwrap();
    let (_call, permits, taken, _) = second_attempt_not_ready(policy).await;
    advance(secs(60)).await;
    settle().await;
    assert!(permits.try_acquire().is_err(), "attempt two waits for it");
    advance(ms(100)).await;
    settle().await;
    // Attempt two has timed out, and sleeps for a minute: it must not be handed the permit meanwhile.
    drop(taken);
    assert_eq!(permits.available_permits(), 1);
}
