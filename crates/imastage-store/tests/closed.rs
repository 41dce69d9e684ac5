//! Closed epochs, packed and pruned, on a real file system.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{BANKS, bytes_of, id, record, three_commits};
use ima_log::{Bank, RecordBuf};
use imastage_store::{
    EpochSummary, Reader, Retention, Store, StoreError, check_epoch, epochs, pack, prune,
};
use tempfile::{TempDir, tempdir};

/// A closed epoch of several megabytes and an open one; gives the closed one's records.
fn large_epoch(dir: &TempDir) -> (PathBuf, Vec<RecordBuf>) {
    let state = dir.path().join("state");
    let mut store = Store::open_with(&state, 1 << 20).unwrap();
    store.begin_epoch(id(1), &BANKS).unwrap();
    let records: Vec<RecordBuf> = (0..20_000u32)
        .map(|i| {
            let digest = Bank::Sha256.hash(&[&i.to_le_bytes()]);
            RecordBuf::ima_ng(10, &digest, format!("/usr/lib/file-{i}").as_bytes())
        })
        .collect();
    for batch in records.chunks(7_000) {
        for record in batch {
            store.append(&record.record()).unwrap();
        }
        store.commit().unwrap();
    }
    store.begin_epoch(id(2), &BANKS).unwrap();
    (state, records)
}

fn read(reader: &Reader, from: u64) -> Vec<Vec<u8>> {
    let mut cursor = reader.records(from).unwrap();
    let mut records = Vec::new();
    while let Some(record) = cursor.next_record().unwrap() {
        records.push(record.as_bytes().to_vec());
    }
    records
}

fn with_extension(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    paths
}

#[test]
fn a_packed_epoch_reads_as_before_and_gunzip_unpacks_it() {
    let dir = tempdir().unwrap();
    let (state, records) = large_epoch(&dir);
    let epoch = state.join("epochs/0001");
    let before = Reader::open_number(&state, 1).unwrap();
    let [packing] = &pack(&state).unwrap()[..] else { panic!("one epoch is closed") };
    assert!(packing.damage.is_none() && packing.after < packing.before, "{packing:?}");
    assert_eq!(with_extension(&epoch, "ima"), Vec::<PathBuf>::new());
    let packed = with_extension(&epoch, "gz");
    assert!(packed.len() > 1, "{packed:?}");

    let after = Reader::open_number(&state, 1).unwrap();
    let expected = bytes_of(&records);
    for from in [0, 1, 2_500, 7_000, 13_333, 19_999, 20_000] {
        assert_eq!(read(&after, from), expected[from as usize..], "{from}");
        assert_eq!(after.running_at(from).unwrap(), before.running_at(from).unwrap(), "{from}");
    }
    let report = check_epoch(&state, 1).unwrap();
    assert_eq!((report.records, report.damage, report.checkpoints), (20_000, vec![], vec![]));
    assert_eq!(pack(&state).unwrap(), []);
    assert!(matches!(&epochs(&state).unwrap()[..], [a, b] if a.packed && !b.packed));

    let unpacked: Vec<u8> = packed
        .iter()
        .flat_map(|path| Command::new("gunzip").arg("-c").arg(path).output().unwrap().stdout)
        .collect();
    assert!(unpacked == expected.concat());
}

