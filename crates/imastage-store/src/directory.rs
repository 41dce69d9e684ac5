//! The entries of a state directory outside its epochs.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use crate::{
    Damage, Remedy, StoreError,
    beneath::SystemDisk,
    commits::Commits,
    disk::{Disk, Kind, Mode},
    files::{self, At, FORMAT, LOCK},
};

/// The result of a check of a state directory, without the records of its epochs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirectoryReport {
    /// Entries that do not belong to the store, or are of another kind than the store's.
    pub damage: Vec<Damage>,
    /// Information that need not indicate damage.
    pub remarks: Vec<String>,
}

/// A small file of the store's user in the state directory. It is read and replaced like the
/// store's own files: a link in its place is not followed.
#[derive(Debug)]
pub struct SideFile {
    disk: SystemDisk,
    path: PathBuf,
}

/// The name of the file with the service's last comparison with the TPM.
pub const COMPARED: &str = "compared.json";

impl SideFile {
    /// The file `name` of a state directory; nothing is opened yet.
    pub fn new(state: &Path, name: &str) -> SideFile {
        SideFile { disk: SystemDisk::new(state), path: state.join(name) }
    }

    /// Its content; `None` if it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is not a file or has more than `most` bytes;
    /// [`StoreError::Io`].
    pub fn read(&self, most: usize) -> Result<Option<Vec<u8>>, StoreError> {
        files::read_small(&self.disk, &self.path, most)
    }

    /// Replaces it atomically (mode 0600). It is not synced: after a crash it can have the earlier
    /// content, or none.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a directory is in its place, [`StoreError::Io`].
    pub fn replace(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let new = self.path.with_extension("new");
        files::open_new(&self.disk, &new)?.write_all(bytes, 0).at(&new, "write")?;
        self.disk.rename(&new, &self.path).at(&self.path, "rename into place")
    }
}

/// Checks the entries of a state directory, without the content of its epochs: whether each name
/// belongs to the store and is of the right kind, and whether the epochs are of one machine. Linear
/// in the number of epochs; reads no records.
///
/// # Errors
/// [`StoreError::NotAStore`], [`StoreError::Io`].
pub fn check_directory(state: &Path) -> Result<DirectoryReport, StoreError> {
    check_directory_on(&SystemDisk::new(state), state)
}

pub(crate) fn check_directory_on(
    disk: &dyn Disk,
    state: &Path,
) -> Result<DirectoryReport, StoreError> {
    files::require(disk, state)?;
    let mut report = DirectoryReport::default();
    for name in [FORMAT, LOCK, COMPARED, "format.new", "compared.new"] {
        report.look(disk, &state.join(name), Kind::File)?;
    }
    let epochs = files::epochs_dir(state);
    let mut names = match disk.list(&epochs).at(&epochs, "list") {
        Err(StoreError::Damaged { path, why, .. }) => {
            report.found(path, why);
            return Ok(report);
        }
        names => names?,
    };
    names.sort();
    for name in names {
        let path = epochs.join(&name);
        if files::epoch_number(&name).is_some() || files::is_gone(&name) || is_begun(&name) {
            report.look(disk, &path, Kind::Directory)?;
        } else {
            report.found(path, "the store makes no epoch of this name".to_owned());
        }
    }
    report.compare_tpms(disk, state)?;
    Ok(report)
}

/// Whether a name is that of an epoch that is being created.
fn is_begun(name: &OsStr) -> bool {
    let epoch = name.to_str().and_then(|name| name.strip_suffix(".new"));
    epoch.is_some_and(|epoch| files::epoch_number(epoch.as_ref()).is_some())
}

impl DirectoryReport {
    fn found(&mut self, path: PathBuf, what: String) {
        let remedy = Remedy::MoveAway;
        self.damage.push(Damage { path, offset: 0, records: 0..0, what, remedy });
    }

    fn look(&mut self, disk: &dyn Disk, path: &Path, expected: Kind) -> Result<(), StoreError> {
        match disk.kind(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => {
                let found = found.at(path, "look at")?;
                if found != expected {
                    self.found(path.to_owned(), format!("{found} is here, expected {expected}"));
                }
            }
        }
        Ok(())
    }

    /// A TPM that was cleared or replaced does not return: an epoch of another TPM between two of
    /// the same one was copied here.
    fn compare_tpms(&mut self, disk: &dyn Disk, state: &Path) -> Result<(), StoreError> {
        let mut tpms: Vec<(u64, String)> = Vec::new();
        for number in files::epochs(disk, state)? {
            let dir = files::epoch_dir(state, number);
            match Commits::open_damaged(disk, &dir, Mode::Read) {
                // The check of the epoch reports it.
                Err(StoreError::Damaged { .. }) => {}
                opened => tpms.extend(opened?.0.id.tpm.map(|tpm| (number, tpm))),
            }
        }
        for (at, (number, tpm)) in tpms.iter().enumerate() {
            let (before, behind) = tpms.split_at(at);
            let Some((last, other)) = before.last() else { continue };
            let comes_back = |(_, earlier): &&(u64, String)| {
                earlier != tpm && behind.iter().any(|(_, later)| later == earlier)
            };
            if let Some((first, _)) = before.iter().find(comes_back) {
                let what = format!(
                    "the epoch is of another TPM than epoch {first} before it and one behind it: it was \
                     made on another machine and copied here"
                );
                self.found(files::epoch_dir(state, *number), what);
            } else if other != tpm {
                self.remarks.push(format!(
                    "epoch {number} is of another TPM (or attestation key) than epoch {last}: it was \
                     cleared or exchanged, or epochs were copied here from another machine"
                ));
            }
        }
        Ok(())
    }
}
