//! Verdicts on inputs from public bug reports and from a security review: what is not proven does not
//! pass.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[allow(dead_code)] // each test program uses its part
mod common;

use std::fs;

use common::{Answer, corpus, imastage};
use ima_log::{Bank, BankPcrs, Extend, Format, RecordBuf, Records};
use serde_json::json;

const NONCE: &str = "a1b2c3d4e5f60718293a4b5c6d7e8f90";

/// The path of a case's file.
fn file(case: &str, name: &str) -> String {
    corpus(&format!("cases/{case}/{name}"))
}

/// `imastage verify` with the files of a case.
fn verify(case: &str, quote: &str, more: &[&str]) -> Answer {
    let key = if quote.starts_with("p256") || quote.starts_with("p384") {
        format!("ak-{}.pem", &quote[..4])
    } else {
        "ak.pem".to_owned()
    };
    let (message, signature) = (format!("{quote}.msg"), format!("{quote}.sig"));
    let [message, signature, key, list] =
        [&message, &signature, &key, "list"].map(|name| file(case, name));
    common::verify([&message, &signature, &key, &list], NONCE, &[&["--json"], more].concat())
}

fn reason(answer: &Answer) -> String {
    let json = answer.json();
    assert_eq!((answer.code, json["verdict"].as_str()), (1, Some("fail")), "{json}");
    json["reason"].as_str().unwrap().to_owned()
}

fn passes(answer: &Answer) -> serde_json::Value {
    let json = answer.json();
    assert_eq!((answer.code, json["verdict"].as_str()), (0, Some("pass")), "{json}");
    json
}

#[test]
fn case_01_zero_pcr_is_no_pass() {
    let case = "01-zero-pcr10-pass";
    let values = file(case, "quote.pcrs");
    for more in [&[][..], &["--pcrs", &values]] {
        let reason = reason(&verify(case, "quote", more));
        assert!(reason.starts_with("PCR 10 was never extended"), "{reason}");
        assert!(reason.contains("found no TPM when it started"), "{reason}");
    }
    let list = file(case, "list");
    let replayed = imastage(&["--json", "replay", "--bank", "sha256", "--pcrs", &values, &list]);
    assert_eq!(replayed.code, 1);
    let bank = &replayed.json()["banks"]["sha256"];
    assert_eq!(bank["match"], json!(null));
    assert_eq!(bank["explanation"]["cause"], "never-extended");
    let text = imastage(&["replay", "--bank", "sha256", "--pcrs", &values, &list]);
    assert!(text.text().contains("never extended"), "{}", text.text());
    assert!(!text.text().contains("matches the first"), "{}", text.text());
}

#[test]
fn case_02_quoted_pcr_11_is_compared() {
    let case = "02-quoted-pcr11-contradicts-list";
    let values = file(case, "quote.pcrs");
    let reason = reason(&verify(case, "quote", &["--pcrs", &values]));
    assert!(reason.contains("PCR 11") && reason.contains("record"), "{reason}");
    // Without values both PCRs are what the records lead to, which is not what was quoted.
    assert_eq!(verify(case, "quote", &[]).code, 1);

    let list = file(case, "list");
    let replayed = imastage(&["--json", "replay", "--bank", "sha256", "--pcrs", &values, &list]);
    assert_eq!(replayed.code, 1);
    let json = replayed.json();
    assert_eq!(json["banks"]["sha256"]["match"], json!({"records": 4, "extend": "own"}));
    assert_eq!(json["other_pcrs"]["11"]["sha256"]["match"], json!(null));
    let text = imastage(&["replay", "--bank", "sha256", "--pcrs", &values, &list]);
    assert!(text.text().contains("PCR 11 sha256"), "{}", text.text());
    // Asked for one PCR alone, only that is compared.
    let args = ["replay", "--bank", "sha256", "--pcr", "10", "--pcrs", &values, &list];
    assert_eq!(imastage(&args).code, 0);
}

