//! Writes a record in the ASCII form of the kernel.

use alloc::vec::Vec;

use crate::{Bank, Digest, Endian, Field, FieldKind, Record};

impl Record<'_> {
    /// Appends this record as the kernel's ASCII file of `bank` shows it, newline included.
    ///
    /// Names are shown as they are: a name with a newline makes two lines, and bytes that are not
    /// UTF-8 stay what they are. An unknown template's fields are shown in hex.
    pub fn write_ascii(&self, bank: Bank, out: &mut Vec<u8>) {
        let digest = if bank == self.format().bank {
            self.printed_digest()
        } else {
            self.template_digest(bank)
        };
        self.write_line(digest.as_bytes(), out);
    }

    /// As [`Record::write_ascii`], of the file `ascii_runtime_measurements_tpm_alg_XX`: see
    /// [`Record::write_binary_padded`].
    pub fn write_ascii_padded(&self, size: usize, out: &mut Vec<u8>) {
        self.write_line(&self.padded_digest()[..size.min(Digest::MAX)], out);
    }

    fn write_line(&self, digest: &[u8], out: &mut Vec<u8>) {
        let pcr = self.pcr();
        if pcr < 10 {
            out.push(b' ');
        }
        decimal(u64::from(pcr), out);
        out.push(b' ');
        hex(digest, out);
        out.push(b' ');
        out.extend_from_slice(self.template().name().as_bytes());
        for field in self.fields() {
            out.push(b' ');
            if !field.bytes.is_empty() {
                write_field(field, self.format().endian, out);
            }
        }
        out.push(b'\n');
    }
}

fn write_field(field: Field<'_>, endian: Endian, out: &mut Vec<u8>) {
    match field.kind {
        Some(FieldKind::DNg | FieldKind::DNgV2 | FieldKind::DModsig) => {
            // `[TYPE:]ALGORITHM:`, NUL, digest. Where that shape is missing all of it is digest.
            match field.bytes.iter().position(|byte| *byte == 0) {
                Some(nul) if nul > 0 && field.bytes[nul - 1] == b':' => {
                    out.extend_from_slice(&field.bytes[..nul]);
                    hex(&field.bytes[nul + 1..], out);
                }
                _ => hex(field.bytes, out),
            }
        }
        Some(FieldKind::N | FieldKind::NNg | FieldKind::XattrNames) => {
            // A C string: it ends at its first NUL.
            let end = field.bytes.iter().position(|byte| *byte == 0);
            out.extend_from_slice(&field.bytes[..end.unwrap_or(field.bytes.len())]);
        }
        Some(FieldKind::IUid | FieldKind::IGid | FieldKind::IMode) => match (field.bytes, endian) {
            (&[a, b, c, d], _) => decimal(u64::from(endian.u32([a, b, c, d])), out),
            (&[a, b], Endian::Little) => decimal(u64::from(u16::from_le_bytes([a, b])), out),
            (&[a, b], Endian::Big) => decimal(u64::from(u16::from_be_bytes([a, b])), out),
            (&[a], _) => decimal(u64::from(a), out),
            _ => hex(field.bytes, out),
        },
        _ => hex(field.bytes, out),
    }
}

pub(crate) fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(bytes.len() * 2);
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

pub(crate) fn decimal(value: u64, out: &mut Vec<u8>) {
    if value >= 10 {
        decimal(value / 10, out);
    }
    out.push(b'0' + (value % 10) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordBuf;

    #[test]
    fn blanks_become_underscores_and_everything_else_stays() {
        let record = RecordBuf::ima_ng(9, &Bank::Sha1.hash(&[]), b"/a b\n\xff");
        let mut line = Vec::new();
        record.record().write_ascii(Bank::Sha1, &mut line);
        assert!(line.starts_with(b" 9 "));
        assert!(
            line.ends_with(b" ima-ng sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709 /a_b\n\xff\n")
        );
    }
}
