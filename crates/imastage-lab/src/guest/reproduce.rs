//! Reproducers of kernel findings that `imastage conformance --hazards` does not try. Each answers
//! whether this kernel shows the behaviour; docs/upstream describes them.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// A finding, as on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Finding {
    /// Deleting a staged batch without memory for a new hash table loses the batch.
    DeleteWithoutMemory,
    /// Deleting N records is possible while older ones are staged.
    DeleteWhileStaged,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self);
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// The answer of a reproducer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether the kernel shows the behaviour.
    pub shown: bool,
    /// What was seen.
    pub seen: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.shown { "yes" } else { "no" }, self.seen)
    }
}

/// Runs the reproducer of a finding on the list below `dir`.
///
/// # Errors
/// [`io::Error`] if the behaviour cannot be tried.
pub fn reproduce(finding: Finding, dir: &Path) -> io::Result<Answer> {
    let list = List { dir: dir.to_owned() };
    match finding {
        Finding::DeleteWithoutMemory => delete_without_memory(&list),
        Finding::DeleteWhileStaged => delete_while_staged(&list),
    }
}

/// Deletes a batch while the N-th allocation of the request fails, for each N.
fn delete_without_memory(list: &List) -> io::Result<Answer> {
    /// A request makes fewer allocations.
    const ALLOCATIONS: u32 = 50;
    // /proc/thread-self/fail-nth: Documentation/fault-injection/fault-injection.rst.
    let fail_nth = Path::new("/proc/thread-self/fail-nth");
    fs::metadata(fail_nth).map_err(|error| {
        io::Error::new(error.kind(), format!("CONFIG_FAULT_INJECTION is needed: {error}"))
    })?;
    // By default, only allocations that cannot wait are failed.
    for (file, value) in [("ignore-gfp-wait", "N"), ("verbose", "0")] {
        let path = Path::new("/sys/kernel/debug/failslab").join(file);
        fs::write(&path, value).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
    }
    for nth in 1..=ALLOCATIONS {
        list.measure(&format!("enomem-{nth}"))?;
        let mut file = list.staged()?;
        file.write_all(b"A\n")?;
        let mut before = Vec::new();
        file.read_to_end(&mut before)?;
        fs::write(fail_nth, nth.to_string())?;
        let deleted = file.write(b"D\n");
        // Reading the file resets the counter; 0 means that an allocation was failed.
        let left = fs::read_to_string(fail_nth)?;
        fs::write(fail_nth, "0")?;
        drop(file);
        let after = fs::read(list.path(STAGED))?;
        match deleted {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && after.is_empty() => {
                let seen = format!(
                    "D failed with ENOMEM at allocation {nth}, and {} bytes of records are gone",
                    before.len()
                );
                return Ok(Answer { shown: true, seen });
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                list.staged()?.write_all(b"D\n")?;
            }
            Err(error) => return Err(error),
            Ok(_) if left.trim() != "0" => {
                let seen = format!("D makes fewer than {nth} allocations; none loses records");
                return Ok(Answer { shown: false, seen });
            }
            Ok(_) => {}
        }
    }
    Err(io::Error::other(format!("D made more than {ALLOCATIONS} allocations")))
}

/// Stages records, measures a file, and deletes one record of the current list.
fn delete_while_staged(list: &List) -> io::Result<Answer> {
    list.measure("staged-1")?;
    list.staged()?.write_all(b"A\n")?;
    list.measure("current-1")?;
    let path = list.path("binary_runtime_measurements");
    let deleted = File::options().read(true).write(true).open(&path)?.write(b"1\n");
    let staged = fs::read(list.path(STAGED))?.len();
    list.staged()?.write_all(b"D\n")?;
    match deleted {
        Ok(_) => {
            let seen = format!("a record was deleted while {staged} older bytes were staged");
            Ok(Answer { shown: true, seen })
        }
        Err(error) => Ok(Answer { shown: false, seen: format!("N failed: {error}") }),
    }
}

const STAGED: &str = "binary_runtime_measurements_staged";

struct List {
    dir: PathBuf,
}

impl List {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Opens the staged list for reading and writing.
    fn staged(&self) -> io::Result<File> {
        File::options().read(true).write(true).open(self.path(STAGED))
    }

    /// Has the kernel measure a new file.
    fn measure(&self, name: &str) -> io::Result<()> {
        // Not below /tmp or /run, which are tmpfs: policies exclude it.
        let path = Path::new("/").join(name);
        fs::write(&path, name)?;
        fs::read(&path).map(drop)
    }
}
