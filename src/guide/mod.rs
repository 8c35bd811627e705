//! The guide: what the reference of single types has no room for. Documentation only, there is no code here.
//!
//! | page | answers |
//! | --- | --- |
//! | [`stacking`] | which layer goes where, and what goes wrong elsewhere; tower's own layers, axum, reqwest; policies within policies |
//! | [`defaults`] | every default, and the reason for it |
//! | [`storms`] | what each part of `Policy::standard` is for, with the figures of what becomes of it without that part, and the picture |
//! | [`testing`] | a paused clock, services by script, chaos, simulations, what to assert on; tokio-console and slow polls |
//! | [`migrating`] | tower's layers, tower-resilience, failsafe, backon, Polly and resilience4j, name by name |
//! | [`recipes`] | from asyncio: each of its things, its name here, its pitfall and its example; locks; retry and breaker beside Python's |

#[doc = include_str!("stacking.md")]
pub mod stacking {}

#[doc = include_str!("defaults.md")]
pub mod defaults {}

#[doc = include_str!("storm.svg")]
#[doc = ""]
#[doc = include_str!("storms.md")]
pub mod storms {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("migrating.md")]
pub mod migrating {}

#[doc = include_str!("recipes.md")]
pub mod recipes {}
