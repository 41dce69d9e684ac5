//! Costs of staging and deletion, measured in the kernel.

use serde_json::Value;

use crate::{
    ask::Measured,
    error::LabError,
    kernel::Kernel,
    lab::{LIST, Lab},
    machine::{Machine, Plan, Tpm},
    scenario::{report::Report, service::TERM},
    wire::Files,
};

/// Files measured for each latency figure.
const FILES: u64 = 5_000;
/// Lengths of the list for memory and read times.
const RECORDS: [u64; 2] = [10_000, 100_000];

/// The latency of measuring while others stage and delete, how long they have the list open, the
/// kernel's memory after each request, and the time to read a staged list. Without a verdict and
/// without a TPM, whose commands take 20 times as long as the rest.
pub fn staging_cost(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    latency(lab, kernel, report)?;
    for flush in [false, true] {
        for records in RECORDS {
            memory(lab, kernel, flush, records, report)?;
        }
    }
    Ok(())
}

fn boot(lab: &Lab, kernel: &Kernel, words: &str) -> Result<Machine, LabError> {
    let append = format!("ima_policy=tcb {words}");
    lab.boot(
        kernel,
        &Plan { append, tpm: Tpm::None, processors: 2, memory: 2048, ..Plan::default() },
    )
}

fn latency(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let mut machine = boot(lab, kernel, "")?;
    // The first files fill the caches of processor and file system.
    machine.measure(Files::new("/warm-up", FILES))?;
    let idle = machine.measure(Files::new("/idle", FILES))?;
    report.saw("opening a file, nobody stages: p50, p99, p99.9", micros(&idle));
    for (agent, what) in [("stage-and-delete", "A, read, D"), ("delete-n", "N = 100")] {
        let pid = machine.start("/init", &["agent", agent, "0"])?;
        let beside = machine.measure(Files::new(format!("/{agent}"), FILES))?;
        machine.signal(pid, TERM)?;
        let said = machine.wait(pid)?.stdout;
        let done: Value = serde_json::from_slice(&said)
            .map_err(|error| LabError::Refuted(format!("agent {agent}: {error}")))?;
        report.saw(&format!("opening a file beside {what}: p50, p99, p99.9"), micros(&beside));
        let mut held: Vec<u64> = done["held"]
            .as_array()
            .map(|all| all.iter().filter_map(Value::as_u64).collect())
            .unwrap_or_default();
        held.sort_unstable();
        let at = |percent: usize| held.get(held.len() * percent / 100).copied().unwrap_or_default();
        report.saw(
            &format!("{what}: batches; list held open, p50, p99"),
            format!("{}; {}, {} us", done["batches"], at(50), at(99)),
        );
    }
    machine.power_off()
}

/// Memory after A, D and N, and the time to read what is staged.
fn memory(
    lab: &Lab,
    kernel: &Kernel,
    flush: bool,
    records: u64,
    report: &mut Report,
) -> Result<(), LabError> {
    let mut machine = boot(lab, kernel, if flush { "ima_flush_htable" } else { "" })?;
    let before = slab(&mut machine)?;
    machine.measure(Files::new("/first", records))?;
    let mut seen = vec![grown("measured", before, slab(&mut machine)?)];
    let staged = format!("{LIST}/binary_runtime_measurements_staged");
    machine.write(staged.as_bytes(), 0o660, b"A\n")?;
    seen.push(grown("A", before, slab(&mut machine)?));
    let (list, took) = machine.read_in_steps(&staged, 1 << 16)?;
    machine.write(staged.as_bytes(), 0o660, b"D\n")?;
    seen.push(grown("D", before, slab(&mut machine)?));
    if !flush {
        machine.measure(Files::new("/second", records))?;
        seen.push(grown("measured again", before, slab(&mut machine)?));
        let current = format!("{LIST}/binary_runtime_measurements");
        machine.write(current.as_bytes(), 0o660, format!("{records}\n").as_bytes())?;
        seen.push(grown("N", before, slab(&mut machine)?));
    }
    let name = if flush { "ima_flush_htable" } else { "default" };
    report.saw(&format!("{name}, {records} records: unreclaimable slab, KiB"), seen.join(", "));
    report.saw(
        &format!("{name}, {records} records: reading the staged list"),
        format!("{} ms ({} KiB)", took.as_millis(), list.len() >> 10),
    );
    machine.power_off()
}

fn grown(after: &str, before: i64, now: i64) -> String {
    format!("{after} {:+}", now - before)
}

/// Unreclaimable slab in KiB (proc(5), /proc/meminfo).
fn slab(machine: &mut Machine) -> Result<i64, LabError> {
    let text = machine.read("/proc/meminfo")?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    number.ok_or_else(|| LabError::Refuted(format!("/proc/meminfo has no SUnreclaim: {text}")))
}

fn micros(measured: &Measured) -> String {
    let words = measured.open.map(|time| format!("{:.0}", time.as_nanos() as f64 / 1000.0));
    format!("{} us", words.join(", "))
}
