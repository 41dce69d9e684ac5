//! `scripts/build-conformance`: a program that runs on a kernel without libraries.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Builds the program without optimization, which would take most of the time.
fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new(root.join("scripts/build-conformance"))
        .args(["dev", "--config", "profile.dev.opt-level=0"])
        .args(["--config", "profile.dev.package.\"*\".opt-level=0"])
        .env("CARGO", env!("CARGO"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    // A relative path is relative to the root.
    root.join(String::from_utf8(output.stdout).unwrap().trim_end())
}

/// Exit code, standard output, standard error.
fn run(program: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(program).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Whether a program needs a dynamic linker: whether it has a PT_INTERP header (elf(5), 64-bit).
fn is_static(elf: &[u8]) -> bool {
    let number = |at: usize, len: usize| {
        elf[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    assert_eq!(&elf[..5], b"\x7fELF\x02");
    let (offset, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    const PT_INTERP: usize = 3;
    (0..count).all(|header| number(offset + header * size, 4) != PT_INTERP)
}

#[test]
fn program_is_static_and_reports_a_missing_interface_as_ktap_skip() {
    let program = build();
    assert!(is_static(&fs::read(&program).unwrap()));
    let shared = fs::read(std::env::current_exe().unwrap()).unwrap();
    assert!(!is_static(&shared));

    let (code, out, error) = run(&program, &["--list"]);
    assert_eq!((code, &*error), (0, ""));
    assert!(out.starts_with("1.1    files\n"), "{out}");
    assert!(out.ends_with("1.9.6  a descriptor reopened after fork (only 7.2, with --hazards)\n"));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let (code, out, error) = run(&program, &[path]);
    assert_eq!(code, 3, "{error}");
    assert!(out.starts_with("KTAP version 1\n1..0 # SKIP "), "{out}");
    fs::write(dir.path().join("binary_runtime_measurements_sha1"), b"").unwrap();
    fs::write(dir.path().join("binary_runtime_measurements_sha1_staged"), b"").unwrap();
    // Nothing measures what is executed.
    let (code, out, error) = run(&program, &[path]);
    assert_eq!((code, error.contains("ima_policy=tcb")), (3, true), "{out}{error}");
    let (code, out, error) = run(&program, &[path, "--rule", "1.9"]);
    assert_eq!((code, &*out, error.contains("--hazards")), (2, "", true), "{error}");
    assert_eq!(run(&program, &[]).0, 2);
}
