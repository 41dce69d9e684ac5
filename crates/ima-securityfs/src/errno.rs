//! The error numbers with which requests are refused.

use core::fmt;

/// Why something was refused, by the name and number Linux has for it on every architecture with
/// generic numbers (x86, Arm, RISC-V, POWER, s390).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// Opening for writing needs `CAP_SYS_ADMIN`.
    EPERM = 1,
    /// There is nothing to stage or delete, or fewer than are to be deleted.
    ENOENT = 2,
    /// There is no memory for a new table of digests; what was to be deleted is gone all the same.
    ENOMEM = 12,
    /// Staging is over: the machine is going down.
    EACCES = 13,
    /// Someone else has one of the list's files open.
    EBUSY = 16,
    /// Records are staged already.
    EEXIST = 17,
    /// No such request, or not on this file.
    EINVAL = 22,
    /// As many have the files open as can be counted.
    ENFILE = 23,
    /// The number does not fit into 64 bits, or into 63 where records are trimmed.
    ERANGE = 34,
    /// Deleting is over: the machine is going down, and the records may live on in the next kernel.
    /// Or others have trimmed meanwhile.
    ESTALE = 116,
}

impl Errno {
    /// The number, positive.
    pub const fn raw(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for Errno {
    /// Its name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl core::error::Error for Errno {}
