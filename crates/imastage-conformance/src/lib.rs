//! Black-box tests of the staging interface of IMA's measurement list: for a kernel, or for
//! anything that stands in for one, in each of its dialects ([`Dialect`]).
//!
//! [`run`] works on a directory of securityfs's files alone. Records are made by whoever calls it
//! ([`Measure`]). Each [`Case`] is named after what it checks, in a [`Group`] that is named after
//! the part of the interface, numbered alike in all dialects; [`Ktap`] prints them as the kernel's
//! tests do. Other programs may be measured meanwhile: a case that needs a list which does not grow
//! is tried again when it does.
//!
//! What is expected is what kernels with these patches were seen to do, where those of the dialect
//! `trim` were mended: what our own would do. What a machine does that is going down is tried where
//! it can be brought to ([`Options::machine`]). Not tried is what no safe program can do (a bad
//! pointer, mmap) and an allocation that fails. On FUSE some calls are skipped that never reach the
//! file system.
#![forbid(unsafe_code)]

mod cases;
mod errno;
mod ktap;
mod report;
mod target;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

pub use ima_list::Duplicates;
pub use ima_securityfs::Dialect;
pub use ktap::Ktap;
pub use report::{Case, Counts, Group, Verdict};

use report::Recorder;
use target::{CURRENT, STAGED, TRIM_LOG, Target, Trouble};

/// Has these files measured, each of them anew, and returns when their records are in the list.
/// They are programs that can be executed and do nothing.
pub type Measure<'a> = dyn Fn(&[PathBuf]) -> io::Result<()> + Sync + 'a;

/// Has the machine do a step of going down, and returns when it did.
pub type Machine<'a> = dyn Fn(Step) -> io::Result<()> + Sync + 'a;

/// A step of a machine that is going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It stops measuring.
    Suspend,
    /// It writes the records for the next kernel, which never comes.
    Dump,
    /// All of it, and the next kernel takes the records over.
    Kexec,
    /// All of it, and the next kernel starts with an empty list.
    Restart,
}

/// What is tested, and how.
pub struct Options<'a> {
    /// The directory with the files, such as `/sys/kernel/security/integrity/ima`.
    pub dir: &'a Path,
    /// The interface that the files should have; see [`detect`].
    pub dialect: Dialect,
    /// What should become of records that are there already.
    pub duplicates: Duplicates,
    /// Makes records.
    pub measure: &'a Measure<'a>,
    /// Adds violations of files; without it their records are not tried.
    pub violate: Option<&'a Measure<'a>>,
    /// Brings the machine to go down; without it nothing is tested that only then shows.
    pub machine: Option<&'a Machine<'a>>,
    /// Whether records that are in the list may be deleted: they are lost to every verifier.
    pub destructive: bool,
    /// Whether the kernel should measure what it does itself: only that is tried then.
    pub critical_data: bool,
    /// Whether to try also what leaves the files of Linux 7.2 locked until the next boot.
    pub hazards: bool,
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
    /// Nothing can be deleted from this list.
    #[error(
        "{}: there is neither {STAGED} nor {TRIM_LOG}: this kernel cannot shorten its list, or was \
         built without (CONFIG_IMA_STAGING)",
        dir.display()
    )]
    NoDialect {
        /// The directory.
        dir: PathBuf,
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

/// The interface that the files in `dir` have, by which there are and what can be written to.
///
/// # Errors
/// [`RunError::File`] if there is no list, [`RunError::NoDialect`] if it can only be read.
pub fn detect(dir: &Path) -> Result<Dialect, RunError> {
    let path = dir.join(CURRENT);
    let meta = fs::metadata(&path).map_err(|error| RunError::File { path, error })?;
    let writable = meta.permissions().mode() & 0o220 != 0;
    let has = |name: &str| dir.join(name).exists();
    match (has(STAGED), has(TRIM_LOG), writable) {
        (true, _, true) => Ok(Dialect::Linux72),
        (true, _, false) => Ok(Dialect::V4),
        (false, true, _) => Ok(Dialect::Trim),
        (false, false, _) => Err(RunError::NoDialect { dir: dir.to_owned() }),
    }
}

/// Tests the interface, and gives each group of cases to `each` when it is done. The list is empty
/// afterwards, but for what others added.
///
/// # Errors
/// [`RunError`]; nothing was changed then.
pub fn run(options: &Options<'_>, each: &mut dyn FnMut(&Group)) -> Result<Counts, RunError> {
    if groups(options).next().is_none() {
        let all = Options { rule: None, ..*options };
        let mut known: Vec<_> = groups(&all).map(|part| part.rule).collect();
        known.dedup();
        let rule = options.rule.unwrap_or_default().to_owned();
        return Err(RunError::Rule { rule, known: known.join(", ") });
    }
    let target = Target::new(options)?;
    let mut counts = Counts::default();
    for part in groups(options) {
        let mut recorder = Recorder::default();
        // What one group left behind is nothing to the next. If it cannot be removed, the cases
        // may tell why.
        let emptied = target.empty();
        let done = (part.cases)(&target, &mut recorder);
        if let Err(trouble) = emptied.and(done) {
            recorder.broke_off(&trouble);
        }
        let group = Group { rule: part.rule, title: part.title, cases: recorder.cases };
        counts.add(&group);
        each(&group);
    }
    // Nothing is left to be told: a list that cannot be emptied has failed already.
    let _: Result<(), Trouble> = target.empty();
    Ok(counts)
}

/// The groups of one rule, or all.
fn groups<'a>(options: &'a Options<'_>) -> impl Iterator<Item = &'static cases::Part> + 'a {
    let of_rule = move |part: &&cases::Part| options.rule.is_none_or(|rule| rule == part.rule);
    cases::PARTS.iter().filter(|part| part.is_of(options)).filter(of_rule)
}
