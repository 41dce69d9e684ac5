//! The records that are made most often.

use alloc::vec::Vec;

use crate::builder::{d_ng, n_ng, violation_d_ng};
use crate::{Bank, BuildError, Digest, MAX_TEMPLATE_DATA, RecordBuf, RecordBuilder};

impl RecordBuf {
    /// A record of template `ima-ng` in this machine's byte order. As in the kernel, blanks in the
    /// name become `_`, and the name ends at its first NUL. It ends a little short of
    /// [`MAX_TEMPLATE_DATA`] too, far beyond any path; [`RecordBuilder::ima_ng`] refuses such a one.
    pub fn ima_ng(pcr: u32, file_digest: &Digest, name: &[u8]) -> RecordBuf {
        let fields: &[&[u8]] = &[&d_ng(file_digest), &bounded_name(name)];
        RecordBuilder::new(pcr).written("ima-ng", fields)
    }

    /// A violation of template `ima-ng` about a file: the template digest is zero, as are the
    /// file digest's 20 bytes, whatever `bank` the kernel hashes files with. The name as in
    /// [`RecordBuf::ima_ng`].
    pub fn ima_ng_violation(pcr: u32, bank: Bank, name: &[u8]) -> RecordBuf {
        let fields: &[&[u8]] = &[&violation_d_ng(bank), &bounded_name(name)];
        RecordBuilder::new(pcr).violation().written("ima-ng", fields)
    }

    /// A record of template `ima-buf` in this machine's byte order: critical data, a key or a
    /// command line.
    ///
    /// # Errors
    /// [`BuildError`] when all of it is larger than [`MAX_TEMPLATE_DATA`].
    pub fn ima_buf(
        pcr: u32,
        data_digest: &Digest,
        name: &[u8],
        data: &[u8],
    ) -> Result<RecordBuf, BuildError> {
        RecordBuilder::new(pcr).ima_buf(data_digest, name, data)
    }
}

/// As [`n_ng`], short enough for a record with a `d-ng` before it.
fn bounded_name(name: &[u8]) -> Vec<u8> {
    n_ng(&name[..name.len().min(MAX_TEMPLATE_DATA - 256)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ParseErrorKind;

    #[test]
    fn the_largest_record_is_built_and_no_larger_one() {
        let digest = Bank::Sha512.hash(&[]);
        let rest = 4 + 72 + 4 + 3 + 4;
        let data = alloc::vec![0; MAX_TEMPLATE_DATA - rest + 1];
        let largest = RecordBuf::ima_buf(10, &digest, b"/f", &data[1..]).unwrap();
        assert_eq!(largest.record().template_data().len(), MAX_TEMPLATE_DATA);
        assert_eq!(
            RecordBuf::ima_buf(10, &digest, b"/f", &data),
            Err(BuildError::Record(ParseErrorKind::DataLength(MAX_TEMPLATE_DATA as u32 + 1)))
        );
        let name = alloc::vec![b'n'; 2 * MAX_TEMPLATE_DATA];
        for record in [
            RecordBuf::ima_ng(10, &digest, &name),
            RecordBuf::ima_ng_violation(10, Bank::Sha512, &name),
        ] {
            assert!(record.record().event_name().unwrap().len() > MAX_TEMPLATE_DATA - 512);
        }
        assert!(RecordBuilder::new(10).ima_ng(&digest, &name).is_err());
    }
}
