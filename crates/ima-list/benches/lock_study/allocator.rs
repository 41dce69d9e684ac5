//! The system allocator with a per-thread byte count.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// Counts a thread's live bytes, in units of 16 with 8 bytes of allocator overhead.
struct Counting;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
}

/// This thread's live bytes.
pub fn allocated() -> i64 {
    HELD.get()
}

fn count(size: usize, sign: i64) {
    let size = (size + 8).next_multiple_of(16).max(32);
    HELD.set(HELD.get() + sign * size as i64);
}

// SAFETY: every call is forwarded to the system allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller upholds the contract of the system allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(size, 1);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
