//! Policy rules that exclude the view and the store.

use std::{fs, path::Path};

use crate::{
    error::{Doing, LabError, must},
    kernel::Kernel,
    lab::{LIST, Lab},
    machine::{Machine, Plan},
    scenario::{
        report::Report,
        service::{Service, stored},
        signed::{make_disk, mount_disk},
    },
    wire::Files,
};

const STATE: &str = "/disk/state";
const VIEW: &str = "/run/view";
/// Reads of view and store.
const READS: u64 = 3;

/// `ima_policy=tcb` measures the view at every open, and the store on a disk; two rules exclude
/// both and nothing else.
pub fn policy(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let dir = tempfile::tempdir().doing("temporary directory")?;
    let disk = dir.path().join("disk");
    make_disk(&disk, 32)?;
    let rules = rules(&uuid(&disk)?);
    let mut machine = lab.boot(kernel, &Plan { disk: Some(disk), ..Plan::default() })?;
    mount_disk(&mut machine, "/disk")?;
    let service = Service::start(&mut machine, STATE, &["--view", VIEW])?;

    let tcb = read_both(&mut machine, &service, "/with-tcb")?;
    report.saw("tcb", &tcb);
    must(tcb.files == READS && tcb.view >= READS && tcb.state > 0, || format!("tcb: {tcb}"))?;

    machine.write(format!("{LIST}/policy").as_bytes(), 0o600, rules.as_bytes())?;
    let ruled = read_both(&mut machine, &service, "/with-rules")?;
    report.saw("with the rules", &ruled);
    must(ruled.files == READS && ruled.view == 0 && ruled.state == 0, || {
        format!("with the rules: {ruled}")
    })?;
    service.stop(&mut machine)?;
    machine.power_off()
}

/// New records, by measured file.
struct Came {
    files: u64,
    view: u64,
    state: u64,
}

impl std::fmt::Display for Came {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Came { files, view, state } = self;
        write!(f, "{files} records of {READS} files, {view} of the view, {state} of the store")
    }
}

/// Has a file measured, then reads the view and the store, [`READS`] times.
fn read_both(machine: &mut Machine, service: &Service, dir: &str) -> Result<Came, LabError> {
    let before = machine.snapshot()?;
    for first in 0..READS {
        machine.measure(Files { dir: dir.to_owned(), first, count: 1, size: 50 })?;
        service.consistent(machine)?;
        machine.read(&format!("{VIEW}/ascii_runtime_measurements"))?;
        stored(machine, STATE, 1)?;
    }
    service.consistent(machine)?;
    let after = machine.snapshot()?;
    let (before, after) = (before.ascii(), after.ascii());
    let came = after.strip_prefix(before.as_str()).unwrap_or_default();
    let below = |dir: &str| {
        let start = format!(" {dir}/");
        came.lines().filter(|line| line.contains(&start)).count() as u64
    };
    Ok(Came { files: below(dir), view: below(VIEW), state: below(STATE) })
}

/// The kernel's `tcb` policy, preceded by the two rules (Documentation/ABI/testing/ima_policy).
/// Files executed from FUSE or from the disk are still measured.
fn rules(uuid: &str) -> String {
    /// File systems that tcb excludes: proc, sysfs, debugfs, devpts, binfmt_misc, securityfs,
    /// cgroup, cgroup2, nsfs.
    const LEFT_OUT: [u32; 9] = [
        0x9fa0,
        0x6265_6572,
        0x6462_6720,
        0x1cd1,
        0x4249_4e4d,
        0x7363_6673,
        0x0027_e0eb,
        0x6367_7270,
        0x6e73_6673,
    ];
    const TMPFS: u32 = 0x0102_1994;
    const FUSE: u32 = 0x6573_5546;
    let mut rules = format!(
        "dont_measure func=FILE_CHECK fsmagic={FUSE:#x}\n\
         dont_measure func=FILE_CHECK fsuuid={uuid}\n\
         dont_measure func=FILE_CHECK fsmagic={TMPFS:#x}\n"
    );
    for magic in LEFT_OUT {
        rules += &format!("dont_measure fsmagic={magic:#x}\n");
    }
    rules
        + "measure func=MMAP_CHECK mask=MAY_EXEC\n\
           measure func=BPRM_CHECK mask=MAY_EXEC\n\
           measure func=FILE_CHECK mask=^MAY_READ euid=0\n\
           measure func=FILE_CHECK mask=^MAY_READ uid=0\n\
           measure func=MODULE_CHECK\n\
           measure func=FIRMWARE_CHECK\n\
           measure func=POLICY_CHECK\n"
}

/// The UUID of an ext4 file system: `s_uuid` of the superblock at byte 1024.
fn uuid(disk: &Path) -> Result<String, LabError> {
    const AT: usize = 1024 + 0x68;
    let content = fs::read(disk).at(disk)?;
    let digits = hex::encode(content.get(AT..AT + 16).unwrap_or_default());
    let mut rest = digits.as_str();
    let mut groups = Vec::new();
    for size in [8, 4, 4, 4, 12] {
        let Some((group, after)) = rest.split_at_checked(size) else {
            return Err(LabError::Refuted(format!("{}: no ext4 superblock", disk.display())));
        };
        groups.push(group);
        rest = after;
    }
    Ok(groups.join("-"))
}
