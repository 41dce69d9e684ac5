use std::{io, path::PathBuf};

use ima_log::{Digest, ParseErrorKind};

/// Why a store could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The system refuses.
    #[error("{}: {doing}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The directory is no store, or one of another version.
    #[error("{}: not a state directory: {why}", path.display())]
    NotAStore {
        /// The directory or file.
        path: PathBuf,
        /// What is missing or different.
        why: String,
    },
    /// Another process writes to it.
    #[error("{}: in use by process {holder}; one service a state directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Its process id, as far as known.
        holder: String,
    },
    /// Another process packs, prunes or repairs.
    #[error("{}: another process packs, prunes or repairs; try again when it is done", path.display())]
    Busy {
        /// The directory of the epochs.
        path: PathBuf,
    },
    /// Nothing was stored yet.
    #[error("{}: no records were stored yet", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{} at byte {offset}: {why}; see `imastage status`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
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
        /// Where in the segment it begins, in bytes.
        offset: u64,
        /// What is wrong.
        error: ParseErrorKind,
    },
    /// A record that was to be appended is not as it should be.
    #[error("record {index} was not stored: its digest is {printed}, its data's {computed}")]
    WrongDigest {
        /// The index it would have had.
        index: u64,
        /// Its own digest.
        printed: Digest,
        /// What it should be.
        computed: Digest,
    },
    /// A record that was to be appended is not in the sha1 form of this machine.
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
        /// How many records there are.
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
    /// Records need an epoch to be in.
    #[error("no epoch was begun")]
    NoEpoch,
}
