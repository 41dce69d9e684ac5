//! A list of a real kernel, stored.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::{fs, path::Path, process::Command};

use common::new_store;
use ima_log::{Bank, Format, Records};
use tempfile::tempdir;

#[test]
fn evmctl_reads_a_stored_segment() {
    if Command::new("evmctl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: evmctl is missing (apt-get install ima-evm-utils)");
        return;
    }
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus/debian-6.1");
    let list = fs::read(corpus.join("binary")).unwrap();
    let dir = tempdir().unwrap();
    let mut store = new_store(&dir, 64 << 20);
    for record in Records::new(&list, Format::native(Bank::Sha1)) {
        store.append(&record.unwrap()).unwrap();
    }
    store.commit().unwrap();
    let segment = dir.path().join("state/epochs/0001/00000000000000000000.ima");
    assert_eq!(fs::read(&segment).unwrap(), list);

    let text = fs::read_to_string(corpus.join("pcrs")).unwrap();
    let pcr = |n: usize| {
        let start = format!("sha256 {n} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.map_or("0".repeat(64), |hex| hex.trim().to_lowercase())
    };
    let pcrs = dir.path().join("pcrs");
    let lines: String = (0..24).map(|n| format!("PCR-{n:02}: {}\n", pcr(n))).collect();
    fs::write(&pcrs, lines).unwrap();
    let output = Command::new("evmctl")
        .args(["ima_measurement", "--ignore-violations", "--pcrs"])
        .arg(format!("sha256,{}", pcrs.display()))
        .arg(&segment)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
