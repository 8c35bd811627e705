//! What the models share.
//!
//! A thread that only reads is spawned, and the main one writes: loom remembers the latest access to a word alone, so a read that
//! comes before a look and a write of another thread is never tried after them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::*},
    },
    task::{Wake, Waker},
};

use loom::model::Builder;

/// Every interleaving in which threads are interrupted at most so often, where all of them are more than can be waited for. Most
/// faults of such protocols need one or two interruptions; what a load may see is not bounded by it.
pub(crate) fn interrupted(at_most: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(at_most);
    builder.check(model);
}

/// Whether a waker was woken. Not one of loom's atomics: it is asked at the end only, and adds no interleavings. Relaxed, as loom
/// runs all threads of a model on one.
#[derive(Default)]
pub(crate) struct Woken(AtomicBool);

impl Woken {
    pub(crate) fn new() -> (Arc<Self>, Waker) {
        let woken = Arc::new(Self::default());
        (Arc::clone(&woken), woken.into())
    }

    pub(crate) fn is_so(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}
