//! Late, slow and rare: what goes wrong only when somebody takes their time.

use std::{
    convert::Infallible,
    error::Error as StdError,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use buttress::{
    CircuitBreaker, ConcurrencyLimit, Deadline, Error, Jitter, Policy, Reason, Retry,
    circuit_breaker::{State, WhenOpen},
};
use tokio::time::{advance, sleep};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{BoxError, Layer, Service, service_fn};

use crate::support::{Counts, Echo, ms, secs};

/// Opens at the first failure.
fn open() -> CircuitBreaker {
    let breaker = CircuitBreaker::builder().consecutive_failures(1).seed(1).build().unwrap();
    breaker.try_acquire().unwrap().settle(buttress::Verdict::TRANSIENT);
    assert_eq!(breaker.state(), State::Open);
    breaker
}

// HAZARD: R7, T6
#[tokio::test(start_paused = true)]
async fn a_timer_that_fires_late_starts_no_attempt_past_the_deadline() {
    let counts = Counts::default();
    // tokio rounds the wait up to the very moment of the deadline.
    let retry = Retry::constant(Duration::from_micros(9_500)).jitter(Jitter::None);
    let policy = Policy::plain("late").deadline(ms(10)).retry(retry).build().unwrap();
    let call = policy.call(|| async {
        drop(counts.enter());
        Err::<(), _>("no")
    });
    assert_eq!(call.await.unwrap_err().rejection().unwrap().reason(), Reason::DeadlineExceeded);
    assert_eq!(counts.calls(), 1);
}

// HAZARD: R7, T6
#[tokio::test(start_paused = true)]
async fn a_permit_that_is_granted_past_the_deadline_starts_no_call() {
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let policy = Policy::plain("late").deadline(ms(10)).concurrency_limit(&limit).build().unwrap();
    let held = limit.try_acquire().unwrap();
    let mut call = task::spawn(policy.call(|| async { Ok::<_, Infallible>(Deadline::current()) }));
    assert_pending!(call.poll());
    advance(ms(20)).await;
    drop(held);
    let outcome = assert_ready!(call.poll());
    assert_eq!(outcome.unwrap_err().rejection().unwrap().reason(), Reason::DeadlineExceeded);
    assert_eq!((limit.in_flight(), limit.waiting()), (0, 0));
}

// HAZARD: T6
#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn a_service_that_is_ready_too_late_is_not_called() {
    use buttress::testing::{Act, Scripted};

    let bounds: [(_, fn(buttress::PolicyBuilder<_>) -> buttress::PolicyBuilder<_>); 2] = [
        (Reason::DeadlineExceeded, |policy| policy.deadline(ms(20))),
        (Reason::Timeout, |policy| policy.timeout(ms(9))),
    ];
    for (reason, bounded) in bounds {
        let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(1).build().unwrap();
        let policy = bounded(Policy::plain("late").concurrency_limit(&limit)).build().unwrap();
        let service: Scripted<_, Infallible> = Scripted::by(Act::answer).ready_after(ms(8));
        let mut client = policy.wrap(service.clone());
        std::future::poll_fn(|cx| Service::<()>::poll_ready(&mut client, cx)).await.unwrap();
        // It waits for a permit, so it takes a fresh clone of the service then, which is not ready yet.
        let held = limit.try_acquire().unwrap();
        let mut call = task::spawn(client.call(()));
        assert_pending!(call.poll());
        drop(held);
        assert_pending!(call.poll());
        // A worker that was stuck sees readiness and the end of the time in one poll.
        advance(ms(30)).await;
        let outcome = assert_ready!(call.poll());
        assert_eq!(outcome.unwrap_err().rejection().unwrap().reason(), reason);
        assert_eq!((service.calls().counted().started, limit.in_flight()), (0, 0));
    }
}

// HAZARD: B2
#[tokio::test(start_paused = true)]
async fn a_healthy_service_that_is_rarely_called_gets_its_circuit_closed() {
    let breaker = open();
    for _ in 0..3 {
        sleep(secs(61)).await;
        breaker.call(async { Ok::<_, ()>(()) }).await.expect("no probe hangs, so no lease ends the round");
    }
    assert_eq!(breaker.state(), State::Closed);
}

// HAZARD: B2, B8
#[tokio::test(start_paused = true)]
async fn a_round_in_which_nobody_probed_has_not_failed() {
    let breaker = open();
    sleep(secs(6)).await;
    drop(breaker.try_acquire().unwrap());
    sleep(secs(31)).await;
    assert!(breaker.call(async { Ok::<_, ()>(()) }).await.is_ok());
}

