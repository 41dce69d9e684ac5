//! `imastage conformance` on `imastage sandbox`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_imastage");

/// A sandbox in a process of its own, ended with SIGTERM.
struct Sandbox(Child);

impl Sandbox {
    fn start(mount: &Path, more: &[&str]) -> Sandbox {
        let mut child = Command::new(PROGRAM)
            .args(["sandbox", "--tpm", "none", "--mount"])
            .arg(mount)
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("mounted at"), "{line}");
        Sandbox(child)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap();
    }
}

fn has_fuse() -> bool {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED: /dev/fuse: {error}");
            false
        }
    }
}

/// Exit code, standard output, standard error.
fn conformance(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(PROGRAM).arg("conformance").arg(dir).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn ktap_has_a_line_per_case() {
    if !has_fuse() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("ima");
    let sandbox = Sandbox::start(&mount, &[]);
    // Records of a sandbox may be deleted.
    let run = ["--rule", "1.6"];
    let (code, out, error) = conformance(&mount, &run);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.starts_with("KTAP version 1\n1..1\n  KTAP version 1\n  # Subtest: 1.6 "), "{out}");
    assert!(out.ends_with("# Totals: pass:14 fail:0 skip:0\n"), "{out}");
    assert!(!out.contains("not ok"), "{out}");

    let command =
        format!("{PROGRAM} sandbox measure --mount '{}' {{}} >/dev/null", mount.display());
    let (code, out, error) = conformance(&mount, &[&run[..], &["--measure", &command]].concat());
    assert_eq!(code, 0, "{out}{error}");
    let (code, out, _) = conformance(&mount, &[&run[..], &["--measure", "false {}"]].concat());
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("got measuring: exit status: 1"), "{out}");
    let (code, _, error) = conformance(&mount, &[&run[..], &["--measure", "false"]].concat());
    assert_eq!((code, error.contains("{} for the path is missing")), (2, true), "{error}");
    let (code, _, error) = conformance(&mount, &["--rule", "1.9"]);
    assert_eq!((code, error.contains("rule 1.9 needs --hazards")), (2, true), "{error}");
    drop(sandbox);

    let (code, _, error) = conformance(&mount, &run);
    assert_eq!(code, 3, "{error}");
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn groups_are_listed_without_a_directory() {
    let list = |args: &[&str]| {
        let output = Command::new(PROGRAM).args(["conformance", "--list"]).args(args).output();
        let output = output.unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), error)
    };
    let (code, out, error) = list(&[]);
    assert_eq!((code, &*error), (0, ""));
    assert!(out.starts_with("1.1    files\n1.1    other system calls\n"), "{out}");
    assert!(out.contains("\n1.10   critical data (with --critical-data)\n"), "{out}");
    let (_, out, _) = list(&["--rule", "1.3", "--dialect", "v4"]);
    let grammar = "1.3    request grammar\n1.3    file position of requests (only v4)\n";
    assert_eq!(out, grammar);
    let (code, out, _) = list(&["--rule", "1.9.6", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    let group = serde_json::json!({
        "rule": "1.9.6",
        "title": "a descriptor reopened after fork",
        "dialects": ["7.2"],
        "option": "--hazards",
    });
    assert_eq!((code, json), (0, serde_json::json!({ "groups": [group] })));
    let (code, _, error) = list(&["--rule", "3"]);
    assert_eq!((code, error.contains("known rules: 1.1, 1.2")), (2, true), "{error}");
}

#[test]
fn fault_is_an_exit_code_and_a_line() {
    if !has_fuse() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("ima");
    let _sandbox = Sandbox::start(&mount, &["--fault", "count-with-staged", "--no-watch"]);
    let run = ["--destructive", "--rule", "1.6"];
    let (code, out, _) = conformance(&mount, &run);
    assert_eq!(code, 1, "{out}");
    let failed = "not ok 6 the count of 3 records, 6 others being staged";
    assert!(out.contains(failed) && out.contains("\nnot ok 1 1.6 "), "{out}");

    let (code, out, _) = conformance(&mount, &[&run[..], &["--json"]].concat());
    assert_eq!(code, 1, "{out}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["counts"]["failed"], 2, "{out}");
    let case = &json["groups"][0]["cases"][5];
    assert_eq!((&case["verdict"], &case["expected"]), (&"failed".into(), &"agreed".into()));
}

#[test]
fn dialect_is_detected_from_the_files() {
    if !has_fuse() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("ima");
    let _sandbox = Sandbox::start(&mount, &["--dialect", "trim", "--flush-htable"]);
    let run = |more: &[&str]| conformance(&mount, &[&["--destructive", "--json"], more].concat());
    let (code, out, error) = run(&["--rule", "1.3", "--flush-htable"]);
    assert_eq!(code, 0, "{out}{error}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["dialect"], &json["counts"]["failed"]), (&"trim".into(), &0.into()), "{out}");
    // Not every configuration is what it should be.
    let (code, _, _) = run(&["--rule", "1.3"]);
    assert_eq!(code, 1);
    let (code, _, error) = run(&["--dialect", "v4"]);
    assert_eq!(code, 3, "{error}");
    let (code, _, error) = run(&["--dialect", "trim", "--rule", "2.2"]);
    assert_eq!((code, error.contains("1.3, 1.4")), (2, true), "{error}");
    let (code, _, error) = run(&["--dialect", "7.3"]);
    assert_eq!(code, 2, "{error}");

    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join("binary_runtime_measurements_sha1"), b"").unwrap();
    let (code, _, error) = conformance(empty.path(), &[]);
    assert_eq!((code, error.contains("CONFIG_IMA_STAGING")), (3, true), "{error}");
}
