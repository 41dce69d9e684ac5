//! Builds records of every template in either byte order.

use alloc::vec::Vec;

use crate::{
    Bank, BuildError, Digest, Endian, MAX_NAME, MAX_TEMPLATE_DATA, ParseErrorKind, RecordBuf,
    Template,
};

/// Builds records of every template, as a kernel of either byte order does.
///
/// ```
/// use ima_log::{Bank, Endian, RecordBuilder};
///
/// let file = Bank::Sha256.hash(&[b"#!/bin/sh\n"]);
/// let on_s390x = RecordBuilder::new(10).endian(Endian::Big);
/// let record = on_s390x.ima_sig(&file, b"/usr/bin/true", &[])?;
/// assert_eq!(record.record().template().name(), "ima-sig");
/// let odd = on_s390x.record("n-ng|buf", &[b"name\0", b"data"])?;
/// assert_eq!(odd.record().fields().count(), 2);
/// # Ok::<(), ima_log::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RecordBuilder {
    pcr: u32,
    endian: Endian,
    violation: bool,
}

/// Whose digest a field `d-ngv2` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DigestType {
    /// The hash of the file.
    Ima,
    /// The root of the file's fs-verity tree, hashed with its description.
    Verity,
}

/// What a record of template `evm-sig` has besides digest and name.
#[derive(Clone, Copy, Debug, Default)]
pub struct EvmSig<'a> {
    /// `security.evm`, from its type byte on.
    pub signature: &'a [u8],
    /// Names and values of the extended attributes that the signature covers.
    pub xattrs: &'a [(&'a str, &'a [u8])],
    /// The inode's owner.
    pub uid: u32,
    /// The inode's group.
    pub gid: u32,
    /// The inode's type and permissions.
    pub mode: u16,
}

impl RecordBuilder {
    /// Builds records of this PCR in this machine's byte order.
    pub fn new(pcr: u32) -> RecordBuilder {
        RecordBuilder { pcr, endian: Endian::native(), violation: false }
    }

    /// In this byte order.
    pub fn endian(self, endian: Endian) -> RecordBuilder {
        RecordBuilder { endian, ..self }
    }

    /// As violations: with a template digest of zeros. Digests given are written as they are; the
    /// kernel writes 20 zeros of the hash that files are measured with ([`Self::record`] takes
    /// that, and [`RecordBuf::ima_ng_violation`] does that).
    pub fn violation(self) -> RecordBuilder {
        RecordBuilder { violation: true, ..self }
    }

    /// A record of any template out of its fields as they are, without their lengths: of one with a
    /// name, of a format (`d-ng|n-ng|sig`), or of one this crate does not know. For template `ima`
    /// the digest, and the name without a NUL.
    ///
    /// # Errors
    /// [`BuildError`] when name, fields or sizes are not what a record has.
    pub fn record(&self, template: &str, fields: &[&[u8]]) -> Result<RecordBuf, BuildError> {
        let long = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        if !(1..=MAX_NAME).contains(&template.len()) {
            return Err(ParseErrorKind::NameLength(long(template.len())).into());
        }
        if Template::from_name(template.as_bytes()) == Some(Template::Ima) {
            return self.legacy(fields);
        }
        let data = fields.iter().fold(0usize, |sum, field| sum.saturating_add(4 + field.len()));
        if data > MAX_TEMPLATE_DATA {
            return Err(ParseErrorKind::DataLength(long(data)).into());
        }
        RecordBuf::checked(self.bytes(template, fields), self.endian)
    }

    /// Template `ima`. The digest is one of SHA-1; the name is at most 255 bytes, blanks become `_`
    /// and it ends at its first NUL.
    ///
    /// # Errors
    /// [`BuildError`] when name or digest are too long or too short.
    pub fn ima(&self, file_digest: &Digest, name: &[u8]) -> Result<RecordBuf, BuildError> {
        let name = n_ng(name);
        self.record("ima", &[file_digest.as_bytes(), name.strip_suffix(&[0]).unwrap_or(&name)])
    }

    /// Template `ima-ng`. The name as in [`RecordBuf::ima_ng`], here and below.
    ///
    /// # Errors
    /// [`BuildError`] when all of it is larger than [`MAX_TEMPLATE_DATA`], here and below.
    pub fn ima_ng(&self, file_digest: &Digest, name: &[u8]) -> Result<RecordBuf, BuildError> {
        self.record("ima-ng", &[&d_ng(file_digest), &n_ng(name)])
    }

    /// Template `ima-sig`. The signature is `security.ima` from its type byte on, or empty.
    ///
    /// # Errors
    /// As [`Self::ima_ng`].
    pub fn ima_sig(
        &self,
        file_digest: &Digest,
        name: &[u8],
        signature: &[u8],
    ) -> Result<RecordBuf, BuildError> {
        self.record("ima-sig", &[&d_ng(file_digest), &n_ng(name), signature])
    }

