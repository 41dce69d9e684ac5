use alloc::vec::Vec;
use core::{fmt, str};

use crate::{
    Bank, BuildError, Digest, Endian, FieldKind, MAX_TEMPLATE_DATA, Record, RecordBuf,
    RecordBuilder, Template,
};

/// The longest line taken, in bytes: template data in hex, and room for the rest.
const MAX_LINE: usize = 2 * MAX_TEMPLATE_DATA + (64 << 10);

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
/// - an altered one, or one that is in no known bank.
///
/// Two things are taken on trust. A violation has no digest: it is read as the kernel writes it, in
/// the byte order of the records before it; whether its name is whole nothing tells (the PCR does
/// not depend on it). Template `ima` hashes no lengths: its records are in the byte order of those
/// before them, and if there are none, in this machine's.
///
/// Holds no more than one line, or seventeen that make no record, and one chunk. Hashes each record
/// once, or a few times until it is known what the list has.
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
/// decoder.finish()?;
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
    /// What the last digest was found to be made with.
    bank: Bank,
    endian: Endian,
    /// The next record, if `ready`; else the last one.
    record: Option<RecordBuf>,
    ready: bool,
    /// How many lines were found to be no record when taken together, and what is wrong with the
    /// first.
    unproven: Option<(usize, AsciiErrorKind)>,
}

/// Why an ASCII list cannot be read on, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsciiError {
    /// The record's index, counted from where reading began; first record 0.
    pub record: u64,
    /// The byte offset at which its line begins, counted from where reading began.
    pub offset: u64,
    /// What is wrong with it.
    pub kind: AsciiErrorKind,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AsciiErrorKind {
    /// The list ends inside a line.
    #[error("cut short: the line has no newline at its end")]
    Truncated,
    /// Longer than a line with the largest template data.
    #[error("the line is longer than {MAX_LINE} bytes")]
    TooLong,
    /// It does not begin with a PCR index.
    #[error("expected a PCR index, blank-padded to two digits (is this the ASCII list?)")]
    Pcr,
    /// The second word is no digest of a known bank.
    #[error("the template digest is not 40, 64, 96 or 128 hex digits")]
    TemplateDigest,
    /// The template has another number of fields.
    #[error("the template has {expected} fields, the line {found} (a name with a blank?)")]
    FieldCount {
        /// Fields of the template.
        expected: usize,
        /// Fields in the line.
        found: usize,
    },
    /// A field is not what its kind is shown as.
    #[error("field {field}: expected {expected}")]
    Field {
        /// Which field, first 0.
        field: usize,
        /// What it should be.
        expected: &'static str,
    },
    /// There can be no such record.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// No record that is shown like this has this digest.
    #[error(
        "no record that is shown like this, or with the lines behind it, has this template digest: \
         it was altered, or cannot be read back (its name is not what the kernel writes)"
    )]
    Unproven,
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
            bank: Bank::Sha256,
            endian: Endian::native(),
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
            let Some(newline) = newline else {
                self.searched = self.buffer.len();
                return match self.pending() {
                    MAX_LINE.. => Err(self.error(AsciiErrorKind::TooLong)),
                    _ => Ok(false),
                };
            };
            let end = self.searched + newline;
            self.searched = end + 1;
            match self.read_line(&self.buffer[self.start..end]) {
                Ok(proven) => {
                    (self.bank, self.endian) = (proven.bank, proven.endian);
                    (self.record, self.ready) = (Some(proven.record), true);
                    self.unproven = None;
                    self.offset += (self.searched - self.start) as u64;
                    self.start = self.searched;
                }
                // What the first line says is the best that is known of an altered one.
                Err(kind) => {
                    let goes_on = matches!(
                        kind,
                        AsciiErrorKind::FieldCount { .. }
                            | AsciiErrorKind::Field { .. }
                            | AsciiErrorKind::Unproven
                    );
                    let (lines, first) = self.unproven.take().unwrap_or((0, kind));
                    if !goes_on || lines == MAX_NEWLINES {
                        return Err(self.error(first));
                    }
                    self.unproven = Some((lines + 1, first));
                }
            }
        }
        Ok(true)
    }

    /// The record of the next whole line; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`AsciiError`] when the line is no record, or not one that can be read back.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, AsciiError> {
        if !self.has_record()? {
            return Ok(None);
        }
        self.ready = false;
        self.records += 1;
        Ok(self.record.as_ref().map(RecordBuf::record))
    }

    /// Says that the list has ended.
    ///
    /// # Errors
    /// [`AsciiErrorKind::Truncated`] when it ended inside a line.
    pub fn finish(&self) -> Result<(), AsciiError> {
        match self.pending() {
            0 => Ok(()),
            _ => {
                let first = self.unproven.clone().map(|(_, first)| first);
                Err(self.error(first.unwrap_or(AsciiErrorKind::Truncated)))
            }
        }
    }

    /// How many records came out so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The byte offset behind the last line that was read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn error(&self, kind: AsciiErrorKind) -> AsciiError {
        AsciiError { record: self.records, offset: self.offset, kind }
    }

    fn read_line(&self, line: &[u8]) -> Result<Proven, AsciiErrorKind> {
        let (pcr, rest) = word(line.strip_prefix(b" ").unwrap_or(line));
        let pcr = decimal(pcr).ok_or(AsciiErrorKind::Pcr)?;
        let (digest, rest) = word(rest);
        let mut printed = [0; Digest::MAX];
        let printed = printed.get_mut(..digest.len() / 2).ok_or(AsciiErrorKind::TemplateDigest)?;
        hex::decode_to_slice(digest, printed).map_err(|_| AsciiErrorKind::TemplateDigest)?;
        let printed = &*printed;
        if !Bank::ALL.iter().any(|bank| bank.size() == printed.len()) {
            return Err(AsciiErrorKind::TemplateDigest);
        }
        let (name, rest) = word(rest);
        let name = str::from_utf8(name).map_err(|_| no_name())?;
        let template = Template::from_name(name.as_bytes()).ok_or_else(no_name)?;
        let shown: Vec<&[u8]> = match rest {
            // No blank behind the name: a template without fields.
            [] if line.last() != Some(&b' ') => Vec::new(),
            _ => rest.split(|byte| *byte == b' ').collect(),
        };
        let known = !matches!(template, Template::Unknown(_));
        let mut kinds: Vec<Option<FieldKind>> = alloc::vec![None; shown.len()];
        if known {
            kinds = template.format().split('|').map(FieldKind::from_id).collect();
            if kinds.len() != shown.len() {
                let (expected, found) = (kinds.len(), shown.len());
                return Err(AsciiErrorKind::FieldCount { expected, found });
            }
        }

        let violation = printed.iter().all(|byte| *byte == 0);
        let other = if self.endian == Endian::Little { Endian::Big } else { Endian::Little };
        let empty_name = |(kind, shown): (&Option<FieldKind>, &&[u8])| {
            shown.is_empty() && matches!(kind, Some(FieldKind::N | FieldKind::NNg))
        };
        let either = kinds.iter().zip(&shown).any(empty_name);
        for endian in [self.endian, other] {
            // An empty name is a NUL in all that kernels write, and nothing in what others may.
            for name_ends in [b"\0".as_slice(), b""].into_iter().take(1 + usize::from(either)) {
                let fields = kinds
                    .iter()
                    .zip(&shown)
                    .enumerate()
                    .map(|(index, (kind, shown))| {
                        let end = if shown.is_empty() { name_ends } else { b"\0" };
                        field(*kind, template, shown, end, endian)
                            .map_err(|expected| AsciiErrorKind::Field { field: index, expected })
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
                let mut builder = RecordBuilder::new(pcr).endian(endian);
                if violation {
                    builder = builder.violation();
                }
                let record = builder.record(name, &fields)?;
                if violation {
                    return Ok(Proven { record, endian, bank: self.bank });
                }
                if let Some(bank) = self.proven_in(&record, printed) {
                    return Ok(Proven { record, endian, bank });
                }
            }
        }
        Err(AsciiErrorKind::Unproven)
    }

    /// The bank in which the record has the digest printed; the last one's, if it does in that.
    fn proven_in(&self, record: &RecordBuf, printed: &[u8]) -> Option<Bank> {
        let record = record.record();
        let fits = |bank: Bank| bank.size() == printed.len();
        let is_right = |bank: &Bank| record.template_digest(*bank).as_bytes() == printed;
        let others = Bank::ALL.into_iter().filter(|bank| *bank != self.bank);
        let own = [self.bank].into_iter().chain(others).filter(|bank| fits(*bank)).find(is_right);
        own.or_else(|| {
            // The bank of a kernel that does not know its hash.
            let bank = Bank::ALL.into_iter().find(|bank| fits(*bank))?;
            let padded = record.template_digest(Bank::Sha1).padded_to(bank);
            (padded.as_bytes() == printed).then_some(self.bank)
        })
    }
}

impl fmt::Display for AsciiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} at byte {}: {}", self.record, self.offset, self.kind)
    }
}

