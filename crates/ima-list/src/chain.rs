use alloc::{sync::Arc, vec::Vec};
use core::{mem, ops::Range};

use crate::segments::{Position, Room, Sealed, Segment, Segments};

/// Records one behind the other, packed into segments: what a part of the list is made of.
///
/// Only the last segment, the open one, is written to. The others are sealed, so that they can be
/// shared with readers and let go as a whole. Each has at most [`LARGEST`] bytes, or one record.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    sealed: Segments,
    open: Segment,
    open_at: Position,
    /// The first record that is not deleted. May be inside a segment, which then stays.
    head: Position,
    tail: Position,
}

/// Some records of a list as they were at one moment. What is taken from the list later stays in
/// memory as long as a chunk holds it.
#[derive(Debug, Default)]
pub struct Chunk {
    pieces: Vec<Piece>,
    records: u64,
}

#[derive(Debug)]
enum Piece {
    Shared(Arc<Segment>, Range<usize>),
    Copied(Vec<u8>),
}

/// When a segment of a short list is full, in bytes.
const SMALLEST: usize = 64 << 10;
/// When a segment of a long list is full. Also bounds what a reader copies from the open segment.
const LARGEST: usize = 1 << 20;

/// The open segment's memory grows by this many bytes for each record in the chain: that bounds
/// what is allocated and not yet used, and what is deleted and not yet freed, by as much a record.
const SLACK: u64 = 8;

impl Chain {
    pub(crate) fn records(&self) -> u64 {
        self.tail.records - self.head.records
    }

    /// The records' size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.tail.bytes - self.head.bytes
    }

    /// Adds a record at the end. Constant time, but for the record's length.
    pub(crate) fn push(&mut self, record: &[u8]) {
        let used = self.open.bytes.len();
        if self.open.bytes.capacity() - used < record.len() {
            let step = (self.records() * SLACK).clamp(1 << 10, LARGEST as u64) as usize;
            let full = step.max(SMALLEST);
            if used + record.len() > full {
                self.seal();
            }
            let room = full.saturating_sub(self.open.bytes.len());
            self.open.bytes.reserve_exact(step.min(room).max(record.len()));
        }
        self.open.push(record);
        self.tail.records += 1;
        self.tail.bytes += record.len() as u64;
        if self.open.bytes.len() >= LARGEST {
            self.seal();
        }
    }

    /// Takes the first `n` records off; all if there are not more. The time does not depend on how
    /// many they are. With enough `room` nothing is allocated.
    pub(crate) fn cut(&mut self, n: u64, room: &mut Room) -> Chain {
        if n >= self.records() {
            let end = self.tail;
            let rest = Chain { open_at: end, head: end, tail: end, ..Chain::default() };
            return mem::replace(self, rest);
        }
        let record = self.head.records + n;
        let sealed = if record < self.open_at.records {
            self.sealed.split(record, room)
        } else {
            mem::take(&mut self.sealed)
        };
        let (at, first) = match self.sealed.first() {
            Some(sealed) => (sealed.at, &*sealed.segment),
            None => (self.open_at, &self.open),
        };
        let offset = first.start(record - at.records);
        let head = Position { records: record, bytes: at.bytes + offset as u64 };
        let old = mem::replace(&mut self.head, head);
        Chain { sealed, open_at: head, head: old, tail: head, ..Chain::default() }
    }

    /// What [`Chain::cut`] needs room for.
    #[cfg(feature = "std")]
    pub(crate) fn blocks(&self) -> usize {
        self.sealed.blocks()
    }

    /// Takes records from the `from`-th on, first 0: as many as are whole in `max_bytes`, but at
    /// least one if there is one. Copies at most `max_bytes` (or that one record), and only from
    /// the open segment.
    pub(crate) fn snapshot(&self, from: u64, max_bytes: usize) -> Chunk {
        let mut chunk = Chunk::default();
        if from >= self.records() {
            return chunk;
        }
        let mut record = self.head.records + from;
        let mut left = max_bytes;
        let sealed = self
            .sealed
            .from(record)
            .map(|sealed| (sealed.at, &*sealed.segment, Some(&sealed.segment)));
        let open = (self.open_at, &self.open, None);
        for (at, segment, shared) in sealed.chain([open]) {
            // The search ends in the last sealed segment even for a record behind it.
            let Some(first) = record.checked_sub(at.records).filter(|i| *i < segment.records())
            else {
                continue;
            };
            let start = segment.start(first);
            let mut next = segment.records_before(start.saturating_add(left));
            if next <= first {
                if chunk.records > 0 {
                    break;
                }
                next = first + 1;
            }
            let end = segment.start(next);
            chunk.pieces.push(match shared {
                Some(segment) => Piece::Shared(Arc::clone(segment), start..end),
                None => Piece::Copied(Vec::from(&segment.bytes[start..end])),
            });
            chunk.records += next - first;
            record += next - first;
            left = left.saturating_sub(end - start);
            if next < segment.records() {
                break;
            }
        }
        chunk
    }

    /// Seals the open segment, unless it is empty, and opens another.
    fn seal(&mut self) {
        let mut full = mem::take(&mut self.open);
        let at = mem::replace(&mut self.open_at, self.tail);
        if full.records() > 0 {
            full.shrink();
            self.sealed.push(Sealed { at, segment: Arc::new(full) });
        }
    }
}

impl Chunk {
    /// How many records there are.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The records' bytes in the sha1 form, in order; each slice is a few whole records, which
    /// [`ima_log::Records`] takes apart.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(|piece| match piece {
            Piece::Shared(segment, range) => &segment.bytes[range.clone()],
            Piece::Copied(bytes) => bytes,
        })
    }
}
