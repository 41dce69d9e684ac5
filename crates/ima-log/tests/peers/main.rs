//! What evmctl and keylime say of lists of every template they read, against what we say.
//!
//! Where they differ, the test named after the case says how and why.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod tools;

use ima_log::{Bank, Digest, Format, ListReplay, Records};
use tools::{d_ng, evmctl, fields, ima, keylime, n_ng};

/// Those of which evmctl 1.4 takes values.
const EVMCTL_BANKS: [Bank; 2] = [Bank::Sha1, Bank::Sha256];

/// Those that keylime has a hash function for.
const KEYLIME_BANKS: [Bank; 4] = [Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512];

const TEMPLATES: [&str; 4] = ["ima", "ima-ng", "ima-sig", "ima-buf"];

/// 64 records: of one template, `all`, or `all but ima`.
fn list(template: &str) -> Vec<Vec<u8>> {
    let one = [template];
    let templates = match template {
        "all" => &TEMPLATES[..],
        "all but ima" => &TEMPLATES[1..],
        _ => &one,
    };
    (0..64).map(|i| record(templates[i as usize % templates.len()], i)).collect()
}

fn record(template: &str, i: u64) -> Vec<u8> {
    let seed = i.to_le_bytes();
    let bank = KEYLIME_BANKS[i as usize % 4];
    let file = bank.hash(&[&seed]);
    let name = match i % 8 {
        0 => "boot_aggregate".to_owned(),
        1 => "/usr/bin/[".to_owned(),
        2 => format!("/opt/a:b|c/{i}"),
        3 => format!("/home/é€𝄞/{i}"),
        // The longest that template ima can hold.
        4 => "/".to_owned() + &"x".repeat(254),
        5 => "/tmp/tab\there".to_owned(),
        6 => "_".to_owned(),
        _ => format!("/usr/lib/file_{i}.so"),
    };
    let name = name.as_bytes();
    match template {
        "ima" => ima(10, &Bank::Sha1.hash(&[&seed]), name),
        "ima-ng" => fields(10, template, &[&d_ng(&file), &n_ng(name)], false),
        "ima-sig" if i.is_multiple_of(3) => {
            fields(10, template, &[&d_ng(&file), &n_ng(name), &[]], false)
        }
        "ima-sig" => {
            let signature = signature(if i % 3 == 1 { 256 } else { 71 });
            fields(10, template, &[&d_ng(&file), &n_ng(name), &signature], false)
        }
        "ima-buf" => {
            let data = Bank::Sha512.hash(&[&seed, b"data"]);
            let data = &data.as_bytes()[..i as usize % 65];
            fields(10, template, &[&d_ng(&file), &n_ng(name), data], false)
        }
        _ => unreachable!("{template}"),
    }
}

/// A signature header, version 2, and as many bytes as it says.
fn signature(size: u16) -> Vec<u8> {
    let header = [&[3, 2, 4][..], &0x1234_5678_u32.to_be_bytes(), &size.to_be_bytes()].concat();
    [header, (0..size).map(|i| i as u8).collect()].concat()
}

/// The values `list` leads to, by bank.
fn values(list: &[u8]) -> Vec<Digest> {
    let mut search = ListReplay::with_own_hash(KEYLIME_BANKS);
    for record in Records::new(list, Format::native(Bank::Sha1)) {
        search.push(&record.unwrap());
    }
    KEYLIME_BANKS.map(|bank| search.value(bank, 10).unwrap()).to_vec()
}

fn evmctl_values(list: &[u8]) -> Vec<(u32, Digest)> {
    let values = values(list).into_iter().filter(|value| EVMCTL_BANKS.contains(&value.bank()));
    values.map(|value| (10, value)).collect()
}

fn ascii(list: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for record in Records::new(list, Format::native(Bank::Sha1)) {
        record.unwrap().write_ascii(Bank::Sha1, &mut text);
    }
    text
}

#[test]
fn evmctl_matches_what_we_match() {
    // evmctl does not take other records beside those of template ima.
    for template in TEMPLATES.into_iter().chain(["all but ima"]) {
        let records = list(template);
        let whole = records.concat();
        let values = evmctl_values(&whole);
        for value in &values {
            let Some(said) = evmctl(&whole, &[*value], &[]) else { return };
            assert!(said.fine, "{template} {value:?}: {}", said.said);
            let said = evmctl(&whole, &[(10, value.1.extended_with(&value.1))], &[]).unwrap();
            assert!(!said.fine, "{template} {value:?}: {}", said.said);
        }
        let said = evmctl(&whole, &values, &[]).unwrap();
        assert!(said.fine, "{template}, all banks: {}", said.said);
        // A prefix leads to it: both take the list to be ahead of the PCRs.
        let prefix = evmctl_values(&records[..40].concat());
        assert!(evmctl(&whole, &prefix, &[]).unwrap().fine, "{template}, a prefix");
        // The list is behind the PCRs.
        let behind = records[..40].concat();
        assert!(!evmctl(&behind, &values, &[]).unwrap().fine, "{template}, behind");
        // One record missing.
        let gap = [&records[..20], &records[21..]].concat().concat();
        assert!(!evmctl(&gap, &values, &[]).unwrap().fine, "{template}, a gap");
    }
}

