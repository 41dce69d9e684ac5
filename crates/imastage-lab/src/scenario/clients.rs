//! Unmodified programs that read the view.

use std::{
    thread,
    time::{Duration, Instant},
};

use ima_log::Bank;

use crate::{
    ask::Snapshot,
    error::{LabError, must},
    kernel::Kernel,
    lab::Lab,
    machine::{Machine, PATIENCE, Plan},
    process::find,
    scenario::{
        keylime::Reader,
        replays::parsed,
        report::Report,
        service::{KILL, Service, stored},
    },
    wire::Files,
};

const STATE: &str = "/run/state";
const VIEW: &str = "/run/view";
/// What each reader has seen.
const TAIL: &str = "/run/tail";
const KEYLIME: &str = "/run/keylime";
const ROUNDS: u64 = 3;
const FILES: u64 = 30;

/// evmctl verifies the view against the TPM's PCRs while the service deletes records; `tail -f` and
/// Keylime's reader, which never close their descriptors, see every record.
pub fn clients(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let mut lab = lab.clone().with_program("bin/evmctl", find("evmctl", "ima-evm-utils")?);
    let keylime = Reader::collect()?;
    if let Some(reader) = &keylime {
        lab = reader.installed(lab);
    }
    let mut machine = lab.boot(kernel, &Plan { processors: 2, ..Plan::default() })?;
    let service = Service::start(&mut machine, STATE, &["--view", VIEW])?;
    service.consistent(&mut machine)?;
    let list = format!("{VIEW}/ascii_runtime_measurements");
    let script = format!("exec tail -c +1 -f {list} >{TAIL}");
    let tail = machine.start("/bin/busybox", &["sh", "-c", &script])?;
    let keylime = match &keylime {
        Some(reader) => {
            machine.write(KEYLIME.as_bytes(), 0o600, b"")?;
            let keylime = reader.start(&mut machine, &list, KEYLIME)?;
            // Its start adds records: the modules that it loads.
            let since = Instant::now();
            while machine.read(KEYLIME)?.is_empty() {
                must(since.elapsed() < PATIENCE, || "Keylime's reader reads nothing".to_owned())?;
                thread::sleep(Duration::from_millis(100));
            }
            Some(keylime)
        }
        None => {
            report.saw("Keylime's reader", "SKIPPED: not installed; see scripts/install-keylime");
            None
        }
    };
    for round in 0..ROUNDS {
        machine.measure(Files::new(format!("/round-{round}"), FILES))?;
        let status = service.consistent(&mut machine)?;
        let pcrs = pcr_file(&machine.snapshot()?, "sha256", kernel.pcr);
        machine.write(b"/run/pcrs", 0o600, pcrs.as_bytes())?;
        let binary = format!("{VIEW}/binary_runtime_measurements");
        let args =
            ["ima_measurement", "--ignore-violations", "--pcrs", "sha256,/run/pcrs", &binary];
        let ran = machine.run("/bin/evmctl", &args)?;
        must(ran.code == 0, || {
            format!("round {round}: evmctl: code {}: {}", ran.code, ran.stderr)
        })?;
        report.saw(&format!("evmctl, round {round}: records"), &status["records"]);
    }
    follows(&mut machine, "tail -f", TAIL, tail, report)?;
    if let Some(keylime) = keylime {
        follows(&mut machine, "Keylime's reader", KEYLIME, keylime, report)?;
    }
    service.stop(&mut machine)?;
    machine.power_off()
}

/// Waits until the file `seen` of a reader has all records that are stored now, and kills the reader.
fn follows(
    machine: &mut Machine,
    reader: &str,
    seen: &str,
    pid: u32,
    report: &mut Report,
) -> Result<(), LabError> {
    let kept = stored(machine, STATE, 1)?;
    let records = parsed(&kept, Bank::Sha1)?;
    let mut expected = Vec::new();
    records.iter().for_each(|record| record.write_ascii(Bank::Sha1, &mut expected));
    let since = Instant::now();
    let mut found = machine.read(seen)?;
    while expected.starts_with(&found) && found.len() < expected.len() && since.elapsed() < PATIENCE
    {
        thread::sleep(Duration::from_millis(100));
        found = machine.read(seen)?;
    }
    machine.signal(pid, KILL)?;
    let ran = machine.wait(pid)?;
    must(found.starts_with(&expected), || {
        let at = found.iter().zip(&expected).position(|(a, b)| a != b);
        let (length, all) = (found.len(), expected.len());
        format!("{reader}: {length} of {all} bytes, differs at {at:?}; {}", ran.stderr)
    })?;
    report.saw(&format!("{reader}: records seen, at least"), records.len());
    Ok(())
}

/// The PCRs of a bank as `tpm2_pcrread` writes them: `PCR-NN: HEX`. evmctl wants all; those that it
/// does not need are zero.
fn pcr_file(snapshot: &Snapshot, bank: &str, pcr: u32) -> String {
    let text = snapshot.pcrs();
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{bank} {pcr} ")));
    let value = value.unwrap_or_default().trim();
    let zero = "0".repeat(value.len());
    let line = |n| format!("PCR-{n:02}: {}\n", if n == pcr { value } else { &zero });
    (0..24).map(line).collect()
}
