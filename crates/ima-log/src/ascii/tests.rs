//! Tests of reading ASCII lists.

use core::str;

use super::*;
use crate::{DigestType, EvmSig, MAX_FIELDS, RecordBuilder};
use proptest::{collection::vec, prelude::*};

fn lines(records: &[RecordBuf], bank: Bank) -> Vec<u8> {
    let mut list = Vec::new();
    records.iter().for_each(|record| record.record().write_ascii(bank, &mut list));
    list
}

fn read(list: &[u8], chunk: usize) -> Result<Vec<RecordBuf>, AsciiError> {
    let (mut decoder, mut records) = (AsciiDecoder::new(), Vec::new());
    for bytes in list.chunks(chunk) {
        decoder.feed(bytes);
        while let Some(record) = decoder.next_record()? {
            let bytes = record.as_bytes().to_vec();
            records.push(RecordBuf::checked(bytes, record.format().endian).unwrap());
        }
    }
    decoder.end();
    while let Some(record) = decoder.next_record()? {
        let bytes = record.as_bytes().to_vec();
        records.push(RecordBuf::checked(bytes, record.format().endian).unwrap());
    }
    assert_eq!((decoder.records(), decoder.offset()), (records.len() as u64, list.len() as u64));
    Ok(records)
}

fn kind(list: &[u8]) -> AsciiErrorKind {
    read(list, 4096).unwrap_err().kind
}

fn record() -> RecordBuf {
    RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), b"/bin/sh")
}

#[test]
fn what_cannot_be_read_back_is_told() {
    let digest = Bank::Sha256.hash(&[]);
    let builder = RecordBuilder::new(10);
    let newlines = |count| RecordBuf::ima_ng(10, &digest, &alloc::vec![b'\n'; count]);
    let list = lines(&[record(), newlines(MAX_NEWLINES + 1)], Bank::Sha1);
    let offset = lines(&[record()], Bank::Sha1).len() as u64;
    let kind_at = |record| AsciiError { record, offset, kind: AsciiErrorKind::Unproven };
    assert_eq!(read(&list, 7), Err(kind_at(1)));
    let list = [record(), newlines(MAX_NEWLINES), newlines(1), record()];
    assert_eq!(read(&lines(&list, Bank::Sha1), 7).as_deref(), Ok(&list[..]));
    let violation = RecordBuf::ima_ng_violation(10, Bank::Sha1, b"a\nb");
    assert_eq!(kind(&lines(&[violation], Bank::Sha1)), AsciiErrorKind::Pcr);
    let odd = |fields: &[&[u8]]| {
        kind(&lines(&[builder.record("d-ng|n-ng", fields).unwrap()], Bank::Sha1))
    };
    assert_eq!(odd(&[b"sha1:\0x", b"a b\0"]), AsciiErrorKind::FieldCount { expected: 2, found: 3 });
    assert_eq!(odd(&[b"sha1:\0x", b"a\0b\0"]), AsciiErrorKind::Unproven);
    assert_eq!(odd(&[b"sha1:\0x", b"ab"]), AsciiErrorKind::Unproven);
    assert_eq!(kind(b"MZ"), AsciiErrorKind::Truncated);
    assert_eq!(kind(b"MZ\n"), AsciiErrorKind::Pcr);
    assert_eq!(kind(b"+1 00 ima-ng\n"), AsciiErrorKind::Pcr);
    assert_eq!(kind(b"10 00 ima-ng\n"), AsciiErrorKind::TemplateDigest);
    assert_eq!(kind(&[b'1'; 300]), AsciiErrorKind::Truncated);
    let line = lines(&[record()], Bank::Sha512);
    for (from, to, field) in [("sha256:e", "sha256:x", 0), ("sha256:e", "sha256:", 0)] {
        let line = str::from_utf8(&line).unwrap().replace(from, to);
        let expected = AsciiErrorKind::Field { field, expected: "hex digits" };
        assert_eq!(kind(line.as_bytes()), expected);
    }
}

#[test]
fn the_digest_is_the_proof() {
    let line = lines(&[record()], Bank::Sha256);
    assert_eq!(read(&line, 1), Ok(alloc::vec![record()]));
    for at in 3..line.len() - 1 {
        let mut altered = line.clone();
        altered[at] ^= 1;
        assert!(read(&altered, 4096).is_err(), "byte {at}");
    }
    for len in 1..line.len() - 1 {
        assert_eq!(kind(&line[..len]), AsciiErrorKind::Truncated);
    }
}

#[test]
fn a_line_that_does_not_end_is_not_kept() {
    let mut decoder = AsciiDecoder::new();
    decoder.feed(&alloc::vec![b'1'; MAX_LINE - 1]);
    assert_eq!(decoder.has_record(), Ok(false));
    decoder.feed(b"1");
    assert_eq!(decoder.has_record().unwrap_err().kind, AsciiErrorKind::TooLong);
}

#[test]
fn lists_padded_with_sha1_are_read() {
    let record = record();
    let padded = record.record().template_digest(Bank::Sha1).padded_to(Bank::Sha384);
    let line = lines(core::slice::from_ref(&record), Bank::Sha1);
    let line = [&line[..3], alloc::format!("{padded}").as_bytes(), &line[43..]].concat();
    assert_eq!(read(&line, 4096), Ok(alloc::vec![record]));
}

