//! The error numbers of refused requests.

use core::fmt;

/// The reason for a refusal, with Linux's name and number on every architecture with generic errno
/// numbers (x86, Arm, RISC-V, POWER, s390).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// Opening for writing needs `CAP_SYS_ADMIN`.
    EPERM = 1,
    /// No records to stage or delete, or fewer than requested.
    ENOENT = 2,
    /// No memory for a new digest table; the records are deleted nevertheless.
    ENOMEM = 12,
    /// Staging is refused because the machine is going down.
    EACCES = 13,
    /// One of the list's files is open in a conflicting mode.
    EBUSY = 16,
    /// Records are already staged.
    EEXIST = 17,
    /// Unknown request, or not valid on this file.
    EINVAL = 22,
    /// The counter of open files is at its maximum.
    ENFILE = 23,
    /// The number does not fit in 64 bits, or in 63 bits for a trim.
    ERANGE = 34,
    /// Deletion is refused because the machine is going down and the next kernel may restore the
    /// records; or the total of a trim is out of date.
    ESTALE = 116,
}

impl Errno {
    /// The number, positive.
    pub const fn raw(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for Errno {
    /// The errno name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl core::error::Error for Errno {}