// HAZARD: B2
#[tokio::test(start_paused = true)]
async fn probes_have_as_long_as_the_policy_lets_a_call_take() {
    let breaker = CircuitBreaker::builder().consecutive_failures(1);
    let policy = Policy::plain("slow").timeout(secs(60)).circuit_breaker(breaker).build().unwrap();
    let _ = policy.call(|| async { Err::<(), _>(()) }).await;
    for _ in 0..120 {
        let policy = policy.clone();
        tokio::spawn(async move {
            let answer = || async {
                sleep(secs(40)).await;
                Ok::<_, ()>(())
            };
            policy.call(answer).await
        });
        sleep(secs(1)).await;
    }
    assert_eq!(policy.circuit_breaker().unwrap().state(), State::Closed);
}

// HAZARD: C2
#[tokio::test(start_paused = true)]
async fn a_service_that_waits_for_a_circuit_keeps_nothing_reserved_below() {
    let breaker = CircuitBreaker::builder().build().unwrap();
    let answer = service_fn(|(): ()| async { Ok::<_, Error<Infallible>>(()) });
    let below = tower::limit::ConcurrencyLimit::new(answer, 1);
    let mut other = below.clone();
    let mut waiting = breaker.layer().when_open(WhenOpen::Wait).layer(below);
    let mut cx = Context::from_waker(Waker::noop());
    assert_ready_ok!(waiting.poll_ready(&mut cx));
    breaker.force_open();
    assert_pending!(waiting.poll_ready(&mut cx));
    assert_ready_ok!(other.poll_ready(&mut cx));
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics");
    }
}

// HAZARD: C11
#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_keeps_no_transition_from_anybody() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = Arc::clone(&heard);
    let breaker = CircuitBreaker::builder().on_transition(move |t| hear.lock().unwrap().push(t.to)).build().unwrap();
    breaker.force_open();
    let mut waiting = breaker.layer().when_open(WhenOpen::Wait).layer(Echo);
    let waker = Waker::from(Arc::new(Panics));
    assert_pending!(Service::<u64>::poll_ready(&mut waiting, &mut Context::from_waker(&waker)));
    let _ = catch_unwind(AssertUnwindSafe(|| breaker.reset()));
    breaker.force_open();
    assert_eq!(*heard.lock().unwrap(), [State::ForcedOpen, State::Closed, State::ForcedOpen]);
}

#[derive(Debug)]
struct PanicsInSource;

impl fmt::Display for PanicsInSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an error whose source panics")
    }
}

impl StdError for PanicsInSource {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        panic!("{self}");
    }
}

// HAZARD: B5
#[tokio::test(start_paused = true)]
async fn an_error_that_panics_when_it_is_looked_at_is_a_failure() {
    let breaker = CircuitBreaker::builder().build().unwrap();
    let call = breaker.clone();
    let boxed = async { Err::<(), BoxError>(Box::new(PanicsInSource)) };
    assert!(tokio::spawn(async move { call.call_as(boxed).await }).await.unwrap_err().is_panic());
    assert_eq!(breaker.snapshot().failures, 1);
}

/// Answers at once, and panics when it is dropped.
struct PanicsInDrop(Arc<AtomicUsize>);

impl Future for PanicsInDrop {
    type Output = Result<(), ()>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), ()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        if self.0.fetch_add(1, SeqCst) == 0 {
            panic!("an attempt that panics in drop");
        }
    }
}

// HAZARD: B5, L5
#[tokio::test(start_paused = true)]
async fn an_attempt_that_panics_in_drop_is_a_failure_and_gives_its_permit_back() {
    let breaker = CircuitBreaker::builder().build().unwrap();
    let limit = ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
    let policy = Policy::plain("p").circuit_breaker(&breaker).concurrency_limit(&limit).build().unwrap();
    let drops = Arc::new(AtomicUsize::new(0));
    let call = async move { policy.call(|| PanicsInDrop(Arc::clone(&drops))).await };
    assert!(tokio::spawn(call).await.unwrap_err().is_panic());
    assert_eq!((limit.in_flight(), breaker.snapshot().failures), (0, 1));
}

// HAZARD: B5
#[test]
fn a_slow_threshold_that_would_blind_the_breaker_is_refused() {
    let within = |deadline| {
        let breaker = CircuitBreaker::builder().slow_call(secs(2));
        Policy::plain("p").deadline(deadline).circuit_breaker(breaker).build()
    };
    for deadline in [secs(1), secs(2)] {
        assert_eq!(
            within(deadline).unwrap_err().to_string(),
            "invalid configuration: circuit_breaker.slow_call = 2s: must be shorter than policy.deadline, or calls that \
             it cuts off count as nothing"
        );
    }
    assert!(within(ms(2_001)).is_ok());
}
