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

/// What a sandbox is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where its files are: made if it is not there, and must be empty.
    pub mount: PathBuf,
    /// The TPM it extends.
    pub tpm: TpmChoice,
    /// The interface its files have.
    pub dialect: Dialect,
    /// What becomes of records that are there already.
    pub duplicates: Duplicates,
    /// The banks that have files, and that a swtpm has; all that the TPM has if it says none.
    pub banks: Option<Vec<Bank>>,
    /// The kernel that it is.
    pub kernel: Kernel,
    /// Whether the kernel measures what it does itself: kexec and trimming.
    pub critical_data: bool,
    /// Whether programs are measured as they are executed, if that is permitted.
    pub watch: bool,
    /// The known bugs of Linux 7.2 that it reproduces.
    pub hazards: Vec<Hazard>,
}

/// The TPM that a sandbox extends.
#[derive(Clone, Debug)]
pub enum TpmChoice {
    /// None: boot_aggregate is zero and no PCR can be compared.
    None,
    /// A new swtpm, which ends with the sandbox.
    Swtpm,
    /// One that is there.
    At(Endpoint),
}

/// IMA in user space, running. Dropping it ends it.
pub struct Sandbox {
    machine: Arc<Machine>,
    /// The FUSE session; `None` if there is only the link to the run directory.
    session: Option<BackgroundSession>,
    mount: PathBuf,
    watching: Result<(), String>,
    endpoint: Option<Endpoint>,
    run_dir: RunDir,
}

impl Config {
    /// Files as Linux 7.2 has them.
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
    /// [`SandboxError`]; nothing is left behind.
    pub fn start(config: &Config) -> Result<Sandbox, SandboxError> {
        Sandbox::start_with(config, None)
    }

    /// Like [`Sandbox::start`], with a rule that it breaks: for tests of those who test it.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing is left behind.
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
            // Others are kept out by the modes of the files, as in securityfs.
            options.acl = SessionACL::All;
        }
        let session = fuser::spawn_mount(directory, &config.mount, &options).map_err(at)?;
        sandbox.session = Some(session);
        Ok(sandbox)
    }

    /// Starts IMA without a mount, for a list in this process. `config.mount` then holds nothing
    /// but the link by which [`control::ask`] finds it.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn start_unmounted(config: &Config) -> Result<Sandbox, SandboxError> {
        let sandbox = Sandbox::boot(config, true)?;
        let link = config.mount.join(RUN_LINK);
        // One that died may have left it.
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(sandbox.run_dir.path(), &link)
            .map_err(|error| SandboxError::Path { path: link, error })?;
        Ok(sandbox)
    }

    /// The list itself, until the machine boots again.
    pub fn list(&self) -> Arc<SharedList> {
        self.machine.ima().list()
    }

    /// Where others reach the TPM that is extended.
    pub fn tpm_endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref()
    }

    /// Whether programs are measured as they are executed, or why not.
    pub fn watches_programs(&self) -> Result<(), &str> {
        match &self.watching {
            Ok(()) => Ok(()),
            Err(why) => Err(why),
        }
    }

    /// Unmounts and ends.
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
            false => Err("it was not asked for".to_owned()),
        };
        if let Err(why) = &watching {
            tracing::info!(why, "programs are not measured as they are executed");
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
                    tracing::warn!(%error, "still in use: detached instead of unmounted");
                    imastage_mount::detach(&self.mount);
                }
            }
            None => {
                // If it is gone already, all the better.
                let _ = fs::remove_file(self.mount.join(RUN_LINK));
            }
        }
        self.machine.power_off();
    }
}

/// Starts a swtpm; one that has these banks only.
fn start_swtpm(state: &Path, banks: Option<&[Bank]>) -> Result<(Swtpm, Tpm), TpmError> {
    let (swtpm, mut tpm) = Swtpm::start(state)?;
    let Some(banks) = banks else { return Ok((swtpm, tpm)) };
    tpm.allocate_banks(banks)?;
    // That takes a reset.
    drop((tpm, swtpm));
    Swtpm::start(state)
}

/// The TPM of the sandbox whose files are in `mount`; `None` if it has none, or if these are not a
/// sandbox's files.
pub fn tpm_of(mount: &Path) -> Option<Endpoint> {
    let path = fs::read_link(mount.join(RUN_LINK)).ok()?.join("tpm.sock");
    path.exists().then_some(Endpoint::Unix(path))
}
