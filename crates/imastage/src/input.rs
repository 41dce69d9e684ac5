//! A list as the user names it: a file, `-`, or a state directory; in a file, in whatever form, also
//! packed with gzip.

mod kind;
mod service;

use std::{
    fs::File,
    io::{self, BufReader, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;
use ima_log::{AsciiDecoder, Bank, Decoder, Endian, Format, Record, cel, json};
use kind::{Kind, ListKind};
use service::Service;

use crate::{
    exit::{Fail, Failure},
    output::Progress,
};

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
            if let Some(instead) = not_a_state_directory(path) {
                let path = path.display();
                return Err(Failure::input(format!("{path}: {instead}")));
            }
            let reader = imastage_store::Reader::open(path)?;
            let cursor = reader.records(0)?;
            let progress = Progress::bytes(Some(reader.bytes()));
            let source = Source::Store(Box::new(Store { reader, cursor, bytes: 0 }));
            return Ok(List { source, progress, index: 0 });
        }
        let (mut file, mut len): (Box<dyn Read>, _) = if path.as_os_str() == "-" {
            (Box::new(io::stdin().lock()), None)
        } else {
            let file = File::open(path).input(path.display())?;
            // The kernel's files say 0.
            let len = file.metadata().map(|meta| meta.len()).ok().filter(|len| *len > 0);
            (Box::new(file), len)
        };
        let mut buffer = vec![0; CHUNK];
        let mut filled = fill(&mut *file, &mut buffer).input(path.display())?;
        let mut kind = kind::recognise(buffer.get(..filled).unwrap_or_default());
        let packed = kind == Kind::Gzip;
        if packed {
            let head = io::Cursor::new(buffer.get(..filled).unwrap_or_default().to_vec());
            // All members, as one who unpacks it with gunzip has them; a window of 32 KiB is held.
            file = Box::new(Unpacked(MultiGzDecoder::new(BufReader::new(head.chain(file)))));
            len = None;
            filled = fill(&mut *file, &mut buffer).input(path.display())?;
            kind = kind::recognise(buffer.get(..filled).unwrap_or_default());
        }
        if filled == 0 {
            tracing::warn!("{}: empty: a list without records", path.display());
        }
        let head = buffer.get(..filled).unwrap_or_default();
        let mut form = Form::of(kind, head).map_err(|why| {
            let inside = if packed { "in this gzip file is " } else { "this is " };
            Failure::input(format!("{}: {inside}{why}", path.display()))
        })?;
        form.feed(head);
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
                let record = store.cursor.next_record()?;
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
            store.cursor = store.reader.records(from)?;
            self.index = from;
        }
        if let Source::Service(_) = &self.source {
            self.index = from;
        }
        while self.index < from && self.next_record()?.is_some() {}
        Ok(())
    }
}

/// What a directory is that holds no records of a service, and what to give instead.
fn not_a_state_directory(path: &Path) -> Option<String> {
    let list = "binary_runtime_measurements";
    let of_ima = |dir: &Path| dir.join(list).exists().then(|| dir.join(list));
    if let Some(list) = of_ima(path).or_else(|| of_ima(&path.join("ima"))) {
        return Some(format!("a directory with IMA's files; give {}", list.display()));
    }
    if path.join("binary_bios_measurements").exists() {
        return Some(
            "a directory with the firmware's event log; IMA's list is in .../ima".to_owned(),
        );
    }
    if path.join("epoch.json").exists() {
        let state =
            "an epoch of a state directory; give the state directory, or one of its .ima files";
        return Some(state.to_owned());
    }
    None
}

/// Reads until the buffer is full or the file ends; gives how much was read.
fn fill(file: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What gzip unpacks.
struct Unpacked<R>(R);

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof => {
                let why = format!("the gzip file is damaged or cut short ({error}); try gunzip -t");
                io::Error::new(error.kind(), why)
            }
            _ => error,
        })
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
    /// The form of a list that begins with `head`, or what it is instead of one.
    fn of(kind: Kind, head: &[u8]) -> Result<Form, String> {
        Ok(match kind {
            Kind::List(ListKind::Binary(format)) => Form::Binary(Decoder::new(format)),
            Kind::List(ListKind::Ascii) => Form::Ascii(Box::new(AsciiDecoder::new())),
            Kind::List(ListKind::Json) => Form::Json(json::Decoder::new()),
            Kind::List(ListKind::CelJson) => Form::Cel(cel::Decoder::new(cel::Encoding::Json)),
            Kind::List(ListKind::CelCbor) => Form::Cel(cel::Decoder::new(cel::Encoding::Cbor)),
            Kind::List(ListKind::CelTlv) => Form::Cel(cel::Decoder::new(cel::Encoding::Tlv)),
            Kind::Gzip => return Err("a gzip file; unpack it first".to_owned()),
            Kind::Other { what, instead } => return Err(format!("{what}; {instead}")),
            // An empty list is a list. In what fits no form, the error is found record by record.
            Kind::Unknown => Form::Binary(Decoder::new(Format {
                bank: Bank::Sha1,
                endian: Endian::detect(head).unwrap_or(Endian::native()),
            })),
        })
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
            Form::Ascii(decoder) => decoder.end(),
            Form::Json(decoder) => decoder.end(),
            Form::Cel(decoder) => {
                decoder.end();
                if decoder.skipped() > 0 {
                    tracing::warn!("skipped {} records that are not IMA's", decoder.skipped());
                }
            }
        }
        Ok(())
    }
}
