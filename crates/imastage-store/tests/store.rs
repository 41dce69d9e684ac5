//! The store on a real file system: what it keeps, what a crash leaves, what damage is found.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ima_log::{Bank, Digest, Extend, Format, Record, RecordBuf, Records, Replay};
use imastage_store::{EpochId, Note, Reader, Store, StoreError, check, notes};
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

const BANKS: [Bank; 2] = [Bank::Sha1, Bank::Sha256];

fn id(reset_count: u32) -> EpochId {
    EpochId { tpm: Some("a TPM".into()), reset_count: Some(reset_count), boot_id: "a boot".into() }
}

fn record(kind: u32) -> RecordBuf {
    match kind % 10 {
        0 => RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/violation"),
        1 => RecordBuf::ima_ng(11, &Bank::Sha256.hash(&[]), b"/of/another/pcr"),
        _ => {
            let name = format!("/file/{kind}/{}", "x".repeat(kind as usize % 50));
            RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&kind.to_le_bytes()]), name.as_bytes())
        }
    }
}

fn new_store(dir: &TempDir, segment_size: u64) -> Store {
    let mut store = Store::open_with(&dir.path().join("state"), segment_size).unwrap();
    store.begin_epoch(id(1), &BANKS).unwrap();
    store
}

fn stored(state: &Path, from: u64) -> Vec<Vec<u8>> {
    let mut cursor = Reader::open(state).unwrap().records(from).unwrap();
    let mut records = Vec::new();
    while let Some(record) = cursor.next_record().unwrap() {
        records.push(record.as_bytes().to_vec());
    }
    records
}

fn replay(records: &[RecordBuf], bank: Bank) -> Digest {
    let mut replay = Replay::new(bank, Extend::Own);
    for record in records.iter().filter(|record| record.record().pcr() == 10) {
        replay.extend(&record.record());
    }
    replay.value()
}

