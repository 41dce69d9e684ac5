//! What reading the view costs, beside a plain file with the same bytes, in one run.
//! `cargo bench -p imastage-service --bench view`
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use ima_list::{Options, SharedList};
use ima_log::{Bank, RecordBuf};
use imastage_service::{Config, Service};
use imastage_source::{DeleteMode, InProcess};

fn add(list: &SharedList, from: u64, count: u64) {
    for i in from..from + count {
        let name = format!("/usr/lib/x86_64-linux-gnu/something/file-{i:012}");
        let record =
            RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&i.to_le_bytes()]), name.as_bytes());
        let key = record.record().template_digest(Bank::Sha256);
        list.append(&record, &key, || {}).unwrap();
    }
}

/// The time that something takes with each of two files, in turns, the shortest of several.
fn both(files: [&Path; 2], times: usize, does: impl Fn(&Path) -> Duration) -> [Duration; 2] {
    let mut shortest = [Duration::MAX; 2];
    for _ in 0..times {
        for (file, shortest) in files.iter().zip(&mut shortest) {
            *shortest = does(file).min(*shortest);
        }
    }
    shortest
}

fn cat(path: &Path) -> Duration {
    let since = Instant::now();
    // Not to /dev/null: cat does not read for that where it can tell.
    let mut cat = Command::new("cat").arg(path).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = cat.stdout.take().unwrap();
    let mut buffer = vec![0; 1 << 20];
    while out.read(&mut buffer).unwrap() > 0 {}
    cat.wait().unwrap();
    since.elapsed()
}

/// The same without the pipe.
fn read(path: &Path) -> Duration {
    let since = Instant::now();
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 128 << 10];
    while file.read(&mut buffer).unwrap() > 0 {}
    since.elapsed()
}

/// Takes the file out of the page cache.
fn evict(path: &Path) {
    let file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn main() {
    println!(
        "{:>9} {:<50} {:>7} {:>11} {:>11} {:>9}",
        "records", "file", "MB", "plain MB/s", "view MB/s", "of plain"
    );
    for records in [1_000, 100_000, 1_000_000] {
        let dir = tempfile::tempdir().unwrap();
        let list = Arc::new(SharedList::new(Options::default()));
        let config = Config {
            every: Duration::from_secs(3600),
            adopt: true,
            ..Config::new(dir.path().join("state"))
        };
        let source = InProcess::new(Arc::clone(&list), DeleteMode::Stage);
        let service = Service::start(config, Box::new(source)).unwrap();
        let view = service.mount_view(&dir.path().join("view"), None).unwrap();
        add(&list, 0, records);
        service.drain().unwrap();
        let since = Instant::now();
        let count = fs::read_to_string(dir.path().join("view/runtime_measurements_count")).unwrap();
        assert_eq!(count, format!("{records}\n"));
        let first_look = since.elapsed();

        for name in [
            "ascii_runtime_measurements",
            "ascii_runtime_measurements_sha256",
            "binary_runtime_measurements",
        ] {
            let (path, plain) = (dir.path().join("view").join(name), dir.path().join("plain"));
            let bytes = fs::read(&path).unwrap();
            fs::write(&plain, &bytes).unwrap();
            // So that it can be evicted.
            File::open(&plain).unwrap().sync_all().unwrap();
            let line = |what: &str, [plain, view]: [Duration; 2]| {
                let mb = bytes.len() as f64 / 1e6;
                println!(
                    "{records:>9} {:<50} {mb:>7.1} {:>11.0} {:>11.0} {:>8.0}%",
                    format!("{name} {what}"),
                    mb / plain.as_secs_f64(),
                    mb / view.as_secs_f64(),
                    100.0 * plain.as_secs_f64() / view.as_secs_f64()
                );
            };
            let files = [&*plain, &*path];
            line("cat", both(files, 9, cat));
            line("read", both(files, 9, read));
            let not_cached = |path: &Path| {
                evict(path);
                read(path)
            };
            line("read, not cached", both(files, 3, not_cached));
        }

        let path = dir.path().join("view/ascii_runtime_measurements");
        let mut file = File::open(&path).unwrap();
        file.read_to_end(&mut Vec::new()).unwrap();
        let mut ends: Vec<Duration> = (0..2001)
            .map(|_| {
                let since = Instant::now();
                assert_eq!(file.read(&mut [0; 4096]).unwrap(), 0);
                since.elapsed()
            })
            .collect();
        ends.sort_unstable();
        println!(
            "{records:>9} read at the end, nothing new: p50 {:?}, p99 {:?}; first look at all of it: {:?}",
            ends[1000], ends[1980], first_look
        );
        drop(view);
    }
}
