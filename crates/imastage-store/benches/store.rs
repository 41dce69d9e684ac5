//! What keeping, reading and checking records costs. `cargo bench -p imastage-store`
//!
//! The state directory is made in the temporary directory (`TMPDIR`): point that to the disk in
//! question, as syncs cost nothing in memory.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::{fs::File, io::Write, time::Instant};

use ima_log::{Bank, RecordBuf};
use imastage_store::{EpochId, Reader, Store, check, pack};

const RECORDS: u32 = 1_000_000;

fn main() {
    let records: Vec<RecordBuf> = (0..RECORDS).map(record).collect();
    println!("{RECORDS} records, banks sha1 and sha256; records/s");

    // What cannot be avoided: template digest and extend, in each bank.
    let since = Instant::now();
    let mut pcrs = [Bank::Sha1, Bank::Sha256].map(ima_log::Digest::zero);
    for record in &records {
        for pcr in &mut pcrs {
            *pcr = pcr.extended_with(&record.record().template_digest(pcr.bank()));
        }
    }
    row("parse and hash alone", since);

    for batch in [1_000, 10_000] {
        let dir = tempfile::tempdir().unwrap();
        let files = ["records", "commits"].map(|name| File::create(dir.path().join(name)).unwrap());
        let since = Instant::now();
        for batch in records.chunks(batch) {
            let bytes: Vec<u8> = batch.iter().flat_map(RecordBuf::as_bytes).copied().collect();
            for (mut file, bytes) in files.iter().zip([&bytes[..], &[0; 100]]) {
                file.write_all(bytes).unwrap();
                file.sync_data().unwrap();
            }
        }
        row(&format!("write and sync alone, every {batch}"), since);
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.begin_epoch(EpochId::default(), &[Bank::Sha1, Bank::Sha256]).unwrap();
        let since = Instant::now();
        for batch in records.chunks(batch) {
            for record in batch {
                store.append(&record.record()).unwrap();
            }
            store.commit().unwrap();
        }
        row(&format!("append, commit every {batch}"), since);
        if batch != 1_000 {
            continue;
        }

        let since = Instant::now();
        let mut cursor = Reader::open(dir.path()).unwrap().records(0).unwrap();
        while cursor.next_record().unwrap().is_some() {}
        row("read", since);
        let since = Instant::now();
        assert_eq!(check(dir.path()).unwrap().damage, []);
        row("check", since);
    }
    drop(records);
    growth();
}

/// What an index costs that is asked for, in ever longer lists, committed every 10,000 records.
fn growth() {
    const FINDS: u64 = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    store.begin_epoch(EpochId::default(), &[Bank::Sha1, Bank::Sha256]).unwrap();
    println!("\n{:>12}{:>16}{:>16}{:>16}", "records", "open", "find an index", "PCRs at an index");
    let each = |find: &dyn Fn(u64)| {
        let since = Instant::now();
        (0..FINDS).for_each(find);
        since.elapsed() / FINDS as u32
    };
    let mut next = 0;
    for exponent in 3..=7 {
        let len = 10u32.pow(exponent);
        while next < len {
            for i in next..len.min(next + 10_000) {
                store.append(&record(i).record()).unwrap();
            }
            store.commit().unwrap();
            next = len.min(next + 10_000);
        }
        let reader = Reader::open(dir.path()).unwrap();
        // Spread over the list, and nowhere a multiple of anything.
        let index = |i: u64| i * 7_919 * 1_000_003 % u64::from(len);
        let open = each(&|_| drop(Reader::open(dir.path()).unwrap()));
        let find = each(&|i| drop(reader.records(index(i)).unwrap()));
        let pcrs = each(&|i| drop(reader.running_at(index(i)).unwrap()));
        println!("{len:>12}{open:>16.1?}{find:>16.1?}{pcrs:>16.1?}");
    }

    store.begin_epoch(EpochId::default(), &[Bank::Sha256]).unwrap();
    let since = Instant::now();
    let packing = pack(dir.path()).unwrap().remove(0);
    let ratio = packing.before as f64 / packing.after as f64;
    let speed = packing.before as f64 / 1e6 / since.elapsed().as_secs_f64();
    println!(
        "packed, checked before and read back after: {ratio:.2} times smaller, {speed:.0} MB/s"
    );
    let reader = Reader::open_number(dir.path(), 1).unwrap();
    let index = |i: u64| i * 7_919 * 1_000_003 % u64::from(next);
    let find = each(&|i| drop(reader.records(index(i)).unwrap()));
    let pcrs = each(&|i| drop(reader.running_at(index(i)).unwrap()));
    println!("{:>12}{:>16}{find:>16.1?}{pcrs:>16.1?}", "packed", "");
}

fn record(i: u32) -> RecordBuf {
    let name = format!("/usr/lib/x86_64-linux-gnu/package-{}/file-{i}.so", i % 100);
    RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&i.to_le_bytes()]), name.as_bytes())
}

fn row(what: &str, since: Instant) {
    println!("{what:36}{:>12.0}", f64::from(RECORDS) / since.elapsed().as_secs_f64());
}
