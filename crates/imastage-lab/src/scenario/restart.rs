//! Resets and power cuts.

use std::{path::Path, thread, time::Duration};

use crate::{
    ask::Snapshot,
    error::{Doing, LabError, must},
    kernel::Kernel,
    lab::Lab,
    machine::Plan,
    scenario::{
        replays::{replay_list, whole},
        report::Report,
        service::{Service, stored},
        signed::{make_disk, mount_disk},
    },
    wire::{Ask, Files},
};

/// The state directory, on the machine's disk.
const STATE: &str = "/disk/state";
/// The number of power cuts.
const CUTS: u64 = 3;

/// A disk and TPM state that outlive a machine.
pub struct Lasting {
    dir: tempfile::TempDir,
}

impl Lasting {
    pub fn new() -> Result<Lasting, LabError> {
        let dir = tempfile::tempdir().doing("temporary directory")?;
        make_disk(&dir.path().join("disk"), 64)?;
        Ok(Lasting { dir })
    }

    pub fn plan(&self) -> Plan {
        let at = |name: &str| Some(Path::join(self.dir.path(), name));
        Plan { disk: at("disk"), tpm_state: at("tpm"), restarts: true, ..Plan::default() }
    }
}

/// An orderly reset starts a new epoch and retains the old one; both are verifiable. The store then
/// recovers from power cuts at random moments.
pub fn restart(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let lasting = Lasting::new()?;
    let mut machine = lab.boot(kernel, &lasting.plan())?;
    mount_disk(&mut machine, "/disk")?;
    let service = Service::start(&mut machine, STATE, &[])?;
    machine.measure(Files::new("/a", 50))?;
    let first = service.consistent(&mut machine)?;
    service.stop(&mut machine)?;
    let before = machine.snapshot()?;
    machine.leave(&Ask::Reboot)?;

    mount_disk(&mut machine, "/disk")?;
    let service = Service::start(&mut machine, STATE, &[])?;
    let second = service.consistent(&mut machine)?;
    must(first["epoch"] == 1 && second["epoch"] == 2, || {
        format!("epochs {} and {} after a reset", first["epoch"], second["epoch"])
    })?;
    service.stop(&mut machine)?;
    let kept = list_of(kernel, stored(&mut machine, STATE, 1)?, &before);
    let replayed = replay_list(&kept, &before)?;
    report.saw("records of the epoch before the reset, replayed", replayed.records);
    // The snapshot comes second: reading the store adds records.
    let kept = stored(&mut machine, STATE, 2)?;
    let now = machine.snapshot()?;
    must(kernel.stages || now.list().starts_with(&kept), || {
        "epoch 2 is not a prefix of the kernel's list".to_owned()
    })?;
    if kernel.stages {
        replay_list(&list_of(kernel, kept, &now), &now)?;
    }
    drop(machine);
    power_cuts(lab, kernel, &lasting, CUTS, report)
}

/// The list of an epoch, from its stored records and a snapshot of its end.
fn list_of(kernel: &Kernel, stored: Vec<u8>, end: &Snapshot) -> Vec<u8> {
    if kernel.stages { whole(&stored, end) } else { stored }
}

/// Cuts the power of a machine at random moments while it measures files and the service runs, and
/// checks the store each time.
pub fn power_cuts(
    lab: &Lab,
    kernel: &Kernel,
    lasting: &Lasting,
    cuts: u64,
    report: &mut Report,
) -> Result<(), LabError> {
    let mut lived = Vec::new();
    let mut before = None;
    for cut in 0..cuts {
        let mut machine = lab.boot(kernel, &lasting.plan())?;
        mount_disk(&mut machine, "/disk")?;
        let service = Service::start(&mut machine, STATE, &["--every", "20"])?;
        let status = service.consistent(&mut machine)?;
        let epoch = status["epoch"].as_u64();
        must(before.is_none() || epoch == before.map(|before| before + 1), || {
            format!("cut {cut}: epoch {epoch:?} after {before:?}")
        })?;
        before = epoch;
        must(status["problems"] == serde_json::json!([]), || format!("cut {cut}: {status}"))?;
        machine.keep_measuring(Files::new("/a", u64::MAX))?;
        let millis = random_millis()?;
        thread::sleep(Duration::from_millis(millis));
        drop(machine);
        lived.push(format!("{millis} ms"));
    }
    // After the last cut, the store is intact, too.
    let mut machine = lab.boot(kernel, &lasting.plan())?;
    mount_disk(&mut machine, "/disk")?;
    let (code, status) = machine.imastage(&["status", "--state", STATE])?;
    let is_at_rest = code == 3 && status["health"]["state"] == "not-running";
    must(is_at_rest && status["problems"] == serde_json::json!([]), || {
        format!("code {code}: {status}")
    })?;
    report.saw("time from start to power cut", lived.join(", "));
    report.saw("epochs retained", &status["epoch"]);
    machine.power_off()
}

/// A random duration up to 2 s.
pub fn random_millis() -> Result<u64, LabError> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).map_err(|error| LabError::Refuted(error.to_string()))?;
    Ok(u64::from(u16::from_le_bytes(bytes) % 2000))
}
