//! Reproducers of kernel findings on the staging interface. Each answers whether this kernel shows
//! the behaviour; docs/upstream describes them. Some leave the list locked until reboot.

use std::{
    fmt,
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

/// A finding, as on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Finding {
    /// A child that inherits a writer's descriptor locks the list until reboot.
    WriterLockFork,
    /// Closing one of a writer's two descriptors in another thread frees the lock too early.
    TwoDescriptors,
    /// Deleting a staged batch without memory for a new hash table loses the batch.
    DeleteWithoutMemory,
    /// Deleting N records is possible while older ones are staged.
    DeleteWhileStaged,
}

/// All findings, in the order in which one boot can show them.
pub const FINDINGS: [Finding; 4] = [
    Finding::DeleteWhileStaged,
    Finding::DeleteWithoutMemory,
    Finding::TwoDescriptors,
    Finding::WriterLockFork,
];

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
        Finding::WriterLockFork => writer_lock_fork(&list),
        Finding::TwoDescriptors => two_descriptors(&list),
        Finding::DeleteWithoutMemory => delete_without_memory(&list),
        Finding::DeleteWhileStaged => delete_while_staged(&list),
    }
}

/// The writer closes its descriptor while a child has a copy, and opens the list again; then the
/// child's copy is closed, and then the writer's.
fn writer_lock_fork(list: &List) -> io::Result<Answer> {
    let first = list.staged()?;
    // The copy becomes the child's standard output; it ends when its standard input does.
    let mut child = Command::new("/bin/busybox")
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::from(first.try_clone()?))
        .spawn()?;
    drop(first);
    let again = list.staged();
    drop(child.stdin.take());
    child.wait()?;
    let reopened = match again {
        Ok(again) => {
            drop(again);
            "was possible"
        }
        Err(error) if error.kind() == ErrorKind::ResourceBusy => "was refused with EBUSY",
        Err(error) => return Err(error),
    };
    // Nobody has a descriptor now; a kernel could need a moment for the child's.
    let mut refused = 0;
    for _ in 0..20 {
        match list.staged() {
            Ok(_) => {
                let seen = format!(
                    "opening for writing beside the child {reopened}; after all were closed it was \
                     possible, after {refused} EBUSY"
                );
                return Ok(Answer { shown: false, seen });
            }
            Err(error) if error.kind() == ErrorKind::ResourceBusy => refused += 1,
            Err(error) => return Err(error),
        }
        thread::sleep(Duration::from_millis(50));
    }
    let reads = File::open(list.path("binary_runtime_measurements")).is_ok();
    let seen = format!(
        "all descriptors are closed: {refused} of {refused} opens for writing gave EBUSY in 1 s; \
         opening for reading {}",
        if reads { "is possible" } else { "is refused, too" }
    );
    Ok(Answer { shown: true, seen })
}

/// Another thread closes the first of two descriptors of a writer.
fn two_descriptors(list: &List) -> io::Result<Answer> {
    let first = list.staged()?;
    let second = match list.staged() {
        Ok(second) => second,
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            let seen = "a writer cannot open a second descriptor: EBUSY".to_owned();
            return Ok(Answer { shown: false, seen });
        }
        Err(error) => return Err(error),
    };
    let closing = thread::spawn(move || drop(first));
    let _ = closing.join();
    let reader = File::open(list.path("binary_runtime_measurements"));
    drop(second);
    match reader {
        Ok(_) => Ok(Answer {
            shown: true,
            seen: "a reader opened the list while a writer's descriptor was open".to_owned(),
        }),
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            let seen = "a reader was refused while the second descriptor was open".to_owned();
            Ok(Answer { shown: false, seen })
        }
        Err(error) => Err(error),
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
        let before = read(&mut file)?;
        fs::write(fail_nth, nth.to_string())?;
        let deleted = file.write(b"D\n");
        // Reading the file resets the counter; 0 means that an allocation was failed.
        let left = fs::read_to_string(fail_nth)?;
        fs::write(fail_nth, "0")?;
        drop(file);
        let after = read(&mut File::open(list.path(STAGED))?)?;
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
    let staged = read(&mut File::open(list.path(STAGED))?)?.len();
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

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
