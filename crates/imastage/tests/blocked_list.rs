//! `imastage run` on a list that cannot be opened for writing: inherited descriptors, holders in other
//! namespaces, a kernel that has lost the list's lock.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use imastage_sandbox::control::{Answer, Command as Ask, ask};
use imastage_source::{Holders, Sight};
use serde_json::Value;

#[allow(dead_code)]
mod common;

use common::{Machine, Running, command, finding, findings, imastage, says, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_imastage");

/// A machine on which only requested files are measured.
fn machine(extra: &[&str]) -> Option<Machine> {
    Machine::start_with(extra)
}

/// The number of records in the kernel's list.
fn in_list(machine: &Machine) -> u64 {
    match ask(Path::new(&machine.mount()), &Ask::Status, &mut |_| {}).unwrap() {
        Answer::Status(status) => status.current + status.staged,
        other => panic!("{other:?}"),
    }
}

fn measure(machine: &Machine, prefix: &str, count: usize) {
    let paths = machine.files(prefix, count);
    ask(Path::new(&machine.mount()), &Ask::Measure { paths }, &mut |_| {}).unwrap();
}

fn status(machine: &Machine) -> Value {
    imastage(&["--json", "status", "--state", &machine.state()]).json()
}

fn run(machine: &Machine) -> String {
    let (mount, state) = (machine.mount(), machine.state());
    format!("{PROGRAM} --json run --source {mount} --state {state} --every 20")
}

/// A service that a shell starts, and ready.
fn shell(script: &str) -> Running {
    let mut service = Running::of(Command::new("bash").args(["-c", script]));
    service.wait_until_ready();
    service
}

fn assert_drains(machine: &Machine, service: Running) {
    measure(machine, "drained", 10);
    wait_until("all records are deleted", || in_list(machine) == 0);
    assert_eq!(status(machine)["since_start"]["last_error"], Value::Null);
    assert_eq!(service.stop(), 0);
}

/// Whether this process, and so a service that it starts, sees all processes.
fn sees_all(machine: &Machine) -> bool {
    let sight = Holders::find(Path::new(&machine.mount())).sight;
    if sight != Sight::Complete {
        eprintln!("SKIPPED: {sight}");
    }
    sight == Sight::Complete
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: needs root");
    }
    is_root
}

/// What Linux 7.2 gets wrong: a thread opens two files for writing, and another one closes both.
fn lose_lock(machine: &Machine) {
    let path = Path::new(&machine.mount()).join("binary_runtime_measurements_staged");
    let open = || File::options().write(true).open(&path);
    thread::scope(|scope| {
        let (opened, when_opened) = mpsc::channel();
        let opening = scope.spawn(move || {
            let mut first = None;
            wait_until("the list is not in use", || {
                first = open().ok();
                first.is_some()
            });
            opened.send([first.unwrap(), open().unwrap()]).unwrap();
            // The kernel compares the closing thread with a live one.
            thread::park();
        });
        drop(when_opened.recv().unwrap());
        opening.thread().unpark();
    });
    let refused = open().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ResourceBusy);
}

fn metrics(state: &str) -> String {
    let mut api = UnixStream::connect(Path::new(state).join("api.sock")).unwrap();
    api.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    api.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn inherited_list_file_does_not_keep_the_list_in_use() {
    let Some(machine) = machine(&[]) else { return };
    let list = format!("{}/binary_runtime_measurements", machine.mount());
    let script = format!("exec 3<{list} 7<{list}; exec {}", run(&machine));
    assert_drains(&machine, shell(&script));
}

#[test]
fn list_file_as_standard_input_does_not_keep_the_list_in_use() {
    let Some(machine) = machine(&[]) else { return };
    let list = format!("{}/ascii_runtime_measurements", machine.mount());
    assert_drains(&machine, shell(&format!("exec {} <{list}", run(&machine))));
}

#[test]
fn list_file_as_standard_output_is_refused() {
    let Some(machine) = machine(&[]) else { return };
    let (mount, state) = (machine.mount(), machine.state());
    let held = File::open(format!("{mount}/binary_runtime_measurements")).unwrap();
    let refused =
        command(&["run", "--source", &mount, "--state", &state]).stdout(held).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("descriptor 1 is ") && text.contains("binary_runtime"), "{text}");
}

