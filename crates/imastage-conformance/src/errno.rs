//! Error numbers of system calls by name, and results as the text of a case.

use std::{fmt, io};

/// An error number, displayed by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

/// The result of a system call.
pub(crate) type Answer<T> = Result<T, Errno>;

impl Errno {
    pub(crate) const EPERM: Errno = Errno(1);
    pub(crate) const ENOENT: Errno = Errno(2);
    pub(crate) const EACCES: Errno = Errno(13);
    pub(crate) const EBUSY: Errno = Errno(16);
    pub(crate) const EEXIST: Errno = Errno(17);
    pub(crate) const EINVAL: Errno = Errno(22);
    pub(crate) const ERANGE: Errno = Errno(34);
    pub(crate) const ESTALE: Errno = Errno(116);

    /// Value, name, and the message that a shell prints for it.
    const NAMES: [(Errno, &str, &str); 13] = [
        (Errno::EPERM, "EPERM", "Operation not permitted"),
        (Errno::ENOENT, "ENOENT", "No such file or directory"),
        (Errno(9), "EBADF", "Bad file descriptor"),
        (Errno(12), "ENOMEM", "Cannot allocate memory"),
        (Errno::EACCES, "EACCES", "Permission denied"),
        (Errno::EBUSY, "EBUSY", "Device or resource busy"),
        (Errno::EEXIST, "EEXIST", "File exists"),
        (Errno::EINVAL, "EINVAL", "Invalid argument"),
        (Errno(18), "EXDEV", "Invalid cross-device link"),
        (Errno(19), "ENODEV", "No such device"),
        (Errno(29), "ESPIPE", "Illegal seek"),
        (Errno::ERANGE, "ERANGE", "Numerical result out of range"),
        (Errno::ESTALE, "ESTALE", "Stale file handle"),
    ];

    /// Parses the error from the output of a failed program.
    pub(crate) fn printed(text: &str) -> Option<Errno> {
        Self::NAMES.iter().find(|(_, _, says)| text.contains(says)).map(|(errno, _, _)| *errno)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(errno, _, _)| errno == self) {
            Some((_, name, _)) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        // No case expects 0: it marks an error without an error number.
        Errno(error.raw_os_error().unwrap_or(0))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Errno {
        Errno(errno.raw_os_error())
    }
}

/// `ok`, or the name of the error.
pub(crate) fn told<T>(answer: &Answer<T>) -> String {
    match answer {
        Ok(_) => "ok".into(),
        Err(errno) => errno.to_string(),
    }
}

/// `ok` if all `len` bytes were written, else `ok:` and the number written, or the name of the error.
pub(crate) fn wrote(answer: &Answer<usize>, len: usize) -> String {
    match answer {
        Ok(written) if *written == len => "ok".into(),
        answer => written(answer),
    }
}

/// `ok:` and the number of bytes written, or the name of the error.
pub(crate) fn written(answer: &Answer<usize>) -> String {
    match answer {
        Ok(len) => format!("ok:{len}"),
        Err(errno) => errno.to_string(),
    }
}
