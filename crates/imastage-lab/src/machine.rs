//! One guest: QEMU, swtpm, and the connection to the guest's init.

use std::{
    fs, io,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::{
    error::{Doing, LabError},
    guest::SHELL,
    initramfs::{self, Programs},
    kernel::Kernel,
    process::{Running, bound, tail},
    wire::{self, Answer, Ask},
};

/// Set to true to end every wait for a guest.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The configuration of a machine.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Additional words for the kernel's command line.
    pub append: String,
    /// Its TPM.
    pub tpm: Tpm,
    /// A disk (`/dev/vda`), as a raw file.
    pub disk: Option<PathBuf>,
    /// Memory in MiB.
    pub memory: u32,
    /// The number of processors.
    pub processors: u32,
    /// Whether a reset boots the machine again; otherwise it ends the machine.
    pub restarts: bool,
    /// The directory of the TPM's state, to keep it across boots; by default a temporary one.
    pub tpm_state: Option<PathBuf>,
}

/// The TPM of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tpm {
    /// None.
    None,
    /// A TPM with the FIFO interface (TIS).
    Tis,
    /// A TPM with the command response buffer interface (CRB).
    Crb,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            append: "ima_policy=tcb".to_owned(),
            tpm: Tpm::Tis,
            disk: None,
            memory: 768,
            processors: 1,
            restarts: false,
            tpm_state: None,
        }
    }
}

/// A running machine. Dropping it cuts its power.
pub struct Machine {
    qemu: Running,
    swtpm: Option<Running>,
    link: UnixStream,
    console: PathBuf,
    release: String,
    // The last field: dropped after the processes that use it.
    dir: tempfile::TempDir,
}

/// The result of a program in the guest.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its exit code; -1 if killed by a signal.
    pub code: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

/// Timeout for a boot, an answer, or an expected state of the guest. A boot takes 5 s under
/// emulation on an idle host; the timeout allows for a host with ten times the load it can handle.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// Timeout for the boot of one machine, which [`Lab::boot`](crate::Lab::boot) repeats: a kernel whose
/// clock was calibrated while the host stood still can hang.
const BOOT: Duration = Duration::from_secs(200);
/// The interval at which a wait for the guest checks for interrupts and timeouts.
const LOOK: Duration = Duration::from_millis(100);

impl Machine {
    /// Boots a kernel and waits until the guest accepts requests.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn boot(kernel: &Kernel, programs: &Programs, plan: &Plan) -> Result<Machine, LabError> {
        // The path of a Unix socket is limited to 107 bytes.
        let dir = tempfile::Builder::new().prefix("lab-").tempdir_in("/tmp").doing("/tmp")?;
        let console = dir.path().join("console");
        let socket = dir.path().join("link");
        let listener = UnixListener::bind(&socket).at(&socket)?;
        listener.set_nonblocking(true).at(&socket)?;

        let initramfs = dir.path().join("initramfs");
        initramfs::write(&initramfs, kernel, programs)?;
        let (swtpm, tpm_socket) = start_swtpm(dir.path(), plan)?;
        let mut qemu = qemu(kernel, &initramfs, plan, tpm_socket.as_deref(), "")?;
        qemu.args(["-display", "none", "-serial"]).arg(format!("file:{}", console.display()));
        qemu.args(["-device", "virtio-serial-pci", "-chardev"]);
        qemu.arg(format!("socket,id=lab,path={}", socket.display()));
        qemu.args(["-device", &format!("virtserialport,chardev=lab,name={}", wire::PORT)]);
        let said = dir.path().join("qemu");
        let mut qemu = Running::start(&mut qemu, &said)?;

