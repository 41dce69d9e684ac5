//! What repair repairs, what it keeps, and what it leaves alone.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use common::{bytes_of, files, id, new_store, record, stored, three_commits};
use imastage_store::{
    Note, Reader, Remedy, Repair, RepairReport, Store, StoreError, check, notes, repair,
};
use tempfile::tempdir;

fn snapshot(state: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files(state).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Repairs the one epoch there is, after a dry run that changed nothing.
fn repaired(state: &Path) -> RepairReport {
    let before = snapshot(state);
    let [dry] = &repair(state, true).unwrap()[..] else { panic!("one epoch") };
    assert_eq!(snapshot(state), before);
    let [report] = &repair(state, false).unwrap()[..] else { panic!("one epoch") };
    let whats = |done: &[Repair]| done.iter().map(|d| d.what.clone()).collect::<Vec<_>>();
    assert_eq!(whats(&dry.done), whats(&report.done));
    assert!(repair(state, false).unwrap()[0].done.is_empty());
    report.clone()
}

fn alter(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn add(path: &Path, more: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    bytes.extend_from_slice(more);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_whole_store_is_left_as_it_is() {
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    let before = snapshot(&state);
    assert_eq!(repaired(&state), RepairReport { number: 1, ..RepairReport::default() });
    assert_eq!(snapshot(&state), before);
}

#[test]
fn a_torn_tail_is_cut_off_and_kept() {
    let dir = tempdir().unwrap();
    let (state, records) = three_commits(&dir);
    let whole = snapshot(&state);
    let epoch = state.join("epochs/0001");
    let last = files(&state).into_iter().rfind(|path| path.extension().is_some_and(|e| e == "ima"));
    add(&last.unwrap(), b"half a rec");
    add(&epoch.join("commits"), &[7; 30]);
    let report = repaired(&state);
    assert!(matches!(&report.done[..], [cut] if cut.what.contains("40 bytes")), "{report:?}");
    assert_eq!(fs::read(report.done[0].kept.as_ref().unwrap()).unwrap(), b"half a rec");
    fs::remove_file(report.done[0].kept.as_ref().unwrap()).unwrap();
    assert_eq!(snapshot(&state), whole);
    assert_eq!(stored(&state, 0), bytes_of(&records));
}

#[test]
fn whatever_byte_of_the_commits_is_altered_no_record_is_lost() {
    let dir = tempdir().unwrap();
    let (state, records) = three_commits(&dir);
    let path = state.join("epochs/0001/commits");
    let whole = fs::read(&path).unwrap();
    let entry = (whole.len() - 20) / 3;
    for at in (0..whole.len()).step_by(3) {
        alter(&path, at);
        let report = repaired(&state);
        assert_eq!(report.left, [], "byte {at}");
        let kept = report.done[0].kept.as_ref().unwrap();
        if at < 20 + 2 * entry {
            assert_eq!(fs::read(&path).unwrap(), whole, "byte {at}");
            assert_eq!(stored(&state, 0), bytes_of(&records), "byte {at}");
        } else {
            // The last may never have been whole.
            assert_eq!(stored(&state, 0), bytes_of(&records[..12]), "byte {at}");
            assert_eq!(fs::read(kept).unwrap(), bytes_of(&records[12..]).concat(), "byte {at}");
            let last = state.join("epochs/0001/00000000000000000012.ima");
            fs::copy(kept, last).unwrap();
            fs::write(&path, &whole).unwrap();
        }
        for path in files(&state).iter().filter(|path| path.extension().is_some_and(|e| e == "cut"))
        {
            fs::remove_file(path).unwrap();
        }
        assert_eq!(check(&state).unwrap().damage, [], "byte {at}");
    }
}

#[test]
fn what_no_commit_stored_is_put_aside() {
    let dir = tempdir().unwrap();
    let (state, records) = three_commits(&dir);
    let epoch = state.join("epochs/0001");
    let whole = snapshot(&state);
    add(&epoch.join("00000000000000000000.ima"), b"stray");
    let stray = epoch.join("00000000000000000003.ima");
    fs::write(&stray, record(3).as_bytes()).unwrap();
    let report = repaired(&state);
    assert_eq!((report.done.len(), &report.left[..]), (2, &[][..]), "{report:?}");
    let kept: Vec<Vec<u8>> =
        report.done.iter().map(|done| fs::read(done.kept.as_ref().unwrap()).unwrap()).collect();
    assert_eq!(kept, [b"stray".to_vec(), record(3).into_bytes()]);
    assert!(!stray.exists());
    assert!(whole.iter().all(|(path, bytes)| fs::read(path).unwrap() == *bytes));
    assert_eq!(stored(&state, 0), bytes_of(&records));
}

#[test]
fn remarks_that_are_whole_stay() {
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    let (kind, text) = (String::new(), "a third".into());
    let note = Note { index: 18, after: None, time: 7, kind, text };
    Store::open(&state).unwrap().note(&note).unwrap();
    let path = state.join("epochs/0001/notes");
    let whole = fs::read(&path).unwrap();
    alter(&path, 20);
    add(&path, b"{\"index\":");
    let altered = fs::read(&path).unwrap();
    let report = repaired(&state);
    assert_eq!(report.left, []);
    assert_eq!(fs::read(report.done[0].kept.as_ref().unwrap()).unwrap(), altered);
    assert!(whole.ends_with(&fs::read(&path).unwrap()));
    let kept: Vec<String> = notes(&state).unwrap().into_iter().map(|note| note.text).collect();
    assert_eq!(kept, ["records are missing", "a third"]);
}

#[test]
fn checkpoints_are_made_again() {
    let dir = tempdir().unwrap();
    let mut store = new_store(&dir, 100_000);
    for batch in 0..3 {
        for kind in 0..1_500 {
            store.append(&record(batch * 1_500 + kind).record()).unwrap();
        }
        store.commit().unwrap();
    }
    drop(store);
    let state = dir.path().join("state");
    let path = state.join("epochs/0001/checkpoints");
    let whole = fs::read(&path).unwrap();
    assert!(whole.len() > 20 + 4 * 48);
    let reader = Reader::open(&state).unwrap();
    let expected = reader.running_at(2_000).unwrap();
    for at in [0, 10, 30, whole.len() - 1] {
        alter(&path, at);
        assert_eq!(Reader::open(&state).unwrap().running_at(2_000).unwrap(), expected);
        let report = repaired(&state);
        assert!(matches!(&report.done[..], [done] if done.path == path), "byte {at}: {report:?}");
        assert_eq!(fs::read(&path).unwrap(), whole, "byte {at}");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(repaired(&state).done.len(), 1);
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn what_only_a_backup_has_is_told_and_left_alone() {
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    for (name, at) in [("00000000000000000006.ima", 30), ("epoch.json", 30)] {
        let path = state.join("epochs/0001").join(name);
        alter(&path, at);
        let before = snapshot(&state);
        let report = repaired(&state);
        assert_eq!(report.done, []);
        assert_eq!(report.left[0].path, path);
        assert_eq!(report.left[0].remedy, Remedy::Restore);
        assert_eq!(snapshot(&state), before);
        alter(&path, at);
    }
}

#[test]
fn a_store_that_is_written_to_is_not_repaired() {
    let dir = tempdir().unwrap();
    let mut store = new_store(&dir, 500);
    store.begin_epoch(id(2), &common::BANKS).unwrap();
    let refused = repair(&dir.path().join("state"), true);
    assert!(matches!(refused, Err(StoreError::Locked { .. })));
}
