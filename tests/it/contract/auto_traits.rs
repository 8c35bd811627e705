//! Which types can be sent, shared, and moved while pinned: part of the API, though nobody writes it.
//!
//! Every public type has a row, which `checks/` holds it to. Those with parameters have one for such that have nothing of it,
//! too. Unwind safety is not in it: that of tokio's types, and so of ours, goes by tokio's feature `parking_lot`.

use std::{
    cell::Cell,
    marker::{PhantomData, PhantomPinned},
    rc::Rc,
};

use buttress::{
    CircuitBreaker, CircuitBreakerLayer, ConcurrencyLimitLayer, DeadlineLayer, KeyedLayer, Plain, PolicyLayer,
    RetryLayer, TimeoutLayer, TimeoutService,
};

use super::types::{Bare, Bland, Req};
use crate::support::Echo;

/// Has everything.
type All = u8;
/// Has nothing.
type Nothing = (Rc<Cell<u8>>, PhantomPinned);

type FutureOf<S, Req = u64> = <S as tower::Service<Req>>::Future;

struct Of<T>(PhantomData<T>);

/// What `Of` says of a type that has not the trait by which it would say otherwise.
trait Otherwise {
    const SEND: &'static str = "";
    const SYNC: &'static str = "";
    const UNPIN: &'static str = "";
}

impl<T> Otherwise for Of<T> {}

impl<T: Send> Of<T> {
    const SEND: &'static str = "Send ";
}

impl<T: Sync> Of<T> {
    const SYNC: &'static str = "Sync ";
}

impl<T: Unpin> Of<T> {
    const UNPIN: &'static str = "Unpin ";
}

/// Rows of types, or of a type's name and one that is it, under what they have.
macro_rules! exactly {
    ($($has:tt $($name:ty $(= $is:ty)?),+;)+) => {{
        let mut wrong = Vec::new();
        $($({
            let found = exactly!(@of $name $(= $is)?).concat();
            if format!("[{}]", found.trim_end()) != stringify!($has) {
                wrong.push(format!("{}: {found}", stringify!($name)));
            }
        })+)+
        assert!(wrong.is_empty(), "not as it says in the table:\n{}", wrong.join("\n"));
    }};
    (@of $name:ty = $is:ty) => { exactly!(@of $is) };
    (@of $name:ty) => { [Of::<$name>::SEND, Of::<$name>::SYNC, Of::<$name>::UNPIN] };
}

