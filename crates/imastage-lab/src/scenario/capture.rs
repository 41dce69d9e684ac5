//! Captures of a kernel's list for the test corpus, and records that are awkward to parse.

use std::{fs, path::Path};

use crate::{
    error::{Doing, LabError},
    kernel::Kernel,
    lab::Lab,
    machine::{Machine, Plan},
    scenario::quotes::quotes,
    wire::{Ask, Files},
};

/// Boots a kernel, measures some files, and writes a consistent capture into a directory: all files
/// of the list, counters, PCR values, quotes over them, the firmware's event log, the console.
///
/// # Errors
/// [`LabError`].
pub fn capture(lab: &Lab, kernel: &Kernel, plan: &Plan, out: &Path) -> Result<(), LabError> {
    fs::create_dir_all(out).at(out)?;
    let mut machine = lab.boot(kernel, plan)?;
    measure_awkward(&mut machine)?;
    let snapshot = machine.snapshot()?;
    if !snapshot.pcrs().is_empty() {
        for (name, content) in quotes(&mut machine, &snapshot)? {
            let path = out.join(name);
            fs::write(&path, content).at(&path)?;
        }
    }
    for (name, content) in snapshot.0 {
        // The corpus uses short names.
        let name = match name.as_str() {
            "runtime_measurements_count" => "count".to_owned(),
            name => name.replacen("_runtime_measurements", "", 1),
        };
        let path = out.join(name);
        fs::write(&path, content).at(&path)?;
    }
    if let Ok(log) = machine.read("/sys/kernel/security/tpm0/binary_bios_measurements") {
        fs::write(out.join("bios_measurements"), log).at(out)?;
    }
    fs::write(out.join("console"), machine.console()).at(out)?;
    fs::write(out.join("uname"), format!("{}\n", machine.release())).at(out)?;
    fs::write(out.join("cmdline"), machine.read("/proc/cmdline")?).at(out)?;
    machine.power_off()
}

/// The awkward records in a list.
pub struct Awkward {
    /// Names of measured files, not necessarily UTF-8.
    pub names: Vec<Vec<u8>>,
    /// The number of violations.
    pub violations: u64,
}

/// Adds awkward records: names with spaces, newlines, tabs, bytes that are not UTF-8, and close to
/// PATH_MAX bytes; violations of both kinds.
pub fn measure_awkward(machine: &mut Machine) -> Result<Awkward, LabError> {
    machine.measure(Files { dir: "/measured".to_owned(), first: 0, count: 10, size: 100 })?;
    let mut long = b"/long".to_vec();
    while long.len() + 200 < 4000 {
        long.push(b'/');
        long.extend([b'n'; 199]);
    }
    let names: Vec<Vec<u8>> = vec![
        b"/names/with spaces in  it".to_vec(),
        b"/names/new\nline".to_vec(),
        b"/names/tab\tand return\r".to_vec(),
        b"/names/not utf-8 \xff\xfe\x80".to_vec(),
        "/names/\u{fc}\u{4e2d}".as_bytes().to_vec(),
        b"/names/colon:quote\"back\\slash".to_vec(),
        long,
    ];
    for (number, name) in names.iter().enumerate() {
        // Contents differ: records of equal digest and name are duplicates.
        machine.write(name, 0o644, format!("content {number}").as_bytes())?;
        machine.ask(&Ask::Read { path: name.clone(), step: 100 }, &[])?;
    }
    for reader_first in [true, false] {
        let path = format!("/violated-{reader_first}");
        machine.done(&Ask::Violate { path, reader_first }, &[])?;
    }
    Ok(Awkward { names, violations: 2 })
}
