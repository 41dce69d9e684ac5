//! The service on mounted sandboxes: every dialect, kexec and reboot, readers in the way, others who
//! delete. What is stored is compared with what was measured, and with a TPM's PCRs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::{self, File},
    io::Read,
};

use ima_log::{Bank, Format, Records};
use ima_securityfs::Dialect;
use imastage_client::wire::{Cause, Divergence, Status, Verdict};
use imastage_sandbox::{
    Hazard, Kexec,
    control::{Answer, Command as Ask},
};
use imastage_service::{ClosedEpochs, Service};
use imastage_source::DeleteMode;
use imastage_store::Retention;

#[allow(dead_code)]
mod common;
#[allow(dead_code)]
#[path = "common/machine.rs"]
mod machine;

use common::{open_soon, stored, wait_for_alerts, wait_until};
use machine::Machine;

/// What is stored of what was measured here, by number, in order.
fn kept(machine: &Machine) -> Vec<usize> {
    let bytes = stored(&machine.state()).concat();
    let number = |name: &[u8]| -> Option<usize> {
        std::str::from_utf8(name).ok()?.strip_prefix("/file/")?.parse().ok()
    };
    Records::new(&bytes, Format::native(Bank::Sha1))
        .filter_map(|record| number(record.unwrap().event_name()?))
        .collect()
}

fn assert_complete(machine: &Machine) {
    assert_eq!(kept(machine), (0..machine.measured).collect::<Vec<_>>());
}

#[track_caller]
fn assert_in_step(status: &Status) {
    assert_eq!(status.verdict, Verdict::Consistent { records: status.records }, "{status:?}");
}

/// In step, and no record is on its way.
#[track_caller]
fn assert_even(status: &Status) {
    assert_in_step(status);
    assert!(!status.banks.is_empty());
    for (name, bank) in &status.banks {
        assert_eq!(bank.tpm.as_ref(), Some(&bank.replayed), "{name}");
    }
}

fn divergence(service: &Service) -> Divergence {
    match service.status().verdict {
        Verdict::Diverged(divergence) => divergence,
        other => panic!("expected a divergence, found {other:?}"),
    }
}

/// Records of the kernel's own in front of those that are measured here: boot_aggregate.
const BOOT: u64 = 1;

#[test]
fn every_dialect_is_found_out_and_drained() {
    for (dialect, mode, critical_data) in [
        (Dialect::Linux72, None, false),
        (Dialect::Linux72, Some(DeleteMode::FirstN), false),
        (Dialect::V4, None, false),
        (Dialect::Trim, None, false),
        // Each trim adds a record, which would be trimmed next.
        (Dialect::Trim, None, true),
    ] {
        let Some(mut machine) = Machine::start(|kernel| {
            kernel.dialect = dialect;
            kernel.critical_data = critical_data;
        }) else {
            return;
        };
        for round in 0..3 {
            let service = machine.service_of(mode, |_| {});
            assert_eq!(service.status().since_start.dialect, dialect.to_string());
            for _ in 0..3 {
                machine.measure(round * 40);
                service.drain().unwrap();
                assert_complete(&machine);
                assert!(machine.in_list() <= 1, "{dialect}: {} are left", machine.in_list());
            }
            let records = service.status().records;
            service.drain().unwrap();
            // With nothing new a drain does nothing: it does not feed on its own records.
            service.drain().unwrap();
            let status = service.status();
            assert!(status.records <= records + 1, "{dialect}: {records}, {}", status.records);
            assert_in_step(&status);
            assert_eq!(status.since_start.last_error, None, "{dialect}");
            machine.measure(1);
            let status = service.stop();
            match critical_data {
                false => assert_even(&status),
                // The last trim's record.
                true => assert_in_step(&status),
            }
        }
    }
}

#[test]
fn no_memory_for_a_hash_table_is_no_reason_to_lose_or_double_anything() {
    let Some(mut machine) = Machine::start(|kernel| kernel.hazards = vec![Hazard::NoMemory]) else {
        return;
    };
    let service = machine.service_of(None, |_| {});
    for _ in 0..3 {
        machine.measure(10);
        service.drain().unwrap();
    }
    assert_complete(&machine);
    assert_even(&service.status());
}

