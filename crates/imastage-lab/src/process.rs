//! Programs on the host.

use std::{
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::error::{Doing, LabError};

/// Searched after PATH, which often lacks /usr/sbin.
const DIRS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// Finds a program.
///
/// # Errors
/// [`LabError::Missing`] with the name of its package.
pub fn find(program: &str, package: &str) -> Result<PathBuf, LabError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(DIRS.map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| LabError::Missing {
            what: program.to_owned(),
            how: format!("apt-get install {package}"),
        })
}

/// Runs a program to its end; returns its standard output as text.
///
/// # Errors
/// [`LabError`] if it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<String, LabError> {
    let bytes = run_for_bytes(command)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a program to its end; returns its standard output.
///
/// # Errors
/// [`LabError`] if it cannot be started or fails.
pub fn run_for_bytes(command: &mut Command) -> Result<Vec<u8>, LabError> {
    let line = line(command);
    let output = command.stdin(Stdio::null()).output().doing(&line)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(LabError::Program { program: line, status: output.status, said: tail(&said, 20) })
}

/// A command that the kernel kills (PR_SET_PDEATHSIG) when the thread that starts it exits.
/// Arguments can be added.
///
/// # Errors
/// [`LabError::Missing`].
pub fn bound(program: &str, package: &str) -> Result<Command, LabError> {
    let mut bound = Command::new(find("setpriv", "util-linux")?);
    bound.args(["--pdeathsig", "KILL", "--"]).arg(find(program, package)?);
    Ok(bound)
}

/// A running program; killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts a program in its own process group, so that Ctrl-C does not reach it. Its output goes
    /// into the file `said`.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn start(command: &mut Command, said: &Path) -> Result<Running, LabError> {
        let out = File::create(said).at(said)?;
        let err = out.try_clone().at(said)?;
        command.process_group(0).stdin(Stdio::null()).stdout(out).stderr(err);
        Ok(Running { child: command.spawn().doing(line(command))? })
    }

    /// Its exit status, if it has exited.
    ///
    /// # Errors
    /// [`io::Error`].
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`io::Error`]; [`io::ErrorKind::TimedOut`] after `patience`.
    pub fn wait(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        let since = Instant::now();
        loop {
            match self.ended()? {
                Some(status) => return Ok(status),
                None if since.elapsed() > patience => return Err(io::ErrorKind::TimedOut.into()),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The program may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The libraries and the loader of a program: the requested name and the path found.
///
/// # Errors
/// [`LabError`].
pub fn libraries(program: &Path) -> Result<Vec<(String, PathBuf)>, LabError> {
    let said = match run(Command::new("ldd").arg(program)) {
        Err(LabError::Program { said, .. }) if said.contains("not a dynamic") => return Ok(vec![]),
        said => said?,
    };
    Ok(said
        .lines()
        .filter_map(|line| {
            let (path, _) = line.rsplit_once(" (")?;
            let path = path.rsplit_once("=> ").map_or(path, |(_, path)| path).trim();
            let name = line.split_whitespace().next()?;
            path.starts_with('/').then(|| (name.to_owned(), PathBuf::from(path)))
        })
        .collect())
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
