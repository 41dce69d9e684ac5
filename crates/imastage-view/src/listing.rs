//! The stored records in the form of files: any bytes of any file, without reading from the start.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use imastage_store::{Cursor, Reader, StoreError};

use super::index::{Index, Mark, Shown};

/// The records of the current epoch, and an index of them.
pub(crate) struct Listing {
    state: PathBuf,
    known: RwLock<Known>,
    /// Recent readings, the last used one at the end.
    readings: Mutex<Vec<Reading>>,
}

#[derive(Default)]
struct Known {
    /// `None` before the first [`Listing::grow`].
    reader: Option<Arc<Reader>>,
    index: Index,
}

/// Renders one file from an offset on.
struct Reading {
    shown: Shown,
    epoch: u64,
    cursor: Cursor,
    /// The index of the next record to render.
    next: u64,
    /// The rendered bytes, from this offset of the file on.
    offset: u64,
    rendered: Vec<u8>,
}

/// The maximum number of concurrent readings at different places outside the page cache; others
/// search their place again. Each takes about 1 MiB.
const MOST_READINGS: usize = 8;

/// The maximum distance in bytes that a reading skips instead of searching its place again.
const NEAR: u64 = 16 << 10;

impl Listing {
    /// The listing of a state directory; empty before the first [`Listing::grow`].
    pub(crate) fn new(state: PathBuf) -> Listing {
        Listing { state, known: RwLock::default(), readings: Mutex::default() }
    }

    /// After the last record that can be read.
    pub(crate) fn end(&self) -> Mark {
        self.known.read().unwrap_or_else(PoisonError::into_inner).index.end()
    }

    /// Adds records that were stored meanwhile; linear in their number. `true` if they belong to
    /// another epoch, so that earlier records are no longer shown.
    pub(crate) fn grow(&self) -> Result<bool, StoreError> {
        let reader = Reader::open(&self.state)?;
        let (is_new, mut end, mut last) = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let epoch = known.reader.as_ref().map(|reader| reader.epoch().number);
            match epoch == Some(reader.epoch().number) {
                true => (false, known.index.end(), known.index.last()),
                false => (epoch.is_some(), Mark::default(), Mark::default()),
            }
        };
        let mut marks = Vec::new();
        if end.records < reader.len() {
            let mut cursor = reader.records(end.records)?;
            let mut line = Vec::new();
            while let Some(record) = cursor.next_record()? {
                if Index::is_due(&last, &end) {
                    last = end;
                    marks.push(end);
                }
                end.pass(&record, &mut line);
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if is_new {
            known.index = Index::default();
        }
        known.index.extend(marks, end);
        known.reader = Some(Arc::new(reader));
        Ok(is_new)
    }

    /// The `size` bytes of a file from `offset` on, or fewer at the end.
    pub(crate) fn read<T>(
        &self,
        shown: Shown,
        offset: u64,
        size: usize,
        give: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, StoreError> {
        let (reader, mark) = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            match &known.reader {
                Some(reader) if offset < known.index.end().offset(shown) => {
                    (Arc::clone(reader), known.index.before(shown, offset))
                }
                _ => return Ok(give(&[])),
            }
        };
        let begun = self.take(shown, reader.epoch().number, offset);
        let mut reading = match begun {
            Some(reading) => reading,
            None => Reading::begin(shown, &reader, &mark)?,
        };
        let given = give(reading.bytes(&reader, offset, size)?);
        let mut readings = self.readings();
        if readings.len() == MOST_READINGS {
            readings.remove(0);
        }
        readings.push(reading);
        Ok(given)
    }

    /// A reading at `offset`, or shortly before it.
    fn take(&self, shown: Shown, epoch: u64, offset: u64) -> Option<Reading> {
        let mut readings = self.readings();
        let (at, _) = readings
            .iter()
            .enumerate()
            .filter(|(_, reading)| {
                reading.shown == shown
                    && reading.epoch == epoch
                    && reading.offset <= offset
                    && offset <= reading.end() + NEAR
            })
            .max_by_key(|(_, reading)| reading.offset)?;
        Some(readings.remove(at))
    }

    fn readings(&self) -> MutexGuard<'_, Vec<Reading>> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading {
    fn begin(shown: Shown, reader: &Reader, mark: &Mark) -> Result<Reading, StoreError> {
        Ok(Reading {
            shown,
            epoch: reader.epoch().number,
            cursor: reader.records(mark.records)?,
            next: mark.records,
            offset: mark.offset(shown),
            rendered: Vec::new(),
        })
    }

    /// The offset after what is rendered.
    fn end(&self) -> u64 {
        self.offset + self.rendered.len() as u64
    }

    /// The bytes from `offset` on, which is not before the reading's offset.
    fn bytes(&mut self, reader: &Reader, offset: u64, size: usize) -> Result<&[u8], StoreError> {
        self.forget_before(offset);
        let wanted = offset + size as u64;
        while self.end() < wanted {
            // Skipped bytes need not be kept.
            self.forget_before(offset);
            match self.cursor.next_record()? {
                Some(record) => self.shown.write(&record, &mut self.rendered),
                // It was started with fewer records.
                None if self.next < reader.len() => {
                    self.cursor = reader.records(self.next)?;
                    continue;
                }
                None => break,
            }
            self.next += 1;
        }
        self.forget_before(offset);
        let rendered = if self.offset == offset { &self.rendered[..] } else { &[] };
        Ok(&rendered[..rendered.len().min(size)])
    }

    fn forget_before(&mut self, offset: u64) {
        let before = offset.saturating_sub(self.offset).min(self.rendered.len() as u64);
        self.rendered.drain(..before as usize);
        self.offset += before;
    }
}
