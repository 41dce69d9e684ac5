//! Tests of the JSON lines.

use alloc::format;

use proptest::prelude::*;

use super::*;
use crate::RecordBuf;

fn read(line: &str) -> Result<Vec<u8>, ImportErrorKind> {
    let mut decoder = Decoder::new();
    decoder.feed(line.as_bytes());
    decoder.end();
    match decoder.next_record() {
        Ok(record) => Ok(record.map(|record| record.as_bytes().to_vec()).unwrap_or_default()),
        Err(error) => Err(error.kind),
    }
}

/// A record of `template` with these fields, in this form.
fn record(template: &str, fields: &[Vec<u8>], format: Format) -> Binary {
    let mut data = Vec::new();
    for field in fields {
        data.extend_from_slice(&format.endian.bytes(field.len() as u32));
        data.extend_from_slice(field);
    }
    let mut binary = Binary::new();
    let digest = format.bank.hash(&[&data]);
    binary.set(format, 10, digest.as_bytes(), template, &data).unwrap();
    binary
}

#[test]
fn a_line_is_as_documented() {
    let record = RecordBuf::ima_ng(10, &Digest::zero(Bank::Sha1), b"/a \"b\"\n\xc3\xa4".as_slice());
    let mut line = Vec::new();
    write_record(&record.record(), 7, Bank::Sha1, &mut line);
    let digest = record.record().printed_digest();
    let expected = format!(
        "{{\"index\":7,\"pcr\":10,\"bank\":\"sha1\",\"digest\":\"{digest}\",\"template\":\
         \"ima-ng\",\"violation\":false,\"fields\":[{{\"d-ng\":\"sha1:{}\"}},{{\"n-ng\":\
         \"/a_\\\"b\\\"\\u000aä\"}}]}}\n",
        "00".repeat(20)
    );
    assert_eq!(core::str::from_utf8(&line).unwrap(), expected);
    assert_eq!(read(&expected), Ok(record.as_bytes().to_vec()));
    // As little as a line can say.
    let short = format!(
        "{{\"pcr\":10,\"digest\":\"{digest}\",\"template\":\"ima-ng\",\"fields\":[{{\"d-ng\":\
         \"sha1:{}\"}},{{\"n-ng\":\"/a_\\\"b\\\"\\u000aä\"}}]}}",
        "00".repeat(20)
    );
    assert_eq!(read(&short), Ok(record.as_bytes().to_vec()));
}

#[test]
fn what_is_no_record_is_refused_with_its_place() {
    let line = |members: &str| format!("{{\"pcr\":10,\"template\":\"ima-ng\",{members}}}");
    let digest = format!("\"digest\":\"{}\"", "11".repeat(20));
    let fields = "\"fields\":[{\"d-ng\":\"sha1:00\"},{\"n-ng\":\"/x\"}]";
    assert!(read(&line(&format!("{digest},{fields}"))).is_ok());
    for (members, expected) in [
        (format!("{digest},\"fields\":[{{\"d-ng\":\"sha1:00\"}}]"), "FieldCount"),
        (format!("{digest},\"fields\":[{{\"n-ng\":\"a\"}},{{\"n-ng\":\"a\"}}]"), "Fields"),
        (format!("{digest},\"fields\":[{{\"d-ng\":\"sha1:0\"}},{{\"n-ng\":\"\"}}]"), "Member"),
        (format!("{digest},{fields},\"violation\":true"), "violation"),
        (format!("{digest},{fields},\"bank\":\"sha256\""), "digest"),
        (format!("{digest},{fields},\"bank\":\"md4\""), "bank"),
        (format!("{digest},{fields},\"endian\":\"middle\""), "endian"),
        (format!("{digest},{fields},{digest}"), "duplicate"),
        (format!("{digest},{fields},\"digets\":1"), "unknown field"),
        (digest.clone(), "missing field"),
    ] {
        let error = alloc::format!("{:?}", read(&line(&members)).unwrap_err());
        assert!(error.contains(expected), "{members}: {error}");
    }
    let mut decoder = Decoder::new();
    let good = line(&format!("{digest},{fields}"));
    decoder.feed(format!("{good}\n\n{good}\nnonsense\n").as_bytes());
    assert!(decoder.next_record().unwrap().is_some());
    assert!(decoder.next_record().unwrap().is_some());
    let error = decoder.next_record().unwrap_err();
    assert_eq!((error.record, error.offset), (2, 2 * good.len() as u64 + 3));
}

fn field() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        "[a-z0-9/ \"\\\\\n]{0,20}".prop_map(|name| [name.as_bytes(), &[0]].concat()),
        ("(verity:|ima:|)[a-z0-9]{1,8}:", proptest::collection::vec(any::<u8>(), 0..33))
            .prop_map(|(head, digest)| [head.as_bytes(), &[0], &digest].concat()),
        any::<[u8; 4]>().prop_map(Vec::from),
        any::<[u8; 2]>().prop_map(Vec::from),
    ]
}

proptest! {
    #[test]
    fn nothing_is_lost(
        template in prop_oneof![
            Just("ima-ng"), Just("ima-sig"), Just("ima-ngv2"), Just("ima-sigv2"),
            Just("ima-buf"), Just("ima-modsig"), Just("evm-sig"), Just("d|n"),
            Just("imode|iuid|n-ng|xattrnames"), Just("strange")
        ],
        fields in proptest::collection::vec(field(), 12),
        big in any::<bool>(),
        bank in proptest::sample::select(&Bank::ALL[..]),
        chunk in 1usize..200,
    ) {
        let endian = if big { Endian::Big } else { Endian::Little };
        let format = Template::from_name(template.as_bytes()).unwrap().format();
        let count = if format.is_empty() { 12 } else { format.split('|').count() };
        let binary = record(template, &fields[..count], Format { bank, endian });
        let mut line = Vec::new();
        write_record(&binary.record().unwrap(), 0, bank, &mut line);
        prop_assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));

        let mut decoder = Decoder::new();
        let mut chunks = line.chunks(chunk);
        let read = loop {
            if decoder.has_record().unwrap() {
                break decoder.next_record().unwrap();
            }
            decoder.feed(chunks.next().unwrap());
        };
        prop_assert_eq!(read, Some(binary.record().unwrap()));
    }

    #[test]
    fn data_of_an_unknown_template_is_kept(data in proptest::collection::vec(any::<u8>(), 0..50)) {
        let mut binary = Binary::new();
        let form = Format::native(Bank::Sha256);
        binary.set(form, 10, &[1; 32], "strange", &data).unwrap();
        let mut line = Vec::new();
        write_record(&binary.record().unwrap(), 0, Bank::Sha256, &mut line);
        let mut decoder = Decoder::new();
        decoder.feed(&line);
        prop_assert_eq!(decoder.next_record().unwrap(), Some(binary.record().unwrap()));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        decoder.end();
        while let Ok(Some(_)) = decoder.next_record() {}
    }
}
