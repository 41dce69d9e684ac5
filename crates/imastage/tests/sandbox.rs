//! `imastage sandbox` and what can be asked of one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{fs, process::Command};

#[allow(dead_code)]
mod common;

use common::{Running, corpus, imastage, imastage_with};

#[test]
fn a_mounted_sandbox_does_what_it_is_asked() {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        eprintln!("SKIPPED: /dev/fuse: {error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("ima");
    let mount = mount.to_str().unwrap();
    let options = ["--tpm", "none", "--dialect", "trim", "--banks", "sha256", "--no-watch"];
    let running = Running::start(&[&["sandbox", "--mount", mount], &options[..]].concat());

    let order = |order: &str, more: &[&str]| {
        imastage(&[&["--json", "sandbox", order, "--mount", mount], more].concat())
    };
    assert_eq!(order("violation", &["/odd name"]).json()["added"], 1);
    assert_eq!(order("replay", &[&corpus("debian-6.1/binary"), "--rate", "1000000"]).code, 0);
    let data = ["sandbox", "critical-data", "--mount", mount, "label"];
    assert_eq!(imastage_with(&data, b"text").text(), "1 records added, 0 known already\n");
    let status = order("status", &[]).json();
    assert_eq!(status["violations"], 1);
    let current = status["current"].as_u64().unwrap();
    assert!(current > 100, "{status}");

    let shell = |script: &str| {
        let output = Command::new("/bin/sh").arg("-c").arg(script).current_dir(mount).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert_eq!(shell("echo 0:3 > ima_trim_log && cat ima_trim_log"), "3\n");
    assert_eq!(shell("cat runtime_measurements_count"), format!("{}\n", current - 3));
    let carried = order("kexec", &[]).json();
    assert_eq!(carried["carried"], current - 3);
    assert_eq!(order("kexec", &["--forget"]).json()["carried"], 0);
    assert_eq!(order("reboot", &[]).json()["current"], 1);
    assert_eq!(order("suspend", &[]).code, 0);
    let refused = order("violation", &["/late"]);
    assert_eq!(refused.code, 3);
    assert!(refused.stderr.contains("accepts no more records"), "{}", refused.stderr);
    // Relative paths are the caller's.
    let missing = order("replay", &["no-such-list"]);
    assert!(missing.stderr.contains("/no-such-list"), "{}", missing.stderr);
    assert_eq!(running.stop(), 0);
}
