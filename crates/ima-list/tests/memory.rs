//! What a list costs in memory, counted at the allocator.
#![allow(clippy::unwrap_used)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use ima_list::{Duplicates, List, Options, Part};
use ima_log::{Bank, RecordBuf};

/// Counts what a thread has allocated and not freed.
struct Counting;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    HELD.with(|held| held.set(held.get() + bytes));
}

fn held() -> i64 {
    HELD.with(Cell::get)
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn add(list: &mut List, i: u64, name_len: usize) {
    let file = Bank::Sha256.hash(&[&i.to_le_bytes()]);
    let record = RecordBuf::ima_ng(10, &file, &vec![b'n'; name_len]);
    list.append(&record, &record.record().template_digest(Bank::Sha256)).unwrap();
}

#[test]
fn a_record_costs_its_size_and_64_bytes_and_once_deleted_48() {
    for name_len in [0, 30, 200, 1_000, 5_000] {
        let before = held();
        let mut list = List::new(Options::default());
        let mut worst = (0.0f64, 0.0f64);
        for i in 1..=if name_len > 1_000 { 5_000 } else { 30_000 } {
            add(&mut list, i, name_len);
            // Not a divisor of anything, so that all phases of growing segments, buckets and
            // blocks of them are met.
            if i >= 1_000 && i % 37 == 0 {
                let held = held() - before - list.size(Part::Current) as i64;
                worst.0 = worst.0.max(held as f64 / i as f64);
            }
        }
        assert!(worst.0 <= 64.0, "name of {name_len}: {} bytes besides the record", worst.0);

        let records = list.count(Part::Current);
        list.stage().unwrap();
        drop(list.delete_staged().unwrap());
        let mut more = records;
        while more < 2 * records {
            let held = held() - before;
            worst.1 = worst.1.max(held as f64 / more as f64);
            for _ in 0..37 {
                more += 1;
                add(&mut list, more, name_len);
            }
            list.stage().unwrap();
            drop(list.delete_staged().unwrap());
        }
        assert!(worst.1 <= 48.0, "name of {name_len}: {} bytes stay", worst.1);
        drop(list);
        assert_eq!(held(), before);
    }
}

#[test]
fn what_is_deleted_is_freed_when_it_is_dropped() {
    for duplicates in [Duplicates::Flush, Duplicates::Off] {
        let mut list = List::new(Options { duplicates, ..Options::default() });
        let before = held();
        for i in 0..10_000 {
            add(&mut list, i, 30);
        }
        list.stage().unwrap();
        let full = held();
        let removed = list.delete_staged().unwrap();
        assert_eq!(held(), full, "nothing is freed before");
        drop(removed);
        assert_eq!(held(), before);
    }
}

#[test]
fn deleting_first_records_frees_all_but_what_shares_memory_with_others() {
    let mut list = List::new(Options { duplicates: Duplicates::Off, ..Options::default() });
    let before = held();
    for i in 0..20_000 {
        add(&mut list, i, 30);
    }
    let full = held() - before;
    for left in (1..20_000).rev().step_by(111) {
        drop(list.delete_first(list.count(Part::Current) - left).unwrap());
        let held = held() - before;
        let dead = held - full * left as i64 / 20_000;
        assert!(dead <= 16 * 20_000, "{dead} bytes too many for {left} records");
    }
    drop(list.delete_first(list.count(Part::Current)).unwrap());
    assert_eq!(held(), before);
}
