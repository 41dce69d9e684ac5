//! Follow mode on a busy guest.

use ima_log::Bank;

use crate::{
    ask::Snapshot,
    error::{LabError, must},
    kernel::Kernel,
    lab::{LIST, Lab},
    machine::{Machine, Plan},
    scenario::{
        capture::measure_awkward,
        replays::{extends, parsed, replay_list},
        report::Report,
        service::{Service, stored},
    },
    wire::Files,
};

/// On tmpfs, which policies exclude: the store is read and written as root.
const STATE: &str = "/run/state";
const VIEW: &str = "/run/view";

/// The service follows a stock kernel while many files are measured; store and view then equal the
/// kernel's list, byte for byte.
pub fn follow(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let mut machine = lab.boot(kernel, &Plan::default())?;
    let service = Service::start(&mut machine, STATE, &["--view", VIEW])?;
    machine.keep_measuring(Files { dir: "/a".to_owned(), first: 0, count: 100_000, size: 50 })?;
    for number in 0..5 {
        let (dir, first) = (format!("/b{number}"), number * 1000);
        machine.measure(Files { dir, first, count: 60, size: 200 })?;
        service.status(&mut machine)?;
    }
    measure_awkward(&mut machine)?;
    let meanwhile = machine.stop_measuring()?;
    let status = service.consistent(&mut machine)?;
    report.saw("records", &status["records"]);
    report.saw("measured in the background", meanwhile.count);

    let before = machine.snapshot()?;
    let seen = read_view(&mut machine, &before)?;
    let after = machine.snapshot()?;
    for (name, view) in &seen {
        // Reading the view as root is measured like any file: the list grows meanwhile.
        let (first, last) = (before.file(name), after.file(name));
        must(view.starts_with(first) && last.starts_with(view), || {
            let at = view.iter().zip(last).position(|(a, b)| a != b);
            format!(
                "{VIEW}/{name}: {} bytes, the kernel's file {} before and {} after; first difference \
                 at {at:?}",
                view.len(),
                first.len(),
                last.len()
            )
        })?;
    }
    report.saw("files of the view", seen.len());
    let grown = parsed(after.list(), Bank::Sha1)?.len() - parsed(before.list(), Bank::Sha1)?.len();
    report.saw("records added by reading the view", grown);

    service.consistent(&mut machine)?;
    let last = machine.snapshot()?;
    let list = stored(&mut machine, STATE, 1)?;
    must(list == last.list(), || {
        format!("the store has {} bytes, the kernel's list {}", list.len(), last.list().len())
    })?;
    report.saw("banks", extends(&replay_list(&list, &last)?));
    service.stop(&mut machine)?;
    machine.power_off()
}

/// The files of the view that the kernel has, too.
fn read_view(machine: &mut Machine, kernel: &Snapshot) -> Result<Vec<(String, Vec<u8>)>, LabError> {
    let mut files = Vec::new();
    for name in kernel.0.keys().filter(|name| name.contains("_runtime_measurements")) {
        // The view also has files of banks that the kernel lacks.
        files.push((name.clone(), machine.read(&format!("{VIEW}/{name}"))?));
    }
    must(!files.is_empty(), || format!("{LIST} has no list"))?;
    Ok(files)
}
