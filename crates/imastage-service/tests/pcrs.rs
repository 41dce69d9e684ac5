//! The PCR is not always 10, and nothing is deleted that no PCR proves or that has no beginning.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{fs, path::PathBuf};

use ima_log::{Bank, Extend};
use imastage_client::{
    health::{Level, State},
    wire::Verdict,
};
use imastage_sandbox::{Kernel, Kexec, control::Command as Ask};

#[allow(dead_code)]
mod common;
#[allow(dead_code)]
#[path = "common/machine.rs"]
mod machine;

use common::stored;
use machine::{Machine, assert_well};

/// Files with contents of their own.
fn files(machine: &Machine, name: &str, count: usize) -> Vec<PathBuf> {
    let file = |n| {
        let path = machine.dir.path().join(format!("{name}-{n}"));
        fs::write(&path, format!("{name} {n}")).unwrap();
        path
    };
    (0..count).map(file).collect()
}

#[test]
fn case_03_a_kernel_that_measures_into_pcr_11_is_compared_there() {
    let Some(machine) = Machine::start(|config| {
        config.kernel = Kernel { pcr: 11, ..Kernel::default() };
    }) else {
        return;
    };
    let service = machine.service();
    for round in 0..3 {
        machine.measure_files(&files(&machine, &format!("round-{round}"), 5));
        service.drain().unwrap();
        let status = service.status();
        assert_well(&status);
        assert_eq!((status.pcr(), machine.in_list()), (Some(11), 0));
        let reason = &status.health.reason;
        assert!(reason.contains("replay to PCR 11 in sha1"), "{reason}");
        for (name, bank) in &status.banks {
            assert_eq!(bank.tpm.as_ref(), Some(&bank.replayed), "{name}");
            assert!(bank.replayed.bytes().any(|digit| digit != b'0'), "{name}");
        }
    }
    // A record that nobody measured: in PCR 11 something is missing, and that is seen.
    machine.steal_one();
    service.drain().unwrap();
    let status = service.status();
    assert_eq!(status.health.state, State::Diverged);
    drop(service);
    let service = machine.service();
    service.drain().unwrap();
    assert_eq!(service.status().health.state, State::Diverged);
}

#[test]
fn case_02_records_of_another_pcr_are_proven_or_refuted() {
    let Some(machine) = Machine::start(|_| {}) else { return };
    let service = machine.service();
    // Named for the first time in the middle of a drain, and after one.
    machine.measure_files(&files(&machine, "ten", 3));
    machine.ask(&Ask::MeasureInto { pcr: 12, paths: files(&machine, "twelve", 3) });
    service.drain().unwrap();
    let status = service.status();
    assert_well(&status);
    assert!(status.health.reason.contains("PCR 10 and 12"), "{}", status.health.reason);
    machine.ask(&Ask::MeasureInto { pcr: 12, paths: files(&machine, "more", 2) });
    machine.ask(&Ask::MeasureInto { pcr: 23, paths: files(&machine, "application", 2) });
    service.drain().unwrap();
    let status = service.status();
    assert_well(&status);
    for bank in status.banks.values() {
        let pcrs: Vec<u32> = bank.pcrs.iter().map(|pcr| pcr.pcr).collect();
        assert_eq!(pcrs, [10, 12, 23]);
        assert!(bank.pcrs.iter().all(|pcr| pcr.tpm.as_ref() == Some(&pcr.replayed)), "{bank:?}");
    }
    // One that no record tells of, in that PCR alone.
    let endpoint = machine.sandbox.tpm_endpoint().unwrap();
    let mut tpm = imastage_tpm::Tpm::connect(endpoint).unwrap();
    tpm.pcr_extend(12, &[Bank::Sha256.hash(&[b"?"])]).unwrap();
    service.drain().unwrap();
    let status = service.status();
    let Verdict::Diverged(divergence) = &status.verdict else { panic!("{status:?}") };
    assert!(divergence.text.contains("PCR 12 of bank sha256 alone"), "{}", divergence.text);
}

