//! Running the program, and the parts of a machine around it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// How long anything is waited for that should happen: long enough for a machine that has ten times
/// as much to do as it can. Only a test that fails waits so long.
pub const LONGEST: Duration = Duration::from_secs(300);

/// Waits until something is so, and fails where it never is.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < LONGEST, "never came: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a process ends; kills one that does not, and fails.
pub fn wait_for_end(child: &mut Child) -> ExitStatus {
    let since = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if since.elapsed() > LONGEST {
            let _ = child.kill();
            panic!("process {} does not end", child.id());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// What a command answered.
pub struct Answer {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| {
            let text = String::from_utf8_lossy(&self.stdout);
            panic!("{error}: {text:?}; {}", self.stderr)
        })
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

pub fn corpus(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus").join(path);
    assert!(path.exists(), "{}", path.display());
    path.to_str().unwrap().to_owned()
}

pub fn imastage(args: &[&str]) -> Answer {
    imastage_with(args, &[])
}

pub fn imastage_with(args: &[&str], stdin: &[u8]) -> Answer {
    let mut child = command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = thread::scope(|scope| {
        // A program that has seen enough closes its end.
        scope.spawn(move || drop(pipe.write_all(stdin)));
        scope.spawn(|| out.read_to_end(&mut stdout).unwrap());
        scope.spawn(|| err.read_to_end(&mut stderr).unwrap());
        wait_for_end(&mut child)
    });
    Answer { code: status.code().unwrap_or(-1), stdout, stderr: String::from_utf8(stderr).unwrap() }
}

/// `imastage verify` on the four files of a quote.
pub fn verify([message, signature, key, list]: [&str; 4], nonce: &str, options: &[&str]) -> Answer {
    let files = ["--quote", message, "--signature", signature, "--key", key, "--nonce", nonce];
    imastage(&[&["verify"], &files[..], options, &[list]].concat())
}

/// The program, not started yet.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imastage"));
    command.args(args).env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

/// A command that runs until it is stopped. Dropping it stops it.
pub struct Running {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Running {
    /// Started, and not waited for.
    pub fn spawn(args: &[&str]) -> Running {
        Running::of(&mut command(args))
    }

    /// A command that was not started yet.
    pub fn of(command: &mut Command) -> Running {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().map(BufReader::new);
        Running { child, stdout }
    }

    /// Started, and ready.
    pub fn start(args: &[&str]) -> Running {
        let mut running = Running::spawn(args);
        running.wait_until_ready();
        running
    }

    pub fn wait_until_ready(&mut self) {
        let mut stdout = self.stdout.take().unwrap();
        let (said, line) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let read = stdout.read_line(&mut line);
            // Nobody waits any more if it took too long.
            let _ = said.send((read.map(|_| line), stdout));
        });
        let Ok((line, stdout)) = line.recv_timeout(LONGEST) else {
            let _ = self.child.kill();
            panic!("process {} does not say that it is ready", self.child.id());
        };
        self.stdout = Some(stdout);
        assert!(!line.unwrap().is_empty(), "it ended instead: {:?}", self.child.wait());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; gives the exit code.
    pub fn stop(mut self) -> i32 {
        self.terminate();
        wait_for_end(&mut self.child).code().unwrap_or(-1)
    }

    fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        // Ended already: nothing to do.
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// Waits until it ends by itself; gives the exit code.
    pub fn wait(mut self) -> i32 {
        wait_for_end(&mut self.child).code().unwrap_or(-1)
    }
}

impl Drop for Running {
    /// In peace, so that a sandbox unmounts.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
            let _ = self.child.wait();
        }
    }
}

/// A directory with a sandbox in it.
pub struct Machine {
    /// Dropped first: it is mounted below `dir`.
    pub sandbox: Running,
    pub dir: tempfile::TempDir,
}

impl Machine {
    /// `None`, loudly, where FUSE cannot be had.
    pub fn start() -> Option<Machine> {
        Machine::start_with(&[])
    }

    /// With more options of `imastage sandbox`.
    pub fn start_with(options: &[&str]) -> Option<Machine> {
        if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/fuse") {
            eprintln!("SKIPPED: /dev/fuse: {error}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("ima");
        let mount = mount.to_str().unwrap();
        // Others execute programs at any time, and as root they would be measured, too.
        let begin = ["--json", "sandbox", "--no-watch", "--mount", mount];
        let sandbox = Running::start(&[&begin, options].concat());
        Some(Machine { sandbox, dir })
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn mount(&self) -> String {
        self.path("ima")
    }

    pub fn state(&self) -> String {
        self.path("state")
    }

    /// New files with contents of their own.
    pub fn files(&self, prefix: &str, count: usize) -> Vec<PathBuf> {
        let dir = self.dir.path().join("files");
        std::fs::create_dir_all(&dir).unwrap();
        (0..count)
            .map(|i| {
                let path = dir.join(format!("{prefix}-{i}"));
                std::fs::write(&path, path.to_str().unwrap()).unwrap();
                path
            })
            .collect()
    }
}

/// What the doctor says of one thing, the worst first.
pub fn findings<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    let all = report["findings"].as_array().unwrap().iter();
    all.filter(|finding| finding["check"] == check).collect()
}

/// The one finding there is of a check, and that it is so severe.
pub fn finding<'a>(report: &'a Value, check: &str, severity: &str) -> &'a Value {
    let found = findings(report, check);
    assert_eq!(found.len(), 1, "{check}: {report:#}");
    assert_eq!(found[0]["severity"], severity, "{:#}", found[0]);
    found[0]
}

pub fn says(finding: &Value, key: &str, part: &str) {
    let text = finding[key].to_string();
    assert!(text.contains(part), "{part:?} is not in {key}: {finding:#}");
}
