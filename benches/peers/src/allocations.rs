//! Counts this thread's allocations. Two additions each, so that a peer that allocates is not slowed down by being counted.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

/// Allocations, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Allocations {
    pub count: u64,
    pub bytes: u64,
}

/// What `code` allocates on this thread.
pub fn of(code: impl FnOnce()) -> Allocations {
    let (count, bytes) = (COUNT.get(), BYTES.get());
    code();
    Allocations { count: COUNT.get() - count, bytes: BYTES.get() - bytes }
}

// SAFETY: the system's allocator, asked for just what was asked for.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        BYTES.set(BYTES.get() + layout.size() as u64);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(ptr, layout) }
    }
}
