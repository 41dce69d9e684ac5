//! The arguments of `imastage conformance` and `imastage-conformance`.

use std::path::{Path, PathBuf};

use ima_list::Duplicates;
use ima_securityfs::Dialect;

use crate::{Listed, Measure, Options, RunError, detect, list};

/// Test whether the files in DIR behave as a kernel's with staging do.
///
/// DIR is the `ima` directory in securityfs, or one that imitates it. Prints KTAP, with expected
/// and found for each case that failed. Deletes every record in the list. A sandbox is also
/// suspended, kexec'ed and rebooted.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The directory, such as /sys/kernel/security/integrity/ima.
    #[arg(required_unless_present = "list")]
    pub dir: Option<PathBuf>,
    /// List the groups of cases with their rules, and run none.
    #[arg(long)]
    pub list: bool,
    /// The expected interface: `7.2` (Linux), `v4` (version 4 of the patches: A, D and N on the
    /// staged files) or `trim` (T:N on ima_trim_log) [default: detected from the files].
    #[arg(long)]
    pub dialect: Option<Dialect>,
    /// Expect that deleting staged records also deletes all digests, as with the boot parameter
    /// ima_flush_htable; N and T:N are refused then.
    #[arg(long)]
    pub flush_htable: bool,
    /// Expect that duplicates are not detected, as with CONFIG_IMA_DISABLE_HTABLE. Overrides
    /// --flush-htable.
    #[arg(long)]
    pub no_htable: bool,
    /// Run although the list has records: they are deleted, and this machine cannot be verified
    /// before its next reboot. Not needed for a sandbox, nor if the only record is a boot_aggregate.
    #[arg(long)]
    pub destructive: bool,
    /// Expect that the kernel measures kexec and trimming, as with a policy rule for CRITICAL_DATA.
    /// Runs only these cases (1.10).
    #[arg(long)]
    pub critical_data: bool,
    /// Also run the cases that show bugs of Linux 7.2 (1.9), after all others: the list can be
    /// locked against writers afterwards until reboot.
    #[arg(long)]
    pub hazards: bool,
    /// Run only the cases of one rule: 1.1 files and system calls, 1.2 locking and permissions, 1.3
    /// request grammar, 1.4 requests in every state, 1.5 reads, 1.6 counters, 1.7 duplicates, 1.8
    /// shutdown and kexec, 1.9 hazards (with --hazards), 1.10 critical data (with --critical-data).
    #[arg(long)]
    pub rule: Option<String>,
    /// A shell command that causes one file to be measured, with {} for its path [default: a
    /// request to the sandbox; elsewhere, executing the file].
    #[arg(long, value_name = "CMD", value_parser = with_path)]
    pub measure: Option<String>,
}

impl Args {
    /// The groups that `--list` prints.
    ///
    /// # Errors
    /// [`RunError::Rule`].
    pub fn groups(&self) -> Result<Vec<Listed>, RunError> {
        list(self.dialect, self.rule.as_deref())
    }

    /// The options for a run whose helper processes execute the files to be measured, or the command
    /// of `--measure`.
    ///
    /// # Errors
    /// Those of [`detect`].
    pub fn options<'a>(&'a self, helper: &'a Path) -> Result<Options<'a>, RunError> {
        // Absent only with --list.
        let dir = self.dir.as_deref().unwrap_or(Path::new("."));
        Ok(Options {
            dir,
            dialect: self.dialect.map_or_else(|| detect(dir), Ok)?,
            duplicates: match (self.no_htable, self.flush_htable) {
                (true, _) => Duplicates::Off,
                (false, true) => Duplicates::Flush,
                (false, false) => Duplicates::Detect,
            },
            helper,
            measure: self.measure.as_deref().map_or(Measure::Execute, Measure::Command),
            violate: None,
            machine: None,
            destructive: self.destructive,
            critical_data: self.critical_data,
            hazards: self.hazards,
            rule: self.rule.as_deref(),
        })
    }
}

impl Listed {
    /// A line for people: rule, title, and the conditions under which the group is run.
    pub fn line(&self) -> String {
        let mut conditions = Vec::new();
        if self.dialects.len() < 3 {
            conditions.push(format!("only {}", self.dialects.join(" and ")));
        }
        conditions.extend(self.option.map(|option| format!("with {option}")));
        let conditions = match &*conditions.join(", ") {
            "" => String::new(),
            conditions => format!(" ({conditions})"),
        };
        format!("{:<6} {}{conditions}", self.rule, self.title)
    }
}

fn with_path(command: &str) -> Result<String, &'static str> {
    if command.contains("{}") { Ok(command.to_owned()) } else { Err("{} for the path is missing") }
}
