//! Why an ASCII list cannot be read.

use core::fmt;

use crate::{BuildError, MAX_FIELDS, MAX_TEXT_DATA};

/// The longest line taken, in bytes: template data in hex, and room for the rest.
pub(super) const MAX_LINE: usize = 2 * MAX_TEXT_DATA + (64 << 10);

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
    /// The list ends inside a line, or its last line is incomplete.
    #[error(
        "cut short: the line has no newline at its end, and its template digest does not prove it \
         whole"
    )]
    Truncated,
    /// Longer than a line with the largest template data.
    #[error("the line is longer than {MAX_LINE} bytes; the binary list holds larger records")]
    TooLong,
    /// It does not begin with a PCR index.
    #[error("expected a PCR index (is this the ASCII list?)")]
    Pcr,
    /// The second word is no digest of a known bank.
    #[error("the template digest is not 40, 64, 96 or 128 hex digits")]
    TemplateDigest,
    /// The template has another number of fields.
    #[error("the template has {expected} fields, the line {found}{}", hint(*expected, *found))]
    FieldCount {
        /// Fields of the template.
        expected: usize,
        /// Fields in the line.
        found: usize,
    },
    /// More fields than any template has.
    #[error("the line has {0} fields; a template has at most {MAX_FIELDS}")]
    TooManyFields(usize),
    /// The line of a violation is not as the kernel writes it.
    #[error(
        "the line of a violation is not as the kernel writes it (blanks or the end of the line were \
         changed), and its digest of zeros does not prove what it was: take the list from the kernel \
         again, or its binary form"
    )]
    Violation,
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

impl fmt::Display for AsciiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} at byte {}: {}", self.record, self.offset, self.kind)
    }
}

impl core::error::Error for AsciiError {}

fn hint(expected: usize, found: usize) -> &'static str {
    if found > expected {
        " (a name with a blank?)"
    } else {
        ", and no fields that are empty and left out give its template digest"
    }
}
