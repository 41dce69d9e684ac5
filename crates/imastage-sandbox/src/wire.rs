//! The messages of the control socket: one JSON line each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Carried, Kexec};

/// A command to a sandbox.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Command {
    /// Measure files, and all files below directories.
    Measure {
        /// Absolute paths.
        paths: Vec<PathBuf>,
    },
    /// As [`Command::Measure`], with a policy rule that sets `pcr=`.
    MeasureInto {
        /// The PCR, 0 to 23.
        pcr: u32,
        /// Absolute paths.
        paths: Vec<PathBuf>,
    },
    /// Record violations: the files changed while they were measured.
    Violation {
        /// Absolute paths. The files need not exist.
        paths: Vec<PathBuf>,
    },
    /// Measure data that is not a file.
    CriticalData {
        /// The event name in the record.
        name: String,
        /// The data, in hex.
        data: String,
    },
    /// Append the records of a list. [`ask`](crate::control::ask) opens the list and sends its
    /// content after the JSON line, so the sandbox reads no file with its own permissions.
    Replay {
        /// The binary list.
        path: PathBuf,
        /// The maximum number of records per second.
        rate: Option<u64>,
    },
    /// Suspend measurement, as a machine does that shuts down.
    Suspend {
        /// Also dump the records for a next kernel.
        dump: bool,
    },
    /// Boot another kernel without a reset of the TPM.
    Kexec(Kexec),
    /// Reboot the machine and reset the TPM.
    Reboot,
    /// Return the state.
    Status,
}

/// An answer of a sandbox. All answers to a command but the last are [`Answer::Progress`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// The counts so far.
    Progress(Measured),
    /// The final counts.
    Done(Measured),
    /// The state.
    Status(Status),
    /// The records that a kexec carried over.
    Kexec(Carried),
    /// The command failed.
    Failed {
        /// The cause.
        why: String,
    },
}

/// Counts of measurements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Measurements that added a record.
    pub added: u64,
    /// Measurements that were already in the list.
    pub known: u64,
    /// Files that could not be read.
    pub unreadable: u64,
    /// The first of the unreadable files, each with the cause.
    pub examples: Vec<String>,
}

/// The state of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The process id.
    pub pid: u32,
    /// Records ever added to the list.
    pub total: u64,
    /// Records in the current list.
    pub current: u64,
    /// Records in the staged list.
    pub staged: u64,
    /// Records trimmed since boot.
    pub trimmed: u64,
    /// Violations measured.
    pub violations: u64,
    /// Bytes of deleted records (sha1 form).
    pub freed_bytes: u64,
    /// Bytes of records in the list (sha1 form).
    pub held_bytes: u64,
    /// Records that did not extend the TPM because a TPM command failed.
    pub failed_extends: u64,
}
