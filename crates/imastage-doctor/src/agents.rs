//! The programs that read the kernel's files: at the moment, and by configuration.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use imastage_source::{Holder, Holders, ListService, Sight};

use crate::{
    finding::{
        Examination, Finding,
        Severity::{self, Note, Ok as Fine, Problem},
        pointing,
    },
    kernel::Kernel,
    keylime,
    machine::{Machine, entries, read_text},
    state,
};

/// The common parts of all paths of the kernel's lists, by both names of the directory.
const KERNEL_DIRS: [&str; 2] = ["/sys/kernel/security/ima/", "/sys/kernel/security/integrity/ima/"];
const LIST: &str = "_runtime_measurements";

pub(crate) fn examine(
    machine: &Machine,
    kernel: &Kernel,
    Examination { state, view, .. }: &Examination,
    findings: &mut Vec<Finding>,
) {
    let severity = if kernel.can_delete { Problem } else { Note };
    let mut holders = lasting_holders(&machine.source);
    // The service keeps the file open if it can only follow the list.
    let service = state::service(state).and_then(|status| status.pid);
    let on_list = imastage_source::service_of(&machine.source);
    if let Some(other) = on_list.filter(|other| Some(other.pid) != service) {
        findings.push(other_service(&other, state));
    }
    holders.found.retain(|holder| {
        // A file that this program inherited is closed when it exits. The service's list is open in
        // a child of it.
        holder.pid != std::process::id()
            && Some(holder.pid) != service
            && (service.is_none() || imastage_source::parent(holder.pid) != service)
    });
    findings.push(holding(&holders, severity));
    if machine.is_kernel {
        keylime::examine(machine, severity, view, findings);
        mentions(machine, severity, view, findings);
        command_lines(machine, &holders, severity, view, findings);
    }
}

/// A service with another state directory has the list's lock.
fn other_service(ListService { pid, state: theirs }: &ListService, state: &Path) -> Finding {
    let (where_, fix) = match theirs {
        Some(theirs) => (
            format!("state directory {}", theirs.display()),
            format!(
                "examine that one with --state {}; a service beside it can only follow \
                 (--delete-mode none)",
                theirs.display()
            ),
        ),
        None => (
            "its state directory is not known".to_owned(),
            "stop it, or start a service beside it with --delete-mode none".to_owned(),
        ),
    };
    let found = format!("another service (pid {pid}, {where_}) deletes from this list");
    Finding::new("agents.service", Problem, found)
        .why(format!(
            "a list has one service that deletes: one with the state directory {} does not start, and \
             what was deleted is not stored there",
            state.display()
        ))
        .fix(fix)
}

/// A process that reads the list once has it open for a moment; one found twice keeps it open.
fn lasting_holders(dir: &Path) -> Holders {
    let first = Holders::find_thoroughly(dir);
    if first.found.is_empty() {
        return first;
    }
    thread::sleep(Duration::from_millis(300));
    let mut second = Holders::find_thoroughly(dir);
    second.found.retain(|holder| first.found.contains(holder));
    second
}

