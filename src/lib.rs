//! Resilience middleware for [tower](https://docs.rs/tower) and [tokio](https://docs.rs/tokio): what holds a tower up.
//!
//! ```text
//! deadline ─► retry ─► circuit breaker ─► concurrency limit ─► attempt timeout ─► service
//! ```
//!
//! Each pattern stands alone, as a tower layer and as a plain async function over the same state; [`Policy`] joins
//! them in their right order, in one future with one timer and no allocation.
//!
//! # Which one do I need?
//!
//! | what you see | what helps | more of it |
//! | --- | --- | --- |
//! | calls hang | [`Timeout`] on each attempt, [`Deadline`] on the whole call | [which goes where](guide::stacking) |
//! | a service says 503 now and then | [`Retry`], whose budget keeps an outage from becoming a storm | [`retry`] |
//! | a dependency is down, and asking makes it worse | [`CircuitBreaker`] | [`circuit_breaker`] |
//! | a dependency answers some calls and refuses others: a brown-out | [`Throttle`]: sends no more than it can take | [`throttle`] |
//! | one call in a hundred is slow, for no reason of its own | [`Hedge`]: a second one, and whichever answers first | [`hedge`] |
//! | we are overloaded: everything gets slow, all tasks wait for one thing | [`ConcurrencyLimit`] | [`concurrency_limit`] |
//! | one host, or tenant, fails and takes the others with it | [`Keyed`]: one of these for each | [`keyed`] |
//! | all of that | [`Policy`] | [every default](guide::defaults) |
//! | all of that, and no time to tune it | [`Policy::standard`] for functions, [`standard`](PolicyBuilder::standard) on a preset for clients; with a deadline | [what each part is for](guide::storms) |
//! | deploys drop requests, or hang | [`Shutdown`] | [`shutdown`] |
//! | tests wait, and fail now and then | a paused clock, services by script | [testing](guide::testing) |
//! | something blocks the thread that all wait for | [`SlowPoll`] names it | [testing](guide::testing) |
//! | it is called something else where you come from | [tower, Polly, resilience4j, …](guide::migrating) | [asyncio](guide::recipes) |
//!
//! # In five minutes
//!
//! `cargo add buttress`, and `cargo add tokio --features full` if it is not there. A whole program:
//!
//! ```
//! use buttress::{CircuitBreaker, ConcurrencyLimit, Error, Policy, Reason, Retry};
//! use std::{io, time::Duration};
//!
//! async fn fetch_user(id: u32) -> Result<String, io::Error> {
//!     Ok(format!("user {id}")) // your call goes here
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // One for each service that you call, made once: its clones share the breaker, the limit and the budget.
//!     let policy = Policy::plain("users")
//!         .deadline(Duration::from_secs(5)) // the whole call, retries and waits included
//!         .retry(Retry::exponential(Duration::from_millis(50))) // three attempts, and a budget for all calls
//!         .circuit_breaker(CircuitBreaker::builder()) // opens when half of ten seconds' calls, of 20 or more, have failed
//!         .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(64)) // 64 at once; as many may wait
//!         .timeout(Duration::from_millis(500)) // each attempt
//!         .build()?;
//!
//!     match policy.call(|| fetch_user(42)).await {
//!         Ok(user) => println!("{user}"),
//!         Err(Error::Rejected(no)) if no.reason() == Reason::CircuitOpen => println!("not asked: {no}"),
//!         Err(Error::Rejected(no)) => println!("refused or cut off: {no}"),
//!         Err(Error::Inner(error)) => return Err(error.into()),
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Leave out what you do not need. `cargo run --example quickstart --features reqwest`, in the repository, shows such a policy while a
//! server fails, stalls and recovers.
//!
//! - Around a client whose error you cannot make: [`policy.wrap(client)`](Policy::wrap), errors become [`Error<E>`].
//!   There are presets for HTTP and gRPC clients, see `http`; for other requests that are `Clone` and safe to repeat
//!   [`Policy::cloned`]. [`Policy::plain`] sends each request once.
//! - In a `ServiceBuilder`, an axum `Router` or a tonic server: [`policy.layer()`](Policy::layer), the error type stays as it is.
//!   For a router take `Policy::http_server`, by feature `http`; no `HandleErrorLayer` is needed.
//! - Around an async function: [`policy.call(|| …)`](Policy::call).
//!
//! # What a rejection tells you to do
//!
//! | [`Reason`] | meaning | do |
//! | --- | --- | --- |
//! | [`CircuitOpen`](Reason::CircuitOpen) | the service fails, so it was not asked | use another replica or a stored answer; come back after [`retry_after`](Rejection::retry_after) |
//! | [`Overloaded`](Reason::Overloaded) | too many calls are in flight on this side, its runtime is late, or the service accepts too few | shed: answer 503, slow down whoever sends |
//! | [`Timeout`](Reason::Timeout) | one attempt was cut off | it may have taken effect; retry has done what it may |
//! | [`DeadlineExceeded`](Reason::DeadlineExceeded) | the whole call ran out of time | give up, as your caller has |
//! | [`ShuttingDown`](Reason::ShuttingDown) | this process stops, and begins nothing | answer 503: another instance takes it |
//!
//! # Features
//!
//! None is on by default, and all patterns are there without any. `http`: judging responses by status, `Retry-After`,
//! rejections as responses for axum and gRPC, deadlines in headers, uploads that can be sent again. `reqwest`: the preset for
//! `reqwest::Client`. `hyper` and `tonic`: what the errors of hyper-util's client and of tonic say. `http2`: knows which streams
//! were refused. `signal` and `serve`: signals and an HTTP server for [graceful shutdown](shutdown). `testing`: faults by
//! seeded chance, and simulations on a paused clock.
//!
//! # What to rely on
//!
//! - The service that was polled ready is the one that is called; `poll_ready` reserves nothing of ours and returns
//!   no rejection.
//! - The state belongs to the value that you built, never to `Layer::layer`, which axum calls for each connection.
//! - A permit that is dropped, by cancellation or by a panic, is given back exactly once.
//! - Nothing waits past the [`Deadline`].
//! - Time is tokio's: `tokio::time::pause` drives every test. (Only [`SlowPoll`] reads the real clock.)
//! - Nothing on the success path logs or allocates (but for a queue while it grows), and nothing locks unless a call must
//!   queue, a circuit is about to move, or a limit has [shares](ConcurrencyLimitBuilder::partition). Transitions are logged at
//!   WARN or INFO and rejections at DEBUG, under the target `buttress`.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(all(doctest, feature = "reqwest", feature = "serve", feature = "signal", feature = "testing"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod backoff;
mod call;
pub mod circuit_breaker;
pub mod classify;
mod clock;
pub mod concurrency_limit;
mod config;
pub mod deadline;
pub mod guide;
pub mod hedge;
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub mod http;
pub mod keyed;
mod kind;
pub mod lag;
mod lift;
pub mod mark;
pub mod partition;
pub mod policy;
pub mod priority;
mod queue;
mod random;
pub mod rejection;
pub mod retry;
pub mod shutdown;
pub mod slow_poll;
mod spread;
mod sync;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
pub mod throttle;
pub mod timeout;
mod window;

