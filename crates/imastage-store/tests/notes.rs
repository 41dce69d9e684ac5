//! Remarks, and what becomes of those that turn out wrong.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;

use common::{new_store, three_commits};
use imastage_store::{Note, Store, StoreError, Withdrawal, all_notes, check, notes, repair};
use tempfile::tempdir;

fn note(time: u64, text: &str) -> Note {
    Note { index: 6, after: Some(5), time, kind: "missing".into(), text: text.into() }
}

#[test]
fn a_remark_that_is_withdrawn_is_not_in_force_and_not_forgotten() {
    let dir = tempdir().unwrap();
    let mut store = new_store(&dir, 500);
    let state = dir.path().join("state");
    let [wrong, right, never] = [note(1, "wrong\u{1b}[2J"), note(2, "right"), note(3, "never")];
    store.note(&wrong).unwrap();
    store.note(&right).unwrap();
    store.withdraw(&wrong, 9, "the file was restored").unwrap();
    let withdrawn = Some(Withdrawal { time: 9, text: "the file was restored".into() });
    let expect = || {
        assert_eq!(notes(&state).unwrap(), std::slice::from_ref(&right));
        let all = all_notes(&state).unwrap();
        let all: Vec<_> = all.iter().map(|kept| (&kept.note, &kept.withdrawn)).collect();
        assert_eq!(all, [(&wrong, &withdrawn), (&right, &None)]);
    };
    expect();
    // Again: as one does who is not sure whether it succeeded.
    let before = fs::read(state.join("epochs/0001/notes")).unwrap();
    store.withdraw(&wrong, 10, "again").unwrap();
    assert_eq!(fs::read(state.join("epochs/0001/notes")).unwrap(), before);
    assert!(matches!(store.withdraw(&never, 9, ""), Err(StoreError::NoSuchNote { .. })));
    drop(store);
    expect();
    assert_eq!(check(&state).unwrap().damage, []);

    // What is repaired keeps both.
    fs::write(state.join("epochs/0001/notes"), [&before[..], b"half a li"].concat()).unwrap();
    assert_eq!(repair(&state, false).unwrap()[0].left, []);
    expect();

    // What is found again later is in force again.
    let mut store = Store::open(&state).unwrap();
    store.note(&wrong).unwrap();
    assert_eq!(notes(&state).unwrap(), [right.clone(), wrong.clone()]);
    store.withdraw(&wrong, 11, "restored once more").unwrap();
    assert_eq!(notes(&state).unwrap(), [right]);
}

#[test]
fn files_of_earlier_versions_are_read() {
    let dir = tempdir().unwrap();
    let (state, _) = three_commits(&dir);
    let mut lines = String::new();
    for line in [
        r#"{"index":3,"after":2,"time":7,"kind":"missing","text":"records are missing""#,
        r#"{"index":0,"after":null,"time":8,"text":"a \"remark\"""#,
    ] {
        // As docs/store-format.md says it.
        let crc = crc32fast::hash(format!("{line}}}").as_bytes());
        lines += &format!("{line},\"crc\":{crc}}}\n");
    }
    fs::write(state.join("epochs/0001/notes"), lines).unwrap();
    let found = notes(&state).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].kind.as_str(), found[1].text.as_str()), ("missing", "a \"remark\""));
    assert_eq!(check(&state).unwrap().damage, []);
}
