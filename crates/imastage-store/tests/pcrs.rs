//! Lists that do not extend PCR 10, or not only.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{fs, path::Path};

use common::{BANKS, id};
use ima_log::{Bank, Extend, RecordBuf, Replay};
use imastage_store::{Reader, Store, check, check_epoch, pack};
use tempfile::tempdir;

fn records(pcrs: &[u32]) -> Vec<RecordBuf> {
    let record = |n: u32| {
        let pcr = pcrs[n as usize % pcrs.len()];
        match n % 5 {
            4 => RecordBuf::ima_ng_violation(pcr, Bank::Sha256, b"/violation"),
            _ => RecordBuf::ima_ng(pcr, &Bank::Sha256.hash(&[]), format!("/{n}").as_bytes()),
        }
    };
    (0..3_000).map(record).collect()
}

fn fill(store: &mut Store, records: &[RecordBuf]) {
    for batch in records.chunks(700) {
        for record in batch {
            store.append(&record.record()).unwrap();
        }
        store.commit().unwrap();
    }
}

fn replay(records: &[RecordBuf], pcr: u32) -> Vec<Replay> {
    let own = BANKS.map(|bank| Replay::new(bank, Extend::Own));
    let mut replays = [&own[..], &[Replay::new(Bank::Sha384, Extend::Sha1Padded)]].concat();
    for record in records.iter().filter(|record| record.record().pcr() == pcr) {
        replays.iter_mut().for_each(|replay| replay.extend(&record.record()));
    }
    replays
}

#[test]
fn the_pcr_is_the_one_that_the_first_record_names() {
    for (pcrs, own) in [(&[10][..], 10), (&[11], 11), (&[11, 10], 11), (&[10, 11], 10), (&[0], 0)] {
        let dir = tempdir().unwrap();
        let state = dir.path();
        let mut store = Store::open_with(state, 20_000).unwrap();
        store.begin_epoch_with(id(1), &BANKS, &[Bank::Sha384]).unwrap();
        assert_eq!((store.pcr(), Reader::open(state).unwrap().pcr()), (None, None));
        let records = records(pcrs);
        // What is taken back decides nothing.
        let other = RecordBuf::ima_ng(14, &Bank::Sha256.hash(&[]), b"/other");
        store.append(&other.record()).unwrap();
        assert_eq!(store.pcr(), Some(14));
        store.rollback();
        assert_eq!(store.pcr(), None);
        fill(&mut store, &records[..1_500]);
        drop(store);
        let mut store = Store::open_with(state, 20_000).unwrap();
        assert_eq!(store.pcr(), Some(own));
        fill(&mut store, &records[1_500..]);

        let expected = replay(&records, own);
        for pcr in &expected {
            let (bank, extend) = (pcr.value().bank(), pcr.extend_kind());
            assert_eq!(store.running_as(bank, extend), Some(pcr.value()), "{pcrs:?}");
        }
        assert_eq!(check(state).unwrap().damage, []);
        assert_eq!(check(state).unwrap().checkpoints, []);
        // And so when it is closed and packed.
        store.begin_epoch(id(2), &BANKS).unwrap();
        assert_eq!(store.pcr(), None);
        for packed in [false, true] {
            if packed {
                assert_eq!(pack(state).unwrap()[0].damage, None);
            }
            let reader = Reader::open_number(state, 1).unwrap();
            assert_eq!(reader.pcr(), Some(own));
            for at in [0, 1, 1_025, 2_999, 3_000] {
                let expected = replay(&records[..at], own);
                assert_eq!(reader.running_at(at as u64).unwrap(), expected, "{pcrs:?} {at}");
            }
            assert_eq!(check_epoch(state, 1).unwrap().damage, []);
        }
    }
}

/// Makes of a store what earlier versions would have made: they kept PCR 10, whatever records named.
fn as_before(epoch: &Path, records: &[RecordBuf]) {
    let path = epoch.join("commits");
    let mut commits = fs::read(&path).unwrap();
    for (n, entry) in commits[20..].chunks_exact_mut(100).enumerate() {
        assert_ne!(entry[7], 0);
        entry[7] = 0;
        let len = records.len().min((n + 1) * 700);
        let mut at = 44;
        for pcr in replay(&records[..len], 10).iter().take(2) {
            let value = pcr.value();
            entry[at..at + value.as_bytes().len()].copy_from_slice(value.as_bytes());
            at += value.as_bytes().len();
        }
        let crc = crc32fast::hash(&entry[..96]).to_le_bytes();
        entry[96..].copy_from_slice(&crc);
    }
    fs::write(&path, commits).unwrap();
    fs::remove_file(epoch.join("checkpoints")).unwrap();
}

#[test]
fn stores_of_earlier_versions_are_read_and_go_on() {
    let records = records(&[11, 10]);
    let dir = tempdir().unwrap();
    let state = dir.path();
    let mut store = Store::open(state).unwrap();
    store.begin_epoch(id(1), &BANKS).unwrap();
    fill(&mut store, &records[..2_000]);
    drop(store);
    as_before(&state.join("epochs/0001"), &records[..2_000]);
    assert_eq!(check(state).unwrap().damage, []);
    let mut store = Store::open(state).unwrap();
    assert_eq!(store.pcr(), Some(10));
    fill(&mut store, &records[2_000..]);
    assert_eq!(store.running(Bank::Sha256), Some(replay(&records, 10)[1].value()));
    assert_eq!(check(state).unwrap().damage, []);
    assert_eq!(
        Reader::open(state).unwrap().running_at(1_500).unwrap(),
        replay(&records[..1_500], 10)[..2]
    );
}

#[test]
fn a_list_of_pcr_10_is_written_as_before() {
    let dir = tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    store.begin_epoch(id(1), &BANKS).unwrap();
    fill(&mut store, &records(&[10, 11]));
    let commits = fs::read(dir.path().join("epochs/0001/commits")).unwrap();
    assert!(commits[20..].chunks_exact(100).all(|entry| entry[7] == 0));
}

#[test]
fn a_pcr_that_no_tpm_has_tells_nothing() {
    let dir = tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    store.begin_epoch(id(1), &BANKS).unwrap();
    fill(&mut store, &records(&[u32::MAX, 10]));
    assert_eq!(store.pcr(), Some(10));
    assert_eq!(check(dir.path()).unwrap().damage, []);
}
