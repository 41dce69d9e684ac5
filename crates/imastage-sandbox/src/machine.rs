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

/// A machine with IMA in its kernel: it can be rebooted.
pub struct Machine {
    ima: Ima,
    dialect: Dialect,
    hazards: Vec<Hazard>,
    /// A TPM that is the machine's own, and its state.
    swtpm: Mutex<Option<(PathBuf, Swtpm)>>,
    boots: AtomicU64,
    /// Whether it is going down.
    down: AtomicBool,
    /// Whether others hold its list itself, which no other can take the place of then.
    list_is_held: bool,
}

/// A known bug of Linux 7.2. Off unless asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hazard {
    /// The kernel's own way of keeping account of a writer: right for one file that the thread
    /// which opened it closes. Only in dialect 7.2.
    LockBooks,
    /// Every D is answered with ENOMEM, as with `ima_flush_htable` when there is no memory for
    /// another table; the records are gone all the same.
    NoMemory,
}

/// How a machine is kexec'ed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kexec {
    /// How large the buffer for the records is, in bytes; as the kernel would make it, if nothing
    /// is said.
    pub capacity: Option<usize>,
    /// The next kernel is handed no records (`CONFIG_IMA_KEXEC` is off).
    pub forget: bool,
    /// The next kernel; one like this, if nothing is said.
    #[serde(default)]
    pub kernel: Option<Kernel>,
}

/// What a kexec carried over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Records that were in the list before.
    pub before: u64,
    /// Records that are in the next kernel's list, without its boot_aggregate.
    pub carried: u64,
    /// Why these are not all.
    pub why: Option<String>,
}

/// Why a machine did not boot again.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// The TPM failed.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// It is not ours to reset.
    #[error(
        "the TPM is not the sandbox's own and cannot be reset; with --tpm swtpm or none it can"
    )]
    NotOurs,
    /// There is no such kernel.
    #[error("a kernel that measures into PCR {0}: CONFIG_IMA_MEASURE_PCR_IDX is 8 to 14")]
    NoSuchPcr(u32),
    /// The list is used without a mount.
    #[error("the list is used by this very process, not through a mount: it cannot be exchanged")]
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

    /// IMA in its kernel.
    pub fn ima(&self) -> &Ima {
        &self.ima
    }

    /// What writes to its files mean.
    pub(crate) fn grammar(&self) -> Grammar {
        let flush = self.ima.options().duplicates == Duplicates::Flush;
        Grammar { dialect: self.dialect, flush }
    }

    pub(crate) fn has(&self, hazard: Hazard) -> bool {
        self.hazards.contains(&hazard)
    }

    /// How often it booted. What was open before the last time is gone.
    pub(crate) fn boots(&self) -> u64 {
        self.boots.load(Ordering::Acquire)
    }

    /// Whether it is going down.
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// The machine begins to go down: nothing is measured any more. With `dump`, the records are
    /// written for a next kernel that never comes.
    pub(crate) fn suspend(&self, dump: bool) {
        self.down.store(true, Ordering::Release);
        let list = self.ima.list();
        list.suspend();
        if dump {
            // To have tried is what counts.
            let _ = list.dump(Endian::native(), usize::MAX);
        }
    }

    /// Another kernel goes on, with the same TPM.
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
            let forgotten = "the next kernel takes no records over (CONFIG_IMA_KEXEC is off)";
            (List::new(self.ima.options()), Some(forgotten.to_owned()))
        } else {
            let (buffer, dumped) = list.dump(Endian::native(), capacity);
            self.restore(&buffer, dumped)
        };
        let carried = next.counts().total;
        self.boot(next, kexec.kernel)?;
        Ok(Carried { before, carried, why: problem })
    }

    /// The machine goes down and up: an empty list, and the TPM is reset.
    ///
    /// # Errors
    /// [`RebootError`]; the machine is down then, if it is the TPM's.
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

    /// Its own TPM ends.
    pub(crate) fn power_off(&self) {
        drop(self.swtpm.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn may_boot(&self) -> Result<(), RebootError> {
        if self.list_is_held { Err(RebootError::ListIsHeld) } else { Ok(()) }
    }

    fn boot(&self, list: List, kernel: Option<Kernel>) -> Result<(), TpmError> {
        // First, so that nobody gets hold of the next list through a file opened before.
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
            _ => Err("there is no such hazard; there are lock-books and no-memory"),
        }
    }
}

/// How large the kernel makes the buffer: for what there is when the next kernel is loaded, with
/// half a page more, in whole pages.
fn segment_size(held_bytes: u64) -> usize {
    const PAGE: u64 = 4096;
    const HEADERS: u64 = 2 * 24;
    let size = (held_bytes + HEADERS + PAGE / 2).next_multiple_of(PAGE);
    usize::try_from(size).unwrap_or(usize::MAX)
}
