//! The service in a guest, and its store.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    error::{LabError, must},
    machine::{Machine, PATIENCE},
};

/// The directory of IMA's files in the guest.
pub const LIST: &str = "/sys/kernel/security/ima";
/// SIGTERM.
const TERM: i32 = 15;

/// `imastage run` in a guest, following the kernel's list.
pub struct Service {
    pid: u32,
    /// Its state directory.
    pub state: String,
}

impl Service {
    /// Starts the service and waits until it answers.
    pub fn start(machine: &mut Machine, state: &str, more: &[&str]) -> Result<Service, LabError> {
        let mut args = vec!["--json", "run", "--source", LIST, "--state", state];
        args.extend(more);
        let pid = machine.start("/bin/imastage", &args)?;
        let service = Service { pid, state: state.to_owned() };
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

    /// Waits until the whole list of the kernel is stored and replays to the TPM's PCR; returns the
    /// status.
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
            let count = machine.read(&format!("{LIST}/runtime_measurements_count"))?;
            let count = String::from_utf8_lossy(&count).trim().to_owned();
            let consistent = status["verdict"]["state"] == "consistent";
            let all = count.parse::<u64>().is_ok_and(|count| {
                status["records"].as_u64().is_some_and(|stored| stored >= forgotten + count)
            });
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

    /// Stops the service, which drains the list first.
    pub fn stop(self, machine: &mut Machine) -> Result<(), LabError> {
        machine.signal(self.pid, TERM)?;
        let ran = machine.wait(self.pid)?;
        must(ran.code == 0, || format!("the service exited with {}: {}", ran.code, ran.stderr))
    }
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