#[test]
fn case_03_a_kernel_that_measures_into_pcr_11() {
    let case = "03-kernel-that-extends-pcr11-only";
    let values = file(case, "quote.pcrs");
    for more in [&[][..], &["--pcrs", &values], &["--pcr", "11", "--bank", "sha256"]] {
        let json = passes(&verify(case, "quote", more));
        assert_eq!((&json["pcr"], &json["records"]), (&json!(11), &json!(3)), "{json}");
        assert_eq!(json["unproven"], 0);
        assert!(json["pcrs"]["sha256"]["11"].is_string(), "{json}");
    }
    let list = file(case, "list");
    let replayed = imastage(&["--json", "replay", "--bank", "sha256", "--pcrs", &values, &list]);
    let json = replayed.json();
    assert_eq!((replayed.code, &json["pcr"]), (0, &json!(11)), "{json}");
    assert_eq!(json["banks"]["sha256"]["match"], json!({"records": 3, "extend": "own"}));

    // Values of another PCR do not help, and the error says which is needed.
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("pcrs");
    fs::write(&other, format!("sha256 10 {}\n", "0".repeat(64))).unwrap();
    let answer =
        imastage(&["replay", "--bank", "sha256", "--pcrs", other.to_str().unwrap(), &list]);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("the list's records name PCR 11"), "{}", answer.stderr);
}

#[test]
fn case_03_the_advice_names_the_pcr_that_records_name() {
    // A quote of PCR 10 beside a list whose records all name PCR 11.
    let (quoted, listed) = ("p5-quote-variants", "03-kernel-that-extends-pcr11-only");
    let [message, signature, key] =
        ["pss-salt-32.msg", "pss-salt-32.sig", "ak.pem"].map(|name| file(quoted, name));
    let list = file(listed, "list");
    let answer = common::verify([&message, &signature, &key, &list], NONCE, &["--json"]);
    let reason = reason(&answer);
    assert!(reason.contains("name PCR 11") && reason.contains("sha256:11"), "{reason}");
}

#[test]
fn case_04_padded_violations_of_kernels_before_5_8() {
    let case = "04-padded-violation-before-5.8";
    let values = file(case, "quote.pcrs");
    for more in [&[][..], &["--pcrs", &values]] {
        let json = passes(&verify(case, "quote", more));
        assert_eq!(json["banks"]["sha256"], "sha1-padded-violations", "{json}");
        assert_eq!((&json["records"], &json["violations"]), (&json!(4), &json!(1)));
    }
    let list = file(case, "list");
    let replayed = imastage(&["--json", "replay", "--bank", "sha256", "--pcrs", &values, &list]);
    let expected = json!({"records": 4, "extend": "sha1-padded-violations"});
    assert_eq!(replayed.json()["banks"]["sha256"]["match"], expected);
}

#[test]
fn case_06_boot_aggregate_late_begins_a_list() {
    let case = "06-boot-aggregate-late";
    let [list, pcrs, two, two_pcrs] =
        ["list", "pcrs", "two-boots", "two-boots.pcrs"].map(|name| file(case, name));
    let replayed = imastage(&["--json", "replay", "--bank", "sha256", "--pcrs", &pcrs, &list]);
    assert_eq!((replayed.code, &replayed.json()["from_boot_aggregate"]), (0, &json!(true)));
    let text = imastage(&["replay", "--bank", "sha256", "--pcrs", &pcrs, &list]);
    assert!(!text.text().contains("missing"), "{}", text.text());
    let replayed = imastage(&["--json", "replay", "--bank", "sha256", "--pcrs", &two_pcrs, &two]);
    assert_eq!(replayed.code, 1);
    let explanation = &replayed.json()["banks"]["sha256"]["explanation"];
    assert_eq!(explanation["cause"], "reset-before", "{explanation}");
}

