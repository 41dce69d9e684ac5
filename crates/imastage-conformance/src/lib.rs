//! Black-box tests of the staging interface of IMA's measurement list: for a kernel, or for
//! a replacement of one, in each of its dialects ([`Dialect`]).
//!
//! [`run`] needs only a directory with the securityfs files, and a program for processes that open
//! files and add records ([`Options::helper`]); the calling process does not fork while a file is
//! open. Each [`Case`] is named after the behaviour it checks, each [`Group`] after a part
//! of the interface, with the same number in all dialects; [`Ktap`] prints them in the format of the
//! kernel's own tests. Other programs may be measured during the run: a case that needs a list
//! without growth is retried if the list grew.
//!
//! Expectations are the observed behaviour of kernels with these patches; for the dialect `trim`,
//! with the fixes of our own implementation. Behaviour during shutdown is tested only with
//! [`Options::machine`]. Not tested: calls no safe program can make (a bad pointer, mmap), and
//! allocation failures. On FUSE, calls that never reach the file system are skipped.
#![forbid(unsafe_code)]

mod args;
mod cases;
mod errno;
mod helper;
mod ktap;
mod lock;
mod options;
mod report;
mod target;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

pub use args::Args;
pub use helper::{HELPER, serve_helper};
pub use ima_list::Duplicates;
pub use ima_securityfs::Dialect;
pub use ktap::Ktap;
pub use lock::Locked;
pub use options::{Adding, Machine, Measure, Options, RunError, Step};
pub use report::{Case, Counts, Group, Listed, Verdict};

use cases::{Part, groups};
use report::{LOCKED, Recorder};
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

/// The groups of `dialect` and `rule`, or of all. Reads no file.
///
/// # Errors
/// [`RunError::Rule`] if there are none.
pub fn list(dialect: Option<Dialect>, rule: Option<&str>) -> Result<Vec<Listed>, RunError> {
    let listed = cases::list(dialect, rule);
    if listed.is_empty() {
        let known = cases::list(dialect, None).into_iter().map(|group| group.rule);
        return Err(unknown(rule, known));
    }
    Ok(listed)
}

/// Tests the interface, and calls `each` with every completed group of cases. Afterwards the list
/// contains only records that other programs added.
///
/// If the list is locked against writers after a group, the remaining groups are skipped.
///
/// # Errors
/// [`RunError`]; in that case the list is unchanged.
pub fn run(options: &Options<'_>, each: &mut dyn FnMut(&Group)) -> Result<Counts, RunError> {
    check_rule(options)?;
    let target = Target::new(options)?;
    let mut counts = Counts::default();
    let mut locked = false;
    for part in groups(options) {
        let mut recorder = Recorder::default();
        if locked {
            recorder.skip("all cases of the group", LOCKED);
        } else {
            run_part(&target, part, &mut recorder);
            if let Some(why) = target.locked() {
                recorder.locked(&why);
                locked = true;
            }
        }
        let Part { rule, title, kernel_bug, .. } = *part;
        let group = Group { rule, title, kernel_bug, cases: recorder.cases };
        counts.add(&group);
        each(&group);
    }
    // A failure needs no report: on a list that cannot be emptied, cases have failed already.
    let _: Result<(), Trouble> = target.empty();
    Ok(counts)
}

fn run_part(target: &Target<'_>, part: &Part, recorder: &mut Recorder) {
    // A group must not see records of the previous one. If emptying the list fails, the cases
    // still run: they may show the cause.
    let emptied = target.empty();
    let done = (part.cases)(target, recorder);
    if let Err(trouble) = emptied.and(done) {
        recorder.broke_off(&trouble);
    }
}

/// Checks that `options` select a group.
fn check_rule(options: &Options<'_>) -> Result<(), RunError> {
    if groups(options).next().is_some() {
        return Ok(());
    }
    let all = Options { rule: None, ..*options };
    let Some(rule) = options.rule else { return Err(unknown(None, [].into_iter())) };
    let needed = cases::needed(options.dialect, rule).filter(|_| !options.critical_data);
    match needed {
        Some(needed) => {
            Err(RunError::Option { rule: rule.to_owned(), option: needed.option, why: needed.why })
        }
        None => Err(unknown(Some(rule), groups(&all).map(|part| part.rule))),
    }
}

fn unknown(rule: Option<&str>, known: impl Iterator<Item = &'static str>) -> RunError {
    let mut known: Vec<_> = known.collect();
    known.dedup();
    RunError::Rule { rule: rule.unwrap_or_default().to_owned(), known: known.join(", ") }
}
