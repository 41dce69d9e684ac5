//! State directories of earlier versions.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::sync::Arc;

use ima_list::{Options, SharedList};
use ima_log::Bank;
use imastage_service::{Config, Service};
use imastage_source::{DeleteMode, InProcess};
use imastage_store::{EpochId, Reader, Store};

#[allow(dead_code)]
mod common;

use common::{TestTpm, record};

/// Versions that made the attestation key in the endorsement hierarchy told TPMs apart by it.
#[test]
fn finding_01_an_upgrade_within_a_boot_goes_on_with_the_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let machine = TestTpm::start(dir.path());
    let list = Arc::new(SharedList::new(Options::default()));
    let add = |n| {
        let record = record(n);
        let key = record.record().template_digest(Bank::Sha256);
        list.append(&record, &key, || machine.extend(&record, &Bank::ALL)).unwrap();
        record
    };
    let state = dir.path().join("state");
    let tpm = machine.shared.lock().identity().unwrap().to_string();
    let reset_count = machine.shared.lock().clock().unwrap().reset_count;
    let mut store = Store::open(&state).unwrap();
    let id = EpochId { tpm: Some(tpm), reset_count: Some(reset_count), boot_id: "any".into() };
    store.begin_epoch(id, &[Bank::Sha1, Bank::Sha256]).unwrap();
    for n in 0..3 {
        store.append(&add(n).record()).unwrap();
    }
    store.commit().unwrap();
    drop(store);

    add(3);
    let config = Config { tpm: Some(machine.endpoint.clone()), ..Config::new(state.clone()) };
    let source = Box::new(InProcess::new(Arc::clone(&list), DeleteMode::Stage));
    let service = Service::start(config, source).unwrap();
    service.drain().unwrap();
    let status = service.stop();
    assert_eq!((status.epoch, status.records), (1, 4), "{:?}", status.verdict);
    assert_eq!(Reader::open(&state).unwrap().epoch().number, 1);
}
