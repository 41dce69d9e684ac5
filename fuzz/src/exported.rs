//! Exported lists: what is read from one is written as one that reads the same.

use ima_log::{AsciiDecoder, AsciiError, Bank, Format, Record, cel, json as lines};

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

/// A Canonical Event Log in TLV.
pub fn cel_tlv(data: &[u8]) {
    cel(cel::Encoding::Tlv, data);
}

/// A list in the kernel's ASCII form, or what was made of one: the same records and the same error
/// come out whatever the chunks, and each record is shown as a line that reads the same.
pub fn ascii_in(data: &[u8]) {
    let (records, error) = read_ascii(data, data.len().max(1));
    assert_eq!(read_ascii(data, 7), (records.clone(), error));
    for (format, bytes) in &records {
        let record = record(*format, bytes);
        if record.is_violation() || record.template() == ima_log::Template::Ima {
            continue;
        }
        let mut line = Vec::new();
        record.write_ascii(Bank::Sha256, &mut line);
        let (again, error) = read_ascii(&line, line.len());
        assert_eq!((again.len(), error), (1, None));
        assert_eq!(record.template_digest(Bank::Sha512), {
            let (format, bytes) = &again[0];
            self::record(*format, bytes).template_digest(Bank::Sha512)
        });
    }
}

fn read_ascii(data: &[u8], chunk: usize) -> (Vec<Owned>, Option<AsciiError>) {
    let (mut decoder, mut records) = (AsciiDecoder::new(), Vec::new());
    for bytes in data.chunks(chunk).map(Some).chain([None]) {
        match bytes {
            Some(bytes) => decoder.feed(bytes),
            None => decoder.end(),
        }
        loop {
            match decoder.next_record() {
                Ok(Some(record)) => records.push((record.format(), record.as_bytes().to_vec())),
                Ok(None) => break,
                Err(error) => return (records, Some(error)),
            }
        }
    }
    (records, None)
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
