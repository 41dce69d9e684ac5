//! The service on a kernel with staging.

use std::{collections::BTreeMap, str::FromStr};

use ima_log::{Bank, Record};

use crate::{
    error::{LabError, must},
    kernel::Kernel,
    lab::Lab,
    machine::{Machine, Plan},
    scenario::{
        capture::measure_awkward,
        replays::{each_once, extends, parsed, replay_list, whole},
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
    machine.keep_measuring(files("/a", u64::MAX))?;
    for number in 0..DIRS {
        machine.measure(files(&format!("/b{number}"), FILES))?;
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
    let before = status["records"].as_u64().unwrap_or_default();
    for (name, view) in &views {
        compare(name, view, before, &records)?;
    }
    report.saw(&format!("{append}, {mode}: records"), replayed.records);
    report.saw(&format!("{append}, {mode}: drains"), &since_start["drains"]);
    report.saw(&format!("{append}, {mode}: banks"), extends(&replayed));
    report.saw(&format!("{append}, {mode}: files of the view"), views.len());
    machine.power_off()
}

fn files(dir: &str, count: u64) -> Files {
    Files { dir: dir.to_owned(), first: 0, count, size: 50 }
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
fn compare(name: &str, view: &[u8], stored: u64, records: &[Record<'_>]) -> Result<(), LabError> {
    let Some((form, bank)) = name.split_once("_runtime_measurements") else { return Ok(()) };
    let bank = match bank.strip_prefix('_') {
        None => Bank::Sha1,
        Some(bank) => {
            Bank::from_str(bank).map_err(|error| LabError::Refuted(format!("{name}: {error}")))?
        }
    };
    let mut rendered = Vec::new();
    let mut at_least = 0;
    for (index, record) in (0..).zip(records) {
        if index == stored {
            at_least = rendered.len();
        }
        match form {
            "ascii" => record.write_ascii(bank, &mut rendered),
            _ => record.write_binary(bank, &mut rendered),
        }
    }
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
