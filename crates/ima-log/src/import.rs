//! What reading JSON lines and reading a Canonical Event Log have in common.

use alloc::{borrow::Cow, string::String, string::ToString, vec::Vec};
use core::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::{Bank, Format, MAX_TEXT_DATA, ParseErrorKind, Record, ascii};

/// The longest serialized record taken, in bytes: template data in hex, and room for the rest.
pub(crate) const MAX_RECORD: usize = 2 * MAX_TEXT_DATA + (64 << 10);

/// The most that is told of what a parser says, in bytes: it may quote a whole record.
const MAX_SYNTAX: usize = 200;

/// Why a list that was exported cannot be read, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportError {
    /// The record's index, counted from where reading began; first record 0.
    pub record: u64,
    /// The byte offset at which that record begins, counted from where reading began.
    pub offset: u64,
    /// What is wrong with it.
    pub kind: ImportErrorKind,
}

/// What is wrong with an exported record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImportErrorKind {
    /// The input ends inside a record, or before the array that holds the records is closed.
    Truncated,
    /// The record is longer than any that has the largest template data.
    TooLong,
    /// The template data, of this many bytes, is larger than [`MAX_TEXT_DATA`].
    DataLength(usize),
    /// It is not the JSON or CBOR that was expected; the parser says why.
    Syntax(String),
    /// A member is missing.
    Missing(&'static str),
    /// A member does not hold what it should.
    Member {
        /// Which one.
        name: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// The fields are not those of the template.
    Fields {
        /// The template's format.
        expected: String,
    },
    /// The digest in one bank is that of the template data, the one in this bank is not.
    Digest(Bank),
    /// What the members say makes no record.
    Record(ParseErrorKind),
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} at byte {}: {}", self.record, self.offset, self.kind)
    }
}

impl fmt::Display for ImportErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImportErrorKind::Truncated => write!(f, "cut short: the input ends inside of it"),
            ImportErrorKind::TooLong => write!(
                f,
                "longer than {MAX_RECORD} bytes; the kernel's binary list holds larger records"
            ),
            ImportErrorKind::DataLength(found) => write!(
                f,
                "template data length {found}: expected at most {MAX_TEXT_DATA}; the kernel's binary \
                 list holds larger records"
            ),
            ImportErrorKind::Syntax(why) => f.write_str(why),
            ImportErrorKind::Missing(name) => write!(f, "there is no \"{name}\""),
            ImportErrorKind::Member { name, expected } => {
                write!(f, "\"{name}\": expected {expected}")
            }
            ImportErrorKind::Fields { expected } => {
                write!(f, "\"fields\": expected those of the template, {expected}")
            }
            ImportErrorKind::Digest(bank) => write!(
                f,
                "its {bank} digest is not the one of its template data, as its other digests are"
            ),
            ImportErrorKind::Record(kind) => kind.fmt(f),
        }
    }
}

impl core::error::Error for ImportError {}
impl core::error::Error for ImportErrorKind {}

impl From<ParseErrorKind> for ImportErrorKind {
    fn from(kind: ParseErrorKind) -> ImportErrorKind {
        ImportErrorKind::Record(kind)
    }
}

/// Bytes fed and not yet read, and the record read last.
#[derive(Debug)]
pub(crate) struct Input {
    buffer: Vec<u8>,
    start: usize,
    offset: u64,
    records: u64,
    /// The next record in binary, if `ready`.
    binary: Binary,
    ready: bool,
}

/// A record in binary, owned.
#[derive(Debug)]
pub(crate) struct Binary {
    bytes: Vec<u8>,
    format: Format,
}

