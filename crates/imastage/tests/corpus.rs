//! `replay`, `show` and `verify` give the right answer on every folder of the corpus.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{fs, io::Read};

use serde_json::json;

#[allow(dead_code)]
mod common;

use common::{corpus, imastage, imastage_with};

const FOLDERS: [&str; 9] = [
    "debian-6.1",
    "debian-6.12-violations",
    "lab-6.12-awkward",
    "violations",
    "signed",
    "legacy-ima",
    "kexec/1-before",
    "kexec/2-after",
    "big-20k",
];

fn list(folder: &str) -> Vec<u8> {
    if folder != "big-20k" {
        return fs::read(corpus(&format!("{folder}/binary"))).unwrap();
    }
    let packed = fs::read(corpus("big-20k/binary.gz")).unwrap();
    let mut list = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut list).unwrap();
    list
}

fn number(path: &str) -> u64 {
    fs::read_to_string(corpus(path)).unwrap().trim().parse().unwrap()
}

#[test]
fn every_list_replays_to_its_pcrs() {
    for folder in FOLDERS {
        let pcrs = corpus(&format!("{folder}/pcrs"));
        let answer = imastage_with(&["--json", "replay", "--pcrs", &pcrs, "-"], &list(folder));
        assert_eq!(answer.code, 0, "{folder}: {}", answer.stderr);
        let json = answer.json();
        let count = number(&format!("{folder}/count"));
        assert_eq!(json["records"], count, "{folder}");
        assert_eq!(json["violations"], number(&format!("{folder}/violations")), "{folder}");
        let banks: Vec<&String> = json["banks"].as_object().unwrap().keys().collect();
        assert_eq!(banks, ["sha1", "sha256", "sha384", "sha512"]);
        for bank in ["sha1", "sha256", "sha384", "sha512"] {
            let padded = folder == "debian-6.1" && bank >= "sha384";
            let extend = if padded { "sha1-padded" } else { "own" };
            let expected = json!({ "records": count, "extend": extend });
            assert_eq!(json["banks"][bank]["match"], expected, "{folder} {bank}");
        }
    }
}

#[test]
fn every_quote_is_verified() {
    for folder in FOLDERS {
        let count = number(&format!("{folder}/count"));
        for (quote, key) in [("quote", "ak"), ("quote_ecc", "akecc"), ("quote_multi", "ak")] {
            let file = |name: String| corpus(&format!("{folder}/{name}"));
            let (message, signature) = (file(format!("{quote}.msg")), file(format!("{quote}.sig")));
            let (key, pcrs) = (file(format!("{key}.pub.pem")), file(format!("{quote}.pcrs")));
            let mut args = vec![
                "--json",
                "verify",
                "--quote",
                &message,
                "--signature",
                &signature,
                "--key",
                &key,
                "--nonce",
                "0123456789abcdef",
                "--allow-short-nonce",
            ];
            if quote == "quote_multi" {
                // Without the other PCRs there is nothing to compare the quote's digest with.
                let answer = imastage_with(&[&args[..], &["-"]].concat(), &list(folder));
                assert_eq!(answer.code, 2, "{folder} {quote}");
                assert!(answer.stderr.contains("--pcrs"), "{}", answer.stderr);
                args.extend(["--pcrs", &pcrs]);
            }
            let all = [&args[..], &["-"]].concat();
            let answer = imastage_with(&all, &list(folder));
            assert_eq!(answer.code, 0, "{folder} {quote}: {}", answer.stderr);
            let json = answer.json();
            assert_eq!(json["verdict"], "pass");
            assert_eq!((json["records"].as_u64(), json["excess"].as_u64()), (Some(count), Some(0)));

            // One record less, and nothing leads to the quote.
            let whole = list(folder);
            let answer = imastage_with(&all, &whole[..last_record(&whole)]);
            assert_eq!(answer.code, 1, "{folder} {quote}: {}", answer.stderr);
            assert_eq!(answer.json()["verdict"], "fail");
            let other_nonce: Vec<&str> = all
                .iter()
                .map(|arg| if *arg == "0123456789abcdef" { "0123456789abcdee" } else { arg })
                .collect();
            let answer = imastage_with(&other_nonce, &whole);
            assert_eq!(answer.code, 1);
            assert!(answer.json()["reason"].as_str().unwrap().contains("nonce"));
        }
    }
}