#[test]
fn readers_in_the_way_are_named_and_records_kept_all_the_same() {
    let Some(mut machine) = Machine::start(|_| {}) else { return };
    let service = machine.service_of(None, |_| {});
    machine.measure(5);
    service.drain().unwrap();
    // An agent that keeps its file open for life.
    let path = machine.ima().join("ascii_runtime_measurements_sha1");
    let mut agent = open_soon(&path, File::options().read(true));
    agent.read_exact(&mut [0; 0]).unwrap();
    for _ in 0..2 {
        machine.measure(5);
        service.drain().unwrap();
        assert_complete(&machine);
        let status = service.status();
        assert_even(&status);
        let activity = status.since_start;
        let me = std::process::id();
        assert!(activity.busy > 0 && activity.holders.iter().any(|holder| holder.pid == me));
        let error = activity.last_error.unwrap();
        assert!(error.contains(&format!("pid {me}, fd ")), "{error}");
    }
    assert_eq!(machine.in_list(), 10);
    drop(agent);
    machine.measure(5);
    service.drain().unwrap();
    assert_eq!(machine.in_list(), 0);
    assert_complete(&machine);
    let status = service.status();
    assert_in_step(&status);
    assert_eq!(status.since_start.last_error, None);
    assert_eq!(status.since_start.already_stored, 10);
}

#[test]
fn what_others_delete_is_missing_between_these_indexes() {
    for (dialect, causes) in [
        (Dialect::Linux72, [Cause::MissingOrUnloggedExtend; 2]),
        (Dialect::V4, [Cause::MissingOrUnloggedExtend; 2]),
        (Dialect::Trim, [Cause::Missing, Cause::UnloggedExtend]),
    ] {
        // Someone deletes records, or extends the PCR by hand.
        for cause in causes {
            let Some(mut machine) = Machine::start(|kernel| kernel.dialect = dialect) else {
                return;
            };
            let service = machine.service_of(None, |_| {});
            machine.measure(4);
            service.drain().unwrap();
            if cause == Cause::UnloggedExtend {
                let mut tpm =
                    imastage_tpm::Tpm::connect(machine.sandbox.tpm_endpoint().unwrap()).unwrap();
                tpm.pcr_extend(
                    10,
                    &[Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512]
                        .map(|bank| bank.hash(&[])),
                )
                .unwrap();
                machine.measure(2);
            } else {
                machine.measure(3);
                match dialect {
                    Dialect::Trim => {
                        machine.write("ima_trim_log", &format!("{}:3\n", BOOT + 4));
                    }
                    _ => {
                        let staged = "binary_runtime_measurements_staged";
                        machine.write(staged, "A\n");
                        machine.write(staged, "D\n");
                    }
                }
                machine.measure(2);
            }
            service.drain().unwrap();
            let divergence = divergence(&service);
            assert_eq!(divergence.cause, cause, "{dialect}: {}", divergence.text);
            assert_eq!(divergence.after, Some(BOOT + 3), "{dialect}");
            let before = if cause == Cause::UnloggedExtend { BOOT + 6 } else { BOOT + 4 };
            assert_eq!(divergence.before, before, "{dialect}");
            if cause == Cause::Missing {
                assert!(divergence.text.contains("(3 records)"), "{}", divergence.text);
            }
            // It is the same after a restart, and nothing else is lost or doubled.
            let before = kept(&machine);
            drop(service);
            let service = machine.service_of(None, |_| {});
            machine.measure(2);
            service.drain().unwrap();
            assert_eq!(service.status().verdict, Verdict::Diverged(divergence));
            assert_eq!(
                kept(&machine),
                [before, vec![machine.measured - 2, machine.measured - 1]].concat()
            );
        }
    }
}

