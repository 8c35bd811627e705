//! The contract that every layer keeps, and the whole policy too: the stories in [`stories!`] are told of each.
//!
//! To hold a new layer to it, write a function that makes its [`Subject`] and add its name to [`contract!`].

mod auto_traits;
mod giving_back;
mod outside_locks;
mod readiness;
mod shared_state;
mod sizes;
mod strict;
mod types;

use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, ConcurrencyLimit, ConcurrencyLimitBuilder, DeadlineLayer, Jitter,
    Keyed, LagGuard, Policy, Rejection, Retry, RetryBuilder, Throttle, ThrottleBuilder, Timeout, Verdict,
};
use tokio::time::sleep;
use tower::{
    BoxError, Layer, Service,
    util::{BoxCloneSyncService, BoxCloneSyncServiceLayer},
};

use self::strict::{Ask, Strict};
use crate::support::{ms, secs};

type Svc = BoxCloneSyncService<Ask, u64, BoxError>;
type AnyLayer = BoxCloneSyncServiceLayer<Svc, Ask, u64, BoxError>;

/// A layer, whichever it is, and the handles through which it can be made to refuse, if it has any.
struct Subject {
    layer: AnyLayer,
    breaker: Option<CircuitBreaker>,
    limit: Option<ConcurrencyLimit>,
}

const OPEN_TIME: std::time::Duration = ms(100);

fn breaker() -> CircuitBreakerBuilder {
    let open_time = Backoff::constant(OPEN_TIME).jitter(Jitter::None);
    CircuitBreaker::builder().without_failure_rate().consecutive_failures(100).probes(1).open_time(open_time)
}

fn limit() -> ConcurrencyLimitBuilder {
    ConcurrencyLimit::builder().max_in_flight(4).max_queue(2_000).max_wait(secs(1))
}

/// Counts, and is asked, but leaves nothing to chance.
fn throttle() -> ThrottleBuilder {
    Throttle::google().max_rejection(f64::MIN_POSITIVE)
}

fn retry() -> RetryBuilder {
    Retry::constant(ms(50)).jitter(Jitter::None).max_attempts(3).without_budget()
}

// ---------------------------------------------------------------- the layers, one function each

fn timeout() -> Subject {
    Subject::of(Timeout::new(secs(10)).layer())
}

fn deadline() -> Subject {
    Subject::of(DeadlineLayer::new(secs(60)))
}

fn retrying() -> Subject {
    Subject::of(retry().build().unwrap().layer())
}

fn circuit_breaker() -> Subject {
    let breaker = breaker().build().unwrap();
    Subject { breaker: Some(breaker.clone()), ..Subject::of(breaker.layer()) }
}

fn lag_guard() -> Subject {
    // Some stories advance the clock by more than a healthy runtime is ever late.
    Subject::of(LagGuard::builder().max_lag(secs(100)).start().unwrap().layer())
}

fn throttled() -> Subject {
    Subject::of(throttle().build().unwrap().layer())
}

fn concurrency_limit() -> Subject {
    let limit = limit().build().unwrap();
    Subject { limit: Some(limit.clone()), ..Subject::of(limit.layer()) }
}

fn policy() -> Subject {
    let policy = Policy::cloned("all")
        .deadline(secs(60))
        .retry(retry())
        .circuit_breaker(breaker())
        .throttle(throttle())
        .concurrency_limit(limit())
        .timeout(secs(10))
        .build()
        .unwrap();
    Subject {
        breaker: policy.circuit_breaker().cloned(),
        limit: policy.concurrency_limit().cloned(),
        ..Subject::of(policy.layer())
    }
}

fn policy_of_nothing() -> Subject {
    Subject::of(Policy::plain("nothing").build().unwrap().layer())
}

/// Each of them for one key.
fn keyed_circuit_breaker() -> Subject {
    let keyed = Keyed::each(breaker()).build().unwrap();
    Subject { breaker: Some(keyed.get(&())), ..Subject::of(keyed.layer(|_: &Ask| ())) }
}