/// Kernel lists as editors, mail and web pages leave them.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    CarriageReturns,
    TrailingBlanksRemoved,
    TrailingBlanksAdded,
    LeadingBlanks,
    RunsOfBlanksCollapsed,
    TabsForBlanks,
    EmptyLines,
    NoLastNewline,
    ByteOrderMark,
}

const CHANGES: [Change; 10] = [
    Change::Nothing,
    Change::CarriageReturns,
    Change::TrailingBlanksRemoved,
    Change::TrailingBlanksAdded,
    Change::LeadingBlanks,
    Change::RunsOfBlanksCollapsed,
    Change::TabsForBlanks,
    Change::EmptyLines,
    Change::NoLastNewline,
    Change::ByteOrderMark,
];

fn changed(list: &[u8], change: Change) -> Vec<u8> {
    let mut all = Vec::new();
    if let Change::ByteOrderMark = change {
        all.extend_from_slice(BYTE_ORDER_MARK);
    }
    for line in list.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let end = line.iter().rposition(|byte| *byte != b' ').map_or(0, |at| at + 1);
        match change {
            Change::TrailingBlanksRemoved => all.extend_from_slice(&line[..end]),
            Change::LeadingBlanks => all.extend([b"\t  ", line].concat()),
            Change::TabsForBlanks => {
                all.extend(line.iter().map(|byte| if *byte == b' ' { b'\t' } else { *byte }));
            }
            Change::RunsOfBlanksCollapsed => {
                let mut before = b' ';
                for byte in line.iter().copied() {
                    if (byte, before) != (b' ', b' ') {
                        all.push(byte);
                    }
                    before = byte;
                }
            }
            _ => all.extend_from_slice(line),
        }
        all.extend_from_slice(match change {
            Change::CarriageReturns => b"\r\n",
            Change::TrailingBlanksAdded => b" \t \n",
            Change::EmptyLines => b"\n \r\n\n",
            _ => b"\n",
        });
    }
    if let Change::NoLastNewline = change {
        all.pop();
    }
    all
}

#[test]
fn case_07_lists_that_went_through_editors_are_read() {
    let digest = Bank::Sha256.hash(&[b"f"]);
    let builder = RecordBuilder::new(10);
    let evm = EvmSig { uid: 0, gid: 0, mode: 0o100_755, ..EvmSig::default() };
    let list = [
        builder.ima_sig(&digest, b"boot_aggregate", &[]).unwrap(),
        builder.ima_modsig(&digest, b"/m", &[], Some((&digest, b"pkcs7"))).unwrap(),
        builder.ima_modsig(&digest, b"/m", &[], None).unwrap(),
        builder.evm_sig(&digest, b"/e", &evm).unwrap(),
        builder.ima_ng(&digest, b"/a\nb").unwrap(),
        builder.ima(&Bank::Sha1.hash(&[]), b"").unwrap(),
        builder.record("strange", &[b"a", b"b", b"", b""]).unwrap(),
        RecordBuilder::new(9).ima_sig(&digest, b"/s", &[3, 2, 4]).unwrap(),
    ];
    for change in CHANGES {
        // A name with a line break stays one only where lines are not taken apart.
        let list: Vec<RecordBuf> = match change {
            Change::TrailingBlanksAdded | Change::EmptyLines | Change::LeadingBlanks => {
                list.iter().filter(|r| r.record().event_name() != Some(b"/a\nb")).cloned().collect()
            }
            _ => list.to_vec(),
        };
        for bank in Bank::ALL {
            let text = changed(&lines(&list, bank), change);
            assert_eq!(read(&text, 50).as_deref(), Ok(&list[..]), "{change:?} {bank}");
        }
    }
}

#[test]
fn case_07_nothing_proves_what_a_violation_was() {
    let digest = Bank::Sha256.hash(&[]);
    let builder = RecordBuilder::new(10);
    let list = [
        builder.ima_sig(&digest, b"boot_aggregate", &[1]).unwrap(),
        builder.violation().ima_sig(&digest, b"/v", &[]).unwrap(),
    ];
    for change in [
        Change::CarriageReturns,
        Change::TrailingBlanksRemoved,
        Change::TrailingBlanksAdded,
        Change::TabsForBlanks,
        Change::NoLastNewline,
    ] {
        let error = read(&changed(&lines(&list, Bank::Sha1), change), 50).unwrap_err();
        assert_eq!((error.record, error.kind), (1, AsciiErrorKind::Violation), "{change:?}");
    }
    for change in [Change::LeadingBlanks, Change::EmptyLines, Change::ByteOrderMark] {
        let text = changed(&lines(&list, Bank::Sha1), change);
        assert_eq!(read(&text, 50).as_deref(), Ok(&list[..]), "{change:?}");
    }
    // In a list whose lines end as the kernel ends them, the CR is the name's.
    let named = builder.violation().ima_ng(&digest, b"/v\r").unwrap();
    let list = [list[0].clone(), named];
    assert_eq!(read(&lines(&list, Bank::Sha1), 50).as_deref(), Ok(&list[..]));
}

