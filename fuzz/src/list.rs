//! Binary lists, and what is made of them.

use ima_log::{
    Bank, Decoder, Digest, Endian, Extend, Format, KexecBuffer, KexecWriter, ListReplay,
    ParseError, PcrTarget, Record, Records, Replay, Signature,
};

/// The first byte chooses the form, the rest is a list.
pub fn binary(data: &[u8]) {
    let Some((format, list)) = format(data) else { return };
    let _ = Format::detect(list);
    let mut rest = list;
    for record in Records::new(list, format) {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                assert_eq!(error.offset as usize, list.len() - rest.len());
                break;
            }
        };
        let (bytes, behind) = rest.split_at(record.as_bytes().len());
        assert_eq!(record.as_bytes(), bytes);
        rest = behind;
        check(&record);
    }
}

/// As [`binary`]: the ASCII form says what the record says.
pub fn ascii(data: &[u8]) {
    let Some((format, list)) = format(data) else { return };
    for record in Records::new(list, format).map_while(Result::ok) {
        for bank in Bank::ALL {
            let mut line = Vec::new();
            record.write_ascii(bank, &mut line);
            let digest = if bank == format.bank {
                record.printed_digest()
            } else {
                record.template_digest(bank)
            };
            let head = format!("{:2} {digest} {}", record.pcr(), record.template().name());
            assert!(line.starts_with(head.as_bytes()));
            assert_eq!(line.last(), Some(&b'\n'));
            assert!(line.len() <= head.len() + 1 + 3 * record.template_data().len() + 16);
        }
    }
}

/// The first byte chooses the form, the second how the rest is cut into chunks: the same records
/// and the same error come out as without chunks.
pub fn decoder(data: &[u8]) {
    let Some((format, rest)) = format(data) else { return };
    let Some((&seed, list)) = rest.split_first() else { return };
    let mut decoder = Decoder::new(format);
    let mut records = Records::new(list, format);
    let mut step = usize::from(seed) + 1;
    let mut left = list;
    let error = 'fed: loop {
        loop {
            match decoder.next_record() {
                Ok(Some(record)) => assert_eq!(records.next(), Some(Ok(record))),
                Ok(None) => break,
                Err(error) => break 'fed Some(error),
            }
        }
        if left.is_empty() {
            break decoder.finish().err();
        }
        let (chunk, behind) = left.split_at(step.min(left.len()));
        decoder.feed(chunk);
        left = behind;
        step = step * 5 % 251 + 1;
    };
    let whole: Option<ParseError> = records.next().map(|record| record.unwrap_err());
    assert_eq!(error, whole);
}

/// As [`binary`]: every bank replays to what the general hashers say, and the search finds it.
pub fn replay(data: &[u8]) {
    let Some((format, list)) = format(data) else { return };
    let records: Vec<Record<'_>> = Records::new(list, format).map_while(Result::ok).collect();
    for bank in Bank::ALL {
        for extend in Extend::ALL.into_iter().filter(|e| bank != Bank::Sha1 || *e == Extend::Own) {
            let mut search = ListReplay::new([bank]);
            let mut pcr = Replay::new(bank, extend);
            let mut expected = Digest::zero(bank);
            for record in records.iter().filter(|record| record.pcr() == 10) {
                pcr.extend(record);
                expected = model(&expected, &extend.value(bank, record));
                assert_eq!(pcr.value(), expected);
            }
            search.look_for(&[PcrTarget { pcr: 10, value: expected }]);
            records.iter().for_each(|record| search.push(record));
            let found = search.found(bank, 10).map(|(prefix, _)| prefix.to);
            assert!(found.is_some_and(|found| found <= records.len() as u64));
        }
    }
}

/// A kexec buffer: what is read from one is written as one that reads the same.
pub fn kexec(data: &[u8]) {
    let Ok(buffer) = KexecBuffer::parse(data) else { return };
    let records: Vec<Record<'_>> = buffer.records().map_while(Result::ok).collect();
    let mut writer = KexecWriter::new(buffer.endian(), data.len());
    for record in &records {
        check(record);
        writer.push(record).unwrap();
    }
    let written = writer.finish();
    let again = KexecBuffer::parse(&written).unwrap();
    assert_eq!(again.count(), records.len() as u64);
    assert!(again.records().map(Result::unwrap).eq(records));
}

/// A file signature as in `security.ima`.
pub fn signature(data: &[u8]) {
    if let Ok(signature) = Signature::parse(data) {
        let _ = (signature.hash_name(), signature.hash_bank());
    }
}

/// What must hold for any record.
fn check(record: &Record<'_>) {
    let format = record.format();
    let fields: usize = record.fields().map(|field| field.bytes.len()).sum();
    assert!(fields <= record.template_data().len());
    let _ = (record.event_name(), record.digest_is_right());
    for bank in Bank::ALL {
        let mut other = Vec::new();
        record.write_binary(bank, &mut other);
        if bank == format.bank {
            assert_eq!(other, record.as_bytes());
            continue;
        }
        let form = Format { bank, endian: format.endian };
        let Ok(Some(written)) = Record::parse_prefix(&other, form) else {
            panic!("{record:?} in bank {bank} is no record")
        };
        assert_eq!(written.as_bytes(), other);
        assert_eq!(written.template_data(), record.template_data());
        assert!(written.digest_is_right());
    }
}

/// `TPM2_PCR_Extend` with the general hashers.
fn model(old: &Digest, value: &Digest) -> Digest {
    use sha2::Digest as _;
    let message = [old.as_bytes(), value.as_bytes()].concat();
    let bytes = match old.bank() {
        Bank::Sha256 => sha2::Sha256::digest(message).to_vec(),
        Bank::Sha384 => sha2::Sha384::digest(message).to_vec(),
        Bank::Sha512 => sha2::Sha512::digest(message).to_vec(),
        _ => return old.extended_with(value),
    };
    Digest::from_slice(old.bank(), &bytes).unwrap()
}

/// Takes the form off the front.
pub(crate) fn format(data: &[u8]) -> Option<(Format, &[u8])> {
    let (&choice, rest) = data.split_first()?;
    let bank = Bank::ALL[usize::from(choice & 3)];
    let endian = if choice & 4 == 0 { Endian::Little } else { Endian::Big };
    Some((Format { bank, endian }, rest))
}
