//! What `imastage store` and those who read a state directory say of one that is not as it should be:
//! findings 4 and 12 of the security review, 20 of the users'.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[allow(dead_code)]
mod common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use common::imastage;
use ima_log::{Bank, RecordBuf};
use imastage_store::{EpochId, Store};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

const PCR_11: &[u32] = &[11];
const PCR_11_AND_10: &[u32] = &[11, 10, 11];

/// A closed epoch whose records name these PCRs in turn, and an open one.
fn state(dir: &TempDir, pcrs: &[u32]) -> PathBuf {
    let state = dir.path().join("state");
    let mut store = Store::open_with(&state, 1_000).unwrap();
    for boot in ["a", "b"] {
        let id = EpochId { boot_id: boot.to_owned(), ..EpochId::default() };
        store.begin_epoch(id, &[Bank::Sha1, Bank::Sha256]).unwrap();
        for n in 0..40u32 {
            let pcr = pcrs[n as usize % pcrs.len()];
            let name = format!("/file/{n}");
            let record = RecordBuf::ima_ng(pcr, &Bank::Sha256.hash(&[]), name.as_bytes());
            store.append(&record.record()).unwrap();
            if n % 10 == 9 {
                store.commit().unwrap();
            }
        }
    }
    state
}

fn store(state: &Path, args: &[&str]) -> (i32, Value, String) {
    let mut all = vec!["--json", "store", "--state", state.to_str().unwrap()];
    all.extend(args);
    let answer = imastage(&all);
    let json = if answer.stdout.is_empty() { Value::Null } else { answer.json() };
    (answer.code, json, answer.stderr)
}

#[test]
fn finding_04_links_in_a_state_directory_lead_nowhere() {
    let dir = tempdir().unwrap();
    let state = state(&dir, &[10]);
    let victim = dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("file"), "precious").unwrap();
    let untouched = || fs::read_to_string(victim.join("file")).unwrap() == "precious";

    fs::remove_file(state.join("lock")).unwrap();
    symlink(victim.join("file"), state.join("lock")).unwrap();
    for args in [&["repair", "--dry-run"][..], &["repair"]] {
        let (code, _, words) = store(&state, args);
        assert!(code == 2 && words.contains("symbolic link") && untouched(), "{code}: {words}");
    }
    let (code, checked, _) = store(&state, &["check"]);
    assert_eq!((code, checked["directory"]["damage"].as_array().unwrap().len()), (1, 1));
    fs::remove_file(state.join("lock")).unwrap();

    symlink(&victim, state.join("epochs/x.gone")).unwrap();
    assert_eq!(store(&state, &["check"]).0, 1);
    assert_eq!(store(&state, &["prune", "--keep-epochs", "9"]).0, 0);
    fs::remove_file(state.join("epochs/x.gone")).unwrap();

    fs::remove_dir_all(state.join("epochs/0001")).unwrap();
    symlink(&victim, state.join("epochs/0001")).unwrap();
    let (code, _, words) = store(&state, &["prune", "--keep-epochs", "0"]);
    assert!(code == 2 && words.contains("0001") && untouched(), "{code}: {words}");
    let (code, checked, _) = store(&state, &["check"]);
    assert_eq!(code, 1, "{checked}");
    let damage = &checked["epochs"][0]["damage"][0];
    assert!(damage["what"].as_str().unwrap().contains("a symbolic link is here"), "{damage}");
}

