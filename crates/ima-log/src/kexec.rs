//! The buffer in which a kernel passes its list to the next kernel by kexec: read and write.

use alloc::{string::String, vec::Vec};

use crate::{Bank, Endian, Format, ParseError, Record, Records, Template};

/// The size of a kexec buffer's header in bytes.
const HEADER: usize = 24;

/// The only version of the buffer there is.
const VERSION: u16 = 1;

/// Template names that are this long or longer are not taken by the kernel that boots.
const MAX_RESTORED_NAME: usize = 68;

/// The most fields a custom format may have, and the longest field id.
const MAX_FIELDS: usize = 15;
const MAX_FIELD_ID: usize = 16;

/// What a kernel hands to the one it boots with kexec: a header and its measurement list in the
/// sha1 form. Borrowed; only the header has been read.
///
/// The header is 24 bytes: u16 version 1, six reserved bytes, u64 bytes used (with the header),
/// u64 number of records. All integers, the records' too, are in the byte order of the kernel that
/// wrote it, or little-endian with `ima_canonical_fmt`; the version tells which.
///
/// ```
/// use ima_log::{Bank, Endian, KexecBuffer, KexecWriter, RecordBuf};
///
/// let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[b"file"]), b"/bin/sh");
/// let mut writer = KexecWriter::new(Endian::native(), 4096);
/// writer.push(&record.record())?;
/// let buffer = writer.finish();
///
/// let buffer = KexecBuffer::parse(&buffer)?;
/// assert_eq!(buffer.count(), 1);
/// for carried in buffer.records() {
///     assert_eq!(carried?, record.record());
/// }
/// # Ok::<(), ima_log::KexecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct KexecBuffer<'a> {
    endian: Endian,
    count: u64,
    records: &'a [u8],
}

/// The records of a kexec buffer, in order. Ends after the first error; the records before it are
/// those that a kernel restores.
#[derive(Clone, Debug)]
pub struct KexecRecords<'a> {
    records: Records<'a>,
    count: u64,
    seen: u64,
    left: usize,
    failed: bool,
}

/// Writes a kexec buffer of a fixed capacity, as a kernel does whose segment was sized before.
#[derive(Clone, Debug)]
pub struct KexecWriter {
    endian: Endian,
    capacity: usize,
    count: u64,
    buffer: Vec<u8>,
}

/// Why a kexec buffer, or a record for one, is not what a kernel restores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KexecError {
    /// There is no whole header: a kernel restores nothing and says nothing.
    #[error("a kexec buffer begins with a header of {HEADER} bytes, found {0}")]
    Header(usize),
    /// The version is another one in either byte order; holds the bytes as they stand there.
    #[error("kexec buffer version bytes {0:02x?}: expected 1 in either byte order")]
    Version([u8; 2]),
    /// The bytes the header counts as used do not hold it, or are more than there are.
    #[error("the header counts {used} bytes as used: expected {HEADER} to {found}")]
    Size {
        /// What the header says.
        used: u64,
        /// The bytes there are.
        found: usize,
    },
    /// The kernel refuses the number of records.
    #[error("the header counts {0} records: more than a kernel takes")]
    Count(u64),
    /// A record cannot be read. One that is cut short was the last a full buffer took.
    #[error("{0} (offset counted from the end of the header)")]
    Record(ParseError),
    /// A kernel cannot restore a record of this template.
    #[error("record {record}: template \"{name}\": {why}")]
    Template {
        /// The record's index in the buffer.
        record: u64,
        /// The template's name.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// The header counts more records than there are.
    #[error("the header counts {count} records, found {found}")]
    Missing {
        /// What the header says.
        count: u64,
        /// The records there are.
        found: u64,
    },
    /// Bytes are used after the last record that the header counts.
    #[error("{left} bytes are left behind record {count}, the last that the header counts")]
    Left {
        /// What the header says.
        count: u64,
        /// How many bytes.
        left: usize,
    },
    /// The record does not fit: a kernel carries neither it nor any record after it.
    #[error("record {record} needs {needed} bytes, {left} are left in the buffer")]
    Full {
        /// The record's index in the buffer.
        record: u64,
        /// Its size in bytes.
        needed: usize,
        /// The bytes left.
        left: usize,
    },
    /// The record's integers are in the other byte order, so that its data would be hashed to
    /// another digest.
    #[error("record {record} is not in the byte order of the buffer")]
    ByteOrder {
        /// The record's index in the buffer.
        record: u64,
    },
}

