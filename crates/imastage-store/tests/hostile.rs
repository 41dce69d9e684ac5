//! Garbage, foreign files and copied epochs in a state directory: finding 12 of the security review.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{fs, os::unix::fs::MetadataExt, process::Command};

use common::{BANKS, NOTHING_IS_KEPT, bytes_of, id, stored, three_commits, two_epochs};
use imastage_store::{
    Remedy, Store, check, check_directory, check_epoch, epochs, pack, prune, repair,
};
use tempfile::tempdir;

#[test]
fn finding_12_holes_are_not_copied() {
    let dir = tempdir().unwrap();
    let (state, _) = two_epochs(&dir);
    let epoch = state.join("epochs/0001");
    // One that was left, the last one, and one that no commit names.
    for (n, name) in ["00000000000000000000.ima", "00000000000000000012.ima"].iter().enumerate() {
        let path = epoch.join(name);
        let before = fs::metadata(&path).unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        let [report, _] = &repair(&state, false).unwrap()[..] else { panic!("two epochs") };
        assert_eq!(report.left, [], "{name}");
        let [done] = &report.done[..] else { panic!("{report:?}") };
        assert_eq!(fs::metadata(&path).unwrap().len(), before);
        let kept = fs::metadata(done.kept.as_ref().unwrap()).unwrap();
        assert_eq!(kept.len(), (1 << 30) - before, "{n}");
        assert!(kept.blocks() * 512 < 1 << 20, "{} blocks for a hole", kept.blocks());
    }
}

/// Bytes of a generator that has nothing to do with the format.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| byte()).collect()
}