#[test]
fn finding_12_what_stands_in_the_wrong_place_is_damage_and_no_fault_of_the_machine() {
    let dir = tempdir().unwrap();
    let state = state(&dir, &[10]);
    let notes = state.join("epochs/0002/notes");
    fs::create_dir(&notes).unwrap();
    let (code, checked, _) = store(&state, &["check"]);
    assert_eq!(
        (code, &checked["epochs"][1]["damage"][0]["path"]),
        (1, &Value::from(notes.to_str()))
    );
    fs::remove_dir(&notes).unwrap();
    let fifo = Command::new("mkfifo").arg(&notes).status();
    assert!(fifo.unwrap().success());
    let (code, checked, _) = store(&state, &["check"]);
    assert_eq!(
        (code, &checked["epochs"][1]["damage"][0]["path"]),
        (1, &Value::from(notes.to_str()))
    );
    fs::remove_file(&notes).unwrap();

    for name in ["0009", "1", "+2"] {
        let path = state.join("epochs").join(name);
        fs::write(&path, "").unwrap();
        let (code, checked, words) = store(&state, &["check"]);
        assert!(code == 1 && checked.to_string().contains(name), "{name}: {code} {words}");
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(store(&state, &["check"]).0, 0);
}

#[test]
fn users_20_errors_are_said_once_and_with_what_to_do() {
    let dir = tempdir().unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let name = empty.to_str().unwrap();
    for args in
        [&["status", "--state", name][..], &["show", name], &["store", "--state", name, "check"]]
    {
        let answer = imastage(args);
        assert_eq!(answer.code, 2, "{args:?}: {}", answer.stderr);
        assert_eq!(answer.stderr.matches(name).count(), 1, "{args:?}: {}", answer.stderr);
        assert!(answer.stderr.contains("not a state directory"), "{}", answer.stderr);
    }

    let state = state(&dir, &[10]);
    let commits = state.join("epochs/0001/commits");
    fs::remove_file(&commits).unwrap();
    let (code, repaired, words) = store(&state, &["repair"]);
    let left = &repaired["epochs"][0]["left"][0];
    assert_eq!((code, &left["path"]), (1, &Value::from(commits.to_str())), "{words}");
    assert!(left["what"].as_str().unwrap().contains("the file is missing"), "{left}");
    assert!(left["remedy"].as_str().unwrap().contains("backup"), "{left}");
}

#[test]
fn users_20_a_directory_one_may_not_enter_is_the_machine_s_fault() {
    let dir = tempdir().unwrap();
    let state = state(&dir, &[10]);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Others have to reach the program.
    let program = dir.path().join("imastage");
    fs::copy(env!("CARGO_BIN_EXE_imastage"), &program).unwrap();
    let state = state.to_str().unwrap();
    for args in [
        &["status", "--state", state][..],
        &["show", state],
        &["check", state],
        &["store", "--state", state, "check"],
        &["store", "--state", state, "repair", "--dry-run"],
    ] {
        let as_nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
        let output = Command::new("setpriv").args(as_nobody).arg(&program).args(args).output();
        let output = output.unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        if words.contains("setpriv:") {
            eprintln!("SKIPPED: {words}");
            return;
        }
        assert_eq!(output.status.code(), Some(3), "{args:?}: {words}");
        assert!(words.contains("you may not enter it"), "{args:?}: {words}");
        assert_eq!(words.matches(state).count(), 1, "{args:?}: {words}");
    }
}

#[test]
fn a_list_of_another_pcr_is_exported_with_what_it_leads_to() {
    for pcrs in [PCR_11, PCR_11_AND_10] {
        let dir = tempdir().unwrap();
        let state = state(&dir, pcrs);
        assert_eq!(store(&state, &["pack"]).0, 0);
        for epoch in ["1", "2"] {
            let to = dir.path().join(epoch);
            let args = ["export", "--epoch", epoch, to.to_str().unwrap()];
            let (code, exported, words) = store(&state, &args);
            assert_eq!((code, &exported["pcr"]), (0, &Value::from(11)), "{exported}{words}");
            let values = fs::read_to_string(to.join("pcrs-sha256")).unwrap();
            let zero = |pcr: &str| {
                let line = values.lines().find_map(|line| line.strip_prefix(pcr)).unwrap();
                line.trim().bytes().all(|byte| byte == b'0')
            };
            assert_eq!((zero("PCR-11:"), zero("PCR-10:")), (false, pcrs.len() == 1), "{values}");
        }
        assert_eq!(store(&state, &["check"]).0, 0);
    }
}
