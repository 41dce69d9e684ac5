use core::num::NonZeroU64;

use crate::{Errno, Part};

/// What one write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `A`: all current records become the staged ones.
    Stage,
    /// `D`: the staged records are deleted.
    DeleteStaged,
    /// `N`, a number: that many of the current records are deleted, the oldest first.
    DeleteFirst(NonZeroU64),
}

impl Request {
    /// The longest request in bytes: the 20 digits of 2^64 - 1 and a newline.
    pub const MAX_LEN: usize = 21;

    /// Reads the bytes of one write(2) to a file of `part`, as a 64-bit kernel does. `flush` tells
    /// whether duplicate detection forgets what is deleted (boot parameter `ima_flush_htable`),
    /// which rules out `N`.
    ///
    /// The offset in the file has no meaning, and each element of a writev(2) is a request. What
    /// is accepted for `N` besides plain digits: leading zeros, one `+` before them, one newline
    /// more at the end, and anything between a NUL and the last newline.
    ///
    /// # Errors
    /// [`Errno::EINVAL`] for anything that is no request, or none for this file;
    /// [`Errno::ERANGE`] for a number beyond 64 bits.
    pub fn parse(write: &[u8], part: Part, flush: bool) -> Result<Request, Errno> {
        if !(2..=Self::MAX_LEN).contains(&write.len()) {
            return Err(Errno::EINVAL);
        }
        let Some(text) = write.strip_suffix(b"\n") else { return Err(Errno::EINVAL) };
        match (part, text) {
            (Part::Staged, b"A") => Ok(Request::Stage),
            (Part::Staged, b"D") => Ok(Request::DeleteStaged),
            (Part::Current, _) if !flush => number(text).map(Request::DeleteFirst),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// A number as the kernel reads one from a C string.
fn number(text: &[u8]) -> Result<NonZeroU64, Errno> {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let digits = &text[..end];
    let digits = digits.strip_prefix(b"+").unwrap_or(digits);
    let digits = digits.strip_suffix(b"\n").unwrap_or(digits);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Errno::EINVAL);
    }
    let value = digits
        .iter()
        .try_fold(0u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
    NonZeroU64::new(value.ok_or(Errno::ERANGE)?).ok_or(Errno::EINVAL)
}
