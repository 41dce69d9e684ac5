//! ASCII lists read back, signatures and boot_aggregate checked, records shown in words.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs;

#[allow(dead_code)]
mod common;

use common::{corpus, imastage, imastage_with};

#[test]
fn ascii_lists_are_read_back_to_binary_ones() {
    for folder in ["debian-6.1", "violations", "signed", "legacy-ima", "kexec/2-after"] {
        let ascii = fs::read(corpus(&format!("{folder}/ascii"))).unwrap();
        let answer = imastage_with(&["show", "--as", "binary", "-"], &ascii);
        assert_eq!(answer.code, 0, "{folder}: {}", answer.stderr);
        let binary = fs::read(corpus(&format!("{folder}/binary"))).unwrap();
        assert!(answer.stdout == binary, "{folder}");
    }
    // Of any bank, and as good a list as any other.
    let folder = "debian-6.12-violations";
    for bank in ["sha256", "sha384", "sha512"] {
        let pcrs = corpus(&format!("{folder}/pcrs"));
        let list = corpus(&format!("{folder}/ascii_{bank}"));
        let answer = imastage(&["--json", "replay", "--pcrs", &pcrs, &list]);
        assert_eq!(answer.code, 0, "{bank}: {}", answer.stderr);
        assert_eq!(answer.json()["records"], 466);
    }
    let mut ascii = fs::read(corpus("debian-6.1/ascii")).unwrap();
    // A digit of the third line's digest.
    let at = ascii.split_inclusive(|b| *b == b'\n').take(2).map(<[u8]>::len).sum::<usize>() + 5;
    ascii[at] = if ascii[at] == b'0' { b'1' } else { b'0' };
    let answer = imastage_with(&["replay", "-"], &ascii);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("record 2"), "{}", answer.stderr);
}

#[test]
fn signatures_are_verified_with_keys_and_certificates() {
    let file = |name: &str| corpus(&format!("signed/{name}"));
    let list = file("binary");
    let check = |keys: &[&str]| {
        let mut args = vec!["--json", "check"];
        for key in keys {
            args.extend(["--key", key]);
        }
        args.push(&list);
        imastage(&args)
    };
    let (rsa, ec, x509) = (file("ima_pub.pem"), file("ima_ec_pub.pem"), file("ima_x509.der"));
    let both = check(&[&rsa, &ec]);
    assert_eq!(both.code, 0, "{}", both.stderr);
    assert_eq!(both.json()["signed"], 40);
    let one = check(&[&x509]);
    assert_eq!(one.code, 1);
    assert_eq!((&one.json()["signed"], &one.json()["refused"]), (&30.into(), &10.into()));
    let why = one.json()["unverified"][0]["why"].as_str().unwrap().to_owned();
    assert!(why.contains("no key with the id"), "{why}");
    // Another key altogether, and a file that is none.
    assert_eq!(check(&[&file("ak.pub.pem")]).json()["refused"], 40);
    assert_eq!(check(&[&file("cmdline")]).code, 2);
}

#[test]
fn boot_aggregate_is_checked_against_pcr_values() {
    for folder in ["debian-6.1", "debian-6.12-violations", "legacy-ima", "kexec/2-after"] {
        let (pcrs, list) = (corpus(&format!("{folder}/pcrs")), corpus(&format!("{folder}/binary")));
        let answer = imastage(&["--json", "check", "--pcrs", &pcrs, &list]);
        assert_eq!(answer.code, 0, "{folder}: {}", answer.text());
        let expected = if folder == "kexec/2-after" { 2 } else { 1 };
        assert_eq!(answer.json()["aggregates"], expected, "{folder}");
    }
    let pcrs = fs::read_to_string(corpus("debian-6.1/pcrs")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pcrs");
    let altered = pcrs.replace("sha256 4 ", "sha256 4 00").lines().fold(String::new(), |all, l| {
        // The value keeps its size.
        let line = if l.starts_with("sha256 4 ") { &l[..9 + 64] } else { l };
        all + line + "\n"
    });
    fs::write(&path, altered).unwrap();
    let list = corpus("debian-6.1/binary");
    let answer = imastage(&["--json", "check", "--pcrs", path.to_str().unwrap(), &list]);
    assert_eq!(answer.code, 1);
    let why = answer.json()["boot_aggregate"][0]["why"].as_str().unwrap().to_owned();
    assert!(why.contains("PCR 0 to 9 of bank sha256"), "{why}");
}

#[test]
fn details_tell_what_is_in_a_record() {
    let list = corpus("staging/kexec-staged-pending/stage2/s2_boot_binary_sha1_current");
    let answer = imastage(&["show", "--as", "details", &list]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    for expected in [
        "record 0: boot_aggregate\n  PCR 10, template ima-ng\n  template digest sha1:",
        "  a kernel booted\n",
        "  kexec: another kernel was loaded; 45 records so far, 4444 of 8192 bytes\n",
        "  kexec: another kernel is booted;",
    ] {
        assert!(answer.text().contains(expected), "{expected}");
    }
    let signed = imastage(&["show", "--as", "details", &corpus("signed/binary")]);
    let text = String::from_utf8_lossy(&signed.stdout);
    assert_eq!(text.matches("  signature of the file: version 2, ").count(), 40);
}