impl<'a> KexecBuffer<'a> {
    /// Reads the header of `buffer`. Bytes after those the header counts as used are skipped:
    /// the kernel's segment is a whole number of pages.
    ///
    /// # Errors
    /// [`KexecError`] when a kernel would restore nothing from it.
    pub fn parse(buffer: &'a [u8]) -> Result<KexecBuffer<'a>, KexecError> {
        let Some((header, _)) = buffer.split_first_chunk::<HEADER>() else {
            return Err(KexecError::Header(buffer.len()));
        };
        let [v0, v1, _, _, _, _, _, _, size @ .., c0, c1, c2, c3, c4, c5, c6, c7] = *header;
        let version = [v0, v1];
        let endian = match (u16::from_le_bytes(version), u16::from_be_bytes(version)) {
            (VERSION, _) => Endian::Little,
            (_, VERSION) => Endian::Big,
            _ => return Err(KexecError::Version(version)),
        };
        let used = endian_u64(endian, size);
        let count = endian_u64(endian, [c0, c1, c2, c3, c4, c5, c6, c7]);
        let size = KexecError::Size { used, found: buffer.len() };
        let end = usize::try_from(used).map_err(|_| size.clone())?;
        let records = buffer.get(HEADER..end).ok_or(size)?;
        if count == u64::MAX {
            return Err(KexecError::Count(count));
        }
        Ok(KexecBuffer { endian, count, records })
    }

    /// The byte order, told by the version.
    pub fn endian(&self) -> Endian {
        self.endian
    }

    /// How many records the header counts. Not checked; see [`KexecBuffer::records`].
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Walks the records, checking what a kernel checks when it restores them, and what it drops
    /// in silence: records after one of a template it cannot restore.
    pub fn records(&self) -> KexecRecords<'a> {
        let format = Format { bank: Bank::Sha1, endian: self.endian };
        KexecRecords {
            records: Records::new(self.records, format),
            count: self.count,
            seen: 0,
            left: self.records.len(),
            failed: false,
        }
    }
}

impl<'a> Iterator for KexecRecords<'a> {
    type Item = Result<Record<'a>, KexecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.checked_next().transpose();
        self.failed = !matches!(next, Some(Ok(_)));
        next
    }
}

impl<'a> KexecRecords<'a> {
    fn checked_next(&mut self) -> Result<Option<Record<'a>>, KexecError> {
        if self.seen == self.count {
            return match self.left {
                0 => Ok(None),
                left => Err(KexecError::Left { count: self.count, left }),
            };
        }
        let record = match self.records.next() {
            Some(record) => record.map_err(KexecError::Record)?,
            None => return Err(KexecError::Missing { count: self.count, found: self.seen }),
        };
        check_template(self.seen, &record)?;
        self.seen += 1;
        self.left -= record.as_bytes().len();
        Ok(Some(record))
    }
}

impl KexecWriter {
    /// An empty buffer that takes at most `capacity` bytes, the header's 24 among them. Nothing is
    /// allocated for room that stays unused.
    pub fn new(endian: Endian, capacity: usize) -> KexecWriter {
        KexecWriter { endian, capacity, count: 0, buffer: alloc::vec![0; HEADER] }
    }

    /// Appends a record, in the sha1 form whatever form it was read in.
    ///
    /// # Errors
    /// [`KexecError::Full`], [`KexecError::ByteOrder`] or [`KexecError::Template`]; the buffer is as
    /// it was before. A kernel writes the records in front of one that does not fit and no other.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), KexecError> {
        if record.format().endian != self.endian {
            return Err(KexecError::ByteOrder { record: self.count });
        }
        check_template(self.count, record)?;
        let sha1 = Bank::Sha1.size();
        let needed = record.as_bytes().len() - record.format().bank.size() + sha1;
        let left = self.capacity.saturating_sub(self.buffer.len());
        if needed > left {
            return Err(KexecError::Full { record: self.count, needed, left });
        }
        record.write_binary(Bank::Sha1, &mut self.buffer);
        self.count += 1;
        Ok(())
    }

    /// The buffer with its header. The empty one has a header too.
    pub fn finish(mut self) -> Vec<u8> {
        let used = self.buffer.len() as u64;
        let (version, used, count) = match self.endian {
            Endian::Little => (VERSION.to_le_bytes(), used.to_le_bytes(), self.count.to_le_bytes()),
            Endian::Big => (VERSION.to_be_bytes(), used.to_be_bytes(), self.count.to_be_bytes()),
        };
        self.buffer[..2].copy_from_slice(&version);
        self.buffer[8..16].copy_from_slice(&used);
        self.buffer[16..HEADER].copy_from_slice(&count);
        self.buffer
    }
}

