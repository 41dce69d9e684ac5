//! Requests, and the errors of a list.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::{DeleteMode, Dialect, Holders, Sight};

/// A request to a list.
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
        /// The number of records trimmed before.
        total: u64,
        /// The number of records to trim.
        records: u64,
    },
}

/// The reason a list could not be opened, read or deleted from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Another process has one of the list's files open (EBUSY). Retry later.
    #[error("{}: {}", path.display(), in_use(holders))]
    Busy {
        /// The file that could not be opened.
        path: PathBuf,
        /// The processes with open files of the list, as far as this process can see them.
        holders: Holders,
    },
    /// The kernel has lost the list's lock: for some time, all opens for writing failed (EBUSY),
    /// opens for reading succeeded, and no process had one of the list's files open. Linux 7.2 can
    /// reach that state, and leaves it at the next reboot.
    #[error(
        "{}: the kernel has lost the list's lock: opens for writing fail (EBUSY), although no \
         process has one of the list's files open; no record can be staged or deleted until reboot",
        path.display()
    )]
    LockLost {
        /// The file that could not be opened.
        path: PathBuf,
    },
    /// A permission is missing (EPERM, EACCES).
    #[error("{}: {why}", path.display())]
    NotPermitted {
        /// The file that could not be opened.
        path: PathBuf,
        /// The missing permission, and how to grant it.
        why: &'static str,
    },
    /// The list's kernel does not support the delete mode.
    #[error(
        "{}: delete mode {mode} is not supported in dialect {dialect}; omit --delete-mode",
        path.display()
    )]
    NoDeleteMode {
        /// The directory.
        path: PathBuf,
        /// The detected dialect.
        dialect: Dialect,
        /// The requested mode.
        mode: DeleteMode,
    },
    /// The file does not exist.
    #[error(
        "{}: not found; give the directory of IMA's files, and check that securityfs is mounted",
        path.display()
    )]
    Missing {
        /// The missing file.
        path: PathBuf,
    },
    /// The directory is a FUSE mount whose server is gone (ENOTCONN).
    #[error(
        "{0}: a FUSE mount whose server is gone; restart the sandbox, or unmount it: umount -l {0}",
        path.display()
    )]
    DeadMount {
        /// The directory.
        path: PathBuf,
    },
    /// `A` while records are staged (EEXIST). These are older than all current records: read and
    /// delete them first.
    #[error("records are already staged; read and delete them first")]
    Pending,
    /// No records to stage or delete, or fewer than requested (ENOENT).
    #[error("{0}: no such records in the list")]
    Nothing(Request),
    /// The machine is going down (EACCES for `A`, ESTALE for `D` and `N`). The records stay, and
    /// the next kernel may restore them after a kexec.
    #[error("{0}: refused, the machine is going down; the records stay in the kernel")]
    GoingDown(Request),
    /// The list changed after it was read: another process staged or deleted records.
    #[error("another process staged or deleted records in between; nothing was deleted")]
    Overtaken,
    /// `D` could not allocate a new hash table (ENOMEM); the kernel deleted the staged records
    /// nevertheless.
    #[error("D: the kernel had no memory for a new hash table; the staged records are deleted")]
    NoMemory,
    /// The kernel does not support the request on this file (EINVAL).
    #[error(
        "{0}: refused as invalid; check whether the kernel runs with ima_flush_htable, which \
         excludes deleting N records"
    )]
    Refused(Request),
    /// Another service deletes from the list.
    #[error("{}: another service{} deletes from this list; stop it, or follow the list \
             (--delete-mode none)", path.display(), service(*pid, state.as_deref()))]
    Served {
        /// The directory.
        path: PathBuf,
        /// The process id, if visible.
        pid: Option<u32>,
        /// The state directory, if it can be determined.
        state: Option<PathBuf>,
    },
    /// The process that has the list open is gone.
    #[error("the process that reads the list is gone: {why}; start the service again")]
    Lost {
        /// The observed cause.
        why: String,
    },
    /// Any other system error.
    #[error("{}: {doing}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operation that failed.
        doing: &'static str,
        /// The system's error.
        error: io::Error,
    },
}

fn in_use(holders: &Holders) -> String {
    match (holders.found.is_empty(), holders.sight) {
        (false, _) => format!("the list is in use by {holders}; retry after the file is closed"),
        (true, Sight::Complete) => {
            "the list was in use (EBUSY), but no process has its files open now; retry".to_owned()
        }
        (true, sight) => format!(
            "the list is in use by a process that is not visible, or the kernel has lost its lock: \
             {sight}"
        ),
    }
}

fn service(pid: Option<u32>, state: Option<&Path>) -> String {
    let pid = pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
    // Quoted, because the path comes from another process.
    let state = state.map_or(String::new(), |state| format!(", state directory {state:?},"));
    format!("{pid}{state}")
}

impl fmt::Display for Request {
    /// The request as written to the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Stage => f.write_str("A"),
            Request::DeleteStaged => f.write_str("D"),
            Request::DeleteFirst(n) => write!(f, "{n}"),
            Request::Trim { total, records } => write!(f, "{total}:{records}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(sight: Sight) -> String {
        let holders = Holders { found: Vec::new(), sight };
        SourceError::Busy { path: "/list".into(), holders }.to_string()
    }

    #[test]
    fn unseen_holder_is_explained_by_the_missing_permission() {
        for (sight, part) in [
            (Sight::NoPtrace, "without CAP_SYS_PTRACE"),
            (Sight::Namespace, "outside this PID namespace"),
            (Sight::Denied { pid: 42 }, "the descriptors of process 42"),
        ] {
            let text = busy(sight);
            assert!(text.contains("not visible") && text.contains(part), "{text}");
        }
        assert!(!busy(Sight::Complete).contains("visible"));
    }
}
