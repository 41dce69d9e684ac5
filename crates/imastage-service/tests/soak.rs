//! Ten million records: memory and cost per record stay what they were. `make soak` runs it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ima_list::{Duplicates, Options, Part, SharedList};
use ima_log::{Bank, Extend, RecordBuf, Replay};
use imastage_service::{Config, Service};
use imastage_source::{DeleteMode, InProcess};
use imastage_store::Reader;

/// What this process has in memory, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    resident.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// What the thread `name` has used of the processor.
fn used_by(name: &str) -> Duration {
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim() == name {
            // Nanoseconds on the processor come first (Documentation/scheduler/sched-stats.rst).
            let spent = read("schedstat");
            return Duration::from_nanos(spent.split_whitespace().next().unwrap().parse().unwrap());
        }
    }
    panic!("no thread {name}");
}

struct Stretch {
    records: u64,
    ns_per_record: u64,
    processor_ns_per_record: u64,
    hold_p99_us: u64,
    resident: u64,
}

#[test]
#[ignore = "ten million records: make soak"]
fn ten_million_records_cost_what_the_first_did() {
    let records: u64 = std::env::var("IMASTAGE_SOAK_RECORDS")
        .map_or(10_000_000, |records| records.parse().unwrap());
    const STRETCHES: u64 = 10;
    const BATCH: u64 = 1000;
    let dir = tempfile::tempdir().unwrap();
    // The list's own memory is a matter of its own benchmarks.
    let options = Options { duplicates: Duplicates::Off, ..Options::default() };
    let list = Arc::new(SharedList::new(options));
    let config = Config {
        every: Duration::from_secs(3600),
        drain_at: u64::MAX,
        adopt: true,
        ..Config::new(dir.path().join("state"))
    };
    let source = InProcess::new(Arc::clone(&list), DeleteMode::Stage);
    let service = Service::start(config, Box::new(source)).unwrap();
    // When this returns the thread is there, and has its name.
    service.drain().unwrap();
    let mut account = Replay::new(Bank::Sha256, Extend::Own);
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut next = 0;
    for stretch in 1..=STRETCHES {
        let (mut took, begin, used) = (Duration::ZERO, next, used_by("drain"));
        while next < records * stretch / STRETCHES {
            for _ in 0..BATCH {
                let name = format!("/usr/lib/x86_64-linux-gnu/something/file-{next:012}");
                let digest = Bank::Sha256.hash(&[&next.to_le_bytes()]);
                let record = RecordBuf::ima_ng(10, &digest, name.as_bytes());
                let key = record.record().template_digest(Bank::Sha256);
                list.append(&record, &key, || account.extend(&record.record())).unwrap();
                next += 1;
            }
            let since = Instant::now();
            service.drain().unwrap();
            took += since.elapsed();
        }
        let done = next - begin;
        let per_record = |time: Duration| time.as_nanos() as u64 / done;
        let last = Stretch {
            records: next,
            ns_per_record: per_record(took),
            processor_ns_per_record: per_record(used_by("drain") - used),
            hold_p99_us: service.status().since_start.hold_p99_us,
            resident: resident(),
        };
        eprintln!(
            "{:>9} records: {:>5} ns a record ({:>4} ns of the processor), held {:>6} us (99 of 100), {:>4} MiB",
            last.records,
            last.ns_per_record,
            last.processor_ns_per_record,
            last.hold_p99_us,
            last.resident >> 20
        );
        stretches.push(last);
    }
    let status = service.stop();
    assert_eq!(status.records, next);
    assert_eq!(list.count(Part::Current) + list.count(Part::Staged), 0);
    assert_eq!(status.banks["sha256"].replayed, account.value().to_string());
    assert_eq!(running(&dir.path().join("state")), account.value());

    let [first, .., last] = &stretches[..] else { panic!("no stretches") };
    let grown = last.resident.saturating_sub(first.resident);
    assert!(grown < 16 << 20, "grew by {} KiB", grown >> 10);
    eprintln!(
        "at the end {:.2} of the processor time of the beginning, and {} KiB more",
        last.processor_ns_per_record as f64 / first.processor_ns_per_record as f64,
        grown >> 10
    );
}

fn running(state: &Path) -> ima_log::Digest {
    let reader = Reader::open(state).unwrap();
    *reader.running().iter().find(|pcr| pcr.bank() == Bank::Sha256).unwrap()
}