impl Input {
    pub(crate) fn new() -> Input {
        let binary = Binary::new();
        Input { buffer: Vec::new(), start: 0, offset: 0, records: 0, binary, ready: false }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    pub(crate) fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Skips `len` bytes.
    pub(crate) fn pass(&mut self, len: usize) {
        self.start += len;
        self.offset += len as u64;
    }

    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// The bytes to read and the place to put the record they make.
    pub(crate) fn parts(&mut self) -> (&[u8], &mut Binary) {
        (&self.buffer[self.start..], &mut self.binary)
    }

    pub(crate) fn set_ready(&mut self) {
        self.ready = true;
    }

    pub(crate) fn take(&mut self) -> Result<Option<Record<'_>>, ImportError> {
        if !self.ready {
            return Ok(None);
        }
        self.ready = false;
        self.records += 1;
        let (record, offset) = (self.records - 1, self.offset);
        self.binary.record().map(Some).map_err(|kind| ImportError { record, offset, kind })
    }

    pub(crate) fn error(&self, kind: impl Into<ImportErrorKind>) -> ImportError {
        ImportError { record: self.records, offset: self.offset, kind: kind.into() }
    }
}

impl Binary {
    pub(crate) fn new() -> Binary {
        Binary { bytes: Vec::new(), format: Format::native(Bank::Sha1) }
    }

    /// Puts a record together. `printed` is the digest in the bank of `format`.
    pub(crate) fn set(
        &mut self,
        format: Format,
        pcr: u32,
        printed: &[u8],
        template: &str,
        data: &[u8],
    ) -> Result<(), ImportErrorKind> {
        self.format = format;
        let length =
            |what: &[u8]| format.endian.bytes(u32::try_from(what.len()).unwrap_or(u32::MAX));
        self.bytes.clear();
        self.bytes.extend_from_slice(&format.endian.bytes(pcr));
        self.bytes.extend_from_slice(printed);
        self.bytes.extend_from_slice(&length(template.as_bytes()));
        self.bytes.extend_from_slice(template.as_bytes());
        // The data of template `ima` stands there without a length before it.
        if template != "ima" {
            self.bytes.extend_from_slice(&length(data));
        }
        self.bytes.extend_from_slice(data);
        self.record().map(drop)
    }

    /// The record, which is all of the bytes.
    pub(crate) fn record(&self) -> Result<Record<'_>, ImportErrorKind> {
        match Record::parse_prefix(&self.bytes, self.format)? {
            Some(record) if record.as_bytes().len() == self.bytes.len() => Ok(record),
            // Only template `ima`, whose data says how long it is.
            _ => Err(ImportErrorKind::Member {
                name: "template_data",
                expected: "a digest, a length and a name of that length",
            }),
        }
    }
}

/// Checks a length of template data.
pub(crate) fn check_data(data: &[u8]) -> Result<(), ImportErrorKind> {
    match data.len() {
        0..=MAX_TEXT_DATA => Ok(()),
        len => Err(ImportErrorKind::DataLength(len)),
    }
}

/// What a JSON parser says.
pub(crate) fn syntax(error: &serde_json::Error) -> ImportErrorKind {
    let mut why = error.to_string();
    if why.len() > MAX_SYNTAX {
        why.truncate(why.floor_char_boundary(MAX_SYNTAX));
        why += "...";
    }
    ImportErrorKind::Syntax(why)
}

/// A string of JSON, borrowed where nothing in it is escaped.
#[derive(Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// An array of at most `N` elements: counted while it is read, so that nobody fills the memory with
/// elements that take more of it than of the file.
pub(crate) struct Limited<T, const N: usize>(pub(crate) Vec<T>);

impl<T, const N: usize> Default for Limited<T, N> {
    fn default() -> Self {
        Limited(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Limited<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Elements<T, N> {
            type Value = Limited<T, N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {N} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Limited<T, N>, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = seq.next_element()? {
                    if elements.len() == N {
                        return Err(A::Error::invalid_length(N + 1, &self));
                    }
                    elements.push(element);
                }
                Ok(Limited(elements))
            }
        }
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

/// A value of JSON of which only strings and numbers matter; nothing of others is kept.
pub(crate) enum Scalar<'a> {
    Text(Cow<'a, str>),
    Number(u64),
    Other,
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(text.into()))
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(String::from(text).into()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Number(number))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other)
            }

            fn visit_unit<E>(self) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Appends a JSON string (RFC 8259 section 7).
pub(crate) fn push_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..0x20 => {
                out.extend_from_slice(b"\\u00");
                ascii::hex(&[byte], out);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}