#[test]
fn keylime_matches_what_we_match() {
    let (mut lists, mut expected) = (Vec::new(), Vec::new());
    for template in TEMPLATES.into_iter().chain(["all"]) {
        let records = list(template);
        let whole = ascii(&records.concat());
        let prefix = values(&records[..40].concat());
        for (value, prefix) in values(&records.concat()).iter().zip(&prefix) {
            for (target, matched) in
                [(*value, Some(64)), (*prefix, Some(40)), (value.extended_with(value), None)]
            {
                lists.push((whole.clone(), target));
                expected.push((template, *value, matched));
            }
        }
    }
    let Some(said) = keylime(&lists) else { return };
    for (said, (template, value, matched)) in said.iter().zip(expected) {
        assert_eq!(said.value, value.to_string(), "{template} {said:?}");
        match matched {
            Some(records) => {
                assert_eq!(said.failures, [""; 0], "{template} {value:?}");
                assert_eq!(said.records, records, "{template} {value:?}");
            }
            None => assert_eq!(said.failures, ["ima.pcr_mismatch"], "{template} {value:?}"),
        }
    }
}

/// The values agree, yet keylime refuses every list with a violation, whatever the PCR says, and
/// evmctl does unless it is told to ignore them. `imastage replay` counts them: what they are worth
/// is for a policy to say.
#[test]
fn violations() {
    let mut records = list("ima-ng");
    let digest = [b"sha256:\0".as_slice(), &[0; 20]].concat();
    let violation = fields(10, "ima-ng", &[&digest, &n_ng(b"/var/log/file")], true);
    records.splice(30..30, [violation.clone(), violation]);
    let list = records.concat();
    for value in values(&list) {
        if EVMCTL_BANKS.contains(&value.bank())
            && let Some(said) = evmctl(&list, &[(10, value)], &[])
        {
            assert!(!said.fine, "{}", said.said);
            let said = evmctl(&list, &[(10, value)], &["--ignore-violations"]).unwrap();
            assert!(said.fine, "{}", said.said);
        }
        let Some(said) = keylime(&[(ascii(&list), value)]) else { continue };
        assert_eq!(said[0].value, value.to_string());
        assert_eq!(said[0].failures, ["ima.validation.tomtou"; 2]);
    }
}

/// keylime takes a signature whose header claims another size than there is for no signature,
/// computes the digest of other template data than the kernel did, and refuses the list. evmctl
/// and we hash the template data as it is.
#[test]
fn a_signature_that_lies_about_its_size() {
    let mut records = list("ima-sig");
    let file = Bank::Sha256.hash(&[b"file"]);
    let mut lying = signature(256);
    lying.pop();
    records.push(fields(10, "ima-sig", &[&d_ng(&file), &n_ng(b"/bin/true"), &lying], false));
    let list = records.concat();
    let value = values(&list)[1];
    if let Some(said) = evmctl(&list, &[(10, value)], &[]) {
        assert!(said.fine, "{}", said.said);
    }
    if let Some(said) = keylime(&[(ascii(&list), value)]) {
        assert_ne!(said[0].value, value.to_string());
        assert_eq!(said[0].failures, ["ima.validation.ima_hash", "ima.pcr_mismatch"]);
    }
}

/// Records of other PCRs do not extend PCR 10. keylime replays them into it, and refuses the list.
#[test]
fn records_of_other_pcrs() {
    let mut records = list("ima-ng");
    let file = Bank::Sha256.hash(&[b"file"]);
    let record = fields(11, "ima-ng", &[&d_ng(&file), &n_ng(b"/bin/true")], false);
    let parsed = Records::new(&record, Format::native(Bank::Sha1)).next().unwrap().unwrap();
    let data = parsed.template_data().to_vec();
    records.push(record);
    records.extend(list("ima-buf"));
    let list = records.concat();
    let value = values(&list)[1];
    let other = Digest::zero(Bank::Sha256).extended_with(&Bank::Sha256.hash(&[&data]));
    if let Some(said) = evmctl(&list, &[(10, value), (11, other)], &[]) {
        assert!(said.fine, "{}", said.said);
    }
    if let Some(said) = keylime(&[(ascii(&list), value)]) {
        assert_eq!(said[0].failures, ["ima.validation.ima_pcr", "ima.pcr_mismatch"]);
    }
}

/// keylime reads text: a newline in a name makes two lines of one record, neither of which it can
/// parse. In the binary list there is nothing special about such a name.
#[test]
fn a_newline_in_a_name() {
    let mut records = list("ima-ng");
    let file = Bank::Sha256.hash(&[b"file"]);
    records.push(fields(10, "ima-ng", &[&d_ng(&file), &n_ng(b"/tmp/two\nlines")], false));
    let list = records.concat();
    let value = values(&list)[1];
    if let Some(said) = evmctl(&list, &[(10, value)], &[]) {
        assert!(said.fine, "{}", said.said);
    }
    if let Some(said) = keylime(&[(ascii(&list), value)]) {
        assert!(said[0].failures.iter().any(|id| id == "ima.parser.entry"), "{said:?}");
    }
}

/// A record cut off, or one altered: evmctl refuses both, as we do.
#[test]
fn damage() {
    let records = list("all but ima");
    let list = records.concat();
    let value = values(&list)[1];
    let Some(said) = evmctl(&list[..list.len() - 1], &[(10, value)], &[]) else { return };
    assert!(!said.fine, "{}", said.said);
    let mut altered = list.clone();
    let at = records[..10].concat().len() + 80;
    altered[at] ^= 1;
    assert!(!evmctl(&altered, &[(10, value)], &[]).unwrap().fine);
    assert_ne!(values(&altered)[1], value);
}
