//! Build options and start conditions of a sandbox's kernel.

use ima_log::{Bank, Digest, Extend, IMA_PCR, Record};
use serde::{Deserialize, Serialize};

/// The build options of a sandbox's kernel, and the conditions when it starts. The default is Linux
/// 7.2 with support for the hashes of all the TPM's banks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The PCR that is extended and that records name (`CONFIG_IMA_MEASURE_PCR_IDX`), one of
    /// [`Kernel::PCRS`].
    pub pcr: u32,
    /// IMA starts at `late_initcall_sync` (`CONFIG_IMA_INIT_LATE_SYNC`, Linux 7.3): the first
    /// record is named `boot_aggregate_late`.
    pub late: bool,
    /// Banks whose hash is not available when IMA starts: the kernel extends them with the SHA-1
    /// template digest padded with zeros, and their files show it (stock 6.1: sha384, sha512).
    #[serde(with = "names")]
    pub padded: Vec<Bank>,
    /// A kernel before 5.8: all banks are padded, and a violation extends them with 20 bytes of
    /// 0xff and zeros.
    pub padded_violations: bool,
    /// IMA starts before the TPM's driver: programs can use the TPM, but `boot_aggregate` is zero
    /// and no record extends a PCR.
    pub tpm_late: bool,
}

impl Default for Kernel {
    fn default() -> Kernel {
        Kernel {
            pcr: IMA_PCR,
            late: false,
            padded: Vec::new(),
            padded_violations: false,
            tpm_late: false,
        }
    }
}

impl Kernel {
    /// The range of `CONFIG_IMA_MEASURE_PCR_IDX` (security/integrity/ima/Kconfig).
    pub const PCRS: std::ops::RangeInclusive<u32> = 8..=14;

    /// The name of the first record.
    pub fn boot_aggregate(&self) -> &'static [u8] {
        if self.late { b"boot_aggregate_late" } else { b"boot_aggregate" }
    }

    /// The digests that a bank is extended with and that its files show.
    pub fn extend(&self, bank: Bank) -> Extend {
        match bank {
            Bank::Sha1 => Extend::Own,
            _ if self.padded_violations => Extend::Sha1PaddedViolations,
            bank if self.padded.contains(&bank) => Extend::Sha1Padded,
            _ => Extend::Own,
        }
    }

    /// The value with which a record extends a bank.
    pub fn value(&self, bank: Bank, record: &Record<'_>) -> Digest {
        self.extend(bank).value(bank, record)
    }
}

/// Serializes banks as a list of names.
mod names {
    use ima_log::Bank;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(banks: &[Bank], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(banks.iter().map(|bank| bank.name()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Bank>, D::Error> {
        let names = Vec::<String>::deserialize(from)?;
        let bank =
            |name: &String| name.parse().map_err(|e| D::Error::custom(format!("{name}: {e}")));
        names.iter().map(bank).collect()
    }
}
