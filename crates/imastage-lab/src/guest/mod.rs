//! The first process of a guest: it makes the machine usable and does what the host asks.

mod actions;
mod kexec;
mod measuring;

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, finit_module, reboot},
};

use crate::wire::{self, Answer, Ask, PORT};

/// Where the guest finds the modules to load, in the order of their names.
pub const MODULES: &str = "lab/modules";
/// On the kernel's command line: a shell on the console instead of questions from the host.
pub const SHELL: &str = "lab.shell";

/// Runs until the host has no more to ask; then the machine is turned off.
pub fn run() {
    if let Err(error) = live() {
        // Standard error is the console, which the host keeps.
        let _ = writeln!(io::stderr(), "lab: {error}");
    }
    power_off();
}

fn live() -> io::Result<()> {
    prepare()?;
    let command_line = fs::read_to_string("/proc/cmdline")?.trim().to_owned();
    if command_line.split(' ').any(|word| word == SHELL) {
        shell()?;
        return Ok(());
    }
    let mut port = File::options().read(true).write(true).open(port()?)?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    wire::send(&mut port, &Answer::Hello { release, command_line }, &[])?;
    let mut actions = actions::Actions::default();
    loop {
        let (ask, bytes) = wire::receive::<Ask>(&mut port)?;
        match ask {
            Ask::PowerOff => return Ok(()),
            Ask::Reboot => leave(RebootCommand::Restart),
            Ask::Kexec => leave(RebootCommand::Kexec),
            ask => {
                let (answer, bytes) = match actions.done(ask, &bytes) {
                    Ok(done) => done,
                    Err(error) => (Answer::Failed(error.to_string()), Vec::new()),
                };
                wire::send(&mut port, &answer, &bytes)?;
            }
        }
    }
}

fn prepare() -> io::Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("securityfs", "/sys/kernel/security"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        mount_at(kind, target, kind)?;
    }
    let mut modules: Vec<PathBuf> = fs::read_dir(Path::new("/").join(MODULES))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    modules.sort();
    for module in modules {
        let loaded = finit_module(File::open(&module)?, c"", 0);
        loaded.map_err(|error| named(&module, error.into()))?;
    }
    Ok(())
}

fn mount_at(source: &str, target: &str, kind: &str) -> io::Result<()> {
    let kind = CString::new(kind)?;
    let mounted = mount(source, target, kind.as_c_str(), MountFlags::empty(), None);
    mounted.map_err(|error| named(Path::new(target), error.into()))
}

/// The device of the port to the host; drivers may take a moment.
fn port() -> io::Result<PathBuf> {
    const PATIENCE: Duration = Duration::from_secs(120);
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten() {
            let entry = entry?;
            let device = Path::new("/dev").join(entry.file_name());
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == PORT && device.exists() {
                return Ok(device);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no port {PORT}")))
}

fn shell() -> io::Result<()> {
    let mut shell = Command::new("/bin/busybox");
    shell.args(["setsid", "cttyhack", "sh", "-l"]);
    shell.env("PATH", "/bin").env("PS1", "lab# ").env("HOME", "/");
    shell.status().map(drop)
}

fn power_off() {
    leave(RebootCommand::PowerOff);
}

/// Leaves this kernel; comes back only if that fails.
fn leave(how: RebootCommand) {
    rustix::fs::sync();
    let error = reboot(how);
    let _ = writeln!(io::stderr(), "lab: {how:?}: {error:?}");
}

/// The error with the file it is about.
fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Reads to the end, `step` bytes at a time.
fn read_all(path: &Path, step: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    let mut piece = vec![0; step.clamp(1, 1 << 24)];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(bytes),
            n => bytes.extend_from_slice(&piece[..n]),
        }
    }
}
