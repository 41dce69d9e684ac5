//! Replays of a list to the PCRs of a guest.

use std::str::FromStr;

use ima_log::{Bank, Digest, Extend, Format, IMA_PCR, ListReplay, PcrTarget, Record, Records};

use crate::{
    ask::Snapshot,
    error::{LabError, must},
    kernel::Kernel,
    lab::Lab,
    machine::Plan,
    scenario::{capture::measure_awkward, report::Report},
};

/// A list with all awkward records, on one machine.
pub fn awkward(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let plan = Plan { append: "ima_policy=\"tcb|critical_data\"".to_owned(), ..Plan::default() };
    let mut machine = lab.boot(kernel, &plan)?;
    report.saw("release", machine.release());
    let made = measure_awkward(&mut machine)?;
    let snapshot = machine.snapshot()?;
    let replayed = replay(&snapshot)?;
    report.saw("records", replayed.records);
    report.saw("banks", extends(&replayed));
    must(replayed.violations == made.violations, || {
        format!("expected {} violations, found {}", made.violations, replayed.violations)
    })?;
    let records = parsed(snapshot.list(), Bank::Sha1)?;
    for name in &made.names {
        // The kernel replaces spaces by underscores, in both forms.
        let name: Vec<u8> = name.iter().map(|b| if *b == b' ' { b'_' } else { *b }).collect();
        must(records.iter().any(|record| record.event_name() == Some(&name)), || {
            format!("no record of file {}", String::from_utf8_lossy(&name))
        })?;
    }
    must(records.iter().any(|record| record.template().name() == "ima-buf"), || {
        "no critical data was measured".to_owned()
    })?;
    report.saw("files of the list", forms(&snapshot)?);
    machine.power_off()
}

