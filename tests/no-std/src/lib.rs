//! A program without the standard library, as a kernel module is one. Whatever brought `std` in
//! would define the panic handler a second time, and this would not build.
#![no_std]

extern crate alloc;

use core::alloc::{GlobalAlloc, Layout};

use ima_list::{List, Options};
use ima_log::{Bank, RecordBuf};
use ima_securityfs::{FileName, Grammar, Request};

struct NoMemory;

// SAFETY: it never gives memory out, so there is none to misuse. Nothing here ever runs.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: NoMemory = NoMemory;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Uses something of each crate, so that all of them are linked.
#[unsafe(no_mangle)]
pub extern "C" fn use_all() -> bool {
    let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), b"/bin/sh");
    let key = record.record().template_digest(Bank::Sha256);
    let mut list = List::new(Options::default());
    let file = FileName::parse(b"binary_runtime_measurements_staged", Default::default(), &[]);
    list.append(&record, &key).is_ok()
        && file.is_some_and(|file| Request::parse(b"A\n", file, 0, Grammar::default()).is_ok())
}