fn endian_u64(endian: Endian, bytes: [u8; 8]) -> u64 {
    match endian {
        Endian::Little => u64::from_le_bytes(bytes),
        Endian::Big => u64::from_be_bytes(bytes),
    }
}

/// That a kernel can restore a record of this template. It takes a name it has no template for as
/// a custom format.
fn check_template(index: u64, record: &Record<'_>) -> Result<(), KexecError> {
    let name = record.template().name();
    let why = match record.template() {
        Template::Ima => "its data has no lengths to restore it by",
        _ if name.len() > MAX_RESTORED_NAME => "the name is longer than 68 bytes",
        Template::Custom(format) if format.split('|').count() > MAX_FIELDS => {
            "it has more than 15 fields"
        }
        Template::Unknown(format) => {
            if format.split('|').any(|id| id.is_empty() || id.len() > MAX_FIELD_ID) {
                "it is no format of fields: an id is empty or longer than 16 characters"
            } else {
                "it is not known, and has a field that is not known"
            }
        }
        _ => return Ok(()),
    };
    Err(KexecError::Template { record: index, name: name.into(), why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordBuf;
    use proptest::prelude::*;

    fn record(name: &[u8]) -> RecordBuf {
        RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[name]), name)
    }

    fn buffer(records: usize) -> Vec<u8> {
        let mut writer = KexecWriter::new(Endian::native(), usize::MAX);
        for index in 0..records {
            writer.push(&record(&[b'a' + index as u8]).record()).unwrap();
        }
        writer.finish()
    }

    /// The whole outcome of a restore: how many records, and what ended it.
    fn restore(buffer: &[u8]) -> (usize, Option<KexecError>) {
        let records = match KexecBuffer::parse(buffer) {
            Ok(buffer) => buffer.records(),
            Err(error) => return (0, Some(error)),
        };
        let (mut good, mut error) = (0, None);
        for record in records {
            assert_eq!(error, None, "nothing follows an error");
            match record {
                Ok(_) => good += 1,
                Err(found) => error = Some(found),
            }
        }
        (good, error)
    }

    fn set_used(buffer: &mut [u8], used: u64) {
        buffer[8..16].copy_from_slice(&used.to_ne_bytes());
    }

    fn set_count(buffer: &mut [u8], count: u64) {
        buffer[16..24].copy_from_slice(&count.to_ne_bytes());
    }

    #[test]
    fn what_is_written_is_read_with_or_without_a_page_behind_it() {
        for count in 0..4 {
            let mut bytes = buffer(count);
            assert_eq!(restore(&bytes), (count, None));
            bytes.resize(4096, 0xaa);
            assert_eq!(restore(&bytes), (count, None));
        }
    }

    #[test]
    fn the_version_tells_the_byte_order() {
        let mut bytes = [0; HEADER];
        (bytes[1], bytes[15]) = (1, 24);
        assert_eq!(KexecBuffer::parse(&bytes).unwrap().endian(), Endian::Big);
        (bytes[0], bytes[1], bytes[15], bytes[8]) = (1, 0, 0, 24);
        assert_eq!(KexecBuffer::parse(&bytes).unwrap().endian(), Endian::Little);
        for version in [[0, 0], [1, 1], [2, 0], [0, 2]] {
            bytes[..2].copy_from_slice(&version);
            assert_eq!(restore(&bytes), (0, Some(KexecError::Version(version))));
        }
    }

    #[test]
    fn a_header_that_lies_is_found_out() {
        for len in 0..HEADER {
            assert_eq!(restore(&buffer(1)[..len]), (0, Some(KexecError::Header(len))));
        }
        let whole = buffer(2);
        let found = whole.len();
        for used in [0, 23, found as u64 + 1, u64::MAX] {
            let mut bytes = whole.clone();
            set_used(&mut bytes, used);
            assert_eq!(restore(&bytes), (0, Some(KexecError::Size { used, found })));
        }
        let mut bytes = whole.clone();
        set_count(&mut bytes, u64::MAX);
        assert_eq!(restore(&bytes), (0, Some(KexecError::Count(u64::MAX))));
        set_count(&mut bytes, u64::MAX - 1);
        let missing = KexecError::Missing { count: u64::MAX - 1, found: 2 };
        assert_eq!(restore(&bytes), (2, Some(missing)));
        set_count(&mut bytes, 1);
        let left = (found - HEADER) / 2;
        assert_eq!(restore(&bytes), (1, Some(KexecError::Left { count: 1, left })));
    }

    #[test]
    fn a_record_that_does_not_fit_leaves_the_buffer_whole() {
        let (first, second) = (record(b"first"), record(b"second"));
        let capacity = HEADER + first.as_bytes().len();
        let mut writer = KexecWriter::new(Endian::native(), capacity + 5);
        writer.push(&first.record()).unwrap();
        let needed = second.as_bytes().len();
        assert_eq!(
            writer.push(&second.record()),
            Err(KexecError::Full { record: 1, needed, left: 5 })
        );
        assert_eq!(restore(&writer.finish()), (1, None));
    }

    #[test]
    fn records_are_carried_in_the_sha1_form() {
        let own = record(b"own");
        let mut sha256 = Vec::new();
        own.record().write_binary(Bank::Sha256, &mut sha256);
        let other = Record::parse_prefix(&sha256, Format::native(Bank::Sha256)).unwrap().unwrap();
        let mut writer = KexecWriter::new(Endian::native(), HEADER + own.as_bytes().len());
        writer.push(&other).unwrap();
        assert_eq!(writer.finish()[HEADER..], *own.as_bytes());
    }

    #[test]
    fn templates_that_cannot_be_restored_are_refused_both_ways() {
        let long = alloc::vec!["n-ng"; 15].join("|");
        for (name, refused) in [
            ("n-ng|d-ng", false),
            ("n|n|n|n|n|n|n|n|n|n|n|n|n|n|n", false),
            ("n|n|n|n|n|n|n|n|n|n|n|n|n|n|n|n", true),
            ("ima-new", true),
            ("n-ng||d", true),
            (long.as_str(), true),
        ] {
            let fields = name.split('|').count();
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&10u32.to_ne_bytes());
            bytes.extend_from_slice(&[1; 20]);
            bytes.extend_from_slice(&(name.len() as u32).to_ne_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&(fields as u32 * 4).to_ne_bytes());
            bytes.resize(bytes.len() + fields * 4, 0);
            let record = Record::parse_prefix(&bytes, Format::native(Bank::Sha1)).unwrap().unwrap();
            let mut writer = KexecWriter::new(Endian::native(), usize::MAX);
            let pushed = writer.push(&record);
            assert_eq!(matches!(pushed, Err(KexecError::Template { record: 0, .. })), refused);

            let mut buffer = writer.finish();
            if refused {
                buffer.extend_from_slice(&bytes);
                let used = buffer.len() as u64;
                set_used(&mut buffer, used);
                set_count(&mut buffer, 1);
                assert_eq!(restore(&buffer), (0, pushed.err()), "{name}");
            } else {
                assert_eq!(restore(&buffer), (1, None), "{name}");
            }
        }
    }

    #[test]
    fn a_cut_at_any_byte_keeps_the_records_before_it() {
        let whole = buffer(3);
        let size = (whole.len() - HEADER) / 3;
        for len in HEADER..whole.len() {
            let mut bytes = whole[..len].to_vec();
            set_used(&mut bytes, len as u64);
            let (good, error) = restore(&bytes);
            assert_eq!(good, (len - HEADER) / size);
            match error {
                Some(KexecError::Record(error)) => assert_eq!(error.record, good as u64),
                Some(KexecError::Missing { found, .. }) => assert_eq!(found, good as u64),
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_records_or_an_error(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            header in any::<bool>(),
        ) {
            if header && bytes.len() >= HEADER {
                bytes[..8].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
                let used = bytes.len() as u64;
                bytes[8..16].copy_from_slice(&used.to_le_bytes());
            }
            let (good, error) = restore(&bytes);
            prop_assert!(error.is_some() || good > 0 || bytes.len() >= HEADER);
        }
    }
}
