//! The service in a guest, and its store.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    error::{LabError, must},
    lab::LIST,
    machine::{Machine, PATIENCE},
};

/// SIGKILL and SIGTERM.
pub const KILL: i32 = 9;
pub const TERM: i32 = 15;

/// `imastage run` in a guest, on the kernel's list.
pub struct Service {
    /// Its process ID.
    pub pid: u32,
    /// Its state directory.
    pub state: String,
    /// Whether it deletes what it stores.
    deletes: bool,
}

impl Service {
    /// Starts the service and waits until it answers.
    pub fn start(machine: &mut Machine, state: &str, more: &[&str]) -> Result<Service, LabError> {
        let mut args = vec!["--json", "run", "--source", LIST, "--state", state];
        args.extend(more);
        let pid = machine.start("/bin/imastage", &args)?;
        let deletes = machine.names(LIST)?.iter().any(|name| name.ends_with("_staged"));
        let service = Service { pid, state: state.to_owned(), deletes };
        let since = Instant::now();
        loop {
            // Before the service has created its state directory, status fails.
            match machine.imastage(&["status", "--state", state]) {
                Ok((_, status)) if status["pid"].is_u64() => return Ok(service),
                Err(error @ LabError::Lost { .. }) => return Err(error),
                Ok(_) | Err(_) if since.elapsed() < PATIENCE => {}
                Ok((_, status)) => {
                    return Err(LabError::Refuted(format!(
                        "the service does not answer: {status}"
                    )));
                }
                Err(error) => return Err(error),
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The exit code and output of `imastage status`.
    pub fn status(&self, machine: &mut Machine) -> Result<(i32, Value), LabError> {
        machine.imastage(&["status", "--state", &self.state])
    }

    /// Waits until all records that the kernel has when this is called are stored and replay to the
    /// TPM's PCR; returns the status.
    pub fn consistent(&self, machine: &mut Machine) -> Result<Value, LabError> {
        self.consistent_after(machine, 0)
    }

    /// As [`Service::consistent`], for a kernel whose list lacks the first `forgotten` records of
    /// the epoch.
    pub fn consistent_after(
        &self,
        machine: &mut Machine,
        forgotten: u64,
    ) -> Result<Value, LabError> {
        let since = Instant::now();
        let mut all = None;
        let mut before = None;
        loop {
            let (code, status) = self.status(machine)?;
            let stored = status["records"].as_u64();
            // Records move from the list to the store at any time. If none did while the list's
            // length was read, the sum is exact.
            match (before, stored) {
                (Some((stored_before, count)), Some(stored)) if all.is_none() => {
                    if !self.deletes {
                        all = Some(forgotten + count);
                    } else if stored_before == stored {
                        all = Some(stored + count);
                    }
                }
                _ => {}
            }
            let consistent = status["verdict"]["state"] == "consistent";
            if consistent && code == 0 && all.is_some_and(|all| stored >= Some(all)) {
                return Ok(status);
            }
            // Code 1, a negative verdict, is final; other problems can be temporary.
            must(code != 1 && since.elapsed() < PATIENCE, || {
                format!("expected {all:?} records; code {code}: {status}")
            })?;
            before = stored.zip(Some(count(machine)?));
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits for a verdict on all records; returns the exit code of `imastage status` and its output.
    pub fn settled(&self, machine: &mut Machine) -> Result<(i32, Value), LabError> {
        let since = Instant::now();
        loop {
            let (code, status) = self.status(machine)?;
            let state = status["verdict"]["state"].as_str().unwrap_or_default();
            if !["unchecked", "lagging"].contains(&state) && status["since_start"]["drains"] != 0 {
                return Ok((code, status));
            }
            must(since.elapsed() < PATIENCE, || format!("no verdict: {status}"))?;
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until all stored records are deleted from the list; returns the status.
    pub fn deleted(&self, machine: &mut Machine) -> Result<Value, LabError> {
        let since = Instant::now();
        loop {
            let (_, status) = self.status(machine)?;
            if status["records"] == status["since_start"]["deleted"] {
                return Ok(status);
            }
            must(since.elapsed() < PATIENCE, || format!("not all are deleted: {status}"))?;
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills the service with SIGKILL.
    pub fn kill(self, machine: &mut Machine) -> Result<(), LabError> {
        machine.signal(self.pid, KILL)?;
        machine.wait(self.pid).map(drop)
    }

    /// Stops the service, which drains the list first.
    pub fn stop(self, machine: &mut Machine) -> Result<(), LabError> {
        machine.signal(self.pid, TERM)?;
        let ran = machine.wait(self.pid)?;
        must(ran.code == 0, || format!("the service exited with {}: {}", ran.code, ran.stderr))
    }
}

/// The number of records in the kernel's list, staged ones not included.
pub fn count(machine: &mut Machine) -> Result<u64, LabError> {
    let text = machine.read(&format!("{LIST}/runtime_measurements_count"))?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    text.parse().map_err(|_| {
        LabError::Refuted(format!(
            "{LIST}/runtime_measurements_count: expected a number, found {text:?}"
        ))
    })
}

/// The stored records of an epoch: the concatenation of its segments.
pub fn stored(machine: &mut Machine, state: &str, epoch: u64) -> Result<Vec<u8>, LabError> {
    let dir = format!("{state}/epochs/{epoch:04}");
    let mut records = Vec::new();
    for name in machine.names(&dir)?.iter().filter(|name| name.ends_with(".ima")) {
        records.extend(machine.read(&format!("{dir}/{name}"))?);
    }
    Ok(records)
}