    /// Template `ima-ngv2`.
    ///
    /// # Errors
    /// As [`Self::ima_ng`].
    pub fn ima_ngv2(
        &self,
        digest_type: DigestType,
        file_digest: &Digest,
        name: &[u8],
    ) -> Result<RecordBuf, BuildError> {
        self.record("ima-ngv2", &[&d_ngv2(digest_type, file_digest), &n_ng(name)])
    }

    /// Template `ima-sigv2`.
    ///
    /// # Errors
    /// As [`Self::ima_ng`].
    pub fn ima_sigv2(
        &self,
        digest_type: DigestType,
        file_digest: &Digest,
        name: &[u8],
        signature: &[u8],
    ) -> Result<RecordBuf, BuildError> {
        self.record("ima-sigv2", &[&d_ngv2(digest_type, file_digest), &n_ng(name), signature])
    }

    /// Template `ima-buf`: critical data, a key or a command line.
    ///
    /// # Errors
    /// As [`Self::ima_ng`].
    pub fn ima_buf(
        &self,
        data_digest: &Digest,
        name: &[u8],
        data: &[u8],
    ) -> Result<RecordBuf, BuildError> {
        self.record("ima-buf", &[&d_ng(data_digest), &n_ng(name), data])
    }

    /// Template `ima-modsig`. `appended` is the digest of the file without its appended signature,
    /// and that signature; `None` for a file that has none.
    ///
    /// # Errors
    /// As [`Self::ima_ng`].
    pub fn ima_modsig(
        &self,
        file_digest: &Digest,
        name: &[u8],
        signature: &[u8],
        appended: Option<(&Digest, &[u8])>,
    ) -> Result<RecordBuf, BuildError> {
        let (d_modsig, modsig) = match appended {
            Some((digest, modsig)) => (d_ng(digest), modsig),
            None => (Vec::new(), &[][..]),
        };
        let fields: &[&[u8]] = &[&d_ng(file_digest), &n_ng(name), signature, &d_modsig, modsig];
        self.record("ima-modsig", fields)
    }

    /// Template `evm-sig`.
    ///
    /// # Errors
    /// As [`Self::ima_ng`].
    pub fn evm_sig(
        &self,
        file_digest: &Digest,
        name: &[u8],
        evm: &EvmSig<'_>,
    ) -> Result<RecordBuf, BuildError> {
        let (mut names, mut lengths, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (name, value)) in evm.xattrs.iter().enumerate() {
            if index > 0 {
                names.push(b'|');
            }
            names.extend_from_slice(name.as_bytes());
            lengths.extend_from_slice(&self.length(value));
            values.extend_from_slice(value);
        }
        if !names.is_empty() {
            names.push(0);
        }
        let mode = match self.endian {
            Endian::Little => evm.mode.to_le_bytes(),
            Endian::Big => evm.mode.to_be_bytes(),
        };
        let fields: &[&[u8]] = &[
            &d_ng(file_digest),
            &n_ng(name),
            evm.signature,
            &names,
            &lengths,
            &values,
            &self.endian.bytes(evm.uid),
            &self.endian.bytes(evm.gid),
            &mode,
        ];
        self.record("evm-sig", fields)
    }

    /// Template `ima`, which has no lengths but the name's.
    fn legacy(&self, fields: &[&[u8]]) -> Result<RecordBuf, BuildError> {
        let [digest, name] = fields else {
            return Err(
                ParseErrorKind::FieldCount { expected: 2, found: fields.len().min(3) }.into()
            );
        };
        if digest.len() != 20 && digest.len() != 16 {
            return Err(BuildError::DigestLength(digest.len()));
        }
        if name.len() > 255 {
            let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
            return Err(ParseErrorKind::EventNameLength(len).into());
        }
        let template_digest = match self.violation {
            true => Digest::zero(Bank::Sha1),
            false => Bank::Sha1.hash(&[digest, name, &[0; 256][name.len()..]]),
        };
        let mut bytes = self.head("ima", &template_digest);
        bytes.extend_from_slice(digest);
        bytes.extend_from_slice(&self.length(name));
        bytes.extend_from_slice(name);
        let record = RecordBuf::checked(bytes, self.endian)?;
        let read: Vec<&[u8]> = record.record().fields().map(|field| field.bytes).collect();
        if read != fields { Err(BuildError::Ambiguous) } else { Ok(record) }
    }

    /// As [`Self::record`], where nothing can be wrong: the template is known and has these fields,
    /// and they are not too large.
    pub(crate) fn written(&self, template: &str, fields: &[&[u8]]) -> RecordBuf {
        RecordBuf::trusted(self.bytes(template, fields), self.endian)
    }

