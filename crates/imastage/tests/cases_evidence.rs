//! Keys, quotes, PCR values and nonces as people give them to the program; and the evidence it
//! writes.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

#[allow(dead_code)]
mod common;

use common::{Answer, Machine, Running, corpus, imastage};

/// Of all quotes in `cases`.
const NONCE: &str = "a1b2c3d4e5f60718293a4b5c6d7e8f90";

fn file(name: &str) -> String {
    corpus(&format!("cases/{name}"))
}

fn replay(bank: &str, folder: &str, pcrs: &str) -> Answer {
    let (pcrs, list) = (file(&format!("{folder}/{pcrs}")), file(&format!("{folder}/list")));
    imastage(&["replay", "--bank", bank, "--pcrs", &pcrs, &list])
}

fn verify(folder: &str, [quote, signature, key]: [&str; 3], nonce: &str, more: &[&str]) -> Answer {
    let file = |name: &str| file(&format!("{folder}/{name}"));
    let (quote, signature, key, list) = (file(quote), file(signature), file(key), file("list"));
    let files = ["verify", "--quote", &quote, "--signature", &signature, "--key", &key];
    imastage(&[&files[..], &["--nonce", nonce], more, &[&list]].concat())
}

fn assert_code(answer: &Answer, code: i32, what: &str) {
    let stdout = String::from_utf8_lossy(&answer.stdout);
    assert_eq!(answer.code, code, "{what}: {stdout} {}", answer.stderr);
}

fn assert_says(answer: &Answer, words: &[&str]) {
    for word in words {
        assert!(answer.stderr.contains(word), "{word}: {}", answer.stderr);
    }
}

#[test]
fn case_08_pcrread_output_is_read() {
    for (name, bank) in [
        ("pcrread-4.txt", "sha1"),
        ("pcrread-4.txt", "sha256"),
        ("pcrread-5.txt", "sha1"),
        ("pcrread-5.txt", "sha256"),
    ] {
        assert_code(&replay(bank, "08-pcr-values", name), 0, name);
    }
}

#[test]
fn case_08_values_with_0x_are_read() {
    assert_code(&replay("sha256", "08-pcr-values", "lines-0x.txt"), 0, "0x");
}

#[test]
fn case_08_a_value_of_sysfs_is_read() {
    assert_code(&replay("sha256", "08-pcr-values", "sysfs-pcr-sha256-10"), 0, "sysfs");
    // Without --bank only the path can tell which bank it is.
    let (value, list) = (file("08-pcr-values/sysfs-pcr-sha256-10"), file("08-pcr-values/list"));
    let answer = imastage(&["replay", "--pcrs", &value, &list]);
    assert_code(&answer, 2, "no bank");
    assert_says(&answer, &["--bank"]);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("pcr-sha256");
    fs::create_dir(&folder).unwrap();
    fs::copy(&value, folder.join("10")).unwrap();
    let path = folder.join("10");
    let answer = imastage(&["replay", "--pcrs", path.to_str().unwrap(), &list]);
    assert_code(&answer, 0, "pcr-sha256/10");
}

#[test]
fn case_08_the_bytes_of_one_value_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pcrs");
    let both = fs::read(file("08-pcr-values/values.bin")).unwrap();
    for (bank, value) in [("sha1", &both[..20]), ("sha256", &both[20..])] {
        fs::write(&path, value).unwrap();
        let list = file("08-pcr-values/list");
        let pcrs = path.to_str().unwrap();
        let answer = imastage(&["replay", "--bank", bank, "--pcrs", pcrs, &list]);
        assert_code(&answer, 0, bank);
    }
}

#[test]
fn case_08_values_of_several_pcrs_get_advice_that_works() {
    let answer = replay("sha256", "08-pcr-values", "values.bin");
    assert_code(&answer, 2, "values");
    assert_says(&answer, &["values.bin", "52 bytes", "-F serialized", "--pcrs_format=serialized"]);
    assert!(!answer.stderr.contains("--format="), "{}", answer.stderr);
}

#[test]
fn case_09_keys_of_every_form_are_taken() {
    for key in
        ["ak.pem", "ak.tss", "ak.tpmt", "ak.der", "ak-pkcs1.pem", "ak-cert.pem", "ak-cert.der"]
    {
        let answer = verify("09-key-formats", ["quote.msg", "quote.sig", key], NONCE, &[]);
        assert_code(&answer, 0, key);
    }
}

