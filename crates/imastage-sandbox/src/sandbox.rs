//! A running sandbox: configuration, start and end.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use fuser::{BackgroundSession, MountOption, SessionACL};
use ima_list::{Duplicates, Options, Rules, SharedList};
use ima_log::Bank;
use ima_securityfs::Dialect;
use imastage_tpm::{Endpoint, SharedTpm, Swtpm, Tpm, TpmError};

use crate::{
    Hazard, Ima, Kernel, Machine, Policy, SandboxError,
    control::{self, RUN_LINK},
    exec_watch,
    fault::Fault,
    faults::Faults,
    filesystem::Directory,
    run_dir::RunDir,
};

/// The configuration of a sandbox.
#[derive(Clone, Debug)]
pub struct Config {
    /// The mount point: created if it does not exist; must be empty.
    pub mount: PathBuf,
    /// The TPM to extend.
    pub tpm: TpmChoice,
    /// The interface of the files.
    pub dialect: Dialect,
    /// The treatment of duplicate records.
    pub duplicates: Duplicates,
    /// The banks that have files, and the banks of a new swtpm; `None` selects all banks of the
    /// TPM.
    pub banks: Option<Vec<Bank>>,
    /// The kernel to emulate.
    pub kernel: Kernel,
    /// Whether the kernel measures its own kexec and trim events.
    pub critical_data: bool,
    /// Whether executed programs are measured, if permitted.
    pub watch: bool,
    /// The known bugs of Linux 7.2 to reproduce.
    pub hazards: Vec<Hazard>,
}

/// The TPM that a sandbox extends.
#[derive(Clone, Debug)]
pub enum TpmChoice {
    /// No TPM: boot_aggregate is zero and no PCR can be compared.
    None,
    /// A new swtpm, which ends with the sandbox.
    Swtpm,
    /// An existing TPM.
    At(Endpoint),
}

/// A running sandbox: IMA in user space. Dropping the sandbox ends it.
pub struct Sandbox {
    machine: Arc<Machine>,
    /// The FUSE session; `None` for an unmounted sandbox, which has only the link to the run
    /// directory.
    session: Option<BackgroundSession>,
    mount: PathBuf,
    watching: Result<(), String>,
    endpoint: Option<Endpoint>,
    run_dir: RunDir,
}

impl Config {
    /// The default configuration, with the files of Linux 7.2.
    pub fn new(mount: impl Into<PathBuf>, tpm: TpmChoice) -> Config {
        Config {
            mount: mount.into(),
            tpm,
            dialect: Dialect::default(),
            duplicates: Duplicates::default(),
            banks: None,
            kernel: Kernel::default(),
            critical_data: false,
            watch: true,
            hazards: Vec::new(),
        }
    }
}

impl FromStr for TpmChoice {
    type Err = <Endpoint as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(TpmChoice::None),
            "swtpm" => Ok(TpmChoice::Swtpm),
            _ => text.parse().map(TpmChoice::At),
        }
    }
}

impl fmt::Display for TpmChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TpmChoice::None => f.write_str("none"),
            TpmChoice::Swtpm => f.write_str("swtpm"),
            TpmChoice::At(endpoint) => endpoint.fmt(f),
        }
    }
}

impl Sandbox {
    /// Starts IMA with an empty list and mounts its files.
    ///
    /// # Errors
    /// [`SandboxError`]; everything started is ended again.
    pub fn start(config: &Config) -> Result<Sandbox, SandboxError> {
        Sandbox::start_with(config, None)
    }

    /// As [`Sandbox::start`], with a deliberate fault, to test conformance tests.
    ///
    /// # Errors
    /// As [`Sandbox::start`].
    pub fn start_with(config: &Config, fault: Option<Fault>) -> Result<Sandbox, SandboxError> {
        let duplicates = Faults(fault).duplicates(config.duplicates);
        let mut sandbox = Sandbox::boot(&Config { duplicates, ..config.clone() }, false)?;
        let at = |error| SandboxError::Fuse { path: config.mount.clone(), error };
        let run_dir = sandbox.run_dir.path().to_owned();
        let directory = Directory::new(Arc::clone(&sandbox.machine), Faults(fault), run_dir);
        let mut options = fuser::Config::default();
        options.mount_options = vec![
            MountOption::FSName("imastage-sandbox".into()),
            MountOption::DefaultPermissions,
            MountOption::NoExec,
            MountOption::NoSuid,
            MountOption::NoDev,
        ];
        if rustix::process::geteuid().is_root() {
            // As in securityfs, the modes of the files restrict other users.
            options.acl = SessionACL::All;
        }
        let session = fuser::spawn_mount(directory, &config.mount, &options).map_err(at)?;
        sandbox.session = Some(session);
        Ok(sandbox)
    }

