//! IMA of a sandbox: measures files, appends records, extends the TPM.

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
use ima_log::{Bank, Digest, Extend, RecordBuf, RecordBuilder};
use imastage_tpm::{SharedTpm, TpmError};
use sha2::{Digest as _, Sha256};

use crate::Kernel;

/// IMA as in the kernel: measures files, appends records to the list, extends the TPM. Shared by
/// all threads that measure.
pub struct Ima {
    policy: Policy,
    tpm: Option<SharedTpm>,
    /// The banks to extend.
    banks: Vec<Bank>,
    boot: Mutex<Arc<Boot>>,
    failed_extends: AtomicU64,
}

/// The configuration of IMA.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The options of the list.
    pub list: Options,
    /// The banks that have files; `None` selects all banks of the TPM.
    pub banks: Option<Vec<Bank>>,
    /// The kernel of the first boot.
    pub kernel: Kernel,
    /// Whether the kernel measures its own kexec and trim events.
    pub critical_data: bool,
}

/// The state of one boot.
struct Boot {
    kernel: Kernel,
    list: Arc<SharedList>,
    /// The measured files, each with the PCR it was measured into.
    measured: Mutex<HashSet<(FileState, u32)>>,
}

/// The outcome of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A record was added.
    Added,
    /// The file was measured before and has not changed, or an equal record is in the list.
    Known,
    /// The list is suspended: the machine is going down.
    Refused,
}

/// The IMA default hash, for files and for duplicate detection.
pub const HASH: Bank = Bank::Sha256;

impl Ima {
    /// Starts with an empty list and measures `boot_aggregate`, as a booting kernel does: over PCR
    /// 0 to 9 of the TPM's sha256 bank (PCR 0 to 7 of the sha1 bank if the TPM has no sha256 bank),
    /// or zeros without a TPM.
    ///
    /// # Errors
    /// [`TpmError`] if the TPM's banks or PCRs cannot be read.
    pub fn boot(policy: Policy, tpm: Option<SharedTpm>) -> Result<Ima, TpmError> {
        let banks = tpm.as_ref().map_or(Ok(Vec::new()), |tpm| tpm.lock().banks())?;
        let kernel = policy.kernel.clone();
        let boot = Boot::of(kernel.clone(), SharedList::new(policy.list));
        let boot = Mutex::new(Arc::new(boot));
        let ima = Ima { policy, tpm, banks, boot, failed_extends: AtomicU64::new(0) };
        ima.add(&ima.boot_aggregate(&kernel)?);
        Ok(ima)
    }

    /// Replaces the list, as a boot of the kernel `next` does (by default the same kernel): no file
    /// counts as measured, and a `boot_aggregate` is appended to the records in the list.
    ///
    /// # Errors
    /// As [`Ima::boot`]; the list is not replaced.
    pub(crate) fn boot_again(&self, list: List, next: Option<Kernel>) -> Result<(), TpmError> {
        let kernel = next.unwrap_or_else(|| self.current().kernel.clone());
        let aggregate = self.boot_aggregate(&kernel)?;
        *self.lock() = Arc::new(Boot::of(kernel, list.into()));
        self.add(&aggregate);
        Ok(())
    }

    /// Measures a file by its path, unless it was measured before and has not changed since.
    ///
    /// # Errors
    /// The system's error if the file cannot be opened or read.
    pub fn measure_path(&self, path: &Path) -> io::Result<Outcome> {
        self.measure_file(File::open(path)?, path)
    }

    /// As [`Ima::measure_path`], into the given PCR, as a policy rule with `pcr=` does.
    ///
    /// # Errors
    /// As [`Ima::measure_path`].
    pub fn measure_path_into(&self, pcr: u32, path: &Path) -> io::Result<Outcome> {
        self.measure(pcr, File::open(path)?, path)
    }

    /// Measures an open file, with `path` as its name in the list.
    ///
    /// # Errors
    /// The system's error if the file cannot be read.
    pub fn measure_file(&self, file: File, path: &Path) -> io::Result<Outcome> {
        self.measure(self.pcr(), file, path)
    }

    fn measure(&self, pcr: u32, mut file: File, path: &Path) -> io::Result<Outcome> {
        let state = (FileState::of(&file)?, pcr);
        let boot = self.current();
        if !boot.measured().insert(state) {
            return Ok(Outcome::Known);
        }
        let digest = hash_file(&mut file, state.0.size).inspect_err(|_| {
            boot.measured().remove(&state);
        })?;
        Ok(self.add(&RecordBuf::ima_ng(pcr, &digest, path.as_os_str().as_bytes())))
    }

    /// Records a violation instead of measuring an open file, once until the file changes.
    ///
    /// # Errors
    /// An error if the file is not a regular file.
    pub(crate) fn violate_file(&self, file: &File, path: &Path) -> io::Result<Outcome> {
        let state = (FileState::of(file)?, self.pcr());
        let fresh = self.current().measured().insert(state);
        Ok(if fresh { self.violate(path) } else { Outcome::Known })
    }