// HAZARD: C14
#[test]
fn every_type_can_be_sent_and_shared_as_far_as_its_parameters_can() {
    exactly! {
        [Send Sync Unpin]
        buttress::Backoff,
        buttress::ByResult,
        buttress::ConcurrencyLimit,
        buttress::ConcurrencyLimitBuilder,
        buttress::ConfigError,
        buttress::Deadline,
        buttress::Error<All>,
        buttress::Guard<All>,
        DeadlineLayer,
        TimeoutLayer,
        RetryLayer,
        ConcurrencyLimitLayer,
        buttress::Guarded<All, All>,
        buttress::Hedge,
        buttress::HedgeBuilder,
        buttress::Jitter,
        buttress::Kind<All, All, All>,
        buttress::LagGuard,
        buttress::LagGuardBuilder,
        buttress::Lift<All>,
        buttress::LiftFuture<All>,
        buttress::LiftLayer,
        buttress::Outcome<'static, All, All>,
        buttress::Problem,
        buttress::Reason,
        buttress::Rejection,
        buttress::Retry,
        buttress::RetryBuilder,
        buttress::Rule,
        buttress::Shutdown,
        buttress::SlowPoll,
        buttress::SlowPollLayer,
        buttress::SlowPollService<All>,
        buttress::Throttle,
        buttress::ThrottleBuilder,
        buttress::Timeout,
        buttress::UntilHeaders,
        buttress::Verdict,
        buttress::backoff::Delays,
        buttress::circuit_breaker::BreakerParts<All, All>,
        buttress::circuit_breaker::Snapshot,
        buttress::circuit_breaker::State,
        buttress::circuit_breaker::Transition,
        buttress::circuit_breaker::WhenOpen,
        buttress::classify::FromFn<All, All, All>,
        buttress::concurrency_limit::Aimd,
        buttress::concurrency_limit::Discipline,
        buttress::concurrency_limit::Gradient2,
        buttress::concurrency_limit::Headroom,
        buttress::concurrency_limit::LimitParts<All>,
        buttress::concurrency_limit::Permit,
        buttress::concurrency_limit::Sample,
        buttress::concurrency_limit::Shared,
        buttress::concurrency_limit::Vegas,
        buttress::deadline::DeadlineParts,
        buttress::deadline::Scoped<All>,
        buttress::hedge::HedgeParts<All, All>,
        buttress::policy::Part<All, All>,
        buttress::Partition,
        buttress::Priority,
        buttress::mark::Marked<buttress::Priority, All>,
        buttress::partition::PartitionLayer<All>,
        buttress::priority::PriorityLayer<All>,
        buttress::mark::MarkLayer<buttress::Priority, All>,
        buttress::mark::MarkService<All, buttress::Priority, All>,
        buttress::retry::Budget,
        buttress::retry::BudgetBuilder,
        buttress::retry::CloneRequest,
        buttress::retry::Once,
        buttress::retry::RetryParts<All, All>,
        buttress::shutdown::Calls,
        buttress::shutdown::Closed,
        buttress::shutdown::Condition,
        buttress::shutdown::Force,
        buttress::shutdown::Handle,
        buttress::shutdown::InFlight,
        buttress::shutdown::InFlightFuture<All, All>,
        buttress::shutdown::InFlightLayer<All>,
        buttress::shutdown::InFlightService<All, All>,
        buttress::shutdown::Refused,
        buttress::shutdown::Reloads,
        buttress::shutdown::Report,
        buttress::shutdown::Restart,
        buttress::shutdown::Signal,
        buttress::shutdown::Signals,
        buttress::shutdown::Stage,
        buttress::shutdown::State,
        buttress::shutdown::Task<'static>,
        buttress::shutdown::TaskContext,
        buttress::shutdown::TaskOutcome,
        buttress::shutdown::TaskReport,
        buttress::shutdown::Trigger,
        buttress::shutdown::Why,
        buttress::slow_poll::Watched<All>,
        buttress::throttle::Shared,
        buttress::throttle::Snapshot,
        buttress::throttle::ThrottleParts<All, All>,
        buttress::CircuitBreaker,
        buttress::CircuitBreakerBuilder,
        CircuitBreakerLayer,
        PolicyLayer,
        KeyedLayer<All, CircuitBreaker, All>,
        buttress::Keyed<All, CircuitBreaker>,
        buttress::KeyedBuilder<All, CircuitBreaker>,
        buttress::Policy,
        buttress::PolicyBuilder,
        buttress::ShutdownBuilder,
        buttress::circuit_breaker::Gate<All>,
        buttress::circuit_breaker::Permit,
        buttress::circuit_breaker::Shared,
        buttress::keyed::ByKey<All, CircuitBreaker, All>,
        buttress::policy::PolicyParts<Plain>,
        // There is no key yet, and what a classifier is shown it does not keep.
        buttress::KeyedBuilder<Nothing, CircuitBreaker>,
        buttress::classify::FromFn<All, Nothing, Nothing>;

        // tokio's timer has to stay where it is.
        [Send Sync]
        buttress::ResponseFuture = FutureOf<TimeoutService<Echo>>;

        // Behind a pointer.
        [Unpin]
        buttress::Keyed<Nothing, CircuitBreaker>,
        buttress::Policy<Nothing>,
        buttress::Outcome<'static, Nothing, All>,
        buttress::Outcome<'static, All, Nothing>;

        []
        buttress::Error<Nothing>,
        buttress::Guard<Nothing>,
        buttress::Guarded<Nothing, All>,
        buttress::Guarded<All, Nothing>,
        buttress::Kind<Nothing, All, All>,
        buttress::Lift<Nothing>,
        buttress::LiftFuture<Nothing>,
        buttress::PolicyBuilder<Nothing>,
        buttress::SlowPollService<Nothing>,
        buttress::ResponseFuture = FutureOf<TimeoutService<Bland>, Bare<Req>>,
        buttress::circuit_breaker::BreakerParts<All, Nothing>,
        buttress::classify::FromFn<Nothing, All, All>,
        buttress::concurrency_limit::LimitParts<Nothing>,
        buttress::deadline::Scoped<Nothing>,
        buttress::hedge::HedgeParts<All, Nothing>,
        buttress::keyed::ByKey<All, CircuitBreaker, Nothing>,
        buttress::policy::Part<Nothing, All>,
        buttress::mark::Marked<buttress::Priority, Nothing>,
        buttress::partition::PartitionLayer<Nothing>,
        buttress::priority::PriorityLayer<Nothing>,
        buttress::mark::MarkLayer<buttress::Priority, Nothing>,
        buttress::mark::MarkService<All, buttress::Priority, Nothing>,
        buttress::policy::PolicyParts<Nothing>,
        buttress::retry::RetryParts<All, Nothing>,
        buttress::shutdown::InFlightFuture<Nothing, All>,
        buttress::shutdown::InFlightService<Nothing, All>,
        buttress::slow_poll::Watched<Nothing>,
        buttress::throttle::ThrottleParts<All, Nothing>;
    }
}

