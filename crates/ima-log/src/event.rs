//! The content of a record: file digest and name, and events other than the measurement of a file.

use core::str;

use crate::{Field, FieldKind, Record, Template};

/// The digest in a field `d`, `d-ng`, `d-ngv2` or `d-modsig`: the hash of what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileDigest<'a> {
    /// The type before the algorithm in `d-ngv2`: `ima` for the file, `verity` for its fs-verity
    /// tree.
    pub digest_type: Option<&'a str>,
    /// The kernel's name of the hash function. A field `d` has none: it is `sha1` or `md5`,
    /// according to its size.
    pub algorithm: &'a str,
    /// The digest. Its size is not checked against the algorithm; a violation has 20 zeros.
    pub digest: &'a [u8],
}

/// The event of a record that is not the measurement of a file. Source: the kernel's
/// `Documentation/ABI/testing/ima_policy` (KEY_CHECK, KEXEC_CMDLINE, CRITICAL_DATA).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A kernel booted: its first record, a digest of PCR 0 to 7 or 9
    /// ([`crate::check_boot_aggregate`]).
    BootAggregate,
    /// Critical data `kernel_version`: the release.
    KernelVersion(&'a [u8]),
    /// The command line of the kernel that kexec is to boot.
    KexecCommandLine(&'a [u8]),
    /// Critical data of label `ima_kexec`: another kernel was loaded.
    KexecLoad(KexecSizes),
    /// Critical data of label `ima_kexec`: the last record before another kernel is booted.
    KexecExecute(KexecSizes),
    /// A key was added to a keyring.
    Key {
        /// The keyring's name.
        keyring: &'a [u8],
        /// The X.509 certificate, in DER.
        certificate: &'a [u8],
    },
    /// Other critical data, named by the record's event name.
    Data(&'a [u8]),
}

/// A kernel's statement about its list when kexec passes it on, counted since that kernel booted,
/// including deleted records: a list with fewer records shows that some were deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KexecSizes {
    /// The buffer's capacity in bytes.
    pub segment_size: u64,
    /// The size in bytes of the records so far, plus 24 for the header.
    pub runtime_size: u64,
    /// The number of records so far, without this one.
    pub measurements: u64,
}

impl<'a> FileDigest<'a> {
    /// Parses a digest field; `None` if it is another field, empty, or malformed.
    pub fn from_field(field: &Field<'a>) -> Option<FileDigest<'a>> {
        match field.kind? {
            FieldKind::D => {
                let algorithm = match field.bytes.len() {
                    20 => "sha1",
                    16 => "md5",
                    _ => return None,
                };
                Some(FileDigest { digest_type: None, algorithm, digest: field.bytes })
            }
            kind @ (FieldKind::DNg | FieldKind::DModsig | FieldKind::DNgV2) => {
                let nul = field.bytes.iter().position(|byte| *byte == 0)?;
                let (head, digest) = (&field.bytes[..nul], &field.bytes[nul + 1..]);
                let head = str::from_utf8(head).ok()?.strip_suffix(':')?;
                let (digest_type, algorithm) = match kind {
                    FieldKind::DNgV2 => {
                        let (digest_type, algorithm) = head.split_once(':')?;
                        (Some(digest_type), algorithm)
                    }
                    _ => (None, head),
                };
                let named = !algorithm.is_empty() && !algorithm.contains(':');
                named.then_some(FileDigest { digest_type, algorithm, digest })
            }
            _ => None,
        }
    }
}

impl<'a> Record<'a> {
    /// The digest of what was measured; `None` if the template has none or it is malformed.
    pub fn file_digest(&self) -> Option<FileDigest<'a>> {
        self.fields().find_map(|field| match field.kind? {
            FieldKind::DModsig => None,
            _ => FileDigest::from_field(&field),
        })
    }

    /// The name of what was measured. In an unknown template it is the field after the first one
    /// that has the form of a digest (`ALGORITHM:`, NUL, digest), if it ends in its only NUL, as in
    /// all templates of kernels so far. `None` without such a field.
    pub fn likely_name(&self) -> Option<&'a [u8]> {
        if !matches!(self.template(), Template::Unknown(_)) {
            return self.event_name();
        }
        let is_digest = |field: &Field<'a>| {
            [FieldKind::DNg, FieldKind::DNgV2]
                .into_iter()
                .any(|kind| FileDigest::from_field(&Field { kind: Some(kind), ..*field }).is_some())
        };
        let mut fields = self.fields();
        fields.find(is_digest)?;
        let name = fields.next()?.bytes.strip_suffix(&[0])?;
        (!name.is_empty() && !name.contains(&0)).then_some(name)
    }

    /// The event of the record; `None` if a file was measured.
    ///
    /// Only the event name, and a field `buf` in the template, identify an event: a policy that
    /// measures data under such a name creates records that look like the kernel's own. Text of an
    /// unexpected form is [`Event::Data`].
    pub fn event(&self) -> Option<Event<'a>> {
        let name = self.event_name()?;
        let Some(buf) = self.fields().find(|field| field.kind == Some(FieldKind::Buf)) else {
            let first = matches!(name, b"boot_aggregate" | b"boot_aggregate_late");
            return first.then_some(Event::BootAggregate);
        };
        let data = buf.bytes;
        Some(match name {
            b"kernel_version" => Event::KernelVersion(data),
            b"kexec-cmdline" => Event::KexecCommandLine(data),
            b"kexec_load" => KexecSizes::parse(data).map_or(Event::Data(data), Event::KexecLoad),
            b"kexec_execute" => {
                KexecSizes::parse(data).map_or(Event::Data(data), Event::KexecExecute)
            }
            keyring if is_der_sequence(data) => Event::Key { keyring, certificate: data },
            _ => Event::Data(data),
        })
    }
}

