//! An owned record.

use alloc::vec::Vec;

use crate::{Bank, BuildError, Endian, Format, Record};

/// An owned record in the sha1 form, as a kernel adds it to its list. In this machine's byte order
/// unless a [`crate::RecordBuilder`] is set to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordBuf {
    // Exactly one record: what `Record::parse_prefix` says of all that constructors make.
    bytes: Vec<u8>,
    endian: Endian,
}

impl RecordBuf {
    /// Converts a record to the sha1 form. The digest is kept if the record has that form, and
    /// computed otherwise. `None` if the record is not in this machine's byte order.
    pub fn from_record(record: &Record<'_>) -> Option<RecordBuf> {
        if record.format().endian != Endian::native() {
            return None;
        }
        let mut bytes = Vec::with_capacity(record.as_bytes().len());
        record.write_binary(Bank::Sha1, &mut bytes);
        RecordBuf::checked(bytes, Endian::native()).ok()
    }

    /// The record borrowed.
    pub fn record(&self) -> Record<'_> {
        match Record::parse_prefix(&self.bytes, self.format()) {
            Ok(Some(record)) => record,
            // The same question was answered when the record was built, see `bytes`.
            _ => unreachable!("a RecordBuf holds one record"),
        }
    }

    /// The form: sha1, and the byte order.
    pub fn format(&self) -> Format {
        Format { bank: Bank::Sha1, endian: self.endian }
    }

    /// The record as in a list.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The record as in a list.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// `bytes`, which are one record in the sha1 form.
    pub(crate) fn trusted(bytes: Vec<u8>, endian: Endian) -> RecordBuf {
        debug_assert!(RecordBuf::checked(bytes.clone(), endian).is_ok());
        RecordBuf { bytes, endian }
    }

    /// A record, if `bytes` are exactly one.
    pub(crate) fn checked(bytes: Vec<u8>, endian: Endian) -> Result<RecordBuf, BuildError> {
        let format = Format { bank: Bank::Sha1, endian };
        match Record::parse_prefix(&bytes, format)? {
            Some(record) if record.as_bytes().len() == bytes.len() => {
                Ok(RecordBuf { bytes, endian })
            }
            _ => Err(BuildError::Ambiguous),
        }
    }
}