fn keyed_concurrency_limit() -> Subject {
    let keyed = Keyed::each(limit()).build().unwrap();
    Subject { limit: Some(keyed.get(&())), ..Subject::of(keyed.layer(|_: &Ask| ())) }
}

fn keyed_policy() -> Subject {
    let each = Policy::cloned("all")
        .deadline(secs(60))
        .retry(retry())
        .circuit_breaker(breaker())
        .throttle(throttle())
        .concurrency_limit(limit())
        .timeout(secs(10));
    let keyed = Keyed::each(each).build().unwrap();
    let policy = keyed.get(&());
    Subject {
        breaker: policy.circuit_breaker().cloned(),
        limit: policy.concurrency_limit().cloned(),
        ..Subject::of(keyed.layer(|_: &Ask| ()))
    }
}

impl Subject {
    fn of<L>(layer: L) -> Self
    where
        L: Layer<Svc> + Send + Sync + 'static,
        L::Service: Service<Ask, Response = u64, Error = BoxError, Future: Send> + Clone + Send + Sync + 'static,
        <L::Service as Service<Ask>>::Future: 'static,
    {
        Self { layer: AnyLayer::new(layer), breaker: None, limit: None }
    }

    fn over<S>(&self, inner: S) -> Svc
    where
        S: Service<Ask, Response = u64, Error = BoxError, Future: Send> + Clone + Send + Sync + 'static,
        S::Future: 'static,
    {
        self.layer.layer(Svc::new(inner))
    }

    /// From now on it refuses what it can refuse.
    fn refuse(&self) {
        self.breaker.iter().for_each(CircuitBreaker::force_open);
        self.crowd();
    }

    fn relent(&self) {
        self.breaker.iter().for_each(CircuitBreaker::reset);
        self.resize(4);
    }

    /// Calls must queue from now on, if there is a queue.
    fn crowd(&self) {
        self.resize(0);
    }

    fn resize(&self, max_in_flight: usize) {
        self.limit.iter().for_each(|limit| limit.resize(max_in_flight));
    }

    /// Opens the circuit and lets the open time pass: the next call is the only probe.
    async fn half_open(&self) {
        let Some(breaker) = &self.breaker else { return };
        while let Ok(permit) = breaker.try_acquire() {
            permit.settle(Verdict::TRANSIENT);
        }
        sleep(OPEN_TIME).await;
    }

    /// Nobody holds anything: no permit, no place in the queue, no probe.
    fn is_idle(&self) -> bool {
        self.limit.iter().all(|limit| limit.in_flight() == 0 && limit.waiting() == 0)
            && self.breaker.iter().all(|breaker| breaker.try_acquire().is_ok())
    }
}

/// The rejection that an error is.
fn rejection(error: &BoxError) -> Rejection {
    *error.downcast_ref().unwrap_or_else(|| panic!("not a rejection: {error}"))
}

