//! The state directory: whether it can store records, and for how long.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use imastage_store::{Reader, StoreError};
use rustix::fs::{Access, StatVfsMountFlags};

use imastage_client::{
    Client,
    health::{Condition, Level, State},
    wire::Status,
};

use crate::{
    finding::{
        Finding,
        Severity::{Note, Ok as Fine, Problem, Unknown, Warning},
        bytes, count,
    },
    list::List,
    machine::Machine,
};

pub(crate) fn examine(state: &Path, findings: &mut Vec<Finding>) {
    let shown = state.display();
    let check = "state.directory";
    let place = existing(state);
    let is_there = place == state;
    let meta = match fs::metadata(place) {
        Ok(meta) => meta,
        Err(error) => {
            let finding = Finding::new(check, Unknown, format!("{shown}: cannot look: {error}"))
                .why("whether records can be kept there is not known")
                .fix(format!("run as a user who may enter {}", place.display()));
            findings.push(finding);
            return;
        }
    };
    if !meta.is_dir() {
        let finding = Finding::new(check, Problem, format!("{} is no directory", place.display()))
            .why("records are kept in files below it")
            .fix("give another directory with --state");
        findings.push(finding);
        return;
    }
    match rustix::fs::access(place, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if is_there => {
            findings.push(Finding::new(check, Fine, format!("{shown} can be written")));
        }
        Ok(()) => {
            let finding = Finding::new(check, Note, format!("{shown} is not there yet"))
                .why("imastage run makes it, for its owner's eyes only");
            findings.push(finding);
        }
        Err(error) => {
            let found = format!("{} cannot be written: {error}", place.display());
            let finding = Finding::new(check, Problem, found)
                .why("nothing is deleted from the kernel before it is stored there")
                .fix("run as the service's user, or give another directory with --state");
            findings.push(finding);
        }
    }
    // With --group, that group can enter the directory, and nothing else.
    let is_for_group = meta.permissions().mode() & 0o077 == 0o010;
    if is_there && is_for_group {
        let found = format!("group {} may enter {shown} to use the service", meta.gid());
        findings.push(Finding::new("state.mode", Fine, found));
    } else if is_there && meta.permissions().mode() & 0o077 != 0 {
        let found = format!("{shown} is open to others (mode {:o})", meta.mode() & 0o7777);
        let finding = Finding::new("state.mode", Warning, found)
            .why("what runs on this machine is for its owner's eyes")
            .fix("close it:")
            .lines([format!("chmod 700 {shown}")]);
        findings.push(finding);
    }
    file_system(place, findings);
    if is_there {
        store(state, findings);
    }
}

/// The time until the free space is used up, at the present growth of the list.
pub(crate) fn examine_growth(
    state: &Path,
    machine: &Machine,
    list: Option<&List>,
    findings: &mut Vec<Finding>,
) {
    /// Before that, the rate is that of the boot.
    const SETTLED: u64 = 3600;
    const YEAR: u64 = 365;
    let check = "state.space";
    let (Some(list), Ok(space)) = (list, rustix::fs::statvfs(existing(state))) else { return };
    if space.f_blocks == 0 {
        // ramfs, which has no size, and is reported elsewhere.
        return;
    }
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let in_list = list.bytes;
    if free < in_list.saturating_mul(2) {
        let found = format!("{} are free, the list has {}", bytes(free), bytes(in_list));
        let finding = Finding::new(check, Problem, found)
            .why("records that cannot be stored stay in the kernel, whose memory then grows")
            .fix("make room, or give a directory on another file system with --state");
        findings.push(finding);
        return;
    }
    let stored = Reader::open(state).map_or(0, |reader| reader.bytes());
    let uptime = machine
        .value("/proc/uptime")
        .and_then(|text| text.split('.').next().and_then(|seconds| seconds.parse::<u64>().ok()));
    let days = uptime.filter(|uptime| *uptime >= SETTLED && machine.is_kernel).map(|uptime| {
        let per_day = (in_list.max(stored) as u128 * 86_400 / u128::from(uptime)).max(1);
        u64::try_from(u128::from(free) / per_day).unwrap_or(u64::MAX)
    });
    findings.push(match days {
        Some(days) if days < YEAR => {
            let found = format!(
                "{} are free: enough for {} at the rate since boot",
                bytes(free),
                count(days, "day")
            );
            Finding::new(check, Warning, found)
                .why("all records since boot are kept; when the disk is full, draining stops")
                .fix("make room, or watch it")
        }
        Some(days) if days < 100 * YEAR => {
            let found = format!("{} are free: years at the rate since boot", bytes(free));
            Finding::new(check, Fine, format!("{found} ({})", count(days / YEAR, "year")))
        }
        _ => Finding::new(check, Fine, format!("{} are free", bytes(free))),
    });
}

