//! Faults on purpose, and time that costs nothing: what it takes to test how a service bears an outage, a hundred thousand
//! times a minute, and to run any failure again from its seed.
//!
//! | what | for |
//! | --- | --- |
//! | [`Scripted`] | a service that answers, fails, delays, hangs and panics as you say, or by seeded chance, and counts |
//! | [`Chaos`] | a layer that does so to a service of yours, now and then |
//! | [`Simulation`] | runs an async test for one seed after the other, on a clock that is paused, and names the seed that failed |
//! | [`Chance`] | seeded numbers, the same on every machine |
//! | [`PolicyBuilder::seed`](crate::PolicyBuilder::seed) | a policy whose jitter is the same in every run |
//!
//! ```
//! use buttress::{Policy, Retry, testing::{Act, Scripted, Simulation}};
//! use std::{io, time::Duration};
//!
//! // However the service fails: nobody waits past the deadline, and nothing is left.
//! Simulation::new().cases(200).run(|seed| async move {
//!     let service = Scripted::by_chance(seed, |chance| match chance.below(4) {
//!         0 => Act::error(io::Error::other("down")),
//!         1 => Act::hang(),
//!         2 => Act::answer("late").after(chance.duration(Duration::ZERO..=Duration::from_secs(1))),
//!         _ => Act::answer("at once"),
//!     });
//!     let policy = Policy::cloned("demo")
//!         .deadline(Duration::from_millis(500))
//!         .retry(Retry::exponential(Duration::from_millis(10)).max_attempts(3))
//!         .seed(seed)
//!         .build()
//!         .unwrap();
//!
//!     let started = tokio::time::Instant::now();
//!     let _ = policy.wrap(service.clone()).send("request").await;
//!     assert!(started.elapsed() <= Duration::from_millis(501));
//!     assert_eq!(service.calls().counted().in_flight, 0);
//! });
//! ```
//!
//! If a case fails, the panic says `seed 17`; with `BUTTRESS_SEED=17` the test runs that one alone, as often as you like.
//!
//! What a seed does not fix: the order in which the tasks of a runtime with several threads run, tokio's `select!` without
//! `biased`, a `HashMap`'s order, which of its keys a full [`Keyed`](crate::Keyed) forgets, and the jitter of policies under another
//! version of `rand`.

mod act;
mod calls;
mod chance;
mod chaos;
mod scripted;
mod simulation;

pub use act::{Act, ResponseFuture};
pub use calls::{Calls, Counted};
pub use chance::Chance;
pub use chaos::{Chaos, ChaosBuilder, ChaosLayer, ChaosService, Injected};
pub use scripted::Scripted;
pub use simulation::{Simulation, run_paused};