fn bytes_of(records: &[RecordBuf]) -> Vec<Vec<u8>> {
    records.iter().map(|record| record.as_bytes().to_vec()).collect()
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
    #![proptest_config(ProptestConfig::with_cases(64))]

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

/// Three commits in small segments; gives the state's directory and what was stored.
fn three_commits(dir: &TempDir) -> (PathBuf, Vec<RecordBuf>) {
    let mut store = new_store(dir, 500);
    let records: Vec<RecordBuf> = (12..30).map(record).collect();
    for batch in records.chunks(6) {
        for record in batch {
            store.append(&record.record()).unwrap();
        }
        store.commit().unwrap();
    }
    (dir.path().join("state"), records)
}

fn files(state: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(state.join("epochs/0001"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "ima") || path.ends_with("commits"))
        .collect();
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_power_cut_anywhere_in_a_commit_loses_only_that_commit() {
    // What a crash can leave of the third commit: any part of its record bytes, and of its entry
    // any part, or a hole of zeros where it should be.
    let dir = tempdir().unwrap();
    let mut store = new_store(&dir, 1 << 20);
    let records: Vec<RecordBuf> = (12..30).map(record).collect();
    let state = dir.path().join("state");
    let (segment, commits) =
        (state.join("epochs/0001/00000000000000000000.ima"), state.join("epochs/0001/commits"));
    let mut lengths = Vec::new();
    for batch in records.chunks(6) {
        batch.iter().for_each(|r| assert!(store.append(&r.record()).is_ok()));
        store.commit().unwrap();
        let len = |path: &Path| fs::metadata(path).unwrap().len() as usize;
        lengths.push((len(&segment), len(&commits)));
    }
    drop(store);
    let whole = (fs::read(&segment).unwrap(), fs::read(&commits).unwrap());
    let (before, after) = (lengths[1], lengths[2]);
    let mut cases = 0;
    for records_left in (before.0..=after.0).step_by(13).chain([after.0]) {
        for entry_left in before.1..=after.1 {
            for zeros in [false, true] {
                // An entry is only written when its records are synced.
                let intact = records_left == after.0 && entry_left == after.1;
                if entry_left > before.1 && records_left < after.0 {
                    continue;
                }
                let mut left = whole.1[..entry_left].to_vec();
                if zeros {
                    left.resize(after.1, 0);
                }
                fs::write(&segment, &whole.0[..records_left]).unwrap();
                fs::write(&commits, &left).unwrap();
                let expected = if intact { 18 } else { 12 };
                assert_eq!(stored(&state, 0), bytes_of(&records[..expected]));
                let mut store = Store::open(&state).unwrap();
                assert_eq!(store.len(), expected as u64);
                // It goes on from there.
                records[expected..].iter().for_each(|r| assert!(store.append(&r.record()).is_ok()));
                store.commit().unwrap();
                assert_eq!(stored(&state, 0), bytes_of(&records));
                assert_eq!(check(&state).unwrap().damage, []);
                cases += 1;
            }
        }
    }
    assert!(cases > 100, "{cases}");
}

#[test]
fn every_altered_byte_is_found_and_located() {
    let dir = tempdir().unwrap();
    let (state, records) = three_commits(&dir);
    for file in files(&state) {
        let bytes = fs::read(&file).unwrap();
        let is_segment = !file.ends_with("commits");
        let first: u64 = match is_segment {
            true => file.file_stem().unwrap().to_str().unwrap().parse().unwrap(),
            false => 0,
        };
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 0x10;
            fs::write(&file, &altered).unwrap();
            let found = match check(&state) {
                Ok(report) => report.damage,
                // The header, or two commits at once.
                Err(error) => {
                    assert!(error.to_string().contains("commits"), "{error}");
                    continue;
                }
            };
            if !is_segment {
                // The last entry may be taken for a torn one: then its records do not count.
                let torn = found.is_empty() && check(&state).unwrap().records == 12;
                assert!(torn || !found.is_empty(), "byte {at} of {}", file.display());
                continue;
            }
            // Which record holds the byte?
            let mut end = 0;
            let index = Records::new(&bytes, Format::native(Bank::Sha1))
                .position(|record| {
                    end += record.unwrap().as_bytes().len();
                    at < end
                })
                .unwrap() as u64
                + first;
            let [damage, ..] = &found[..] else {
                panic!("byte {at} of {} was not found", file.display())
            };
            assert!(damage.records.contains(&index), "byte {at}, record {index}: {damage}");
            let exact = damage.records.end - damage.records.start == 1;
            let authenticated = {
                let record = &records[index as usize];
                let start = end - record.as_bytes().len();
                // Behind the PCR index, the digest; behind name and length, the data.
                let in_record = at - start;
                let data = record.record().template_data().len();
                (4..24).contains(&in_record) || in_record >= record.as_bytes().len() - data
            };
            if authenticated && !records[index as usize].record().is_violation() {
                let structural = damage.what.contains("claims") || damage.what.contains("fields");
                assert!(exact || structural, "byte {at}, record {index}: {damage}");
            }
        }
        fs::write(&file, &bytes).unwrap();
    }
    assert_eq!(check(&state).unwrap().damage, []);
}

#[test]
fn what_no_crash_can_do_is_refused_and_named() {
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    let broken = |change: &dyn Fn(&Path)| {
        let copied = tempdir().unwrap();
        let state_copy = copied.path().join("state");
        copy(&state, &state_copy);
        change(&state_copy.join("epochs/0001"));
        Store::open(&state_copy).unwrap_err().to_string()
    };
    let segments: Vec<PathBuf> = files(&state);
    let last = segments[segments.len() - 2].file_name().unwrap().to_owned();
    let error = broken(&|epoch| fs::write(epoch.join(&last), b"").unwrap());
    assert!(error.contains("records up to index 17 are missing"), "{error}");
    let error = broken(&|epoch| fs::write(epoch.join("commits"), b"garbage").unwrap());
    assert!(error.contains("commits at byte 0"), "{error}");
    let error = broken(&|epoch| {
        let path = epoch.join("commits");
        let mut bytes = fs::read(&path).unwrap();
        let len = bytes.len();
        bytes[len - 150..].fill(0xff);
        fs::write(path, bytes).unwrap();
    });
    assert!(error.contains("commit 1 is damaged"), "{error}");
    let error = broken(&|epoch| fs::write(epoch.join("epoch.json"), b"{}").unwrap());
    assert!(error.contains("epoch.json"), "{error}");
}

#[test]
fn a_segment_that_is_gone_is_named_by_readers() {
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    let middle = &files(&state)[1];
    fs::remove_file(middle).unwrap();
    let mut cursor = Reader::open(&state).unwrap().records(0).unwrap();
    let error = loop {
        match cursor.next_record() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the end was reached"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("are missing"), "{error}");
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
    let note = Note { index: 1, after: Some(0), time: 7, text: "records are missing".into() };
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
