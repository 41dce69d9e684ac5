//! The permissions of the caller: a service of the same user has no others.

use std::{fs, os::unix::fs::MetadataExt};

use crate::{
    finding::{
        Finding,
        Severity::{Note, Ok as Fine, Problem, Warning},
    },
    machine::Machine,
};

/// capabilities(7).
const CAP_SYS_ADMIN: u32 = 21;

pub(crate) fn examine(machine: &Machine, findings: &mut Vec<Finding>) {
    let status = machine.text("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(str::split_whitespace)
    };
    // Real, effective, saved.
    let is_root = field("Uid:").and_then(|mut ids| ids.nth(1)) == Some("0");
    let capabilities = field("CapEff:").and_then(|mut words| words.next());
    let capabilities = capabilities.and_then(|hex| u64::from_str_radix(hex, 16).ok());
    if machine.is_kernel
        && let Some(capabilities) = capabilities
    {
        findings.push(capability(is_root, capabilities >> CAP_SYS_ADMIN & 1 == 1));
    }
    files(machine, findings);
    fuse(machine, is_root, findings);
}

fn capability(is_root: bool, has_it: bool) -> Finding {
    let check = "access.capability";
    if has_it {
        return Finding::new(
            check,
            Fine,
            "CAP_SYS_ADMIN is there: the list can be held for writing",
        );
    }
    let why = "the kernel lets nobody without it open the list for writing (EPERM)";
    if is_root {
        Finding::new(check, Problem, "root is here without CAP_SYS_ADMIN")
            .why(why)
            .fix("in a container, run the service outside it, or give it that capability")
    } else {
        Finding::new(check, Warning, "CAP_SYS_ADMIN is missing")
            .why(format!("{why}: a service that you run yourself can only follow"))
            .fix("run the service as root or with AmbientCapabilities=CAP_SYS_ADMIN; run this as root")
    }
}

/// The owner of the list's files.
fn files(machine: &Machine, findings: &mut Vec<Finding>) {
    let path = machine.source.join("binary_runtime_measurements");
    let Ok(meta) = fs::metadata(path) else { return };
    if !machine.is_kernel {
        return;
    }
    let found = match meta.gid() {
        0 => "root alone may read the list's files".to_owned(),
        gid => format!("group {gid} may read the list's files"),
    };
    findings.push(Finding::new("access.files", Fine, found));
    if meta.mode() & 0o004 != 0 {
        let finding = Finding::new("access.files", Note, "everybody may read the list's files")
            .why("anyone who keeps one open keeps the service from staging")
            .fix("close them (a kernel makes them 0440 or 0660)");
        findings.push(finding);
    }
}

/// The view requires FUSE.
fn fuse(machine: &Machine, is_root: bool, findings: &mut Vec<Finding>) {
    let check = "access.fuse";
    let path = machine.path("/dev/fuse");
    let no_view = "without FUSE there is no view for agents that read the list themselves";
    if !path.exists() {
        let finding = Finding::new(check, Warning, "there is no /dev/fuse")
            .why(no_view)
            .fix("load the module, or build the kernel with CONFIG_FUSE_FS:")
            .lines(["modprobe fuse".to_owned()]);
        findings.push(finding);
        return;
    }
    let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
    if let Err(error) = rustix::fs::access(&path, access) {
        let finding = Finding::new(check, Warning, format!("/dev/fuse cannot be used: {error}"))
            .why(no_view)
            .fix("run as root, or have the device's mode or group changed");
        findings.push(finding);
        return;
    }
    if is_root {
        findings.push(Finding::new(check, Fine, "/dev/fuse can be used"));
        return;
    }
    let is_there = |dir: &&str| machine.path(&format!("{dir}/fusermount3")).exists();
    if !["/usr/bin", "/bin", "/usr/local/bin"].iter().any(is_there) {
        let finding = Finding::new(check, Warning, "there is no fusermount3")
            .why("without root, FUSE file systems are mounted by that program")
            .fix("install it:")
            .lines(["apt-get install fuse3".to_owned()]);
        findings.push(finding);
        return;
    }
    let config = machine.text("/etc/fuse.conf").unwrap_or_default();
    if config.lines().any(|line| line.trim() == "user_allow_other") {
        findings.push(Finding::new(check, Fine, "/dev/fuse can be used, and others let in"));
    } else {
        let finding = Finding::new(check, Warning, "a view of yours is for yourself only")
            .why("agents run as other users, and FUSE keeps those out")
            .fix("run the service as root, or write into /etc/fuse.conf:")
            .lines(["user_allow_other".to_owned()]);
        findings.push(finding);
    }
}
