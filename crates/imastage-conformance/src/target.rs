//! The interface under test: opens, reads, writes, and the records that cases add.

use std::{
    ffi::OsString,
    fmt::Display,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use ima_list::Duplicates;
use ima_log::{Bank, Format, Records};
use ima_securityfs::Dialect;
use rustix::{
    fs::{Mode, OFlags},
    thread::{CapabilitySet, capabilities},
};
use tempfile::TempDir;

use crate::{
    errno::{Answer, Errno, wrote},
    helper::Helpers,
    lock::{self, Locked},
    options::{Adding, Machine, Measure, Options, RunError, Step},
};

/// The interface under test.
pub(crate) struct Target<'a> {
    dir: &'a Path,
    dialect: Dialect,
    duplicates: Duplicates,
    measure: Measure<'a>,
    violate: Option<&'a Adding<'a>>,
    machine: Option<&'a Machine<'a>>,
    helpers: Helpers,
    /// The directory with the files to measure.
    work: TempDir,
    made: AtomicUsize,
    fuse: bool,
    /// Whether this process has CAP_DAC_OVERRIDE.
    overrides: bool,
}

/// A failed step without which the rest of the group cannot run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Trouble(pub(crate) String);

/// The task that opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opener {
    SameThread,
    OtherThread,
    OtherProcess,
}

/// The records of a part, each as its bytes in the sha1 form.
pub(crate) type List = Vec<Vec<u8>>;

/// The files that most cases use.
pub(crate) const CURRENT: &str = "binary_runtime_measurements_sha1";
pub(crate) const STAGED: &str = "binary_runtime_measurements_sha1_staged";
pub(crate) const COUNT: &str = "runtime_measurements_count";
pub(crate) const TRIM_LOG: &str = "ima_trim_log";
pub(crate) const VIOLATIONS: &str = "violations";

/// FUSE_SUPER_MAGIC (linux/magic.h).
const FUSE_MAGIC: rustix::fs::FsWord = 0x6573_5546;

/// Read limit for one file, in bytes.
const LONGEST_LIST: u64 = 1 << 30;

impl<'a> Target<'a> {
    pub(crate) fn new(options: &Options<'a>) -> Result<Target<'a>, RunError> {
        let at = |path: PathBuf| move |error| RunError::File { path, error };
        let dir = options.dir;
        // Before any file of the list is opened.
        let helpers = Helpers::start(options.helper)
            .map_err(|error| RunError::Helper { program: options.helper.to_owned(), error })?;
        let work = tempfile::tempdir().map_err(at(std::env::temp_dir()))?;
        let magic = rustix::fs::statfs(dir).map_err(|error| at(dir.to_owned())(error.into()))?;
        let may = capabilities(None).map(|sets| sets.effective);
        let target = Target {
            dir,
            dialect: options.dialect,
            duplicates: options.duplicates,
            measure: options.measure,
            violate: options.violate,
            machine: options.machine,
            helpers,
            work,
            made: AtomicUsize::new(0),
            fuse: magic.f_type == FUSE_MAGIC,
            overrides: may.is_ok_and(|may| may.contains(CapabilitySet::DAC_OVERRIDE)),
        };
        if let Some(locked) = Locked::check(dir, CURRENT, OFlags::RDONLY) {
            return Err(RunError::Locked(locked));
        }
        let mut all = List::new();
        for name in target.parts() {
            let bytes = fs::read(target.path(name)).map_err(at(target.path(name)))?;
            // An unknown form counts as one record.
            all.extend(parse(&bytes).unwrap_or_else(|_| vec![bytes]));
        }
        let needed = match &*all {
            [] => false,
            [record] => !is_boot_aggregate(record),
            _ => true,
        };
        if needed && !options.destructive && !(target.fuse && lock::is_sandbox(dir)) {
            return Err(RunError::WouldDelete { dir: dir.to_owned(), records: all.len() });
        }
        // After the reads: a kernel that does not unlock the list after a writer fails cases.
        if let Some(locked) = target.locked() {
            return Err(RunError::Locked(locked));
        }
        target.check_measuring()?;
        Ok(target)
    }

    /// Whether writers are refused although this program has no file of the list open.
    pub(crate) fn locked(&self) -> Option<Locked> {
        Locked::check(self.dir, self.writable(), OFlags::RDWR)
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(crate) fn duplicates(&self) -> Duplicates {
        self.duplicates
    }

    /// Whether records can be deleted by number.
    pub(crate) fn deletes_by_number(&self) -> bool {
        self.duplicates != Duplicates::Flush
    }

    /// The file to which the number of records to delete is written.
    pub(crate) fn numbered(&self) -> &'static str {
        match self.dialect {
            Dialect::Linux72 => CURRENT,
            Dialect::V4 => STAGED,
            Dialect::Trim => TRIM_LOG,
        }
    }

    /// A file whose mode lets root write.
    pub(crate) fn writable(&self) -> &'static str {
        if self.dialect == Dialect::Trim { TRIM_LOG } else { STAGED }
    }