#[test]
fn case_09_what_is_no_key_is_named() {
    for (other, words) in
        [("quote.msg", "an attestation"), ("quote.sig", "a signature"), ("quote.pcrs", "text")]
    {
        let answer = verify("09-key-formats", ["quote.msg", "quote.sig", other], NONCE, &[]);
        assert_code(&answer, 2, other);
        assert_says(&answer, &[other, words, "tpm2_readpublic -f pem"]);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut unrestricted = fs::read(file("09-key-formats/ak.tss")).unwrap();
    // The attribute restricted, in TPMA_OBJECT after size, type and hash.
    unrestricted[7] &= !1;
    let private = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (bytes, words) in [(&unrestricted[..], "restricted"), (private.as_bytes(), "private key")] {
        let key = dir.path().join("key");
        fs::write(&key, bytes).unwrap();
        let key = key.to_str().unwrap();
        let (quote, signature) =
            (file("09-key-formats/quote.msg"), file("09-key-formats/quote.sig"));
        let list = file("09-key-formats/list");
        let answer = imastage(&[
            "verify",
            "--quote",
            &quote,
            "--signature",
            &signature,
            "--key",
            key,
            "--nonce",
            NONCE,
            &list,
        ]);
        assert_code(&answer, 2, words);
        assert_says(&answer, &[words]);
    }
}

#[test]
fn case_10_a_quote_with_its_size_before_it_is_verified() {
    for quote in ["quote.msg", "quote.2b"] {
        let answer = verify("10-quote-wrappings", [quote, "quote.sig", "ak.pem"], NONCE, &[]);
        assert_code(&answer, 0, quote);
    }
}

#[test]
fn case_10_swapped_and_other_files_are_named_and_accuse_nobody() {
    for (files, words) in [
        (["quote.sig", "quote.msg", "ak.pem"], "swapped"),
        (["ak.pem", "quote.sig", "ak.pem"], "PEM"),
        (["quote.msg", "ak.pem", "ak.pem"], "PEM"),
        (["quote.pcrs", "quote.sig", "ak.pem"], "text"),
    ] {
        let answer = verify("10-quote-wrappings", files, NONCE, &[]);
        assert_code(&answer, 2, words);
        assert_says(&answer, &[words]);
        assert!(!answer.stderr.contains("altered"), "{}", answer.stderr);
    }
}

#[test]
fn case_11_banks_that_are_not_known_do_not_matter_where_they_are_not_needed() {
    for name in ["all-banks.pcrs", "all-banks.txt"] {
        assert_code(&replay("sha256", "11-unknown-bank", name), 0, name);
    }
    let answer = verify("11-unknown-bank", ["quote.msg", "quote.sig", "ak.pem"], NONCE, &[]);
    assert_code(&answer, 0, "empty bitmap of sha3_256");
}

#[test]
fn finding_15_a_short_nonce_is_refused_unless_it_is_allowed() {
    let files = ["no-nonce.msg", "no-nonce.sig", "ak.pem"];
    let answer = verify("p5-quote-variants", files, "", &[]);
    assert_code(&answer, 2, "no nonce");
    assert_says(&answer, &["--nonce", "16", "replay", "--allow-short-nonce"]);
    let answer = verify("p5-quote-variants", files, "", &["--allow-short-nonce"]);
    assert_code(&answer, 0, "no nonce, allowed");
    let long = ["pss-max-salt.msg", "pss-max-salt.sig", "ak.pem"];
    assert_code(&verify("p5-quote-variants", long, NONCE, &[]), 0, "16 bytes");
    assert_code(&verify("p5-quote-variants", long, &NONCE[2..], &[]), 2, "15 bytes");
}

fn service(machine: &Machine) -> Running {
    let (mount, state) = (machine.mount(), machine.state());
    Running::start(&["--json", "run", "--source", &mount, "--state", &state, "--every", "50"])
}

#[test]
fn finding_15_attest_prints_no_verify_line_for_a_nonce_of_its_own() {
    let Some(machine) = Machine::start() else { return };
    let state = machine.state();
    let _service = service(&machine);
    let out = machine.path("evidence");
    let answer = imastage(&["attest", "--state", &state, "--out", &out]);
    assert_code(&answer, 0, "attest");
    let text = answer.text();
    assert!(text.contains("proves no freshness") && !text.contains("imastage verify"), "{text}");
    let answer = imastage(&["attest", "--state", &state, "--out", &out, "--nonce", NONCE]);
    let text = answer.text();
    assert!(text.contains("imastage verify") && text.contains(NONCE), "{text}");
}

#[test]
fn finding_13_attest_follows_no_link_and_keeps_evidence_to_its_owner() {
    let Some(machine) = Machine::start() else { return };
    let state = machine.state();
    let _service = service(&machine);
    let (out, target) = (machine.path("evidence"), machine.path("precious"));
    fs::create_dir(&out).unwrap();
    fs::write(&target, "precious").unwrap();
    const NAMES: [&str; 5] = ["quote.msg", "quote.sig", "ak.pub.pem", "nonce", "list"];
    for name in NAMES {
        symlink(&target, format!("{out}/{name}")).unwrap();
    }
    let token = machine.path("token");
    let answer = imastage(&["attest", "--state", &state, "--out", &out, "--nonce", NONCE]);
    assert_code(&answer, 0, "attest");
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    let key = format!("{out}/ak.pub.pem");
    let args = ["verify", "--state", &state, "--key", &key, "--token", &token];
    assert_code(&imastage(&args), 0, "verify");
    for path in NAMES.map(|name| format!("{out}/{name}")).into_iter().chain([token]) {
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(meta.is_file(), "{path}");
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600, "{path}");
    }
    assert_eq!(fs::read_dir(&out).unwrap().count(), NAMES.len());
}
