//! Kernels with other build options or start conditions.

use std::{fs, path::Path};

use ima_log::{Bank, Digest, Extend, Format, IMA_PCR, RecordBuf, Records};
use imastage_sandbox::{
    Kernel, Kexec, TpmChoice,
    control::{Answer, Command as Ask},
};

use crate::mounted::{CURRENT, Mounted};

/// The records of the current list.
fn records(mounted: &Mounted) -> Vec<RecordBuf> {
    let list = fs::read(mounted.file(CURRENT)).unwrap();
    Records::new(&list, Format::native(Bank::Sha1))
        .map(|record| RecordBuf::from_record(&record.unwrap()).unwrap())
        .collect()
}

/// Compares a PCR, in each of the TPM's banks, with the records extended as `value` gives.
fn assert_pcr(
    mounted: &Mounted,
    pcr: u32,
    records: &[RecordBuf],
    value: impl Fn(Bank, usize, &RecordBuf) -> Digest,
) {
    let mut tpm = mounted.tpm();
    for bank in tpm.banks().unwrap() {
        let mut expected = Digest::zero(bank);
        for (n, record) in records.iter().enumerate().filter(|(_, r)| r.record().pcr() == pcr) {
            expected = expected.extended_with(&value(bank, n, record));
        }
        assert_eq!(tpm.pcr_read(bank, pcr).unwrap(), expected, "PCR {pcr} of {bank}");
    }
}

fn own(bank: Bank, _: usize, record: &RecordBuf) -> Digest {
    Extend::Own.value(bank, &record.record())
}

/// The value in kernels before 5.8: 20 bytes, whatever the bank.
fn before_5_8(bank: Bank, record: &RecordBuf) -> Digest {
    let mut bytes = vec![0; bank.size()];
    match record.record().is_violation() {
        true => bytes[..20].fill(0xff),
        false => {
            let sha1 = record.record().template_digest(Bank::Sha1);
            bytes[..20].copy_from_slice(sha1.as_bytes());
        }
    }
    Digest::from_slice(bank, &bytes).unwrap()
}

fn violate(mounted: &Mounted) {
    mounted.ask(&Ask::Violation { paths: vec!["/v".into()] }).unwrap();
}

fn kexec_into(mounted: &Mounted, kernel: Kernel) {
    let kexec = Kexec { kernel: Some(kernel), ..Kexec::default() };
    assert!(matches!(mounted.ask(&Ask::Kexec(kexec)).unwrap(), Answer::Kexec(_)));
}

#[test]
fn every_record_names_and_extends_the_configured_pcr() {
    let kernel = Kernel { pcr: 11, ..Kernel::default() };
    let Some(mounted) = Mounted::with(TpmChoice::Swtpm, |c| c.kernel = kernel) else { return };
    mounted.add(&["a"]);
    violate(&mounted);
    mounted.ask(&Ask::CriticalData { name: "label".into(), data: "00".into() }).unwrap();
    let records = records(&mounted);
    assert_eq!(records.len(), 4);
    assert!(records.iter().all(|record| record.record().pcr() == 11));
    assert_pcr(&mounted, 11, &records, own);
    assert_pcr(&mounted, IMA_PCR, &records, own);
    assert!(mounted.tpm().pcr_read(Bank::Sha256, IMA_PCR).unwrap().is_zero());
}

#[test]
fn rule_with_pcr_measures_a_known_file_again() {
    let Some(mounted) = Mounted::new(TpmChoice::Swtpm) else { return };
    mounted.add(&["a"]);
    let paths = || vec![mounted.dir.path().join("a")];
    // PCR 16 is the debug PCR, which every locality may extend.
    for (pcr, added) in [(16, 1), (16, 0), (IMA_PCR, 0)] {
        let Answer::Done(done) = mounted.ask(&Ask::MeasureInto { pcr, paths: paths() }).unwrap()
        else {
            panic!()
        };
        assert_eq!(done.added, added, "PCR {pcr}");
    }
    let records = records(&mounted);
    let pcrs: Vec<u32> = records.iter().map(|record| record.record().pcr()).collect();
    assert_eq!(pcrs, [IMA_PCR, IMA_PCR, 16]);
    assert_pcr(&mounted, IMA_PCR, &records, own);
    assert_pcr(&mounted, 16, &records, own);
    let error = mounted.ask(&Ask::MeasureInto { pcr: 24, paths: paths() }).unwrap_err();
    assert!(error.to_string().contains("PCR 24"), "{error}");
}

