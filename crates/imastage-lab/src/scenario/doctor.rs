use serde_json::Value;

use crate::{
    Kernel, Lab, LabError, Machine, Plan, Tpm,
    error::{Doing, must},
    scenario::{
        Report,
        service::LIST,
        signed::{make_disk, mount_disk},
    },
};

/// What `imastage doctor` says of a kernel as it should be used, and of ones that are not fit.
pub fn doctor(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let dir = tempfile::tempdir().doing("temporary directory")?;
    let disk = dir.path().join("disk");
    make_disk(&disk, 32)?;
    let mut machine = lab.boot(kernel, &Plan { disk: Some(disk), ..Plan::default() })?;
    mount_disk(&mut machine, "/disk")?;
    let (code, said) = machine.imastage(&["doctor", "--state", "/disk/state"])?;
    must(code == 0, || format!("as it should be used, it is not fit: {said}"))?;
    says(&said, "kernel.dialect", "warning")?;
    says(&said, "kernel.policy.view", "warning")?;
    says(&said, "kernel.kexec", "note")?;
    says(&said, "list.replay", "ok")?;
    // Whether the list is shown per bank goes with whether the kernel had the hashes in time.
    let shown = machine.names(LIST)?;
    let padded = finding(&said, "list.padded").is_some();
    let per_bank = shown.iter().any(|name| name.ends_with("measurements_sha384"));
    must(padded != per_bank, || format!("padded banks {padded}, files per bank {per_bank}"))?;
    report.saw("as it should be used", summary(&said));
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

/// What it says of a machine whose state directory is on tmpfs.
fn examine(mut machine: Machine) -> Result<Value, LabError> {
    let (code, said) = machine.imastage(&["doctor", "--state", "/run/state"])?;
    must(code == 1, || format!("code {code} for a state directory on tmpfs"))?;
    machine.power_off()?;
    Ok(said)
}

fn says(said: &Value, check: &str, severity: &str) -> Result<(), LabError> {
    let found = finding(said, check);
    must(found.is_some_and(|found| found["severity"] == severity), || {
        format!("of {check} it says {found:?}, expected severity {severity}; all: {said}")
    })
}

fn finding<'a>(said: &'a Value, check: &str) -> Option<&'a Value> {
    said["findings"].as_array()?.iter().find(|finding| finding["check"] == check)
}

/// All but what is well and what is only noted.
fn summary(said: &Value) -> String {
    let all = said["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bad = all.iter().filter(|one| one["severity"] != "ok" && one["severity"] != "note");
    bad.map(|one| one["found"].as_str().unwrap_or_default()).collect::<Vec<_>>().join("; ")
}
