//! Black-box tests of the staging interface of IMA's measurement list: for a kernel, or for
//! a replacement of one, in each of its dialects ([`Dialect`]).
//!
//! [`run`] needs only a directory with the securityfs files. The caller adds the records
//! ([`Measure`]). Each [`Case`] is named after the behaviour it checks, each [`Group`] after a part
//! of the interface, with the same number in all dialects; [`Ktap`] prints them in the format of the
//! kernel's own tests. Other programs may be measured during the run: a case that needs a list
//! without growth is retried if the list grew.
//!
//! Expectations are the observed behaviour of kernels with these patches; for the dialect `trim`,
//! with the fixes of our own implementation. Behaviour during shutdown is tested only with
//! [`Options::machine`]. Not tested: calls no safe program can make (a bad pointer, mmap), and
//! allocation failures. On FUSE, calls that never reach the file system are skipped.
#![forbid(unsafe_code)]

mod cases;
mod errno;
mod ktap;
mod options;
mod report;
mod target;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

pub use ima_list::Duplicates;
pub use ima_securityfs::Dialect;
pub use ktap::Ktap;
pub use options::{Machine, Measure, Options, RunError, Step};
pub use report::{Case, Counts, Group, Verdict};

use cases::groups;
use report::Recorder;
use target::{CURRENT, STAGED, TRIM_LOG, Target, Trouble};

/// Detects the dialect of the interface in `dir` by the names and modes of its files.
///
/// # Errors
/// [`RunError::File`] if there is no list, [`RunError::NoDialect`] if the list is read-only.
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

/// Tests the interface, and calls `each` with every completed group of cases. Afterwards the list
/// contains only records that other programs added.
///
/// # Errors
/// [`RunError`]; in that case the list is unchanged.
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
        // A group must not see records of the previous one. If emptying the list fails, the cases
        // still run: they may show the cause.
        let emptied = target.empty();
        let done = (part.cases)(&target, &mut recorder);
        if let Err(trouble) = emptied.and(done) {
            recorder.broke_off(&trouble);
        }
        let group = Group { rule: part.rule, title: part.title, cases: recorder.cases };
        counts.add(&group);
        each(&group);
    }
    // A failure needs no report: on a list that cannot be emptied, cases have failed already.
    let _: Result<(), Trouble> = target.empty();
    Ok(counts)
}
