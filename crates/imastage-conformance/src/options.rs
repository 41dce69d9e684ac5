//! What to test and how, and the errors that prevent a test run.

use std::{
    io,
    path::{Path, PathBuf},
};

use ima_list::Duplicates;
use ima_securityfs::Dialect;

use crate::lock::Locked;

/// Adds a record of each of these files, and returns after the records are in the list. Does not
/// start a process: a file of the list may be open.
pub type Adding<'a> = dyn Fn(&[PathBuf]) -> io::Result<()> + Sync + 'a;

/// Adds records of files, which are executable programs that do nothing.
#[derive(Clone, Copy)]
pub enum Measure<'a> {
    /// A helper process executes each file.
    Execute,
    /// A helper process runs this shell command for each file, with `{}` for its path.
    Command(&'a str),
    /// This function adds them.
    Call(&'a Adding<'a>),
}

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
    /// A program that calls [`serve_helper`](crate::serve_helper) if its only argument is
    /// [`HELPER`](crate::HELPER), such as the running one.
    pub helper: &'a Path,
    /// How records are added.
    pub measure: Measure<'a>,
    /// Adds violations of files; without it, cases on violations are skipped.
    pub violate: Option<&'a Adding<'a>>,
    /// Performs shutdown steps; without it, cases on shutdown are skipped.
    pub machine: Option<&'a Machine<'a>>,
    /// Whether existing records may be deleted: no verifier can read them afterwards. Not needed
    /// for a list with only a boot_aggregate, nor for a sandbox.
    pub destructive: bool,
    /// Runs only the cases on critical data, on a kernel whose policy measures it.
    pub critical_data: bool,
    /// Also runs the cases that can leave the list of Linux 7.2 locked until the next boot.
    pub hazards: bool,
    /// Runs only the groups of one rule, such as `1.4`; `1.9` includes `1.9.1`.
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
    /// No helper process could be started.
    #[error("starting a helper process, {}: {error}", program.display())]
    Helper {
        /// The program.
        program: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// No record can be added.
    #[error(
        "a file executed in {} is not in the list: the IMA policy does not measure it; boot with \
         ima_policy=tcb, set TMPDIR to a file system that the policy measures, or use --measure",
        dir.display()
    )]
    NotMeasured {
        /// The directory of the file.
        dir: PathBuf,
    },
    /// Writers are refused before the first case.
    #[error("{0}")]
    Locked(Locked),
    /// The rule needs an option.
    #[error("rule {rule} needs {option}: {why}")]
    Option {
        /// The requested rule.
        rule: String,
        /// The option of the command.
        option: &'static str,
        /// What the option permits or expects.
        why: &'static str,
    },
    /// No selected group has this rule.
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

impl RunError {
    /// Whether the options are at fault, not the machine.
    pub fn is_usage(&self) -> bool {
        match self {
            RunError::Option { .. } | RunError::Rule { .. } | RunError::WouldDelete { .. } => true,
            RunError::File { .. }
            | RunError::NoDialect { .. }
            | RunError::Helper { .. }
            | RunError::NotMeasured { .. }
            | RunError::Locked(_) => false,
        }
    }
}
