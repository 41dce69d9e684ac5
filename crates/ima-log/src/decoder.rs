//! Splits a binary list into records: a list in memory, or a stream of bytes.

use alloc::vec::Vec;

use crate::{Format, ParseError, ParseErrorKind, Record};

/// Splits a stream of bytes, in chunks of any size, into records.
///
/// Keeps at most one record and one chunk in memory. Linear in the bytes fed.
#[derive(Debug)]
pub struct Decoder {
    format: Format,
    buffer: Vec<u8>,
    /// The offset of the next record in `buffer`.
    start: usize,
    records: u64,
    offset: u64,
}

/// The records of a list in memory, in order. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    list: &'a [u8],
    format: Format,
    records: u64,
    offset: usize,
}

impl<'a> Records<'a> {
    /// The records of `list`.
    pub fn new(list: &'a [u8], format: Format) -> Records<'a> {
        Records { list, format, records: 0, offset: 0 }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, ParseError>;

    #[inline(always)] // as `Record::parse_prefix`
    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.list.get(self.offset..).filter(|rest| !rest.is_empty())?;
        let kind = match Record::parse_prefix(rest, self.format) {
            Ok(Some(record)) => {
                self.records += 1;
                self.offset += record.as_bytes().len();
                return Some(Ok(record));
            }
            Ok(None) => truncated(rest.len()),
            Err(kind) => kind,
        };
        let error = ParseError { record: self.records, offset: self.offset as u64, kind };
        self.offset = self.list.len();
        Some(Err(error))
    }
}

impl Decoder {
    /// A decoder at the beginning of a list.
    pub fn new(format: Format) -> Decoder {
        Decoder { format, buffer: Vec::new(), start: 0, records: 0, offset: 0 }
    }

    /// Adds the next bytes of the list.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether [`Decoder::next_record`] would return a record.
    ///
    /// # Errors
    /// As [`Decoder::next_record`].
    pub fn has_record(&self) -> Result<bool, ParseError> {
        Record::parse_prefix(self.pending(), self.format)
            .map(|record| record.is_some())
            .map_err(|kind| self.error(kind))
    }

    /// The next complete record; `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`ParseError`] if the bytes cannot be a record. The decoder cannot continue then: a list has
    /// no marks at which records start.
    #[inline(always)] // as `Record::parse_prefix`
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, ParseError> {
        match Record::parse_prefix(&self.buffer[self.start..], self.format) {
            Ok(None) => Ok(None),
            Ok(Some(record)) => {
                self.records += 1;
                self.offset += record.as_bytes().len() as u64;
                self.start += record.as_bytes().len();
                Ok(Some(record))
            }
            Err(kind) => Err(self.error(kind)),
        }
    }

    /// Ends the list.
    ///
    /// # Errors
    /// [`ParseErrorKind::Truncated`] if it ends within a record.
    pub fn finish(&self) -> Result<(), ParseError> {
        match self.pending().len() {
            0 => Ok(()),
            found => Err(self.error(truncated(found))),
        }
    }

    /// The number of records returned so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The byte offset after the last record returned.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The number of bytes that are not yet part of a complete record.
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn error(&self, kind: ParseErrorKind) -> ParseError {
        ParseError { record: self.records, offset: self.offset, kind }
    }
}

/// The error for a list of which `found` bytes are left, too few for a record.
fn truncated(found: usize) -> ParseErrorKind {
    ParseErrorKind::Truncated { needed: found as u64 + 1, found: found as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bank, RecordBuf};

    #[test]
    fn any_chunking_gives_the_same_records() {
        let mut list = Vec::new();
        for i in 0..5u8 {
            let name = alloc::vec![b'a' + i; 1 + i as usize * 40];
            list.extend(RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&[i]]), &name).into_bytes());
        }
        for chunk in 1..list.len() {
            let mut decoder = Decoder::new(Format::native(Bank::Sha1));
            let mut out = Vec::new();
            for bytes in list.chunks(chunk) {
                decoder.feed(bytes);
                while let Some(record) = decoder.next_record().unwrap() {
                    out.extend_from_slice(record.as_bytes());
                }
            }
            decoder.finish().unwrap();
            assert_eq!(out, list);
            assert_eq!((decoder.records(), decoder.offset()), (5, list.len() as u64));
        }
    }

    #[test]
    fn an_end_inside_a_record_names_it() {
        let first = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), b"a").into_bytes();
        let mut decoder = Decoder::new(Format::native(Bank::Sha1));
        decoder.feed(&first);
        decoder.feed(&first[..7]);
        while decoder.next_record().unwrap().is_some() {}
        let expected = ParseError {
            record: 1,
            offset: first.len() as u64,
            kind: ParseErrorKind::Truncated { needed: 8, found: 7 },
        };
        assert_eq!(decoder.finish(), Err(expected.clone()));

        let list = [&first[..], &first[..7]].concat();
        let mut records = Records::new(&list, Format::native(Bank::Sha1));
        assert_eq!(records.next().unwrap().unwrap().as_bytes(), first);
        assert_eq!(records.next(), Some(Err(expected)));
        assert_eq!(records.next(), None);
    }
}