fn kexec(machine: &Machine, kexec: Kexec) {
    match machine.ask(&Ask::Kexec(kexec)) {
        Answer::Kexec(_) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn kexec_goes_on_with_the_epoch_whatever_the_next_kernel_gets() {
    for dialect in Dialect::ALL {
        for (drained, running) in [(true, true), (true, false), (false, true), (false, false)] {
            let Some(mut machine) = Machine::start(|kernel| {
                kernel.dialect = dialect;
                kernel.critical_data = true;
            }) else {
                return;
            };
            let mut service = machine.service_of(None, |_| {});
            machine.measure(5);
            service.drain().unwrap();
            machine.measure(5);
            // Half of it staged by somebody who is gone, or all stored; then the next kernel, with
            // the service running or not.
            if dialect.stages() && !drained {
                machine.write("binary_runtime_measurements_staged", "A\n");
                machine.measure(3);
            }
            if drained {
                service.drain().unwrap();
            }
            if !running {
                drop(service);
                kexec(&machine, Kexec::default());
                service = machine.service_of(None, |_| {});
            } else {
                kexec(&machine, Kexec::default());
            }
            machine.measure(2);
            service.drain().unwrap();
            assert_complete(&machine);
            let status = service.status();
            assert_in_step(&status);
            assert_eq!(status.epoch, 1, "{dialect}");
        }
    }
}

#[test]
fn what_is_stored_outlives_a_kexec_that_carries_nothing() {
    let Some(mut machine) = Machine::start(|_| {}) else { return };
    let service = machine.service_of(None, |_| {});
    machine.measure(5);
    service.drain().unwrap();
    kexec(&machine, Kexec { forget: true, ..Kexec::default() });
    machine.measure(5);
    service.drain().unwrap();
    // The list alone leads nowhere any more, with what is stored it does.
    assert_complete(&machine);
    assert_in_step(&service.status());

    machine.measure(3);
    kexec(&machine, Kexec { forget: true, ..Kexec::default() });
    machine.measure(2);
    service.drain().unwrap();
    let divergence = divergence(&service);
    let boot = BOOT + 5 + BOOT + 5;
    assert_eq!(divergence.cause, Cause::LostAtKexec, "{}", divergence.text);
    assert_eq!((divergence.after, divergence.before), (Some(boot - 1), boot));
}

#[test]
fn records_that_cannot_be_deleted_any_more_are_kept_before_they_are_lost() {
    for dialect in Dialect::ALL {
        let Some(mut machine) = Machine::start(|kernel| kernel.dialect = dialect) else { return };
        let service = machine.service_of(None, |_| {});
        machine.measure(3);
        service.drain().unwrap();
        machine.measure(3);
        machine.ask(&Ask::Suspend { dump: false });
        service.drain().unwrap();
        assert_complete(&machine);
        assert_in_step(&service.status());
        // Version 4 still deletes then.
        let refused = service.status().since_start.last_error;
        assert_eq!(refused.is_some(), dialect != Dialect::V4, "{dialect}: {refused:?}");
        // They come back, or do not: neither doubles nor loses anything.
        kexec(&machine, Kexec { forget: dialect == Dialect::Trim, ..Kexec::default() });
        machine.measure(3);
        service.drain().unwrap();
        assert_complete(&machine);
        assert_in_step(&service.status());
    }
}

#[test]
fn a_reboot_begins_a_new_epoch() {
    let Some(mut machine) = Machine::start(|_| {}) else { return };
    let service = machine.service_of(None, |_| {});
    machine.measure(5);
    assert_eq!(service.stop().epoch, 1);
    machine.ask(&Ask::Reboot);
    let service = machine.service_of(None, |_| {});
    machine.measure(2);
    service.drain().unwrap();
    let status = service.status();
    assert_in_step(&status);
    assert_eq!((status.epoch, status.records), (2, BOOT + 2));
}

#[test]
fn closed_epochs_are_packed_and_the_oldest_removed() {
    let Some(mut machine) = Machine::start(|_| {}) else { return };
    for _ in 0..3 {
        let service = machine.service_of(None, |_| {});
        machine.measure(5);
        service.stop();
        machine.ask(&Ask::Reboot);
    }
    let kept = Retention { epochs: Some(1), ..Retention::default() };
    let closed = ClosedEpochs { pack: true, kept };
    let service = machine.service_of(None, |config| config.closed = closed);
    machine.measure(1);
    service.drain().unwrap();
    assert_in_step(&service.status());
    let found = || -> Vec<(u64, bool)> {
        // An epoch that is being removed cannot be read.
        let epochs = imastage_store::epochs(&machine.state()).unwrap_or_default();
        epochs.iter().map(|epoch| (epoch.number, epoch.packed)).collect()
    };
    wait_until("epochs 1 and 2 are removed, 3 is packed", || found() == [(3, true), (4, false)]);
}

#[test]
fn alerts_are_run_once_on_each_change_of_verdict() {
    let Some(mut machine) = Machine::start(|_| {}) else { return };
    let log = machine.dir.path().join("alerts");
    let command = format!("echo \"$IMASTAGE_VERDICT $IMASTAGE_STATUS\" >> {}", log.display());
    let service = machine.service_of(None, |config| config.alert = Some(command));
    machine.measure(5);
    service.drain().unwrap();
    machine.measure(1);
    machine.write("binary_runtime_measurements", "1\n");
    for _ in 0..3 {
        machine.measure(1);
        service.drain().unwrap();
    }
    // All of them, also those there should not be: of the first drain, of the last two.
    wait_for_alerts(&log);
    let told = fs::read_to_string(&log).unwrap();
    assert_eq!(told.lines().count(), 1, "{told}");
    let (name, status) = told.split_once(' ').unwrap();
    let status: Status = serde_json::from_str(status).unwrap();
    assert_eq!((name, status.verdict.name()), ("diverged", "diverged"));
}
