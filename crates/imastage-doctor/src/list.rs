//! The list: its content, and whether it replays to its PCR.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use ima_log::{Bank, Decoder, Digest, Endian, Extend, Format, IMA_PCR, ListReplay, Record};
use imastage_source::{Look, SourceError, open};

use crate::{
    finding::{
        Finding,
        Severity::{Note, Ok as Fine, Problem, Unknown, Warning},
        bytes, count,
    },
    machine::{Machine, entries},
    stored::Stored,
    tpm::Pcrs,
};

/// The content of the list.
#[derive(Default)]
pub(crate) struct List {
    pub(crate) records: u64,
    /// Whether some of them are staged.
    is_staged: bool,
    pub(crate) bytes: u64,
    pub(crate) violations: u64,
    /// The names of the templates of its records.
    pub(crate) templates: Vec<String>,
    /// The banks with a file, by the names of the files.
    pub(crate) banks: Vec<String>,
    /// The PCR that its first record names, stored or not.
    pcr: u32,
    /// That PCR by bank, if it can be read.
    pub(crate) pcrs: Vec<Digest>,
    begins_with_aggregate: bool,
    /// Whether the first record shows that its kernel found no TPM.
    began_without_tpm: bool,
    /// Whether the first record is a boot_aggregate_late.
    began_late: bool,
    /// The first record that was altered.
    altered: Option<u64>,
    /// The reason that it cannot be parsed from some record on.
    broken: Option<String>,
}

/// More than a kernel has; limits the work for a list that names more.
const MOST_TEMPLATES: usize = 16;

/// Two ways to explain PCR 10.
struct Chains {
    /// The list alone.
    alone: ListReplay,
    /// The stored records, followed by the list.
    stored: Option<Stored>,
}

/// The reason that a list could not be compared.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("{0}")]
    Source(#[from] SourceError),
    #[error("PCR 10 cannot be read: {0}")]
    Pcrs(String),
}

/// `None` if the list cannot be read.
pub(crate) fn examine(
    machine: &Machine,
    pcrs: Option<Pcrs>,
    state: &Path,
    findings: &mut Vec<Finding>,
) -> Option<List> {
    /// A drain takes milliseconds.
    const TRIES_IF_BUSY: u32 = 40;
    /// PCRs of several banks are read one after another, and a record is in the list a moment
    /// before it extends the PCR.
    const TRIES_IF_UNEXPLAINED: u32 = 3;
    let mut tries = 0;
    let (list, chains) = loop {
        tries += 1;
        match read(machine, pcrs.as_ref(), state) {
            Ok((list, chains)) => {
                if chains.explains(&list) || tries >= TRIES_IF_UNEXPLAINED {
                    break (list, chains);
                }
            }
            Err(Unreadable::Source(SourceError::Busy { .. })) if tries < TRIES_IF_BUSY => {}
            Err(error) => {
                findings.push(cannot_read(&error));
                return None;
            }
        }
        thread::sleep(Duration::from_millis(50));
    };
    contents(&list, findings);
    banks(&list, findings);
    replay(machine, &list, &chains, findings);
    Some(list)
}

/// Reads the whole list at one moment: while its files are open, no process can stage or delete.
/// Stored records were read before, so everything that extended the PCR by then is in one of the
/// two.
fn read(
    machine: &Machine,
    pcrs: Option<&Pcrs>,
    state: &Path,
) -> Result<(List, Chains), Unreadable> {
    let mut source = open(&machine.source, None)?;
    let mut look = source.look()?;
    let mut stored = Stored::open(state);
    let mut list = List { banks: bank_files(&machine.source), ..List::default() };
    list.is_staged = has_staged(&machine.source);
    let targets = match pcrs {
        Some(pcrs) => pcrs.read().map_err(Unreadable::Pcrs)?,
        None => Vec::new(),
    };
    let banks: BTreeSet<Bank> = targets.iter().map(|target| target.value.bank()).collect();
    let mut alone = ListReplay::new(banks);
    alone.look_for(&targets);
    if let Some(stored) = &mut stored {
        stored.seek(&targets);
    }
    let mut chains = Chains { alone, stored };
    list.read(&mut *look, &mut chains)?;
    // The first record names the PCR that the list's kernel extends.
    let of_stored = chains.stored.as_ref().map(Stored::pcr);
    list.pcr = of_stored.or(chains.alone.pcr()).unwrap_or(IMA_PCR);
    let own = targets.iter().filter(|target| target.pcr == list.pcr);
    list.pcrs = own.map(|target| target.value).collect();
    Ok((list, chains))
}

