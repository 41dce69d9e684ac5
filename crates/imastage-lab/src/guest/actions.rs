//! Performs the requests of the host.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt},
    },
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use imastage_tpm::{
    AttestationKey, Credential, EndorsementKey, Endpoint, KeyKind, PcrSelection, Tpm,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    guest::{
        files::{mount_at, named, read_all},
        kexec::load_kernel,
        measuring::Measuring,
    },
    wire::{Answer, Ask, Program},
};

const LIST: &str = "/sys/kernel/security/ima";
const PCRS: &str = "/sys/class/tpm/tpm0";

/// Performs requests, and owns the processes and the thread they started.
#[derive(Default)]
pub struct Actions {
    children: BTreeMap<u32, Child>,
    measuring: Option<Measuring>,
}

impl Actions {
    /// Performs a request; returns the answer and its bytes.
    pub fn done(&mut self, ask: Ask, bytes: &[u8]) -> io::Result<(Answer, Vec<u8>)> {
        match ask {
            Ask::Read { path, step } => {
                let path = Path::new(OsStr::from_bytes(&path));
                let since = Instant::now();
                let bytes = read_all(path, step).map_err(|error| named(path, error))?;
                Ok((Answer::Bytes { micros: micros(since) }, bytes))
            }
            Ask::Names { dir } => {
                let names =
                    names(Path::new(&dir)).map_err(|error| named(Path::new(&dir), error))?;
                Ok((Answer::Names(names), Vec::new()))
            }
            Ask::Write { path, mode } => {
                let path = Path::new(OsStr::from_bytes(&path));
                write(path, mode, bytes).map_err(|error| named(path, error))?;
                Ok((Answer::Done, Vec::new()))
            }
            Ask::Run(program) => {
                let output = command(&program).output();
                Ok(ran(output.map_err(|error| named(Path::new(&program.path), error))?))
            }
            Ask::Start(program) => {
                let child = command(&program).stdout(Stdio::piped()).spawn();
                let child = child.map_err(|error| named(Path::new(&program.path), error))?;
                let pid = child.id();
                self.children.insert(pid, child);
                Ok((Answer::Started { pid }, Vec::new()))
            }
            Ask::Signal { pid, signal } => {
                self.child(pid)?;
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                let signal = Signal::from_named_raw(signal);
                let (Some(pid), Some(signal)) = (pid, signal) else {
                    return Err(io::ErrorKind::InvalidInput.into());
                };
                kill_process(pid, signal)?;
                Ok((Answer::Done, Vec::new()))
            }
            Ask::Wait { pid } => {
                self.child(pid)?;
                let Some(child) = self.children.remove(&pid) else { return Err(unknown(pid)) };
                Ok(ran(child.wait_with_output()?))
            }
            Ask::Measure(files) => Ok((Measuring::now(&files)?, Vec::new())),
            Ask::KeepMeasuring(files) => {
                self.measuring = Some(Measuring::start(files));
                Ok((Answer::Done, Vec::new()))
            }
            Ask::StopMeasuring => match self.measuring.take() {
                Some(measuring) => Ok((measuring.stop()?, Vec::new())),
                None => Err(io::Error::other("no background measuring to stop")),
            },
            Ask::Violate { path, reader_first } => {
                violate(Path::new(&path), reader_first)?;
                Ok((Answer::Done, Vec::new()))
            }
            Ask::Snapshot => snapshot(),
            Ask::SetAttribute { path, name } => {
                rustix::fs::setxattr(path, name, bytes, rustix::fs::XattrFlags::empty())?;
                Ok((Answer::Done, Vec::new()))
            }
            Ask::Identify => {
                let (_, endorsement, attestation) = keys()?;
                let endorsement = endorsement.public_area().to_bytes();
                let attestation = attestation.public_area().to_bytes();
                Ok((Answer::Identity { endorsement, attestation }, Vec::new()))
            }
            Ask::Activate { blob, seed } => {
                let (mut tpm, endorsement, attestation) = keys()?;
                let credential = Credential { blob, seed };
                let secret = tpm.activate_credential(&endorsement, &attestation, &credential);
                Ok((Answer::Bytes { micros: 0 }, secret.map_err(io::Error::other)?))
            }
            Ask::Quote { rsa, nonce, pcrs } => quote(rsa, &nonce, &pcrs),
            Ask::Mount { source, target, kind } => {
                fs::create_dir_all(&target)?;
                mount_at(&source, &target, &kind)?;
                Ok((Answer::Done, Vec::new()))
            }
            Ask::LoadKernel { kernel, initramfs, command_line } => {
                load_kernel(Path::new(&kernel), Path::new(&initramfs), &command_line)?;
                Ok((Answer::Done, Vec::new()))
            }
            Ask::PowerOff | Ask::Reboot | Ask::Kexec => Ok((Answer::Done, Vec::new())),
        }
    }