    /// One file of each part.
    pub(crate) fn parts(&self) -> &'static [&'static str] {
        if self.dialect.stages() { &[CURRENT, STAGED] } else { &[CURRENT] }
    }

    /// The suffix of the file names of each part.
    pub(crate) fn suffixes(&self) -> &'static [&'static str] {
        if self.dialect.stages() { &["", "_staged"] } else { &[""] }
    }

    /// Whether this process can open a file for writing against its mode (CAP_DAC_OVERRIDE).
    pub(crate) fn overrides_modes(&self) -> bool {
        self.overrides
    }

    /// Whether the files are on FUSE, which does not pass all system calls to the file system.
    pub(crate) fn is_fuse(&self) -> bool {
        self.fuse
    }

    /// Whether shutdown steps can be performed.
    pub(crate) fn goes_down(&self) -> bool {
        self.machine.is_some()
    }

    /// Performs a shutdown step, if the options can.
    pub(crate) fn step(&self, step: Step) -> Result<(), Trouble> {
        let Some(machine) = self.machine else { return Ok(()) };
        machine(step).map_err(|error| Trouble(format!("shutdown step {step:?}: {error}")))
    }

    /// The directory with the files to measure.
    pub(crate) fn work(&self) -> &Path {
        self.work.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The banks that have files.
    pub(crate) fn banks(&self) -> Vec<Bank> {
        let has = |bank: &Bank| self.path(&file_of("binary", *bank, "")).exists();
        Bank::ALL.into_iter().filter(has).collect()
    }

    /// open(2) by this thread.
    pub(crate) fn open(&self, name: &str, flags: OFlags) -> Answer<File> {
        let mode = Mode::from_raw_mode(0o600);
        Ok(rustix::fs::open(self.path(name), flags | OFlags::CLOEXEC, mode)?.into())
    }

    /// open(2) and close(2), by `opener`.
    pub(crate) fn try_open(&self, name: &str, flags: OFlags, opener: Opener) -> Answer<()> {
        match opener {
            Opener::SameThread => self.open(name, flags).map(drop),
            Opener::OtherThread => {
                let open = || self.open(name, flags).map(drop);
                thread::scope(|scope| scope.spawn(open).join().unwrap_or(Err(Errno(0))))
            }
            Opener::OtherProcess => self.helpers.open(&self.path(name), flags),
        }
    }

    /// Other processes.
    pub(crate) fn helpers(&self) -> &Helpers {
        &self.helpers
    }

    /// open(2), one write(2), close(2).
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Answer<usize> {
        Ok(self.open(name, OFlags::WRONLY)?.write(bytes)?)
    }

    /// Opens a file and reads it to its end.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, Trouble> {
        let mut file = self
            .open(name, OFlags::RDONLY)
            .map_err(|errno| Trouble(format!("opening {name} for reading: {errno}")))?;
        read_on(&mut file)
    }

    /// Opens a file of a part and parses its records.
    pub(crate) fn list(&self, name: &str) -> Result<List, Trouble> {
        parse(&self.read(name)?).map_err(|why| Trouble(format!("{name}: {why}")))
    }

    /// The value of a counter file.
    pub(crate) fn number(&self, name: &str) -> Result<u64, Trouble> {
        let text = self.read(name)?;
        let text = String::from_utf8_lossy(&text);
        text.strip_suffix('\n').and_then(|digits| digits.parse().ok()).ok_or_else(|| {
            Trouble(format!("{name}: expected digits and a newline, found {text:?}"))
        })
    }

    /// A write that must succeed.
    pub(crate) fn must(&self, name: &str, request: &str) -> Result<(), Trouble> {
        match self.write(name, request.as_bytes()) {
            Ok(len) if len == request.len() => Ok(()),
            Ok(len) => Err(Trouble(format!("{request:?} to {name}: {len} bytes written"))),
            Err(errno) => Err(Trouble(format!("{request:?} to {name}: {errno}"))),
        }
    }

    /// Adds records of `n` new files.
    pub(crate) fn add(&self, n: usize) -> Result<Vec<PathBuf>, Trouble> {
        let paths = (0..n).map(|_| self.make()).collect::<io::Result<Vec<_>>>();
        let paths =
            paths.map_err(|error| Trouble(format!("creating a file to measure: {error}")))?;
        self.measure_all(&paths)?;
        Ok(paths)
    }

    /// Adds records until the current list has at least `n`.
    pub(crate) fn at_least(&self, n: usize) -> Result<(), Trouble> {
        let there = self.list(CURRENT)?.len();
        if there < n {
            self.add(n - there)?;
        }
        Ok(())
    }

    /// The request that deletes the first `n` current records.
    pub(crate) fn number_request(&self, n: impl Display) -> Result<String, Trouble> {
        Ok(match self.dialect {
            Dialect::Trim => format!("{}:{n}\n", self.number(TRIM_LOG)?),
            Dialect::Linux72 | Dialect::V4 => format!("{n}\n"),
        })
    }

    /// Deletes `n` current records by number, which must succeed.
    pub(crate) fn must_delete(&self, n: usize) -> Result<(), Trouble> {
        self.must(self.numbered(), &self.number_request(n)?)
    }

    /// Requests deletion of the first `n` current records: `ok`, or the name of the error.
    pub(crate) fn delete(&self, n: impl Display) -> Result<String, Trouble> {
        let request = self.number_request(n)?;
        Ok(wrote(&self.write(self.numbered(), request.as_bytes()), request.len()))
    }

    /// Deletes the staged records.
    pub(crate) fn unstage(&self) -> Result<(), Trouble> {
        match self.write(STAGED, b"D\n") {
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Trouble(format!("\"D\\n\" to {STAGED}: {errno}"))),
        }
    }

    /// Empties both parts.
    pub(crate) fn empty(&self) -> Result<(), Trouble> {
        if self.dialect == Dialect::Trim {
            return self.trim_all();
        }
        self.unstage()?;
        match self.write(STAGED, b"A\n") {
            // If records remain staged, the cases fail.
            Ok(_) | Err(Errno::ENOENT | Errno::EEXIST) => {}
            Err(errno) => return Err(Trouble(format!("\"A\\n\" to {STAGED}: {errno}"))),
        }
        self.unstage()
    }

    /// Trims all records; does nothing if deletion by number is refused.
    fn trim_all(&self) -> Result<(), Trouble> {
        if !self.deletes_by_number() {
            return Ok(());
        }
        let records = self.list(CURRENT)?.len();
        // If the request is refused, the cases fail.
        self.delete(records).map(drop)
    }

    /// The files of `paths` that have records in `list`, as indices into `paths`, in list order.
    pub(crate) fn find(paths: &[PathBuf], list: &List) -> Vec<usize> {
        let name = |bytes: &Vec<u8>| {
            let record = Records::new(bytes, Format::native(Bank::Sha1)).next()?.ok()?;
            record.event_name().map(<[u8]>::to_vec)
        };
        let names = list.iter().filter_map(name);
        names
            .filter_map(|name| {
                paths.iter().position(|path| path.as_os_str().as_encoded_bytes() == name)
            })
            .collect()
    }

    /// Adds a violation of a new file and returns its path; `None` if the options cannot.
    pub(crate) fn violate(&self) -> Result<Option<PathBuf>, Trouble> {
        let Some(violate) = self.violate else { return Ok(None) };
        let path = self.make();
        let path = path.map_err(|error| Trouble(format!("creating a file to measure: {error}")))?;
        violate(std::slice::from_ref(&path))
            .map_err(|error| Trouble(format!("adding a violation: {error}")))?;
        Ok(Some(path))
    }

    /// Has a file measured, possibly again.
    pub(crate) fn measure(&self, path: &Path) -> Result<(), Trouble> {
        self.measure_all(&[path.to_owned()])
    }

    /// Executes a file whose record must then be in the list.
    fn check_measuring(&self) -> Result<(), RunError> {
        if matches!(self.measure, Measure::Call(_)) {
            return Ok(());
        }
        // If the command fails or the list is unreadable, cases fail.
        let measured = self.add(1).and_then(|paths| Ok((self.list(CURRENT)?, paths)));
        match measured {
            Ok((list, paths)) if Target::find(&paths, &list).is_empty() => {
                Err(RunError::NotMeasured { dir: self.work.path().to_owned() })
            }
            _ => Ok(()),
        }
    }

    fn measure_all(&self, paths: &[PathBuf]) -> Result<(), Trouble> {
        let done = match self.measure {
            Measure::Execute => paths.iter().try_for_each(|path| self.helpers.run(path, &[])),
            Measure::Command(command) => {
                // The path is an argument, so that a shell never reads it.
                let command = OsString::from(command.replace("{}", "\"$1\""));
                let run = |path: &PathBuf| {
                    let args = ["-c".as_ref(), &*command, "sh".as_ref(), path.as_os_str()];
                    self.helpers.run("/bin/sh".as_ref(), &args)
                };
                paths.iter().try_for_each(run)
            }
            Measure::Call(call) => call(paths),
        };
        done.map_err(|error| Trouble(format!("measuring: {error}")))
    }

    /// Replaces a measured file with a new file of equal content.
    pub(crate) fn recreate(&self, path: &Path) -> Result<(), Trouble> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        // The old file remains: otherwise the new one could reuse its inode.
        fs::rename(path, self.work.path().join(format!("old-{number}")))
            .and_then(|()| write_program(path))
            .map_err(|error| Trouble(format!("replacing a measured file: {error}")))
    }

    /// Creates a program whose path has about `len` bytes.
    pub(crate) fn make_long(&self, len: usize) -> Result<PathBuf, Trouble> {
        const COMPONENT: usize = 200;
        let make = || {
            let number = self.made.fetch_add(1, Ordering::Relaxed);
            let mut dir = self.work.path().join(format!("long-{number}"));
            while dir.as_os_str().len() + COMPONENT < len {
                dir.push("d".repeat(COMPONENT));
            }
            fs::create_dir_all(&dir)?;
            let left = len.saturating_sub(dir.as_os_str().len() + 1).max(1);
            let path = dir.join("f".repeat(left));
            write_program(&path)?;
            Ok(path)
        };
        make().map_err(|error: io::Error| {
            Trouble(format!("creating a file with a long path: {error}"))
        })
    }

    /// Whether a record is of a file created by this run.
    pub(crate) fn is_own(&self, record: &[u8]) -> bool {
        let dir = self.work.path().as_os_str().as_encoded_bytes();
        record.windows(dir.len()).any(|part| part == dir)
    }

    /// Creates a program that was never measured.
    fn make(&self) -> io::Result<PathBuf> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let path = self.work.path().join(format!("record-{number}"));
        write_program(&path)?;
        Ok(path)
    }
}

