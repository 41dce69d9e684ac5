//! Errors of parsing binary records and of building them.

use core::fmt;

/// Why a list cannot be read on, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The record's index, counted from where reading began; first record 0.
    pub record: u64,
    /// The byte offset at which that record begins, counted from where reading began.
    pub offset: u64,
    /// What is wrong with it.
    pub kind: ParseErrorKind,
}

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseErrorKind {
    /// The list ends inside the record.
    Truncated {
        /// Bytes the record needs at least, from its beginning.
        needed: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// The template name is empty or longer than [`crate::MAX_NAME`].
    NameLength(u32),
    /// The template name holds bytes that are not printable ASCII.
    NameBytes,
    /// The template data is longer than [`crate::MAX_TEMPLATE_DATA`].
    DataLength(u32),
    /// A field of the template data ends beyond it.
    FieldLength {
        /// Which field, first 0.
        field: usize,
        /// The length it claims.
        claimed: u32,
        /// Bytes left for it.
        left: usize,
    },
    /// The template data holds another number of fields than the template has.
    FieldCount {
        /// Fields of the template.
        expected: usize,
        /// Whole fields in the data; one more than `expected` if bytes are left behind them.
        found: usize,
    },
    /// The file name of a record of template `ima` is longer than 255 bytes.
    EventNameLength(u32),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} at byte {}: {}", self.record, self.offset, self.kind)
    }
}

impl fmt::Display for ParseErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParseErrorKind::Truncated { needed, found } => write!(
                f,
                "cut short: the record needs at least {needed} bytes, the list ends after {found}"
            ),
            ParseErrorKind::NameLength(found) => write!(
                f,
                "template name length {found}: expected 1 to {} (is this the binary list, and of \
                 this bank and byte order?)",
                crate::MAX_NAME
            ),
            ParseErrorKind::NameBytes => write!(
                f,
                "template name is not printable ASCII (is this the binary list, and of this bank \
                 and byte order?)"
            ),
            ParseErrorKind::DataLength(found) => write!(
                f,
                "template data length {found}: expected at most {}",
                crate::MAX_TEMPLATE_DATA
            ),
            ParseErrorKind::FieldLength { field, claimed, left } => write!(
                f,
                "field {field} of the template data claims {claimed} bytes where {left} are left"
            ),
            ParseErrorKind::FieldCount { expected, found } => write!(
                f,
                "the template has {expected} fields, its data {}{found}",
                if found > expected { "at least " } else { "" }
            ),
            ParseErrorKind::EventNameLength(found) => {
                write!(f, "file name length {found}: template ima has at most 255")
            }
        }
    }
}

impl core::error::Error for ParseError {}
impl core::error::Error for ParseErrorKind {}

/// Why a record cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// It would be no record.
    #[error(transparent)]
    Record(#[from] ParseErrorKind),
    /// The digest in template `ima` is a SHA-1 or MD5 one and has no length before it.
    #[error("template ima takes a digest of 20 or 16 bytes, found {0}")]
    DigestLength(usize),
    /// The data of template `ima` reads as another digest and name than were given: one of 20 bytes
    /// where 16 were meant, as its template digest is not looked at in a violation.
    #[error("as template ima has no lengths, this digest and name read as another record")]
    Ambiguous,
}