fn file_system(place: &Path, findings: &mut Vec<Finding>) {
    let check = "state.file-system";
    let Ok(found) = rustix::fs::statfs(place) else { return };
    // Signed or not, as wide or wider: that differs between architectures.
    #[allow(clippy::unnecessary_cast)]
    let magic = found.f_type as u64 & 0xffff_ffff;
    // linux/magic.h
    let (name, severity, why) = match magic {
        0x0102_1994 => ("tmpfs", Problem, FORGETS),
        0x8584_58f6 => ("ramfs", Problem, FORGETS),
        0x6969 => ("NFS", Warning, ELSEWHERE),
        0xff53_4d42 | 0xfe53_4d42 => ("SMB", Warning, ELSEWHERE),
        0x0102_1997 => ("9P", Warning, ELSEWHERE),
        0x6573_5546 => ("FUSE", Warning, ELSEWHERE),
        0x794c_7630 => {
            ("overlayfs", Warning, "a container's own layer goes when the container does")
        }
        0xef53 => ("ext4", Fine, ""),
        0x5846_5342 => ("XFS", Fine, ""),
        0x9123_683e => ("Btrfs", Fine, ""),
        0xf2f5_2010 => ("F2FS", Fine, ""),
        0x2fc1_2fc1 => ("ZFS", Fine, ""),
        _ => return,
    };
    let found = format!("the state directory is on {name}");
    let finding = Finding::new(check, severity, found).why(why);
    findings.push(match severity {
        Fine => finding,
        _ => finding.fix("give a directory on a local disk with --state"),
    });
    if rustix::fs::statvfs(place)
        .is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY))
    {
        let finding = Finding::new("state.read-only", Problem, "its file system is read-only")
            .why("nothing is deleted from the kernel before it is stored there")
            .fix("mount it writable; if it became read-only by itself, see dmesg for the disk");
        findings.push(finding);
    }
}

const FORGETS: &str = "a reboot or kexec forgets what is in memory, also the records that only the \
                       service still had";
const ELSEWHERE: &str = "records count as stored once fsync returns; over a network, or through \
                         another program, that may promise too much";

/// The stored records, and whether they are intact.
fn store(state: &Path, findings: &mut Vec<Finding>) {
    const MOST: usize = 5;
    let check = "state.store";
    if let Some(status) = service(state) {
        let pid = status.pid.unwrap_or_default();
        let found =
            format!("a service runs (pid {pid}), {} stored", count(status.records, "record"));
        findings.push(Finding::new("state.service", Fine, found));
        findings.extend(status.health.conditions.iter().take(MOST).map(says));
        return;
    }
    match imastage_store::check(state) {
        Ok(report) if report.records == 0 && report.damage.is_empty() => {}
        Ok(report) if report.damage.is_empty() => {
            let found = format!("{} stored, all whole", count(report.records, "record"));
            findings.push(Finding::new(check, Fine, found));
        }
        Ok(report) => {
            let damaged = report.damage.iter().take(MOST);
            findings.extend(damaged.map(|damage| {
                Finding::new(check, Problem, damage.to_string())
                    .why("what is damaged cannot be verified, nor can what comes after it")
                    .fix(damage.remedy.to_string())
            }));
        }
        // A new one is created there.
        Err(StoreError::NotAStore { .. } | StoreError::Empty { .. }) => {}
        Err(error) => {
            let finding = Finding::new(check, Problem, error.to_string())
                .why("the service cannot go on with what is stored there")
                .fix(
                    "run as the service's user; if the files are damaged, restore them from a copy",
                );
            findings.push(finding);
        }
    }
}

/// The service's own status.
fn says(condition: &Condition) -> Finding {
    let finding = |severity| {
        let found = format!("the service says: {}", condition.reason);
        Finding::new("state.health", severity, found)
    };
    match (condition.state, condition.state.level()) {
        (State::LockLost, _) => finding(Problem)
            .why("the kernel's memory for the list is not freed; the list grows until reboot")
            .fix("plan a reboot; the service can keep running until then"),
        (_, level) => finding(if level == Level::Evidence { Problem } else { Warning })
            .why("what it stores cannot be relied on before that is repaired")
            .fix("imastage status tells more"),
    }
}

/// The status of the service that uses this directory; `None` without one.
pub(crate) fn service(state: &Path) -> Option<Status> {
    Client::of_state(state).ok()?.status().ok()
}

/// The directory, or its nearest existing ancestor.
fn existing(state: &Path) -> &Path {
    let is_missing = |path: &&Path| {
        fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    let found = state.ancestors().find(|path| !is_missing(path));
    match found {
        // A relative path's last ancestor.
        Some(path) if path.as_os_str().is_empty() => Path::new("."),
        Some(path) => path,
        None => Path::new("."),
    }
}