fn holding(holders: &Holders, severity: Severity) -> Finding {
    let check = "agents.holders";
    match (holders.found.is_empty(), holders.sight) {
        (true, Sight::Complete) => {
            return Finding::new(check, Fine, "no process keeps the list's files open");
        }
        (true, sight) => {
            let found = "no visible process keeps the list's files open";
            return Finding::new(check, Note, found)
                .why("a hidden process that keeps one open prevents staging and deletion (EBUSY)")
                .fix(sight.to_string());
        }
        _ => {}
    }
    let why = if severity == Problem {
        "as long as anyone has one of them open, for reading too, nobody can stage or delete (EBUSY)"
    } else {
        "harmless on this kernel; on one that deletes records it would keep the service from it"
    };
    let names: BTreeSet<&str> = holders.found.iter().map(|holder| holder.name.as_str()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    Finding::new(check, severity, format!("the list's files are kept open by {holders}"))
        .why(why)
        .fix(format!(
            "point {} at the view (see the other findings), and restart it",
            names.join(", ")
        ))
}

/// The list in a line of configuration, and the line with the view instead.
fn redirect(line: &str, view: &Path) -> Option<String> {
    let begin = KERNEL_DIRS.iter().find_map(|dir| {
        let at = line.find(dir)?;
        let file = &line[at + dir.len()..];
        let end = file.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(file.len());
        file[..end].contains(LIST).then_some((at, dir.len()))
    });
    let (at, len) = begin?;
    let (before, after) = (&line[..at], &line[at + len..]);
    Some(format!("{before}{}/{after}", view.display()))
}

/// Configuration that names the kernel's files, of tpm2-tss (FAPI), osquery, systemd units (IBM
/// ACS, CHARRA and whatever else is started with a path) and cron.
fn mentions(machine: &Machine, severity: Severity, view: &Path, findings: &mut Vec<Finding>) {
    const MOST_IN_A_FILE: usize = 5;
    let mut seen = BTreeSet::new();
    for path in configuration(machine) {
        // A directory can have two names.
        let Ok(real) = fs::canonicalize(&path) else { continue };
        if !seen.insert(real) {
            continue;
        }
        let Ok(text) = read_text(&path) else { continue };
        let name = machine.name(&path);
        let is_comment = |line: &str| line.trim_start().starts_with(['#', ';']);
        let lines = text.lines().enumerate().filter(|(_, line)| !is_comment(line));
        let lines = lines.filter(|(_, line)| !line.contains(keylime::VARIABLE));
        let redirected = lines.filter_map(|(i, line)| Some((i + 1, redirect(line, view)?)));
        for (number, line) in redirected.take(MOST_IN_A_FILE) {
            let found = format!(
                "{} reads the kernel's list ({}:{number})",
                program(&name, &line),
                name.display()
            );
            let finding = pointing("agents.configuration", severity, found)
                .fix("have that line say:")
                .lines([line.trim().to_owned()]);
            findings.push(finding);
        }
    }
}

fn configuration(machine: &Machine) -> Vec<PathBuf> {
    const FILES: [&str; 3] = [
        "/etc/tpm2-tss/fapi-config.json",
        "/usr/local/etc/tpm2-tss/fapi-config.json",
        "/etc/crontab",
    ];
    const DIRS: [&str; 8] = [
        "/etc/osquery",
        "/etc/default",
        "/etc/sysconfig",
        "/etc/cron.d",
        "/etc/systemd/system",
        "/run/systemd/system",
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
    ];
    let mut paths: Vec<PathBuf> = FILES.iter().map(|file| machine.path(file)).collect();
    for path in DIRS.iter().flat_map(|dir| machine.files(dir)) {
        // Drop-ins and packs are one level below.
        if path.is_dir() {
            paths.extend(entries(&path));
        } else {
            paths.push(path);
        }
    }
    paths.retain(|path| path.is_file());
    paths
}

/// The program of a configuration file.
fn program(path: &Path, line: &str) -> String {
    let text = path.to_string_lossy();
    if text.contains("tpm2-tss") {
        return "tpm2-tss (FAPI)".to_owned();
    }
    if text.contains("osquery") {
        return "osquery".to_owned();
    }
    // The option of IBM's attestation client for the list.
    if line.contains("-ifi ") {
        return "IBM ACS".to_owned();
    }
    let unit = path.parent().and_then(Path::file_name).map(|dir| dir.to_string_lossy());
    match unit.as_deref().and_then(|dir| dir.strip_suffix(".d")) {
        Some(unit) if unit.contains('.') => unit.to_owned(),
        _ => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    }
}

/// Running programs that were started with the path of one of the kernel's files.
fn command_lines(
    machine: &Machine,
    holders: &Holders,
    severity: Severity,
    view: &Path,
    findings: &mut Vec<Finding>,
) {
    for (pid, dir) in machine.processes() {
        let is_known = |holder: &Holder| holder.pid == pid;
        if pid == std::process::id() || holders.found.iter().any(is_known) {
            continue;
        }
        let Ok(text) = read_text(&dir.join("cmdline")) else { continue };
        let words: Vec<&str> = text.split('\0').filter(|word| !word.is_empty()).collect();
        let Some(redirected) = words.iter().find_map(|word| redirect(word, view)) else { continue };
        let name = words.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
        let found =
            format!("{} (pid {pid}) was started on the kernel's list", name.to_string_lossy());
        let finding = pointing("agents.process", severity, found)
            .fix("start it on the view instead:")
            .lines([redirected]);
        findings.push(finding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_redirected_and_otherwise_kept() {
        let view = Path::new("/run/view");
        let cases = [
            (
                "ExecStart=/usr/bin/clientrun -ifi /sys/kernel/security/ima/binary_runtime_measurements -v",
                Some("ExecStart=/usr/bin/clientrun -ifi /run/view/binary_runtime_measurements -v"),
            ),
            (
                "\"ima_log_file\": \"/sys/kernel/security/integrity/ima/ascii_runtime_measurements_sha256\",",
                Some("\"ima_log_file\": \"/run/view/ascii_runtime_measurements_sha256\","),
            ),
            ("cat /sys/kernel/security/ima/policy /x_runtime_measurements", None),
            ("/sys/kernel/security/ima/runtime_measurements_count", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(redirect(line, view).as_deref(), expected, "{line}");
        }
    }
}
