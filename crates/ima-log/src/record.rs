//! One record in its binary form.

use alloc::vec::Vec;

use crate::format::Cursor;
use crate::{
    Bank, Digest, Endian, Fields, Format, MAX_NAME, MAX_TEMPLATE_DATA, ParseErrorKind, Template,
    template,
};

/// One record of a measurement list, borrowed from its binary form.
///
/// In a record only the template data is protected by the PCR; the PCR index, the template's name
/// and the printed digest are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    bytes: &'a [u8],
    format: Format,
    pcr: u32,
    template: Template<'a>,
    data: &'a [u8],
}

impl Format {
    /// Detects bank and byte order from the beginning of a list: the form in which its first record
    /// parses and has the digest of its data. Requires the complete first record; `None` if no form
    /// matches. If the first record is a violation or was altered, only sizes are compared, and
    /// SHA-256 is preferred to SM3, which has the same size.
    pub fn detect(list: &[u8]) -> Option<Format> {
        let forms = [Endian::Little, Endian::Big]
            .into_iter()
            .flat_map(|endian| Bank::ALL.map(|bank| Format { bank, endian }));
        let fitting = |format: &Format| match Record::parse_prefix(list, *format) {
            Ok(Some(record)) if record.pcr() < 24 => Some(record),
            _ => None,
        };
        forms
            .clone()
            .find(|format| {
                fitting(format).is_some_and(|r| !r.is_violation() && r.digest_is_right())
            })
            .or_else(|| forms.clone().find(|format| fitting(format).is_some()))
    }
}

impl<'a> Record<'a> {
    /// Reads the first record of `list`. `Ok(None)` means that more bytes are needed; if there are
    /// none, the list is truncated ([`crate::Decoder`] handles this). Constant time, except for
    /// template
    /// `ima`, whose digest is checked.
    ///
    /// # Errors
    /// [`ParseErrorKind`] if no continuation of `list` can be a record.
    // Handed over through memory, a record costs more than all there is to check in it.
    #[inline(always)]
    pub fn parse_prefix(
        list: &'a [u8],
        format: Format,
    ) -> Result<Option<Record<'a>>, ParseErrorKind> {
        let mut cursor = Cursor { rest: list, endian: format.endian };
        let Some(pcr) = cursor.u32() else { return Ok(None) };
        let Some(printed) = cursor.take(format.bank.size()) else { return Ok(None) };
        let Some(name_len) = cursor.u32() else { return Ok(None) };
        if !(1..=MAX_NAME as u32).contains(&name_len) {
            return Err(ParseErrorKind::NameLength(name_len));
        }
        let Some(name) = cursor.take(name_len as usize) else { return Ok(None) };
        let template = Template::from_name(name).ok_or(ParseErrorKind::NameBytes)?;