    fn bytes(&self, template: &str, fields: &[&[u8]]) -> Vec<u8> {
        let mut data = Vec::with_capacity(fields.iter().map(|field| 4 + field.len()).sum());
        for field in fields {
            data.extend_from_slice(&self.length(field));
            data.extend_from_slice(field);
        }
        let digest =
            if self.violation { Digest::zero(Bank::Sha1) } else { Bank::Sha1.hash(&[&data]) };
        let mut bytes = self.head(template, &digest);
        bytes.reserve_exact(4 + data.len());
        bytes.extend_from_slice(&self.length(&data));
        bytes.extend_from_slice(&data);
        bytes
    }

    /// PCR, digest and template name.
    fn head(&self, template: &str, digest: &Digest) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 20 + 4 + template.len());
        bytes.extend_from_slice(&self.endian.bytes(self.pcr));
        bytes.extend_from_slice(digest.as_bytes());
        bytes.extend_from_slice(&self.length(template.as_bytes()));
        bytes.extend_from_slice(template.as_bytes());
        bytes
    }

    fn length(&self, bytes: &[u8]) -> [u8; 4] {
        // What is larger than `u32` is larger than `MAX_TEMPLATE_DATA` and was refused, or will be.
        self.endian.bytes(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
    }
}

impl DigestType {
    /// As in the field: `ima` or `verity`.
    pub const fn name(self) -> &'static str {
        match self {
            DigestType::Ima => "ima",
            DigestType::Verity => "verity",
        }
    }
}

pub(crate) fn d_ng(digest: &Digest) -> Vec<u8> {
    [digest.bank().name().as_bytes(), b":\0", digest.as_bytes()].concat()
}

fn d_ngv2(digest_type: DigestType, digest: &Digest) -> Vec<u8> {
    [digest_type.name().as_bytes(), b":", &d_ng(digest)].concat()
}

pub(crate) fn violation_d_ng(bank: Bank) -> Vec<u8> {
    [bank.name().as_bytes(), b":\0", &[0; 20]].concat()
}