impl KexecSizes {
    /// Reads `kexec_segment_size=N;ima_binary_runtime_size=N;ima_runtime_measurements_count=N;`.
    fn parse(data: &[u8]) -> Option<KexecSizes> {
        let mut members = str::from_utf8(data).ok()?.strip_suffix(';')?.split(';');
        let mut member = |name: &str| {
            let digits = members.next()?.strip_prefix(name)?.strip_prefix('=')?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
        };
        let sizes = KexecSizes {
            segment_size: member("kexec_segment_size")?,
            runtime_size: member("ima_binary_runtime_size")?,
            measurements: member("ima_runtime_measurements_count")?,
        };
        members.next().is_none().then_some(sizes)
    }
}

/// Whether `data` is one DER SEQUENCE (X.690 8.1.3) from its first byte to its last, as a
/// certificate is. A certificate has more than 127 bytes, so its length has a byte count.
fn is_der_sequence(data: &[u8]) -> bool {
    let [0x30, count @ 0x81..=0x84, rest @ ..] = data else { return false };
    let Some((length, content)) = rest.split_at_checked(usize::from(count & 0x7f)) else {
        return false;
    };
    let length = length.iter().fold(0u64, |length, byte| length << 8 | u64::from(*byte));
    length == content.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bank, DigestType, RecordBuf, RecordBuilder};
    use alloc::{format, vec::Vec};
    use proptest::prelude::*;

    fn data(name: &str, data: &[u8]) -> RecordBuf {
        RecordBuf::ima_buf(10, &Bank::Sha256.hash(&[data]), name.as_bytes(), data).unwrap()
    }

    #[test]
    fn digests_are_named() {
        let (sha1, sha384) = (Bank::Sha1.hash(&[]), Bank::Sha384.hash(&[]));
        let builder = RecordBuilder::new(10);
        let cases = [
            (builder.ima(&sha1, b"f"), None, "sha1", sha1),
            (builder.ima_ng(&sha384, b"f"), None, "sha384", sha384),
            (builder.ima_ngv2(DigestType::Verity, &sha1, b"f"), Some("verity"), "sha1", sha1),
            (
                builder.record("d-modsig|d-ng|n-ng", &[b"a:\0b", b"sha1:\0x", b"f\0"]),
                None,
                "sha1",
                sha1,
            ),
        ];
        for (index, (record, digest_type, algorithm, digest)) in cases.into_iter().enumerate() {
            let record = record.unwrap();
            let found = record.record().file_digest().unwrap();
            assert_eq!((found.digest_type, found.algorithm), (digest_type, algorithm));
            assert_eq!(found.digest, if index == 3 { b"x" } else { digest.as_bytes() });
        }
        for field in [&b""[..], b"sha1:", b"sha1\0x", b":\0x", b"a:b:\0x", b"\xff:\0x"] {
            let record = builder.record("d-ng|n-ng", &[field, b"f\0"]).unwrap();
            assert_eq!(record.record().file_digest(), None);
        }
    }

    #[test]
    fn case_14_names_of_unknown_templates_are_told() {
        let builder = RecordBuilder::new(10);
        let likely = |fields: &[&[u8]]| {
            let record = builder.record("ima-cgpath", fields).unwrap();
            record.record().likely_name().map(Vec::from)
        };
        assert_eq!(likely(&[b"x", b"sha1:\0d", b"/a\0", b"c"]), Some(b"/a".to_vec()));
        assert_eq!(likely(&[b"ima:sha1:\0d", b"/a\0"]), Some(b"/a".to_vec()));
        for fields in [&[b"x".as_slice(), b"/a\0"][..], &[b"sha1:\0d"], &[b"sha1:\0d", b"/a"]] {
            assert_eq!(likely(fields), None);
        }
        let known = RecordBuf::ima_ng(10, &Bank::Sha1.hash(&[]), b"/k");
        assert_eq!(known.record().likely_name(), Some(&b"/k"[..]));
    }

    #[test]
    fn kexec_sizes_are_read_to_the_letter() {
        let text = "kexec_segment_size=8192;ima_binary_runtime_size=4444;\
                    ima_runtime_measurements_count=45;";
        let sizes = KexecSizes { segment_size: 8192, runtime_size: 4444, measurements: 45 };
        let record = data("kexec_load", text.as_bytes());
        assert_eq!(record.record().event(), Some(Event::KexecLoad(sizes)));
        let record = data("kexec_execute", text.as_bytes());
        assert_eq!(record.record().event(), Some(Event::KexecExecute(sizes)));
        for wrong in [
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text};"),
            &text.replace("45", "+45"),
            &text.replace("45", ""),
            &text.replace("45", "99999999999999999999"),
        ] {
            let record = data("kexec_load", wrong.as_bytes());
            assert_eq!(record.record().event(), Some(Event::Data(wrong.as_bytes())));
        }
    }

    #[test]
    fn names_tell_events_apart() {
        let file = Bank::Sha256.hash(&[]);
        let event = |name: &[u8]| RecordBuf::ima_ng(10, &file, name).record().event().is_some();
        assert!(event(b"boot_aggregate") && event(b"boot_aggregate_late"));
        assert!(!event(b"/boot_aggregate") && !event(b"kexec_load"));
        let certificate = [&[0x30, 0x82, 1, 0][..], &[7; 256]].concat();
        assert_eq!(
            data(".ima", &certificate).record().event(),
            Some(Event::Key { keyring: b".ima", certificate: &certificate })
        );
        let longer = [&certificate[..], &[0]].concat();
        assert_eq!(data(".ima", &longer).record().event(), Some(Event::Data(&longer)));
        let release = data("kernel_version", b"6.12");
        assert_eq!(release.record().event(), Some(Event::KernelVersion(b"6.12")));
    }

    proptest! {
        #[test]
        fn any_data_is_some_event(
            name in "kexec_load|kexec_execute|.ima|x",
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            der in any::<bool>(),
        ) {
            let bytes: Vec<u8> = if der { [&[0x30, 0x81][..], &bytes].concat() } else { bytes };
            let record = data(&name, &bytes);
            let whole = der && bytes.get(2).is_some_and(|len| usize::from(*len) == bytes.len() - 3);
            match record.record().event() {
                Some(Event::Key { certificate, .. }) => {
                    prop_assert!(whole);
                    prop_assert_eq!(certificate, bytes);
                }
                Some(Event::Data(data)) => {
                    prop_assert!(!whole || name.starts_with("kexec"));
                    prop_assert_eq!(data, bytes);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
