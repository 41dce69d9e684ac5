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

/// A software TPM (swtpm), with its state in a directory.
///
/// It serves one connection and exits with it: when this is dropped, and also when this process is
/// killed. A new start with the same state is a TPM reset: PCRs are reset,
/// [`ClockInfo::reset_count`](crate::ClockInfo::reset_count) is higher, and keys created from a
/// template are the same.
///
/// A new state has PCR banks of sha1, sha256, sha384 and sha512, all zero (seen with swtpm 0.7.1
/// on libtpms 0.9.2: no firmware extends them).
#[derive(Debug)]
pub struct Swtpm {
    child: Child,
    /// Another handle of the connection that [`Tpm`] has.
    connection: UnixStream,
}

impl Swtpm {
    /// Starts swtpm and connects. `state` is created if it does not exist, for its owner only: it
    /// contains the secrets of the TPM's keys. The output of swtpm is in its `swtpm.log`.
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

    /// Closes the connection, upon which swtpm exits; kills it if it does not.
    fn end(&mut self) -> io::Result<ExitStatus> {
        // A kill loses unwritten state, so only a hanging swtpm is killed.
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
/// swtpm gets the listening socket, so it never runs without a connection: if this process ends
/// first, swtpm finds the connection closed and exits, too.
fn connected(dir: &Path) -> io::Result<(UnixListener, UnixStream)> {
    // A socket's path has at most 107 bytes; the directory's can be longer.
    let dir = File::open(dir)?;
    let path = &PathBuf::from(format!("/proc/self/fd/{}/sock", dir.as_raw_fd()));
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let connection = UnixStream::connect(path);
    // No other process should connect.
    fs::remove_file(path)?;
    Ok((listener, connection?))
}

/// The end of swtpm's output.
fn tail(log: &Path) -> String {
    let mut said = Vec::new();
    // What it said is all there is to tell; it is a few lines.
    let _ = File::open(log).and_then(|log| log.take(4096).read_to_end(&mut said));
    String::from_utf8_lossy(&said).trim().to_owned()
}