impl core::error::Error for AsciiError {}

/// A record, and how its digest was made.
struct Proven {
    record: RecordBuf,
    bank: Bank,
    endian: Endian,
}

fn no_name() -> AsciiErrorKind {
    BuildError::from(crate::ParseErrorKind::NameBytes).into()
}

/// The bytes before the first blank and those behind it.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|byte| *byte == b' ') {
        Some(blank) => (&line[..blank], &line[blank + 1..]),
        None => (line, &[]),
    }
}

/// Only what is written like this: digits without a zero before them.
fn decimal(digits: &[u8]) -> Option<u32> {
    let plain = digits == b"0" || digits.first().is_some_and(|digit| *digit != b'0');
    let text = str::from_utf8(digits).ok()?;
    (plain && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The bytes of a field out of what is shown of it, or what should have been shown.
fn field(
    kind: Option<FieldKind>,
    template: Template<'_>,
    shown: &[u8],
    name_end: &[u8],
    endian: Endian,
) -> Result<Vec<u8>, &'static str> {
    let hex = |digits: &[u8]| hex::decode(digits).map_err(|_| "hex digits");
    match kind {
        Some(FieldKind::N | FieldKind::NNg) => {
            let end = if template == Template::Ima { b"" } else { name_end };
            Ok([shown, end].concat())
        }
        _ if shown.is_empty() => Ok(Vec::new()),
        Some(FieldKind::XattrNames) => Ok([shown, b"\0"].concat()),
        Some(FieldKind::DNg | FieldKind::DNgV2 | FieldKind::DModsig) => {
            let Some(colon) = shown.iter().rposition(|byte| *byte == b':') else {
                return hex(shown);
            };
            let (head, digest) = shown.split_at(colon + 1);
            Ok([head, b"\0", &hex(digest)?].concat())
        }
        Some(FieldKind::IUid | FieldKind::IGid) => {
            let value = decimal(shown).ok_or("a decimal number of 32 bits")?;
            Ok(endian.bytes(value).to_vec())
        }
        Some(FieldKind::IMode) => {
            let mode = decimal(shown).and_then(|mode| u16::try_from(mode).ok());
            let mode = mode.ok_or("a decimal number of 16 bits")?;
            Ok(match endian {
                Endian::Little => mode.to_le_bytes().to_vec(),
                Endian::Big => mode.to_be_bytes().to_vec(),
            })
        }
        _ => hex(shown),
    }
}

#[cfg(test)]
mod tests;
