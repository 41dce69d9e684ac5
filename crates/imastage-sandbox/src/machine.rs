//! The machine of a sandbox: suspend, kexec and reboot.

use std::{
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use ima_list::{Duplicates, List};
use ima_log::{Endian, KexecBuffer, KexecError};
use ima_securityfs::{Dialect, Grammar};
use imastage_tpm::{Swtpm, TpmError};
use serde::{Deserialize, Serialize};

use crate::{Ima, Kernel};

/// A machine whose kernel has IMA. It can be rebooted.
pub struct Machine {
    ima: Ima,
    dialect: Dialect,
    hazards: Vec<Hazard>,
    /// The machine's own TPM, with its state directory.
    swtpm: Mutex<Option<(PathBuf, Swtpm)>>,
    boots: AtomicU64,
    /// Whether the machine is going down.
    down: AtomicBool,
    /// Whether other code has a reference to the list, which then cannot be replaced by a reboot.
    list_is_held: bool,
}

/// A known bug of Linux 7.2. Off by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hazard {
    /// The kernel's writer accounting, which is correct only for one file that is closed by the
    /// thread that opened it. Only in dialect 7.2.
    LockBooks,
    /// Every D fails with ENOMEM, as with `ima_flush_htable` if there is no memory for another
    /// table; the records are deleted nevertheless.
    NoMemory,
}

/// The options of a kexec.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kexec {
    /// The size of the buffer for the records in bytes; by default the kernel's size.
    pub capacity: Option<usize>,
    /// The next kernel receives no records (`CONFIG_IMA_KEXEC` is off).
    pub forget: bool,
    /// The next kernel; by default the same as the current one.
    #[serde(default)]
    pub kernel: Option<Kernel>,
}

/// The records that a kexec carried over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Records in the list before the kexec.
    pub before: u64,
    /// Records in the next kernel's list, without its boot_aggregate.
    pub carried: u64,
    /// The reason that some records were lost.
    pub why: Option<String>,
}

/// The reason a machine did not reboot.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// The TPM failed.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The TPM does not belong to the sandbox.
    #[error(
        "reboot refused: the sandbox cannot reset a TPM that it did not start; use --tpm swtpm or \
         --tpm none"
    )]
    NotOurs,
    /// The kernel's PCR is out of range.
    #[error("PCR {0} is out of range: CONFIG_IMA_MEASURE_PCR_IDX is 8 to 14")]
    NoSuchPcr(u32),
    /// The list is used without a mount.
    #[error("reboot refused: this process uses the list directly; mount the sandbox to reboot")]
    ListIsHeld,
}

impl Machine {
    pub(crate) fn new(
        ima: Ima,
        dialect: Dialect,
        hazards: Vec<Hazard>,
        swtpm: Option<(PathBuf, Swtpm)>,
        list_is_held: bool,
    ) -> Machine {
        let swtpm = Mutex::new(swtpm);
        Machine {
            ima,
            dialect,
            hazards,
            swtpm,
            boots: AtomicU64::new(1),
            down: AtomicBool::new(false),
            list_is_held,
        }
    }

    /// IMA in the machine's kernel.
    pub fn ima(&self) -> &Ima {
        &self.ima
    }

    /// The grammar of writes to the files.
    pub(crate) fn grammar(&self) -> Grammar {
        let flush = self.ima.options().duplicates == Duplicates::Flush;
        Grammar { dialect: self.dialect, flush }
    }

    pub(crate) fn has(&self, hazard: Hazard) -> bool {
        self.hazards.contains(&hazard)
    }

    /// The number of boots. Files opened in an earlier boot are invalid.
    pub(crate) fn boots(&self) -> u64 {
        self.boots.load(Ordering::Acquire)
    }

    /// Whether the machine is going down.
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// Begins shutdown: nothing more is measured. With `dump`, the records are also dumped for a
    /// next kernel, which is not started.
    pub(crate) fn suspend(&self, dump: bool) {
        self.down.store(true, Ordering::Release);
        let list = self.ima.list();
        list.suspend();
        if dump {
            // Only the side effect on the staged records matters.
            let _ = list.dump(Endian::native(), usize::MAX);
        }
    }

