//! Exported lists: what is read from one is written as one that reads the same.

use ima_log::{Format, Record, cel, json as lines};

/// JSON lines.
pub fn json(data: &[u8]) {
    let mut written = Vec::new();
    let records = read_json(data);
    for (index, (format, bytes)) in records.iter().enumerate() {
        lines::write_record(&record(*format, bytes), index as u64, format.bank, &mut written);
    }
    assert_eq!(read_json(&written), records);
}

/// A Canonical Event Log in JSON.
pub fn cel_json(data: &[u8]) {
    cel(cel::Encoding::Json, data);
}

/// A Canonical Event Log in CBOR.
pub fn cel_cbor(data: &[u8]) {
    cel(cel::Encoding::Cbor, data);
}

fn cel(encoding: cel::Encoding, data: &[u8]) {
    for (format, bytes) in read_cel(encoding, data) {
        let mut written = Vec::new();
        let mut writer = cel::Writer::new(encoding, &[format.bank]);
        writer.begin(Some(1), &mut written);
        writer.record(&record(format, &bytes), &mut written);
        writer.end(&mut written);
        let again = read_cel(encoding, &written);
        assert_eq!(again.len(), 1);
        // A log tells no byte order, so that of an unknown template's integers may be the other.
        let (before, after) = (record(format, &bytes), record(again[0].0, &again[0].1));
        assert_eq!(after.pcr(), before.pcr());
        assert_eq!(after.template(), before.template());
        assert_eq!(after.template_data(), before.template_data());
        assert_eq!(after.printed_digest(), before.printed_digest());
    }
}

type Owned = (Format, Vec<u8>);

fn read_json(data: &[u8]) -> Vec<Owned> {
    let mut decoder = lines::Decoder::new();
    decoder.feed(data);
    decoder.end();
    let mut records = Vec::new();
    while let Ok(Some(record)) = decoder.next_record() {
        records.push((record.format(), record.as_bytes().to_vec()));
    }
    records
}

fn read_cel(encoding: cel::Encoding, data: &[u8]) -> Vec<Owned> {
    let mut decoder = cel::Decoder::new(encoding);
    decoder.feed(data);
    decoder.end();
    let mut records = Vec::new();
    while let Ok(Some(record)) = decoder.next_record() {
        records.push((record.format(), record.as_bytes().to_vec()));
    }
    records
}

fn record(format: Format, bytes: &[u8]) -> Record<'_> {
    Record::parse_prefix(bytes, format).unwrap().unwrap()
}
