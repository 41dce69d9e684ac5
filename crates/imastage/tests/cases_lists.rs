//! Lists as people have them: inputs from public bug reports, a test each.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{fs, io::Write};

#[allow(dead_code)]
mod common;

use common::{Answer, corpus, imastage, imastage_with};
use flate2::{Compression, write::GzEncoder};
use ima_log::{Bank, RecordBuf, RecordBuilder};

fn case(path: &str) -> String {
    corpus(&format!("cases/{path}"))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[track_caller]
fn passes(answer: &Answer) {
    assert_eq!(answer.code, 0, "{}{}", String::from_utf8_lossy(&answer.stdout), answer.stderr);
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn case_06_boot_aggregate_late_is_recognised() {
    let list = case("06-boot-aggregate-late/list");
    let details = imastage(&["show", "--as", "details", &list]);
    says(
        details.text(),
        &["record 0: boot_aggregate_late\n", "a kernel booted, its TPM was there late"],
    );
    let checked = imastage(&["--json", "check", &list]);
    assert_eq!((checked.code, &checked.json()["late"]), (0, &1.into()));
}

#[test]
fn case_07_ascii_lists_from_editors_are_the_same_records() {
    let folder = "07-ascii-list-as-people-keep-it";
    let (binary, pcrs) = (case(&format!("{folder}/binary")), case(&format!("{folder}/pcrs")));
    let kernels = fs::read(case(&format!("{folder}/as-the-kernel-shows-it"))).unwrap();
    let mut lists: Vec<Vec<u8>> =
        ["as-the-kernel-shows-it", "trailing-blanks-removed", "crlf", "no-last-newline"]
            .iter()
            .map(|name| fs::read(case(&format!("{folder}/{name}"))).unwrap())
            .collect();
    lists.push([&kernels[..], b"\n\n \r\n"].concat());
    lists.push([b"\xef\xbb\xbf", &kernels[..]].concat());
    lists.push([b"\n  ", &kernels[..]].concat());
    for list in &lists {
        let answer = imastage_with(&["show", "--as", "binary", "-"], list);
        passes(&answer);
        assert!(answer.stdout == fs::read(&binary).unwrap());
        passes(&imastage_with(&["replay", "--bank", "sha256", "--pcrs", &pcrs, "-"], list));
    }
    // A violation has no digest that could prove it.
    let violation =
        b"10 0000000000000000000000000000000000000000 ima-sig sha256:0000000000000000000000000000000000000000 /v\r\n";
    let answer = imastage_with(&["show", "-"], &[&lists[2][..], violation].concat());
    assert_eq!(answer.code, 2);
    says(&answer.stderr, &["record 4 at byte 578", "violation", "binary form"]);
}

#[test]
fn case_12_boot_aggregate_over_pcr_0_to_7() {
    let folder = "12-boot-aggregate-over-0-to-7";
    let (list, pcrs) = (case(&format!("{folder}/list")), case(&format!("{folder}/pcrs")));
    let answer = imastage(&["check", "--pcrs", &pcrs, &list]);
    passes(&answer);
    says(answer.text(), &["is that of PCR 0 to 7", "(kernels of mid 2020)"]);
    let answer = imastage(&["--json", "check", "--pcrs", &pcrs, &list]).json();
    assert_eq!(answer["aggregated"][0]["last_pcr"], 7);
}

#[test]
fn case_14_details_show_every_field() {
    let answer = imastage(&["show", "--as", "details", &case("14-details-leave-fields-out/list")]);
    passes(&answer);
    says(
        answer.text(),
        &[
            "data dm_version=4.48.0;name=root,uuid=CRYPT-VERITY-00-root,",
            "data initialized=1;enforcing=1;checkreqprot=0;",
            "digest without the appended signature sha256:",
            "appended signature (PKCS#7) ",
            "  owner 0\n",
            "  group 1000\n",
            "  mode 100755 (octal)\n",
            "  xattr security.ima: 4 bytes in hex: 00000000",
            "record 5: /",
            "  field 0: digest sha256:",
        ],
    );
    let zoo = imastage(&["show", "--as", "details", &case("p1-template-zoo/list-sha1")]);
    passes(&zoo);
}

#[test]
fn case_14_data_that_is_no_text_is_hex_and_text_commands_no_terminal() {
    let builder = RecordBuilder::new(10);
    let digest = Bank::Sha256.hash(&[]);
    let list = [
        builder.ima_buf(&digest, b"odd", b"a\x1b[2Jb").unwrap(),
        builder.ima_buf(&digest, b"two", "a;\n\u{202e}b\t".as_bytes()).unwrap(),
        builder.record("n-ng|buf", &[b"\x1b\0", b"text"]).unwrap(),
        builder.record("d-ng|n-ng", &[b"sha\x1b1:\0abc", b"/x\0"]).unwrap(),
    ];
    let list: Vec<u8> = list.iter().flat_map(|record| record.as_bytes().to_vec()).collect();
    let answer = imastage_with(&["show", "--as", "details", "-"], &list);
    let text = answer.text();
    says(
        text,
        &["6 bytes in hex: 611b5b324a62", r"data a;\n\u{202e}b\t", r"file digest sha\x1b1:"],
    );
    assert!(!text.contains('\x1b') && !text.contains('\u{202e}'), "{text:?}");
    // A pipe gets names as they are.
    assert!(imastage_with(&["show", "-"], &list).stdout.contains(&0x1b));
}

#[test]
fn case_15_gzip_lists_are_read_wherever_a_list_is() {
    let (list, pcrs) = (corpus("debian-6.1/binary"), corpus("debian-6.1/pcrs"));
    let bytes = fs::read(&list).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("list.gz");
    // Several members, as `store pack` and `cat a.gz b.gz` make them.
    let (a, b) = bytes.split_at(bytes.len() / 3);
    let members = [gzip(b""), gzip(a), gzip(b)].concat();
    fs::write(&packed, &members).unwrap();
    let packed = packed.to_str().unwrap();
    passes(&imastage(&["diff", &list, packed]));
    passes(&imastage(&["replay", "--pcrs", &pcrs, packed]));
    passes(&imastage(&["check", "--pcrs", &pcrs, packed]));
    let shown = imastage_with(&["show", "--as", "binary", "-"], &members);
    assert!(shown.code == 0 && shown.stdout == bytes);
    let ascii = gzip(&fs::read(corpus("debian-6.1/ascii")).unwrap());
    assert!(imastage_with(&["show", "--as", "binary", "-"], &ascii).stdout == bytes);
    passes(&imastage(&["show", &case("15-other-logs-and-packed-lists/list.gz")]));

    let cut = imastage_with(&["show", "-"], &members[..members.len() - 100]);
    assert_eq!(cut.code, 2, "{}", cut.stderr);
    says(&cut.stderr, &["damaged or cut short", "gunzip -t"]);
    let twice = imastage_with(&["show", "-"], &gzip(&members));
    assert_eq!(twice.code, 2);
    says(&twice.stderr, &["in this gzip file is a gzip file; unpack it first"]);
}

#[test]
fn case_15_an_event_log_in_tlv_is_read() {
    let folder = "15-other-logs-and-packed-lists";
    let (tlv, list) = (case(&format!("{folder}/cel.tlv")), case(&format!("{folder}/list.gz")));
    passes(&imastage(&["diff", &tlv, &list]));
    let banks = ["--bank", "sha256"];
    let again = imastage(&[&["show", "--as", "cel-tlv"][..], &banks, &[&tlv]].concat());
    assert!(again.stdout == fs::read(&tlv).unwrap());
}

#[test]
fn case_15_what_is_no_list_is_named() {
    let folder = "15-other-logs-and-packed-lists";
    let answer = imastage(&["show", &case(&format!("{folder}/binary_bios_measurements"))]);
    assert_eq!(answer.code, 2);
    says(
        &answer.stderr,
        &[
            "this is the firmware's event log (binary_bios_measurements)",
            "binary_runtime_measurements",
        ],
    );
    for (bytes, named) in [
        (&b"\xffTCG\x80\x18"[..], "what a TPM signed"),
        (b"\x7fELF", "an ELF program"),
        (b"-----BEGIN PUBLIC KEY-----\n", "a key (PEM)"),
        (b"sha256 10 00\n", "PCR values"),
    ] {
        let answer = imastage_with(&["check", "-"], bytes);
        assert_eq!(answer.code, 2);
        says(&answer.stderr, &[named]);
    }
    let empty = imastage_with(&["check", "-"], b"");
    passes(&empty);
    says(&empty.stderr, &["empty"]);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("binary_runtime_measurements"), b"").unwrap();
    let answer = imastage(&["show", dir.path().to_str().unwrap()]);
    assert_eq!(answer.code, 2);
    says(&answer.stderr, &["give ", "binary_runtime_measurements"]);
}

#[test]
fn case_p1_the_template_zoo_comes_back() {
    let list = |bank: &str| case(&format!("p1-template-zoo/list-{bank}"));
    let pcrs = case("p1-template-zoo/pcrs");
    for bank in ["sha1", "sha256", "sha512"] {
        passes(&imastage(&["replay", "--bank", "sha256", "--pcrs", &pcrs, &list(bank)]));
        passes(&imastage(&["diff", &list("sha1"), &list(bank)]));
    }
    for form in ["ascii", "json", "cel-json", "cel-cbor", "cel-tlv"] {
        let shown = imastage(&["show", "--as", form, &list("sha1")]);
        passes(&shown);
        passes(&imastage_with(&["diff", &list("sha1"), "-"], &shown.stdout));
    }
}

#[test]
fn case_p6_the_list_of_an_unmapped_bank_is_read() {
    let folder = "p6-list-of-an-unmapped-tpm-bank";
    let list = case(&format!("{folder}/binary_runtime_measurements_tpm_alg_27"));
    passes(&imastage(&["check", &list]));
    let pcrs = case(&format!("{folder}/pcrs"));
    passes(&imastage(&["replay", "--bank", "sha256", "--pcrs", &pcrs, &list]));
}

#[test]
fn case_p7_a_file_called_boot_aggregate_is_reported() {
    let folder = "p7-a-file-called-boot-aggregate";
    let (list, pcrs) = (case(&format!("{folder}/list")), case(&format!("{folder}/pcrs")));
    let answer = imastage(&["check", "--pcrs", &pcrs, &list]);
    assert_eq!(answer.code, 1);
    says(
        answer.text(),
        &[
            "record 1 (boot_aggregate): boot_aggregate is b5c1",
            "PCR 0 to 9 of bank sha256 give 3fc5",
        ],
    );
}

#[test]
fn finding_15_a_signed_file_called_boot_aggregate_is_explained() {
    let folder = "p7-a-file-called-boot-aggregate";
    let mut list = fs::read(case(&format!("{folder}/list"))).unwrap();
    // Its first record, then one of a file with a signature and a violation.
    let first = u32::from_le_bytes(list[34..38].try_into().unwrap()) as usize;
    list.truncate(38 + first);
    let builder = RecordBuilder::new(10);
    let digest = Bank::Sha256.hash(&[b"file"]);
    let signed =
        builder.ima_sig(&digest, b"boot_aggregate", &[3, 2, 4, 1, 2, 3, 4, 0, 1, 9]).unwrap();
    list.extend_from_slice(signed.as_bytes());
    list.extend(RecordBuf::ima_ng_violation(10, Bank::Sha256, b"boot_aggregate").into_bytes());
    let pcrs = case(&format!("{folder}/pcrs"));
    let answer = imastage_with(&["--json", "check", "--pcrs", &pcrs, "-"], &list);
    passes(&answer);
    let answer = answer.json();
    assert_eq!(answer["aggregates"], 1);
    assert_eq!(answer["called_boot_aggregate"][1]["index"], 2);
}

/// The signed corpus with the first signed record's template renamed: names are not under the digest.
fn relabelled(template: &str) -> Vec<u8> {
    let mut list = Vec::new();
    let mut done = false;
    let bytes = fs::read(corpus("signed/binary")).unwrap();
    let format = ima_log::Format::native(Bank::Sha1);
    for record in ima_log::Records::new(&bytes, format) {
        let record = record.unwrap();
        if !done && record.signature().is_some() {
            done = true;
            list.extend_from_slice(&record.as_bytes()[..24]);
            list.extend_from_slice(&(template.len() as u32).to_le_bytes());
            list.extend_from_slice(template.as_bytes());
            list.extend_from_slice(&(record.template_data().len() as u32).to_le_bytes());
            list.extend_from_slice(record.template_data());
        } else {
            list.extend_from_slice(record.as_bytes());
        }
    }
    list
}

#[test]
fn finding_07_relabelled_records_do_not_pass_check_with_a_key() {
    let (rsa, ec) = (corpus("signed/ima_pub.pem"), corpus("signed/ima_ec_pub.pem"));
    let keys = ["--key", &rsa, "--key", &ec];
    let check = |more: &[&str], list: &[u8]| {
        imastage_with(&[&["--json", "check"], &keys[..], more, &["-"]].concat(), list)
    };
    let good = fs::read(corpus("signed/binary")).unwrap();
    passes(&check(&[], &good));
    for template in ["ima-buf", "d-ng|n-ng|buf", "d-ng|n-ng|modsig"] {
        let answer = check(&[], &relabelled(template));
        assert_eq!(answer.code, 1, "{template}");
        let answer = answer.json();
        assert_eq!((&answer["relabelled"], &answer["signed"]), (&1.into(), &39.into()));
        let why = answer["relabelled_records"][0]["why"].as_str().unwrap().to_owned();
        says(&why, &["field 2 holds a file signature", template]);
        assert!(answer["relabelled_records"][0]["name"].is_string());
    }
    let list = relabelled("foo");
    assert_eq!(check(&[], &list).code, 1);
    // Even where the template is allowed, the signature in it is one that nothing verified.
    assert_eq!(check(&["--allow-template", "foo"], &list).code, 1);
    // Without a key a notice, with the index; the file is still found by its path.
    let answer = imastage_with(&["check", "-"], &list);
    assert_eq!(answer.code, 0);
    says(
        answer.text(),
        &[
            "1 records of templates that are not known",
            ": template foo",
            "not protected by the PCR",
        ],
    );
    let shown =
        imastage_with(&["--json", "show", "--template", "foo", "--path", "/**", "-"], &list);
    assert!(!shown.stdout.is_empty());

    let record = RecordBuilder::new(10).record("strange", &[b"x", b"y"]).unwrap();
    assert_eq!(check(&[], record.as_bytes()).code, 1);
    passes(&check(&["--allow-template", "strange"], record.as_bytes()));
    assert_eq!(check(&["--allow-template", "other"], record.as_bytes()).code, 1);
}

#[test]
fn finding_07_records_without_a_signature_are_counted_and_listed() {
    let (rsa, list) = (corpus("signed/ima_pub.pem"), corpus("signed/binary"));
    let answer = imastage(&["--json", "check", "--key", &rsa, "--unsigned", &list]);
    assert_eq!(answer.code, 1);
    let answer = answer.json();
    let count = |name: &str| answer[name].as_u64().unwrap();
    assert_eq!(count("signed") + count("refused") + count("unsigned"), count("records"));
    assert_eq!(answer["unsigned_records"].as_array().unwrap().len() as u64, count("unsigned"));
    let text = imastage(&["check", "--key", &rsa, &list]);
    says(text.text(), &["records without one", " (/", "): no key with the id "]);
    let refused = &answer["unverified"][0];
    assert!(refused["name"].as_str().unwrap().starts_with('/') && refused["index"].is_u64());
}

#[test]
fn finding_09_errors_and_the_log_are_lines_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a\r\x1b[2K\nimastage: pass");
    let path = path.to_str().unwrap();
    for code in [2, 0] {
        let answer = imastage(&["check", path]);
        assert_eq!(answer.code, code);
        says(&answer.stderr, &[r"a\r\x1b[2K\nimastage: pass"]);
        assert_eq!(answer.stderr.lines().count(), 1, "{:?}", answer.stderr);
        // Empty now, which is logged.
        fs::write(path, b"").unwrap();
    }
    let record = RecordBuf::ima_ng(10, &Bank::Sha1.hash(&[]), b"/a\x1b[32m\n\xff");
    let mut list = record.into_bytes();
    list[50] ^= 1;
    let answer = imastage_with(&["check", "-"], &list);
    assert_eq!(answer.code, 1);
    assert!(!answer.stdout.contains(&0x1b) && !answer.stdout.contains(&0xff));
}

#[test]
fn show_tells_when_nothing_fits_and_compares_last_parts() {
    let list = corpus("debian-6.1/binary");
    let shown = |args: &[&str]| imastage(&[&["show"], args, &[&list]].concat());
    let nothing = shown(&["--path", "/nosuch"]);
    passes(&nothing);
    assert!(nothing.stdout.is_empty());
    says(&nothing.stderr, &["no record fits"]);
    says(&shown(&["--from", "1000000"]).stderr, &["no record with this index"]);
    assert!(shown(&["--count", "0"]).stderr.is_empty());
    let (last, whole) = (shown(&["--path", "*.so*"]), shown(&["--path", "**/*.so*"]));
    assert!(!last.stdout.is_empty() && last.stdout == whole.stdout && last.stderr.is_empty());
}
