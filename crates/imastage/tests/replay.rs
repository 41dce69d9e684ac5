//! `imastage replay` on lists that do not lead to the PCR values they came with.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{fs, path::PathBuf, process::Command};

use ima_log::{Bank, Format, Records};
use serde_json::{Value, json};

const FOLDER: &str = "../../tests/corpus/debian-6.1";

fn records() -> Vec<Vec<u8>> {
    let list = fs::read(PathBuf::from(FOLDER).join("binary")).unwrap();
    Records::new(&list, Format::native(Bank::Sha1))
        .map(|record| record.unwrap().as_bytes().to_vec())
        .collect()
}

/// Replays `list` from a file and from standard input, which must answer the same.
fn replay(list: &[Vec<u8>], args: &[&str]) -> (i32, Value) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    fs::write(&path, list.concat()).unwrap();
    let answers = [path.to_str().unwrap(), "-"].map(|name| {
        let output = Command::new(env!("CARGO_BIN_EXE_imastage"))
            .args(["--json", "replay", "--pcrs", &format!("{FOLDER}/pcrs"), name])
            .args(args)
            .stdin(fs::File::open(&path).unwrap())
            .output()
            .unwrap();
        (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
    });
    assert_eq!(answers[0], answers[1]);
    answers[0].clone()
}

fn explanation(cause: &str, record: u64, records: u64, extend: &str) -> Value {
    json!({"cause": cause, "record": record, "records": records, "extend": extend, "looked_from": 0})
}

#[test]
fn all_banks_match() {
    let (code, answer) = replay(&records(), &[]);
    assert_eq!(code, 0, "{answer}");
    for (bank, extend) in
        [("sha1", "own"), ("sha256", "own"), ("sha384", "sha1-padded"), ("sha512", "sha1-padded")]
    {
        assert_eq!(answer["banks"][bank]["match"], json!({"records": 461, "extend": extend}));
        assert!(answer["banks"][bank].get("explanation").is_none());
    }
    assert_eq!(answer["from_boot_aggregate"], true);
}

#[test]
fn a_record_that_never_extended() {
    let mut list = records();
    list.insert(100, list[5].clone());
    let (code, answer) = replay(&list, &[]);
    assert_eq!(code, 1);
    let expected = explanation("not-extended", 100, 462, "own");
    assert_eq!(answer["banks"]["sha1"]["explanation"], expected);
    // What one bank explains is told of the others, too.
    for bank in ["sha256", "sha512"] {
        let explanation = &answer["banks"][bank]["explanation"];
        assert_eq!(explanation["cause"], "not-extended");
        assert_eq!((&explanation["record"], &explanation["extend"]), (&json!(100), &Value::Null));
    }
}

#[test]
fn a_record_that_is_missing_cannot_be_guessed() {
    let mut list = records();
    list.remove(460);
    let (code, answer) = replay(&list, &["--bank", "sha256"]);
    assert_eq!(code, 1);
    let nothing = json!({
        "cause": null, "record": null, "records": null, "extend": null, "looked_from": 0,
    });
    assert_eq!(answer["banks"]["sha256"]["explanation"], nothing);
}

#[test]
fn altered_data() {
    let mut list = records();
    let at = list[100].len() - 10;
    list[100][at] ^= 1;
    let (code, answer) = replay(&list, &["--bank", "sha1"]);
    assert_eq!(code, 1);
    let expected = explanation("data-altered", 100, 461, "own");
    assert_eq!(answer["banks"]["sha1"]["explanation"], expected);
}

#[test]
fn a_missing_head_and_a_window() {
    let list = records().split_off(7);
    let (code, answer) = replay(&list, &["--window", "10"]);
    assert_eq!(code, 1);
    assert_eq!(answer["from_boot_aggregate"], false);
    assert_eq!(answer["banks"]["sha256"]["explanation"]["looked_from"], 444);
}
