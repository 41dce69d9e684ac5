//! What the API gives, in each form, beside the bytes themselves.
//! `cargo bench -p imastage-service --bench api`
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ima_list::{Options, SharedList};
use ima_log::{Bank, RecordBuf};
use imastage_client::SOCKET;
use imastage_service::{Config, Service};
use imastage_source::{DeleteMode, InProcess};

const RECORDS: u64 = 1_000_000;

fn add(list: &SharedList) {
    for i in 0..RECORDS {
        let name = format!("/usr/lib/x86_64-linux-gnu/something/file-{i:012}");
        let record =
            RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&i.to_le_bytes()]), name.as_bytes());
        let key = record.record().template_digest(Bank::Sha256);
        list.append(&record, &key, || {}).unwrap();
    }
}

/// The bytes of an answer, and the time it took.
fn get(socket: &Path, path: &str) -> (usize, Duration) {
    let since = Instant::now();
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return (bytes, since.elapsed()),
            n => bytes += n,
        }
    }
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let list = Arc::new(SharedList::new(Options::default()));
    let config = Config {
        every: Duration::from_secs(3600),
        adopt: true,
        ..Config::new(dir.path().join("state"))
    };
    let source = InProcess::new(Arc::clone(&list), DeleteMode::Stage);
    let service = Service::start(config, Box::new(source)).unwrap();
    add(&list);
    service.drain().unwrap();
    let socket = dir.path().join("state").join(SOCKET);

    println!("{:<24} {:>8} {:>10} {:>14}", "records?", "MB", "MB/s", "records/s");
    for shape in ["form=binary", "form=ascii", "form=ascii&bank=sha256", "form=jsonl", "form=cel"] {
        let answers = (0..3).map(|_| get(&socket, &format!("/v1/records?{shape}")));
        let (bytes, took) = answers.min_by_key(|(_, took)| *took).unwrap();
        let seconds = took.as_secs_f64();
        let mb = bytes as f64 / 1e6;
        println!("{shape:<24} {mb:>8.1} {:>10.0} {:>14.0}", mb / seconds, RECORDS as f64 / seconds);
    }
    for path in [
        "/v1/status",
        "/v1/records?from=999999",
        "/v1/records?from=500000&to=500001",
        "/v1/pcrs?at=654321",
    ] {
        let mut took: Vec<Duration> = (0..201).map(|_| get(&socket, path).1).collect();
        took.sort_unstable();
        println!("{path:<36} p50 {:?}, p99 {:?}", took[100], took[198]);
    }
}
