//! Replay against the bare hash calls it cannot do without. `cargo bench -p ima-log`
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use ima_log::{Bank, Extend, Format, RecordBuf, Records, Replay};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

/// The list that other tools replay too.
const RECORDS: u64 = 300_000;

/// Each figure is the best of this many runs, the things compared taking turns.
const ROUNDS: usize = 25;

fn main() {
    let list = list(RECORDS);
    println!(
        "{RECORDS} records of template ima-ng, {:.0} bytes on average, {:.0} of them template data",
        list.len() as f64 / RECORDS as f64,
        templates(&list).iter().map(|data| data.len()).sum::<usize>() as f64 / RECORDS as f64
    );
    println!("\nreplay of one bank, one thread, parse included, against the bare hash calls");
    println!("    bank       bare     replay   ns/record   speed of bare");
    for bank in Bank::ALL {
        against_bare(&list, bank);
    }
}

/// A list that is the same on every machine: names as a distribution has them, every file digest
/// its own.
fn list(records: u64) -> Vec<u8> {
    let mut list = Vec::new();
    for i in 0..records {
        let file = Bank::Sha256.hash(&[&i.to_le_bytes()]);
        let name = format!("/usr/lib/x86_64-linux-gnu/package-{}/file-{i}.so", i % 100);
        list.extend(RecordBuf::ima_ng(10, &file, name.as_bytes()).into_bytes());
    }
    list
}

fn templates(list: &[u8]) -> Vec<&[u8]> {
    Records::new(list, Format::native(Bank::Sha1))
        .map(|record| record.unwrap().template_data())
        .collect()
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let done = work();
    (start.elapsed(), done)
}

fn against_bare(list: &[u8], bank: Bank) {
    let templates = templates(list);
    let [mut bare, mut replay] = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        let (time, expected) = timed(|| match bank {
            Bank::Sha1 => bare_hashes::<Sha1>(black_box(&templates)),
            Bank::Sha256 => bare_hashes::<Sha256>(black_box(&templates)),
            Bank::Sha384 => bare_hashes::<Sha384>(black_box(&templates)),
            Bank::Sha512 => bare_hashes::<Sha512>(black_box(&templates)),
        });
        bare = bare.min(time);
        let (time, value) = timed(|| {
            let mut pcr = Replay::new(bank, Extend::Own);
            for record in Records::new(black_box(list), Format::native(Bank::Sha1)) {
                pcr.extend(&record.unwrap());
            }
            pcr.value()
        });
        replay = replay.min(time);
        assert_eq!(value.as_bytes(), expected);
    }
    println!(
        "{:>8} {:>8.1} ms {:>7.1} ms {:>11.0} {:>14.0}%",
        bank.name(),
        bare.as_secs_f64() * 1e3,
        replay.as_secs_f64() * 1e3,
        replay.as_nanos() as f64 / templates.len() as f64,
        100.0 * bare.as_secs_f64() / replay.as_secs_f64(),
    );
}

/// The two hash calls a record needs, on data already cut into records.
fn bare_hashes<H: sha2::Digest>(templates: &[&[u8]]) -> Vec<u8> {
    let mut pcr = sha2::digest::Output::<H>::default();
    for data in templates {
        let digest = H::digest(data);
        pcr = H::new().chain_update(&pcr).chain_update(&digest).finalize();
    }
    pcr.to_vec()
}
