//! A mounted sandbox for tests.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use ima_log::{Bank, Format, Records};
use imastage_sandbox::{
    Config, Sandbox, TpmChoice,
    control::{Answer, Command as Ask, Measured, ask},
};
use tempfile::TempDir;

/// Waits until a condition is true. The limit allows for a machine with a tenfold overload.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    const LONGEST: Duration = Duration::from_secs(300);
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < LONGEST, "timed out: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Serializes the tests: a child process that another test starts has all open files until execve.
static ALONE: Mutex<()> = Mutex::new(());

pub struct Mounted {
    pub sandbox: Option<Sandbox>,
    pub dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Mounted {
    /// `None`, with a message, if FUSE is not available.
    pub fn new(tpm: TpmChoice) -> Option<Mounted> {
        Mounted::with(tpm, |_| {})
    }

    /// As [`Mounted::new`], with a changed configuration.
    pub fn with(tpm: TpmChoice, change: impl FnOnce(&mut Config)) -> Option<Mounted> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().join("ima"), tpm);
        // Programs executed by other processes would add records.
        config.watch = false;
        change(&mut config);
        if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
            eprintln!("SKIPPED: /dev/fuse: {error}");
            return None;
        }
        let sandbox = Sandbox::start(&config).unwrap();
        Some(Mounted { sandbox: Some(sandbox), dir, _alone: alone })
    }

    pub fn mount(&self) -> PathBuf {
        self.dir.path().join("ima")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.mount().join(name)
    }

    pub fn measure(&self, paths: &[PathBuf]) -> Measured {
        match self.ask(&Ask::Measure { paths: paths.to_vec() }).unwrap() {
            Answer::Done(measured) => measured,
            other => panic!("{other:?}"),
        }
    }

    pub fn ask(&self, command: &Ask) -> io::Result<Answer> {
        ask(&self.mount(), command, &mut |_| {})
    }

    /// Creates new files with distinct contents and measures them.
    pub fn add(&self, names: &[&str]) {
        let paths: Vec<PathBuf> = names
            .iter()
            .map(|name| {
                let path = self.dir.path().join(name);
                fs::write(&path, name).unwrap();
                path
            })
            .collect();
        assert_eq!(self.measure(&paths).added, names.len() as u64);
    }

    pub fn count(&self) -> u64 {
        let text = fs::read_to_string(self.file("runtime_measurements_count")).unwrap();
        text.trim().parse().unwrap()
    }

    pub fn records(&self, name: &str) -> Vec<String> {
        let list = fs::read(self.file(name)).unwrap();
        Records::new(&list, Format::native(Bank::Sha1))
            .map(|record| {
                let name = record.unwrap().event_name().unwrap().to_vec();
                let name = String::from_utf8(name).unwrap();
                name.rsplit('/').next().unwrap().to_owned()
            })
            .collect()
    }

    pub fn request(&self, name: &str, request: &str) -> Result<(), i32> {
        let mut file = File::options().write(true).open(self.file(name)).map_err(raw)?;
        let written = file.write(request.as_bytes()).map_err(raw)?;
        assert_eq!(written, request.len());
        Ok(())
    }
}

pub fn raw(error: io::Error) -> i32 {
    error.raw_os_error().unwrap()
}

pub const EBUSY: i32 = 16;
pub const EEXIST: i32 = 17;
pub const EINVAL: i32 = 22;
pub const ENOENT: i32 = 2;
pub const EACCES: i32 = 13;
pub const ENOMEM: i32 = 12;
pub const EIO: i32 = 5;
pub const ESTALE: i32 = 116;

pub const CURRENT: &str = "binary_runtime_measurements";
pub const STAGED: &str = "binary_runtime_measurements_staged";
pub const TRIM_LOG: &str = "ima_trim_log";