        let data = if template == Template::Ima {
            template::ima_data(cursor.rest, printed, format)?
        } else {
            match cursor.u32() {
                Some(len) if len as usize > MAX_TEMPLATE_DATA => {
                    return Err(ParseErrorKind::DataLength(len));
                }
                Some(len) => cursor.take(len as usize),
                None => None,
            }
        };
        let Some(data) = data else { return Ok(None) };
        if template != Template::Ima {
            template.check_data(data, format.endian)?;
        }
        // `data` is a subslice of `list` at its very end of the record.
        let len = data.as_ptr().addr() - list.as_ptr().addr() + data.len();
        Ok(Some(Record { bytes: &list[..len], format, pcr, template, data }))
    }

    /// The bytes of the record.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The form in which this record was read.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The PCR that this record names. Not authenticated.
    pub fn pcr(&self) -> u32 {
        self.pcr
    }

    /// The template. Not authenticated.
    pub fn template(&self) -> Template<'a> {
        self.template
    }

    /// The template data: for `ima` the file digest and the name as serialized; for all others the
    /// fields, each preceded by its length.
    pub fn template_data(&self) -> &'a [u8] {
        self.data
    }

    /// The fields of the template data.
    pub fn fields(&self) -> Fields<'a> {
        Fields::new(self.template, self.data, self.format.endian)
    }

    /// The name of what was measured (fields `n`, `n-ng`) without its terminating NUL: usually a
    /// path, of any bytes.
    pub fn event_name(&self) -> Option<&'a [u8]> {
        template::event_name(self.fields())
    }

    /// The digest in the list, in the form's bank. Not authenticated; see
    /// [`Record::template_digest`].
    pub fn printed_digest(&self) -> Digest {
        // The bounds were checked by `parse_prefix`.
        Digest::from_slice(self.format.bank, &self.bytes[4..4 + self.format.bank.size()])
            .unwrap_or(Digest::zero(self.format.bank))
    }

    /// Whether this record marks a violation: its printed digest is all zeros, and the PCR was
    /// extended with all ones.
    #[inline]
    pub fn is_violation(&self) -> bool {
        self.bytes[4..4 + self.format.bank.size()].iter().all(|byte| *byte == 0)
    }

    /// The template digest in `bank`, computed from the template data; zeros for a violation.
    /// Linear in the template data.
    pub fn template_digest(&self, bank: Bank) -> Digest {
        if self.is_violation() {
            return Digest::zero(bank);
        }
        self.data_digest(bank)
    }

    /// Whether the printed digest matches the template data; true for a violation. A list of a bank
    /// that the kernel extends with zero-padded SHA-1 contains that digest instead of its own; both
    /// are right.
    pub fn digest_is_right(&self) -> bool {
        if self.is_violation() {
            return true;
        }
        let printed = self.printed_digest();
        let bank = self.format.bank;
        printed == self.data_digest(bank)
            || (bank != Bank::Sha1 && printed == self.data_digest(Bank::Sha1).padded_to(bank))
    }

    /// Appends this record as in the kernel's binary file of `bank`. In the form's own bank the
    /// bytes are unchanged; otherwise the digest is computed.
    pub fn write_binary(&self, bank: Bank, out: &mut Vec<u8>) {
        if bank == self.format.bank {
            out.extend_from_slice(self.bytes);
            return;
        }
        out.extend_from_slice(&self.bytes[..4]);
        out.extend_from_slice(self.template_digest(bank).as_bytes());
        out.extend_from_slice(&self.bytes[4 + self.format.bank.size()..]);
    }

    /// Appends this record as in the kernel's file `binary_runtime_measurements_tpm_alg_XX`, for a
    /// TPM bank whose hash the kernel does not have: with the SHA-1 template digest, padded with
    /// zeros to the bank's `size` in bytes (at most [`Digest::MAX`]).
    ///
    /// Such a file is read in the [`Format`] of a bank of the same size. Its PCR cannot be replayed
    /// without the hash.
    pub fn write_binary_padded(&self, size: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[..4]);
        out.extend_from_slice(&self.padded_digest()[..size.min(Digest::MAX)]);
        out.extend_from_slice(&self.bytes[4 + self.format.bank.size()..]);
    }

    /// The SHA-1 template digest and zeros.
    pub(crate) fn padded_digest(&self) -> [u8; Digest::MAX] {
        let sha1 = match self.format.bank {
            Bank::Sha1 => self.printed_digest(),
            _ => self.template_digest(Bank::Sha1),
        };
        let mut padded = [0; Digest::MAX];
        padded[..Bank::Sha1.size()].copy_from_slice(sha1.as_bytes());
        padded
    }

    /// The digest of the template data in `bank`, of a violation's too.
    pub(crate) fn data_digest(&self, bank: Bank) -> Digest {
        match self.hashed_data() {
            Some(data) => bank.hash(&[data]),
            None => template::ima_digest(bank, self.data, self.format.endian),
        }
    }

    /// The bytes of the template digest if they are contiguous, which they are not in template
    /// `ima`.
    #[inline]
    pub(crate) fn hashed_data(&self) -> Option<&'a [u8]> {
        (self.template != Template::Ima).then_some(self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordBuf;

    fn sample() -> RecordBuf {
        RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[b"file"]), b"/bin/sh")
    }

    #[test]
    fn every_truncation_is_incomplete() {
        let record = sample();
        let bytes = record.as_bytes();
        for len in 0..bytes.len() {
            assert_eq!(Record::parse_prefix(&bytes[..len], record.format()), Ok(None), "{len}");
        }
        let parsed = Record::parse_prefix(bytes, record.format()).unwrap().unwrap();
        assert_eq!(parsed.as_bytes(), bytes);
    }

    #[test]
    fn lying_lengths_are_refused_before_anything_is_read() {
        let mut bytes = sample().into_bytes();
        bytes[24..28].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(
            Record::parse_prefix(&bytes, Format::native(Bank::Sha1)),
            Err(ParseErrorKind::NameLength(u32::MAX))
        );
        let mut bytes = sample().into_bytes();
        bytes[34..38].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(
            Record::parse_prefix(&bytes, Format::native(Bank::Sha1)),
            Err(ParseErrorKind::DataLength(u32::MAX))
        );
        let mut bytes = sample().into_bytes();
        bytes[38..42].copy_from_slice(&1000u32.to_ne_bytes());
        assert!(matches!(
            Record::parse_prefix(&bytes, Format::native(Bank::Sha1)),
            Err(ParseErrorKind::FieldLength { field: 0, claimed: 1000, .. })
        ));
    }

    #[test]
    fn byte_order_is_told_by_the_first_pcr() {
        assert_eq!(Endian::detect(&[10, 0, 0, 0]), Some(Endian::Little));
        assert_eq!(Endian::detect(&[0, 0, 0, 10]), Some(Endian::Big));
        assert_eq!(Endian::detect(&[0, 0, 0]), None);
        assert_eq!(Endian::detect(b"10 a"), None);
    }

    #[test]
    fn the_form_is_told_by_the_first_record() {
        for bank in Bank::ALL {
            let mut list = alloc::vec::Vec::new();
            sample().record().write_binary(bank, &mut list);
            assert_eq!(Format::detect(&list), Some(Format::native(bank)));
            let violation = RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v");
            let mut list = alloc::vec::Vec::new();
            violation.record().write_binary(bank, &mut list);
            // A violation tells no more than the width.
            let told = if bank == Bank::Sm3 { Bank::Sha256 } else { bank };
            assert_eq!(Format::detect(&list), Some(Format::native(told)));
        }
        assert_eq!(Format::detect(b"10 91f34b5c671d73504b274a919661cf80dab1e127 ima-ng"), None);
        assert_eq!(Format::detect(b""), None);
    }

    #[test]
    fn padded_lists_are_read_in_the_form_of_their_width() {
        let records = [sample(), RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v")];
        for record in &records {
            for bank in [Bank::Sha256, Bank::Sha384, Bank::Sha512] {
                let (mut list, mut line) = (Vec::new(), Vec::new());
                record.record().write_binary_padded(bank.size(), &mut list);
                record.record().write_ascii_padded(bank.size(), &mut line);
                let read = Record::parse_prefix(&list, Format::native(bank)).unwrap().unwrap();
                assert_eq!(read.as_bytes(), list);
                assert_eq!(read.is_violation(), record.record().is_violation());
                assert!(read.digest_is_right());
                let sha1 = record.record().template_digest(Bank::Sha1);
                assert_eq!(read.printed_digest(), sha1.padded_to(bank));
                let (mut as_read, mut again) = (Vec::new(), Vec::new());
                read.write_ascii(bank, &mut as_read);
                assert_eq!(line, as_read);
                read.write_binary_padded(bank.size(), &mut again);
                assert_eq!(again, list);
            }
        }
    }

    #[test]
    fn other_banks_are_computed() {
        let record = sample();
        let mut sha256 = alloc::vec::Vec::new();
        record.record().write_binary(Bank::Sha256, &mut sha256);
        let parsed = Record::parse_prefix(&sha256, Format::native(Bank::Sha256)).unwrap().unwrap();
        assert!(parsed.digest_is_right());
        let mut sha1 = alloc::vec::Vec::new();
        parsed.write_binary(Bank::Sha1, &mut sha1);
        assert_eq!(sha1, record.as_bytes());
    }
}
