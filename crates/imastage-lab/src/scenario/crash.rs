//! SIGKILLs of the service.

use std::{
    thread,
    time::{Duration, Instant},
};

use ima_log::Bank;
use serde_json::Value;

use crate::{
    error::{LabError, must},
    kernel::Kernel,
    lab::Lab,
    machine::{Machine, PATIENCE, Plan},
    scenario::{
        replays::{each_once, parsed, replay_list, whole},
        report::Report,
        restart::{Lasting, power_cuts, random_millis},
        service::{KILL, Service, TERM, stored},
    },
    wire::Files,
};

const STATE: &str = "/run/state";
/// Files measured while a service runs, at most.
const FILES: u64 = 300;

/// A few kills.
pub fn crash(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    const KILLS: u32 = 20;
    kills(lab, kernel, KILLS, report)
}

/// Many kills, and power cuts.
pub fn crash_long(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    const KILLS: u32 = 200;
    const CUTS: u64 = 10;
    kills(lab, kernel, KILLS, report)?;
    power_cuts(lab, kernel, &Lasting::new()?, CUTS, report)
}

/// Kills the service at random moments while files are measured and another agent stages and reads.
fn kills(lab: &Lab, kernel: &Kernel, kills: u32, report: &mut Report) -> Result<(), LabError> {
    let mut machine = lab.boot(kernel, &Plan { processors: 2, ..Plan::default() })?;
    let agent = machine.start("/init", &["agent", "stage", "5"])?;
    let mut measured = Vec::new();
    for kill in 0..kills {
        // A bounded number: reading a list is quadratic, and a slow host would never catch up.
        machine.keep_measuring(Files::new(dir(kill), FILES))?;
        let before = size(&mut machine);
        let service = start(&mut machine)?;
        // Every other service is killed after it has stored something, the others at any moment,
        // which is before that on most hosts.
        let since = Instant::now();
        while kill % 2 == 1 && size(&mut machine) <= before {
            must(since.elapsed() < PATIENCE, || format!("kill {kill}: nothing is stored"))?;
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(Duration::from_millis(random_millis()? / 4));
        machine.signal(service, KILL)?;
        machine.wait(service)?;
        measured.push(machine.stop_measuring()?.count);
    }
    report.saw("kills", kills);

    let service = Service::start(&mut machine, STATE, &["--every", "20"])?;
    machine.signal(agent, TERM)?;
    let agent = machine.wait(agent)?;
    must(agent.code == 0, || format!("the other agent: code {}", agent.code))?;
    let agent: Value = serde_json::from_slice(&agent.stdout)
        .map_err(|error| LabError::Refuted(format!("the other agent: {error}")))?;
    report.saw("batches that the other agent staged", &agent["batches"]);
    let status = service.consistent(&mut machine)?;
    must(status["problems"] == serde_json::json!([]), || status.to_string())?;
    service.stop(&mut machine)?;
    let kept = stored(&mut machine, STATE, 1)?;
    let end = machine.snapshot()?;
    let whole = whole(&kept, &end);
    let replayed = replay_list(&whole, &end)?;
    let records = parsed(&whole, Bank::Sha1)?;
    for (kill, count) in (0..).zip(measured) {
        each_once(&records, &dir(kill), count)?;
    }
    report.saw("records", replayed.records);
    machine.power_off()
}

/// The directory of the files that are measured while a service runs.
fn dir(kill: u32) -> String {
    format!("/measured-{kill}")
}

/// The size of the stored records in bytes; 0 before the service has created its state directory.
fn size(machine: &mut Machine) -> usize {
    stored(machine, STATE, 1).map_or(0, |records| records.len())
}

/// Starts the service without waiting for it, so that it can be killed while it starts.
fn start(machine: &mut Machine) -> Result<u32, LabError> {
    let args = ["--json", "run", "--source", crate::lab::LIST, "--state", STATE, "--every", "20"];
    machine.start("/bin/imastage", &args)
}
