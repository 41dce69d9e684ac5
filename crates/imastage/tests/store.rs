//! `imastage store`: the records that are kept, looked after by hand.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[allow(dead_code)]
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::{corpus, imastage};
use ima_log::{Bank, Format, Records};
use imastage_store::{EpochId, Store};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

/// A closed epoch with a real list of a kernel and an empty, open one.
fn state(dir: &TempDir) -> PathBuf {
    let list = fs::read(corpus("debian-6.1/binary")).unwrap();
    let state = dir.path().join("state");
    let mut store = Store::open_with(&state, 20_000).unwrap();
    let id = |boot: &str| EpochId { boot_id: boot.to_owned(), ..EpochId::default() };
    store.begin_epoch_with(id("a"), &[Bank::Sha1, Bank::Sha256], &[Bank::Sha384]).unwrap();
    for (n, record) in Records::new(&list, Format::native(Bank::Sha1)).enumerate() {
        store.append(&record.unwrap()).unwrap();
        if n % 100 == 99 {
            store.commit().unwrap();
        }
    }
    store.commit().unwrap();
    store.begin_epoch(id("b"), &[Bank::Sha1]).unwrap();
    state
}

fn store(state: &Path, args: &[&str]) -> (i32, Value) {
    let mut all = vec!["--json", "store", "--state", state.to_str().unwrap()];
    all.extend(args);
    let answer = imastage(&all);
    let json = if answer.stdout.is_empty() { Value::Null } else { answer.json() };
    (answer.code, json)
}

#[test]
fn damage_is_told_with_what_can_be_done_and_repaired_where_that_is_safe() {
    let dir = tempdir().unwrap();
    let state = state(&dir);
    let epoch = state.join("epochs/0001");
    let (code, whole) = store(&state, &["check"]);
    assert_eq!((code, whole["epochs"].as_array().unwrap().len()), (0, 2), "{whole}");

    let commits = epoch.join("commits");
    let before = fs::read(&commits).unwrap();
    let mut altered = before.clone();
    altered[200] ^= 1;
    fs::write(&commits, &altered).unwrap();
    let (code, damaged) = store(&state, &["check", "--epoch", "1"]);
    let damage = &damaged["epochs"][0]["damage"][0];
    assert_eq!((code, &damage["path"]), (1, &Value::from(commits.to_str().unwrap())), "{damage}");
    assert!(damage["remedy"].as_str().unwrap().contains("store repair"), "{damage}");
    let (code, dry) = store(&state, &["repair", "--dry-run"]);
    assert_eq!((code, fs::read(&commits).unwrap() == altered), (1, true), "{dry}");
    let (code, repaired) = store(&state, &["repair"]);
    let done = &repaired["epochs"][0]["done"][0];
    assert_eq!((code, &done["path"]), (0, &damage["path"]), "{repaired}");
    assert!(Path::new(done["kept"].as_str().unwrap()).exists(), "{repaired}");
    assert!(fs::read(&commits).unwrap() == before);
    assert_eq!(store(&state, &["check"]).0, 0);

    let segment = epoch.join("00000000000000000000.ima");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[70] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let (code, left) = store(&state, &["repair"]);
    let left = &left["epochs"][0]["left"][0];
    assert_eq!((code, &left["from"], &left["to"]), (1, &Value::from(0), &Value::from(1)), "{left}");
    assert!(left["remedy"].as_str().unwrap().contains("backup"), "{left}");
    assert_eq!(store(&state, &["pack"]).0, 1);
}

