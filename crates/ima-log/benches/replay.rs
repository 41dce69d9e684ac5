//! Replay against the bare hash calls it cannot do without and against evmctl and keylime; what a
//! record costs in lists of 1,000 to 10,000,000. `cargo bench -p ima-log`; keylime comes from
//! scripts/install-keylime.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, clippy::panic)]

#[path = "../tests/peers/tools.rs"]
mod tools;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use ima_log::{Bank, Digest, Extend, Format, Records, Replay};
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
    println!("\nreplay of the sha256 bank from bytes to verdict, against tools that do the same");
    against_tools(&list);
    println!("\ngrowth, ns/record");
    println!("   records   replay sha256   digests sha256   ASCII");
    for size in [1_000, 10_000, 100_000, 1_000_000, 10_000_000] {
        growth(size);
    }
}

fn list(records: u64) -> Vec<u8> {
    (0..records).flat_map(tools::ima_ng).collect()
}

fn records(list: &[u8]) -> Records<'_> {
    Records::new(list, Format::native(Bank::Sha1))
}

fn templates(list: &[u8]) -> Vec<&[u8]> {
    records(list).map(|record| record.unwrap().template_data()).collect()
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
            Bank::Sm3 => bare_hashes::<sm3::Sm3>(black_box(&templates)),
        });
        bare = bare.min(time);
        let (time, value) = timed(|| replayed(black_box(list), bank));
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

fn replayed(list: &[u8], bank: Bank) -> Digest {
    let mut pcr = Replay::new(bank, Extend::Own);
    for record in records(list) {
        pcr.extend(&record.unwrap());
    }
    pcr.value()
}

fn against_tools(list: &[u8]) {
    let mut pcr = Digest::zero(Bank::Sha256);
    let ours = best(|| pcr = replayed(black_box(list), Bank::Sha256));
    println!("  imastage {:>9.1} ms", ours.as_secs_f64() * 1e3);
    let row = |name: &str, time: Duration| {
        let times = time.as_secs_f64() / ours.as_secs_f64();
        println!("{name:>10} {:>9.1} ms   {times:.0} times as long", time.as_secs_f64() * 1e3);
    };
    let said: Option<Vec<_>> = (0..3).map(|_| tools::evmctl(list, &[(10, pcr)], &[])).collect();
    if let Some(said) = said {
        assert!(said.iter().all(|said| said.fine), "{}", said[0].said);
        row("evmctl", said.iter().map(|said| said.time).min().unwrap());
    }
    let mut ascii = Vec::new();
    records(list).for_each(|record| record.unwrap().write_ascii(Bank::Sha1, &mut ascii));
    if let Some(said) = tools::keylime(&[(ascii.clone(), pcr), (ascii, pcr)]) {
        assert!(said.iter().all(|said| said.failures.is_empty()), "{said:?}");
        row("keylime", said.iter().map(|said| said.time).min().unwrap());
    }
}

fn growth(size: u64) {
    let list = list(size);
    let per_record = |time: Duration| time.as_nanos() as f64 / size as f64;
    let replay = best(|| black_box(replayed(black_box(&list), Bank::Sha256)));
    let digests = best(|| {
        for record in records(black_box(&list)) {
            black_box(record.unwrap().template_digest(Bank::Sha256));
        }
    });
    let mut line = Vec::new();
    let ascii = best(|| {
        for record in records(black_box(&list)) {
            line.clear();
            record.unwrap().write_ascii(Bank::Sha256, &mut line);
            black_box(&line);
        }
    });
    let [replay, digests, ascii] = [replay, digests, ascii].map(per_record);
    println!("{size:>10} {replay:>15.0} {digests:>16.0} {ascii:>7.0}");
}

fn best<T>(mut work: impl FnMut() -> T) -> Duration {
    (0..5).map(|_| timed(&mut work).0).min().unwrap_or_default()
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
