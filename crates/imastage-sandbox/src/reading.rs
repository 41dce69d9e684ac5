//! How an open file of securityfs reads: by page, from a record index of its own.

use ima_list::SharedList;
use ima_log::{Bank, Extend, Format, Record, Records};
use ima_securityfs::{FileName, Form, Part};

/// The reading side of one open file.
///
/// It remembers which record comes next and what is left of those that were rendered, as the
/// kernel's does. What the list does meanwhile goes unnoticed: after a stage or a deletion the index
/// points at other records, until a seek makes the file begin anew.
pub(crate) struct Reading {
    form: Form,
    bank: Bank,
    extend: Extend,
    part: Part,
    /// The record to be rendered next, counted from the beginning of the part.
    next: u64,
    /// Rendered and not yet read.
    rendered: Vec<u8>,
    /// How much of `rendered` was read.
    start: usize,
    /// The offset in the part's text that `rendered[start]` stands at.
    offset: u64,
}

/// The kernel renders about a page at a time: as many whole records as fit, or one that is larger.
const PAGE: usize = 4096;

impl Reading {
    /// Of a file that shows records, at its beginning; `None` of any other. `extend` says which
    /// digests a bank's file shows.
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

    /// The next bytes at `position`, at most `size`, of records rendered until there are `wanted`;
    /// empty at the end. Constant time for one who reads on, linear in the position for one who
    /// jumps.
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

    /// Renders records behind what is left of those before, until there are `wanted` bytes, or a
    /// page of them. No more: a record that was not asked for is not yet read when the list changes.
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
    fn reads_by_page_and_sees_growth() {
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
    fn any_offset_can_be_read_in_any_size() {
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
    fn a_second_batch_reads_as_empty_until_a_seek() {
        // Seen on real kernels: section "fd" of the observed cases.
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
