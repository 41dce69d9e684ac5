//! Costs of a long list and of the service.

use std::time::Duration;

use crate::{
    error::LabError,
    kernel::Kernel,
    lab::{LIST, Lab},
    machine::{Machine, Plan},
    scenario::{
        report::Report,
        service::{Service, count},
    },
    wire::Files,
};

/// Lengths of the list for the read measurements.
const RECORDS: [u64; 3] = [1_000, 5_000, 20_000];
/// Files measured with and without the service.
const FILES: u64 = 1_000;

/// The cost of reading a long list, and the service's cost for measuring. Without a verdict.
pub fn cost(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let mut machine = lab.boot(kernel, &Plan { memory: 1024, ..Plan::default() })?;
    let mut first = 0;
    let mut rate = |machine: &mut Machine, count: u64| {
        let files = Files { dir: "/a".to_owned(), first, count, size: 100 };
        first += count;
        machine.measure(files)
    };
    for records in RECORDS {
        let missing = records.saturating_sub(count(&mut machine)?);
        // In pieces: every request must be answered before the timeout.
        for piece in pieces(missing) {
            rate(&mut machine, piece)?;
        }
        let mut times = Vec::new();
        for (name, step) in [("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)] {
            let path = format!("{LIST}/binary_runtime_measurements");
            let (list, took) = machine.read_in_steps(&path, step)?;
            times.push(format!("{name} {} ms ({} KiB)", took.as_millis(), list.len() >> 10));
        }
        report.saw(&format!("reading {records:>6} records, by read size"), times.join(", "));
    }
    let alone = rate(&mut machine, FILES)?;
    let service = Service::start(&mut machine, "/run/state", &[])?;
    service.consistent(&mut machine)?;
    let followed = rate(&mut machine, FILES)?;
    service.stop(&mut machine)?;
    let again = rate(&mut machine, FILES)?;
    for (what, measured) in
        [("without the service", alone), ("with it", followed), ("without it again", again)]
    {
        report.saw(
            &format!("files measured per second, {what}"),
            format!("{:.0}", per_second(measured.count, measured.took)),
        );
    }
    machine.power_off()
}

fn pieces(mut count: u64) -> Vec<u64> {
    const PIECE: u64 = 1_000;
    let mut pieces = Vec::new();
    while count > 0 {
        pieces.push(count.min(PIECE));
        count -= count.min(PIECE);
    }
    pieces
}

fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE)
}
