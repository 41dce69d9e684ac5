//! A service is never said to be well when it is not: damaged stores, TPMs that go, lists that
//! cannot be drained. What the status says, the alert command is told, too.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::{self, File},
    os::unix::net::UnixListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use imastage_client::{
    health::{Level, State},
    wire::{Status, Verdict},
};
use imastage_sandbox::control::Command as Ask;
use imastage_service::{Config, Service};
use imastage_source::{Batch, Dialect, Holders, Look, Sink, Source, SourceError};
use imastage_store::{Note, Store};

#[allow(dead_code)]
mod common;
#[allow(dead_code)]
#[path = "common/machine.rs"]
mod machine;

use common::{TestTpm, stored};
use machine::{Machine, assert_well, wait_until};

fn alter(path: &Path, offset: usize, with: u8) -> Vec<u8> {
    let whole = fs::read(path).unwrap();
    let mut bytes = whole.clone();
    bytes[offset] ^= with;
    fs::write(path, bytes).unwrap();
    whole
}

/// Where record `n` begins in what was measured here, after boot_aggregate.
fn offset_of(state: &Path, n: usize) -> usize {
    stored(state)[..=n].iter().map(Vec::len).sum()
}

#[test]
fn users_02_a_store_that_was_restored_is_consistent_again() {
    // A byte of a record's data, a byte of a length, a byte of a digest.
    for at in [60, 28, 8] {
        let Some(mut machine) = Machine::start(|_| {}) else { return };
        let service = machine.service();
        machine.measure(20);
        service.drain().unwrap();
        assert_well(&service.status());
        drop(service);
        let segment = machine.segment();
        let whole = alter(&segment, offset_of(&machine.state(), 6) + at, 0x40);

        machine.measure(5);
        let service = machine.service();
        for _ in 0..2 {
            assert!(service.drain().unwrap_err().contains("damaged"), "{at}");
            let status = service.status();
            assert_eq!(status.verdict.name(), "damaged", "{at}: {status:?}");
            assert_eq!(status.health.state, State::Damaged, "{at}");
            assert_eq!(status.health.level(), Level::Evidence, "{at}");
            assert!(status.health.reason.contains("record"), "{at}: {}", status.health.reason);
            assert_eq!(machine.in_list(), 5, "{at}");
        }
        machine.wait_for_alert(State::Damaged);
        assert_eq!(machine.notes(), [], "{at}");
        drop(service);
        let at_rest = imastage_service::status_at_rest(&machine.state()).unwrap();
        assert_eq!(at_rest.health.state, State::Damaged, "{at}");

        // As from a backup: nothing was stored since.
        fs::write(&segment, whole).unwrap();
        let service = machine.service();
        service.drain().unwrap();
        assert_well(&service.status());
        assert_eq!(machine.in_list(), 0);
        assert_eq!(service.status().records, 26);
        assert_eq!(machine.notes(), [], "{at}");
    }
}

#[test]
fn users_02_a_store_that_is_restored_under_the_service_is_noticed() {
    let Some(mut machine) = Machine::start(|_| {}) else { return };
    let service = machine.service();
    machine.measure(20);
    service.drain().unwrap();
    drop(service);
    let segment = machine.segment();
    let whole = alter(&segment, offset_of(&machine.state(), 6) + 60, 1);
    let service = machine.service_with(|config| config.every = Duration::from_millis(100));
    assert!(service.drain().unwrap_err().contains("damaged"));
    machine.wait_for_alert(State::Damaged);
    fs::write(&segment, whole).unwrap();
    wait_until("a check", || service.status().health.state == State::Ok);
    assert_well(&service.status());
    machine.wait_for_alert(State::Ok);
    machine.measure(3);
    service.drain().unwrap();
    assert_well(&service.status());
    assert_eq!(machine.in_list(), 0);
}

#[test]
fn users_02_a_note_that_the_evidence_refutes_is_withdrawn() {
    let Some(mut machine) = Machine::start(|_| {}) else { return };
    let service = machine.service();
    machine.measure(5);
    service.drain().unwrap();
    drop(service);
    // As an earlier service wrote it over a store that was damaged then.
    let mut store = Store::open(&machine.state()).unwrap();
    let note = Note {
        index: 4,
        after: Some(3),
        time: 1_795_627_434,
        kind: "missing-or-unlogged-extend".into(),
        text: "someone else deleted them".into(),
    };
    store.note(&note).unwrap();
    drop(store);
    let told = imastage_service::status_at_rest(&machine.state()).unwrap();
    assert_eq!(told.health.state, State::Diverged);
    assert!(told.health.reason.contains("2026-11-25T17:23:54Z"), "{}", told.health.reason);
    machine.measure(2);
    let service = machine.service();
    service.drain().unwrap();
    assert_well(&service.status());
    drop(service);
    assert_eq!(machine.notes(), []);
    let told = imastage_service::status_at_rest(&machine.state()).unwrap();
    assert_eq!(told.health.state, State::NotRunning);
}

