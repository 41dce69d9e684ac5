//! A list as the user names it: a file, `-`, or a state directory.

use std::{
    fs::File,
    io::{self, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use ima_log::{Bank, Decoder, Endian, Format, Record};

use crate::{
    exit::{Fail, Failure},
    output::Progress,
};

/// A measurement list to be read from beginning to end, in memory that does not grow with it.
pub struct List {
    source: Source,
    progress: Progress,
    /// Bytes that came out so far.
    offset: u64,
    /// The index of the next record.
    index: u64,
}

enum Source {
    File(ListFile),
    Store(Store),
}

/// The records a service keeps.
struct Store {
    reader: imastage_store::Reader,
    cursor: imastage_store::Cursor,
}

/// A binary list in a file or a pipe, as a kernel writes it.
struct ListFile {
    path: PathBuf,
    file: Box<dyn Read>,
    decoder: Decoder,
    buffer: Vec<u8>,
}

/// How much is read at once, in bytes.
const CHUNK: usize = 256 << 10;

impl List {
    /// Opens what the user named: `-` is standard input, a directory is a state directory.
    pub fn open(path: &Path) -> Result<List, Failure> {
        if path.is_dir() {
            let reader = imastage_store::Reader::open(path).input("state directory")?;
            let cursor = reader.records(0).input("state directory")?;
            let progress = Progress::bytes(Some(reader.bytes()));
            let source = Source::Store(Store { reader, cursor });
            return Ok(List { source, progress, offset: 0, index: 0 });
        }
        let (mut file, len): (Box<dyn Read>, _) = if path.as_os_str() == "-" {
            (Box::new(io::stdin().lock()), None)
        } else {
            let file = File::open(path).input(path.display())?;
            // The kernel's files say 0.
            let len = file.metadata().map(|meta| meta.len()).ok().filter(|len| *len > 0);
            (Box::new(file), len)
        };
        let mut buffer = vec![0; CHUNK];
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..]).input(path.display())? {
                0 => break,
                n => filled += n,
            }
        }
        let head = &buffer[..filled];
        // An empty list is a list. In what fits no form, the error is found record by record.
        let format = Format::detect(head).unwrap_or(Format {
            bank: Bank::Sha1,
            endian: Endian::detect(head).unwrap_or(Endian::native()),
        });
        let mut decoder = Decoder::new(format);
        decoder.feed(head);
        let source = Source::File(ListFile { path: path.to_owned(), file, decoder, buffer });
        Ok(List { source, progress: Progress::bytes(len), offset: 0, index: 0 })
    }

    /// Gives each record from index `from` on, with its index, until `each` breaks.
    pub fn each(
        mut self,
        from: u64,
        mut each: impl FnMut(u64, &Record<'_>) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        self.skip_to(from)?;
        while let Some((index, record)) = self.next_record()? {
            if each(index, &record)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The next record and its index; `None` at the end.
    pub fn next_record(&mut self) -> Result<Option<(u64, Record<'_>)>, Failure> {
        self.progress.at(self.offset);
        let record = match &mut self.source {
            Source::File(file) => file.next_record()?,
            Source::Store(store) => store.cursor.next_record().input("state directory")?,
        };
        let Some(record) = record else { return Ok(None) };
        self.offset += record.as_bytes().len() as u64;
        self.index += 1;
        Ok(Some((self.index - 1, record)))
    }

    /// Passes over the records before index `from`, which may be behind the end of a file.
    fn skip_to(&mut self, from: u64) -> Result<(), Failure> {
        if let Source::Store(store) = &mut self.source {
            store.cursor = store.reader.records(from).input("state directory")?;
            self.index = from;
        }
        while self.index < from && self.next_record()?.is_some() {}
        Ok(())
    }
}

impl ListFile {
    fn next_record(&mut self) -> Result<Option<Record<'_>>, Failure> {
        // Asked twice, because what is given borrows the decoder.
        while !self.decoder.has_record().input(self.path.display())? {
            match self.file.read(&mut self.buffer).input(self.path.display())? {
                0 => {
                    self.decoder.finish().input(self.path.display())?;
                    return Ok(None);
                }
                n => self.decoder.feed(&self.buffer[..n]),
            }
        }
        self.decoder.next_record().input(self.path.display())
    }
}
