//! A machine for the service: a TPM, and records that extend it.

use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    os::unix::net::UnixListener,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ima_log::{Bank, Digest, Extend, RecordBuf};
use imastage_store::Reader;
use imastage_tpm::{Endpoint, Serving, SharedTpm, Swtpm};

/// How long anything is waited for that should happen: long enough for a machine that has ten times
/// as much to do as it can. Only a test that fails waits so long.
pub const LONGEST: Duration = Duration::from_secs(300);

/// Waits until something is so, and fails where it never is.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < LONGEST, "never came: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Opens one of the list's files as soon as nobody is in the way. A program that another test starts
/// has the files of all, until it is executed.
pub fn open_soon(path: &Path, options: &OpenOptions) -> File {
    let mut opened = None;
    wait_until("nobody has the list's files", || match options.open(path) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => false,
        file => {
            opened = Some(file.unwrap());
            true
        }
    });
    opened.unwrap()
}

/// Waits until every alert that a service of ours was to run has ended: `path` is in its command.
/// When a drain is answered, the command of its alert is there.
pub fn wait_for_alerts(path: &Path) {
    let path = path.to_str().unwrap();
    wait_until("no alert runs", || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut lines = processes.filter_map(|at| fs::read(at.path().join("cmdline")).ok());
        !lines.any(|line| {
            line.starts_with(b"sh\0-c\0") && String::from_utf8_lossy(&line).contains(path)
        })
    });
}

/// A swtpm that others reach through a socket.
pub struct TestTpm {
    pub shared: SharedTpm,
    pub endpoint: Endpoint,
    pub serving: Serving,
    banks: Vec<Bank>,
    _swtpm: Swtpm,
}

impl TestTpm {
    pub fn start(dir: &Path) -> TestTpm {
        let (swtpm, mut tpm) = Swtpm::start(&dir.join("swtpm")).unwrap();
        let banks = tpm.banks().unwrap();
        let shared = SharedTpm::new(tpm);
        let socket = dir.join("tpm.sock");
        let serving = shared.serve(UnixListener::bind(&socket).unwrap()).unwrap();
        TestTpm { shared, endpoint: Endpoint::Unix(socket), serving, banks, _swtpm: swtpm }
    }

    /// Extends PCR 10 as a kernel does that has the hashes of `own` only.
    pub fn extend(&self, record: &RecordBuf, own: &[Bank]) {
        let value = |bank: &Bank| {
            let way = if own.contains(bank) { Extend::Own } else { Extend::Sha1Padded };
            way.value(*bank, &record.record())
        };
        let values: Vec<Digest> = self.banks.iter().map(value).collect();
        self.shared.lock().pcr_extend(10, &values).unwrap();
    }
}

/// A record like no other.
pub fn record(n: usize) -> RecordBuf {
    let name = format!("/file/{n}");
    RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[name.as_bytes()]), name.as_bytes())
}

/// All that is stored.
pub fn stored(state: &Path) -> Vec<Vec<u8>> {
    let mut cursor = Reader::open(state).unwrap().records(0).unwrap();
    let mut records = Vec::new();
    while let Some(record) = cursor.next_record().unwrap() {
        records.push(record.as_bytes().to_vec());
    }
    records
}
