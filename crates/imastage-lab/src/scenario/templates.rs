//! Hashes, templates, and a machine without a TPM.

use ima_log::Bank;

use crate::{
    error::{LabError, must},
    kernel::Kernel,
    lab::Lab,
    machine::{Plan, Tpm},
    scenario::{
        capture::measure_awkward,
        replays::{extends, forms, parsed, pcrs, replay},
        report::Report,
    },
};

/// Boot parameters for hashes and templates, and the template of the resulting records.
const VARIANTS: [(&str, &str); 8] = [
    ("ima_hash=sha1", "ima-sig"),
    ("ima_hash=sha512", "ima-sig"),
    // The kernel refuses this template unless ima_hash=sha1 or md5 precedes it.
    ("ima_hash=sha1 ima_template=ima", "ima"),
    ("ima_template=ima-ng", "ima-ng"),
    ("ima_template=ima-ngv2", "ima-ngv2"),
    ("ima_template=ima-sigv2", "ima-sigv2"),
    ("ima_template=evm-sig", "evm-sig"),
    ("ima_template_fmt=d-ng|n-ng|iuid|imode", "d-ng|n-ng|iuid|imode"),
];

/// Every hash and template that a kernel accepts, one boot each.
pub fn variants(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    for (words, template) in VARIANTS {
        let plan =
            Plan { append: format!("{words} ima_policy=tcb"), tpm: Tpm::Crb, ..Plan::default() };
        let mut machine = lab.boot(kernel, &plan)?;
        measure_awkward(&mut machine)?;
        let snapshot = machine.snapshot()?;
        let in_variant = |error| match error {
            LabError::Refuted(why) => LabError::Refuted(format!("{words}: {why}")),
            other => other,
        };
        let replayed = replay(&snapshot).map_err(in_variant)?;
        let forms = forms(&snapshot).map_err(in_variant)?;
        let records = parsed(snapshot.list(), Bank::Sha1)?;
        let other = records.iter().find(|record| record.template().name() != template);
        must(other.is_none(), || {
            let found = other.map_or("", |record| record.template().name());
            format!("{words}: a record has template {found:?}, expected {template:?}")
        })?;
        let (records, banks) = (replayed.records, extends(&replayed));
        report.saw(words, format!("{records} records in {forms} files; {banks}"));
        machine.power_off()?;
    }
    Ok(())
}

/// A machine without a TPM, which has a list but no PCRs.
pub fn no_tpm(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let mut machine = lab.boot(kernel, &Plan { tpm: Tpm::None, ..Plan::default() })?;
    measure_awkward(&mut machine)?;
    let snapshot = machine.snapshot()?;
    must(pcrs(&snapshot, kernel.pcr)?.is_empty(), || "expected no PCRs".to_owned())?;
    let records = parsed(snapshot.list(), Bank::Sha1)?;
    let first = records.first().and_then(|record| record.file_digest());
    let zero = first.is_some_and(|first| first.digest.iter().all(|byte| *byte == 0));
    must(zero, || "boot_aggregate: expected a digest of zeros".to_owned())?;
    report.saw("records", records.len());
    report.saw("files of the list", forms(&snapshot)?);
    machine.power_off()
}
