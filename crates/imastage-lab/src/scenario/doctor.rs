//! `imastage doctor` on real kernels.

use serde_json::Value;

use crate::{
    error::{Doing, LabError, must},
    kernel::Kernel,
    lab::{LIST, Lab},
    machine::{Machine, Plan, Tpm},
    scenario::{
        report::Report,
        signed::{make_disk, mount_disk},
    },
};

/// The findings of `imastage doctor` for a machine set up as recommended, and for unsuitable ones.
pub fn doctor(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let dir = tempfile::tempdir().doing("temporary directory")?;
    let disk = dir.path().join("disk");
    make_disk(&disk, 32)?;
    let mut machine = lab.boot(kernel, &Plan { disk: Some(disk), ..Plan::default() })?;
    mount_disk(&mut machine, "/disk")?;
    let (code, said) = machine.imastage(&["doctor", "--state", "/disk/state"])?;
    must(code == 0, || format!("recommended setup: expected code 0, found {code}: {said}"))?;
    says(&said, "kernel.dialect", if kernel.stages { "ok" } else { "warning" })?;
    says(&said, "kernel.policy.view", "warning")?;
    says(&said, "kernel.kexec", "note")?;
    says(&said, "list.replay", "ok")?;
    // A kernel that lacks a bank's hash at boot pads SHA-1 digests and has no files for the bank.
    let shown = machine.names(LIST)?;
    let padded = finding(&said, "list.padded").is_some();
    let per_bank = shown.iter().any(|name| name.ends_with("measurements_sha384"));
    must(padded != per_bank, || {
        format!("finding list.padded: {padded}, files per bank: {per_bank}")
    })?;
    report.saw("recommended setup", summary(&said));
    machine.power_off()?;

    let none = Plan { tpm: Tpm::None, ..Plan::default() };
    let said = examine(lab.boot(kernel, &none)?)?;
    says(&said, "tpm.device", "warning")?;
    says(&said, "state.file-system", "problem")?;
    report.saw("no TPM, state on tmpfs", summary(&said));

    let said = examine(lab.boot(kernel, &Plan { append: String::new(), ..Plan::default() })?)?;
    says(&said, "kernel.policy", "warning")?;
    report.saw("no policy", summary(&said));
    Ok(())
}

/// The findings for a machine whose state directory is on tmpfs.
fn examine(mut machine: Machine) -> Result<Value, LabError> {
    let (code, said) = machine.imastage(&["doctor", "--state", "/run/state"])?;
    must(code == 1, || format!("state directory on tmpfs: expected code 1, found {code}"))?;
    machine.power_off()?;
    Ok(said)
}

fn says(said: &Value, check: &str, severity: &str) -> Result<(), LabError> {
    let found = finding(said, check);
    must(found.is_some_and(|found| found["severity"] == severity), || {
        format!("finding {check}: expected severity {severity}, found {found:?}; all: {said}")
    })
}

fn finding<'a>(said: &'a Value, check: &str) -> Option<&'a Value> {
    said["findings"].as_array()?.iter().find(|finding| finding["check"] == check)
}

/// Warnings and problems, without notes.
fn summary(said: &Value) -> String {
    let all = said["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bad = all.iter().filter(|one| one["severity"] != "ok" && one["severity"] != "note");
    bad.map(|one| one["found"].as_str().unwrap_or_default()).collect::<Vec<_>>().join("; ")
}