#[cfg(feature = "http")]
#[test]
fn every_type_for_http_can_be_sent_and_shared_as_far_as_its_parameters_can() {
    use std::{convert::Infallible, future::Ready};

    use buttress::{PolicyService, http::HttpServer};
    use http::{Request, Response};
    use tower::{Service, util::ServiceFn};

    type Web = ServiceFn<fn(Request<()>) -> Ready<Result<Response<String>, Infallible>>>;

    exactly! {
        [Send Sync Unpin]
        buttress::http::BodyGone,
        buttress::http::ByGrpcStatus,
        buttress::http::ByGrpcTrailers,
        buttress::http::ByHeaders,
        buttress::http::ByStatus,
        buttress::http::ByStatusAt,
        buttress::http::ByStatusDirect,
        buttress::http::Held<All, All>,
        buttress::http::Idempotent,
        buttress::http::ReadDeadlineLayer,
        buttress::http::ReadDeadlineService<All>,
        // Read by one attempt after the other, out of a lock.
        buttress::http::Replay<Cell<All>>,
        buttress::http::ReplayLayer,
        buttress::http::ReplayService<All>,
        buttress::http::RespondLayer<Nothing>,
        buttress::http::RespondFuture<All, Nothing>,
        buttress::http::RespondService<All, Nothing>,
        buttress::http::Tail = <PolicyService<Web, HttpServer> as Service<Request<()>>>::Response,
        buttress::http::UntilBody<All>,
        buttress::http::WriteDeadlineFuture<All>,
        buttress::http::WriteDeadlineLayer,
        buttress::http::WriteDeadlineService<All>,
        buttress::shutdown::Http;

        // Behind a pointer; and what a body keeps need not stay where it is.
        [Unpin]
        buttress::http::Replay<Nothing>,
        buttress::http::Held<All, Nothing>;

        []
        buttress::http::Held<Nothing, All>,
        buttress::http::ReadDeadlineService<Nothing>,
        buttress::http::ReplayService<Nothing>,
        buttress::http::RespondFuture<Nothing, All>,
        buttress::http::RespondService<Nothing, All>,
        buttress::http::UntilBody<Nothing>,
        buttress::http::WriteDeadlineFuture<Nothing>,
        buttress::http::WriteDeadlineService<Nothing>;
    }
}

#[cfg(feature = "serve")]
#[test]
fn the_address_of_a_peer_can_be_sent_and_shared() {
    exactly! {
        [Send Sync Unpin]
        buttress::shutdown::PeerAddr;
    }
}

#[cfg(feature = "testing")]
#[test]
fn every_type_for_tests_can_be_sent_and_shared_as_far_as_its_parameters_can() {
    exactly! {
        // What is shared makes responses and errors, and keeps none.
        [Send Sync Unpin]
        buttress::testing::Act<All, All>,
        buttress::testing::Calls,
        buttress::testing::Chance,
        buttress::testing::Chaos<Nothing>,
        buttress::testing::ChaosBuilder<Nothing>,
        buttress::testing::ChaosLayer<Nothing>,
        buttress::testing::ChaosService<All, Nothing>,
        buttress::testing::Counted,
        buttress::testing::Injected,
        buttress::testing::Scripted<Nothing, Nothing>,
        buttress::testing::Simulation;

        // It may hold a timer.
        [Send Sync]
        buttress::testing::ResponseFuture<All, All>;

        [Unpin]
        buttress::testing::Act<Nothing, All>;

        []
        buttress::testing::ChaosService<Nothing, All>,
        buttress::testing::ResponseFuture<Nothing, All>,
        buttress::testing::ResponseFuture<All, Nothing>;
    }
}
