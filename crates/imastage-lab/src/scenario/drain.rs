//! The service on a kernel with staging.

use std::collections::BTreeMap;

use ima_log::{Bank, Record};

use crate::{
    error::{LabError, must},
    kernel::Kernel,
    lab::Lab,
    machine::{Machine, Plan},
    scenario::{
        capture::measure_awkward,
        replays::{self, each_once, extends, parsed, replay_list, whole},
        report::Report,
        service::{Service, stored},
    },
    wire::Files,
};

/// On tmpfs, which policies exclude: reading the store adds no records.
const STATE: &str = "/run/state";
const VIEW: &str = "/run/view";
/// Directories of files that are measured while the service drains, and files in each.
const DIRS: u64 = 5;
const FILES: u64 = 300;

/// The service drains the list by staging (A, D), then by deleting the first N records.
pub fn drain(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    drained(lab, kernel, "ima_policy=tcb", "stage", report)?;
    drained(lab, kernel, "ima_policy=tcb", "first-n", report)
}

/// The service stages with `ima_flush_htable`, which refuses to delete the first N records.
pub fn flush(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    drained(lab, kernel, "ima_policy=tcb ima_flush_htable", "stage", report)
}

/// Drains thousands of records while files are measured, and compares store, view, counters and
/// PCRs.
fn drained(
    lab: &Lab,
    kernel: &Kernel,
    append: &str,
    mode: &str,
    report: &mut Report,
) -> Result<(), LabError> {
    let plan = Plan { append: append.to_owned(), processors: 2, ..Plan::default() };
    let mut machine = lab.boot(kernel, &plan)?;
    let args = ["--view", VIEW, "--every", "20", "--delete-mode", mode];
    let service = Service::start(&mut machine, STATE, &args)?;
    machine.keep_measuring(Files::new("/a", u64::MAX))?;
    for number in 0..DIRS {
        machine.measure(Files::new(format!("/b{number}"), FILES))?;
        let (code, status) = service.status(&mut machine)?;
        must(code != 1, || format!("while files are measured: {status}"))?;
    }
    measure_awkward(&mut machine)?;
    let meanwhile = machine.stop_measuring()?;
    service.consistent(&mut machine)?;
    let status = service.deleted(&mut machine)?;
    let since_start = &status["since_start"];
    let views = read_view(&mut machine)?;
    service.stop(&mut machine)?;

    let kept = stored(&mut machine, STATE, 1)?;
    let end = machine.snapshot()?;
    let left = String::from_utf8_lossy(end.file("runtime_measurements_count")).trim().to_owned();
    must(left == parsed(end.list(), Bank::Sha1)?.len().to_string(), || {
        format!("runtime_measurements_count is {left}, the current list has another length")
    })?;
    let whole = whole(&kept, &end);
    let replayed = replay_list(&whole, &end)?;
    let records = parsed(&whole, Bank::Sha1)?;
    must(records.iter().all(|record| record.pcr() == kernel.pcr), || {
        format!("expected records of PCR {} only", kernel.pcr)
    })?;
    each_once(&records, "/a", meanwhile.count)?;
    for number in 0..DIRS {
        each_once(&records, &format!("/b{number}"), FILES)?;
    }
    let before = status["records"].as_u64().and_then(|records| records.try_into().ok());
    let before = before.unwrap_or(records.len());
    for (name, view) in &views {
        compare(name, view, before, &records)?;
    }
    report.saw(&format!("{append}, {mode}: records"), replayed.records);
    report.saw(&format!("{append}, {mode}: drains"), &since_start["drains"]);
    report.saw(&format!("{append}, {mode}: banks"), extends(&replayed));
    report.saw(&format!("{append}, {mode}: files of the view"), views.len());
    machine.power_off()
}

/// All list files of the view.
fn read_view(machine: &mut Machine) -> Result<BTreeMap<String, Vec<u8>>, LabError> {
    let mut files = BTreeMap::new();
    for name in machine.names(VIEW)? {
        if name.contains("_runtime_measurements") {
            let content = machine.read(&format!("{VIEW}/{name}"))?;
            files.insert(name, content);
        }
    }
    must(!files.is_empty(), || format!("{VIEW} has no list"))?;
    Ok(files)
}

/// Checks that a file of the view is a prefix of all records in its bank and form, and has at least
/// the records that were stored before it was read. Reading it adds records.
fn compare(name: &str, view: &[u8], stored: usize, records: &[Record<'_>]) -> Result<(), LabError> {
    let Some(rendered) = replays::rendered(name, records)? else { return Ok(()) };
    let stored = records.get(..stored).unwrap_or(records);
    let at_least = replays::rendered(name, stored)?.map_or(0, |content| content.len());
    let at = view.iter().zip(&rendered).position(|(a, b)| a != b);
    must(rendered.starts_with(view) && view.len() >= at_least, || {
        format!(
            "{name}: {} bytes, expected {at_least} to {} bytes of the records; first difference at \
             {at:?}",
            view.len(),
            rendered.len()
        )
    })
}