#[doc(inline)]
pub use crate::{
    backoff::{Backoff, Jitter},
    call::{Guard, Guarded, ResponseFuture, UntilHeaders},
    circuit_breaker::{CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerLayer, CircuitBreakerService},
    classify::{ByResult, Classify, Verdict},
    concurrency_limit::{ConcurrencyLimit, ConcurrencyLimitBuilder, ConcurrencyLimitLayer, ConcurrencyLimitService},
    config::{ConfigError, Problem},
    deadline::{Deadline, DeadlineLayer, DeadlineService},
    hedge::{Hedge, HedgeBuilder, HedgeLayer, HedgeService},
    keyed::{Keyed, KeyedBuilder, KeyedLayer, KeyedService},
    kind::{Cloned, Kind, Plain},
    lag::{LagGuard, LagGuardBuilder, LagGuardLayer, LagGuardService},
    lift::{Lift, LiftFuture, LiftLayer},
    partition::Partition,
    policy::{Policy, PolicyBuilder, PolicyLayer, PolicyService},
    priority::Priority,
    rejection::{Error, Outcome, Reason, Reject, Rejection, Rule},
    retry::{Retry, RetryBuilder, RetryLayer, RetryService},
    shutdown::{Shutdown, ShutdownBuilder},
    slow_poll::{SlowPoll, SlowPollLayer, SlowPollService},
    throttle::{Throttle, ThrottleBuilder, ThrottleLayer, ThrottleService},
    timeout::{Timeout, TimeoutLayer, TimeoutService},
};
