//! One part of a list: its segments, and the deletion of its first records.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{mem, ops::Range};

use crate::segments::{Position, Segment, Segments};

/// Records one behind the other, packed into segments: what a part of the list is made of.
///
/// Only the last segment, the open one, is written to. The others are sealed, so that they can be
/// shared with readers and let go as a whole. Each has at most [`LARGEST`] bytes, or one record.
// All but the open segment stands in one line of memory, for the reason given at `List`.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Chain {
    tail: Position,
    /// The first record that is not deleted. May be inside a segment, which then stays.
    head: Position,
    open_at: Position,
    sealed: Segments,
    open: Segment,
}

/// What of a list must be known to make a deletion ready ([`Outline::cut`]) while others use the
/// list. It costs one step to take.
#[derive(Debug)]
pub struct Outline {
    sealed: Segments,
    head: Position,
    open_at: Position,
}

/// The deletion of a list's first records, made ready; afterwards, what was deleted.
///
/// The list may have changed since it was made. That costs time if a segment was filled up or
/// records were deleted, and nothing otherwise.
#[derive(Debug)]
#[must_use = "deletes nothing by itself"]
pub struct Cut {
    n: u64,
    /// What the chain was.
    sealed: Segments,
    /// What it is to be: these segments, and this head if it is in one of them.
    rest: Segments,
    head: Option<Position>,
    /// Instead, if all are taken.
    spare: Spare,
    bytes: u64,
}

/// Memory that staging needs, allocated while others use the list.
#[derive(Debug, Default)]
pub struct Spare(pub(crate) Box<Chain>);

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
    #[inline]
    pub(crate) fn records(&self) -> u64 {
        self.tail.records - self.head.records
    }

    /// The records' size in bytes.
    #[inline]
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

    /// What [`Outline::cut`] needs.
    #[inline]
    pub(crate) fn outline(&self) -> Outline {
        Outline { sealed: self.sealed.clone(), head: self.head, open_at: self.open_at }
    }

    /// Takes as many records off the beginning as `cut` says, all if there are not more, and puts
    /// them into `cut`.
    ///
    /// A few pointers change if the chain is still what `cut` was made from. Otherwise that is made
    /// anew.
    #[inline]
    pub(crate) fn cut(self: &mut Box<Self>, cut: &mut Cut) {
        cut.bytes = self.size();
        if cut.n >= self.records() {
            mem::swap(self, &mut cut.spare.0);
            return;
        }
        if !self.sealed.is(&cut.sealed) {
            self.make_anew(cut);
        }
        self.head = match cut.head {
            Some(head) => head,
            None => self.head_in_open(cut.n),
        };
        mem::swap(&mut self.sealed, &mut cut.rest);
        cut.bytes -= self.size();
    }

    #[cold]
    fn make_anew(&self, cut: &mut Cut) {
        *cut = Cut { bytes: cut.bytes, ..self.outline().cut(cut.n) };
    }

    #[cold]
    fn head_in_open(&self, n: u64) -> Position {
        self.open_at.at(&self.open, self.head.records + n)
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
        while record < self.tail.records {
            let sealed = self.sealed.find(record).filter(|_| record < self.open_at.records);
            let (at, segment, shared) = match sealed {
                Some((at, segment)) => (at, &**segment, Some(segment)),
                None => (self.open_at, &self.open, None),
            };
            let first = record - at.records;
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
            self.sealed.push(at, full);
        }
    }
}

impl Outline {
    /// Makes ready to delete the first `n` records. Takes time and memory with the logarithm of the
    /// list's length.
    pub fn cut(self, n: u64) -> Cut {
        let Outline { sealed, head, open_at } = self;
        let record = head.records.saturating_add(n);
        let (rest, head) = if record < open_at.records {
            let found = sealed.find(record);
            (sealed.from(record), found.map(|(at, segment)| at.at(segment, record)))
        } else {
            (Segments::default(), None)
        };
        Cut { n, sealed, rest, head, spare: Spare::default(), bytes: 0 }
    }
}

impl Cut {
    /// How many records are to be deleted, or were.
    #[inline]
    pub fn records(&self) -> u64 {
        self.n
    }

    /// The size of those that were deleted in bytes, in the sha1 form.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Chunk {
    /// How many records there are.
    #[inline]
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
