//! Tests of the Canonical Event Log in its three encodings.

use alloc::{format, string::String, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::import::Binary;
use crate::{
    Bank, Digest, Endian, Format, ImportError, ImportErrorKind, RecordBuf, Records, Template,
};

const ENCODINGS: [Encoding; 3] = [Encoding::Json, Encoding::Cbor, Encoding::Tlv];

fn list() -> Vec<u8> {
    let mut list = Vec::new();
    list.extend(RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[b"x"]), b"boot_aggregate").into_bytes());
    list.extend(RecordBuf::ima_ng(11, &Bank::Sha256.hash(&[b"y"]), b"/\xff\n\"").into_bytes());
    list.extend(RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v").into_bytes());
    list
}

/// Where records end.
fn lens() -> impl Iterator<Item = usize> {
    let list = list();
    let records = Records::new(&list, Format::native(Bank::Sha1));
    let lens: Vec<usize> = records.map(|record| record.unwrap().as_bytes().len()).collect();
    lens.into_iter().scan(0, |end, len| {
        *end += len;
        Some(*end)
    })
}

fn export(list: &[u8], encoding: Encoding, count: Option<u64>) -> Vec<u8> {
    let mut log = Vec::new();
    let mut writer = Writer::new(encoding, &[Bank::Sha1, Bank::Sha256]);
    writer.begin(count, &mut log);
    for record in Records::new(list, Format::native(Bank::Sha1)) {
        writer.record(&record.unwrap(), &mut log);
    }
    writer.end(&mut log);
    log
}

fn import(log: &[u8], encoding: Encoding, chunk: usize) -> Result<(Vec<u8>, u64), ImportError> {
    let mut decoder = Decoder::new(encoding);
    let mut list = Vec::new();
    for bytes in log.chunks(chunk) {
        decoder.feed(bytes);
        while let Some(record) = decoder.next_record()? {
            list.extend_from_slice(record.as_bytes());
        }
    }
    decoder.end();
    while let Some(record) = decoder.next_record()? {
        list.extend_from_slice(record.as_bytes());
    }
    Ok((list, decoder.skipped()))
}

#[test]
fn what_goes_out_comes_back_in_any_chunks() {
    for encoding in ENCODINGS {
        for count in [None, Some(3)] {
            let log = export(&list(), encoding, count);
            for chunk in 1..log.len() {
                assert_eq!(import(&log, encoding, chunk), Ok((list(), 0)), "{encoding:?} {chunk}");
            }
        }
        let nothing = export(&[], encoding, None);
        assert_eq!(import(&nothing, encoding, 9), Ok((Vec::new(), 0)));
        assert_eq!(import(&[], encoding, 9), Ok((Vec::new(), 0)));
    }
}

#[test]
fn every_truncation_is_an_error() {
    for encoding in ENCODINGS {
        for count in [None, Some(3)] {
            let log = export(&list(), encoding, count);
            let end =
                if encoding == Encoding::Json { log.trim_ascii_end().len() } else { log.len() };
            // A log in TLV has no end of its own.
            let whole = |len| {
                let record = |n| export(&list()[..n], encoding, count).len();
                encoding == Encoding::Tlv && lens().any(|n| record(n) == len)
            };
            for len in (1..end).filter(|len| !whole(*len)) {
                let error = import(&log[..len], encoding, 1000).unwrap_err();
                assert_eq!(error.kind, ImportErrorKind::Truncated, "{encoding:?} {len}");
            }
        }
    }
}

#[test]
fn json_is_as_specified() {
    let record = RecordBuf::ima_ng(10, &Digest::zero(Bank::Sha1), b"/x");
    let digest = record.record().printed_digest();
    let data: String =
        record.record().template_data().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut log = Vec::new();
    let mut writer = Writer::new(Encoding::Json, &[]);
    writer.begin(None, &mut log);
    writer.record(&record.record(), &mut log);
    writer.end(&mut log);
    let expected = format!(
        "[\n{{\"recnum\":0,\"pcr\":10,\"digests\":[{{\"hashAlg\":\"sha1\",\"digest\":\"{digest}\"}}],\
         \"content_type\":\"ima_template\",\"content\":{{\"template_name\":\"ima-ng\",\
         \"template_data\":\"{data}\"}}}}\n]\n"
    );
    assert_eq!(String::from_utf8(log), Ok(expected));
}

