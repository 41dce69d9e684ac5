//! The init of a guest: sets the machine up and performs the host's requests.

mod actions;
pub mod agent;
mod files;
mod kexec;
mod measuring;
pub mod reproduce;

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::system::{RebootCommand, finit_module, reboot};

use crate::{
    guest::files::{mount_at, named},
    wire::{self, Answer, Ask, PORT},
};

/// The directory of the modules to load, in the order of their names.
pub const MODULES: &str = "lab/modules";
/// The word on the kernel's command line for a shell on the console instead of host requests.
pub const SHELL: &str = "lab.shell";

/// Performs requests until the host ends the connection or an error occurs, then powers off.
pub fn run() {
    if let Err(error) = live() {
        // Standard error is the console, which the host logs.
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

/// Waits for the device of the port to the host, which the drivers create.
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
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no virtio port {PORT} after {} s", PATIENCE.as_secs()),
    ))
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

/// Syncs the disks and leaves this kernel; returns only on failure.
fn leave(how: RebootCommand) {
    rustix::fs::sync();
    let error = reboot(how);
    let _ = writeln!(io::stderr(), "lab: {how:?}: {error:?}");
}
