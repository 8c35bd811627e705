//! In models there are two slots, and whoever runs a thread says which one it has.

use std::cell::Cell;

loom::thread_local! {
    static SEATED: Cell<(usize, bool)> = Cell::new((0, false));
}

/// The running thread has this slot, and owns it or not.
#[cfg(test)]
pub(crate) fn sit(slot: usize, owns: bool) {
    SEATED.with(|seated| seated.set((slot, owns)));
}

pub(crate) fn slots() -> usize {
    2
}

pub(crate) fn slot() -> usize {
    SEATED.with(|seated| seated.get().0)
}

pub(crate) fn owns_slot() -> bool {
    SEATED.with(|seated| seated.get().1)
}
