//! The messages of the control socket: one JSON line each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Carried, Kexec};

/// What is asked of a sandbox; one JSON line on its control socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Command {
    /// Measure these files, and all files below these directories.
    Measure {
        /// Absolute paths.
        paths: Vec<PathBuf>,
    },
    /// As [`Command::Measure`], by a policy rule with `pcr=`.
    MeasureInto {
        /// The PCR, 0 to 23.
        pcr: u32,
        /// Absolute paths.
        paths: Vec<PathBuf>,
    },
    /// Note that these files were changed while they were measured.
    Violation {
        /// Absolute paths. The files need not be there.
        paths: Vec<PathBuf>,
    },
    /// Measure data that is no file.
    CriticalData {
        /// What the record calls it.
        name: String,
        /// The data, in hex.
        data: String,
    },
    /// Add the records of a list. [`ask`](crate::control::ask) opens it, and its content follows the line: nothing is
    /// read that the caller may not read.
    Replay {
        /// A binary list.
        path: PathBuf,
        /// Records a second at most.
        rate: Option<u64>,
    },
    /// Stop measuring, as a machine does that goes down.
    Suspend {
        /// Write the records for a next kernel, as it does last.
        dump: bool,
    },
    /// Go on with another kernel, the TPM as it is.
    Kexec(Kexec),
    /// Go down and up, the TPM too.
    Reboot,
    /// Tell the state.
    Status,
}

/// What a sandbox answers; JSON lines, all but the last [`Answer::Progress`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// So far.
    Progress(Measured),
    /// All of it.
    Done(Measured),
    /// The state.
    Status(Status),
    /// What a kexec carried over.
    Kexec(Carried),
    /// It could not be done.
    Failed {
        /// Why.
        why: String,
    },
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Files that made a record.
    pub added: u64,
    /// Files that were known already.
    pub known: u64,
    /// Files that could not be read; the first few with the reason.
    pub unreadable: u64,
    /// The first few of the files that could not be read, and why.
    pub examples: Vec<String>,
}

/// The state of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Every record the list ever held.
    pub total: u64,
    /// Records in the current list.
    pub current: u64,
    /// Records in the staged list.
    pub staged: u64,
    /// Records that were trimmed since it booted.
    pub trimmed: u64,
    /// Violations measured.
    pub violations: u64,
    /// Bytes of records that were let go (sha1 form).
    pub freed_bytes: u64,
    /// Bytes of records in the list (sha1 form).
    pub held_bytes: u64,
    /// Records that did not extend the TPM because it failed.
    pub failed_extends: u64,
}
