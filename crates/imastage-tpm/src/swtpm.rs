use std::{
    fs,
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Tpm, TpmError, transport::Transport};

/// A software TPM of our own (swtpm), with its state in a directory.
///
/// It serves one connection and ends with it: when this is dropped, and also when this process is
/// killed. Starting it again with the same state is a TPM reset. A new state has PCR banks of
/// sha1, sha256, sha384 and sha512.
#[derive(Debug)]
pub struct Swtpm {
    child: Child,
}

impl Swtpm {
    /// Starts swtpm and connects. The connection has to live as long as the TPM is needed.
    ///
    /// # Errors
    /// [`TpmError::SwtpmMissing`], [`TpmError::SwtpmFailed`].
    pub fn start(state: &Path) -> Result<(Swtpm, Tpm), TpmError> {
        let failed = |why: String| TpmError::SwtpmFailed { state: state.to_owned(), why };
        fs::create_dir_all(state).map_err(|error| failed(error.to_string()))?;
        // swtpm changes its directory.
        let state: PathBuf = state.canonicalize().map_err(|error| failed(error.to_string()))?;
        let socket = state.join("sock");
        if socket.exists() {
            fs::remove_file(&socket).map_err(|error| failed(error.to_string()))?;
        }
        let mut child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--terminate", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(option("dir", &state))
            .arg("--server")
            .arg(option("type=unixio,path", &socket))
            .arg("--ctrl")
            .arg(option("type=unixio,path", &state.join("ctrl")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| TpmError::SwtpmMissing { error })?;
        match connect(&mut child, &socket) {
            Ok(stream) => Ok((Swtpm { child }, Tpm::over(Transport::Unix(stream)))),
            Err(why) => {
                // It is of no use.
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(why))
            }
        }
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // Ended already if its connection was closed first.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn option(name: &str, path: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(name);
    option.push("=");
    option.push(path);
    option
}

fn connect(child: &mut Child, socket: &Path) -> Result<UnixStream, String> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let since = Instant::now();
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Ok(stream);
        }
        if let Ok(Some(status)) = child.try_wait() {
            let mut said = String::new();
            if let Some(stderr) = &mut child.stderr {
                // What it said is all there is to tell.
                let _ = stderr.take(4096).read_to_string(&mut said);
            }
            return Err(format!("ended ({status}): {}", said.trim()));
        }
        if since.elapsed() > PATIENCE {
            return Err(format!("does not answer after {} s", PATIENCE.as_secs()));
        }
        thread::sleep(Duration::from_millis(5));
    }
}
