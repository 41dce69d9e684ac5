use alloc::{collections::VecDeque, sync::Arc, vec::Vec};
use core::{mem, ops::Range};

/// Records one behind the other, packed into segments: what a part of the list is made of.
///
/// Only the last segment, the open one, is written to. The others are sealed, so that they can be
/// shared with readers and let go as a whole.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    sealed: VecDeque<Sealed>,
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

/// Counted from the chain's first record and byte ever.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    records: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Sealed {
    at: Position,
    segment: Arc<Segment>,
}

/// Whole records. Holds at most [`LARGEST`] bytes, or a single record.
#[derive(Debug, Default)]
struct Segment {
    bytes: Vec<u8>,
    /// Where in `bytes` each record begins.
    starts: Vec<u32>,
}

/// Memory to put segments in that are taken off a chain, to be allocated before the list is locked.
#[derive(Default)]
pub(crate) struct Room(VecDeque<Sealed>);

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
        // Fits: what is not the first record begins before `LARGEST`.
        self.open.starts.push(self.open.bytes.len() as u32);
        self.open.bytes.extend_from_slice(record);
        self.tail.records += 1;
        self.tail.bytes += record.len() as u64;
        if self.open.bytes.len() >= LARGEST {
            self.seal();
        }
    }

    /// Takes the first `n` records off; all if there are not more. Constant time, but for moving
    /// what describes a segment, 24 bytes, for at most half of the segments; nothing is allocated
    /// if `room` has room for these.
    pub(crate) fn cut(&mut self, n: u64, mut room: Room) -> Chain {
        if n >= self.records() {
            let end = self.tail;
            let rest = Chain { open_at: end, head: end, tail: end, ..Chain::default() };
            return mem::replace(self, rest);
        }
        let record = self.head.records + n;
        let index = self.segment_of(record);
        let (at, first) = match self.sealed.get(index) {
            Some(sealed) => (sealed.at, &*sealed.segment),
            None => (self.open_at, &self.open),
        };
        let offset = first.start(record - at.records);
        let head = Position { records: record, bytes: at.bytes + offset as u64 };
        let removed = if index <= self.sealed.len() / 2 {
            room.0.extend(self.sealed.drain(..index));
            room.0
        } else {
            room.0.extend(self.sealed.drain(index..));
            mem::replace(&mut self.sealed, room.0)
        };
        let old = mem::replace(&mut self.head, head);
        Chain { sealed: removed, open_at: head, head: old, tail: head, ..Chain::default() }
    }

    /// How many segments a [`Room`] must have room for now.
    #[cfg(feature = "std")]
    pub(crate) fn room(&self) -> usize {
        self.sealed.len() / 2
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
        let sealed = self.sealed.range(self.segment_of(record)..);
        let segments = sealed
            .map(|sealed| (sealed.at, &*sealed.segment, Some(&sealed.segment)))
            .chain([(self.open_at, &self.open, None)]);
        for (at, segment, shared) in segments {
            let first = record - at.records;
            let start = segment.start(first);
            let mut next = segment.records_before(start.saturating_add(left));
            if next <= first {
                // Not even one more; but one there must be.
                if chunk.records > 0 || first == segment.records() {
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
            full.bytes.shrink_to_fit();
            full.starts.shrink_to_fit();
            self.sealed.push_back(Sealed { at, segment: Arc::new(full) });
        }
    }

    /// The index in `sealed` of the segment with this record; its length for the open segment.
    fn segment_of(&self, record: u64) -> usize {
        if record >= self.open_at.records {
            return self.sealed.len();
        }
        self.sealed.partition_point(|sealed| sealed.at.records <= record).saturating_sub(1)
    }
}

#[cfg(feature = "std")]
impl Room {
    pub(crate) fn for_segments(count: usize) -> Room {
        Room(VecDeque::with_capacity(count))
    }
}

impl Segment {
    fn records(&self) -> u64 {
        self.starts.len() as u64
    }

    /// Where the segment's `index`-th record begins; its end if there are not so many.
    fn start(&self, index: u64) -> usize {
        self.starts.get(index as usize).map_or(self.bytes.len(), |start| *start as usize)
    }

    /// How many records are wholly before byte `end`.
    fn records_before(&self, end: usize) -> u64 {
        if end >= self.bytes.len() {
            return self.records();
        }
        // A record ends where the next one begins.
        self.starts.partition_point(|start| *start as usize <= end).saturating_sub(1) as u64
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
