use ima_log::Bank;

use crate::{
    Kernel, Lab, LabError, Machine, Plan, Snapshot,
    error::must,
    scenario::{
        Report,
        capture::measure_awkward,
        replays::{extends, parsed, replay_list},
        service::{LIST, Service, stored},
    },
    wire::Files,
};

/// On a file system that policies leave out: the store is read and written as root, too.
const STATE: &str = "/run/state";
const VIEW: &str = "/run/view";

/// The service follows a stock kernel while much is measured; then store and view are the kernel's
/// list, byte for byte.
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
        // A view is read by root like any file: that is measured.
        let (first, last) = (before.file(name), after.file(name));
        must(view.starts_with(first) && last.starts_with(view), || {
            let at = view.iter().zip(last).position(|(a, b)| a != b);
            format!(
                "the view's {name} has {} bytes, the kernel's {} before and {} after; they differ from \
                 {at:?}",
                view.len(),
                first.len(),
                last.len()
            )
        })?;
    }
    report.saw("files of the view", seen.len());
    let grown = parsed(after.list(), Bank::Sha1)?.len() - parsed(before.list(), Bank::Sha1)?.len();
    report.saw("records made by reading the view", grown);

    service.consistent(&mut machine)?;
    let last = machine.snapshot()?;
    let list = stored(&mut machine, STATE, 1)?;
    must(list == last.list(), || {
        format!("{} bytes are stored, the kernel's list has {}", list.len(), last.list().len())
    })?;
    report.saw("banks", extends(&replay_list(&list, &last)?));
    service.stop(&mut machine)?;
    machine.power_off()
}

/// All files of the view that the kernel has, too.
fn read_view(machine: &mut Machine, kernel: &Snapshot) -> Result<Vec<(String, Vec<u8>)>, LabError> {
    let mut files = Vec::new();
    for name in kernel.0.keys().filter(|name| name.contains("_runtime_measurements")) {
        // On kernels without files per bank, the view has them all the same.
        files.push((name.clone(), machine.read(&format!("{VIEW}/{name}"))?));
    }
    must(!files.is_empty(), || format!("{LIST} has no list"))?;
    Ok(files)
}
