//! What a store keeps, on a real file system.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{fs, path::Path};

use common::{BANKS, bytes_of, files, id, new_store, record, stored, three_commits};
use ima_log::{Bank, Digest, Extend, Format, Record, RecordBuf, Replay};
use imastage_store::{Note, Reader, Store, StoreError, check, notes};
use proptest::prelude::*;
use tempfile::tempdir;

fn replay(records: &[RecordBuf], bank: Bank) -> Digest {
    let mut replay = Replay::new(bank, Extend::Own);
    let pcr = records.first().map(|record| record.record().pcr());
    for record in records.iter().filter(|record| Some(record.record().pcr()) == pcr) {
        replay.extend(&record.record());
    }
    replay.value()
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u32>),
    Commit,
    Rollback,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::collection::vec(0u32..200, 0..20).prop_map(Step::Append),
        3 => Just(Step::Commit),
        1 => Just(Step::Rollback),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn behaves_as_a_vector(
        steps in proptest::collection::vec(step(), 1..30),
        segment_size in 1u64..4000,
        from in any::<proptest::sample::Index>(),
    ) {
        let dir = tempdir().unwrap();
        let state = dir.path().join("state");
        let mut store = new_store(&dir, segment_size);
        let (mut durable, mut all): (Vec<RecordBuf>, Vec<RecordBuf>) = Default::default();
        for step in steps {
            match step {
                Step::Append(kinds) => {
                    for kind in kinds {
                        let index = store.append(&record(kind).record()).unwrap();
                        prop_assert_eq!(index, all.len() as u64);
                        all.push(record(kind));
                    }
                }
                Step::Commit => {
                    store.commit().unwrap();
                    durable = all.clone();
                }
                Step::Rollback => {
                    store.rollback();
                    all = durable.clone();
                }
                Step::Reopen => {
                    drop(store);
                    store = Store::open_with(&state, segment_size).unwrap();
                    all = durable.clone();
                }
            }
            prop_assert_eq!(store.len(), all.len() as u64);
            for bank in BANKS {
                prop_assert_eq!(store.running(bank), Some(replay(&all, bank)));
            }
        }
        let from = from.index(durable.len() + 1);
        prop_assert_eq!(stored(&state, from as u64), bytes_of(&durable[from..]));
        prop_assert_eq!(store.tail(7).unwrap(), bytes_of(&durable[durable.len().saturating_sub(7)..]));
        let report = check(&state).unwrap();
        prop_assert_eq!((report.records, report.damage), (durable.len() as u64, vec![]));
        let behind = Reader::open(&state).unwrap().records(durable.len() as u64 + 1);
        let refused = matches!(behind, Err(StoreError::NoSuchRecord { .. }));
        prop_assert!(refused);
    }
}

#[test]
fn files_are_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for path in ["", "epochs", "epochs/0001"] {
        assert_eq!(mode(&state.join(path)), 0o700, "{path}");
    }
    for path in files(&state).iter().chain(&[state.join("lock"), state.join("format")]) {
        assert_eq!(mode(path), 0o600, "{}", path.display());
    }
}

#[test]
fn one_writer_and_a_stranger_s_directory() {
    let dir = tempdir().unwrap();
    let _store = new_store(&dir, 500);
    let error = Store::open(&dir.path().join("state")).unwrap_err().to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    let error = Reader::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("no file format"), "{error}");
    fs::write(dir.path().join("state/format"), "imastage store 2\n").unwrap();
    let error = check(&dir.path().join("state")).unwrap_err().to_string();
    assert!(error.contains("expected \"imastage store 1\\n\""), "{error}");
}

#[test]
fn epochs_follow_each_other_and_notes_stay_with_theirs() {
    let dir = tempdir().unwrap();
    let state = dir.path().join("state");
    let mut store = new_store(&dir, 500);
    store.append(&record(5).record()).unwrap();
    store.commit().unwrap();
    let note = Note {
        index: 1,
        after: Some(0),
        time: 7,
        kind: String::new(),
        text: "records are missing".into(),
    };
    store.note(&note).unwrap();
    assert_eq!(notes(&state).unwrap(), [note]);
    assert!(store.epoch().unwrap().id.is_same(&id(1)));
    assert!(!store.epoch().unwrap().id.is_same(&id(2)));

    store.begin_epoch(id(2), &BANKS).unwrap();
    assert_eq!((store.len(), store.epoch().unwrap().number), (0, 2));
    assert_eq!(notes(&state).unwrap(), []);
    drop(store);
    let store = Store::open(&state).unwrap();
    assert_eq!(store.epoch().unwrap().number, 2);
    assert_eq!(Reader::open(&state).unwrap().len(), 0);
    assert!(state.join("epochs/0001/00000000000000000000.ima").exists());
}

#[test]
fn records_that_are_not_as_they_should_be_are_refused() {
    let dir = tempdir().unwrap();
    let mut store = new_store(&dir, 500);
    let mut bytes = record(5).into_bytes();
    bytes[10] ^= 1;
    let altered = Record::parse_prefix(&bytes, Format::native(Bank::Sha1)).unwrap().unwrap();
    assert!(matches!(store.append(&altered), Err(StoreError::WrongDigest { index: 0, .. })));
    let mut sha256 = Vec::new();
    record(5).record().write_binary(Bank::Sha256, &mut sha256);
    let other = Record::parse_prefix(&sha256, Format::native(Bank::Sha256)).unwrap().unwrap();
    assert!(matches!(store.append(&other), Err(StoreError::WrongForm { index: 0 })));
    assert_eq!(store.len(), 0);
}