/// The way each bank is extended, as text.
pub fn extends(replayed: &Replayed) -> String {
    let words = replayed.banks.iter().map(|(bank, extend)| match extend {
        Extend::Own => bank.to_string(),
        Extend::Sha1Padded | Extend::Sha1PaddedViolations => format!("{bank} (padded SHA-1)"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Checks that `ima-log` converts the binary sha1 file into every other file of the list, byte for
/// byte, and the staged sha1 file into those of the staged list; returns the number of files.
pub fn forms(snapshot: &Snapshot) -> Result<usize, LabError> {
    let current = parsed(snapshot.list(), Bank::Sha1)?;
    let staged = parsed(snapshot.staged(), Bank::Sha1)?;
    let mut compared = 0;
    for (name, content) in &snapshot.0 {
        let (name, records) = match name.strip_suffix("_staged") {
            Some(name) => (name, &staged),
            None => (name.as_str(), &current),
        };
        let Some(ours) = rendered(name, records)? else { continue };
        let parts = ours.iter().zip(content).position(|(a, b)| a != b);
        must(ours == *content, || {
            let at = parts.unwrap_or(ours.len().min(content.len()));
            format!("{name}: ima-log's file differs from the kernel's at byte {at}")
        })?;
        compared += 1;
    }
    Ok(compared)
}

/// The content of a list file with this name; `None` if the name is not that of a list file.
pub fn rendered(name: &str, records: &[Record<'_>]) -> Result<Option<Vec<u8>>, LabError> {
    let Some((form, rest)) = name.split_once("_runtime_measurements") else { return Ok(None) };
    let bank = match rest.strip_prefix('_') {
        None => Bank::Sha1,
        Some(bank) => {
            Bank::from_str(bank).map_err(|error| LabError::Refuted(format!("{name}: {error}")))?
        }
    };
    let mut content = Vec::new();
    for record in records {
        match form {
            "ascii" => record.write_ascii(bank, &mut content),
            _ => record.write_binary(bank, &mut content),
        }
    }
    Ok(Some(content))
}

/// The result of a replay.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The number of records that replay to the PCR.
    pub records: u64,
    /// The number of violations in the whole list.
    pub violations: u64,
    /// The way each bank is extended.
    pub banks: Vec<(Bank, Extend)>,
}

/// Replays the whole list of a snapshot to the list's PCR in every bank.
pub fn replay(snapshot: &Snapshot) -> Result<Replayed, LabError> {
    replay_list(snapshot.list(), snapshot)
}

/// The list of an epoch of a kernel with staging: the records that were stored and deleted, those
/// that are staged, and those of the current list.
pub fn whole(stored: &[u8], snapshot: &Snapshot) -> Vec<u8> {
    [stored, snapshot.staged(), snapshot.list()].concat()
}

/// Checks that every file of a directory with the numbers `0..count` as names was recorded exactly
/// once, in ascending order. Violations do not count: a program that the guest starts inherits the
/// file that is being written, until exec.
pub fn each_once(records: &[Record<'_>], dir: &str, count: u64) -> Result<(), LabError> {
    let number = |record: &Record<'_>| {
        let name = record.event_name()?.strip_prefix(dir.as_bytes())?.strip_prefix(b"/")?;
        Some(String::from_utf8_lossy(name).into_owned())
    };
    let mut expected = 0;
    for (index, record) in records.iter().enumerate().filter(|(_, one)| !one.is_violation()) {
        let Some(number) = number(record) else { continue };
        must(number == expected.to_string(), || {
            let mut line = Vec::new();
            record.write_ascii(Bank::Sha1, &mut line);
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            format!("record {index}: expected one of {dir}/{expected}, found {line}")
        })?;
        expected += 1;
    }
    must(expected == count, || format!("{dir}: {count} files were measured, {expected} recorded"))
}

/// Replays all of `list` to its PCR of a snapshot in every bank.
pub fn replay_list(list: &[u8], snapshot: &Snapshot) -> Result<Replayed, LabError> {
    let all = parsed(list, Bank::Sha1)?.len() as u64;
    let replayed = replay_prefix(list, snapshot)?;
    must(replayed.records == all, || {
        format!("only the first {} of {all} records replay to the PCR", replayed.records)
    })?;
    Ok(replayed)
}

/// Replays `list` until the PCR of its first record is reached in every bank of a snapshot.
pub fn replay_prefix(list: &[u8], snapshot: &Snapshot) -> Result<Replayed, LabError> {
    let records = parsed(list, Bank::Sha1)?;
    let pcr = records.first().map_or(IMA_PCR, Record::pcr);
    let targets = pcrs(snapshot, pcr)?;
    let mut search = ListReplay::new(targets.iter().map(Digest::bank));
    let target = |value: &Digest| PcrTarget { pcr, value: *value };
    search.look_for(&targets.iter().map(target).collect::<Vec<_>>());
    records.iter().for_each(|record| search.push(record));
    let Some(prefix) = search.agreement() else {
        let found: Vec<_> = targets
            .iter()
            .map(|target| format!("{} {:?}", target.bank(), search.found(target.bank(), pcr)))
            .collect();
        return Err(LabError::Refuted(format!(
            "{} records do not replay to PCR {pcr}: {}",
            search.records(),
            found.join(", ")
        )));
    };
    let banks = targets
        .iter()
        .filter_map(|target| Some((target.bank(), search.found(target.bank(), pcr)?.1)))
        .collect();
    Ok(Replayed { records: prefix.from, violations: search.violations(), banks })
}

/// A PCR in each bank.
pub fn pcrs(snapshot: &Snapshot, pcr: u32) -> Result<Vec<Digest>, LabError> {
    let mut values = Vec::new();
    for line in snapshot.pcrs().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [bank, index, value] = words[..] else { continue };
        if index != pcr.to_string() {
            continue;
        }
        let bad = |why: String| LabError::Refuted(format!("PCR value {line}: {why}"));
        let bank = Bank::from_str(bank).map_err(|error| bad(error.to_string()))?;
        let value = hex::decode(value).map_err(|error| bad(error.to_string()))?;
        values.push(Digest::from_slice(bank, &value).map_err(|error| bad(error.to_string()))?);
    }
    Ok(values)
}

/// Parses the records of a binary file.
pub fn parsed(list: &[u8], bank: Bank) -> Result<Vec<Record<'_>>, LabError> {
    let records: Result<Vec<_>, _> = Records::new(list, Format::native(bank)).collect();
    records.map_err(|error| LabError::Refuted(format!("the list does not parse: {error}")))
}