/// Whether a batch is staged.
fn has_staged(dir: &Path) -> bool {
    let file = File::open(dir.join("binary_runtime_measurements_staged"));
    file.is_ok_and(|mut file| matches!(file.read(&mut [0]), Ok(1)))
}

fn cannot_read(error: &Unreadable) -> Finding {
    let finding = Finding::new("list.records", Unknown, error.to_string())
        .why("what is in the list, and whether it leads to PCR 10, is not known");
    match error {
        Unreadable::Source(SourceError::Busy { .. }) => finding.fix("try again later"),
        Unreadable::Source(SourceError::NotPermitted { .. }) => {
            finding.fix("run as root, or as a member of the group of these files")
        }
        _ => finding.fix("run as root; if this is root, see dmesg"),
    }
}

impl List {
    fn read(&mut self, look: &mut dyn Look, chains: &mut Chains) -> Result<(), SourceError> {
        let mut decoder: Option<Decoder> = None;
        look.read(&mut |chunk| {
            if self.broken.is_some() {
                return;
            }
            let decoder = decoder.get_or_insert_with(|| {
                // With ima_canonical_fmt it is not the machine's own byte order.
                let endian = Endian::detect(chunk).unwrap_or(Endian::native());
                Decoder::new(Format { bank: Bank::Sha1, endian })
            });
            decoder.feed(chunk);
            loop {
                match decoder.next_record() {
                    Ok(Some(record)) => self.push(&record, chains),
                    Ok(None) => return,
                    Err(error) => {
                        self.broken = Some(error.to_string());
                        return;
                    }
                }
            }
        })?;
        if let (None, Some(Err(error))) = (&self.broken, decoder.map(|decoder| decoder.finish())) {
            self.broken = Some(error.to_string());
        }
        Ok(())
    }

    fn push(&mut self, record: &Record<'_>, chains: &mut Chains) {
        chains.alone.push(record);
        if let Some(stored) = &mut chains.stored {
            stored.push(record);
        }
        if self.records == 0 {
            self.begins_with_aggregate = record.begins_kernel();
            self.began_without_tpm = record.says_no_tpm();
            self.began_late = record.event_name() == Some(b"boot_aggregate_late");
        }
        let template = record.template().name();
        if self.templates.len() < MOST_TEMPLATES && !self.templates.iter().any(|t| t == template) {
            self.templates.push(template.to_owned());
        }
        if self.altered.is_none() && !record.digest_is_right() {
            self.altered = Some(self.records);
        }
        self.records += 1;
        self.bytes += record.as_bytes().len() as u64;
        self.violations += u64::from(record.is_violation());
    }
}

impl Chains {
    /// Whether the list replays to all of `pcrs`, alone or appended to the stored records.
    fn explains(&self, list: &List) -> bool {
        let is_found = |pcr: &Digest| self.alone.found(pcr.bank(), list.pcr).is_some();
        let alone = list.pcrs.iter().all(is_found);
        alone || self.stored.as_ref().is_some_and(Stored::leads_to_all)
    }
}