    fn child(&self, pid: u32) -> io::Result<()> {
        if self.children.contains_key(&pid) { Ok(()) } else { Err(unknown(pid)) }
    }
}

fn unknown(pid: u32) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("process {pid} was not started here"))
}

/// The command of a program. A started program inherits standard error, the console, so that the
/// host can show it.
fn command(program: &Program) -> Command {
    let mut command = Command::new(&program.path);
    command.args(&program.args).stdin(Stdio::null());
    command.env("PATH", "/bin").env("HOME", "/").env("NO_COLOR", "1");
    command
}

fn ran(output: Output) -> (Answer, Vec<u8>) {
    let Output { status, stdout: mut bytes, stderr } = output;
    let stdout = bytes.len();
    bytes.extend(stderr);
    (Answer::Ran { code: status.code().unwrap_or(-1), stdout }, bytes)
}

fn write(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// Opens a file for reading and for writing at once: its content can change after it is measured.
fn violate(path: &Path, reader_first: bool) -> io::Result<()> {
    fs::write(path, b"as it was measured")?;
    let mut byte = [0];
    if reader_first {
        File::open(path)?.read_exact(&mut byte)?;
        let _reader = File::open(path)?;
        File::options().write(true).open(path)?.write_all(b"!")
    } else {
        let mut writer = File::options().write(true).open(path)?;
        File::open(path)?.read_exact(&mut byte)?;
        writer.write_all(b"!")
    }
}

/// All files of the list and the matching PCR values: read again until no PCR changed meanwhile.
fn snapshot() -> io::Result<(Answer, Vec<u8>)> {
    const TRIES: usize = 100;
    const PAUSE: Duration = Duration::from_millis(20);
    for _ in 0..TRIES {
        let before = pcrs()?;
        match list_files() {
            Ok(mut files) if pcrs()? == before => {
                files.extend(before.map(|pcrs| ("pcrs".to_owned(), pcrs.into_bytes())));
                let bytes = files.iter().flat_map(|(_, content)| content).copied().collect();
                let sizes = files.into_iter().map(|(name, content)| (name, content.len()));
                return Ok((Answer::Files(sizes.collect()), bytes));
            }
            Ok(_) => {}
            // A service has a file open for writing.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("the list or the PCRs changed during each of {TRIES} reads")))
}

/// The list's files: names and contents.
fn list_files() -> io::Result<Vec<(String, Vec<u8>)>> {
    const STEP: usize = 1 << 16;
    let mut files = Vec::new();
    for name in names(Path::new(LIST))? {
        let path = Path::new(LIST).join(&name);
        // Kernels without CONFIG_IMA_READ_POLICY refuse to read the policy.
        if name != "policy" {
            let content = read_all(&path, STEP).map_err(|error| named(&path, error))?;
            files.push((name, content));
        }
    }
    Ok(files)
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// `BANK INDEX HEX` lines; `None` without a TPM.
fn pcrs() -> io::Result<Option<String>> {
    if !Path::new(PCRS).exists() {
        return Ok(None);
    }
    let mut lines = String::new();
    for bank in ["sha1", "sha256", "sha384", "sha512"] {
        for pcr in 0..24 {
            let path = format!("{PCRS}/pcr-{bank}/{pcr}");
            let value =
                fs::read_to_string(&path).map_err(|error| named(Path::new(&path), error))?;
            lines.push_str(&format!("{bank} {pcr} {}\n", value.trim().to_lowercase()));
        }
    }
    Ok(Some(lines))
}

/// The TPM's keys, the same as the service's; the kernel's resource manager flushes them when the
/// connection is closed.
fn keys() -> io::Result<(Tpm, EndorsementKey, AttestationKey)> {
    let mut tpm = connected()?;
    let endorsement = tpm.endorsement_key(KeyKind::EccP256).map_err(io::Error::other)?;
    let attestation = tpm.attestation_key(KeyKind::EccP256).map_err(io::Error::other)?;
    Ok((tpm, endorsement, attestation))
}

fn quote(rsa: bool, nonce: &[u8], pcrs: &[(String, u32)]) -> io::Result<(Answer, Vec<u8>)> {
    let kind = if rsa { KeyKind::Rsa2048 } else { KeyKind::EccP256 };
    let mut selection = Vec::new();
    for (bank, pcrs) in pcrs {
        let bank = bank.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        selection.push(PcrSelection { bank, pcrs: *pcrs });
    }
    let mut tpm = connected()?;
    let key = tpm.attestation_key(kind).map_err(io::Error::other)?;
    let quote = tpm.quote(&key, nonce, &selection).map_err(io::Error::other)?;
    let answer = Answer::Quoted { key: key.public_pem().to_owned(), size: quote.message.len() };
    Ok((answer, [quote.message, quote.signature].concat()))
}

fn connected() -> io::Result<Tpm> {
    Tpm::connect(&Endpoint::Device("/dev/tpmrm0".into())).map_err(io::Error::other)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