#[test]
fn case_p5_quotes_of_every_form_pass() {
    let case = "p5-quote-variants";
    for quote in [
        "pss-max-salt",
        "pss-salt-32",
        "empty-sha1-selection",
        "four-byte-bitmap",
        "sha256-before-sha1",
        "padded-sha256",
        "p256-with-sha384",
        "p384-with-sha256",
    ] {
        let json = passes(&verify(case, quote, &[]));
        assert_eq!(json["records"], 3, "{quote}: {json}");
    }
    // The strength of a padded bank is that of SHA-1, and the text says so.
    let padded = verify(case, "padded-sha256", &[]).json();
    assert_eq!(padded["banks"]["sha256"], "sha1-padded");
}

#[test]
fn finding_03_sha1_alone_needs_consent() {
    let case = "p5-quote-variants";
    let reason_ = reason(&verify(case, "sha1-bank-only", &[]));
    assert!(reason_.contains("sha1 alone") && reason_.contains("--bank sha1"), "{reason_}");
    passes(&verify(case, "sha1-bank-only", &["--bank", "sha1"]));
    let reason_ = reason(&verify(case, "sha1-bank-only", &["--bank", "sha256"]));
    assert!(reason_.contains("required is sha256"), "{reason_}");
    let reason_ = reason(&verify(case, "pss-salt-32", &["--bank", "sha256", "--bank", "sha384"]));
    assert!(reason_.contains("sha384"), "{reason_}");
}

#[test]
fn finding_03_a_token_s_banks_cannot_become_fewer() {
    let case = "p5-quote-variants";
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token").to_str().unwrap().to_owned();
    let json = passes(&verify(case, "sha256-before-sha1", &["--token", &token]));
    assert_eq!(json["banks"].as_object().unwrap().len(), 2, "{json}");
    let before = fs::read(&token).unwrap();
    for quote in ["sha1-bank-only", "pss-salt-32"] {
        for more in [&["--token", &token][..], &["--token", &token, "--bank", "sha1"]] {
            let answer = verify(case, quote, more);
            assert_eq!(answer.code, 1, "{quote}");
        }
        assert_eq!(fs::read(&token).unwrap(), before, "the token is kept");
    }
}

#[test]
fn finding_06_nothing_proven_is_no_pass() {
    // No record at all.
    let case = "p5-quote-variants";
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("list");
    fs::write(&empty, b"").unwrap();
    let [message, signature, key] =
        ["pss-salt-32.msg", "pss-salt-32.sig", "ak.pem"].map(|name| file(case, name));
    let answer =
        common::verify([&message, &signature, &key, empty.to_str().unwrap()], NONCE, &["--json"]);
    let reason_ = reason(&answer);
    assert!(reason_.contains("nothing is proven"), "{reason_}");
    // PCRs that must be quoted and are not.
    let reason_ = reason(&verify(case, "pss-salt-32", &["--pcr", "0-9"]));
    assert!(reason_.contains("does not cover PCR 0, 1"), "{reason_}");
}

#[test]
fn finding_06_a_pass_names_what_proved_it() {
    let case = "p5-quote-variants";
    let json = passes(&verify(case, "sha256-before-sha1", &[]));
    for member in ["key", "reset_count", "restart_count", "clock", "pcr", "pcrs", "boot_aggregate"]
    {
        assert!(!json[member].is_null(), "{member} in {json}");
    }
    let [message, signature, key, list] =
        ["sha256-before-sha1.msg", "sha256-before-sha1.sig", "ak.pem", "list"]
            .map(|name| file(case, name));
    let answer = common::verify([&message, &signature, &key, &list], NONCE, &[]);
    for words in ["PCR 10 of bank sha256", "PCR 10 of bank sha1", "reset count", "boot_aggregate"] {
        assert!(answer.text().contains(words), "{words} in {}", answer.text());
    }
}

#[test]
fn case_p8_quote_and_list_not_in_step() {
    let case = "p8-quote-and-list-not-in-step";
    let json = passes(&verify(case, "quote-before-last-record", &[]));
    assert_eq!((&json["records"], &json["excess"]), (&json!(2), &json!(1)));
    let reason = reason(&verify(case, "quote-after-a-record-that-is-not-there", &[]));
    assert!(reason.contains("records are missing"), "{reason}");
}

