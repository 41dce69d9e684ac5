//! What to test and how, and the errors that prevent a test run.

use std::{
    io,
    path::{Path, PathBuf},
};

use ima_list::Duplicates;
use ima_securityfs::Dialect;

/// Has the kernel measure each of these files anew; returns after their records are in the list.
/// The files are executable programs that do nothing.
pub type Measure<'a> = dyn Fn(&[PathBuf]) -> io::Result<()> + Sync + 'a;

/// Performs a shutdown step; returns after the machine has completed it.
pub type Machine<'a> = dyn Fn(Step) -> io::Result<()> + Sync + 'a;

/// A step in the shutdown of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The kernel stops measuring.
    Suspend,
    /// The kernel writes the records for the next kernel, which is never started.
    Dump,
    /// A complete kexec; the next kernel restores the records.
    Kexec,
    /// A complete shutdown; the next kernel starts with an empty list.
    Restart,
}

/// What is tested, and how.
pub struct Options<'a> {
    /// The directory with the files, such as `/sys/kernel/security/integrity/ima`.
    pub dir: &'a Path,
    /// The dialect to test against; see [`detect`](crate::detect).
    pub dialect: Dialect,
    /// How the kernel is expected to treat duplicate records.
    pub duplicates: Duplicates,
    /// Adds records.
    pub measure: &'a Measure<'a>,
    /// Adds violations of files; without it, cases on violations are skipped.
    pub violate: Option<&'a Measure<'a>>,
    /// Performs shutdown steps; without it, cases on shutdown are skipped.
    pub machine: Option<&'a Machine<'a>>,
    /// Whether existing records may be deleted: no verifier can read them afterwards.
    pub destructive: bool,
    /// Runs only the cases on critical data, on a kernel whose policy measures it.
    pub critical_data: bool,
    /// Also runs the cases that can leave the list of Linux 7.2 locked until the next boot.
    pub hazards: bool,
    /// Runs only the groups of one rule, such as `1.4`.
    pub rule: Option<&'a str>,
}

/// Why no case was run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file of the interface is missing or unreadable.
    #[error("{}: {error}", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system call.
        error: io::Error,
    },
    /// The kernel cannot delete records from this list.
    #[error(
        "{}: neither binary_runtime_measurements_sha1_staged nor ima_trim_log exists: this kernel \
         cannot delete records from its list; use one built with CONFIG_IMA_STAGING",
        dir.display()
    )]
    NoDialect {
        /// The directory.
        dir: PathBuf,
    },
    /// No group has this rule.
    #[error("no cases for rule {rule:?}; known rules: {known}")]
    Rule {
        /// The requested rule.
        rule: String,
        /// The known rules.
        known: String,
    },
    /// The run would delete existing records.
    #[error(
        "{}: {records} records in the list, and these tests delete them irrecoverably; use \
         --destructive only if no verifier needs them",
        dir.display()
    )]
    WouldDelete {
        /// The directory.
        dir: PathBuf,
        /// Records in both parts.
        records: usize,
    },
}