#[test]
fn cbor_is_as_specified() {
    let record = RecordBuf::ima_ng(10, &Digest::zero(Bank::Sha1), b"/x");
    let mut expected = Vec::from(*b"\x81\xa5\x00\x00\x01\x0a\x03\x81\xa2\x00\x04\x01\x54");
    expected.extend_from_slice(record.record().printed_digest().as_bytes());
    expected.extend_from_slice(b"\x09\x07\x0a\xa2\x00\x66ima-ng\x01\x58\x25");
    expected.extend_from_slice(record.record().template_data());
    let mut log = Vec::new();
    let mut writer = Writer::new(Encoding::Cbor, &[]);
    writer.begin(Some(1), &mut log);
    writer.record(&record.record(), &mut log);
    writer.end(&mut log);
    assert_eq!(log, expected);
}

#[test]
fn case_15_tlv_is_as_specified() {
    let record = RecordBuf::ima_ng(10, &Digest::zero(Bank::Sha1), b"/x");
    let mut expected = Vec::from(*b"\0\0\0\0\x08\0\0\0\0\0\0\0\0\x01\0\0\0\x01\x0a");
    expected.extend_from_slice(b"\x03\0\0\0\x19\x04\0\0\0\x14");
    expected.extend_from_slice(record.record().printed_digest().as_bytes());
    expected.extend_from_slice(b"\x07\0\0\0\x35\0\0\0\0\x06ima-ng\x01\0\0\0\x25");
    expected.extend_from_slice(record.record().template_data());
    let mut log = Vec::new();
    let mut writer = Writer::new(Encoding::Tlv, &[]);
    writer.begin(None, &mut log);
    writer.record(&record.record(), &mut log);
    writer.end(&mut log);
    assert_eq!(log, expected);
    // Others write the PCR index in four bytes, and records that are not IMA's.
    let long = [&log[..14], &[0, 0, 0, 4, 0, 0, 0, 10], &log[19..]].concat();
    let other = [&log[..19], b"\x03\0\0\0\0\x50\0\0\0\x03abc"].concat();
    let log = [other, long].concat();
    assert_eq!(import(&log, Encoding::Tlv, 7), Ok((record.as_bytes().to_vec(), 1)));
}

#[test]
fn finding_08_cbor_is_examined_once() {
    // An item in 16 KiB of small ones, given byte by byte.
    let mut log = Vec::from(*b"\xa3\x09\x05\x0a\x9f");
    log.extend([1; 16 << 10]);
    log.extend_from_slice(b"\xff\x01\x0a");
    let mut decoder = Decoder::new(Encoding::Cbor);
    for byte in &log {
        decoder.feed(&[*byte]);
        assert_eq!(decoder.has_record(), Ok(false));
    }
    assert_eq!(decoder.skipped(), 1);
    // Heads that are not whole yet are looked at once for each byte that comes.
    assert!(decoder.cbor_scanner.heads <= 3 * log.len() as u64, "{}", decoder.cbor_scanner.heads);
}

#[test]
fn a_violation_has_what_it_extends() {
    let log = export(&list()[..], Encoding::Json, None);
    let text = String::from_utf8(log).unwrap();
    let violation = text.lines().nth(3).unwrap();
    assert!(violation.contains(&format!("\"digest\":\"{}\"", "ff".repeat(20))), "{violation}");
    assert!(violation.contains(&format!("\"digest\":\"{}\"", "ff".repeat(32))), "{violation}");
    // It is the second record of its PCR.
    assert!(violation.contains("\"recnum\":1,\"pcr\":10"), "{violation}");
}

