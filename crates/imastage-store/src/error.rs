//! Errors of the store.

use std::{io, path::PathBuf};

use ima_log::{Digest, ParseErrorKind};

/// Why a store could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An error of the operating system.
    #[error("{}: {doing}: {error}{}", path.display(), advice(.error))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operation.
        doing: &'static str,
        /// The error.
        error: io::Error,
    },
    /// The directory is not a store, or a store of another version.
    #[error("{}: not a state directory: {why}", path.display())]
    NotAStore {
        /// The directory or file.
        path: PathBuf,
        /// What is missing or different.
        why: String,
    },
    /// Another process writes to it.
    #[error("{}: locked by process {holder}; only one service may use a state directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Its process ID, if known.
        holder: String,
    },
    /// Another process packs, prunes or repairs.
    #[error("{}: another process packs, prunes or repairs; try again when it is done", path.display())]
    Busy {
        /// The directory of the epochs.
        path: PathBuf,
    },
    /// The store has no epoch.
    #[error("{}: no records were stored yet", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// A file is damaged.
    #[error("{} at byte {offset}: {why}; `imastage store check` says what can be done", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The offset in bytes.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// A stored record cannot be read.
    #[error("{} at byte {offset}: record {index} cannot be read: {error}", path.display())]
    Unreadable {
        /// The segment.
        path: PathBuf,
        /// The record's index in the epoch.
        index: u64,
        /// Its offset in the segment, in bytes.
        offset: u64,
        /// What is wrong.
        error: ParseErrorKind,
    },
    /// The digest of a record to be appended is wrong.
    #[error(
        "record {index} rejected: template digest mismatch: list has {printed}, computed {computed}"
    )]
    WrongDigest {
        /// The index it would have had.
        index: u64,
        /// The digest in the record.
        printed: Digest,
        /// The correct digest.
        computed: Digest,
    },
    /// A record to be appended is not in the sha1 form and native byte order.
    #[error("record {index} was not stored: it is not in the sha1 form and native byte order")]
    WrongForm {
        /// The index it would have had.
        index: u64,
    },
    /// There is no such record.
    #[error("record {asked} was asked for, {len} are stored")]
    NoSuchRecord {
        /// The index.
        asked: u64,
        /// The number of records.
        len: u64,
    },
    /// There is no such epoch.
    #[error("{}: there is no epoch {asked}", path.display())]
    NoSuchEpoch {
        /// The state directory.
        path: PathBuf,
        /// The epoch's number.
        asked: u64,
    },
    /// There is no such remark.
    #[error("{}: there is no such remark to be withdrawn", path.display())]
    NoSuchNote {
        /// The file of the remarks.
        path: PathBuf,
    },
    /// A record was appended before an epoch was started.
    #[error("no epoch was begun")]
    NoEpoch,
}

impl StoreError {
    /// Whether this user lacks the permission. The store is not at fault then.
    pub fn is_permission(&self) -> bool {
        matches!(self, StoreError::Io { error, .. } if is_permission(error))
    }

    /// Whether the cause is the environment and not the content of the store: no permission, an
    /// error of the operating system, or use by another process.
    pub fn is_environment(&self) -> bool {
        matches!(self, StoreError::Io { .. } | StoreError::Locked { .. } | StoreError::Busy { .. })
    }
}

fn is_permission(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// The remedy for an error of the operating system, if known.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; you may not enter it: ask for membership of the directory's group, or run as root"
        }
        io::ErrorKind::StorageFull => "; make room on the file system",
        io::ErrorKind::ReadOnlyFilesystem => "; mount the file system for writing",
        _ => "",
    }
}
