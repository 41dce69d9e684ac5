use alloc::vec::Vec;

use crate::{Format, ParseError, ParseErrorKind, Record};

/// Cuts a stream of bytes into records, in whatever chunks it comes.
///
/// Holds no more than one record and one chunk. Linear in the bytes fed.
#[derive(Debug)]
pub struct Decoder {
    format: Format,
    buffer: Vec<u8>,
    /// Where in `buffer` the next record begins.
    start: usize,
    records: u64,
    offset: u64,
}

impl Decoder {
    /// A decoder at the beginning of a list.
    pub fn new(format: Format) -> Decoder {
        Decoder { format, buffer: Vec::new(), start: 0, records: 0, offset: 0 }
    }

    /// Takes the next bytes of the list.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole record; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`ParseError`] when the bytes cannot be a record. There is no way on from there: nothing in
    /// a list marks where a record begins.
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

    /// Says that the list has ended.
    ///
    /// # Errors
    /// [`ParseErrorKind::Truncated`] when it ended inside a record.
    pub fn finish(&self) -> Result<(), ParseError> {
        let found = (self.buffer.len() - self.start) as u64;
        if found == 0 {
            return Ok(());
        }
        Err(self.error(ParseErrorKind::Truncated { needed: found + 1, found }))
    }

    /// How many records came out so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The byte offset behind the last record that came out.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that are in but not yet part of a whole record.
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn error(&self, kind: ParseErrorKind) -> ParseError {
        ParseError { record: self.records, offset: self.offset, kind }
    }
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
        assert_eq!(
            decoder.finish(),
            Err(ParseError {
                record: 1,
                offset: first.len() as u64,
                kind: ParseErrorKind::Truncated { needed: 8, found: 7 }
            })
        );
    }
}
