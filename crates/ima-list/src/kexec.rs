//! Dumps a list to the buffer that is passed on by kexec, and restores it.

use alloc::vec::Vec;

use ima_log::{Bank, Endian, Format, KexecBuffer, KexecError, KexecWriter, Records};

use crate::{Chunk, List, Options};

impl List {
    /// What the next kernel is handed (struct `ima_kexec_hdr`): all records, the staged ones first.
    /// Digests of deleted records are not carried. At most `capacity` bytes.
    ///
    /// `endian` is the byte order the records were made in. Time and memory grow with the list.
    ///
    /// Whether the buffer holds all or not, what is staged now counts as handed over
    /// ([`Rules::V4`]).
    ///
    /// [`Rules::V4`]: crate::Rules::V4
    ///
    /// # Errors
    /// The buffer holds the records before the first one that it cannot carry, and a [`KexecError`]
    /// says why not that one: mostly because the buffer is full. It and all behind it are lost.
    pub fn dump(&mut self, endian: Endian, capacity: usize) -> (Vec<u8>, Result<(), KexecError>) {
        write(&self.carried(), endian, capacity)
    }

    /// The list of a kernel that was handed `buffer`: its records are current ones, in the buffer's
    /// byte order.
    ///
    /// Their SHA-1 template digests are computed anew, unless they are violations. As in the kernel
    /// their digests are not known to duplicate detection, so that files are measured again, and
    /// violations are not counted.
    ///
    /// # Errors
    /// The list holds the records before the first that a kernel does not restore, and a
    /// [`KexecError`] says why not that one.
    pub fn restore(options: Options, buffer: &KexecBuffer<'_>) -> (List, Result<(), KexecError>) {
        let mut list = List::new(options);
        let mut bytes = Vec::new();
        for record in buffer.records() {
            let record = match record {
                Ok(record) => record,
                Err(error) => return (list, Err(error)),
            };
            bytes.clear();
            bytes.extend_from_slice(record.as_bytes());
            let digest = bytes.get_mut(4..4 + Bank::Sha1.size());
            if let Some(digest) = digest.filter(|_| !record.is_violation()) {
                digest.copy_from_slice(record.template_digest(Bank::Sha1).as_bytes());
            }
            list.push(&bytes);
        }
        (list, Ok(()))
    }
}

/// A kexec buffer of `chunks`, and why it ends before they do.
pub(crate) fn write(
    chunks: &[Chunk],
    endian: Endian,
    capacity: usize,
) -> (Vec<u8>, Result<(), KexecError>) {
    let mut writer = KexecWriter::new(endian, capacity);
    let format = Format { bank: Bank::Sha1, endian };
    let written = chunks
        .iter()
        .flat_map(Chunk::slices)
        .flat_map(|slice| Records::new(slice, format))
        .try_for_each(|record| writer.push(&record.map_err(KexecError::Record)?));
    (writer.finish(), written)
}
