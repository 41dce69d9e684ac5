//! Duration of A, D and N, cost of an append, and memory, for 1,000 to 1,000,000 records.
//! `cargo bench -p ima-list`
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::{
    env, fs,
    hint::{self, black_box},
    process::Command,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use ima_list::{Options, Part, SharedList};
use ima_log::{Bank, Digest, RecordBuf};

const MOST: u64 = 1_000_000;

/// Argument of the process that measures memory: memory freed earlier would distort the result.
const MEMORY: &str = "--memory-of";

fn main() {
    let mut args = env::args().skip_while(|arg| arg != MEMORY).skip(1);
    if let Some(size) = args.next() {
        return memory(size.parse().unwrap());
    }
    let records: Vec<_> = (0..MOST + 200_000).map(record).collect();
    let bytes: usize = records.iter().map(|(record, _)| record.as_bytes().len()).sum();
    println!("records of {:.0} bytes on average\n", bytes as f64 / records.len() as f64);

    println!("A, D, N with cold caches (median), and the mean append");
    println!("   records       A       D  N=half   N=all  append");
    for (size, rounds) in [(1_000, 101), (10_000, 51), (100_000, 21), (MOST as usize, 9)] {
        row(&records[..size], rounds);
    }

    println!("\noverhead per record in bytes (RSS)");
    println!("   records    held deleted");
    for size in ["1000", "10000", "100000", "1000000"] {
        let status = Command::new(env::current_exe().unwrap()).args([MEMORY, size]).status();
        assert!(status.unwrap().success());
    }

    println!("\nappend while another thread runs, p50 / p99 / p99.9 / max");
    for deleting in [false, true, false, true] {
        beside(&records, deleting);
    }
}

fn record(i: u64) -> (RecordBuf, Digest) {
    let file = Bank::Sha256.hash(&[&i.to_le_bytes()]);
    let name = format!("/usr/lib/x86_64-linux-gnu/package-{}/file-{i}.so", i % 100);
    let record = RecordBuf::ima_ng(10, &file, name.as_bytes());
    let key = record.record().template_digest(Bank::Sha256);
    (record, key)
}

fn filled(records: &[(RecordBuf, Digest)]) -> SharedList {
    let list = SharedList::new(Options::default());
    for (record, key) in records {
        list.append(record, key, || {}).unwrap();
    }
    list
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let done = work();
    (start.elapsed(), done)
}

fn quantile(times: &mut [Duration], q: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * q) as usize]
}

fn row(records: &[(RecordBuf, Digest)], rounds: usize) {
    let size = records.len();
    let half = size as u64 / 2;
    let mut held = [const { Vec::new() }; 4];
    let mut appends = Vec::new();
    let mut other = vec![0u8; 64 << 20];
    let mut cold = || other.iter_mut().step_by(64).for_each(|byte| *byte = black_box(*byte) + 1);
    for _ in 0..rounds {
        let (time, list) = timed(|| filled(records));
        appends.push(time / size as u32);
        cold();
        let (time, _) = timed(|| list.stage().unwrap());
        held[0].push(time);
        cold();
        let (time, removed) = timed(|| list.delete_staged().unwrap());
        held[1].push(time);
        drop(removed);

        let list = filled(records);
        cold();
        let (time, removed) = timed(|| list.delete_first(half).unwrap());
        held[2].push(time);
        drop(removed);
        cold();
        let (time, removed) = timed(|| list.delete_first(list.count(Part::Current)).unwrap());
        held[3].push(time);
        drop(removed);
    }
    let [a, d, half, all] = held.each_mut().map(|times| quantile(times, 0.5));
    let append = quantile(&mut appends, 0.5);
    println!("{size:10} {a:>7.0?} {d:>7.0?} {half:>7.1?} {all:>7.0?} {append:>7.0?}");
}

fn memory(size: u64) {
    let before = rss();
    let list = SharedList::new(Options::default());
    for (record, key) in (0..size).map(record) {
        list.append(&record, &key, || {}).unwrap();
    }
    let held = rss() - before - list.counts().held_bytes as i64;
    list.stage().unwrap();
    drop(list.delete_staged().unwrap());
    let deleted = rss() - before;
    let [held, deleted] = [held, deleted].map(|bytes| bytes as f64 / size as f64);
    println!("{size:10} {held:7.1} {deleted:7.1}");
}

/// Times appends to a list of many records, while another thread is idle or deletes all those
/// records in a thousand requests.
fn beside(records: &[(RecordBuf, Digest)], deleting: bool) {
    const REQUESTS: u64 = 1_000;
    let (old, new) = records.split_at(MOST as usize);
    let list = filled(old);
    let start = Barrier::new(2);
    let (mut times, during) = thread::scope(|scope| {
        let deleter = scope.spawn(|| {
            start.wait();
            let begin = Instant::now();
            for _ in 0..REQUESTS {
                let until = Instant::now() + Duration::from_micros(50);
                if deleting {
                    drop(list.delete_first(MOST / REQUESTS).unwrap());
                }
                while Instant::now() < until {
                    hint::spin_loop();
                }
            }
            begin.elapsed()
        });
        start.wait();
        let times: Vec<_> = new
            .iter()
            .map(|(record, key)| timed(|| list.append(record, key, || {}).unwrap()).0)
            .collect();
        (times, deleter.join().unwrap())
    });
    let [p50, p99, p999, most] = [0.5, 0.99, 0.999, 1.0].map(|q| quantile(&mut times, q));
    let what = if deleting { "deleting" } else { "idle" };
    println!("{what:>10} {p50:>7.0?} {p99:>7.0?} {p999:>7.0?} {most:>7.0?}  ({during:.0?})");
}

/// This process's resident memory in bytes.
fn rss() -> i64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
}
