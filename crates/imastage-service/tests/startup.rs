//! The start of a service on an epoch that is long: what an earlier service proved is resumed, and what
//! is stored is read while the service runs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{fs, os::unix::fs::FileExt, time::Duration};

use imastage_client::{
    health::State,
    wire::{Checking, Verdict},
};
use imastage_service::{Config, Prepared, Service};
use imastage_store::COMPARED;

#[allow(dead_code)]
mod common;
#[allow(dead_code)]
#[path = "common/machine.rs"]
mod machine;

use machine::{Machine, assert_well, wait_until};

/// Records that are read before the service is ready.
const READ_FIRST: u64 = 50;

/// A machine whose service drained 400 records in several drains, and stopped.
fn drained() -> Option<Machine> {
    let mut machine = Machine::start(|_| {})?;
    let service = machine.service_with(|config| config.read_first = READ_FIRST);
    for _ in 0..4 {
        machine.measure(100);
        service.drain().unwrap();
    }
    assert_well(&service.status());
    service.stop();
    Some(machine)
}

fn prepared(machine: &Machine) -> Prepared {
    let mut config = Config::new(machine.state());
    config.every = Duration::from_millis(50);
    config.tpm = machine.sandbox.tpm_endpoint().cloned();
    config.read_first = READ_FIRST;
    Service::prepare(config, imastage_source::open(&machine.ima(), None).unwrap()).unwrap()
}

#[test]
fn a_long_epoch_is_consistent_once_its_records_were_read() {
    let Some(mut machine) = drained() else { return };
    machine.measure(10);
    let prepared = prepared(&machine);
    let status = prepared.status();
    assert_eq!(status.since_start.checking.map(|checking| checking.of), Some(status.records));
    assert_eq!(status.verdict, Verdict::Unchecked);
    assert_eq!(status.health.state, State::Checking, "{}", status.health.reason);
    let service = prepared.begin().unwrap();
    wait_until("the check", || service.status().since_start.checking.is_none());
    service.drain().unwrap();
    assert_well(&service.status());
    machine.measure(100);
    service.drain().unwrap();
    assert_well(&service.status());
}

#[test]
fn damage_before_the_anchor_is_found_and_nothing_is_called_consistent_before() {
    let Some(machine) = drained() else { return };
    let segment = fs::File::options().read(true).write(true).open(machine.segment()).unwrap();
    // In the template data of the first record: PCR, digest and name come before.
    let (mut byte, at) = ([0], 60);
    segment.read_exact_at(&mut byte, at).unwrap();
    segment.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let prepared = prepared(&machine);
    assert!(prepared.status().since_start.checking.is_some());
    let service = prepared.begin().unwrap();
    wait_until("the damage", || {
        let status = service.status();
        let is_consistent = matches!(status.verdict, Verdict::Consistent { .. });
        assert!(!is_consistent, "{status:?}");
        status.health.state == State::Damaged
    });
    // The file is restored.
    segment.write_all_at(&byte, at).unwrap();
    wait_until("the store to be whole", || service.status().health.state == State::Ok);
    assert_well(&service.status());
}

#[test]
fn a_record_that_was_deleted_meanwhile_is_reported_after_the_check() {
    let Some(mut machine) = drained() else { return };
    machine.steal_one();
    machine.measure(10);
    let service = prepared(&machine).begin().unwrap();
    wait_until("the divergence", || service.status().health.state == State::Diverged);
    assert!(service.status().since_start.checking.is_none());
    assert_eq!(machine.notes().len(), 1);
}

#[test]
fn an_anchor_that_was_altered_is_not_used() {
    let Some(machine) = drained() else { return };
    let path = machine.state().join(COMPARED);
    let json = fs::read_to_string(&path).unwrap();
    let mut known: serde_json::Value = serde_json::from_str(&json).unwrap();
    let anchor = &mut known["anchor"];
    assert!(anchor["records"].as_u64().unwrap() >= 100, "{json}");
    // The last bank: one whose PCR the store does not keep.
    let value = &mut anchor["banks"].as_array_mut().unwrap().last_mut().unwrap()["pcrs"][0][1];
    let digits = value.as_str().unwrap();
    *value = format!("{}{}", &digits[1..], &digits[..1]).into();
    fs::write(&path, known.to_string()).unwrap();
    let prepared = prepared(&machine);
    assert_eq!(prepared.status().since_start.checking, None::<Checking>);
    let service = prepared.begin().unwrap();
    service.drain().unwrap();
    assert_well(&service.status());
}
