//! The offsets of records in the files of the view.

use ima_log::{Bank, Record};
use ima_securityfs::{FileName, Form, Kind};

/// The form of records in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) form: Form,
    pub(crate) bank: Bank,
}

/// A place between two records, in every file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The number of records before it: the index of the one after it.
    pub(crate) records: u64,
    /// The number of violations among them.
    pub(crate) violations: u64,
    /// Their size in the binary file of the sha1 bank.
    binary: u64,
    /// Their size in the ASCII file of the sha1 bank.
    ascii: u64,
    /// The byte before it in binary files.
    last: u8,
}

/// Marks at regular distances, from the first record to the last, for all files: files of one form
/// differ only in the length of the digests.
#[derive(Debug, Default)]
pub(crate) struct Index {
    marks: Vec<Mark>,
    end: Mark,
}

/// The distance of two marks, in bytes of the ASCII file, unless a record is longer. A read skips
/// at most this much.
const DISTANCE: u64 = 64 << 10;

impl Shown {
    /// The form of records in a file of the view; `None` if it contains none.
    pub(crate) fn of(file: FileName) -> Option<Shown> {
        let file = match file.kind() {
            Kind::Symlink(target) => target,
            Kind::File => file,
        };
        let FileName::Measurements { form, bank: Some(bank), .. } = file else { return None };
        Some(Shown { form, bank: Bank::from_tpm_alg(bank.0)? })
    }

    /// Appends a record in the form of the file.
    pub(crate) fn write(self, record: &Record<'_>, out: &mut Vec<u8>) {
        match self.form {
            Form::Ascii => record.write_ascii(self.bank, out),
            Form::Binary => record.write_binary(self.bank, out),
        }
    }
}

impl Mark {
    /// Its offset in a file, in bytes.
    pub(crate) fn offset(&self, shown: Shown) -> u64 {
        let longer = (shown.bank.size() - Bank::Sha1.size()) as u64;
        match shown.form {
            Form::Binary => self.binary + self.records * longer,
            Form::Ascii => self.ascii + self.records * longer * 2,
        }
    }

    /// The byte before it in a file: a line of ASCII ends with a newline.
    pub(crate) fn last_byte(&self, shown: Shown) -> u8 {
        match shown.form {
            Form::Binary => self.last,
            Form::Ascii => b'\n',
        }
    }

    /// Moves past `record`. `line` is a buffer.
    pub(crate) fn pass(&mut self, record: &Record<'_>, line: &mut Vec<u8>) {
        line.clear();
        record.write_ascii(Bank::Sha1, line);
        self.records += 1;
        self.violations += u64::from(record.is_violation());
        self.binary += record.as_bytes().len() as u64;
        self.ascii += line.len() as u64;
        self.last = record.as_bytes().last().copied().unwrap_or_default();
    }
}

impl Index {
    /// After the last record.
    pub(crate) fn end(&self) -> Mark {
        self.end
    }

    /// The last mark at or before `offset` of a file. Logarithmic.
    pub(crate) fn before(&self, shown: Shown, offset: u64) -> Mark {
        let behind = self.marks.partition_point(|mark| mark.offset(shown) <= offset);
        behind.checked_sub(1).and_then(|at| self.marks.get(at)).copied().unwrap_or_default()
    }

    /// Adds marks and the new end.
    pub(crate) fn extend(&mut self, marks: Vec<Mark>, end: Mark) {
        self.marks.extend(marks);
        self.end = end;
    }

    /// Whether there should be a mark at `mark` if the one before it is `last`.
    pub(crate) fn is_due(last: &Mark, mark: &Mark) -> bool {
        mark.ascii - last.ascii >= DISTANCE
    }

    /// The last mark.
    pub(crate) fn last(&self) -> Mark {
        self.marks.last().copied().unwrap_or_default()
    }
}