/// Whether a record is the first one of a boot, which every kernel adds.
fn is_boot_aggregate(bytes: &[u8]) -> bool {
    let record = Records::new(bytes, Format::native(Bank::Sha1)).next().and_then(Result::ok);
    let name = record.as_ref().and_then(|record| record.event_name());
    // Since Linux 7.3 it can be added at the end of the boot (CONFIG_IMA_INIT_LATE_SYNC).
    matches!(name, Some(b"boot_aggregate" | b"boot_aggregate_late"))
}

/// Writes a program that does nothing. Its content contains its path, so no two files are equal.
fn write_program(path: &Path) -> io::Result<()> {
    fs::write(path, format!("#!/bin/sh\n# {}\n", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// The name of a file of the list.
pub(crate) fn file_of(form: &str, bank: Bank, suffix: &str) -> String {
    format!("{form}_runtime_measurements_{bank}{suffix}")
}

/// Parses the records of a binary list in the sha1 form.
pub(crate) fn parse(bytes: &[u8]) -> Result<List, String> {
    Records::new(bytes, Format::native(Bank::Sha1))
        .map(|record| record.map(|record| record.as_bytes().to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

/// Reads from the current position to the end.
pub(crate) fn read_on(file: &mut File) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    let read = file.take(LONGEST_LIST).read_to_end(&mut bytes);
    read.map_err(|error| Trouble(format!("reading: {}", Errno::from(error))))?;
    Ok(bytes)
}

/// Reads from the beginning to the end.
pub(crate) fn read_anew(file: &mut File) -> Result<Vec<u8>, Trouble> {
    file.rewind().map_err(|error| Trouble(format!("lseek to 0: {}", Errno::from(error))))?;
    read_on(file)
}

/// The number of records deleted from the start of `before`, if `after` starts with the remaining
/// ones; `None` otherwise.
pub(crate) fn deleted(before: &List, after: &List) -> Option<usize> {
    (0..=before.len()).find(|n| before.get(*n..).is_some_and(|rest| after.starts_with(rest)))
}

/// `del=` and the number of deleted records.
pub(crate) fn told_deleted(before: &List, after: &List) -> String {
    deleted(before, after).map_or("not a deleted prefix".into(), |n| format!("del={n}"))
}
