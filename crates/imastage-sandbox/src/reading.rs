//! The read state of an open securityfs file: read by page, from its own record index.

use ima_list::SharedList;
use ima_log::{Bank, Extend, Format, Record, Records};
use ima_securityfs::{FileName, Form, Part};

/// The read state of one open file.
///
/// As in the kernel it consists of the index of the next record and the unread rest of the rendered
/// records. Changes of the list do not update it: after a stage or a deletion the index denotes
/// other records, until a seek restarts the file.
pub(crate) struct Reading {
    form: Form,
    bank: Bank,
    extend: Extend,
    part: Part,
    /// The index in the part of the next record to render.
    next: u64,
    /// The rendered bytes.
    rendered: Vec<u8>,
    /// The number of bytes of `rendered` that were read.
    start: usize,
    /// The file offset of `rendered[start]`.
    offset: u64,
}

/// The kernel renders about a page at a time: as many whole records as fit, or one larger record.
const PAGE: usize = 4096;

impl Reading {
    /// The state of a newly opened file; `None` if the file shows no records. `extend` gives the
    /// digests that a bank's file shows.
    pub(crate) fn of(file: FileName, extend: impl Fn(Bank) -> Extend) -> Option<Reading> {
        let FileName::Measurements { form, bank, part } = file else { return None };
        let bank = Bank::from_tpm_alg(bank.unwrap_or(ima_securityfs::Bank::SHA1).0)?;
        Some(Reading {
            form,
            bank,
            extend: extend(bank),
            part,
            next: 0,
            rendered: Vec::new(),
            start: 0,
            offset: 0,
        })
    }

    /// The bytes at `position`, at most `size`; empty at the end. Renders records until `wanted`
    /// bytes are available. Constant time for sequential reads, linear in the position after a
    /// seek.
    pub(crate) fn read(
        &mut self,
        list: &SharedList,
        position: u64,
        size: usize,
        wanted: usize,
    ) -> &[u8] {
        if position != self.offset {
            self.next = 0;
            self.rendered.clear();
            self.start = 0;
            self.offset = 0;
            while self.offset < position {
                let left = position - self.offset;
                self.fill(list, usize::try_from(left).unwrap_or(PAGE).min(PAGE));
                let skipped = left.min((self.rendered.len() - self.start) as u64);
                if skipped == 0 {
                    break;
                }
                self.start += skipped as usize;
                self.offset += skipped;
            }
        }
        if self.offset == position {
            self.fill(list, wanted);
        }
        let read = self.start..self.rendered.len().min(self.start + size);
        self.start = read.end;
        self.offset += read.len() as u64;
        &self.rendered[read]
    }

    /// Renders records after the unread bytes, until there are `wanted` bytes or a page of new
    /// ones. Renders no further, so that a change of the list affects all records beyond the
    /// request.
    fn fill(&mut self, list: &SharedList, wanted: usize) {
        self.rendered.drain(..self.start);
        self.start = 0;
        let left = self.rendered.len();
        if left >= wanted {
            return;
        }
        let part = match self.part {
            Part::Current => ima_list::Part::Current,
            Part::Staged => ima_list::Part::Staged,
        };
        let chunk = list.snapshot(part, self.next, PAGE);
        let records = chunk
            .slices()
            .flat_map(|slice| Records::new(slice, Format::native(Bank::Sha1)))
            .map_while(Result::ok);
        for record in records {
            let before = self.rendered.len();
            if before >= wanted {
                break;
            }
            self.render(&record);
            if before > left && self.rendered.len() - left > PAGE {
                self.rendered.truncate(before);
                break;
            }
            self.next += 1;
        }
    }

    fn render(&mut self, record: &Record<'_>) {
        let (size, out) = (self.bank.size(), &mut self.rendered);
        match (self.form, self.extend) {
            (Form::Ascii, Extend::Own) => record.write_ascii(self.bank, out),
            (Form::Binary, Extend::Own) => record.write_binary(self.bank, out),
            (Form::Ascii, Extend::Sha1Padded | Extend::Sha1PaddedViolations) => {
                record.write_ascii_padded(size, out)
            }
            (Form::Binary, Extend::Sha1Padded | Extend::Sha1PaddedViolations) => {
                record.write_binary_padded(size, out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ima_list::Options;
    use ima_log::RecordBuf;

    fn add(list: &SharedList, name: &str) -> RecordBuf {
        let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), name.as_bytes());
        let key = record.record().template_digest(Bank::Sha256);
        list.append(&record, &key, || {}).unwrap();
        record
    }

    fn open(part: Part) -> Reading {
        let bank = Some(ima_securityfs::Bank::SHA1);
        Reading::of(FileName::Measurements { form: Form::Binary, bank, part }, |_| Extend::Own)
            .unwrap()
    }

    fn read_all(reading: &mut Reading, list: &SharedList, mut offset: u64) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let some = reading.read(list, offset, 1 << 20, 1 << 20);
            if some.is_empty() {
                return all;
            }
            assert!(some.len() <= PAGE);
            all.extend_from_slice(some);
            offset += some.len() as u64;
        }
    }

    #[test]
    fn reads_pages_and_appended_records() {
        let list = SharedList::new(Options::default());
        let mut expected = Vec::new();
        let mut reading = open(Part::Current);
        for i in 0..100 {
            expected.extend(add(&list, &format!("/file/{i}")).into_bytes());
        }
        assert_eq!(read_all(&mut reading, &list, 0), expected);
        let more = add(&list, "/more");
        assert_eq!(read_all(&mut reading, &list, expected.len() as u64), more.as_bytes());
    }

    #[test]
    fn reads_at_any_offset() {
        let list = SharedList::new(Options::default());
        let mut expected = Vec::new();
        for i in 0..60 {
            expected.extend(add(&list, &format!("/file/{i}")).into_bytes());
        }
        let mut reading = open(Part::Current);
        for offset in (0..expected.len()).rev().step_by(37) {
            let got = reading.read(&list, offset as u64, 10, 10).to_vec();
            assert_eq!(got, expected[offset..expected.len().min(offset + got.len())]);
            assert!(!got.is_empty());
        }
        assert!(reading.read(&list, expected.len() as u64 + 5, 10, 10).is_empty());
    }

    #[test]
    fn second_batch_reads_as_empty_until_a_seek() {
        // Observed on real kernels: section "fd" of the observed cases.
        let list = SharedList::new(Options::default());
        let mut reading = open(Part::Staged);
        (0..3).for_each(|i| drop(add(&list, &format!("first {i}"))));
        list.stage().unwrap();
        let first = read_all(&mut reading, &list, 0);
        drop(list.delete_staged().unwrap());
        (0..3).for_each(|i| drop(add(&list, &format!("other {i}"))));
        list.stage().unwrap();
        assert!(reading.read(&list, first.len() as u64, 4096, 4096).is_empty());
        assert_eq!(read_all(&mut reading, &list, 0).len(), first.len());
    }
}
