//! The subjects: a file for each library, a function for each subject. To add one, write the function and name it in
//! [`all`].

mod backon;
mod failsafe;
mod governor;
pub mod ours;
pub mod recloser;
mod seatbelt;
pub mod tokio;
mod tokio_util;
pub mod tower;
pub mod tower_resilience;

use std::time::Duration;

use crate::{
    inner::{AtOnce, PendingOnce},
    subject::{OURS, Row, Runtimes, Subject},
};

/// Timers that never fire here.
const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(500);

/// More than there are tasks, so that nobody waits.
const AMPLE: usize = 128;
/// Fewer than there are tasks, so that most of them wait.
const SCARCE: usize = 8;

/// What circuit breakers look at, as far as they can be told: they open at a failure rate of 50 %.
const WINDOW: Duration = Duration::from_secs(10);
const MIN_CALLS: usize = 20;
const CALLS: usize = 100;
/// Longer than any run: an open breaker stays open.
const HOUR: Duration = Duration::from_secs(3_600);

/// All of them; the first of a row is what the others are compared with.
pub fn all(runtimes: &Runtimes) -> Vec<Subject> {
    macro_rules! subjects {
        ($($row:ident: $library:expr, $remark:literal => $make:expr;)*) => {
            vec![$(Subject::new(
                runtimes, Row::$row, ($library, $remark), $make(AtOnce::new()), $make(PendingOnce::new()),
            )),*]
        };
    }
    subjects! {
        Bare: "", "" => ours::bare;
        Timeout: OURS, "" => ours::timeout;
        Timeout: "tokio", "" => tokio::timeout;
        Timeout: "tower", "" => tower::timeout;
        Timeout: "tower-resilience", "" => tower_resilience::timeout;
        Timeout: "seatbelt", "tower service" => seatbelt::timeout;
        Timeout: "seatbelt", "its own service" => seatbelt::timeout_layered;
        Limit: OURS, "" => ours::limit;
        Limit: OURS, "in a guaranteed share" => ours::shared_limit;
        Limit: "tokio", "`Semaphore`" => tokio::limit;
        Limit: "tower", "" => tower::limit;
        Limit: "tower-resilience", "" => tower_resilience::limit;
        Adaptive: OURS, "`Headroom`" => ours::adaptive;
        Adaptive: "tower-resilience", "AIMD" => tower_resilience::adaptive;
        Full: OURS, "" => ours::full;
        Full: "tokio", "`Semaphore`" => tokio::full;
        Full: "tower", "load shed" => tower::full;
        Full: "tower-resilience", "waits for a timer" => tower_resilience::full;
        Saturated: OURS, "" => ours::saturated;
        Saturated: "tokio", "`Semaphore`" => tokio::saturated;
        Saturated: "tower", "" => tower::saturated;
        Saturated: "tower-resilience", "" => tower_resilience::saturated;
        Retry: OURS, "budget" => ours::retry;
        Retry: "tower", "`TpsBudget`" => tower::retry;
        Retry: "tower-resilience", "budget" => tower_resilience::retry;
        Retry: "seatbelt", "tower service, no budget" => seatbelt::retry;
        Retry: "seatbelt", "its own service, no budget" => seatbelt::retry_layered;
        Retry: "backon", "no budget" => backon::retry;
        Hedge: OURS, "95th percentile" => ours::hedge;
        Breaker: OURS, "10 s window" => ours::breaker;
        Breaker: OURS, "last 100 calls" => ours::breaker_of_calls;
        Breaker: "tower-resilience", "10 s window, O(calls in it)" => tower_resilience::breaker_of_time;
        Breaker: "tower-resilience", "all calls since it closed" => tower_resilience::breaker_of_calls;
        Breaker: "seatbelt", "tower service, 10 s window" => seatbelt::breaker;
        Breaker: "seatbelt", "its own service, 10 s window" => seatbelt::breaker_layered;
        Breaker: "failsafe", "10 s moving average" => failsafe::average;
        Breaker: "failsafe", "failures in a row" => failsafe::in_a_row;
        Breaker: "recloser", "last 100 calls" => recloser::breaker;
        Throttle: OURS, "" => ours::throttle;
        Open: OURS, "time to come back" => ours::open;
        Open: "tower-resilience", "sleeps 1 ms if its lock is taken" => tower_resilience::open;
        Open: "seatbelt", "tower service" => seatbelt::open;
        Open: "seatbelt", "its own service" => seatbelt::open_layered;
        Open: "failsafe", "" => failsafe::open;
        Open: "recloser", "" => recloser::open;
        Rate: "governor", "" => governor::rate;
        Rate: "tower-resilience", "" => tower_resilience::rate;
        Policy: OURS, "deadline, retry, breaker, limit, timeout" => ours::policy;
        Policy: "tower", "retry, limit, timeout" => tower::policy;
        Policy: "tower-resilience", "deadline, retry, breaker, limit, timeout" => tower_resilience::policy;
        Policy: "seatbelt", "tower services: retry, breaker, timeout" => seatbelt::policy;
        Policy: "seatbelt", "its own services: retry, breaker, timeout" => seatbelt::policy_layered;
        InFlight: OURS, "" => ours::in_flight;
        InFlight: "tokio-util", "`TaskTracker`" => tokio_util::in_flight;
    }
}