        let link = accept(&listener, &mut qemu, &said)?;
        link.set_read_timeout(Some(LOOK)).at(&socket)?;
        let mut machine = Machine { qemu, swtpm, link, console, release: String::new(), dir };
        machine.greeted(BOOT)?;
        Ok(machine)
    }

    /// The kernel's release.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The console output so far.
    pub fn console(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The initramfs of the guest.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn initramfs(&self) -> Result<Vec<u8>, LabError> {
        let path = self.dir.path().join("initramfs");
        fs::read(&path).at(&path)
    }

    /// Sends a request to the guest, followed by `bytes`.
    ///
    /// # Errors
    /// [`LabError::Guest`] if the request failed; [`LabError::Lost`] without an answer.
    pub fn ask(&mut self, ask: &Ask, bytes: &[u8]) -> Result<(Answer, Vec<u8>), LabError> {
        let asked = brief(ask);
        wire::send(&mut self.link, ask, bytes).doing(&asked)?;
        match self.receive(&asked, PATIENCE)? {
            (Answer::Failed(said), _) => Err(LabError::Guest { asked, said }),
            answer => Ok(answer),
        }
    }

    /// Powers the guest off and waits until it has ended.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn power_off(mut self) -> Result<(), LabError> {
        let asked = brief(&Ask::PowerOff);
        wire::send(&mut self.link, &Ask::PowerOff, &[]).doing(&asked)?;
        self.qemu.wait(PATIENCE).doing("power off")?;
        if let Some(swtpm) = &mut self.swtpm {
            // swtpm writes its state and exits after the machine has ended.
            swtpm.wait(PATIENCE).doing("swtpm")?;
        }
        Ok(())
    }

    /// Resets the machine or starts the loaded kernel, and waits until the next kernel accepts
    /// requests.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn leave(&mut self, ask: &Ask) -> Result<(), LabError> {
        wire::send(&mut self.link, ask, &[]).doing(brief(ask))?;
        self.greeted(PATIENCE)
    }

    fn greeted(&mut self, patience: Duration) -> Result<(), LabError> {
        match self.receive("boot", patience)? {
            (Answer::Hello { release, .. }, _) => {
                self.release = release;
                Ok(())
            }
            (other, _) => {
                Err(self.lost("boot", io::Error::other(format!("unexpected answer {other:?}"))))
            }
        }
    }

    fn receive(&mut self, asked: &str, patience: Duration) -> Result<(Answer, Vec<u8>), LabError> {
        let mut patient = Patient { machine: self, since: Instant::now(), patience };
        match wire::receive(&mut patient) {
            Ok(answer) => Ok(answer),
            Err(error) if INTERRUPTED.load(Ordering::Relaxed) => {
                drop(error);
                Err(LabError::Interrupted)
            }
            Err(error) => Err(self.lost(asked, error)),
        }
    }

    /// The error for a kernel that boots without what it is booted for.
    pub(crate) fn unfit(&self, lacks: String) -> LabError {
        self.lost("boot", io::Error::other(format!("kernel {} has {lacks}", self.release)))
    }

    fn lost(&self, asked: &str, why: io::Error) -> LabError {
        const LINES: usize = 60;
        LabError::Lost { asked: asked.to_owned(), why, console: tail(&self.console(), LINES) }
    }
}

/// Runs a guest with its console on this terminal.
///
/// # Errors
/// [`LabError`].
pub fn shell(kernel: &Kernel, programs: &Programs, plan: &Plan) -> Result<(), LabError> {
    let dir = tempfile::Builder::new().prefix("lab-").tempdir_in("/tmp").doing("/tmp")?;
    let initramfs = dir.path().join("initramfs");
    initramfs::write(&initramfs, kernel, programs)?;
    let (_swtpm, tpm_socket) = start_swtpm(dir.path(), plan)?;
    let mut qemu = qemu(kernel, &initramfs, plan, tpm_socket.as_deref(), SHELL)?;
    qemu.args(["-nographic", "-serial", "mon:stdio"]);
    let status = qemu.status().doing("qemu")?;
    if status.success() {
        return Ok(());
    }
    let program = "qemu-system-x86_64".to_owned();
    Err(LabError::Program { program, status, said: String::new() })
}

