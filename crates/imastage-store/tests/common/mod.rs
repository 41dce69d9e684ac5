//! What the tests store.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ima_log::{Bank, RecordBuf};
use imastage_store::{EpochId, Note, Reader, Retention, Store};
use tempfile::TempDir;

pub const BANKS: [Bank; 2] = [Bank::Sha1, Bank::Sha256];

pub fn id(reset_count: u32) -> EpochId {
    EpochId { tpm: Some("a TPM".into()), reset_count: Some(reset_count), boot_id: "a boot".into() }
}

pub fn record(kind: u32) -> RecordBuf {
    match kind % 10 {
        0 => RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/violation"),
        1 => RecordBuf::ima_ng(11, &Bank::Sha256.hash(&[]), b"/of/another/pcr"),
        _ => {
            let name = format!("/file/{kind}/{}", "x".repeat(kind as usize % 50));
            RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&kind.to_le_bytes()]), name.as_bytes())
        }
    }
}

pub fn new_store(dir: &TempDir, segment_size: u64) -> Store {
    let mut store = Store::open_with(&dir.path().join("state"), segment_size).unwrap();
    store.begin_epoch(id(1), &BANKS).unwrap();
    store
}

pub fn stored(state: &Path, from: u64) -> Vec<Vec<u8>> {
    let mut cursor = Reader::open(state).unwrap().records(from).unwrap();
    let mut records = Vec::new();
    while let Some(record) = cursor.next_record().unwrap() {
        records.push(record.as_bytes().to_vec());
    }
    records
}

pub fn bytes_of(records: &[RecordBuf]) -> Vec<Vec<u8>> {
    records.iter().map(|record| record.as_bytes().to_vec()).collect()
}

/// Three commits in small segments; gives the state's directory and what was stored.
pub fn three_commits(dir: &TempDir) -> (PathBuf, Vec<RecordBuf>) {
    let mut store = new_store(dir, 500);
    let records: Vec<RecordBuf> = (12..30).map(record).collect();
    for batch in records.chunks(6) {
        for record in batch {
            store.append(&record.record()).unwrap();
        }
        store.commit().unwrap();
    }
    for time in 0..2 {
        let note = Note {
            index: 6,
            after: Some(5),
            time,
            kind: "missing".into(),
            text: "records are missing".into(),
        };
        store.note(&note).unwrap();
    }
    (dir.path().join("state"), records)
}

pub fn files(state: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(state.join("epochs/0001"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// A closed epoch and an open one, both with records and remarks.
pub fn two_epochs(dir: &TempDir) -> (PathBuf, Vec<RecordBuf>) {
    let (state, records) = three_commits(dir);
    let mut store = Store::open_with(&state, 500).unwrap();
    store.begin_epoch(id(2), &BANKS).unwrap();
    for record in &records {
        store.append(&record.record()).unwrap();
    }
    store.commit().unwrap();
    let (kind, text) = (String::new(), "a remark".to_owned());
    store.note(&Note { index: 0, after: None, time: 1, kind, text }).unwrap();
    (state, records)
}

/// Every file below a directory, with what it holds.
pub fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => files.extend(snapshot(&entry.path())),
            kind if kind.is_file() => {
                files.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
            _ => {}
        }
    }
    files
}

/// What an attacker wants to have altered.
pub fn victim(dir: &TempDir) -> PathBuf {
    let victim = dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    for (name, bytes) in
        [("file", &b"precious"[..]), ("commits", b"also"), ("0000.ima", b"and this")]
    {
        fs::write(victim.join(name), bytes).unwrap();
    }
    victim
}

pub const NOTHING_IS_KEPT: Retention = Retention { epochs: Some(0), bytes: None, age: None };
