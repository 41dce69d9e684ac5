//! Kexec, which preserves the PCRs.

use ima_log::Bank;

use crate::{
    ask::Snapshot,
    error::{Doing, LabError, must},
    kernel::Kernel,
    lab::{LIST, Lab},
    machine::Machine,
    scenario::{
        replays::{each_once, parsed, replay, replay_list, replay_prefix, whole},
        report::Report,
        restart::Lasting,
        service::{Service, count, stored},
        signed::mount_disk,
    },
    wire::{Ask, Files},
};

/// The state directory, on the machine's disk.
const STATE: &str = "/disk/state";
/// Files measured before each kexec.
const FILES: u64 = 40;
/// Records of files measured after the next kernel was loaded, too many for its buffer.
const TOO_MANY: u64 = 500;

/// Kexec preserves the PCRs. Stock kernels lose the list, so the kernel's list alone does not
/// replay; kernels with CONFIG_IMA_KEXEC restore it, and no record is stored twice.
pub fn kexec(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let lasting = Lasting::new()?;
    let mut machine = lab.boot(kernel, &lasting.plan())?;
    mount_disk(&mut machine, "/disk")?;
    let service = Service::start(&mut machine, STATE, &[])?;
    machine.measure(Files::new("/a", 50))?;
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

/// The state of list and service when the machine starts the next kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The service has drained the list and exited.
    Stopped,
    /// The service was killed; records are in the list.
    Killed,
    /// The service was killed; records are staged and in the list.
    Staged,
    /// The service runs.
    Running,
}

/// Kexec of a kernel with CONFIG_IMA_KEXEC, which carries the staged and the current list to the
/// next kernel: no record is lost or stored twice. Then, with more records than the next kernel's
/// buffer has space for: the service reports a loss at kexec.
pub fn staged(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let lasting = Lasting::new()?;
    let mut machine = lab.boot(kernel, &lasting.plan())?;
    for (round, at) in [At::Stopped, At::Killed, At::Staged, At::Running].into_iter().enumerate() {
        mount_disk(&mut machine, "/disk")?;
        let service = Service::start(&mut machine, STATE, &[])?;
        service.consistent(&mut machine)?;
        let dir = |part: u32| format!("/measured-{round}-{part}");
        match at {
            At::Stopped => {
                machine.measure(Files::new(dir(0), FILES))?;
                machine.measure(Files::new(dir(1), FILES))?;
                load_kernel(&mut machine, kernel)?;
                service.consistent(&mut machine)?;
                service.stop(&mut machine)?;
            }
            At::Killed | At::Staged => {
                service.kill(&mut machine)?;
                machine.measure(Files::new(dir(0), FILES))?;
                if at == At::Staged {
                    stage(&mut machine)?;
                }
                machine.measure(Files::new(dir(1), FILES))?;
                load_kernel(&mut machine, kernel)?;
            }
            At::Running => {
                machine.measure(Files::new(dir(0), FILES))?;
                load_kernel(&mut machine, kernel)?;
                machine.measure(Files::new(dir(1), 1))?;
            }
        }
        let carried = count(&mut machine)?;
        machine.leave(&Ask::Kexec)?;
        report.saw(&format!("{at:?}: records in the current list before kexec"), carried);
    }
    mount_disk(&mut machine, "/disk")?;
    let service = Service::start(&mut machine, STATE, &[])?;
    let status = service.consistent(&mut machine)?;
    must(status["epoch"] == 1, || format!("after kexec: epoch {}", status["epoch"]))?;
    service.kill(&mut machine)?;
    // Reading the store adds records, so the snapshot comes second.
    let kept = stored(&mut machine, STATE, 1)?;
    let now = machine.snapshot()?;
    let whole = whole(&kept, &now);
    let replayed = replay_list(&whole, &now)?;
    report.saw("records of five kernels, replayed to the PCR", replayed.records);
    let records = parsed(&whole, Bank::Sha1)?;
    for round in 0..4 {
        each_once(&records, &format!("/measured-{round}-0"), FILES)?;
        let files = if round == 3 { 1 } else { FILES };
        each_once(&records, &format!("/measured-{round}-1"), files)?;
    }

    load_kernel(&mut machine, kernel)?;
    stage(&mut machine)?;
    machine.measure(Files::new("/too-many", TOO_MANY))?;
    machine.leave(&Ask::Kexec)?;
    mount_disk(&mut machine, "/disk")?;
    let service = Service::start(&mut machine, STATE, &[])?;
    let (code, status) = service.settled(&mut machine)?;
    let verdict = &status["verdict"];
    must(code == 1 && verdict["cause"] == "lost-at-kexec", || {
        format!("{TOO_MANY} records after the load: expected a loss at kexec: {status}")
    })?;
    report.saw("a buffer that is too small", &verdict["text"]);
    service.stop(&mut machine)?;
    machine.power_off()
}

/// Stages the current list, as an agent does that is killed before it deletes.
fn stage(machine: &mut Machine) -> Result<(), LabError> {
    let path = format!("{LIST}/binary_runtime_measurements_staged");
    machine.write(path.as_bytes(), 0o660, b"A\n")
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
