//! Black-box tests of the staging interface of IMA's measurement list, as Linux 7.2 has it: for a
//! kernel, or for anything that stands in for one.
//!
//! [`run`] works on a directory of securityfs's files alone. Records are made by whoever calls it
//! ([`Measure`]). Each [`Case`] is named after what it checks, in a [`Group`] that is named after
//! the part of the interface; [`Ktap`] prints them as the kernel's tests do. Other programs may be
//! measured meanwhile: a case that needs a list which does not grow is tried again when it does.
//!
//! What is expected is what Linux 7.2 was seen to do, with duplicate detection as it is by default
//! (`N` is refused with `ima_flush_htable`). Not tried is what needs more than these files: requests
//! of a machine that is going down, kexec, and a failing allocation. On FUSE some calls are skipped
//! that never reach the file system.
#![forbid(unsafe_code)]

mod cases;
mod errno;
mod ktap;
mod report;
mod target;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use ktap::Ktap;
pub use report::{Case, Counts, Group, Verdict};

use report::Recorder;
use target::{Target, Trouble};

/// Has these files measured, each of them anew, and returns when their records are in the list.
/// They are programs that can be executed and do nothing.
pub type Measure<'a> = dyn Fn(&[PathBuf]) -> io::Result<()> + Sync + 'a;

/// What is tested, and how.
pub struct Options<'a> {
    /// The directory with the files, such as `/sys/kernel/security/integrity/ima`.
    pub dir: &'a Path,
    /// Makes records.
    pub measure: &'a Measure<'a>,
    /// Whether records that are in the list may be deleted: they are lost to every verifier.
    pub destructive: bool,
    /// Runs the groups of one rule only, such as `1.4`.
    pub rule: Option<&'a str>,
}

/// Why nothing was tested.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file of the interface is missing or cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// No group has this rule.
    #[error("there are no cases for rule {rule:?}; there are some for {known}")]
    Rule {
        /// What was asked for.
        rule: String,
        /// What there is.
        known: String,
    },
    /// There are records that would be lost.
    #[error(
        "{}: {records} records are in the list, and these tests delete them for ever; to be run \
         all the same only where nobody attests (--destructive)",
        dir.display()
    )]
    WouldDelete {
        /// The directory.
        dir: PathBuf,
        /// Records in both parts.
        records: usize,
    },
}

/// Tests the interface, and gives each group of cases to `each` when it is done. The list is empty
/// afterwards, but for what others added.
///
/// # Errors
/// [`RunError`]; nothing was changed then.
pub fn run(options: &Options<'_>, each: &mut dyn FnMut(&Group)) -> Result<Counts, RunError> {
    if groups(options.rule).next().is_none() {
        let mut known = cases::GROUPS.map(|(rule, _, _)| rule).to_vec();
        known.dedup();
        let rule = options.rule.unwrap_or_default().to_owned();
        return Err(RunError::Rule { rule, known: known.join(", ") });
    }
    let target = Target::new(options)?;
    let mut counts = Counts::default();
    for (rule, title, cases) in groups(options.rule) {
        let mut recorder = Recorder::default();
        // What one group left behind is nothing to the next. If it cannot be removed, the cases
        // may tell why.
        let emptied = target.empty();
        let done = cases(&target, &mut recorder);
        if let Err(trouble) = emptied.and(done) {
            recorder.broke_off(&trouble);
        }
        let group = Group { rule, title, cases: recorder.cases };
        counts.add(&group);
        each(&group);
    }
    // Nothing is left to be told: a list that cannot be emptied has failed already.
    let _: Result<(), Trouble> = target.empty();
    Ok(counts)
}

/// The groups of one rule, or all.
fn groups(rule: Option<&str>) -> impl Iterator<Item = (&'static str, &'static str, cases::Cases)> {
    cases::GROUPS.into_iter().filter(move |(of, _, _)| rule.is_none_or(|rule| rule == *of))
}
