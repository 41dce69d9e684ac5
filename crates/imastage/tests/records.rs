//! `show`, `diff` and `check` on real lists, in every form.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use ima_log::{Bank, RecordBuf};
use serde_json::Value;

fn corpus(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus").join(path)
}

/// Lists of every kind.
const LISTS: [&str; 6] = [
    "debian-6.1/binary",
    "debian-6.12-violations/binary_sha384",
    "legacy-ima/binary",
    "signed/binary",
    "violations/binary",
    "kexec/2-after/binary",
];

fn imastage(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imastage")).args(args).output().unwrap()
}

/// What a run that ends with `code` prints.
fn run(args: &[&str], code: i32) -> Vec<u8> {
    let output = imastage(args);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn answer(args: &[&str], code: i32) -> Value {
    serde_json::from_slice(&run(args, code)).unwrap()
}

fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_form_leads_back_to_the_list() {
    let dir = tempfile::tempdir().unwrap();
    for list in LISTS {
        let path = corpus(list);
        let original = fs::read(&path).unwrap();
        let bank = if list.ends_with("sha384") { "sha384" } else { "sha1" };
        for (form, banks) in [
            ("json", &["--bank", bank][..]),
            ("cel-json", &[]),
            ("cel-cbor", &[]),
            ("binary", &["--bank", bank]),
        ] {
            let args = [&["show", "--as", form], banks, &[str(&path)]].concat();
            let exported = dir.path().join(form);
            fs::write(&exported, run(&args, 0)).unwrap();
            let again = run(&["show", "--as", "binary", "--bank", bank, str(&exported)], 0);
            assert!(again == original, "{list} as {form}");
            let same = answer(&["--json", "diff", str(&path), str(&exported)], 0);
            assert_eq!(same["result"], "same", "{list} as {form}");
            run(&["check", str(&exported)], 0);
        }
    }
}

#[test]
fn exported_lists_replay_to_the_same_pcrs() {
    let dir = tempfile::tempdir().unwrap();
    for list in ["violations", "debian-6.12-violations"] {
        for form in ["json", "cel-json", "cel-cbor"] {
            let exported = dir.path().join(form);
            let path = corpus(list).join("binary");
            fs::write(&exported, run(&["show", "--as", form, str(&path)], 0)).unwrap();
            let pcrs = corpus(list).join("pcrs");
            run(&["replay", "--pcrs", str(&pcrs), str(&exported)], 0);
        }
    }
}

#[test]
fn a_canonical_event_log_replays_by_its_digests_alone() {
    let path = corpus("debian-6.12-violations/binary");
    let log = answer(
        &["show", "--as", "cel-json", "--bank", "sha256", "--bank", "sha512", str(&path)],
        0,
    );
    let pcrs = fs::read_to_string(corpus("debian-6.12-violations/pcrs")).unwrap();
    for bank in [Bank::Sha1, Bank::Sha256, Bank::Sha512] {
        let mut pcr = ima_log::Digest::zero(bank);
        for (position, record) in log.as_array().unwrap().iter().enumerate() {
            assert_eq!(record["recnum"], position);
            assert_eq!(record["pcr"], 10);
            let digests = record["digests"].as_array().unwrap();
            let own = digests.iter().find(|digest| digest["hashAlg"] == bank.name()).unwrap();
            let value = ima_log::Digest::from_hex(bank, own["digest"].as_str().unwrap()).unwrap();
            pcr = pcr.extended_with(&value);
        }
        let expected = format!("{bank} 10 {pcr}");
        assert!(pcrs.lines().any(|line| line.eq_ignore_ascii_case(&expected)), "{expected}");
    }
}

#[test]
fn filters_show_what_fits_all_of_them() {
    let list = corpus("debian-6.12-violations/binary");
    let list = str(&list);
    let shown = |filter: &[&str]| -> Vec<Value> {
        let lines = run(&[&["show", "--as", "json"], filter, &[list]].concat(), 0);
        lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    };
    let all = shown(&[]);
    let indices = |records: &[Value]| {
        records.iter().map(|record| record["index"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let fitting = |fits: &dyn Fn(&[u8]) -> bool| {
        let name = |record: &Value| match &record["fields"][1]["n-ng"] {
            Value::String(name) => name.clone().into_bytes(),
            // Not UTF-8; with its NUL.
            other => {
                let mut name = hex::decode(other["hex"].as_str().unwrap()).unwrap();
                assert_eq!(name.pop(), Some(0));
                name
            }
        };
        let records: Vec<Value> =
            all.iter().filter(|record| fits(&name(record))).cloned().collect();
        assert!(!records.is_empty() && records.len() < all.len());
        indices(&records)
    };

    let violations = shown(&["--violations"]);
    assert_eq!(violations.len(), 2);
    assert!(violations.iter().all(|record| record["violation"] == true));
    let of_viol = fitting(&|name| name.starts_with(b"/t/viol"));
    assert_eq!(indices(&shown(&["--path", "/t/viol*"])), of_viol);
    let below = fitting(&|name| name.starts_with(b"/t/"));
    for pattern in ["/t/**", "/t/", "/t"] {
        assert_eq!(indices(&shown(&["--path", pattern])), below, "{pattern}");
    }
    let top = fitting(&|name| {
        name.starts_with(b"/t/") && name.iter().filter(|byte| **byte == b'/').count() == 2
    });
    assert_eq!(indices(&shown(&["--path", "/t/*"])), top);
    assert_eq!(shown(&["--pcr", "10"]).len(), all.len());
    assert!(shown(&["--pcr", "11"]).is_empty());
    assert_eq!(shown(&["--template", "ima-sig"]).len(), all.len());
    assert!(shown(&["--template", "ima-ng"]).is_empty());
    assert_eq!(shown(&["--from", "7", "--count", "3"]), all[7..10]);
    assert_eq!(shown(&["--violations", "--count", "1"]), violations[..1]);
    assert!(shown(&["--from", "100000"]).is_empty());
    assert!(shown(&["--count", "0"]).is_empty());

    let file_digest = all[5]["fields"][0]["d-ng"].as_str().unwrap();
    assert!(shown(&["--digest", file_digest]).contains(&all[5]));
    for bank in ["sha1", "sha256", "sha512"] {
        let record = &shown(&["--bank", bank, "--from", "5", "--count", "1"])[0];
        let digest = record["digest"].as_str().unwrap();
        assert_eq!(shown(&["--digest", digest]), all[5..6], "{bank}");
    }
    run(&["show", "--digest", "12", list], 2);
    run(&["show", "--path", "[", list], 2);
}

#[test]
fn diff_says_where_lists_part() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, records: &[RecordBuf]| {
        let path = dir.path().join(name);
        let list: Vec<u8> = records.iter().flat_map(|record| record.as_bytes().to_vec()).collect();
        fs::write(&path, list).unwrap();
        path
    };
    let record =
        |digest: &[u8], name: &[u8]| RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[digest]), name);
    let list = [record(b"a", b"/a"), record(b"b", b"/b"), record(b"c", b"/c")];
    let a = write("a", &list);
    let diff = |b: &Path, code| answer(&["--json", "diff", str(&a), str(b)], code);

    let prefix = diff(&write("prefix", &list[..2]), 1);
    assert_eq!(prefix, serde_json::json!({"result": "b-is-prefix", "records": 2, "more": 1}));
    let empty = diff(&write("empty", &[]), 1);
    assert_eq!(empty, serde_json::json!({"result": "b-is-prefix", "records": 0, "more": 3}));
    let longer = diff(&write("longer", &[&list[..], &list[..2]].concat()), 1);
    assert_eq!(longer, serde_json::json!({"result": "a-is-prefix", "records": 3, "more": 2}));
    assert_eq!(diff(&write("same", &list), 0), serde_json::json!({"result": "same", "records": 3}));

    for (name, altered, field) in [
        ("name", record(b"b", b"/x"), "n-ng"),
        ("file digest", record(b"x", b"/b"), "d-ng"),
        ("pcr", RecordBuf::ima_ng(11, &Bank::Sha256.hash(&[b"b"]), b"/b"), "pcr"),
        (
            "template",
            RecordBuf::ima_buf(10, &Bank::Sha256.hash(&[b"b"]), b"/b", b"1").unwrap(),
            "template",
        ),
        ("violation", RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/b"), "violation"),
    ] {
        let b = write(name, &[list[0].clone(), altered, list[2].clone()]);
        let differs = diff(&b, 1);
        assert_eq!(
            (&differs["result"], &differs["index"]),
            (&"differs".into(), &1.into()),
            "{name}"
        );
        assert_eq!(differs["field"], field, "{name}");
        assert_ne!(differs["a"], differs["b"], "{name}");
    }
    let mut bytes = fs::read(&a).unwrap();
    bytes[4] ^= 1;
    let b = dir.path().join("digest");
    fs::write(&b, bytes).unwrap();
    assert_eq!(diff(&b, 1)["field"], "digest");
    run(&["diff", "-", "-"], 2);
}

#[test]
fn check_names_the_records_whose_digest_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    for list in LISTS {
        let path = corpus(list);
        let answer = answer(&["--json", "check", str(&path)], 0);
        assert_eq!(answer["wrong"], 0, "{list}");
        assert!(answer["records"].as_u64().unwrap() > 0, "{list}");
    }
    let mut bytes = fs::read(corpus("debian-6.1/binary")).unwrap();
    let first = u32::from_le_bytes(bytes[31 + 4..35 + 4].try_into().unwrap());
    assert!(first < 200, "the data of the first record, an ima-sig");
    // A bit of the first record's data, and one of the second's digest.
    bytes[50] ^= 1;
    let second = 4 + 20 + 4 + 7 + 4 + first as usize;
    bytes[second + 4] ^= 1;
    let path = dir.path().join("altered");
    fs::write(&path, bytes).unwrap();
    let answer = answer(&["--json", "check", str(&path)], 1);
    assert_eq!(answer["wrong"], 2);
    assert_eq!(answer["first"][0]["index"], 0);
    assert_eq!(answer["first"][1]["index"], 1);
    assert_eq!(answer["first"][1]["name"], "/init");
    let text = run(&["check", str(&path)], 1);
    assert!(String::from_utf8(text).unwrap().contains("record 1 \"/init\""));
}

#[test]
fn what_is_no_list_names_record_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    let list = corpus("debian-6.1/binary");
    for (form, near) in [
        ("binary", "record "),
        ("json", "record "),
        ("cel-json", "record "),
        ("cel-cbor", "record "),
    ] {
        let bytes = run(&["show", "--as", form, "--count", "9", str(&list)], 0);
        let path = dir.path().join(form);
        fs::write(&path, &bytes[..bytes.len() - 40]).unwrap();
        let output = imastage(&["check", str(&path)]);
        assert_eq!(output.status.code(), Some(2), "{form}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(&format!("{near}8 at byte ")), "{form}: {error}");
    }
}

#[test]
fn standard_input_is_a_list() {
    let bytes = fs::read(corpus("violations/binary")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_imastage"))
        .args(["show", "--as", "cel-cbor", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || stdin.write_all(&bytes));
    let mut log = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut log).unwrap();
    feeder.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(log[0] >> 5, 4, "an array");
}
