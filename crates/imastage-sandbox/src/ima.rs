use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use ima_list::{AppendError, List, Options, SharedList};
use ima_log::{Bank, Digest, Extend, IMA_PCR, RecordBuf, RecordBuilder};
use imastage_tpm::{SharedTpm, TpmError};
use sha2::{Digest as _, Sha256};

/// What IMA does in the kernel: measures files, adds records to the list, extends the TPM. One for
/// all who measure.
pub struct Ima {
    policy: Policy,
    tpm: Option<SharedTpm>,
    /// The banks that are extended.
    banks: Vec<Bank>,
    boot: Mutex<Arc<Boot>>,
    failed_extends: AtomicU64,
}

/// What IMA was told to do.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// How the list behaves.
    pub list: Options,
    /// The banks that have files; of the TPM's if it says none.
    pub banks: Option<Vec<Bank>>,
    /// Banks whose hash the kernel has not when IMA starts: they are extended with the SHA-1 template
    /// digest, padded with zeros, and their files show that (stock 6.1: sha384, sha512).
    pub padded: Vec<Bank>,
    /// Whether the kernel measures what it does itself: kexec and trimming.
    pub critical_data: bool,
}

/// What ends with a kernel.
struct Boot {
    list: Arc<SharedList>,
    measured: Mutex<HashSet<FileState>>,
}

/// What became of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A record was added.
    Added,
    /// The file was measured before and has not changed, or an equal record is in the list.
    Known,
    /// The list takes no more records: the machine is going down.
    Refused,
}

/// The IMA default hash: what files are hashed with, and what duplicates are told by.
pub const HASH: Bank = Bank::Sha256;

impl Ima {
    /// Starts with an empty list and measures `boot_aggregate`, as a booting kernel does: over PCR
    /// 0 to 9 of the TPM's sha256 bank (of the sha1 bank, PCR 0 to 7, if there is no other), or
    /// zeros without a TPM.
    ///
    /// # Errors
    /// [`TpmError`] if the TPM does not tell its banks or PCRs.
    pub fn boot(policy: Policy, tpm: Option<SharedTpm>) -> Result<Ima, TpmError> {
        let banks = tpm.as_ref().map_or(Ok(Vec::new()), |tpm| tpm.lock().banks())?;
        let boot = Mutex::new(Arc::new(Boot::of(SharedList::new(policy.list))));
        let ima = Ima { policy, tpm, banks, boot, failed_extends: AtomicU64::new(0) };
        ima.add(&ima.boot_aggregate()?);
        Ok(ima)
    }

    /// Goes on with another list, as the next kernel does: nothing is known to be measured, and a
    /// `boot_aggregate` follows what the list holds.
    ///
    /// # Errors
    /// As [`Ima::boot`]; the old list is still there then.
    pub(crate) fn boot_again(&self, list: List) -> Result<(), TpmError> {
        let aggregate = self.boot_aggregate()?;
        *self.lock() = Arc::new(Boot::of(list.into()));
        self.add(&aggregate);
        Ok(())
    }

    /// Measures a file by its path, unless it was measured already and has not changed since.
    ///
    /// # Errors
    /// What the system says when it cannot be opened or read.
    pub fn measure_path(&self, path: &Path) -> io::Result<Outcome> {
        self.measure_file(File::open(path)?, path)
    }

    /// Measures an open file, to be called `path` in the list.
    ///
    /// # Errors
    /// What the system says when it cannot be read.
    pub fn measure_file(&self, mut file: File, path: &Path) -> io::Result<Outcome> {
        let state = FileState::of(&file)?;
        let boot = self.current();
        if !boot.measured().insert(state) {
            return Ok(Outcome::Known);
        }
        let digest = hash_file(&mut file).inspect_err(|_| {
            boot.measured().remove(&state);
        })?;
        Ok(self.add(&RecordBuf::ima_ng(IMA_PCR, &digest, path.as_os_str().as_bytes())))
    }

    /// Notes that a file was changed while it was measured: no digest would be true of it.
    pub fn violate(&self, path: &Path) -> Outcome {
        self.add(&RecordBuf::ima_ng_violation(IMA_PCR, HASH, path.as_os_str().as_bytes()))
    }

    /// Measures data that is no file. `name` is what the record calls it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if no record can be so long, or so called.
    pub fn measure_data(&self, name: &[u8], data: &[u8]) -> io::Result<Outcome> {
        let record = RecordBuilder::new(IMA_PCR).ima_buf(&HASH.hash(&[data]), name, data);
        let record = record
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        Ok(self.add(&record))
    }

