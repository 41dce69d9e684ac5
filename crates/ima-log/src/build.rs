use alloc::vec::Vec;

use crate::{Bank, Digest, Endian, Format, Record, Template};

/// An owned record in the sha1 form and this machine's byte order: what a kernel adds to its list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordBuf {
    bytes: Vec<u8>,
}

impl RecordBuf {
    /// A record of template `ima-ng`. As in the kernel, blanks in the name become `_`, and the name
    /// ends at its first NUL.
    pub fn ima_ng(pcr: u32, file_digest: &Digest, name: &[u8]) -> RecordBuf {
        Self::build(pcr, "ima-ng", false, &[&d_ng(file_digest), &n_ng(name)])
    }

    /// A violation of template `ima-ng` about a file: the template digest is zero, as are the
    /// file digest's 20 bytes, whatever `bank` the kernel hashes files with.
    pub fn ima_ng_violation(pcr: u32, bank: Bank, name: &[u8]) -> RecordBuf {
        let mut digest = Vec::from(bank.name());
        digest.extend_from_slice(b":\0");
        digest.extend_from_slice(&[0; 20]);
        Self::build(pcr, "ima-ng", true, &[&digest, &n_ng(name)])
    }

    /// A record of template `ima-buf`: critical data, a key or a command line.
    pub fn ima_buf(pcr: u32, data_digest: &Digest, name: &[u8], data: &[u8]) -> RecordBuf {
        Self::build(pcr, "ima-buf", false, &[&d_ng(data_digest), &n_ng(name), data])
    }

    /// Takes over a record from elsewhere, in the sha1 form. The digest is kept if the record is
    /// in that form already, and computed if not. `None` if its integers are not in this
    /// machine's byte order.
    pub fn from_record(record: &Record<'_>) -> Option<RecordBuf> {
        if record.format().endian != Endian::native() {
            return None;
        }
        let mut bytes = Vec::with_capacity(record.as_bytes().len());
        record.write_binary(Bank::Sha1, &mut bytes);
        Some(RecordBuf { bytes })
    }

    /// The record borrowed.
    pub fn record(&self) -> Record<'_> {
        match Record::parse_prefix(&self.bytes, self.format()) {
            Ok(Some(record)) => record,
            // Every constructor writes exactly one well-formed record, and nothing changes it.
            _ => unreachable!("a RecordBuf holds one record"),
        }
    }

    /// The form: sha1, native byte order.
    pub fn format(&self) -> Format {
        Format::native(Bank::Sha1)
    }

    /// The record as it stands in a list.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The record as it stands in a list.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn build(pcr: u32, name: &str, violation: bool, fields: &[&[u8]]) -> RecordBuf {
        debug_assert!(Template::from_name(name.as_bytes()) != Some(Template::Ima));
        let data_len: usize = fields.iter().map(|field| 4 + field.len()).sum();
        let mut data = Vec::with_capacity(data_len);
        for field in fields {
            data.extend_from_slice(&len(field));
            data.extend_from_slice(field);
        }
        let digest = if violation { Digest::zero(Bank::Sha1) } else { Bank::Sha1.hash(&[&data]) };

        let mut bytes = Vec::with_capacity(4 + 20 + 4 + name.len() + 4 + data_len);
        bytes.extend_from_slice(&Endian::native().bytes(pcr));
        bytes.extend_from_slice(digest.as_bytes());
        bytes.extend_from_slice(&len(name.as_bytes()));
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&len(&data));
        bytes.extend_from_slice(&data);
        RecordBuf { bytes }
    }
}

fn d_ng(digest: &Digest) -> Vec<u8> {
    let mut field = Vec::from(digest.bank().name());
    field.extend_from_slice(b":\0");
    field.extend_from_slice(digest.as_bytes());
    field
}

fn n_ng(name: &[u8]) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let mut field: Vec<u8> =
        name[..end].iter().map(|byte| if *byte == b' ' { b'_' } else { *byte }).collect();
    field.push(0);
    field
}

fn len(bytes: &[u8]) -> [u8; 4] {
    // Callers give names and measured data of a few KiB; a length beyond u32 cannot be allocated
    // for them, and `Record::parse_prefix` bounds it again.
    Endian::native().bytes(bytes.len() as u32)
}