#[test]
fn other_records_are_passed_over_and_other_shapes_read() {
    let text = String::from_utf8(export(&list(), Encoding::Json, None)).unwrap();
    let objects: Vec<&str> =
        text.lines().filter(|line| line.len() > 2).map(|line| line.trim_end_matches(',')).collect();
    let other = "{\"recnum\":0,\"pcr\":0,\"digests\":[{\"hashAlg\":\"sha3_256\",\"digest\":\"00\"}],\
                 \"content_type\":\"pcclient_std\",\"content\":{\"event_type\":\"ev_}{\\\"\",\
                 \"event_data\":\"\"}}";
    let array = format!("[{other},\n{} , {},{}]", objects[0], objects[1], objects[2]);
    assert_eq!(import(array.as_bytes(), Encoding::Json, 7), Ok((list(), 1)));
    let sequence = format!("\x1e{other}\n\x1e{}\n\x1e{}\n{}", objects[0], objects[1], objects[2]);
    assert_eq!(import(sequence.as_bytes(), Encoding::Json, 7), Ok((list(), 1)));
    let numbers = text.replace("\"ima_template\"", "7").replace("\"sha1\"", "4");
    assert_eq!(import(numbers.as_bytes(), Encoding::Json, 7), Ok((list(), 0)));

    let log = export(&list(), Encoding::Cbor, Some(3));
    let other = b"\xa5\x00\x00\x01\x00\x03\x81\xa2\x00\x19\x00\x27\x01\x41\x00\x09\x05\x0a\xa2\x00\x03\x01\x5f\x41\x01\xff";
    let sequence = [&other[..], &log[1..]].concat();
    assert_eq!(import(&sequence, Encoding::Cbor, 7), Ok((list(), 1)));
}

#[test]
fn both_byte_orders_are_told_apart() {
    for endian in [Endian::Little, Endian::Big] {
        for encoding in ENCODINGS {
            let format = Format { bank: Bank::Sha256, endian };
            let field = [&endian.bytes(4)[..], b"/ab\0"].concat();
            let data = [&endian.bytes(6)[..], b"sha1:\0", &field].concat();
            let mut binary = Binary::new();
            let digest = Bank::Sha256.hash(&[&data]);
            binary.set(format, 10, digest.as_bytes(), "ima-ng", &data).unwrap();
            let record = binary.record().unwrap();
            let mut log = Vec::new();
            let mut writer = Writer::new(encoding, &[Bank::Sha1]);
            writer.begin(None, &mut log);
            writer.record(&record, &mut log);
            writer.end(&mut log);
            let mut decoder = Decoder::new(encoding);
            decoder.feed(&log);
            assert_eq!(decoder.next_record(), Ok(Some(record)));
        }
    }
}

#[test]
fn a_tlv_record_replays_and_goes_back_as_it_came() {
    // A path and a file digest, each type, length and value.
    let value = b"\x00\x00\x00\x00\x02/x\x01\x00\x00\x00\x02\xab\xcd";
    let whole = [&b"\x08\x00\x00\x00\x0e"[..], value].concat();
    let digest = Bank::Sha256.hash(&[&whole]);
    let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
    let log = format!(
        "[\n{{\"recnum\":0,\"pcr\":10,\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{digest}\"}}],\
         \"content_type\":\"ima_tlv\",\"content\":\"{hex}\"}}\n]\n"
    );
    let mut decoder = Decoder::new(Encoding::Json);
    decoder.feed(log.as_bytes());
    let record = decoder.next_record().unwrap().unwrap();
    assert!(record.digest_is_right());
    assert_eq!(record.template(), Template::Unknown("ima_tlv"));
    let mut again = Vec::new();
    let mut writer = Writer::new(Encoding::Json, &[]);
    writer.begin(None, &mut again);
    writer.record(&record, &mut again);
    writer.end(&mut again);
    assert_eq!(String::from_utf8(again), Ok(log));
}

#[test]
fn digests_that_contradict_each_other_are_refused() {
    let text = String::from_utf8(export(&list(), Encoding::Json, None)).unwrap();
    let records: Vec<_> = Records::new(&list(), Format::native(Bank::Sha1))
        .map(|r| format!("{}", r.unwrap().template_digest(Bank::Sha256)))
        .collect();
    let altered = text.replace(&records[1], &"11".repeat(32));
    assert_ne!(altered, text);
    let error = import(altered.as_bytes(), Encoding::Json, 50).unwrap_err();
    assert_eq!((error.record, error.kind), (1, ImportErrorKind::Digest(Bank::Sha256)));
    let altered = text.replace(&"ff".repeat(32), &"11".repeat(32));
    let error = import(altered.as_bytes(), Encoding::Json, 50).unwrap_err();
    assert_eq!((error.record, error.kind), (2, ImportErrorKind::Digest(Bank::Sha256)));
}

