//! The list that stands in for the kernel's.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use imastage_sandbox::{
    Config, Sandbox, SandboxError, TpmChoice,
    control::{Answer, Command as Ask, ask},
    tpm_of,
};
use imastage_source::{DeleteMode, InProcess, Source};
use imastage_tpm::Endpoint;

use crate::{
    exit::{Fail, Failure},
    output::pass_log_level,
};

/// A sandbox, in a process of its own or in this one.
pub struct Embedded {
    mount: PathBuf,
    kind: Kind,
}

enum Kind {
    /// A sandbox that outlives this process if that is killed; `Some` if this process started it.
    Process(Option<Child>),
    InProcess(Box<Sandbox>),
}

/// How long a sandbox may take to start, its TPM included.
const START: Duration = Duration::from_secs(120);

impl Embedded {
    /// The sandbox of a state directory: the one that is running there, or a new one in a process
    /// of its own; in this process where FUSE cannot be had.
    pub fn start(state: &Path, tpm: &TpmChoice) -> Result<Embedded, Failure> {
        let mount = state.join("ima");
        if is_running(&mount) {
            tracing::info!("using the running sandbox at {}", mount.display());
            return Ok(Embedded { mount, kind: Kind::Process(None) });
        }
        if let Err(why) = fuse_is_there() {
            tracing::warn!("{why}; the list is in this process and ends with it");
            return Embedded::in_process(state, tpm);
        }
        let child = spawn(&mount, tpm)?;
        Ok(Embedded { mount, kind: Kind::Process(Some(child)) })
    }

    /// A sandbox in this process.
    pub fn in_process(state: &Path, tpm: &TpmChoice) -> Result<Embedded, Failure> {
        let mount = state.join("ima");
        let config = Config::new(&mount, tpm.clone());
        let sandbox = Sandbox::start_unmounted(&config).map_err(|error| match error {
            SandboxError::Path { .. } => Failure::input(error),
            _ => Failure::environment(error),
        })?;
        Ok(Embedded { mount, kind: Kind::InProcess(Box::new(sandbox)) })
    }

    /// The list as the service sees it: in this process, or in the directory of another one.
    pub fn source(&self, mode: Option<DeleteMode>) -> Result<Box<dyn Source>, &Path> {
        match &self.kind {
            Kind::Process(_) => Err(&self.mount),
            Kind::InProcess(sandbox) => {
                let mode = mode.unwrap_or(DeleteMode::Stage);
                Ok(Box::new(InProcess::new(sandbox.list(), mode)))
            }
        }
    }

    /// The TPM that the list extends.
    pub fn tpm(&self) -> Option<Endpoint> {
        tpm_of(&self.mount)
    }

    /// Ends the sandbox.
    pub fn stop(self) {
        let Kind::Process(child) = self.kind else { return };
        let pid = match &child {
            Some(child) => i32::try_from(child.id()).ok(),
            None => running_pid(&self.mount).and_then(|pid| i32::try_from(pid).ok()),
        };
        let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { return };
        if let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM) {
            tracing::debug!(%error, "the sandbox ended before");
        }
        if let Some(mut child) = child {
            // It was told to end; however it did, it is gone.
            let _ = child.wait();
        }
    }
}

fn spawn(mount: &Path, tpm: &TpmChoice) -> Result<Child, Failure> {
    let program = std::env::current_exe().environment("own program")?;
    let mut command = Command::new(program);
    pass_log_level(&mut command);
    let mut child = command
        .arg("sandbox")
        .arg("--mount")
        .arg(mount)
        .arg("--tpm")
        .arg(tpm.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Ctrl-C is for the service, which then ends the sandbox after a last drain.
        .process_group(0)
        .spawn()
        .environment("sandbox")?;
    let since = Instant::now();
    while !is_running(mount) {
        if let Some(status) = child.try_wait().environment("sandbox")? {
            return Err(Failure::environment(format!(
                "the sandbox could not start ({status}); its reason stands above"
            )));
        }
        if since.elapsed() > START {
            let _ = child.kill();
            return Err(Failure::environment("the sandbox does not come up"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child)
}

fn is_running(mount: &Path) -> bool {
    running_pid(mount).is_some()
}

fn running_pid(mount: &Path) -> Option<u32> {
    match ask(mount, &Ask::Status, &mut |_| {}) {
        Ok(Answer::Status(status)) => Some(status.pid),
        _ => None,
    }
}

/// Whether a sandbox can be mounted, or why not.
pub fn fuse_is_there() -> Result<(), String> {
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    device.map_err(|error| format!("/dev/fuse: {error}"))?;
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    match Command::new("fusermount3").arg("-V").stdout(Stdio::null()).status() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("fusermount3: {error} (apt-get install fuse3)")),
    }
}
