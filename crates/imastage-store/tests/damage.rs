//! What is damaged is found, located or refused.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use common::{bytes_of, files, record, stored, three_commits};
use ima_log::{Bank, Format, Records};
use imastage_store::{Note, Reader, Store, check, notes};
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

fn segments(state: &Path) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "ima");
    files(state).into_iter().filter(is_segment).collect()
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
fn every_altered_byte_is_found_and_located() {
    let dir = tempdir().unwrap();
    let (state, records) = three_commits(&dir);
    for file in files(&state) {
        let bytes = fs::read(&file).unwrap();
        let is_segment = file.extension().is_some_and(|extension| extension == "ima");
        let first: u64 = match is_segment {
            true => file.file_stem().unwrap().to_str().unwrap().parse().unwrap(),
            false => 0,
        };
        let name = file.file_name().unwrap().to_str().unwrap();
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 0x10;
            fs::write(&file, &altered).unwrap();
            let found = match check(&state) {
                Ok(report) => [report.damage, report.checkpoints].concat(),
                Err(error) => panic!("byte {at} of {name}: {error}"),
            };
            if !is_segment {
                let right = matches!(&found[..], [damage] if damage.path == file
                    && (damage.offset..damage.offset + 300).contains(&(at as u64)));
                assert!(right, "byte {at} of {name}: {found:#?}");
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
                // After the PCR index, the digest; after name and length, the data.
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
    let last = segments(&state).last().unwrap().file_name().unwrap().to_owned();
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
    fs::remove_file(&segments(&state)[1]).unwrap();
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
fn a_segment_that_is_emptied_ends_reading() {
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    for (n, segment) in segments(&state).iter().enumerate() {
        let bytes = fs::read(segment).unwrap();
        fs::write(segment, b"").unwrap();
        let mut cursor = Reader::open(&state).unwrap().records(0).unwrap();
        let error = std::iter::from_fn(|| cursor.next_record().map(|r| r.map(|_| ())).transpose())
            .find_map(Result::err)
            .unwrap();
        let expected = format!("the segment ends here, {} bytes were committed", bytes.len());
        assert!(error.to_string().contains(&expected), "segment {n}: {error}");
        fs::write(segment, bytes).unwrap();
    }
}

#[test]
fn what_no_commit_stored_is_found_and_not_given() {
    let dir = tempdir().unwrap();
    let (state, records) = three_commits(&dir);
    let segment = &segments(&state)[0];
    let mut bytes = fs::read(segment).unwrap();
    let end = bytes.len() as u64;
    bytes.extend(record(99).into_bytes());
    fs::write(segment, bytes).unwrap();
    assert_eq!(stored(&state, 0), bytes_of(&records));
    let damage = check(&state).unwrap().damage;
    assert!(matches!(&damage[..], [found] if found.offset == end && found.path == *segment));
}

#[test]
fn a_last_commit_that_may_have_been_whole_takes_no_records_with_it() {
    let dir = tempdir().unwrap();
    let (state, records) = three_commits(&dir);
    let path = state.join("epochs/0001/commits");
    let mut bytes = fs::read(&path).unwrap();
    let len = bytes.len();
    bytes[len - 60] ^= 1;
    fs::write(&path, bytes).unwrap();
    let damage = check(&state).unwrap().damage;
    assert!(damage[0].to_string().contains("commit 2, the last, is torn or was altered"));

    let store = Store::open(&state).unwrap();
    assert_eq!(store.len(), 12);
    let kept = store.recovery().kept.clone().unwrap();
    assert_eq!(fs::read(kept).unwrap(), bytes_of(&records[12..]).concat());
    assert_eq!(store.recovery().record_bytes as usize, bytes_of(&records[12..]).concat().len());
    assert_eq!(check(&state).unwrap().damage, []);
    drop(store);
    let store = Store::open(&state).unwrap();
    assert_eq!((store.recovery().kept.clone(), store.recovery().record_bytes), (None, 0));
}

#[test]
fn a_torn_note_takes_no_other_with_it() {
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    let path = state.join("epochs/0001/notes");
    let before = notes(&state).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(br#"{"index":3,"af"#);
    fs::write(&path, bytes).unwrap();
    assert_eq!(notes(&state).unwrap(), before);
    let note = Note {
        index: 18,
        after: Some(17),
        time: 9,
        kind: String::new(),
        text: "unlogged extend".into(),
    };
    Store::open(&state).unwrap().note(&note).unwrap();
    assert_eq!(notes(&state).unwrap(), [before, vec![note]].concat());
    assert_eq!(check(&state).unwrap().damage, []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Nothing that stands in the files makes anything panic, hang or claim memory.
    #[test]
    fn hostile_files_are_refused_or_read(
        which in any::<proptest::sample::Index>(),
        at in any::<proptest::sample::Index>(),
        new in proptest::collection::vec(any::<u8>(), 0..200),
        cut in any::<bool>(),
        right_crcs in any::<bool>(),
    ) {
        static WHOLE: LazyLock<TempDir> = LazyLock::new(|| {
            let dir = tempdir().unwrap();
            three_commits(&dir);
            dir
        });
        let dir = tempdir().unwrap();
        let state = dir.path().join("state");
        copy(&WHOLE.path().join("state"), &state);
        let files = files(&state);
        let file = which.get(&files);
        let mut bytes = fs::read(file).unwrap();
        let at = at.index(bytes.len());
        let end = if cut { bytes.len() } else { (at + new.len()).min(bytes.len()) };
        bytes.splice(at..end, new);
        if right_crcs && file.ends_with("commits") {
            // An attacker knows how to make them.
            for entry in bytes.split_at_mut(20.min(at)).1.chunks_exact_mut(100) {
                let crc = crc32fast::hash(&entry[..96]);
                entry[96..].copy_from_slice(&crc.to_le_bytes());
            }
        }
        fs::write(file, bytes).unwrap();
        let _ = check(&state);
        let _ = notes(&state);
        if let Ok(reader) = Reader::open(&state) {
            for from in [0, 7, reader.len().saturating_sub(1), reader.len()] {
                let Ok(mut cursor) = reader.records(from) else { continue };
                let mut given = 0;
                while let Ok(Some(_)) = cursor.next_record() {
                    given += 1;
                    prop_assert!(given < 1_000);
                }
            }
        }
        if let Ok(mut store) = Store::open_with(&state, 500) {
            let _ = store.tail(5);
            let _ = store.append(&record(5).record()).and_then(|_| store.commit());
        }
    }
}

#[test]
fn what_a_file_claims_is_not_allocated() {
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    // A sparse terabyte costs nobody anything but who reads it into memory.
    let huge = |path: &Path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(1 << 40).is_ok()
    };
    let commits = state.join("epochs/0001/commits");
    let mut bytes = fs::read(&commits).unwrap();
    let last = bytes.len() - 100;
    for field in [16, 32] {
        bytes[last + field..last + field + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[last..last + 96]);
    bytes[last + 96..].copy_from_slice(&crc.to_le_bytes());
    fs::write(&commits, bytes).unwrap();
    if !huge(segments(&state).last().unwrap()) {
        eprintln!("SKIPPED: no sparse files of this size here");
        return;
    }
    assert_ne!(check(&state).unwrap().damage, []);
    for name in ["epoch.json", "notes", "format"] {
        let path = match name {
            "format" => state.join(name),
            _ => state.join("epochs/0001").join(name),
        };
        let whole = fs::read(&path).unwrap();
        assert!(huge(&path));
        let error = match (notes(&state), check(&state)) {
            (Err(error), _) | (_, Err(error)) => error.to_string(),
            (_, Ok(report)) => report.damage[0].to_string(),
        };
        assert!(error.contains(name), "{error}");
        fs::write(&path, whole).unwrap();
    }
}
