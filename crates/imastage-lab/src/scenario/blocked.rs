//! Lists that cannot be staged.

use std::{
    thread,
    time::{Duration, Instant},
};

use ima_log::Bank;
use serde_json::Value;

use crate::{
    error::{LabError, must},
    kernel::Kernel,
    lab::{LIST, Lab},
    machine::{Machine, PATIENCE, Plan},
    scenario::{
        replays::{each_once, parsed},
        report::Report,
        service::{KILL, Service, stored},
    },
    wire::Files,
};

const STATE: &str = "/run/state";
const FILES: u64 = 50;

/// While a reader has the list open, and after the kernel has lost the list's lock, records are
/// stored, and service and doctor report the cause.
pub fn blocked(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let mut machine = lab.boot(kernel, &Plan { processors: 2, ..Plan::default() })?;
    reader(&mut machine, report)?;
    lost_lock(&mut machine, report)?;
    machine.power_off()
}

fn reader(machine: &mut Machine, report: &mut Report) -> Result<(), LabError> {
    let script = format!("exec sleep 100000 <{LIST}/ascii_runtime_measurements");
    let reader = machine.start("/bin/busybox", &["sh", "-c", &script])?;
    let service = Service::start(machine, STATE, &[])?;
    let status = stores_all(machine, &service, "/beside-reader", "busy")?;
    let holder = &status["since_start"]["holders"][0];
    must(holder["pid"] == reader && holder["name"] == "sleep", || {
        format!("expected holder sleep (pid {reader}): {status}")
    })?;
    report.saw("beside a reader", reason(&status, "busy"));
    machine.signal(reader, KILL)?;
    machine.wait(reader)?;
    service.consistent(machine)?;
    service.deleted(machine)?;
    service.stop(machine)
}

fn lost_lock(machine: &mut Machine, report: &mut Report) -> Result<(), LabError> {
    // The rule fails if the kernel has the bug, and leaves the list locked.
    let args = ["conformance", "--destructive", "--hazards", "--rule", "1.9.6", LIST];
    let (code, said) = machine.imastage(&args)?;
    if code == 0 {
        report.saw("lost lock", "this kernel does not lose it");
        return Ok(());
    }
    must(code == 1, || format!("rule 1.9.6: code {code}: {said}"))?;
    // The suite has deleted the beginning of the list.
    let service = Service::start(machine, &format!("{STATE}-2"), &["--adopt"])?;
    let status = stores_all(machine, &service, "/after-lost-lock", "lock-lost")?;
    report.saw("lost lock", reason(&status, "lock-lost"));
    let (_, said) = machine.imastage(&["doctor", "--state", &service.state])?;
    let text = said.to_string();
    must(text.contains("lost the list's lock"), || format!("doctor: {text}"))?;
    service.stop(machine)
}

/// Has files measured, and waits until they are stored and the service reports the condition
/// `health`, beside others or alone.
fn stores_all(
    machine: &mut Machine,
    service: &Service,
    dir: &str,
    health: &str,
) -> Result<Value, LabError> {
    machine.measure(Files::new(dir, FILES))?;
    let since = Instant::now();
    loop {
        let (_, status) = service.status(machine)?;
        let kept = stored(machine, &service.state, 1)?;
        let stored = each_once(&parsed(&kept, Bank::Sha1)?, dir, FILES);
        if !reason(&status, health).is_empty() && stored.is_ok() {
            return Ok(status);
        }
        must(since.elapsed() < PATIENCE, || format!("expected {health}: {stored:?}; {status}"))?;
        thread::sleep(Duration::from_millis(100));
    }
}

/// The reason of a condition in a status; empty if it is not reported.
fn reason<'a>(status: &'a Value, condition: &str) -> &'a str {
    let all = status["health"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = all.iter().find(|one| one["state"] == condition);
    found.and_then(|one| one["reason"].as_str()).unwrap_or_default()
}
