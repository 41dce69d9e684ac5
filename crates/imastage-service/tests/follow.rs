//! Kernels that do not let go of records are followed: a directory of plain files that only grow,
//! and a TPM that is extended as such kernels do it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    time::Duration,
};

use ima_log::{Bank, Extend, RecordBuf};
use imastage_client::{
    Client,
    wire::{Cause, QuoteRequest, Verdict},
};
use imastage_service::{Config, Service};
use tempfile::TempDir;

#[allow(dead_code)]
mod common;

use common::{TestTpm, record, stored};

/// What a stock kernel 6.1 can hash with when IMA starts.
const OWN: [Bank; 2] = [Bank::Sha1, Bank::Sha256];

struct Kernel {
    dir: TempDir,
    tpm: TestTpm,
    measured: Vec<Vec<u8>>,
}

impl Kernel {
    fn start() -> Kernel {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("ima")).unwrap();
        let tpm = TestTpm::start(dir.path());
        let mut kernel = Kernel { dir, tpm, measured: Vec::new() };
        kernel.measure(1);
        kernel
    }

    fn ima(&self) -> PathBuf {
        self.dir.path().join("ima")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn measure(&mut self, count: usize) {
        for _ in 0..count {
            let record = record(self.measured.len());
            self.list(&record);
            self.tpm.extend(&record, &OWN);
        }
    }

    fn list(&mut self, record: &RecordBuf) {
        let list = self.ima().join("binary_runtime_measurements");
        let mut list = File::options().append(true).create(true).open(list).unwrap();
        list.write_all(record.as_bytes()).unwrap();
        self.measured.push(record.as_bytes().to_vec());
        let count = format!("{}\n", self.measured.len());
        fs::write(self.ima().join("runtime_measurements_count"), count).unwrap();
    }

    fn service(&self) -> Service {
        let source = imastage_source::open(&self.ima(), None).unwrap();
        let config = Config {
            every: Duration::from_secs(3600),
            tpm: Some(self.tpm.endpoint.clone()),
            ..Config::new(self.state())
        };
        Service::start(config, source).unwrap()
    }
}

fn consistent(records: usize) -> Verdict {
    Verdict::Consistent { records: records as u64 }
}

#[test]
fn a_list_that_only_grows_is_kept_and_compared_in_every_bank() {
    let mut kernel = Kernel::start();
    kernel.measure(20);
    for round in 0..4 {
        let service = kernel.service();
        assert_eq!(service.status().since_start.dialect, "follow");
        for _ in 0..3 {
            kernel.measure(round * 5);
            service.drain().unwrap();
            assert_eq!(stored(&kernel.state()), kernel.measured);
            assert_eq!(service.status().verdict, consistent(kernel.measured.len()));
        }
        // A quote is never ahead of the records.
        kernel.measure(1);
        let client = Client::of_state(&kernel.state()).unwrap();
        let request = QuoteRequest { nonce: "00".into(), ..Default::default() };
        assert_eq!(client.quote(&request).unwrap().records, kernel.measured.len() as u64);

        let status = client.status().unwrap();
        for (bank, way) in [
            ("sha1", Extend::Own),
            ("sha256", Extend::Own),
            ("sha384", Extend::Sha1Padded),
            ("sha512", Extend::Sha1Padded),
        ] {
            let bank = &status.banks[bank];
            assert_eq!(bank.extended_with, Some(way));
            assert_eq!(bank.tpm.as_ref(), Some(&bank.replayed));
        }
        let activity = service.stop().since_start;
        assert_eq!((activity.deleted, activity.last_error), (0, None));
    }
}

#[test]
fn an_extend_that_is_in_no_record_is_named_for_what_it_is() {
    let mut kernel = Kernel::start();
    kernel.measure(5);
    let service = kernel.service();
    service.drain().unwrap();
    assert_eq!(service.status().verdict, consistent(6));
    kernel.tpm.extend(&record(1_000_000), &OWN);
    kernel.measure(2);
    service.drain().unwrap();
    let Verdict::Diverged(divergence) = service.status().verdict else { panic!("not noticed") };
    assert_eq!((divergence.after, divergence.before), (Some(5), 8));
    assert_eq!(divergence.cause, Cause::UnloggedExtend);
    drop(service);
    // It is known from then on, and records are kept anyway.
    kernel.measure(3);
    let service = kernel.service();
    service.drain().unwrap();
    assert_eq!(service.status().verdict, Verdict::Diverged(divergence));
    assert_eq!(stored(&kernel.state()), kernel.measured);
}

#[test]
fn one_bank_that_is_extended_alone_is_named() {
    let mut kernel = Kernel::start();
    let service = kernel.service();
    service.drain().unwrap();
    let value = Bank::Sha384.hash(&[b"by hand"]);
    kernel.tpm.shared.lock().pcr_extend(10, &[value]).unwrap();
    kernel.measure(1);
    service.drain().unwrap();
    let Verdict::Diverged(divergence) = service.status().verdict else { panic!("not noticed") };
    assert_eq!((divergence.after, divergence.before), (Some(0), 2));
    assert_eq!(divergence.cause, Cause::UnloggedExtend);
    assert!(divergence.text.contains("bank sha384 alone"), "{}", divergence.text);
}