fn contents(list: &List, findings: &mut Vec<Finding>) {
    let found = format!("the list has {}, {}", count(list.records, "record"), bytes(list.bytes));
    findings.push(Finding::new("list.records", Fine, found));
    if let Some(error) = &list.broken {
        let finding = Finding::new(
            "list.parse",
            Problem,
            format!("cannot parse the measurement list: {error}"),
        )
        .why("records behind that place cannot be drained, shown or verified")
        .fix("if this is a kernel's own list, report it with the list attached");
        findings.push(finding);
    }
    if let Some(index) = list.altered {
        let found = format!("record {index}'s digest is not that of its data");
        let finding = Finding::new("list.digests", Problem, found)
            .why("the record was altered, by the kernel's memory or by whoever shows the list")
            .fix("do not trust what this machine says; reboot it and compare");
        findings.push(finding);
    }
    if list.began_late {
        let finding = Finding::new("list.late", Note, "the list begins with boot_aggregate_late")
            .why(
                "IMA started at late_initcall_sync (CONFIG_IMA_INIT_LATE_SYNC, Linux 7.3): \
                 a verifier must know that name",
            )
            .fix("nothing here; a verifier that does not know it takes the beginning for missing");
        findings.push(finding);
    }
    if list.violations > 0 {
        let found = format!("{} in the list", count(list.violations, "violation"));
        let finding = Finding::new("list.violations", Note, found)
            .why(
                "a file was written while it was measured: PCR 10 was extended with ones for it, \
                 which a verifier must know and allow",
            )
            .fix(
                "see which: imastage show --violations LIST; exclude files that are always written",
            );
        findings.push(finding);
    }
    if list.is_staged {
        let finding = Finding::new("list.staged", Note, "a batch is staged")
            .why("a service stopped between A and D, or someone else stages")
            .fix("nothing: imastage run stores and deletes it first; let nobody else stage");
        findings.push(finding);
    }
    // Seen on a kernel: 20,000 records 0.1 s, 100,000 2.9 s, and quadratic in between.
    if list.records > 50_000 {
        let found = format!("the list is long: {}", count(list.records, "record"));
        let finding = Finding::new("list.length", Warning, found)
            .why("reading it takes time quadratic in its length, at each reading by anyone")
            .fix("drain it early; the first drain may take long");
        findings.push(finding);
    }
}

fn banks(list: &List, findings: &mut Vec<Finding>) {
    let check = "list.banks";
    let files = list.banks.join(" ");
    if list.banks.len() < 2 {
        let found = "the list is shown with SHA-1 digests only";
        findings.push(Finding::new(check, Fine, found).why(
            "so do kernels before 6.10, and those without a TPM; the view has a file for every bank",
        ));
    } else {
        findings.push(Finding::new(check, Fine, format!("the list is shown for: {files}")));
    }
    if let Some(alien) = list.banks.iter().find(|bank| bank.starts_with("tpm_alg_")) {
        let finding = Finding::new(check, Note, format!("the kernel does not know bank {alien}"))
            .why("it is extended with SHA-1 digests and zeros behind them");
        findings.push(finding);
    }
}

fn replay(machine: &Machine, list: &List, chains: &Chains, findings: &mut Vec<Finding>) {
    let check = "list.replay";
    if list.pcrs.is_empty() {
        return;
    }
    let pcr = list.pcr;
    let records = list.records + chains.stored.as_ref().map_or(0, Stored::records);
    if pcr != IMA_PCR {
        let found = format!("the list's records name PCR {pcr}, not {IMA_PCR}");
        let finding = Finding::new("list.pcr", Note, found)
            .why("the kernel was built so (CONFIG_IMA_MEASURE_PCR_IDX); quotes have to cover that PCR")
            .fix(format!("tell your verifiers: tpm2_quote -l sha256:{pcr}"));
        findings.push(finding);
    }
    if records > 0 && list.pcrs.iter().all(Digest::is_zero) {
        findings.push(not_extended(list, records));
        return;
    }
    let names = |digests: &mut dyn Iterator<Item = &Digest>| {
        digests.map(|pcr| pcr.bank().name()).collect::<Vec<_>>().join(", ")
    };
    let is_zero = |pcr: &&Digest| pcr.is_zero() && list.records > 0;
    let (unused, used): (Vec<&Digest>, Vec<&Digest>) = list.pcrs.iter().partition(is_zero);
    if !unused.is_empty() && !used.is_empty() {
        let found = format!("PCR {pcr} is zero in {}", names(&mut unused.iter().copied()));
        let finding = Finding::new("tpm.unextended", Warning, found)
            .why("nothing is extended there: a quote of that bank proves nothing, and anyone who can \
                  use the TPM can write into it")
            .fix("switch the bank off in the firmware, or quote another one");
        findings.push(finding);
    }
    let used = if used.is_empty() { unused } else { used };
    let found = |value: &Digest| chains.alone.found(value.bank(), pcr);
    let (met, missed): (Vec<&Digest>, Vec<&Digest>) =
        used.iter().copied().partition(|pcr| found(pcr).is_some());
    if missed.is_empty() {
        let found_in = names(&mut met.iter().copied());
        let text = format!("the list replays to PCR {pcr} in {found_in}");
        findings.push(Finding::new(check, Fine, text));
        let is_padded = |pcr: &&Digest| found(pcr).is_some_and(|(_, extend)| extend != Extend::Own);
        let mut padded = met.iter().copied().filter(is_padded).peekable();
        if padded.peek().is_some() {
            let text = format!("{} is extended with padded SHA-1", names(&mut padded));
            let finding = Finding::new("list.padded", Note, text)
                .why(
                    "the kernel had not that hash when IMA started, so the bank is no stronger than \
                     SHA-1",
                )
                .fix("quote sha256 instead");
            findings.push(finding);
        }
        return;
    }
    if let Some(stored) = chains.stored.as_ref().filter(|stored| stored.leads_to_all()) {
        let text = format!(
            "the list replays to PCR {pcr} behind the {} stored",
            count(stored.records(), "record")
        );
        findings.push(Finding::new(check, Fine, text));
        return;
    }
    findings.push(diverged(machine, list, &names(&mut missed.iter().copied()), !met.is_empty()));
}