#[test]
fn finding_12_garbage_behind_the_commits_costs_the_garbage_only() {
    for garbage in [vec![0xff; 200], noise(1_500), noise(1 << 20), vec![0; 250]] {
        let dir = tempdir().unwrap();
        let (state, records) = three_commits(&dir);
        let path = state.join("epochs/0001/commits");
        let whole = fs::read(&path).unwrap();
        let damaged = [&whole[..], &garbage].concat();
        fs::write(&path, &damaged).unwrap();

        assert_eq!(stored(&state, 0), bytes_of(&records));
        let report = check(&state).unwrap();
        assert_eq!(report.records, records.len() as u64);
        let [found] = &report.damage[..] else { panic!("{:?}", report.damage) };
        let expected = (&path, whole.len() as u64, Remedy::PutAside);
        assert_eq!((&found.path, found.offset, found.remedy), expected);
        let [dry] = &repair(&state, true).unwrap()[..] else { panic!("one epoch") };
        assert_eq!(dry.done.len(), 1);
        assert_eq!(fs::read(&path).unwrap(), damaged);

        let [report] = &repair(&state, false).unwrap()[..] else { panic!("one epoch") };
        assert_eq!(report.left, []);
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(fs::read(report.done[0].kept.as_ref().unwrap()).unwrap(), garbage);

        // And so does a service that is started.
        fs::write(&path, &damaged).unwrap();
        let store = Store::open(&state).unwrap();
        assert_eq!(store.len(), records.len() as u64);
        assert_eq!(fs::read(store.recovery().kept.as_ref().unwrap()).unwrap(), garbage);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn finding_12_garbage_behind_a_store_without_commits() {
    let dir = tempdir().unwrap();
    let mut store = Store::open(&dir.path().join("state")).unwrap();
    store.begin_epoch(id(1), &BANKS).unwrap();
    drop(store);
    let state = dir.path().join("state");
    let path = state.join("epochs/0001/commits");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [whole, noise(1_500)].concat()).unwrap();
    assert_eq!(Store::open(&state).unwrap().len(), 0);
    assert_eq!(check(&state).unwrap().damage, []);
}

#[test]
fn finding_12_commits_that_may_have_been_whole_are_cut_by_repair_only_and_kept() {
    let dir = tempdir().unwrap();
    let (state, records) = three_commits(&dir);
    let path = state.join("epochs/0001/commits");
    let mut damaged = fs::read(&path).unwrap();
    let len = damaged.len();
    damaged[len - 150..].fill(0xff);
    fs::write(&path, &damaged).unwrap();
    let words = Store::open(&state).unwrap_err().to_string();
    assert!(words.contains("store repair") && words.contains("backup"), "{words}");
    let found = check(&state).unwrap();
    assert_eq!(found.records, 6);
    let [report] = &repair(&state, false).unwrap()[..] else { panic!("one epoch") };
    assert_eq!(report.left, []);
    assert_eq!(stored(&state, 0), bytes_of(&records[..6]));
    let kept = |name: &str| fs::read(state.join("epochs/0001").join(name)).unwrap();
    assert_eq!(kept("00000000000000000006-0.cut"), bytes_of(&records[6..]).concat());
    assert_eq!(kept("commits-1.cut"), damaged[len - 200..]);
}

#[test]
fn finding_12_a_directory_or_file_in_the_wrong_place_is_damage() {
    let dir = tempdir().unwrap();
    let (state, records) = two_epochs(&dir);
    let path = state.join("epochs/0002/notes");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let found = check(&state).unwrap().damage;
    assert!(matches!(&found[..], [found] if found.path == path), "{found:?}");
    fs::remove_dir(&path).unwrap();

    let path = state.join("epochs/0009");
    fs::write(&path, b"").unwrap();
    let found = check(&state).unwrap().damage;
    assert!(matches!(&found[..], [found] if found.path == path), "{found:?}");
    assert_eq!(epochs(&state).unwrap().len(), 3);
    assert!(matches!(check_epoch(&state, 9), Ok(report) if report.damage.len() == 1));
    let error = Store::open(&state).unwrap_err();
    assert!(!error.is_environment(), "{error}");
    // The file closes nothing: the epoch before it is still the open one.
    let pruned = prune(&state, &NOTHING_IS_KEPT, true).unwrap();
    assert!(matches!(&pruned[..], [pruned] if pruned.number == 1), "{pruned:?}");
    assert!(pack(&state).unwrap().iter().all(|packing| packing.number == 1));
    fs::remove_file(&path).unwrap();
    assert_eq!(stored(&state, 0), bytes_of(&records));
}

#[test]
fn finding_12_names_are_written_in_one_way_only() {
    let dir = tempdir().unwrap();
    let (state, records) = two_epochs(&dir);
    let foreign = ["epochs/1", "epochs/+2", "epochs/00009", "epochs/0000", "epochs/x"];
    for name in foreign {
        fs::create_dir(state.join(name)).unwrap();
    }
    let numbers: Vec<u64> = epochs(&state).unwrap().iter().map(|epoch| epoch.number).collect();
    assert_eq!(numbers, [1, 2]);
    let found = check(&state).unwrap().damage;
    assert_eq!(found.len(), foreign.len());
    assert!(foreign.iter().all(|name| found.iter().any(|found| found.path == state.join(name))));
    assert!(found.iter().all(|found| found.remedy == Remedy::MoveAway));
    let segment = state.join("epochs/0002/1.ima");
    fs::write(&segment, b"stray").unwrap();
    assert!(check(&state).unwrap().damage.iter().any(|found| found.path == segment));
    assert_eq!(Store::open(&state).unwrap().len(), records.len() as u64);
    assert!(segment.exists());
}

#[test]
fn finding_12_an_epoch_has_its_directory_s_number() {
    let dir = tempdir().unwrap();
    let (state, _) = two_epochs(&dir);
    let (from, to) = (state.join("epochs/0001"), state.join("epochs/0003"));
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
    let found = check(&state).unwrap().damage;
    let words = found.first().map(ToString::to_string).unwrap_or_default();
    assert!(words.contains("epoch 1, expected 3"), "{words}");
    let words = Store::open(&state).unwrap_err().to_string();
    assert!(words.contains("epoch 1, expected 3"), "{words}");
}

#[test]
fn finding_12_an_epoch_of_another_machine_is_named() {
    let dir = tempdir().unwrap();
    let state = dir.path().join("state");
    let mut store = Store::open(&state).unwrap();
    for tpm in ["ours", "theirs", "ours", "ours"] {
        let id = imastage_store::EpochId { tpm: Some(tpm.into()), ..id(1) };
        store.begin_epoch(id, &BANKS).unwrap();
    }
    let report = check_directory(&state).unwrap();
    assert!(
        matches!(&report.damage[..], [found] if found.path == state.join("epochs/0002")),
        "{report:?}"
    );
    // One that was exchanged is no damage.
    let other = imastage_store::EpochId { tpm: Some("new".into()), ..id(1) };
    store.begin_epoch(other, &BANKS).unwrap();
    assert_eq!(check_directory(&state).unwrap().damage.len(), 1);
    assert!(check_directory(&state).unwrap().remarks.last().unwrap().contains("epoch 5"));
}
