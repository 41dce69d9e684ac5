//! Runs a software TPM (swtpm) as a child process.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io::{self, Read},
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Tpm, TpmError, transport::Transport};

/// A software TPM of our own (swtpm), with its state in a directory.
///
/// It serves one connection and ends with it: when this is dropped, and also when this process is
/// killed, at whatever moment. Starting it again with the same state is a TPM reset: PCRs begin
/// anew, [`ClockInfo::reset_count`](crate::ClockInfo::reset_count) has grown, keys made from a
/// template are the same.
///
/// A new state has PCR banks of sha1, sha256, sha384 and sha512, all zero (seen with swtpm 0.7.1
/// on libtpms 0.9.2: no firmware measures anything before us).
#[derive(Debug)]
pub struct Swtpm {
    child: Child,
    /// Another handle of the connection that [`Tpm`] has.
    connection: UnixStream,
}

impl Swtpm {
    /// Starts swtpm and connects. `state` is created if it is not there, for its owner only: in
    /// it are the secrets the TPM's keys are made from. What swtpm has to say is in its
    /// `swtpm.log`.
    ///
    /// # Errors
    /// [`TpmError::SwtpmMissing`]; [`TpmError::SwtpmFailed`], also if another swtpm runs with this
    /// state.
    pub fn start(state: &Path) -> Result<(Swtpm, Tpm), TpmError> {
        let failed = |why: String| TpmError::SwtpmFailed { state: state.to_owned(), why };
        let io_failed = |error: io::Error| failed(error.to_string());
        DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(io_failed)?;
        let dir: PathBuf = state.canonicalize().map_err(io_failed)?;
        if dir.as_os_str().as_encoded_bytes().contains(&b',') {
            return Err(failed("swtpm takes no path with a comma".to_owned()));
        }
        let log = dir.join("swtpm.log");
        let (listener, connection) = connected(&dir).map_err(io_failed)?;
        let ours = Transport::over_unix(connection.try_clone().map_err(io_failed)?);

        let mut tpmstate = OsString::from("dir=");
        tpmstate.push(&dir);
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--terminate", "--flags", "not-need-init,startup-clear"])
            .args(["--server", "type=unixio,fd=0", "--tpmstate"])
            .arg(tpmstate)
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(File::create(&log).map_err(io_failed)?)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => TpmError::SwtpmMissing { error },
                _ => io_failed(error),
            })?;
        let mut swtpm = Swtpm { child, connection };
        let mut tpm = Tpm::over(ours);
        match tpm.clock() {
            Ok(_) => Ok((swtpm, tpm)),
            Err(error) => {
                let ended = swtpm.end().map_or("did not end".to_owned(), |s| s.to_string());
                Err(failed(format!("{error}; it ended with {ended} and says: {}", tail(&log))))
            }
        }
    }

    /// Closes the connection, upon which swtpm ends; kills it if it does not.
    fn end(&mut self) -> io::Result<ExitStatus> {
        // Killed, it would lose what it has not written yet: only one that hangs takes so long.
        const PATIENCE: Duration = Duration::from_secs(60);
        // Not connected any more if swtpm ended by itself.
        let _ = self.connection.shutdown(Shutdown::Both);
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "swtpm, process {}, cannot be ended", self.child.id());
        }
    }
}

/// A listening socket with a connection waiting.
///
/// swtpm is given the listening socket, so there is no moment at which it runs without a
/// connection: if it is ours that ends first, it finds the connection closed and ends too.
fn connected(dir: &Path) -> io::Result<(UnixListener, UnixStream)> {
    // A socket's path has at most 107 bytes, the directory's may have more.
    let dir = File::open(dir)?;
    let path = &PathBuf::from(format!("/proc/self/fd/{}/sock", dir.as_raw_fd()));
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let connection = UnixStream::connect(path);
    // Nobody else is meant to connect.
    fs::remove_file(path)?;
    Ok((listener, connection?))
}

/// The end of what swtpm said.
fn tail(log: &Path) -> String {
    let mut said = Vec::new();
    // What it said is all there is to tell; it is a few lines.
    let _ = File::open(log).and_then(|log| log.take(4096).read_to_end(&mut said));
    String::from_utf8_lossy(&said).trim().to_owned()
}
