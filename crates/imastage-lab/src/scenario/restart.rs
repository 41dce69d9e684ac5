//! Resets, power cuts and kexec.

use std::{path::Path, thread, time::Duration};

use ima_log::Bank;

use crate::{
    ask::Snapshot,
    error::{Doing, LabError, must},
    kernel::Kernel,
    lab::Lab,
    machine::{Machine, Plan},
    scenario::{
        replays::{parsed, replay, replay_list, replay_prefix},
        report::Report,
        service::{LIST, Service, stored},
        signed::{make_disk, mount_disk},
    },
    wire::{Ask, Files},
};

/// The state directory, on the machine's disk.
const STATE: &str = "/disk/state";
/// The number of power cuts.
const CUTS: u64 = 3;

/// A disk and TPM state that outlive a machine.
struct Lasting {
    dir: tempfile::TempDir,
}

impl Lasting {
    fn new() -> Result<Lasting, LabError> {
        let dir = tempfile::tempdir().doing("temporary directory")?;
        make_disk(&dir.path().join("disk"), 64)?;
        Ok(Lasting { dir })
    }

    fn plan(&self) -> Plan {
        let at = |name: &str| Some(Path::join(self.dir.path(), name));
        Plan { disk: at("disk"), tpm_state: at("tpm"), restarts: true, ..Plan::default() }
    }
}

fn files(dir: &str) -> Files {
    Files { dir: dir.to_owned(), first: 0, count: 100_000, size: 50 }
}

/// An orderly reset starts a new epoch and retains the old one; both are verifiable. The store then
/// recovers from power cuts at random moments.
pub fn restart(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let lasting = Lasting::new()?;
    let mut machine = lab.boot(kernel, &lasting.plan())?;
    mount_disk(&mut machine, "/disk")?;
    let service = Service::start(&mut machine, STATE, &[])?;
    machine.measure(Files { count: 50, ..files("/a") })?;
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
    let kept = stored(&mut machine, STATE, 1)?;
    let replayed = replay_list(&kept, &before)?;
    report.saw("records of the epoch before the reset, replayed", replayed.records);
    // The snapshot comes second: reading the store adds records.
    let kept = stored(&mut machine, STATE, 2)?;
    let now = machine.snapshot()?;
    must(now.list().starts_with(&kept), || {
        "epoch 2 is not a prefix of the kernel's list".to_owned()
    })?;
    service.stop(&mut machine)?;
    drop(machine);

    let mut lived = Vec::new();
    for cut in 0..CUTS {
        let mut machine = lab.boot(kernel, &lasting.plan())?;
        mount_disk(&mut machine, "/disk")?;
        let service = Service::start(&mut machine, STATE, &["--every", "20"])?;
        let status = service.consistent(&mut machine)?;
        must(status["epoch"] == 3 + cut, || format!("cut {cut}: epoch {}", status["epoch"]))?;
        must(status["problems"] == serde_json::json!([]), || format!("cut {cut}: {status}"))?;
        machine.keep_measuring(files("/a"))?;
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

/// Kexec preserves the PCRs. Stock kernels lose the list, so the kernel's list alone does not
/// replay; kernels with CONFIG_IMA_KEXEC restore it, and no record is stored twice.
pub fn kexec(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let lasting = Lasting::new()?;
    let mut machine = lab.boot(kernel, &lasting.plan())?;
    mount_disk(&mut machine, "/disk")?;
    let service = Service::start(&mut machine, STATE, &[])?;
    machine.measure(Files { count: 50, ..files("/a") })?;
    load_kernel(&mut machine, kernel)?;
    let before = service.consistent(&mut machine)?;
    service.stop(&mut machine)?;
    // From here on no file may be read: its record would be lost.
    let last = machine.snapshot()?;
    machine.leave(&Ask::Kexec)?;

    let now = machine.snapshot()?;
    report.saw("records before", &before["records"]);
    let carried = now.list().starts_with(last.list());
    must(carried == kernel.carries_list, || {
        format!("list restored after kexec: expected {}, found {carried}", kernel.carries_list)
    })?;
    // Each kernel adds a boot_aggregate.
    let boots = now.ascii().matches(" boot_aggregate").count();
    must(boots == 1 + usize::from(carried), || format!("{boots} boot_aggregates"))?;
    report.saw("boot_aggregates after", boots);
    if carried {
        replay(&now)?;
    } else {
        let plain = replay(&now);
        must(plain.as_ref().is_err_and(LabError::is_verdict), || {
            format!("the kernel's list alone replays: {plain:?}")
        })?;
        // No record is missing: the lists before and after kexec together replay to the PCR.
        replay_list(&[last.list(), now.list()].concat(), &now)?;
    }
    mount_disk(&mut machine, "/disk")?;
    let service = Service::start(&mut machine, STATE, &[])?;
    let forgotten = match carried {
        true => 0,
        false => parsed(last.list(), Bank::Sha1)?.len() as u64,
    };
    let after = service.consistent_after(&mut machine, forgotten)?;
    must(after["epoch"] == before["epoch"], || format!("epoch {}", after["epoch"]))?;
    let whole: Snapshot = machine.snapshot()?;
    service.consistent_after(&mut machine, forgotten)?;
    let records = stored(&mut machine, STATE, 1)?;
    if carried {
        must(whole.list().starts_with(&records), || {
            "the store is not a prefix of the kernel's list".to_owned()
        })?;
    }
    must(records.starts_with(last.list()), || {
        "the store changed records from before the kexec".to_owned()
    })?;
    let replayed = replay_prefix(&records, &whole)?;
    report.saw("records after, replayed to the PCR", replayed.records);
    report.saw("records in the kernel's list", count(&mut machine)?);
    service.stop(&mut machine)?;
    machine.power_off()
}

/// Has the guest load the kernel that it runs, for kexec.
fn load_kernel(machine: &mut Machine, kernel: &Kernel) -> Result<(), LabError> {
    let image = std::fs::read(&kernel.image).at(&kernel.image)?;
    let initramfs = machine.initramfs()?;
    machine.write(b"/run/kernel", 0o600, &image)?;
    machine.write(b"/run/initramfs", 0o600, &initramfs)?;
    let line = machine.read("/proc/cmdline")?;
    let command_line = String::from_utf8_lossy(&line).trim().to_owned();
    let (kernel, initramfs) = ("/run/kernel".to_owned(), "/run/initramfs".to_owned());
    machine.done(&Ask::LoadKernel { kernel, initramfs, command_line }, &[])
}

fn count(machine: &mut Machine) -> Result<String, LabError> {
    let count = machine.read(&format!("{LIST}/runtime_measurements_count"))?;
    Ok(String::from_utf8_lossy(&count).trim().to_owned())
}

fn random_millis() -> Result<u64, LabError> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).map_err(|error| LabError::Refuted(error.to_string()))?;
    Ok(u64::from(u16::from_le_bytes(bytes) % 2000))
}