    /// Records a violation: the file changed while it was measured, so no digest is valid.
    pub fn violate(&self, path: &Path) -> Outcome {
        self.add(&RecordBuf::ima_ng_violation(self.pcr(), HASH, path.as_os_str().as_bytes()))
    }

    /// Measures data that is not a file. `name` is the event name in the record.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the name or data is not valid in a record.
    pub fn measure_data(&self, name: &[u8], data: &[u8]) -> io::Result<Outcome> {
        let record = RecordBuilder::new(self.pcr()).ima_buf(&HASH.hash(&[data]), name, data);
        let record = record
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        Ok(self.add(&record))
    }

    /// Measures a trim as critical data, if configured. `trimmed` is the total before it.
    pub(crate) fn note_trim(&self, trimmed: u64) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = format!("time= {}; number= {trimmed};", time.as_nanos());
        self.note("trim_ima_event_logs", &text);
    }

    /// Measures the load or execution of another kernel as critical data, if configured.
    pub(crate) fn note_kexec(&self, event: &str, segment_size: usize) {
        /// The measured size includes the header of the kexec buffer, in bytes.
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

    /// Appends a record to the list and extends the TPM's banks with it, in list order. As in the
    /// kernel, the record stays in the list if the TPM fails.
    pub fn add(&self, record: &RecordBuf) -> Outcome {
        // Slow work is done before the list is locked.
        let borrowed = record.record();
        let key = borrowed.template_digest(HASH);
        let boot = self.current();
        let tpm = self.tpm.as_ref().filter(|_| !boot.kernel.tpm_late);
        let value = |bank: &Bank| boot.kernel.value(*bank, &borrowed);
        let values: Vec<Digest> = self.banks.iter().map(value).collect();
        let extend = || {
            if let Some(tpm) = tpm
                && let Err(error) = tpm.lock().pcr_extend(borrowed.pcr(), &values)
            {
                self.failed_extends.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "PCR {} was not extended", borrowed.pcr());
            }
        };
        match boot.list.append(record, &key, extend) {
            Ok(()) => Outcome::Added,
            Err(AppendError::Duplicate) => Outcome::Known,
            Err(AppendError::Suspended) => Outcome::Refused,
        }
    }

    /// The list of the current boot.
    pub fn list(&self) -> Arc<SharedList> {
        Arc::clone(&self.lock().list)
    }

    /// The options of the list.
    pub fn options(&self) -> Options {
        self.policy.list
    }

    /// The TPM, if any.
    pub fn tpm(&self) -> Option<&SharedTpm> {
        self.tpm.as_ref()
    }

    /// The PCR that is extended unless a rule selects another.
    pub fn pcr(&self) -> u32 {
        self.current().kernel.pcr
    }

    /// The banks that have files: the configured ones, or those of the TPM if the kernel found it;
    /// always including sha1.
    pub fn banks(&self) -> Vec<Bank> {
        let found = || match self.current().kernel.tpm_late {
            true => Vec::new(),
            false => self.banks.clone(),
        };
        let mut banks = self.policy.banks.clone().unwrap_or_else(found);
        if !banks.contains(&Bank::Sha1) {
            banks.insert(0, Bank::Sha1);
        }
        banks
    }

    /// The digests that a bank is extended with.
    pub fn extend(&self, bank: Bank) -> Extend {
        self.current().kernel.extend(bank)
    }

    /// The number of records that did not extend the TPM because a TPM command failed.
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

    fn boot_aggregate(&self, kernel: &Kernel) -> Result<RecordBuf, TpmError> {
        let aggregate = match self.tpm.as_ref().filter(|_| !kernel.tpm_late) {
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
        Ok(RecordBuf::ima_ng(kernel.pcr, &aggregate, kernel.boot_aggregate()))
    }

    fn current(&self) -> Arc<Boot> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Boot>> {
        self.boot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Boot {
    fn of(kernel: Kernel, list: SharedList) -> Boot {
        Boot { kernel, list: Arc::new(list), measured: Mutex::default() }
    }

    fn measured(&self) -> MutexGuard<'_, HashSet<(FileState, u32)>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a file at one moment. Equal states mean that the file did not change in between.
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

/// Hashes a file of `size` bytes. Reads at most `size` + 1 bytes, to detect a file that grows.
fn hash_file(file: &mut File, size: u64) -> io::Result<Digest> {
    let mut file = file.take(size.saturating_add(1));
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
    if file.limit() == 0 {
        return Err(io::Error::other("the file grew during measurement; measure the file again"));
    }
    Digest::from_slice(HASH, &hasher.finalize()).map_err(io::Error::other)
}