#[test]
fn what_is_no_log_is_refused() {
    for (log, encoding) in [
        (&b"nonsense"[..], Encoding::Json),
        (b"[1]", Encoding::Json),
        (b"[{}]", Encoding::Json),
        (b"[{\"content_type\":\"ima_template\",\"content\":\"\"}]", Encoding::Json),
        (b"[{\"content_type\":\"ima_tlv\",\"content\":\"\",\"pcr\":1}]", Encoding::Json),
        (b"[{\"content_type\":\"cel\",\"content\":1} {}]", Encoding::Json),
        (b"[] 1", Encoding::Json),
        // Lengths that lie, and nesting without end.
        (b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff\xa5\x00", Encoding::Cbor),
        (b"\x81\xbb\xff\xff\xff\xff\xff\xff\xff\xff", Encoding::Cbor),
        (b"\x81\xa5\x0a\x5b\xff\xff\xff\xff\xff\xff\xff\xff", Encoding::Cbor),
        (b"\x81\xa5\x05\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x81\x00", Encoding::Cbor),
        (b"\x81\xa0", Encoding::Cbor),
        (b"\x80\x00", Encoding::Cbor),
        (b"\x81\xfc", Encoding::Cbor),
        // No record number, a content that never comes, lengths that lie.
        (b"\x01\0\0\0\x01\x0a", Encoding::Tlv),
        (b"\0\0\0\0\x01\0\0\0\0\0\x01\0", Encoding::Tlv),
        (b"\0\xff\xff\xff\xff", Encoding::Tlv),
        (b"\0\0\0\0\x01\0\x03\0\0\0\x05\x04\0\0\0\x14\x07\0\0\0\0", Encoding::Tlv),
    ] {
        assert!(import(log, encoding, 3).is_err(), "{}", log.escape_ascii());
    }
}

proptest! {
    #[test]
    fn any_record_comes_back(
        template in prop_oneof![
            Just("ima-ng"), Just("ima-buf"), Just("ima-modsig"), Just("evm-sig"), Just("n-ng|iuid")
        ],
        fields in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 9),
        big in any::<bool>(),
        bank in proptest::sample::select(&Bank::ALL[..]),
        violation in any::<bool>(),
        encoding in proptest::sample::select(&ENCODINGS[..]),
        pcr in any::<u32>(),
        chunk in 1usize..300,
    ) {
        let endian = if big { Endian::Big } else { Endian::Little };
        let count = Template::from_name(template.as_bytes()).unwrap().format().split('|').count();
        let mut data = Vec::new();
        for field in &fields[..count] {
            data.extend_from_slice(&endian.bytes(field.len() as u32));
            data.extend_from_slice(field);
        }
        // Where every field is empty, nothing tells the byte order.
        prop_assume!(fields[..count].iter().any(|field| !field.is_empty()));
        let digest = if violation { Digest::zero(bank) } else { bank.hash(&[&data]) };
        let mut binary = Binary::new();
        binary.set(Format { bank, endian }, pcr, digest.as_bytes(), template, &data).unwrap();
        let record = binary.record().unwrap();

        let mut log = Vec::new();
        let mut writer = Writer::new(encoding, &Bank::ALL);
        writer.begin(Some(1), &mut log);
        writer.record(&record, &mut log);
        writer.end(&mut log);
        let mut decoder = Decoder::new(encoding);
        let mut chunks = log.chunks(chunk);
        while !decoder.has_record().unwrap() {
            decoder.feed(chunks.next().unwrap());
        }
        prop_assert_eq!(decoder.next_record().unwrap(), Some(record));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), encoding in proptest::sample::select(&ENCODINGS[..])) {
        let _ = import(&bytes, encoding, 17);
    }

    #[test]
    fn no_alteration_panics(at in any::<proptest::sample::Index>(), byte in any::<u8>(), encoding in proptest::sample::select(&ENCODINGS[..])) {
        let mut log = export(&list(), encoding, Some(3));
        let at = at.index(log.len());
        log[at] = byte;
        let _ = import(&log, encoding, 17);
    }
}
