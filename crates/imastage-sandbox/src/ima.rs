use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ima_list::{AppendError, Options, SharedList};
use ima_log::{Bank, Digest, Extend, IMA_PCR, RecordBuf};
use imastage_tpm::{SharedTpm, TpmError};
use sha2::{Digest as _, Sha256};

/// What IMA does in the kernel: measures files, adds records to the list, extends the TPM. One for
/// all who measure.
pub struct Ima {
    list: Arc<SharedList>,
    tpm: Option<SharedTpm>,
    banks: Vec<Bank>,
    measured: Mutex<HashSet<FileState>>,
    failed_extends: AtomicU64,
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
    pub fn boot(options: Options, tpm: Option<SharedTpm>) -> Result<Ima, TpmError> {
        let (banks, aggregate) = match &tpm {
            None => (Vec::new(), Digest::zero(HASH)),
            Some(tpm) => {
                let mut tpm = tpm.lock();
                let banks = tpm.banks()?;
                let (bank, last) = if banks.contains(&HASH) { (HASH, 9) } else { (Bank::Sha1, 7) };
                let mut values = Vec::new();
                for pcr in 0..=last {
                    values.extend_from_slice(tpm.pcr_read(bank, pcr)?.as_bytes());
                }
                (banks, bank.hash(&[&values]))
            }
        };
        let ima = Ima {
            list: Arc::new(SharedList::new(options)),
            tpm,
            banks,
            measured: Mutex::default(),
            failed_extends: AtomicU64::new(0),
        };
        ima.add(&RecordBuf::ima_ng(IMA_PCR, &aggregate, b"boot_aggregate"));
        Ok(ima)
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
        if !self.measured.lock().unwrap_or_else(PoisonError::into_inner).insert(state) {
            return Ok(Outcome::Known);
        }
        let digest = hash_file(&mut file).inspect_err(|_| {
            self.measured.lock().unwrap_or_else(PoisonError::into_inner).remove(&state);
        })?;
        Ok(self.add(&RecordBuf::ima_ng(IMA_PCR, &digest, path.as_os_str().as_bytes())))
    }

    /// Adds a record to the list and extends the TPM's banks with it, in the order of the list.
    /// As in the kernel, a record stays in the list if the TPM fails.
    pub fn add(&self, record: &RecordBuf) -> Outcome {
        // Everything slow that can be done before the list is locked is done before.
        let borrowed = record.record();
        let key = borrowed.template_digest(HASH);
        let values: Vec<Digest> =
            self.banks.iter().map(|bank| Extend::Own.value(*bank, &borrowed)).collect();
        let extend = || {
            if let Some(tpm) = &self.tpm
                && let Err(error) = tpm.lock().pcr_extend(borrowed.pcr(), &values)
            {
                self.failed_extends.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "PCR {} was not extended", borrowed.pcr());
            }
        };
        match self.list.append(record, &key, extend) {
            Ok(()) => Outcome::Added,
            Err(AppendError::Duplicate) => Outcome::Known,
            Err(AppendError::Suspended) => Outcome::Refused,
        }
    }

    /// The list.
    pub fn list(&self) -> &Arc<SharedList> {
        &self.list
    }

    /// The TPM, if there is one.
    pub fn tpm(&self) -> Option<&SharedTpm> {
        self.tpm.as_ref()
    }

    /// The banks that have files: the TPM's, and sha1 in any case.
    pub fn banks(&self) -> Vec<Bank> {
        let mut banks = self.banks.clone();
        if !banks.contains(&Bank::Sha1) {
            banks.insert(0, Bank::Sha1);
        }
        banks
    }

    /// How many records the TPM was not extended with because it failed.
    pub fn failed_extends(&self) -> u64 {
        self.failed_extends.load(Ordering::Relaxed)
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