    /// Notes that records were trimmed, after so many before; if that is to be measured.
    pub(crate) fn note_trim(&self, trimmed: u64) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = format!("time= {}; number= {trimmed};", time.as_nanos());
        self.note("trim_ima_event_logs", &text);
    }

    /// Notes that another kernel is loaded, or executed; if that is to be measured.
    pub(crate) fn note_kexec(&self, event: &str, segment_size: usize) {
        /// The size includes what comes before the records in the buffer.
        const HEADER: u64 = 24;
        let counts = self.list().counts();
        let text = format!(
            "kexec_segment_size={segment_size};ima_binary_runtime_size={};\
             ima_runtime_measurements_count={};",
            counts.held_bytes + counts.freed_bytes + HEADER,
            counts.total,
        );
        self.note(event, &text);
    }

    /// Adds a record to the list and extends the TPM's banks with it, in the order of the list.
    /// As in the kernel, a record stays in the list if the TPM fails.
    pub fn add(&self, record: &RecordBuf) -> Outcome {
        // Everything slow that can be done before the list is locked is done before.
        let borrowed = record.record();
        let key = borrowed.template_digest(HASH);
        let values: Vec<Digest> =
            self.banks.iter().map(|bank| self.extend(*bank).value(*bank, &borrowed)).collect();
        let extend = || {
            if let Some(tpm) = &self.tpm
                && let Err(error) = tpm.lock().pcr_extend(borrowed.pcr(), &values)
            {
                self.failed_extends.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "PCR {} was not extended", borrowed.pcr());
            }
        };
        match self.list().append(record, &key, extend) {
            Ok(()) => Outcome::Added,
            Err(AppendError::Duplicate) => Outcome::Known,
            Err(AppendError::Suspended) => Outcome::Refused,
        }
    }

    /// The list as it is since the last boot.
    pub fn list(&self) -> Arc<SharedList> {
        Arc::clone(&self.lock().list)
    }

    /// How the list behaves.
    pub fn options(&self) -> Options {
        self.policy.list
    }

    /// The TPM, if there is one.
    pub fn tpm(&self) -> Option<&SharedTpm> {
        self.tpm.as_ref()
    }

    /// The banks that have files: those that were named, or the TPM's, and sha1 in any case.
    pub fn banks(&self) -> Vec<Bank> {
        let mut banks = self.policy.banks.clone().unwrap_or_else(|| self.banks.clone());
        if !banks.contains(&Bank::Sha1) {
            banks.insert(0, Bank::Sha1);
        }
        banks
    }

    /// What a bank is extended with.
    pub fn extend(&self, bank: Bank) -> Extend {
        if self.policy.padded.contains(&bank) { Extend::Sha1Padded } else { Extend::Own }
    }

    /// How many records the TPM was not extended with because it failed.
    pub fn failed_extends(&self) -> u64 {
        self.failed_extends.load(Ordering::Relaxed)
    }

    fn note(&self, event: &str, text: &str) {
        if self.policy.critical_data
            && let Err(error) = self.measure_data(event.as_bytes(), text.as_bytes())
        {
            tracing::error!(%error, "{event} was not measured");
        }
    }

    fn boot_aggregate(&self) -> Result<RecordBuf, TpmError> {
        let aggregate = match &self.tpm {
            None => Digest::zero(HASH),
            Some(tpm) => {
                let (bank, last) =
                    if self.banks.contains(&HASH) { (HASH, 9) } else { (Bank::Sha1, 7) };
                let mut values = Vec::new();
                for pcr in 0..=last {
                    values.extend_from_slice(tpm.lock().pcr_read(bank, pcr)?.as_bytes());
                }
                bank.hash(&[&values])
            }
        };
        Ok(RecordBuf::ima_ng(IMA_PCR, &aggregate, b"boot_aggregate"))
    }

    fn current(&self) -> Arc<Boot> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Boot>> {
        self.boot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Boot {
    fn of(list: SharedList) -> Boot {
        Boot { list: Arc::new(list), measured: Mutex::default() }
    }

    fn measured(&self) -> MutexGuard<'_, HashSet<FileState>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file at one point of its life: what is equal was not changed in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileState {
    dev: u64,
    ino: u64,
    size: u64,
    ctime: (i64, i64),
}

impl FileState {
    fn of(file: &File) -> io::Result<FileState> {
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(FileState {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

fn hash_file(file: &mut File) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Digest::from_slice(HASH, &hasher.finalize()).map_err(io::Error::other)
}