#[test]
fn what_is_exported_is_what_the_kernel_had_packed_or_not() {
    let dir = tempdir().unwrap();
    let state = state(&dir);
    let read = |name: &str| fs::read(name).unwrap();
    for (name, packed) in [("plain", false), ("packed", true)] {
        if packed {
            let (code, packing) = store(&state, &["pack"]);
            assert_eq!(code, 0, "{packing}");
            assert!(
                packing["epochs"][0]["after"].as_u64() < packing["epochs"][0]["before"].as_u64()
            );
        }
        let to = dir.path().join(name).to_str().unwrap().to_owned();
        let (code, exported) = store(&state, &["export", "--epoch", "1", &to]);
        assert_eq!((code, &exported["replays"]), (0, &Value::Bool(true)), "{exported}");
        let file = |name: &str| format!("{to}/{name}");
        assert!(read(&file("binary_runtime_measurements")) == read(&corpus("debian-6.1/binary")));
        assert!(read(&file("ascii_runtime_measurements")) == read(&corpus("debian-6.1/ascii")));
        // Each file is a list that our own commands take, and leads to the PCR that is there.
        for (list, pcrs) in [
            ("binary_runtime_measurements_sha256", "pcrs-sha256"),
            ("ascii_runtime_measurements_sha256", "pcrs-sha256"),
            ("records.jsonl", "pcrs-sha1"),
        ] {
            let bank = pcrs.trim_start_matches("pcrs-");
            let answer = imastage(&["replay", "--bank", bank, "--pcrs", &file(pcrs), &file(list)]);
            assert_eq!(answer.code, 0, "{list}: {}{}", answer.text(), answer.stderr);
        }
        // The same kernel's TPM, whose sha384 bank it padded.
        let pcrs = fs::read_to_string(corpus("debian-6.1/pcrs")).unwrap().to_lowercase();
        let padded = fs::read_to_string(file("pcrs-sha384-padded")).unwrap();
        let ten = padded.lines().find_map(|line| line.strip_prefix("PCR-10: ")).unwrap();
        assert!(pcrs.contains(&format!("sha384 10 {ten}")), "{ten}");
        assert_eq!(store(&state, &["export", "--epoch", "1", &to]).0, 2);

        if Command::new("evmctl").arg("--version").output().is_err() {
            eprintln!("SKIPPED: evmctl is missing (apt-get install ima-evm-utils)");
            continue;
        }
        let output = Command::new("evmctl")
            .args(["ima_measurement", "--ignore-violations", "--pcrs"])
            .arg(format!("sha256,{}", file("pcrs-sha256")))
            .arg(file("binary_runtime_measurements"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn closed_epochs_are_pruned_as_told() {
    let dir = tempdir().unwrap();
    let state = state(&dir);
    assert_eq!(store(&state, &["prune"]).0, 2);
    assert_eq!(store(&state, &["prune", "--dry-run"]).0, 2);
    let (code, kept) = store(&state, &["prune", "--max-age", "1d", "--max-bytes", "1G"]);
    assert_eq!((code, kept["removed"].as_array().unwrap().len()), (0, 0), "{kept}");
    for args in
        [&["prune", "--keep-epochs", "0", "--dry-run"][..], &["prune", "--keep-epochs", "0"]]
    {
        let (code, removed) = store(&state, args);
        assert_eq!((code, &removed["removed"][0]["epoch"]), (0, &Value::from(1)), "{removed}");
    }
    let (_, left) = store(&state, &["check"]);
    assert_eq!(left["epochs"].as_array().unwrap().len(), 1, "{left}");
    assert_eq!(store(&state, &["check", "--epoch", "1"]).0, 2);
}

#[test]
fn who_is_at_fault_is_in_the_exit_code() {
    let dir = tempdir().unwrap();
    let state = state(&dir);
    assert_eq!(store(dir.path(), &["check"]).0, 2);
    let service = Store::open(&state).unwrap();
    assert_eq!(store(&state, &["repair"]).0, 3);
    // These need not wait for it.
    for args in [&["check"][..], &["pack"], &["prune", "--keep-epochs", "5"]] {
        assert_eq!(store(&state, args).0, 0, "{args:?}");
    }
    drop(service);
    assert_eq!(store(&state, &["repair"]).0, 0);
}
