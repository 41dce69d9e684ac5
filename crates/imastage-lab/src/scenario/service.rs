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

    /// Waits until the whole list of the kernel is stored and replays to the TPM's PCR, which needs a
    /// guest that measures nothing; returns the status.
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
        loop {
            let (code, status) = self.status(machine)?;
            let count = count(machine)?;
            let consistent = status["verdict"]["state"] == "consistent";
            let all = match self.deletes {
                true => replays_to_the_pcr(machine, &status)?,
                false => status["records"].as_u64().is_some_and(|all| all >= forgotten + count),
            };
            if consistent && all && code == 0 {
                return Ok(status);
            }
            // Code 1, a negative verdict, is final; other problems can be temporary.
            must(code != 1 && since.elapsed() < PATIENCE, || {
                format!("the kernel counts {count} records; code {code}: {status}")
            })?;
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

/// Whether the stored records replay to the PCR that the kernel shows now: nothing is missing that
/// was measured before `status` was read.
fn replays_to_the_pcr(machine: &mut Machine, status: &Value) -> Result<bool, LabError> {
    let bank = &status["banks"]["sha256"];
    // Without records, the list's PCR is not known.
    let Some(pcr) = bank["pcr"].as_u64() else { return Ok(false) };
    let pcr = machine.read(&format!("/sys/class/tpm/tpm0/pcr-sha256/{pcr}"))?;
    let pcr = String::from_utf8_lossy(&pcr).trim().to_lowercase();
    Ok(bank["replayed"] == pcr.as_str())
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
