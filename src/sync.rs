//! What the atomic protocols of this crate are made of: the standard library's atomics, locks and counted references; under
//! the private `--cfg buttress_loom` loom's, whose models go through every interleaving. See ARCHITECTURE.md, "Models".

#[cfg(not(buttress_loom))]
pub(crate) use std::sync::{Arc, Mutex, MutexGuard, Weak, atomic};

#[cfg(buttress_loom)]
mod counted;
#[cfg(buttress_loom)]
pub(crate) use self::counted::{Arc, Weak};
#[cfg(buttress_loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};

/// A Relaxed store to a word that others change by compare-and-exchange.
#[inline(always)]
pub(crate) fn overwrite(word: &atomic::AtomicU64, value: u64) {
    #[cfg(not(buttress_loom))]
    word.store(value, atomic::Ordering::Relaxed);
    // No store falls between what an exchange has read and what it has written, but with loom it can.
    #[cfg(buttress_loom)]
    word.swap(value, atomic::Ordering::Relaxed);
}

#[cfg(all(test, buttress_loom))]
pub(crate) mod models;