pub(crate) fn n_ng(name: &[u8]) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let mut field = Vec::with_capacity(end + 1);
    field.extend(name[..end].iter().map(|byte| if *byte == b' ' { b'_' } else { *byte }));
    field.push(0);
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FieldKind, Format, Records};
    use alloc::string::String;
    use proptest::{collection::vec, prelude::*};

    fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..max)
    }

    /// That the record is read back whole, with the right digests, in every bank.
    fn check(record: &RecordBuf) {
        let (borrowed, mut list) = (record.record(), Vec::new());
        assert_eq!(borrowed.as_bytes(), record.as_bytes());
        assert!(borrowed.digest_is_right());
        for bank in Bank::ALL {
            list.clear();
            borrowed.write_binary(bank, &mut list);
            let format = Format { bank, ..record.format() };
            let mut records = Records::new(&list, format);
            let read = records.next().unwrap().unwrap();
            assert!(records.next().is_none());
            assert!(read.digest_is_right(), "{bank}");
            assert!(read.fields().eq(borrowed.fields()), "{bank}");
        }
    }

    #[test]
    fn every_template_in_both_byte_orders() {
        let (sha1, sha256) = (Bank::Sha1.hash(&[b"f"]), Bank::Sha256.hash(&[b"f"]));
        let evm = EvmSig {
            signature: &[5, 2],
            xattrs: &[("security.ima", b"one"), ("security.selinux", b"")],
            uid: 1,
            gid: 2,
            mode: 0o100_644,
        };
        for endian in [Endian::Little, Endian::Big] {
            let builder = RecordBuilder::new(11).endian(endian);
            for (name, record) in [
                ("ima", builder.ima(&sha1, b"/f")),
                ("ima-ng", builder.ima_ng(&sha256, b"/f")),
                ("ima-sig", builder.ima_sig(&sha256, b"/f", &[3, 2, 4])),
                ("ima-ngv2", builder.ima_ngv2(DigestType::Verity, &sha256, b"/f")),
                ("ima-sigv2", builder.ima_sigv2(DigestType::Ima, &sha256, b"/f", &[])),
                ("ima-buf", builder.ima_buf(&sha256, b"/f", b"data")),
                ("ima-modsig", builder.ima_modsig(&sha256, b"/f", &[], Some((&sha1, b"pkcs7")))),
                ("evm-sig", builder.evm_sig(&sha256, b"/f", &evm)),
                ("n-ng|sig|d-ng", builder.record("n-ng|sig|d-ng", &[b"/f\0", b"", b"x"])),
            ] {
                let record = record.unwrap();
                check(&record);
                let record = record.record();
                assert_eq!(record.template().name(), name);
                assert_eq!((record.pcr(), record.format().endian), (11, endian));
                assert_eq!(record.event_name(), Some(&b"/f"[..]));
            }
            let mut line = Vec::new();
            builder
                .evm_sig(&sha1, b"/f", &evm)
                .unwrap()
                .record()
                .write_ascii(Bank::Sha1, &mut line);
            let line = String::from_utf8(line).unwrap();
            let lengths =
                if endian == Endian::Little { "0300000000000000" } else { "0000000300000000" };
            let end = alloc::format!(
                " /f 0502 security.ima|security.selinux {lengths} 6f6e65 1 2 33188\n"
            );
            assert!(line.ends_with(&end), "{line}");
        }
    }

    #[test]
    fn what_would_be_no_record_is_refused() {
        let builder = RecordBuilder::new(10);
        let digest = Bank::Sha256.hash(&[]);
        let record = |kind| Err(BuildError::Record(kind));
        assert_eq!(builder.record("", &[]), record(ParseErrorKind::NameLength(0)));
        assert_eq!(builder.record(&"n".repeat(256), &[]), record(ParseErrorKind::NameLength(256)));
        assert_eq!(builder.record("a b", &[]), record(ParseErrorKind::NameBytes));
        for (fields, found) in [(1, 1), (4, 3)] {
            assert_eq!(
                builder.record("ima-ng", &alloc::vec![&b""[..]; fields]),
                record(ParseErrorKind::FieldCount { expected: 2, found }),
            );
        }
        assert_eq!(builder.ima(&digest, b"/f"), Err(BuildError::DigestLength(32)));
        let sha1 = Bank::Sha1.hash(&[]);
        assert_eq!(builder.ima(&sha1, &[b'n'; 256]), record(ParseErrorKind::EventNameLength(256)));
        assert!(builder.ima(&sha1, &[b'n'; 255]).is_ok());
    }

    proptest! {
        #[test]
        fn whatever_is_built_is_read_back(
            pcr in any::<u32>(),
            big in any::<bool>(),
            violation in any::<bool>(),
            bank in proptest::sample::select(&Bank::ALL[..]),
            (name, a, b, c) in (bytes(300), bytes(40), bytes(40), bytes(40)),
        ) {
            let endian = if big { Endian::Big } else { Endian::Little };
            let mut builder = RecordBuilder::new(pcr).endian(endian);
            if violation {
                builder = builder.violation();
            }
            let digest = bank.hash(&[&a]);
            let evm = EvmSig {
                signature: &a, xattrs: &[("x", &b), ("y", &c)], uid: pcr, gid: 7, mode: pcr as u16,
            };
            let built = [
                builder.ima_ng(&digest, &name),
                builder.ima_sig(&digest, &name, &a),
                builder.ima_ngv2(DigestType::Ima, &digest, &name),
                builder.ima_sigv2(DigestType::Verity, &digest, &name, &a),
                builder.ima_buf(&digest, &name, &b),
                builder.ima_modsig(&digest, &name, &a, Some((&digest, &b))),
                builder.ima_modsig(&digest, &name, &a, None),
                builder.evm_sig(&digest, &name, &evm),
            ];
            for record in built {
                let record = record.unwrap();
                check(&record);
                prop_assert_eq!(record.record().is_violation(), violation);
                let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                prop_assert_eq!(record.record().event_name().unwrap().len(), end);
            }
        }

        #[test]
        fn any_fields_come_back(
            template in "[a-z-]{1,12}|(d-ng|n|sig|buf|iuid)(\\|(d-ng|n|sig|buf|iuid)){0,6}",
            fields in vec(bytes(30), 0..8),
        ) {
            let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
            match RecordBuilder::new(10).record(&template, &fields) {
                Ok(record) => {
                    check(&record);
                    prop_assert!(record.record().fields().map(|field| field.bytes).eq(fields));
                }
                Err(error) => prop_assert!(
                    matches!(error, BuildError::Record(ParseErrorKind::FieldCount { .. })),
                    "{error}"
                ),
            }
        }

        #[test]
        fn template_ima_comes_back(
            digest in bytes(24), name in bytes(260), violation in any::<bool>(),
        ) {
            let mut builder = RecordBuilder::new(10);
            if violation {
                builder = builder.violation();
            }
            if let Ok(record) = builder.record("ima", &[&digest, &name]) {
                check(&record);
                let fields: Vec<_> = record.record().fields().map(|field| field.bytes).collect();
                prop_assert_eq!(fields, [&digest[..], &name[..]]);
            } else {
                prop_assert!(violation || name.len() > 255 || ![16, 20].contains(&digest.len()));
            }
        }
    }

    #[test]
    fn kinds_follow_a_custom_format() {
        let record = RecordBuilder::new(10).record("sig|n", &[b"s", b"n"]).unwrap();
        let kinds: Vec<_> = record.record().fields().map(|field| field.kind).collect();
        assert_eq!(kinds, [Some(FieldKind::Sig), Some(FieldKind::N)]);
    }
}