/// Where the last record of a list begins.
fn last_record(list: &[u8]) -> usize {
    let format = ima_log::Format::detect(list).unwrap();
    let last = ima_log::Records::new(list, format).last().unwrap().unwrap();
    list.len() - last.as_bytes().len()
}

#[test]
fn a_log_that_lost_its_tail_matches_nothing() {
    let answer = imastage(&[
        "--json",
        "replay",
        "--pcrs",
        &corpus("staging/kexec-tail-lost/stage2/s2_boot_pcrs"),
        &corpus("staging/kexec-tail-lost/stage2/s2_boot_binary_sha1_current"),
    ]);
    assert_eq!(answer.code, 1);
    let json = answer.json();
    assert_eq!(json["banks"]["sha256"]["match"], json!(null));
}

#[test]
fn lists_are_shown_as_the_kernel_shows_them() {
    let folder = "debian-6.12-violations";
    for bank in ["sha1", "sha256", "sha384", "sha512"] {
        let binary = corpus(&format!("{folder}/binary"));
        for form in ["ascii", "binary"] {
            let answer = imastage(&["show", "--as", form, "--bank", bank, &binary]);
            assert_eq!(answer.code, 0, "{}", answer.stderr);
            let expected = fs::read(corpus(&format!("{folder}/{form}_{bank}"))).unwrap();
            assert!(answer.stdout == expected, "{form} {bank}");
        }
        // The form of a list is told from its first record.
        let answer = imastage(&["show", &corpus(&format!("{folder}/binary_{bank}"))]);
        let expected = fs::read(corpus(&format!("{folder}/ascii"))).unwrap();
        assert!(answer.stdout == expected, "{bank} to ascii");
    }
    let answer = imastage(&["show", "--from", "3", "--count", "2", &corpus("debian-6.1/binary")]);
    let ascii = fs::read(corpus("debian-6.1/ascii")).unwrap();
    let lines: Vec<&[u8]> = ascii.split_inclusive(|byte| *byte == b'\n').skip(3).take(2).collect();
    assert_eq!(answer.stdout, lines.concat());

    let answer = imastage(&["--json", "show", "--count", "1", &corpus("debian-6.1/binary")]);
    let json = answer.json();
    assert_eq!(json["index"], 0);
    assert_eq!(json["template"], "ima-sig");
    assert_eq!(json["fields"][1]["n-ng"], "boot_aggregate");
}

#[test]
fn every_form_of_pcr_file_is_read() {
    let binary = corpus("debian-6.1/binary");
    let pcrs = fs::read_to_string(corpus("debian-6.1/pcrs")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pcrs");
    let path = path.to_str().unwrap();
    let pcr10 = pcrs.lines().find_map(|line| line.strip_prefix("sha256 10 ")).unwrap();
    fs::write(path, format!("PCR-10: {pcr10}\n")).unwrap();
    let answer = imastage(&["replay", "--pcrs", path, "--bank", "sha256", &binary]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(answer.text().contains("matches all 461 records"), "{}", answer.text());
    // Nothing says which bank it is.
    assert_eq!(imastage(&["replay", "--pcrs", path, &binary]).code, 2);
    let quoted = corpus("debian-6.1/quote.pcrs");
    let answer = imastage(&["replay", "--pcrs", &quoted, &binary]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);

    let answer = imastage(&["replay", "--pcrs", &quoted, "--bank", "sha512", &binary]);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("no value of PCR 10 in bank sha512"), "{}", answer.stderr);
}

#[test]
fn what_cannot_be_read_is_named() {
    let whole = list("debian-6.1");
    let answer = imastage_with(&["replay", "-"], &whole[..whole.len() - 1]);
    assert_eq!(answer.code, 2);
    let at = last_record(&whole);
    assert!(answer.stderr.contains(&format!("record 460 at byte {at}")), "{}", answer.stderr);
    let answer = imastage_with(&["--json", "replay", "-"], b"10 abcdef ima-ng sha256:00 /bin/sh");
    assert_eq!(answer.code, 2);
    let error: serde_json::Value = serde_json::from_str(&answer.stderr).unwrap();
    assert!(error["error"].as_str().unwrap().contains("record 0 at byte 0"));
    let answer = imastage(&["replay", "/nonexistent/list"]);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("/nonexistent/list"), "{}", answer.stderr);
    assert_eq!(imastage_with(&["replay", "-"], b"").code, 0);
    assert_eq!(imastage(&["replay"]).code, 2);
    assert_eq!(imastage(&["--help"]).code, 0);
}