/// What is told of each layer.
macro_rules! stories {
    ($layer:ident) => {
        // HAZARD: C1
        #[tokio::test(start_paused = true)]
        async fn the_service_that_was_polled_ready_is_the_one_that_is_called() {
            readiness::calls_the_one_that_is_ready($layer()).await;
        }

        // HAZARD: C1
        #[tokio::test(start_paused = true)]
        async fn further_attempts_are_readied_too() {
            readiness::readies_each_attempt($layer()).await;
        }

        // HAZARD: C1
        #[tokio::test(start_paused = true)]
        async fn a_call_that_had_to_queue_is_readied_too() {
            readiness::readies_after_the_queue($layer()).await;
        }

        // HAZARD: C1
        #[tokio::test(start_paused = true)]
        async fn it_keeps_what_towers_mock_asks_for() {
            readiness::keeps_the_mocks_rules($layer()).await;
        }

        // HAZARD: C1, C2, C6
        #[tokio::test(start_paused = true)]
        async fn a_limit_of_one_below_serves_everybody() {
            readiness::shares_a_limit_below($layer()).await;
        }

        // HAZARD: C2
        #[tokio::test(start_paused = true)]
        async fn a_refused_or_queued_call_holds_no_readiness_of_the_service_below() {
            readiness::lets_go_of_readiness_when_refused($layer()).await;
        }

        // HAZARD: C2
        #[tokio::test(start_paused = true)]
        async fn a_ready_but_idle_service_holds_nothing_of_ours() {
            readiness::reserves_nothing($layer()).await;
        }

        // HAZARD: C2
        #[tokio::test(start_paused = true)]
        async fn nothing_is_held_through_a_backoff() {
            readiness::holds_nothing_through_a_backoff($layer()).await;
        }

        // HAZARD: C4
        #[tokio::test(start_paused = true)]
        async fn a_buffer_above_lives_through_rejections() {
            readiness::spares_a_buffer_above($layer()).await;
        }

        // HAZARD: C5
        #[tokio::test(start_paused = true)]
        async fn a_thousand_calls_in_one_poll_are_all_served() {
            readiness::serves_a_thousand_in_one_poll($layer()).await;
        }

        // HAZARD: C5
        #[tokio::test(start_paused = true)]
        async fn a_service_that_runs_out_of_budget_is_not_taken_for_a_full_one() {
            readiness::waits_for_the_budget($layer()).await;
        }

        // HAZARD: C7
        #[tokio::test(start_paused = true)]
        async fn four_who_wait_for_readiness_are_all_woken() {
            readiness::wakes_all_who_wait($layer()).await;
        }

        // HAZARD: C8
        #[tokio::test(start_paused = true)]
        async fn a_call_that_waits_is_not_polled_for_nothing() {
            readiness::sleeps_while_it_waits($layer()).await;
        }

        // HAZARD: C13
        #[tokio::test(start_paused = true)]
        async fn a_paused_clock_governs() {
            readiness::follows_a_paused_clock($layer()).await;
        }

        // HAZARD: C6, R12
        #[tokio::test(start_paused = true)]
        async fn dropped_at_any_point_a_call_gives_everything_back() {
            giving_back::when_dropped($layer).await;
        }

        // HAZARD: B5
        #[tokio::test(start_paused = true)]
        async fn a_panic_in_call_poll_or_drop_gives_everything_back() {
            giving_back::when_it_panics($layer).await;
        }

        // HAZARD: B5
        #[tokio::test(start_paused = true)]
        async fn a_panic_in_poll_ready_gives_everything_back() {
            giving_back::when_readiness_panics($layer()).await;
        }

        // HAZARD: L5
        #[tokio::test(start_paused = true)]
        async fn a_finished_call_holds_nothing_even_before_it_is_dropped() {
            giving_back::when_finished($layer()).await;
        }

        // HAZARD: C12
        #[tokio::test(start_paused = true)]
        async fn the_services_error_passes_unchanged_with_its_source() {
            giving_back::errors_unchanged($layer()).await;
        }

        // HAZARD: R11
        #[tokio::test(start_paused = true)]
        async fn a_readiness_error_passes_unchanged_and_is_not_an_attempts_failure() {
            giving_back::readiness_errors_unchanged($layer()).await;
        }

        // HAZARD: C3
        #[tokio::test(start_paused = true)]
        async fn services_made_for_each_request_share_one_state() {
            shared_state::refuses_through_every_service($layer()).await;
        }
    };
}

macro_rules! contract {
    ($($layer:ident),* $(,)?) => {
        $(
            mod $layer {
                use super::*;

                stories!($layer);
            }
        )*
    };
}

contract![
    timeout,
    deadline,
    retrying,
    lag_guard,
    circuit_breaker,
    throttled,
    concurrency_limit,
    policy,
    policy_of_nothing
];
contract![keyed_circuit_breaker, keyed_concurrency_limit, keyed_policy];