#[test]
fn lost_lock_is_reported_and_records_are_stored() {
    let Some(machine) = machine(&["--hazard", "lock-books"]) else { return };
    if !sees_all(&machine) {
        return;
    }
    let (mount, state) = (machine.mount(), machine.state());
    let (log, told) = (machine.path("log"), machine.path("told"));
    let alert = format!("touch {told}-$IMASTAGE_STATE");
    let args = ["run", "--source", &mount, "--state", &state, "--every", "20", "--alert", &alert];
    let mut service = Running::of(command(&args).stderr(File::create(&log).unwrap()));
    service.wait_until_ready();
    measure(&machine, "before", 10);
    wait_until("all records are deleted", || in_list(&machine) == 0);
    let stored = status(&machine)["records"].as_u64().unwrap();

    lose_lock(&machine);
    measure(&machine, "after", 10);
    wait_until("the lock is lost", || status(&machine)["health"]["state"] == "lock-lost");
    wait_until("the alert command runs", || Path::new(&format!("{told}-lock-lost")).exists());
    let told_at_once = |text: &str| {
        let line = text.lines().find(|line| line.contains("lost the list's lock")).unwrap();
        for part in ["until reboot", "stored as before", "none is lost", "plan a reboot"] {
            assert!(line.contains(part), "{part}: {text}");
        }
    };
    let answer = imastage(&["status", "--state", &state]);
    assert_eq!(answer.code, 3, "{}", answer.text());
    told_at_once(answer.text().lines().next().unwrap());
    told_at_once(&fs::read_to_string(&log).unwrap());
    let metrics = metrics(&state);
    assert!(metrics.contains("\nimastage_health{state=\"lock-lost\"} 1\n"), "{metrics}");
    let doctor = imastage(&["--json", "doctor", "--source", &mount, "--state", &state]);
    let report = doctor.json();
    assert_eq!(doctor.code, 1, "{report:#}");
    let found = finding(&report, "state.health", "problem");
    says(found, "found", "lost the list's lock");
    says(found, "fix", "reboot");
    finding(&report, "agents.holders", "ok");

    // A reader explains a refused open, but does not refute a lost lock.
    let reader = File::open(format!("{mount}/ascii_runtime_measurements")).unwrap();
    for round in 0..5 {
        measure(&machine, &format!("more-{round}"), 5);
        let expected = stored + 10 + 5 * (round + 1);
        wait_until("the records are stored", || status(&machine)["records"] == expected);
        assert_eq!(status(&machine)["health"]["state"], "lock-lost");
        assert_eq!(status(&machine)["verdict"]["state"], "consistent");
    }
    drop(reader);
    assert_eq!(in_list(&machine), 35);
    assert_eq!(service.stop(), 0);
    let log = fs::read_to_string(&log).unwrap();
    assert_eq!(log.matches("lost the list's lock").count(), 1, "{log}");

    // The next service finds the list as it is.
    measure(&machine, "stopped", 5);
    let service = shell(&format!("exec {}", run(&machine)));
    wait_until("the lock is lost", || status(&machine)["health"]["state"] == "lock-lost");
    assert_eq!(status(&machine)["records"], stored + 40);
    assert_eq!(service.stop(), 0);
}

#[test]
fn service_that_cannot_see_all_processes_names_the_missing_permission() {
    if !is_root() {
        return;
    }
    let without_ptrace = "setpriv --bounding-set -sys_ptrace";
    let in_namespace = "unshare --pid --fork --kill-child --mount-proc";
    for (wrapper, part) in [(without_ptrace, "CAP_SYS_PTRACE"), (in_namespace, "PID namespace")] {
        let Some(machine) = machine(&["--hazard", "lock-books"]) else { return };
        lose_lock(&machine);
        measure(&machine, "after", 10);
        let service = shell(&format!("exec {wrapper} {}", run(&machine)));
        // More refusals than a lost lock takes.
        wait_until("the list stays in use", || {
            status(&machine)["since_start"]["busy"].as_u64().unwrap() >= 15
        });
        let status = status(&machine);
        assert_eq!(status["health"]["state"], "busy", "{status}");
        let reason = status["health"]["reason"].as_str().unwrap();
        assert!(reason.contains("not visible") && reason.contains(part), "{reason}");
        assert!(reason.starts_with("records are stored and cannot be deleted"), "{reason}");
        assert_eq!(status["records"], 11);
        service.kill();
    }
}

#[test]
fn holder_in_another_namespace_or_under_another_name_is_named() {
    if !is_root() {
        return;
    }
    let Some(machine) = machine(&[]) else { return };
    let list = format!("{}/binary_runtime_measurements", machine.mount());
    let other = machine.path("log");
    File::create(&other).unwrap();
    let renamed = format!("mount --bind {list} {other} && exec 9<{other} && echo && read");
    let holders = [
        vec!["--pid", "--fork", "bash", "-c", "exec 9<\"$0\" && echo && read", &list],
        vec!["--mount", "bash", "-c", &renamed],
    ];
    let service = shell(&format!("exec {}", run(&machine)));
    for args in holders {
        let mut holder = Command::new("unshare")
            .args(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The list may be in use when the holder opens it.
        assert_eq!(holder.stdout.as_mut().unwrap().read(&mut [0]).unwrap(), 1, "{args:?}");
        measure(&machine, args[0], 5);
        wait_until("the holder is named", || {
            let status = status(&machine);
            let reason = status["health"]["reason"].to_string();
            assert_ne!(status["health"]["state"], "lock-lost", "{reason}");
            status["health"]["state"] == "busy" && reason.contains("in use by bash (pid ")
        });
        let (mount, state) = (machine.mount(), machine.state());
        let report = imastage(&["--json", "doctor", "--source", &mount, "--state", &state]).json();
        says(findings(&report, "agents.holders")[0], "found", "kept open by bash (pid ");
        drop(holder.stdin.take());
        holder.wait().unwrap();
        wait_until("all records are deleted", || in_list(&machine) == 0);
    }
    assert_eq!(service.stop(), 0);
}