#[test]
fn finding_08_a_line_has_no_more_fields_than_a_template() {
    let digest = "11".repeat(20);
    let line = |fields: usize| alloc::format!("10 {digest} strange{}\n", " 00".repeat(fields));
    assert_eq!(kind(line(MAX_FIELDS).as_bytes()), AsciiErrorKind::Unproven);
    assert_eq!(
        kind(line(MAX_FIELDS + 1).as_bytes()),
        AsciiErrorKind::TooManyFields(MAX_FIELDS + 1)
    );
}

fn any_record(big: bool) -> impl Strategy<Value = RecordBuf> {
    let name = vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..12);
    let bytes = || vec(any::<u8>(), 0..20);
    let banks = proptest::sample::select(&Bank::ALL[..]);
    (0..9u8, banks, name, bytes(), bytes(), any::<(u32, u32, u16)>()).prop_map(
        move |(template, bank, name, a, b, (uid, gid, mode))| {
            let endian = if big { Endian::Big } else { Endian::Little };
            let builder = RecordBuilder::new(uid % 24).endian(endian);
            let digest = bank.hash(&[&a]);
            let xattrs = [("security.a", &a[..]), ("b", &b)];
            let evm = EvmSig { signature: &a, xattrs: &xattrs, uid, gid, mode };
            match template {
                0 => builder.ima_ng(&digest, &name),
                1 => builder.ima_sig(&digest, &name, &a),
                2 => builder.ima_ngv2(DigestType::Verity, &digest, &name),
                3 => builder.ima_sigv2(DigestType::Ima, &digest, &name, &b),
                4 => builder.ima_buf(&digest, &name, &a),
                5 => builder.ima_modsig(&digest, &name, &a, Some((&digest, &b))),
                6 => builder.ima_modsig(&digest, &name, &a, None),
                7 => builder.evm_sig(&digest, &name, &evm),
                _ => builder.record("n-ng|sig|d-ng|imode", &[b"\0", &a, &b"x"[..0], b""]),
            }
            .unwrap()
        },
    )
}

fn any_list() -> impl Strategy<Value = Vec<RecordBuf>> {
    any::<bool>().prop_flat_map(|big| vec(any_record(big), 0..6))
}

proptest! {
    #[test]
    fn a_list_comes_back_to_the_byte(
        list in any_list(),
        bank in proptest::sample::select(&Bank::ALL[..]),
        chunk in 1..400usize,
    ) {
        prop_assert_eq!(read(&lines(&list, bank), chunk).unwrap(), list);
    }

    #[test]
    fn case_07_changed_lists_come_back_in_any_chunks(
        list in any_list(),
        bank in proptest::sample::select(&Bank::ALL[..]),
        chunk in 1..400usize,
        change in proptest::sample::select(&CHANGES[..]),
    ) {
        // Line breaks and tabs inside names are not told from those that were added.
        let plain = |record: &RecordBuf| {
            let name = record.record().event_name().unwrap_or_default().to_vec();
            !name.iter().any(u8::is_ascii_whitespace)
        };
        let list: Vec<RecordBuf> = list.into_iter().filter(plain).collect();
        let text = changed(&lines(&list, bank), change);
        let read = read(&text, chunk);
        prop_assert!(read.as_ref() == Ok(&list), "{:?}\n{}", read.err(), text.escape_ascii());
    }

    #[test]
    fn violations_follow_the_byte_order_before_them(big in any::<bool>(), uid in any::<u32>()) {
        let endian = if big { Endian::Big } else { Endian::Little };
        let builder = RecordBuilder::new(10).endian(endian);
        let digest = Bank::Sha256.hash(&[]);
        let evm = EvmSig { uid, ..EvmSig::default() };
        let list = [
            builder.ima_ng(&digest, b"boot_aggregate").unwrap(),
            builder.violation().evm_sig(&digest, b"/f", &evm).unwrap(),
        ];
        prop_assert_eq!(read(&lines(&list, Bank::Sha1), 4096).unwrap(), list);
    }

    #[test]
    fn template_ima_comes_back_in_the_native_order(
        name in vec(any::<u8>().prop_filter("odd", |byte| !b"\n\0 ".contains(byte)), 0..255),
        md5 in any::<bool>(),
    ) {
        let digest = &[7; 20][..if md5 { 16 } else { 20 }];
        let record = RecordBuilder::new(10).record("ima", &[digest, &name]).unwrap();
        let line = lines(core::slice::from_ref(&record), Bank::Sha1);
        prop_assert_eq!(read(&line, 100).unwrap(), [record]);
    }

    #[test]
    fn any_bytes_end_in_records_or_an_error(
        line in "( 9|10) [0-9a-f]{40} (ima|ima-ng|evm-sig|x)[ 0-9a-z:]{0,40}\n",
        bytes in vec(any::<u8>(), 0..80),
    ) {
        let _ = read(line.as_bytes(), 30);
        prop_assert!(read(&bytes, 30).is_err() || bytes.trim_ascii().is_empty());
    }
}