#[test]
fn late_start_names_the_first_record_boot_aggregate_late() {
    let kernel = Kernel { late: true, ..Kernel::default() };
    let Some(mounted) = Mounted::with(TpmChoice::Swtpm, |c| c.kernel = kernel) else { return };
    mounted.add(&["a"]);
    assert_eq!(mounted.records(CURRENT), ["boot_aggregate_late", "a"]);
    mounted.ask(&Ask::Reboot).unwrap();
    assert_eq!(mounted.records(CURRENT), ["boot_aggregate_late"]);
    assert_pcr(&mounted, IMA_PCR, &records(&mounted), own);
}

#[test]
fn kernel_before_5_8_pads_all_banks_and_violations() {
    let kernel = Kernel { padded_violations: true, ..Kernel::default() };
    let Some(mounted) = Mounted::with(TpmChoice::Swtpm, |c| c.kernel = kernel) else { return };
    mounted.add(&["a"]);
    violate(&mounted);
    mounted.add(&["b"]);
    let records = records(&mounted);
    assert_eq!(records.len(), 4);
    assert_pcr(&mounted, IMA_PCR, &records, |bank, _, record| before_5_8(bank, record));
}

#[test]
fn kernel_without_tpm_at_start_extends_nothing_but_programs_can_use_the_tpm() {
    let kernel = Kernel { tpm_late: true, ..Kernel::default() };
    let Some(mounted) = Mounted::with(TpmChoice::Swtpm, |c| c.kernel = kernel) else { return };
    mounted.add(&["a"]);
    let records = records(&mounted);
    let data = records[0].record().template_data().to_vec();
    assert!(data.windows(32).any(|digest| digest == [0; 32]), "boot_aggregate is zero");
    assert_eq!(records.len(), 2);
    for bank in mounted.tpm().banks().unwrap() {
        assert!(mounted.tpm().pcr_read(bank, IMA_PCR).unwrap().is_zero(), "{bank}");
    }
    assert!(!Path::new(&mounted.file("binary_runtime_measurements_sha256")).exists());
}

#[test]
fn kexec_can_start_a_kernel_with_other_padding() {
    let Some(mounted) = Mounted::new(TpmChoice::Swtpm) else { return };
    mounted.add(&["a"]);
    violate(&mounted);
    kexec_into(&mounted, Kernel { padded_violations: true, late: true, ..Kernel::default() });
    mounted.add(&["b"]);
    violate(&mounted);
    kexec_into(&mounted, Kernel { padded: vec![Bank::Sha384], ..Kernel::default() });
    mounted.add(&["c"]);
    violate(&mounted);
    assert_eq!(
        mounted.records(CURRENT),
        ["boot_aggregate", "a", "v", "boot_aggregate_late", "b", "v", "boot_aggregate", "c", "v"]
    );
    assert_pcr(&mounted, IMA_PCR, &records(&mounted), |bank, n, record| match n {
        3..6 => before_5_8(bank, record),
        6.. if bank == Bank::Sha384 => Extend::Sha1Padded.value(bank, &record.record()),
        _ => own(bank, n, record),
    });
    let kernel = Kernel { pcr: 7, ..Kernel::default() };
    let kexec = Kexec { kernel: Some(kernel), ..Kexec::default() };
    let error = mounted.ask(&Ask::Kexec(kexec)).unwrap_err();
    assert!(error.to_string().contains("PCR 7"), "{error}");
}
