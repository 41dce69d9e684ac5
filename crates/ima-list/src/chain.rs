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
    /// The segment's first record, here because the search for a record looks at many of these.
    first: u64,
    segment: Arc<Segment>,
}

/// Whole records. Holds at most [`LARGEST`] bytes, or a single record.
#[derive(Debug, Default)]
struct Segment {
    bytes: Vec<u8>,
    /// Where in `bytes` each record begins.
    starts: Vec<u32>,
    at: Position,
}

#[derive(Debug)]
enum Piece {
    Shared(Arc<Segment>, Range<usize>),
    Copied(Vec<u8>),
}

/// The capacity of a segment in bytes. Also bounds what a reader copies from the open segment.
const LARGEST: usize = 1 << 20;
const SMALLEST: usize = 4 << 10;

/// Segments are this much smaller than all records together, which bounds what an open segment has
/// still unused, and one that is partly deleted not yet freed.
const SHARE: u64 = 32;

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
        if self.open.bytes.capacity() - self.open.bytes.len() < record.len() {
            let share = (self.size() / SHARE).min(LARGEST as u64) as usize;
            let capacity = share.max(SMALLEST).max(record.len());
            self.seal(Vec::with_capacity(capacity));
        }
        // Fits: a segment that has a record already ends before `LARGEST`.
        self.open.starts.push(self.open.bytes.len() as u32);
        self.open.bytes.extend_from_slice(record);
        self.tail.records += 1;
        self.tail.bytes += record.len() as u64;
        if self.open.bytes.len() >= LARGEST {
            self.seal(Vec::new());
        }
    }

    /// Takes the first `n` records off; all if there are not more. The time is independent of how
    /// many records they are: what it takes to divide a list of segments in two.
    pub(crate) fn cut(&mut self, n: u64) -> Chain {
        if n >= self.records() {
            let rest = Chain { head: self.tail, tail: self.tail, ..Chain::default() };
            return mem::replace(self, rest);
        }
        let record = self.head.records + n;
        let index = self.segment_of(record);
        let removed = match self.sealed.len() - index {
            0 => mem::take(&mut self.sealed),
            // Whichever moves less.
            kept if index <= kept => self.sealed.drain(..index).collect(),
            _ => {
                let kept = self.sealed.split_off(index);
                mem::replace(&mut self.sealed, kept)
            }
        };
        let first = self.sealed.front().map_or(&self.open, |sealed| &*sealed.segment);
        let head = Position { records: record, bytes: first.at.bytes + first.start(record) as u64 };
        let old = mem::replace(&mut self.head, head);
        Chain { sealed: removed, open: Segment::default(), head: old, tail: head }
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
        let mut index = self.segment_of(record);
        while record < self.tail.records {
            let sealed = self.sealed.get(index);
            let segment = sealed.map_or(&self.open, |sealed| &*sealed.segment);
            let start = segment.start(record);
            let mut next = segment.next_after(start.saturating_add(left));
            if next <= record {
                if chunk.records > 0 {
                    break;
                }
                next = record + 1;
            }
            let end = segment.start(next);
            chunk.pieces.push(match sealed {
                Some(sealed) => Piece::Shared(Arc::clone(&sealed.segment), start..end),
                None => Piece::Copied(Vec::from(&segment.bytes[start..end])),
            });
            chunk.records += next - record;
            left = left.saturating_sub(end - start);
            if next < segment.at.records + segment.starts.len() as u64 {
                break;
            }
            record = next;
            index += 1;
        }
        chunk
    }

    /// Seals the open segment and opens another.
    fn seal(&mut self, bytes: Vec<u8>) {
        let next = Segment { bytes, starts: Vec::new(), at: self.tail };
        let mut full = mem::replace(&mut self.open, next);
        if !full.starts.is_empty() {
            full.bytes.shrink_to_fit();
            full.starts.shrink_to_fit();
            self.sealed.push_back(Sealed { first: full.at.records, segment: Arc::new(full) });
        }
    }

    /// The index in `sealed` of the segment with this record; its length for the open segment.
    fn segment_of(&self, record: u64) -> usize {
        if record >= self.open.at.records {
            return self.sealed.len();
        }
        self.sealed.partition_point(|sealed| sealed.first <= record).saturating_sub(1)
    }
}

impl Segment {
    /// Where a record begins that is in this segment, or its end.
    fn start(&self, record: u64) -> usize {
        let index = (record - self.at.records) as usize;
        self.starts.get(index).map_or(self.bytes.len(), |start| *start as usize)
    }

    /// The first record that is not wholly before byte `end`.
    fn next_after(&self, end: usize) -> u64 {
        let whole = if end >= self.bytes.len() {
            self.starts.len()
        } else {
            // A record ends where the next one begins.
            self.starts.partition_point(|start| *start as usize <= end).saturating_sub(1)
        };
        self.at.records + whole as u64
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
