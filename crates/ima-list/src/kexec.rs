//! Dumps a list to the buffer that kexec passes to the next kernel, and restores the list from it.

use alloc::vec::Vec;

use ima_log::{Bank, Endian, Format, KexecBuffer, KexecError, KexecWriter, Records};

use crate::{Chunk, List, Options};

impl List {
    /// The buffer for the next kernel (struct `ima_kexec_hdr`), at most `capacity` bytes: all
    /// records, the staged ones first. Digests of deleted records are not carried over.
    ///
    /// `endian` is the byte order of the records. Time and memory grow with the list.
    ///
    /// Records staged now count as dumped ([`Rules::V4`]), even if the buffer is too small for
    /// them.
    ///
    /// [`Rules::V4`]: crate::Rules::V4
    ///
    /// # Errors
    /// A [`KexecError`] gives the reason, usually a full buffer, that a record could not be
    /// written. The buffer contains the records before it; that record and all later ones are lost.
    pub fn dump(&mut self, endian: Endian, capacity: usize) -> (Vec<u8>, Result<(), KexecError>) {
        write(&self.carried(), endian, capacity)
    }

    /// The list of a kernel that received `buffer`: all its records are current, in the buffer's
    /// byte order.
    ///
    /// The SHA-1 template digests are recomputed, except those of violations. As in the kernel,
    /// duplicate detection does not know the restored digests, so files are measured again, and
    /// restored violations are not counted.
    ///
    /// # Errors
    /// A [`KexecError`] gives the reason that a record could not be restored. The list contains the
    /// records before it.
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

/// A kexec buffer of `chunks`, and the error that truncated it.
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
