//! Randomness for the wiring: algorithms take a unit `f64`, this is where it comes from.

use std::{
    cell::RefCell,
    sync::{Mutex, PoisonError},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

thread_local! {
    // One generator a thread, seeded by the system: no two clients march in step.
    static LOCAL: RefCell<SmallRng> = RefCell::new(from_system());
}

fn from_system() -> SmallRng {
    // If the system has no randomness, threads still differ by the address of their own stack.
    SmallRng::try_from_rng(&mut rand::rngs::SysRng)
        .unwrap_or_else(|_| SmallRng::seed_from_u64(std::ptr::from_ref(&0u8).addr() as u64))
}

/// A source of numbers in `0.0..1.0`.
#[derive(Debug, Default)]
pub(crate) enum Random {
    /// The thread's own generator.
    #[default]
    System,
    /// One generator for a reproducible run.
    Seeded(Mutex<SmallRng>),
}

impl Random {
    pub(crate) fn seeded(seed: Option<u64>) -> Self {
        match seed {
            Some(seed) => Random::Seeded(Mutex::new(SmallRng::seed_from_u64(seed))),
            None => Random::System,
        }
    }

    #[cold]
    pub(crate) fn unit(&self) -> f64 {
        match self {
            Random::System => LOCAL.with_borrow_mut(|rng| rng.random()),
            Random::Seeded(rng) => rng.lock().unwrap_or_else(PoisonError::into_inner).random(),
        }
    }
}
