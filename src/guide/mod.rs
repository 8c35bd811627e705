//! The guide: what the reference of single types has no room for. Documentation only, there is no code here.
//!
//! | page | answers |
//! | --- | --- |
//! | [`stacking`] | which layer goes where, and what goes wrong elsewhere; tower's own layers, axum, reqwest; policies within policies |
//! | [`defaults`] | every default, and the reason for it |

#[doc = include_str!("stacking.md")]
pub mod stacking {}

#[doc = include_str!("defaults.md")]
pub mod defaults {}