#[test]
fn damage_in_a_packed_segment_is_found_and_named() {
    let dir = tempdir().unwrap();
    let (state, _) = large_epoch(&dir);
    pack(&state).unwrap();
    let path = &with_extension(&state.join("epochs/0001"), "gz")[1];
    let whole = fs::read(path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    // In the index, in a block, in a block's CRC at the end.
    for at in [3, 14, 20, 30, whole.len() / 2, whole.len() - 6] {
        let mut altered = whole.clone();
        altered[at] ^= 4;
        fs::write(path, altered).unwrap();
        let damage = check_epoch(&state, 1).unwrap().damage;
        let words = damage.first().map(ToString::to_string).unwrap_or_default();
        assert!(words.contains(name) && words.contains("damaged"), "byte {at}: {words}");
        let reader = Reader::open_number(&state, 1).unwrap();
        let mut cursor = reader.records(0).unwrap();
        let error = std::iter::from_fn(|| cursor.next_record().map(|r| r.map(|_| ())).transpose())
            .find_map(Result::err)
            .unwrap();
        assert!(error.to_string().contains(name), "byte {at}: {error}");
    }
    fs::write(path, &whole[..whole.len() - 1]).unwrap();
    let words = check_epoch(&state, 1).unwrap().damage[0].to_string();
    assert!(words.contains("expected"), "{words}");
}

#[test]
fn an_epoch_that_is_damaged_is_not_packed() {
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    Store::open(&state).unwrap().begin_epoch(id(2), &BANKS).unwrap();
    let segments = with_extension(&state.join("epochs/0001"), "ima");
    let mut bytes = fs::read(&segments[0]).unwrap();
    bytes[10] ^= 1;
    fs::write(&segments[0], &bytes).unwrap();
    let [packing] = &pack(&state).unwrap()[..] else { panic!("one epoch is closed") };
    assert!(packing.damage.as_ref().unwrap().contains("record 0"), "{packing:?}");
    assert_eq!(with_extension(&state.join("epochs/0001"), "ima"), segments);
}

#[test]
fn a_policy_takes_the_oldest_and_never_the_open_epoch() {
    let dir = tempdir().unwrap();
    let state = dir.path().join("state");
    let mut store = Store::open(&state).unwrap();
    for number in 1..=4 {
        store.begin_epoch(id(number), &BANKS).unwrap();
        store.append(&record(number + 20).record()).unwrap();
        store.commit().unwrap();
    }
    let numbers =
        |epochs: &[EpochSummary]| -> Vec<u64> { epochs.iter().map(|epoch| epoch.number).collect() };
    let there = || numbers(&epochs(&state).unwrap());
    let by = |epochs, bytes, age| Retention { epochs, bytes, age };
    assert_eq!(prune(&state, &Retention::default(), false).unwrap(), []);
    assert_eq!(prune(&state, &by(Some(3), Some(1 << 20), Some(HOUR)), false).unwrap(), []);
    assert_eq!(numbers(&prune(&state, &by(Some(1), None, None), true).unwrap()), [1, 2]);
    assert_eq!(there(), [1, 2, 3, 4]);
    let each = epochs(&state).unwrap()[0].disk_bytes;
    assert_eq!(numbers(&prune(&state, &by(None, Some(each * 7 / 2), None), false).unwrap()), [1]);
    assert_eq!(numbers(&prune(&state, &by(Some(1), None, None), false).unwrap()), [2]);
    assert_eq!(there(), [3, 4]);
    assert!(matches!(
        Reader::open_number(&state, 1),
        Err(StoreError::NoSuchEpoch { asked: 1, .. })
    ));
    assert_eq!(numbers(&prune(&state, &by(None, Some(0), None), false).unwrap()), [3]);
    assert_eq!(prune(&state, &by(Some(0), Some(0), None), false).unwrap(), []);
    assert_eq!(there(), [4]);
    assert_eq!(fs::read_dir(state.join("epochs")).unwrap().count(), 1);
    // The one that is written to continues.
    store.append(&record(99).record()).unwrap();
    store.commit().unwrap();
    assert_eq!(Reader::open(&state).unwrap().len(), 2);
}

const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn an_epoch_that_was_packed_and_is_the_latest_again_can_be_unpacked() {
    let dir = tempdir().unwrap();
    let (state, records) = large_epoch(&dir);
    pack(&state).unwrap();
    fs::remove_dir_all(state.join("epochs/0002")).unwrap();
    let error = Store::open(&state).unwrap_err().to_string();
    assert!(error.contains("gunzip"), "{error}");
    for path in with_extension(&state.join("epochs/0001"), "gz") {
        assert!(Command::new("gunzip").arg(path).status().unwrap().success());
    }
    let mut store = Store::open(&state).unwrap();
    store.append(&record(7).record()).unwrap();
    store.commit().unwrap();
    assert_eq!(store.len(), records.len() as u64 + 1);
    assert_eq!(check_epoch(&state, 1).unwrap().damage, []);
}

#[test]
fn two_do_not_pack_or_prune_at_once() {
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    let other = fs::File::open(state.join("epochs")).unwrap();
    other.lock().unwrap();
    assert!(matches!(pack(&state), Err(StoreError::Busy { .. })));
    let error = prune(&state, &Retention::default(), true).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    drop(other);
    assert_eq!(pack(&state).unwrap(), []);
}
