//! Which slot a thread has, and whether it is the only one there.

use std::{
    cell::Cell,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::Taken;

/// How many slots there are: a power of two, near the number of cores.
pub(crate) fn slots() -> usize {
    static SLOTS: OnceLock<usize> = OnceLock::new();
    *SLOTS.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        cores.next_power_of_two().clamp(2, 32)
    })
}

/// A thread's slot. While there are slots that no living thread owns, the next thread that asks owns one; further
/// threads take turns in sharing them.
///
/// Below [`slots`].
#[inline]
pub(crate) fn slot() -> usize {
    match SLOT.get() {
        usize::MAX => assign(),
        slot => slot,
    }
}

/// Whether no other thread has this thread's slot, as long as this one lives. To be asked after [`slot`].
#[inline]
pub(crate) fn owns_slot() -> bool {
    OWNS.get()
}

thread_local! {
    pub(super) static SLOT: Cell<usize> = const { Cell::new(usize::MAX) };
    static OWNS: Cell<bool> = const { Cell::new(false) };
    /// Apart from the two, which can then be read without asking whether they are still there.
    static OWNED: Owned = const { Owned(Cell::new(None)) };
}

/// Those that threads own.
static TAKEN: Taken = Taken(AtomicUsize::new(0));

/// The slot that this thread owns, given back when the thread ends.
struct Owned(Cell<Option<usize>>);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            // What still runs on this thread, other destructors, shares it from now on.
            OWNS.set(false);
            TAKEN.give_back(slot);
        }
    }
}

#[cold]
fn assign() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let slot = match TAKEN.take(slots()) {
        Some(slot) => {
            // Not if the thread ends, and would not give it back.
            OWNS.set(OWNED.try_with(|owned| owned.0.set(Some(slot))).is_ok());
            if !OWNS.get() {
                TAKEN.give_back(slot);
            }
            slot
        }
        // Relaxed: only the number matters, nothing is published by it.
        None => NEXT.fetch_add(1, Relaxed) & (slots() - 1),
    };
    SLOT.set(slot);
    slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_slot() {
        assert_eq!(slot(), slot());
        assert!(slot() < slots() && slots().is_power_of_two());
        assert!((2..=32).contains(&slots()));
    }

    #[test]
    fn threads_at_once_own_slots_of_their_own_and_take_turns_in_sharing() {
        // So many that chance does not give all the same one, whoever else takes turns.
        let count = slots() + 32;
        let all = std::sync::Barrier::new(count);
        let mut seen: Vec<_> = std::thread::scope(|scope| {
            let there = || {
                let slot = slot();
                all.wait();
                (slot, owns_slot())
            };
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(there)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        seen.sort_unstable();
        assert!(seen.iter().all(|(slot, _)| *slot < slots()));
        assert!(seen.first().unwrap().0 < seen.last().unwrap().0, "more than one slot is in use");
        let owned: Vec<_> = seen.iter().filter(|(_, owns)| *owns).map(|(slot, _)| *slot).collect();
        assert!(owned.windows(2).all(|two| two[0] < two[1]), "nobody owns what another one owns: {owned:?}");
    }

    #[test]
    fn what_runs_when_a_thread_ends_no_longer_owns_its_slot() {
        struct AtTheEnd(std::sync::mpsc::Sender<bool>);
        impl Drop for AtTheEnd {
            fn drop(&mut self) {
                self.0.send(owns_slot()).unwrap();
            }
        }
        thread_local!(static LAST: Cell<Option<AtTheEnd>> = const { Cell::new(None) });
        // One that nobody else is ever given.
        let mine = usize::BITS as usize - 2;
        let (tell, hear) = std::sync::mpsc::channel();
        let taken = move || TAKEN.0.load(Relaxed) & 1 << mine != 0;
        std::thread::spawn(move || {
            // Touched first, so dropped last.
            LAST.set(Some(AtTheEnd(tell)));
            TAKEN.0.fetch_or(1 << mine, Relaxed);
            OWNED.with(|owned| owned.0.set(Some(mine)));
            OWNS.set(true);
            assert!(owns_slot() && taken());
        })
        .join()
        .unwrap();
        assert!(!hear.recv().unwrap() && !taken());
    }
}