#[test]
fn case_04_padded_violations_and_kernels_that_change_the_way_are_followed() {
    let Some(mut machine) = Machine::start(|config| {
        config.kernel = Kernel { padded_violations: true, ..Kernel::default() };
    }) else {
        return;
    };
    let service = machine.service();
    machine.measure(3);
    machine.ask(&Ask::Violation { paths: files(&machine, "violated", 2) });
    machine.measure(3);
    service.drain().unwrap();
    let status = service.status();
    assert_well(&status);
    assert_eq!(status.banks["sha256"].extended_with, Some(Extend::Sha1PaddedViolations));
    let kernel = Some(Kernel::default());
    machine.ask(&Ask::Kexec(Kexec { kernel, ..Kexec::default() }));
    machine.measure(3);
    service.drain().unwrap();
    let status = service.status();
    assert_well(&status);
    assert_eq!(status.banks["sha256"].extended_with, Some(Extend::Own));
}

#[test]
fn case_17_nothing_is_deleted_that_the_tpm_knows_nothing_of() {
    let Some(mut machine) = Machine::start(|config| {
        config.kernel = Kernel { tpm_late: true, ..Kernel::default() };
    }) else {
        return;
    };
    for _ in 0..2 {
        let service = machine.service();
        for _ in 0..2 {
            machine.measure(2);
            service.drain().unwrap();
            let status = service.status();
            assert_eq!(status.verdict.name(), "not-extended", "{status:?}");
            assert_eq!(status.health.state, State::NotExtended);
            assert_eq!(status.health.level(), Level::Evidence);
            let reason = &status.health.reason;
            assert!(reason.contains("PCR 10 is zero in every bank"), "{reason}");
            assert!(reason.contains("CONFIG_IMA_INIT_LATE_SYNC"), "{reason}");
            // Stored and shown, and in the list.
            let records = machine.measured as u64 + 1;
            assert_eq!((status.records, machine.in_list()), (records, records));
        }
        machine.wait_for_alert(State::NotExtended);
        let status = service.stop();
        assert_eq!(status.health.state, State::NotExtended);
    }
    assert_eq!(machine.notes(), []);
}

#[test]
fn case_06_a_late_kernel_begins_its_list_all_the_same() {
    let Some(mut machine) = Machine::start(|config| {
        config.kernel = Kernel { late: true, ..Kernel::default() };
        config.tpm = imastage_sandbox::TpmChoice::None;
    }) else {
        return;
    };
    machine.measure(3);
    let service = machine.service();
    service.drain().unwrap();
    let status = service.status();
    assert_eq!((status.records, machine.in_list()), (4, 0));
    assert_eq!(status.health.state, State::Ok);
}

#[test]
fn users_01_a_second_state_directory_deletes_nothing() {
    for has_tpm in [true, false] {
        let Some(mut machine) = Machine::start(|config| {
            if !has_tpm {
                config.tpm = imastage_sandbox::TpmChoice::None;
            }
        }) else {
            return;
        };
        machine.measure(10);
        let service = machine.service();
        service.drain().unwrap();
        drop(service);
        let other = machine.dir.path().join("other");
        for count in [0, 5] {
            machine.measure(count);
            let in_list = machine.in_list();
            let service = machine.service_with(|config| config.state = other.clone());
            let drained = service.drain();
            if has_tpm || count > 0 {
                let error = drained.unwrap_err();
                assert!(error.contains("--adopt"), "{error}");
                let status = service.status();
                assert_eq!(status.health.state, State::ForeignList, "{status:?}");
                assert_eq!(status.health.level(), Level::Environment);
                assert!(status.health.state.is_final());
                machine.wait_for_alert(State::ForeignList);
            }
            let status = service.stop();
            assert_eq!((status.records, machine.in_list()), (0, in_list));
            assert_eq!(imastage_store::notes(&other).unwrap(), []);
        }
        // The one that has the beginning continues, and nothing is lost.
        let service = machine.service();
        service.drain().unwrap();
        let status = service.stop();
        assert_eq!((status.health.state, status.records), (State::Ok, 16));
        assert_eq!(stored(&machine.state()).len(), 16);

        machine.measure(2);
        let service = machine.service_with(|config| {
            config.state = other.clone();
            config.adopt = true;
        });
        service.drain().unwrap();
        let status = service.stop();
        assert_eq!((status.records, machine.in_list()), (2, 0));
        let state = if has_tpm { State::Diverged } else { State::Ok };
        assert_eq!(status.health.state, state);
    }
}
