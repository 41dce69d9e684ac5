//! A machine for the service: a TPM, and records that extend it.

use std::{os::unix::net::UnixListener, path::Path};

use ima_log::{Bank, Digest, Extend, RecordBuf};
use imastage_store::Reader;
use imastage_tpm::{Endpoint, SharedTpm, Swtpm};

/// A swtpm that others reach through a socket.
pub struct TestTpm {
    pub shared: SharedTpm,
    pub endpoint: Endpoint,
    banks: Vec<Bank>,
    _swtpm: Swtpm,
}

impl TestTpm {
    pub fn start(dir: &Path) -> TestTpm {
        let (swtpm, mut tpm) = Swtpm::start(&dir.join("swtpm")).unwrap();
        let banks = tpm.banks().unwrap();
        let shared = SharedTpm::new(tpm);
        let socket = dir.join("tpm.sock");
        shared.serve(UnixListener::bind(&socket).unwrap()).unwrap();
        TestTpm { shared, endpoint: Endpoint::Unix(socket), banks, _swtpm: swtpm }
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
