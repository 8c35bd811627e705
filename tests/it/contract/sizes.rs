//! Bytes of what is moved with every call, or held for long. Each is that of today; a larger one is to be argued for.

use std::{convert::Infallible, io};

use buttress::{
    CircuitBreaker, CircuitBreakerService, Cloned, ConcurrencyLimit, ConcurrencyLimitService, DeadlineService, Error,
    Hedge, HedgeService, Keyed, KeyedService, LagGuard, LagGuardService, Lift, Plain, Policy, PolicyService, Rejection,
    Retry, RetryService, SlowPoll, SlowPollService, Throttle, ThrottleService, Timeout, TimeoutService, Verdict,
    circuit_breaker, concurrency_limit,
    shutdown::{Calls, InFlightService},
};
use tower::Service;

use crate::support::Echo;

type FutureOf<S, Req = u64> = <S as Service<Req>>::Future;
type ByKey<H> = KeyedService<Echo, u64, H, fn(&u64) -> u64>;

macro_rules! sizes {
    ($($what:ty => $bytes:literal,)+) => {{
        let table = [$((stringify!($what), size_of::<$what>(), $bytes)),+];
        let wrong = table.iter().filter(|(_, found, bytes)| found != bytes);
        let wrong: Vec<String> = wrong.map(|(what, found, bytes)| format!("{what} is {found} and not {bytes}")).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }};
}

// HAZARD: C10
#[cfg(target_pointer_width = "64")]
#[test]
fn futures_have_the_size_of_the_table() {
    sizes! {
        FutureOf<Echo> => 40,
        FutureOf<Lift<Echo>> => 40,
        FutureOf<SlowPollService<Echo>> => 72,
        // The timer takes 112 of the rest. Timeout and deadline hold their settings in it, the others one pointer.
        FutureOf<TimeoutService<Echo>> => 256,
        FutureOf<DeadlineService<Echo>> => 256,
        FutureOf<RetryService<Echo>> => 232,
        // What runs beside the first is in a box, in the place of the timer.
        FutureOf<HedgeService<Echo>> => 232,
        FutureOf<LagGuardService<Echo>> => 232,
        FutureOf<CircuitBreakerService<Echo>> => 232,
        FutureOf<ThrottleService<Echo>> => 232,
        FutureOf<ConcurrencyLimitService<Echo>> => 232,
        FutureOf<PolicyService<Echo, Plain>> => 232,
        FutureOf<PolicyService<Echo, Cloned>> => 232,
        FutureOf<PolicyService<Lift<Echo>, Plain>> => 232,
        FutureOf<ByKey<Timeout>> => 256,
        FutureOf<ByKey<CircuitBreaker>> => 232,
        FutureOf<ByKey<ConcurrencyLimit>> => 232,
        FutureOf<ByKey<Throttle>> => 232,
        FutureOf<ByKey<Policy>> => 232,
        FutureOf<InFlightService<Echo, Calls>> => 80,
    }
}

// HAZARD: C10
#[cfg(target_pointer_width = "64")]
#[test]
fn rejections_handles_and_services_have_the_size_of_the_table() {
    sizes! {
        Rejection => 40,
        // No room for a tag is needed beside it.
        Error<Infallible> => 40,
        Error<io::Error> => 40,
        Result<u64, Error<io::Error>> => 40,
        Verdict => 24,

        Timeout => 32,
        SlowPoll => 32,
        CircuitBreaker => 8,
        ConcurrencyLimit => 8,
        Retry => 120,
        Hedge => 8,
        LagGuard => 8,
        Throttle => 8,
        Policy => 8,
        Keyed<u64, Policy> => 8,
        circuit_breaker::Permit => 32,
        concurrency_limit::Permit => 16,

        // Each without the service below.
        TimeoutService<()> => 32,
        DeadlineService<()> => 32,
        SlowPollService<()> => 32,
        RetryService<()> => 8,
        HedgeService<()> => 8,
        LagGuardService<()> => 8,
        ThrottleService<()> => 8,
        CircuitBreakerService<()> => 32,
        ConcurrencyLimitService<()> => 8,
        PolicyService<()> => 8,
        InFlightService<(), Calls> => 40,
    }
}

// HAZARD: C10
#[cfg(all(target_pointer_width = "64", feature = "http"))]
#[test]
fn what_is_there_for_http_has_the_size_of_the_table() {
    use buttress::http::{
        HttpClient, HttpServer, ReadDeadlineService, Replay, ReplayService, RespondService, WriteDeadlineService,
    };
    use http::{Request, Response};
    use tower::util::ServiceFn;

    type Made = std::future::Ready<Result<Response<String>, Error<Infallible>>>;
    type Web = ServiceFn<fn(Request<()>) -> Made>;
    type Of<S> = FutureOf<S, Request<()>>;

    sizes! {
        // Theirs, and part of ours.
        Response<String> => 136,
        Made => 136,

        Of<RespondService<Web, String>> => 176,
        Of<ReadDeadlineService<Web>> => 568,
        Of<WriteDeadlineService<Web>> => 168,
        Of<PolicyService<Web, HttpServer>> => 544,
        Of<PolicyService<Web, HttpClient>> => 544,
        Replay<()> => 56,
        ReplayService<()> => 8,
        <PolicyService<Web, HttpServer> as Service<Request<()>>>::Response => 304,
    }
}