/// There are records, and the TPM was not extended with any.
fn not_extended(list: &List, records: u64) -> Finding {
    let found = format!(
        "the kernel does not extend this TPM: PCR {} is zero in every bank, and there are {}",
        list.pcr,
        count(records, "record")
    );
    let finding = Finding::new("tpm.unextended", Problem, found)
        .why("no quote proves any record, and the service deletes none");
    if list.began_without_tpm {
        finding.fix(
            "IMA found no TPM when it started (its boot_aggregate is zero): build the TPM's driver \
             into the kernel, or from Linux 7.3 on set CONFIG_IMA_INIT_LATE_SYNC=y",
        )
    } else {
        finding
            .fix("give the TPM that the kernel uses with --tpm; if this is it, see dmesg for tpm")
    }
}

/// The list does not replay to its PCR: possible reasons.
fn diverged(machine: &Machine, list: &List, banks: &str, in_some: bool) -> Finding {
    let finding = |found: &str| {
        let found = format!("{found} (PCR {}, {banks})", list.pcr);
        Finding::new("list.replay", Problem, found)
    };
    let lost = "whoever deleted them may have kept them; if nobody did, nothing can be verified \
                before the next TPM reset: reboot through the firmware, and let nobody but the \
                service delete";
    let trimmed = open(&machine.source, None).and_then(|mut source| source.trimmed());
    let trimmed = trimmed.ok().flatten();
    if let Some(trimmed) = trimmed.filter(|trimmed| *trimmed > 0) {
        return finding(&format!(
            "the list does not replay to the TPM: {trimmed} records are trimmed"
        ))
        .why("the kernel counts what was trimmed, and what is stored here does not replace it")
        .fix(lost);
    }
    if list.records == 0 {
        return finding("the list is empty, and the TPM is not")
            .why("records were deleted, or IMA measures nothing and someone else extends the PCR")
            .fix(lost);
    }
    if in_some {
        return finding("the list replays to the TPM in other banks, not in all")
            .why("somebody extended that bank besides IMA, or the kernel extends it in its own way")
            .fix("quote a bank in which it does");
    }
    if !list.begins_with_aggregate {
        return finding("the list does not replay to the TPM: leading records are missing")
            .why(
                "a list begins with boot_aggregate or boot_aggregate_late; somebody deleted records \
                 from this one",
            )
            .fix(lost);
    }
    let first = if list.began_late { "boot_aggregate_late" } else { "boot_aggregate" };
    finding(&format!("the list does not replay to the TPM, though it begins with {first}"))
        .why(
            "a kexec forgot the records before it, a record was altered, or PCR 10 was extended \
             without a record",
        )
        .fix(
            "imastage replay --pcrs explains what can be known; nothing can be verified before the \
             next TPM reset: reboot through the firmware",
        )
}

/// The banks with a file of their own, by its name.
fn bank_files(dir: &Path) -> Vec<String> {
    let name = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        let bank = name.strip_prefix("binary_runtime_measurements_")?;
        (bank != "staged" && !bank.ends_with("_staged")).then(|| bank.to_owned())
    };
    entries(dir).into_iter().filter_map(name).collect()
}