fn qemu(
    kernel: &Kernel,
    initramfs: &Path,
    plan: &Plan,
    tpm: Option<&Path>,
    word: &str,
) -> Result<Command, LabError> {
    let mut qemu = bound("qemu-system-x86_64", "qemu-system-x86")?;
    // Not kvm: hardware virtualisation can be present and hang.
    qemu.args(["-accel", "tcg", "-nodefaults", "-nic", "none"]);
    qemu.arg("-smp").arg(plan.processors.to_string()).arg("-m").arg(plan.memory.to_string());
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    // A panic resets the machine; without restarts, the reset ends it.
    if !plan.restarts {
        qemu.arg("-no-reboot");
    }
    // rootfstype=ramfs: the initramfs is on tmpfs by default, which policies exclude.
    // no_timer_check: timer interrupts of the guest can be late on a busy host.
    let always = "console=ttyS0 panic=-1 rootfstype=ramfs no_timer_check";
    qemu.arg("-append").arg(format!("{always} {} {word}", plan.append));
    if let Some(socket) = tpm {
        let model = if plan.tpm == Tpm::Crb { "tpm-crb" } else { "tpm-tis" };
        qemu.arg("-chardev").arg(format!("socket,id=chrtpm,path={}", socket.display()));
        qemu.args(["-tpmdev", "emulator,id=tpm0,chardev=chrtpm", "-device"]);
        qemu.arg(format!("{model},tpmdev=tpm0"));
    }
    if let Some(disk) = &plan.disk {
        qemu.arg("-drive").arg(format!("if=none,id=disk,format=raw,file={}", disk.display()));
        qemu.args(["-device", "virtio-blk-pci,drive=disk"]);
    }
    Ok(qemu)
}

fn start_swtpm(dir: &Path, plan: &Plan) -> Result<(Option<Running>, Option<PathBuf>), LabError> {
    if plan.tpm == Tpm::None {
        return Ok((None, None));
    }
    let state = plan.tpm_state.clone().unwrap_or_else(|| dir.join("tpm"));
    fs::create_dir_all(&state).at(&state)?;
    let state = state.canonicalize().at(&state)?;
    let socket = dir.join("swtpm");
    let log = dir.join("swtpm.log");
    let mut swtpm = bound("swtpm", "swtpm")?;
    swtpm.args(["socket", "--tpm2", "--terminate", "--tpmstate"]);
    swtpm.arg(format!("dir={}", state.display()));
    swtpm.arg("--ctrl").arg(format!("type=unixio,path={}", socket.display()));
    let mut running = Running::start(&mut swtpm, &log)?;
    let since = Instant::now();
    while !socket.exists() {
        if running.ended().doing("swtpm")?.is_some() || since.elapsed() > PATIENCE {
            let said = fs::read_to_string(&log).unwrap_or_default();
            return Err(LabError::Guest { asked: "start swtpm".to_owned(), said });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok((Some(running), Some(socket)))
}

/// Accepts the connection that QEMU makes before it starts the guest.
fn accept(
    listener: &UnixListener,
    qemu: &mut Running,
    said: &Path,
) -> Result<UnixStream, LabError> {
    let since = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).doing("link")?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).doing("link"),
        }
        if let Some(status) = qemu.ended().doing("qemu")? {
            let said = fs::read_to_string(said).unwrap_or_default();
            let program = "qemu-system-x86_64".to_owned();
            return Err(LabError::Program { program, status, said });
        }
        if since.elapsed() > PATIENCE {
            return Err(io::Error::from(io::ErrorKind::TimedOut)).doing("qemu");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads from the guest until it ends, the timeout expires, or [`INTERRUPTED`] is set.
struct Patient<'a> {
    machine: &'a mut Machine,
    since: Instant,
    patience: Duration,
}

impl io::Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match io::Read::read(&mut self.machine.link, buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) if !buffer.is_empty() => {
                    return Err(io::Error::other("the machine ended"));
                }
                other => return other,
            }
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Err(io::Error::other("interrupted"));
            }
            if self.since.elapsed() > self.patience {
                let why = format!("no answer in {} s", self.patience.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
    }
}

/// A request as text for messages.
fn brief(ask: &Ask) -> String {
    match ask {
        Ask::Read { path, .. } => format!("read {}", String::from_utf8_lossy(path)),
        Ask::Write { path, .. } => format!("write {}", String::from_utf8_lossy(path)),
        Ask::Run(program) | Ask::Start(program) => {
            format!("run {} {}", program.path, program.args.join(" "))
        }
        other => format!("{other:?}"),
    }
}
