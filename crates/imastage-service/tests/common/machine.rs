//! A sandbox with a TPM, and a service on it that tells somebody how it is.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use imastage_client::{
    health::{Level, State},
    wire::{Status, Verdict},
};
use imastage_sandbox::{
    Config as Kernel, Sandbox, TpmChoice,
    control::{Answer, Command as Ask, ask},
};
use imastage_service::{Config, Service};
use imastage_source::DeleteMode;
use imastage_store::Note;
use tempfile::TempDir;

use crate::common::{open_soon, record};

/// Fields are dropped in this order.
pub struct Machine {
    pub sandbox: Sandbox,
    pub measured: usize,
    pub dir: TempDir,
}

impl Machine {
    /// `None`, loudly, where FUSE cannot be had.
    pub fn start(change: impl FnOnce(&mut Kernel)) -> Option<Machine> {
        if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
            eprintln!("SKIPPED: /dev/fuse: {error}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::new(dir.path().join("ima"), TpmChoice::Swtpm);
        kernel.watch = false;
        change(&mut kernel);
        Some(Machine { sandbox: Sandbox::start(&kernel).unwrap(), measured: 0, dir })
    }

    pub fn ima(&self) -> PathBuf {
        self.dir.path().join("ima")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn measure(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let path = self.dir.path().join("replayed");
        let new = self.measured..self.measured + count;
        fs::write(&path, new.flat_map(|n| record(n).into_bytes()).collect::<Vec<u8>>()).unwrap();
        self.ask(&Ask::Replay { path, rate: None });
        self.measured += count;
    }

    pub fn ask(&self, command: &Ask) -> Answer {
        ask(&self.ima(), command, &mut |_| {}).unwrap()
    }

    /// Measures these files.
    pub fn measure_files(&self, paths: &[PathBuf]) {
        self.ask(&Ask::Measure { paths: paths.to_vec() });
    }

    /// Measures a file and deletes its record.
    pub fn steal_one(&self) {
        let path = self.dir.path().join("stolen");
        fs::write(&path, "stolen").unwrap();
        self.measure_files(&[path]);
        fs::write(self.ima().join("binary_runtime_measurements"), "1\n").unwrap();
    }

    pub fn in_list(&self) -> u64 {
        let counts = self.sandbox.list().counts();
        counts.current + counts.staged
    }

    /// Makes a request of one of the list's files.
    pub fn write(&self, file: &str, request: &str) {
        let mut file = open_soon(&self.ima().join(file), File::options().write(true));
        file.write_all(request.as_bytes()).unwrap();
    }

    pub fn service_with(&self, change: impl FnOnce(&mut Config)) -> Service {
        self.service_of(None, |config| {
            config.alert = Some(self.alert());
            change(config);
        })
    }

    /// Without an alert.
    pub fn service_of(
        &self,
        mode: Option<DeleteMode>,
        change: impl FnOnce(&mut Config),
    ) -> Service {
        let mut config = Config::new(self.state());
        config.every = Duration::from_secs(3600);
        config.tpm = self.sandbox.tpm_endpoint().cloned();
        change(&mut config);
        Service::start(config, imastage_source::open(&self.ima(), mode).unwrap()).unwrap()
    }

    pub fn service(&self) -> Service {
        self.service_with(|_| {})
    }

    /// Writes a file with the name of the state.
    pub fn alert(&self) -> String {
        format!("touch '{}/told-'\"$IMASTAGE_STATE\"", self.dir.path().display())
    }

    pub fn wait_for_alert(&self, state: State) {
        let path = self.dir.path().join(format!("told-{state}"));
        wait_until(&format!("the alert for {state}"), || path.exists());
        fs::remove_file(path).unwrap();
    }

    pub fn notes(&self) -> Vec<Note> {
        imastage_store::notes(&self.state()).unwrap()
    }

    /// The epoch's first segment.
    pub fn segment(&self) -> PathBuf {
        let dir = self.state().join("epochs/0001");
        let mut found = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        found.find(|path| path.extension().is_some_and(|end| end == "ima")).unwrap()
    }
}

#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(90), "{what}: waited for in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
pub fn assert_well(status: &Status) {
    assert_eq!(status.verdict, Verdict::Consistent { records: status.records }, "{status:?}");
    assert_eq!((status.health.state, status.health.level()), (State::Ok, Level::Fine));
}
