//! The TPM: whether there is one, and the values of the PCRs in each of its banks.

use std::path::{Path, PathBuf};

use ima_log::{Bank, Digest, IMA_PCR, PcrTarget};
use imastage_tpm::{Endpoint, PcrSelection, Tpm};

use crate::{
    finding::{
        Finding,
        Severity::{Note, Ok as Fine, Unknown, Warning},
    },
    machine::{Machine, read_text},
};

/// Where PCRs can be read.
pub(crate) enum Pcrs {
    /// Directories `pcr-BANK`, with one file per PCR (since Linux 5.12).
    Sysfs(Vec<PathBuf>),
    /// The TPM itself.
    Tpm(Endpoint),
}

impl Pcrs {
    /// The PCRs that kernels can extend, in every known bank.
    pub(crate) fn read(&self) -> Result<Vec<PcrTarget>, String> {
        match self {
            Pcrs::Sysfs(dirs) => {
                let mut values = Vec::new();
                for dir in dirs {
                    let Ok(bank) = bank_name(dir).parse::<Bank>() else { continue };
                    for pcr in PCRS {
                        let path = dir.join(pcr.to_string());
                        if pcr != IMA_PCR && !path.exists() {
                            continue;
                        }
                        let text = read_text(&path)
                            .map_err(|error| format!("{}: {error}", path.display()))?;
                        let value = Digest::from_hex(bank, text.trim()).ok_or_else(|| {
                            format!("{}: no {bank} digest in hex: {text:?}", path.display())
                        })?;
                        values.push(PcrTarget { pcr, value });
                    }
                }
                Ok(values)
            }
            Pcrs::Tpm(endpoint) => read_tpm(endpoint).map_err(|error| error.to_string()),
        }
    }
}

/// CONFIG_IMA_MEASURE_PCR_IDX can be 8 to 14; a policy rule's `pcr=` can be others, of which
/// firmware and a dynamic launch leave 15, 16 and 23.
const PCRS: [u32; 10] = [8, 9, 10, 11, 12, 13, 14, 15, 16, 23];

/// `None` if PCRs cannot be read.
pub(crate) fn examine(machine: &Machine, findings: &mut Vec<Finding>) -> Option<Pcrs> {
    if machine.is_kernel {
        devices(machine, findings);
        let dirs: Vec<PathBuf> = machine
            .files("/sys/class/tpm/tpm0")
            .into_iter()
            .filter(|path| !bank_name(path).is_empty())
            .collect();
        if !dirs.is_empty() {
            let names: Vec<&str> = dirs.iter().map(|dir| bank_name(dir)).collect();
            let found = format!("PCR banks: {}", names.join(" "));
            findings.push(Finding::new("tpm.banks", Fine, found));
            return Some(Pcrs::Sysfs(dirs));
        }
    }
    let check = "tpm.pcrs";
    let Some(endpoint) = &machine.tpm else {
        if machine.path("/dev/tpm0").exists() || !machine.is_kernel {
            let finding = Finding::new(
                check,
                Note,
                "PCR 10 is not compared: no TPM to read it from",
            )
            .why("whether the list is whole cannot be told without")
            .fix("Linux 5.12 or later shows PCRs in /sys/class/tpm; or give access to the TPM");
            findings.push(finding);
        }
        return None;
    };
    match Tpm::connect(endpoint).and_then(|mut tpm| tpm.banks()) {
        Ok(banks) => {
            let names: Vec<&str> = banks.iter().map(|bank| bank.name()).collect();
            let found = format!("PCR banks: {} ({endpoint})", names.join(" "));
            findings.push(Finding::new("tpm.banks", Fine, found));
            Some(Pcrs::Tpm(endpoint.clone()))
        }
        Err(error) => {
            let finding = Finding::new(check, Unknown, format!("the TPM does not answer: {error}"))
                .why("whether the list replays to PCR 10 cannot be told, nor can quotes be made")
                .fix("run as root, or as a member of the group of /dev/tpmrm0 (mostly tss)");
            findings.push(finding);
            None
        }
    }
}

fn devices(machine: &Machine, findings: &mut Vec<Finding>) {
    let check = "tpm.device";
    let major = machine.value("/sys/class/tpm/tpm0/tpm_version_major");
    if major.as_deref() == Some("1") {
        let finding = Finding::new(check, Warning, "the TPM is a TPM 1.2")
            .why("quotes are made with TPM 2.0 only; the list is kept and shown all the same")
            .fix("switch it to 2.0 in the firmware, if it can be");
        findings.push(finding);
        return;
    }
    let finding = if machine.path("/dev/tpmrm0").exists() {
        let path = machine.path("/dev/tpmrm0");
        let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
        match rustix::fs::access(&path, access) {
            Ok(()) => Finding::new(check, Fine, "/dev/tpmrm0 can be used"),
            Err(error) => {
                Finding::new(check, Warning, format!("/dev/tpmrm0 cannot be used: {error}"))
                    .why("quotes are made through it")
                    .fix("run as root, or join the device's group (mostly tss)")
            }
        }
    } else if machine.path("/dev/tpm0").exists() {
        Finding::new(check, Warning, "there is /dev/tpm0 but no resource manager /dev/tpmrm0")
            .why("only one program at a time can use the TPM, and agents need it too")
            .fix("Linux 4.12 or later has /dev/tpmrm0 for a TPM 2.0; see dmesg for tpm")
    } else {
        Finding::new(check, Warning, "there is no TPM")
            .why(
                "nothing vouches for the list: it is kept and shown, but no quote can be made and a \
                 missing record cannot be noticed",
            )
            .fix("switch the TPM on in the firmware; in a virtual machine, give it one (swtpm)")
    };
    findings.push(finding);
}

/// The bank's name, if it is a directory of PCRs.
fn bank_name(path: &Path) -> &str {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix("pcr-").unwrap_or_default()
}

fn read_tpm(endpoint: &Endpoint) -> Result<Vec<PcrTarget>, imastage_tpm::TpmError> {
    let mut tpm = Tpm::connect(endpoint)?;
    let pcrs = PCRS.into_iter().fold(0, |pcrs, pcr| pcrs | 1 << pcr);
    let select = |bank| PcrSelection { bank, pcrs };
    let selection: Vec<_> = tpm.banks()?.into_iter().map(select).collect();
    let values = tpm.pcr_values(&selection)?;
    Ok(values.into_iter().map(|(_, pcr, value)| PcrTarget { pcr, value }).collect())
}