/// users.md 7: what a mismatch does and does not tell.
#[test]
fn users_07_a_missing_record_is_not_said_to_be_excluded() {
    let list = fs::read(corpus("debian-6.1/binary")).unwrap();
    let mut records: Vec<Vec<u8>> = Records::new(&list, Format::native(Bank::Sha1))
        .map(|record| record.unwrap().as_bytes().to_vec())
        .collect();
    records.remove(50);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    fs::write(&path, records.concat()).unwrap();
    let answer =
        imastage(&["replay", "--pcrs", &corpus("debian-6.1/pcrs"), path.to_str().unwrap()]);
    assert_eq!(answer.code, 1);
    let text = answer.text();
    assert!(text.contains("a record that is missing") || text.contains("A record that is missing"));
    assert!(!text.contains("no single record left out"), "{text}");
}

/// users.md 7: whatever banks are asked for, an altered record is named by its printed digest.
#[test]
fn users_07_an_altered_record_is_named_in_every_bank() {
    let list = fs::read(corpus("debian-6.1/binary")).unwrap();
    let ends: Vec<usize> = Records::new(&list, Format::native(Bank::Sha1))
        .scan(0, |end, record| {
            *end += record.unwrap().as_bytes().len();
            Some(*end)
        })
        .collect();
    let mut altered = list.clone();
    altered[ends[50] - 10] ^= 1;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    fs::write(&path, altered).unwrap();
    for banks in [&[][..], &["--bank", "sha256"], &["--bank", "sha512"]] {
        let mut args = vec!["replay"];
        args.extend(banks);
        let pcrs = corpus("debian-6.1/pcrs");
        args.extend(["--pcrs", &pcrs, path.to_str().unwrap()]);
        let answer = imastage(&args);
        assert_eq!(answer.code, 1, "{banks:?}");
        assert!(answer.text().contains("record 50"), "{banks:?}: {}", answer.text());
    }
    // The printed digest alone is wrong: the list matches, and the record is named anyway.
    let mut printed = list;
    printed[ends[49] + 4] ^= 1;
    fs::write(&path, printed).unwrap();
    let answer =
        imastage(&["replay", "--pcrs", &corpus("debian-6.1/pcrs"), path.to_str().unwrap()]);
    assert_eq!(answer.code, 0, "{}", answer.text());
    assert!(answer.text().contains("record 50 was altered"), "{}", answer.text());
}

/// A kernel that kexec starts may extend banks in another way, whichever PCR it measures into.
#[test]
fn a_change_at_each_boot_aggregate_is_followed() {
    for pcr in [8, 10, 14] {
        let mut state = BankPcrs::new(Bank::Sha384, Extend::Sha1Padded);
        let mut list = Vec::new();
        for extend in [Extend::Sha1PaddedViolations, Extend::Own, Extend::Sha1Padded] {
            state = BankPcrs::resume(Bank::Sha384, extend, state.values().collect::<Vec<_>>());
            let file = Bank::Sha256.hash(&[b"x"]);
            for record in [
                RecordBuf::ima_ng(pcr, &file, b"boot_aggregate"),
                RecordBuf::ima_ng_violation(pcr, Bank::Sha256, b"/v"),
                RecordBuf::ima_ng(pcr, &file, b"/f"),
            ] {
                state.extend(&record.record());
                list.extend_from_slice(record.as_bytes());
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let [path, pcrs] = ["list", "pcrs"].map(|name| dir.path().join(name));
        fs::write(&path, list).unwrap();
        fs::write(&pcrs, format!("sha384 {pcr} {}\n", state.value(pcr))).unwrap();
        let answer = imastage(&[
            "--json",
            "replay",
            "--bank",
            "sha384",
            "--pcrs",
            pcrs.to_str().unwrap(),
            path.to_str().unwrap(),
        ]);
        assert_eq!(answer.code, 0, "{}", answer.json());
        assert_eq!(answer.json()["banks"]["sha384"]["match"]["records"], 9);
    }
}
