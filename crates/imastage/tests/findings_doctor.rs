//! `imastage doctor`: what its users found, by the number of the finding.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

#[allow(dead_code)]
mod common;

use common::{Answer, Machine, Running, finding, findings, imastage, says, wait_until};

fn service(machine: &Machine, state: &str, view: &str) -> Running {
    let source = machine.mount();
    Running::start(&["--json", "run", "--source", &source, "--state", state, "--view", view])
}

fn doctor(machine: &Machine, state: &str, view: &str) -> Answer {
    let source = machine.mount();
    imastage(&["--json", "doctor", "--source", &source, "--state", state, "--view", view])
}

/// Kills a service. Its source process, which would unmount the view if it saw the end of the
/// connection first, is stopped before: the signal that it gets when its parent ends kills it.
fn kill_with_source(service: Running) {
    let mut stopped = 0;
    for task in fs::read_dir(format!("/proc/{}/task", service.pid())).unwrap() {
        let children = fs::read_to_string(task.unwrap().path().join("children")).unwrap();
        for child in children.split_whitespace() {
            let child = rustix::process::Pid::from_raw(child.parse().unwrap()).unwrap();
            rustix::process::kill_process(child, rustix::process::Signal::STOP).unwrap();
            stopped += 1;
        }
    }
    assert_eq!(stopped, 1, "the source process is not a child of the service");
    service.kill();
}

#[test]
fn users_16_a_dead_view_and_a_dead_source_are_named() {
    let Some(machine) = Machine::start() else { return };
    let (state, view) = (machine.state(), machine.path("view"));
    let running = service(&machine, &state, &view);
    let report = doctor(&machine, &state, &view).json();
    says(finding(&report, "view.mount", "ok"), "found", &view);

    kill_with_source(running);
    wait_until("the view is dead", || imastage_mount::is_dead(Path::new(&view)));
    let answer = doctor(&machine, &state, &view);
    let report = answer.json();
    assert_eq!(answer.code, 1, "{report:#}");
    let told = finding(&report, "view.mount", "problem");
    says(told, "found", "a FUSE mount whose server is gone");
    says(told, "fix", "imastage run");
    assert_eq!(told["lines"][0], format!("umount -l {view}"));
    // The service takes it over, as it says.
    let running = service(&machine, &state, &view);
    finding(&doctor(&machine, &state, &view).json(), "view.mount", "ok");
    assert_eq!(running.stop(), 0);

    // A sandbox that is killed leaves its mount as well.
    let (source, dir) = (machine.mount(), machine.dir);
    machine.sandbox.kill();
    wait_until("the list is dead", || imastage_mount::is_dead(Path::new(&source)));
    let args = ["--json", "doctor", "--source", &source, "--state", &state, "--view", &view];
    let report = imastage(&args).json();
    let told = finding(&report, "kernel.ima", "problem");
    says(told, "found", "a FUSE mount whose server is gone");
    assert_eq!(told["lines"][0], format!("umount -l {source}"));
    let answer = imastage(&["run", "--source", &source, "--state", &state, "--tpm", "none"]);
    assert_eq!(answer.code, 3);
    assert!(answer.stderr.contains("a FUSE mount whose server is gone"), "{}", answer.stderr);
    imastage_mount::detach(Path::new(&source));
    drop(dir);
}

#[test]
fn users_16_another_service_and_the_configuration_are_looked_at() {
    let Some(machine) = Machine::start() else { return };
    let (state, view) = (machine.state(), machine.path("view"));
    let running = service(&machine, &state, &view);
    let pid = imastage(&["--json", "status", "--state", &state]).json()["pid"].to_string();

    let config = machine.path("imastage.toml");
    let doctor = |state: &str| {
        let source = machine.mount();
        let text = format!("source = {source:?}\nstate = {state:?}\nview = {view:?}\nevery = 20\n");
        fs::write(&config, text).unwrap();
        imastage(&["--json", "doctor", "--config", &config])
    };
    let report = doctor(&state).json();
    says(finding(&report, "state.service", "ok"), "found", &pid);
    says(finding(&report, "view.mount", "ok"), "found", &view);
    assert!(findings(&report, "agents.service").is_empty(), "{report:#}");

    let answer = doctor(&machine.path("other"));
    let report = answer.json();
    assert_eq!(answer.code, 1, "{report:#}");
    let told = finding(&report, "agents.service", "problem");
    says(told, "found", &format!("pid {pid}"));
    says(told, "found", &state);
    says(told, "fix", "--delete-mode none");
    // What stands on the command line wins.
    let answer = imastage(&["--json", "doctor", "--config", &config, "--state", &state]);
    assert!(findings(&answer.json(), "agents.service").is_empty());
    assert_eq!(running.stop(), 0);

    for (text, part) in [("evry = 1\n", ":1: evry: "), ("source = 'embedded'\n", "--source")] {
        fs::write(&config, text).unwrap();
        let answer = imastage(&["doctor", "--config", &config]);
        assert_eq!(answer.code, 2, "{}", answer.stderr);
        assert!(answer.stderr.contains(part), "{}", answer.stderr);
    }
}

#[test]
fn users_16_files_where_the_view_is_to_be_are_a_problem() {
    let Some(machine) = Machine::start() else { return };
    let view = machine.path("view");
    let report = doctor(&machine, &machine.state(), &view).json();
    assert!(findings(&report, "view.mount").is_empty(), "{report:#}");
    fs::create_dir(&view).unwrap();
    fs::write(Path::new(&view).join("notes"), "").unwrap();
    let report = doctor(&machine, &machine.state(), &view).json();
    says(finding(&report, "view.mount", "problem"), "found", "there are files in it");
    let file = Path::new(&view).join("notes");
    let report = doctor(&machine, &machine.state(), file.to_str().unwrap()).json();
    says(finding(&report, "view.mount", "problem"), "fix", "--view");
}

#[test]
fn users_17_a_group_that_may_enter_the_state_directory_is_no_warning() {
    let Some(machine) = Machine::start() else { return };
    let state = machine.state();
    fs::create_dir(&state).unwrap();
    for (mode, severity) in [(0o710, "ok"), (0o750, "warning"), (0o711, "warning")] {
        fs::set_permissions(&state, Permissions::from_mode(mode)).unwrap();
        let report = doctor(&machine, &state, &machine.path("view")).json();
        finding(&report, "state.mode", severity);
    }
}

#[test]
fn case_06_boot_aggregate_late_is_explained() {
    let Some(machine) = Machine::start_with(&["--late"]) else { return };
    let report = doctor(&machine, &machine.state(), &machine.path("view")).json();
    says(finding(&report, "list.late", "note"), "found", "boot_aggregate_late");
    finding(&report, "list.replay", "ok");
}
