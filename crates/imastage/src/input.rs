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

/// A measurement list to be read from beginning to end.
pub enum List {
    /// A binary list.
    File(ListFile),
    /// The records a service keeps.
    Store(imastage_store::Reader),
}

/// A binary list in a file or a pipe, as a kernel writes it.
pub struct ListFile {
    path: PathBuf,
    file: Box<dyn Read>,
    len: Option<u64>,
    /// What was read to tell the form.
    head: Vec<u8>,
    format: Format,
}

/// How much is read at once, in bytes.
const CHUNK: usize = 256 << 10;

impl List {
    /// Opens what the user named: `-` is standard input, a directory is a state directory.
    pub fn open(path: &Path) -> Result<List, Failure> {
        if path.is_dir() {
            let reader = imastage_store::Reader::open(path).input("state directory")?;
            return Ok(List::Store(reader));
        }
        let (mut file, len): (Box<dyn Read>, _) = if path.as_os_str() == "-" {
            (Box::new(io::stdin().lock()), None)
        } else {
            let file = File::open(path).input(path.display())?;
            // The kernel's files say 0.
            let len = file.metadata().map(|meta| meta.len()).ok().filter(|len| *len > 0);
            (Box::new(file), len)
        };
        let mut head = vec![0; CHUNK];
        let mut filled = 0;
        while filled < head.len() {
            match file.read(&mut head[filled..]).input(path.display())? {
                0 => break,
                n => filled += n,
            }
        }
        head.truncate(filled);
        // An empty list is a list. In what fits no form, the error is found record by record.
        let format = Format::detect(&head).unwrap_or(Format {
            bank: Bank::Sha1,
            endian: Endian::detect(&head).unwrap_or(Endian::native()),
        });
        Ok(List::File(ListFile { path: path.to_owned(), file, len, head, format }))
    }

    /// Gives each record from index `from` on, with its index, until `each` breaks.
    pub fn each(
        self,
        from: u64,
        mut each: impl FnMut(u64, &Record<'_>) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        match self {
            List::File(file) => file.each(|index, record| {
                if index < from { Ok(ControlFlow::Continue(())) } else { each(index, record) }
            }),
            List::Store(reader) => {
                let mut progress = Progress::bytes(Some(reader.bytes()));
                let mut bytes = 0;
                let mut cursor = reader.records(from).input("state directory")?;
                let mut index = from;
                while let Some(record) = cursor.next_record().input("state directory")? {
                    bytes += record.as_bytes().len() as u64;
                    progress.at(bytes);
                    if each(index, &record)?.is_break() {
                        break;
                    }
                    index += 1;
                }
                Ok(())
            }
        }
    }
}

impl ListFile {
    fn each(
        mut self,
        mut each: impl FnMut(u64, &Record<'_>) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        let name = self.path.display().to_string();
        let mut progress = Progress::bytes(self.len);
        let mut decoder = Decoder::new(self.format);
        decoder.feed(&self.head);
        self.head = Vec::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            loop {
                let index = decoder.records();
                let Some(record) = decoder.next_record().input(&name)? else { break };
                if each(index, &record)?.is_break() {
                    return Ok(());
                }
            }
            progress.at(decoder.offset());
            match self.file.read(&mut buffer).input(&name)? {
                0 => break,
                n => decoder.feed(&buffer[..n]),
            }
        }
        decoder.finish().input(&name)
    }
}
