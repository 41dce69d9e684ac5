use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::{DeleteMode, Dialect, Holders};

/// Something asked of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `A`.
    Stage,
    /// `D`.
    DeleteStaged,
    /// `N`.
    DeleteFirst(u64),
    /// `T:N`.
    Trim {
        /// How many records were deleted before.
        total: u64,
        /// How many are to be deleted now.
        records: u64,
    },
}

/// Why a list could not be held, read or shortened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Someone else has one of the list's files open (EBUSY). Try again later.
    #[error("{}: the list is in use by {holders}; it can be staged when they close it", path.display())]
    Busy {
        /// The file that could not be opened.
        path: PathBuf,
        /// Who has the list's files open, as far as this process may see.
        holders: Holders,
    },
    /// A permission is missing (EPERM, EACCES).
    #[error("{}: {why}", path.display())]
    NotPermitted {
        /// The file that could not be opened.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
    },
    /// The list's kernel does not delete records that way.
    #[error(
        "{}: its kernel does not delete records by {mode} (what was found there is the dialect \
         {dialect}); leave --delete-mode out",
        path.display()
    )]
    NoDeleteMode {
        /// The directory.
        path: PathBuf,
        /// What was found there.
        dialect: Dialect,
        /// What was asked for.
        mode: DeleteMode,
    },
    /// The file is not there.
    #[error(
        "{}: not there; is this the directory of IMA's files, and is securityfs mounted?",
        path.display()
    )]
    Missing {
        /// The file that is not there.
        path: PathBuf,
    },
    /// The directory is a FUSE mount whose server is gone (ENOTCONN).
    #[error(
        "{0}: a FUSE mount whose server is gone; start the sandbox again, or unmount it: umount -l {0}",
        path.display()
    )]
    DeadMount {
        /// The directory.
        path: PathBuf,
    },
    /// `A` while records are staged (EEXIST). They are older than all current ones: read and
    /// delete them first.
    #[error("records are staged already")]
    Pending,
    /// Nothing to stage or delete, or fewer than were to be deleted (ENOENT).
    #[error("{0}: there are no such records")]
    Nothing(Request),
    /// The machine is going down (EACCES for `A`, ESTALE for `D` and `N`). The records stay, and
    /// may come back after a kexec.
    #[error("{0}: refused, the machine is going down; the records stay in the kernel")]
    GoingDown(Request),
    /// The list is not what it was when it was read: someone else staged or deleted records in
    /// between.
    #[error("someone else staged or deleted records in between; nothing was deleted")]
    Overtaken,
    /// `D` could not allocate a new hash table (ENOMEM); the staged records are lost to the kernel
    /// all the same.
    #[error("D: the kernel had no memory for its new hash table; the staged records are gone")]
    NoMemory,
    /// The kernel knows no such request on this file (EINVAL).
    #[error(
        "{0}: refused as invalid; does the kernel run with ima_flush_htable, which rules out \
         deleting N records?"
    )]
    Refused(Request),
    /// Another service deletes from the list.
    #[error("{}: another service{} deletes from this list; one service a list: stop it, or follow the \
             list beside it (--delete-mode none)", path.display(), service(*pid, state.as_deref()))]
    Served {
        /// The directory.
        path: PathBuf,
        /// Its process id, if it can be seen.
        pid: Option<u32>,
        /// Its state directory, if that can be known.
        state: Option<PathBuf>,
    },
    /// The process that has the list open is gone.
    #[error("the process that reads the list is gone: {why}; start the service again")]
    Lost {
        /// What was seen of it.
        why: String,
    },
    /// Anything else the system says.
    #[error("{}: {doing}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

fn service(pid: Option<u32>, state: Option<&Path>) -> String {
    let pid = pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
    // Another process says what it is called.
    let state = state.map_or(String::new(), |state| format!(", state directory {state:?},"));
    format!("{pid}{state}")
}

impl fmt::Display for Request {
    /// As it is written to the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Stage => f.write_str("A"),
            Request::DeleteStaged => f.write_str("D"),
            Request::DeleteFirst(n) => write!(f, "{n}"),
            Request::Trim { total, records } => write!(f, "{total}:{records}"),
        }
    }
}
