//! Reads the ASCII form of a list, as a stream.

use alloc::vec::Vec;

use super::{
    error::{AsciiError, AsciiErrorKind, MAX_LINE},
    line::{Context, Proven},
};
use crate::{Bank, Endian, Record, RecordBuf};

/// The most newlines in a name that are looked for.
const MAX_NEWLINES: usize = 16;

/// Reads a list in the kernel's ASCII form, of any bank, back to records in the sha1 form.
///
/// The form leaves things out: lengths, byte order, NULs, which of blank and nothing an empty field
/// is, and where a name has a newline. What they were is found by the template digest: a record
/// that is given has the digest that the line has. So these, and these only, cannot be read:
///
/// - a name with more than 16 newlines, or a violation's with any;
/// - a name that the kernel would not write: with blanks, NULs inside or none at the end;
/// - a template that is not known and whose data is no sequence of fields;
/// - a list that went through something that changes bytes which are not UTF-8;
/// - an altered one, or one that is in no known bank;
/// - one with more than 1 MiB of template data, or of more than 64 fields.
///
/// Lists that were mailed, pasted or kept by an editor are read, too: blanks that were removed or added
/// at the ends of a line or between its words, lines that end in CRLF, empty lines, a byte order mark,
/// a last line without a newline. A line that is not as the kernel writes it is a record if its digest
/// proves what it was; that of a violation, which is zero, proves nothing, and such a line is an error.
///
/// Two things are taken on trust. A violation has no digest: it is read as the kernel writes it, in
/// the byte order of the records before it; whether its name is whole nothing tells (the PCR does
/// not depend on it). Template `ima` hashes no lengths: its records are in the byte order of those
/// before them, and if there are none, in this machine's.
///
/// Holds no more than one line, or seventeen that make no record, and one chunk. Hashes each record
/// once, or a few times until it is known what the list has; of a short line that was changed, up to
/// 128 records that it may have been.
///
/// ```
/// use ima_log::{AsciiDecoder, Bank, RecordBuf};
///
/// let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[b"file"]), b"/bin/sh");
/// let mut line = Vec::new();
/// record.record().write_ascii(Bank::Sha256, &mut line);
///
/// let mut decoder = AsciiDecoder::new();
/// decoder.feed(&line);
/// assert_eq!(decoder.next_record()?, Some(record.record()));
/// decoder.end();
/// assert_eq!(decoder.next_record()?, None);
/// # Ok::<(), ima_log::AsciiError>(())
/// ```
#[derive(Debug)]
pub struct AsciiDecoder {
    buffer: Vec<u8>,
    /// Where in `buffer` the next line begins, and up to where there is no newline.
    start: usize,
    searched: usize,
    records: u64,
    offset: u64,
    ended: bool,
    /// What the lines so far were found to be.
    context: Context,
    /// The next record, if `ready`; else the last one.
    record: Option<RecordBuf>,
    ready: bool,
    /// How many lines were found to be no record when taken together, and what is wrong with the
    /// first.
    unproven: Option<(usize, AsciiErrorKind)>,
}

impl Default for AsciiDecoder {
    fn default() -> AsciiDecoder {
        AsciiDecoder::new()
    }
}

impl AsciiDecoder {
    /// A decoder at the beginning of a list.
    pub fn new() -> AsciiDecoder {
        AsciiDecoder {
            buffer: Vec::new(),
            start: 0,
            searched: 0,
            records: 0,
            offset: 0,
            ended: false,
            context: Context {
                bank: Bank::Sha256,
                endian: Endian::native(),
                carriage_returns: None,
            },
            record: None,
            ready: false,
            unproven: None,
        }
    }

    /// Takes the next bytes of the list.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether [`AsciiDecoder::next_record`] would give a record.
    ///
    /// # Errors
    /// As [`AsciiDecoder::next_record`].
    pub fn has_record(&mut self) -> Result<bool, AsciiError> {
        while !self.ready {
            let newline = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            let (end, next) = match newline {
                Some(newline) => (self.searched + newline, self.searched + newline + 1),
                None if self.ended && self.start < self.buffer.len() => {
                    (self.buffer.len(), self.buffer.len())
                }
                None => {
                    self.searched = self.buffer.len();
                    return match self.buffer.len() - self.start {
                        MAX_LINE.. => Err(self.error(AsciiErrorKind::TooLong)),
                        _ => Ok(false),
                    };
                }
            };
            if end - self.start >= MAX_LINE {
                return Err(self.error(AsciiErrorKind::TooLong));
            }
            self.searched = next;
            let line = &self.buffer[self.start..end];
            let line = match self.offset {
                0 => line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line),
                _ => line,
            };
            if self.unproven.is_none() && line.trim_ascii().is_empty() {
                self.pass();
                continue;
            }
            match self.context.read(line, newline.is_some()) {
                Ok(Proven { record, context }) => {
                    self.context = context;
                    (self.record, self.ready) = (Some(record), true);
                    self.unproven = None;
                    self.pass();
                }
                // What the first line says is the best that is known of an altered one.
                Err(kind) => {
                    let goes_on = newline.is_some()
                        && matches!(
                            kind,
                            AsciiErrorKind::FieldCount { .. }
                                | AsciiErrorKind::Field { .. }
                                | AsciiErrorKind::Unproven
                                | AsciiErrorKind::Violation
                        );
                    let (lines, first) = match (self.unproven.take(), kind) {
                        (Some(before), _) => before,
                        (None, AsciiErrorKind::Violation) => (0, AsciiErrorKind::Violation),
                        (None, _) if newline.is_none() => (0, AsciiErrorKind::Truncated),
                        (None, kind) => (0, kind),
                    };
                    if !goes_on || lines == MAX_NEWLINES {
                        return Err(self.error(first));
                    }
                    self.unproven = Some((lines + 1, first));
                }
            }
        }
        Ok(true)
    }

    /// The record of the next whole line; `None` when more bytes are needed, or none are left.
    ///
    /// # Errors
    /// [`AsciiError`] when the line is not a record, or not one that can be read back.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, AsciiError> {
        if !self.has_record()? {
            return Ok(None);
        }
        self.ready = false;
        self.records += 1;
        Ok(self.record.as_ref().map(RecordBuf::record))
    }

    /// Says that the list has ended: [`AsciiDecoder::next_record`] now takes a last line without
    /// newline, too, or says that the list was cut short.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// How many records came out so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The byte offset after the last line that was read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Continues after the line that was searched to its end.
    fn pass(&mut self) {
        self.offset += (self.searched - self.start) as u64;
        self.start = self.searched;
    }

    fn error(&self, kind: AsciiErrorKind) -> AsciiError {
        AsciiError { record: self.records, offset: self.offset, kind }
    }
}

/// What some editors begin a file with: U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
