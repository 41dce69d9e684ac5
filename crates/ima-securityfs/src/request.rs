//! The request in a write to one of the list's files.

use core::num::NonZeroU64;

use crate::{Dialect, Errno, FileName, Part};

/// The request in one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `A`: stages all current records.
    Stage,
    /// `D`: deletes the staged records.
    DeleteStaged,
    /// `N`, a number: deletes the first N current records.
    DeleteFirst(NonZeroU64),
    /// `T:N`: deletes the first N current records if T records were trimmed before.
    Trim {
        /// T, the number of records trimmed before, as the writer expects.
        trimmed: u64,
        /// N, the number of records to delete; may be 0.
        n: u64,
    },
}

/// The grammar that a write is parsed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grammar {
    /// The dialect.
    pub dialect: Dialect,
    /// Whether deletion flushes the digests of duplicate detection (boot parameter
    /// `ima_flush_htable`). This excludes `N` and `T:N`.
    pub flush: bool,
}

impl Request {
    /// The longest request other than `T:N`, in bytes: the 20 digits of 2^64 - 1 and a newline.
    pub const MAX_LEN: usize = 21;

    /// The longest `T:N` in bytes.
    pub const MAX_TRIM_LEN: usize = 31;

    /// Parses the bytes of one write(2) to `file` at file position `position`, as a 64-bit kernel
    /// does. Each element of a writev(2) is a separate request.
    ///
    /// `N` is decimal. It may have leading zeros, one `+` before them, a second newline at the end,
    /// and any bytes between a NUL and the last newline.
    ///
    /// `T:N` may end with a newline, or with a NUL and any bytes after it. `T` is decimal; `N` may
    /// have one leading `+`, and is hexadecimal after `0x` and octal after `0`. The posted patches
    /// also accept an empty `T` and some numbers beyond 63 bits, which are refused here.
    ///
    /// # Errors
    /// [`Errno::EINVAL`] for bytes that are not a request, or not one valid on this file, and in
    /// all dialects but 7.2 if the position is not 0; [`Errno::ERANGE`] for a number beyond 64
    /// bits, or beyond 63 bits in `T:N`.
    pub fn parse(
        write: &[u8],
        file: FileName,
        position: u64,
        grammar: Grammar,
    ) -> Result<Request, Errno> {
        if grammar.dialect != Dialect::Linux72 && position > 0 {
            return Err(Errno::EINVAL);
        }
        let part = match (file, grammar.dialect) {
            (FileName::TrimLog, Dialect::Trim) => return trim(write, grammar.flush),
            (FileName::Measurements { part, .. }, Dialect::Linux72 | Dialect::V4) => part,
            _ => return Err(Errno::EINVAL),
        };
        if !(2..=Self::MAX_LEN).contains(&write.len()) {
            return Err(Errno::EINVAL);
        }
        let text = write.strip_suffix(b"\n").ok_or(Errno::EINVAL)?;
        let numbered = match grammar.dialect {
            Dialect::V4 => Part::Staged,
            _ => Part::Current,
        };
        match (part, text) {
            (Part::Staged, b"A") => Ok(Request::Stage),
            (Part::Staged, b"D") => Ok(Request::DeleteStaged),
            _ if part != numbered || grammar.flush => Err(Errno::EINVAL),
            _ => NonZeroU64::new(number(c_string(text), 10)?)
                .map(Request::DeleteFirst)
                .ok_or(Errno::EINVAL),
        }
    }
}

fn trim(write: &[u8], flush: bool) -> Result<Request, Errno> {
    if flush || !(2..=Request::MAX_TRIM_LEN).contains(&write.len()) {
        return Err(Errno::EINVAL);
    }
    let text = c_string(write);
    let colon = text.iter().position(|byte| *byte == b':').ok_or(Errno::EINVAL)?;
    let trimmed = digits(&text[..colon], 10).and_then(signed)?;
    let n = &text[colon + 1..];
    let (n, radix) = match n.strip_prefix(b"+").unwrap_or(n) {
        [b'0', b'x' | b'X', hex @ ..] if hex.first().is_some_and(u8::is_ascii_hexdigit) => {
            (hex, 16)
        }
        octal @ [b'0', ..] => (octal, 8),
        _ => (n, 10),
    };
    let n = number(n, radix).and_then(signed)?;
    Ok(Request::Trim { trimmed, n })
}

/// Checks that a number fits in a signed 64-bit integer.
fn signed(value: u64) -> Result<u64, Errno> {
    if i64::try_from(value).is_ok() { Ok(value) } else { Err(Errno::ERANGE) }
}

/// The bytes before the first NUL.
fn c_string(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    &text[..end]
}

/// A number as the kernel parses it: an optional leading `+` and an optional trailing newline.
fn number(text: &[u8], radix: u32) -> Result<u64, Errno> {
    let text = text.strip_prefix(b"+").unwrap_or(text);
    digits(text.strip_suffix(b"\n").unwrap_or(text), radix)
}

fn digits(digits: &[u8], radix: u32) -> Result<u64, Errno> {
    if digits.is_empty() {
        return Err(Errno::EINVAL);
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(radix).ok_or(Errno::EINVAL);
    // An invalid digit takes precedence over too many digits.
    digits.iter().try_for_each(|byte| digit(byte).map(drop))?;
    digits.iter().try_fold(0u64, |value, byte| {
        value
            .checked_mul(u64::from(radix))
            .and_then(|value| value.checked_add(u64::from(digit(byte).ok()?)))
            .ok_or(Errno::ERANGE)
    })
}
