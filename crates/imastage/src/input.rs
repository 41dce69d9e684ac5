//! A list as the user names it: a file, `-`, or a state directory; in a file, in whatever form.

mod service;

use std::{
    fs::File,
    io::{self, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use crate::{
    exit::{Fail, Failure},
    output::Progress,
};
use ima_log::{AsciiDecoder, Bank, Decoder, Endian, Format, Record, cel, json};
use service::Service;

/// A measurement list to be read from beginning to end, in memory that does not grow with it.
pub struct List {
    source: Source,
    progress: Progress,
    /// The index of the next record.
    index: u64,
}

enum Source {
    File(Box<ListFile>),
    Store(Box<Store>),
    Service(Box<Service>),
}

/// The records a service keeps.
struct Store {
    reader: imastage_store::Reader,
    cursor: imastage_store::Cursor,
    /// Bytes that came out so far.
    bytes: u64,
}

/// A list in a file or a pipe.
struct ListFile {
    path: PathBuf,
    file: Box<dyn Read>,
    form: Form,
    buffer: Vec<u8>,
    /// Bytes read so far.
    bytes: u64,
}

/// The form of a list.
enum Form {
    /// As a kernel writes it.
    Binary(Decoder),
    /// As a kernel shows it.
    Ascii(Box<AsciiDecoder>),
    Json(json::Decoder),
    Cel(cel::Decoder),
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
            let source = Source::Store(Box::new(Store { reader, cursor, bytes: 0 }));
            return Ok(List { source, progress, index: 0 });
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
        let mut form = Form::detect(&buffer[..filled]);
        form.feed(&buffer[..filled]);
        let source = Source::File(Box::new(ListFile {
            path: path.to_owned(),
            file,
            form,
            buffer,
            bytes: filled as u64,
        }));
        Ok(List { source, progress: Progress::bytes(len), index: 0 })
    }

    /// The records that the running service of a state directory gives; if it is followed, also those
    /// that come later, without end.
    pub fn of_service(state: &Path, follow: bool) -> Result<List, Failure> {
        let service = Service::of_state(state, follow)?;
        let progress = Progress::bytes(None);
        Ok(List { source: Source::Service(Box::new(service)), progress, index: 0 })
    }

    /// Whether its end is waited for.
    pub fn follows(&self) -> bool {
        matches!(&self.source, Source::Service(service) if service.follows())
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
        let record = match &mut self.source {
            Source::File(file) => {
                self.progress.at(file.bytes);
                file.next_record()?
            }
            Source::Store(store) => {
                self.progress.at(store.bytes);
                let record = store.cursor.next_record().input("state directory")?;
                store.bytes += record.map_or(0, |record| record.as_bytes().len() as u64);
                record
            }
            Source::Service(service) => service.next_record(&mut self.index)?,
        };
        let Some(record) = record else { return Ok(None) };
        self.index += 1;
        Ok(Some((self.index - 1, record)))
    }

    /// Passes over the records before index `from`, which may be behind the end of a file.
    fn skip_to(&mut self, from: u64) -> Result<(), Failure> {
        if let Source::Store(store) = &mut self.source {
            store.cursor = store.reader.records(from).input("state directory")?;
            self.index = from;
        }
        if let Source::Service(_) = &self.source {
            self.index = from;
        }
        while self.index < from && self.next_record()?.is_some() {}
        Ok(())
    }
}

impl ListFile {
    fn next_record(&mut self) -> Result<Option<Record<'_>>, Failure> {
        // Asked twice, because what is given borrows the decoder.
        while !self.form.has_record().input(self.path.display())? {
            match self.file.read(&mut self.buffer).input(self.path.display())? {
                0 => {
                    self.form.end().input(self.path.display())?;
                    break;
                }
                n => {
                    self.bytes += n as u64;
                    self.form.feed(&self.buffer[..n]);
                }
            }
        }
        self.form.next_record().input(self.path.display())
    }
}

impl Form {
    /// Tells the form from the beginning of a list. A binary list begins with a PCR index in four
    /// bytes, an ASCII one in digits; neither is JSON or the CBOR of an array or a map.
    fn detect(head: &[u8]) -> Form {
        if let Some(format) = Format::detect(head) {
            return Form::Binary(Decoder::new(format));
        }
        let text = head.trim_ascii_start();
        match text.first() {
            Some(b'[' | 0x1e) => Form::Cel(cel::Decoder::new(cel::Encoding::Json)),
            // One record a line: ours has "fields", that of an event log "content".
            Some(b'{') => {
                let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
                let content = b"\"content_type\"";
                if line.windows(content.len()).any(|part| part == content) {
                    Form::Cel(cel::Decoder::new(cel::Encoding::Json))
                } else {
                    Form::Json(json::Decoder::new())
                }
            }
            Some(b'0'..=b'9') => Form::Ascii(Box::new(AsciiDecoder::new())),
            Some(0x80..=0xbf) => Form::Cel(cel::Decoder::new(cel::Encoding::Cbor)),
            // An empty list is a list. In what fits no form, the error is found record by record.
            _ => Form::Binary(Decoder::new(Format {
                bank: Bank::Sha1,
                endian: Endian::detect(head).unwrap_or(Endian::native()),
            })),
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        match self {
            Form::Binary(decoder) => decoder.feed(bytes),
            Form::Ascii(decoder) => decoder.feed(bytes),
            Form::Json(decoder) => decoder.feed(bytes),
            Form::Cel(decoder) => decoder.feed(bytes),
        }
    }

    fn has_record(&mut self) -> anyhow::Result<bool> {
        Ok(match self {
            Form::Binary(decoder) => decoder.has_record()?,
            Form::Ascii(decoder) => decoder.has_record()?,
            Form::Json(decoder) => decoder.has_record()?,
            Form::Cel(decoder) => decoder.has_record()?,
        })
    }

    fn next_record(&mut self) -> anyhow::Result<Option<Record<'_>>> {
        Ok(match self {
            Form::Binary(decoder) => decoder.next_record()?,
            Form::Ascii(decoder) => decoder.next_record()?,
            Form::Json(decoder) => decoder.next_record()?,
            Form::Cel(decoder) => decoder.next_record()?,
        })
    }

    /// Says that the list has ended.
    fn end(&mut self) -> anyhow::Result<()> {
        match self {
            Form::Binary(decoder) => decoder.finish()?,
            Form::Ascii(decoder) => decoder.finish()?,
            Form::Json(decoder) => decoder.end(),
            Form::Cel(decoder) => {
                decoder.end();
                if decoder.skipped() > 0 {
                    tracing::warn!("passed over {} records that are not IMA's", decoder.skipped());
                }
            }
        }
        Ok(())
    }
}