#[test]
fn users_10_a_tpm_that_goes_is_told_and_records_are_kept_all_the_same() {
    let Some(mut machine) = Machine::start(|_| {}) else { return };
    // The machine's TPM, reached through a door that can be shut.
    let Some(endpoint) = machine.sandbox.tpm_endpoint().cloned() else { panic!("no TPM") };
    let door = machine.dir.path().join("door");
    let shared = imastage_tpm::SharedTpm::new(imastage_tpm::Tpm::connect(&endpoint).unwrap());
    let serving = shared.serve(UnixListener::bind(&door).unwrap()).unwrap();
    let service = machine.service_with(|config| {
        config.tpm = Some(imastage_tpm::Endpoint::Unix(door.clone()));
    });
    machine.measure(5);
    service.drain().unwrap();
    assert_well(&service.status());

    serving.stop();
    fs::remove_file(&door).unwrap();
    machine.measure(5);
    service.drain().unwrap();
    let status = service.status();
    assert_eq!(status.health.state, State::CannotCompare, "{status:?}");
    assert_eq!(status.health.level(), Level::Environment);
    let reason = &status.health.reason;
    assert!(reason.starts_with("not compared since 20") && reason.contains("TPM"), "{reason}");
    machine.wait_for_alert(State::CannotCompare);
    assert_eq!((status.records, machine.in_list()), (11, 0));

    let _serving = shared.serve(UnixListener::bind(&door).unwrap()).unwrap();
    wait_until("the TPM is back", || {
        service.drain().unwrap();
        service.status().health.state == State::Ok
    });
    assert_well(&service.status());
    machine.wait_for_alert(State::Ok);
}

#[test]
fn users_11_others_who_use_the_list_for_long_raise_the_alert() {
    let Some(mut machine) = Machine::start(|_| {}) else { return };
    let service = machine.service_with(|config| config.every = Duration::from_millis(100));
    machine.measure(5);
    service.drain().unwrap();
    let held = File::open(machine.ima().join("ascii_runtime_measurements")).unwrap();
    machine.measure(5);
    service.drain().unwrap();
    let status = service.status();
    assert_eq!((status.health.state, status.health.level()), (State::Busy, Level::Environment));
    let me = format!("pid {}", std::process::id());
    assert!(status.health.reason.contains(&me), "{}", status.health.reason);
    machine.wait_for_alert(State::Busy);
    drop(held);
    machine.wait_for_alert(State::Ok);
    assert_well(&service.status());
}

/// A list whose lock the kernel has lost, or has again.
struct Lockable {
    source: Box<dyn Source>,
    is_lost: Arc<AtomicBool>,
}

impl Source for Lockable {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        self.source.look()
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        self.try_open()?;
        self.source.take(sink)
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        match self.is_lost.load(Ordering::Relaxed) {
            true => Err(SourceError::LockLost { path: "/list".into() }),
            false => self.source.try_open(),
        }
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        self.source.count()
    }

    fn dialect(&self) -> Dialect {
        self.source.dialect()
    }

    fn holders(&self) -> Holders {
        self.source.holders()
    }

    fn name(&self) -> String {
        self.source.name()
    }
}

#[test]
fn lost_lock_is_alerted_and_records_are_stored_and_compared() {
    let Some(mut machine) = Machine::start(|_| {}) else { return };
    let is_lost = Arc::new(AtomicBool::new(false));
    let source = imastage_source::open(&machine.ima(), None).unwrap();
    let source = Lockable { source, is_lost: Arc::clone(&is_lost) };
    let mut config = Config::new(machine.state());
    config.every = Duration::from_millis(50);
    config.tpm = machine.sandbox.tpm_endpoint().cloned();
    config.alert = Some(machine.alert());
    let service = Service::start(config, Box::new(source)).unwrap();
    machine.measure(5);
    service.drain().unwrap();

    is_lost.store(true, Ordering::Relaxed);
    for round in 1..4 {
        machine.measure(5);
        // Without a request, as when the list is followed.
        wait_until("the records are stored", || service.status().records == 6 + 5 * round);
        let Status { health, verdict, records, since_start, .. } = service.status();
        assert_eq!((health.state, health.level()), (State::LockLost, Level::Environment));
        assert!(health.reason.starts_with("the kernel has lost the list's lock"), "{health:?}");
        assert_eq!(verdict, Verdict::Consistent { records });
        assert!(since_start.drained.is_some() && since_start.holders.is_empty());
        assert_eq!(machine.in_list(), 5 * round);
    }
    machine.wait_for_alert(State::LockLost);

    is_lost.store(false, Ordering::Relaxed);
    machine.wait_for_alert(State::Ok);
    assert_well(&service.status());
    assert_eq!(machine.in_list(), 0);
}

#[test]
fn users_23_no_record_of_another_boot_gets_into_the_epoch() {
    for empties in [false, true] {
        let Some(mut machine) = Machine::start(|_| {}) else { return };
        let service = machine.service();
        machine.measure(10);
        service.drain().unwrap();
        machine.ask(&Ask::Reboot);
        if !empties {
            machine.measure(3);
        }
        let in_list = machine.in_list();
        let error = service.drain().unwrap_err();
        assert!(error.contains("reset"), "{error}");
        let status = service.status();
        assert_eq!(status.health.state, State::TpmReset, "{status:?}");
        assert!(status.health.state.is_final());
        assert_eq!((status.records, machine.in_list()), (11, in_list));
        machine.wait_for_alert(State::TpmReset);
        let status = service.stop();
        assert_eq!((status.records, machine.in_list()), (11, in_list));
        assert_eq!(machine.notes(), []);

        let service = machine.service();
        service.drain().unwrap();
        let status = service.status();
        assert_eq!((status.epoch, status.records), (2, in_list));
        assert_well(&status);
    }
}

#[test]
fn a_service_that_did_not_drain_yet_is_not_said_to_be_well() {
    let dir = tempfile::tempdir().unwrap();
    let tpm = TestTpm::start(dir.path());
    let list = std::sync::Arc::new(ima_list::SharedList::new(ima_list::Options::default()));
    let source = imastage_source::InProcess::new(list, imastage_source::DeleteMode::Stage);
    let mut config = Config::new(dir.path().join("state"));
    config.every = Duration::from_secs(3600);
    config.tpm = Some(tpm.endpoint.clone());
    let service = Service::start(config, Box::new(source)).unwrap();
    assert_eq!(service.status().health.state, State::Starting);
    service.drain().unwrap();
    assert_eq!(service.status().health.state, State::Ok);
}
