//! Memory use of a list, counted at the allocator.
#![allow(clippy::unwrap_used)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use ima_list::{Duplicates, List, Options, Part};
use ima_log::{Bank, RecordBuf};

/// Counts a thread's live bytes.
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

// SAFETY: every call is forwarded to the system allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller upholds the contract of the system allocator.
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
fn overhead_per_record_is_at_most_64_bytes_and_48_after_deletion() {
    for name_len in [0, 30, 200, 1_000, 5_000] {
        let before = held();
        let mut list = List::new(Options::default());
        let mut worst = (0.0f64, 0.0f64);
        for i in 1..=if name_len > 1_000 { 5_000 } else { 30_000 } {
            add(&mut list, i, name_len);
            // 37 is coprime to all growth steps, so every phase of growing segments, buckets and
            // blocks is sampled.
            if i >= 1_000 && i % 37 == 0 {
                let held = held() - before - list.size(Part::Current) as i64;
                worst.0 = worst.0.max(held as f64 / i as f64);
            }
        }
        assert!(worst.0 <= 64.0, "name of {name_len}: {} bytes of overhead per record", worst.0);

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
        assert!(worst.1 <= 48.0, "name of {name_len}: {} bytes per deleted record", worst.1);
        drop(list);
        assert_eq!(held(), before);
    }
}

#[test]
fn dropping_removed_records_frees_their_memory() {
    for duplicates in [Duplicates::Flush, Duplicates::Off] {
        let mut list = List::new(Options { duplicates, ..Options::default() });
        let before = held();
        for i in 0..10_000 {
            add(&mut list, i, 30);
        }
        list.stage().unwrap();
        let full = held();
        let removed = list.delete_staged().unwrap();
        assert_eq!(held(), full, "deletion itself frees nothing");
        drop(removed);
        assert_eq!(held(), before);
    }
}

#[test]
fn deleting_the_first_records_leaves_at_most_16_unfreed_bytes_per_record() {
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
        assert!(dead <= 16 * 20_000, "{dead} bytes not freed with {left} records left");
    }
    drop(list.delete_first(list.count(Part::Current)).unwrap());
    assert_eq!(held(), before);
}