    /// Starts IMA without a mount, for a list in this process. `config.mount` then contains only
    /// the link through which [`control::ask`] reaches the sandbox.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn start_unmounted(config: &Config) -> Result<Sandbox, SandboxError> {
        let sandbox = Sandbox::boot(config, true)?;
        let link = config.mount.join(RUN_LINK);
        // A killed sandbox may have left the link.
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(sandbox.run_dir.path(), &link)
            .map_err(|error| SandboxError::Path { path: link, error })?;
        Ok(sandbox)
    }

    /// The list of the current boot.
    pub fn list(&self) -> Arc<SharedList> {
        self.machine.ima().list()
    }

    /// The endpoint through which other processes reach the TPM.
    pub fn tpm_endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref()
    }

    /// Whether executed programs are measured; the cause if they are not.
    pub fn watches_programs(&self) -> Result<(), &str> {
        match &self.watching {
            Ok(()) => Ok(()),
            Err(why) => Err(why),
        }
    }

    /// Unmounts the files and ends the sandbox.
    pub fn stop(self) {
        drop(self);
    }

    fn boot(config: &Config, unmounted: bool) -> Result<Sandbox, SandboxError> {
        imastage_mount::prepare(&config.mount, Some(RUN_LINK))
            .map_err(|error| SandboxError::Path { path: config.mount.clone(), error })?;
        let run_dir = RunDir::make()?;
        let state = run_dir.path().join("swtpm");
        let (tpm, swtpm) = match &config.tpm {
            TpmChoice::None => (None, None),
            TpmChoice::Swtpm => {
                let (swtpm, tpm) = start_swtpm(&state, config.banks.as_deref())?;
                (Some(SharedTpm::new(tpm)), Some((state, swtpm)))
            }
            TpmChoice::At(endpoint) => (Some(SharedTpm::new(Tpm::connect(endpoint)?)), None),
        };
        let endpoint = match &tpm {
            None => None,
            Some(tpm) => {
                let path = run_dir.path().join("tpm.sock");
                tpm.serve(run_dir.listen("tpm.sock")?)
                    .map_err(|error| SandboxError::Path { path: path.clone(), error })?;
                Some(Endpoint::Unix(path))
            }
        };
        let rules = match config.dialect {
            Dialect::V4 => Rules::V4,
            Dialect::Linux72 | Dialect::Trim => Rules::Linux72,
        };
        let policy = Policy {
            list: Options { duplicates: config.duplicates, rules },
            banks: config.banks.clone(),
            kernel: config.kernel.clone(),
            critical_data: config.critical_data,
        };
        let ima = Ima::boot(policy, tpm)?;
        let machine = Machine::new(ima, config.dialect, config.hazards.clone(), swtpm, unmounted);
        let machine = Arc::new(machine);
        let socket = run_dir.path().join("control.sock");
        control::serve(Arc::clone(&machine), run_dir.listen("control.sock")?)
            .map_err(|error| SandboxError::Path { path: socket, error })?;
        let watching = match config.watch {
            true => exec_watch::start(Arc::clone(&machine)),
            false => Err("not requested".to_owned()),
        };
        if let Err(why) = &watching {
            tracing::info!(why, "executed programs are not measured");
        }
        Ok(Sandbox {
            machine,
            session: None,
            mount: config.mount.clone(),
            watching,
            endpoint,
            run_dir,
        })
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        match self.session.take() {
            Some(session) => {
                if let Err(error) = session.umount_and_join() {
                    tracing::warn!(%error, "cannot unmount, files are open: the mount is detached");
                    imastage_mount::detach(&self.mount);
                }
            }
            None => {
                // The link may already be removed.
                let _ = fs::remove_file(self.mount.join(RUN_LINK));
            }
        }
        self.machine.power_off();
    }
}

/// Starts a swtpm, with only the given banks if there are any.
fn start_swtpm(state: &Path, banks: Option<&[Bank]>) -> Result<(Swtpm, Tpm), TpmError> {
    let (swtpm, mut tpm) = Swtpm::start(state)?;
    let Some(banks) = banks else { return Ok((swtpm, tpm)) };
    tpm.allocate_banks(banks)?;
    // The allocation takes effect after a reset.
    drop((tpm, swtpm));
    Swtpm::start(state)
}

/// The TPM of the sandbox mounted on `mount`; `None` if the sandbox has no TPM, or `mount` is not a
/// sandbox.
pub fn tpm_of(mount: &Path) -> Option<Endpoint> {
    let path = fs::read_link(mount.join(RUN_LINK)).ok()?.join("tpm.sock");
    path.exists().then_some(Endpoint::Unix(path))
}