    /// Boots another kernel without a reset of the TPM.
    ///
    /// # Errors
    /// [`RebootError`].
    pub(crate) fn kexec(&self, kexec: Kexec) -> Result<Carried, RebootError> {
        self.may_boot()?;
        if let Some(kernel) = kexec.kernel.as_ref().filter(|k| !Kernel::PCRS.contains(&k.pcr)) {
            return Err(RebootError::NoSuchPcr(kernel.pcr));
        }
        let list = self.ima.list();
        let capacity = kexec.capacity.unwrap_or_else(|| segment_size(list.counts().held_bytes));
        self.ima.note_kexec("kexec_load", capacity);
        self.ima.note_kexec("kexec_execute", capacity);
        list.suspend();
        let counts = list.counts();
        let before = counts.current + counts.staged;
        let (next, problem) = if kexec.forget {
            let forgotten = "the next kernel restores no records (CONFIG_IMA_KEXEC is off)";
            (List::new(self.ima.options()), Some(forgotten.to_owned()))
        } else {
            let (buffer, dumped) = list.dump(Endian::native(), capacity);
            self.restore(&buffer, dumped)
        };
        let carried = next.counts().total;
        self.boot(next, kexec.kernel)?;
        Ok(Carried { before, carried, why: problem })
    }

    /// Reboots the machine: empties the list and resets the TPM.
    ///
    /// # Errors
    /// [`RebootError`]; after a TPM error the machine stays down.
    pub(crate) fn reboot(&self) -> Result<(), RebootError> {
        self.may_boot()?;
        let mut swtpm = self.swtpm.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ima.tpm().is_some() && swtpm.is_none() {
            return Err(RebootError::NotOurs);
        }
        self.ima.list().suspend();
        if let (Some(shared), Some((state, old))) = (self.ima.tpm(), swtpm.take()) {
            drop(old);
            let (new, tpm) = Swtpm::start(&state)?;
            shared.replace(tpm);
            *swtpm = Some((state, new));
        }
        self.boot(List::new(self.ima.options()), None)?;
        Ok(())
    }

    /// Ends the machine's own TPM.
    pub(crate) fn power_off(&self) {
        drop(self.swtpm.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn may_boot(&self) -> Result<(), RebootError> {
        if self.list_is_held { Err(RebootError::ListIsHeld) } else { Ok(()) }
    }

    fn boot(&self, list: List, kernel: Option<Kernel>) -> Result<(), TpmError> {
        // First, so that files opened in an earlier boot cannot access the next list.
        self.boots.fetch_add(1, Ordering::AcqRel);
        self.down.store(false, Ordering::Release);
        self.ima.boot_again(list, kernel)
    }

    fn restore(&self, buffer: &[u8], dumped: Result<(), KexecError>) -> (List, Option<String>) {
        let (list, restored) = match KexecBuffer::parse(buffer) {
            Ok(buffer) => List::restore(self.ima.options(), &buffer),
            Err(error) => (List::new(self.ima.options()), Err(error)),
        };
        (list, dumped.and(restored).err().map(|error| error.to_string()))
    }
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hazard::LockBooks => "lock-books",
            Hazard::NoMemory => "no-memory",
        })
    }
}

impl FromStr for Hazard {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Hazard, Self::Err> {
        match name {
            "lock-books" => Ok(Hazard::LockBooks),
            "no-memory" => Ok(Hazard::NoMemory),
            _ => Err("unknown hazard; use lock-books or no-memory"),
        }
    }
}

/// The kernel's buffer size: the records when the next kernel is loaded and half a page more, in
/// whole pages.
fn segment_size(held_bytes: u64) -> usize {
    const PAGE: u64 = 4096;
    const HEADERS: u64 = 2 * 24;
    let size = (held_bytes + HEADERS + PAGE / 2).next_multiple_of(PAGE);
    usize::try_from(size).unwrap_or(usize::MAX)
}
