//! What a drain costs: from a list in this process into a store on disk, fsync included; and what it
//! costs that the list is in another process.
//! `cargo bench -p imastage-service --bench drain`, `... -- process` for the latter alone.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    os::unix::net::UnixStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ima_list::{Options, SharedList};
use ima_log::{Bank, RecordBuf};
use imastage_client::wire::Activity;
use imastage_service::{Config, Service};
use imastage_source::{DeleteMode, InProcess, Source, SourceProcess, serve};

/// Records with names as long as those of /usr.
fn fill(list: &SharedList, from: u64, count: u64) {
    for i in from..from + count {
        let name = format!("/usr/lib/x86_64-linux-gnu/something/file-{i:012}");
        let record =
            RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&i.to_le_bytes()]), name.as_bytes());
        let key = record.record().template_digest(Bank::Sha256);
        list.append(&record, &key, || {}).unwrap();
    }
}

/// Drains `records` records in batches; gives the time that draining took.
fn drain(mode: DeleteMode, records: u64, batch: u64) -> (Duration, Activity) {
    let dir = tempfile::tempdir().unwrap();
    let list = Arc::new(SharedList::new(Options::default()));
    let config = Config {
        every: Duration::from_secs(3600),
        drain_at: u64::MAX,
        adopt: true,
        ..Config::new(dir.path().join("state"))
    };
    let source = InProcess::new(Arc::clone(&list), mode);
    let service = Service::start(config, Box::new(source)).unwrap();
    let mut took = Duration::ZERO;
    for from in (0..records).step_by(batch as usize) {
        fill(&list, from, batch.min(records - from));
        let since = Instant::now();
        service.drain().unwrap();
        took += since.elapsed();
    }
    let status = service.status();
    assert_eq!(status.records, records);
    (took, status.since_start)
}

/// Two services drain the same records, turn by turn, one of them through a socket: the system calls
/// and changes of thread are those of a process of its own. The list is in memory, so this is the worst
/// case: a kernel takes longer to show its records.
fn compare(batch: u64) {
    const ROUNDS: u64 = 200;
    let services = [false, true].map(|is_apart| {
        let dir = tempfile::tempdir().unwrap();
        let list = Arc::new(SharedList::new(Options::default()));
        let config = Config {
            every: Duration::from_secs(3600),
            drain_at: u64::MAX,
            adopt: true,
            ..Config::new(dir.path().join("state"))
        };
        let source: Box<dyn Source> =
            Box::new(InProcess::new(Arc::clone(&list), DeleteMode::Stage));
        let source = if is_apart {
            let (ours, theirs) = UnixStream::pair().unwrap();
            thread::spawn(move || serve(theirs, Ok(source)));
            Box::new(SourceProcess::connect(ours).unwrap())
        } else {
            source
        };
        (Service::start(config, source).unwrap(), list, dir)
    });
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        // Who comes second waits for what the first has left the disk to do.
        for at in [round % 2, (round + 1) % 2].map(|at| at as usize) {
            let (service, list, _) = &services[at];
            fill(list, round * batch, batch);
            let since = Instant::now();
            service.drain().unwrap();
            took[at].push(since.elapsed());
        }
    }
    let [here, apart] = took.map(|mut took| {
        took.sort();
        took[took.len() / 2].as_secs_f64() * 1e6
    });
    println!("{batch:>10} {here:>12.0} {apart:>12.0} {:>8.3}", apart / here);
}

fn main() {
    println!("{:>10} {:>12} {:>12} {:>8}", "records", "here us", "apart us", "ratio");
    for batch in [1, 100, 1_000, 10_000] {
        compare(batch);
    }
    if std::env::args().any(|arg| arg == "process") {
        return;
    }
    println!(
        "{:<10} {:>10} {:>10} {:>14} {:>12} {:>12} {:>8} {:>8}",
        "mode", "records", "a drain", "records/s", "ns/record", "hold p50 us", "p99", "longest"
    );
    for (mode, name) in [(DeleteMode::Stage, "stage"), (DeleteMode::FirstN, "first-n")] {
        for (records, batch) in [
            (1_000, 1_000),
            (100_000, 1_000),
            (100_000, 100_000),
            (1_000_000, 1_000),
            (1_000_000, 1_000_000),
        ] {
            let (took, activity) = drain(mode, records, batch);
            let Activity { hold_p50_us: p50, hold_p99_us: p99, longest_hold_us: most, .. } =
                activity;
            let per_second = records as f64 / took.as_secs_f64();
            let ns = took.as_nanos() as f64 / records as f64;
            println!(
                "{name:<10} {records:>10} {batch:>10} {per_second:>14.0} {ns:>12.0} \
                 {p50:>12} {p99:>8} {most:>8}"
            );
        }
    }
}
