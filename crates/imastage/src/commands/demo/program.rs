//! This very program, run as anyone would run it.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;

use crate::{
    exit::{Fail, Failure},
    output::pass_log_level,
};

pub struct Program(PathBuf);

/// What a command answered.
pub struct Answer {
    pub code: i32,
    pub json: Value,
}

/// A command that runs until it is stopped. Dropping it stops it.
pub struct Running {
    child: Child,
    /// Kept open, so that what it prints at the end does not fail.
    _stdout: BufReader<ChildStdout>,
    /// What it said when it was ready.
    pub greeting: Value,
}

impl Program {
    pub fn this() -> Result<Program, Failure> {
        std::env::current_exe().environment("own program").map(Program)
    }

    /// Runs a command that has to succeed.
    pub fn ask(&self, args: &[&str]) -> Result<Answer, Failure> {
        let answer = self.try_ask(args)?;
        if answer.code == 0 {
            return Ok(answer);
        }
        let shown = args.get(..2).unwrap_or(args).join(" ");
        Err(Failure::environment(format!("imastage {shown}: {}", answer.json)))
    }

    /// Runs a command, whatever comes of it.
    pub fn try_ask(&self, args: &[&str]) -> Result<Answer, Failure> {
        let output = self.command(args).stdin(Stdio::null()).output().environment("own program")?;
        let printed = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
        let json = serde_json::from_slice(printed)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(printed).trim()));
        Ok(Answer { code: output.status.code().unwrap_or(-1), json })
    }

    /// Starts a command that runs until it is stopped, and waits until it is ready.
    pub fn start(&self, args: &[&str]) -> Result<Running, Failure> {
        let mut child = self
            .command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .environment("own program")?;
        let stdout = child.stdout.take().map(BufReader::new);
        let Some(mut stdout) = stdout else {
            return Err(Failure::environment("no pipe to own program"));
        };
        let mut line = String::new();
        stdout.read_line(&mut line).environment("own program")?;
        match serde_json::from_str(&line) {
            Ok(greeting) => Ok(Running { child, _stdout: stdout, greeting }),
            Err(_) => {
                let status = child.wait().environment("own program")?;
                Err(Failure::environment(format!(
                    "imastage {} ended ({status}); its reason stands above",
                    args.first().unwrap_or(&"")
                )))
            }
        }
    }

    fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(&self.0);
        command.arg("--json").args(args);
        pass_log_level(&mut command);
        command
    }
}

impl Running {
    /// SIGKILL.
    pub fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill().and_then(|()| self.child.wait()).environment("own program").map(drop)
    }

    /// SIGTERM, and waits.
    pub fn stop(&mut self) -> Result<(), Failure> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .environment("own program")?;
        }
        self.child.wait().environment("own program").map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // In peace, so that a sandbox unmounts; if it has ended already there is nothing to do.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.stop();
        }
    }
}
