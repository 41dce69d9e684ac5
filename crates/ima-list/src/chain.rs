//! One part of a list: its segments, and the deletion of its first records.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{mem, ops::Range};

use crate::segments::{Position, Segment, Segments};

/// The consecutive records of one part of the list, packed into segments.
///
/// Only the last segment, the open one, is appended to. The others are sealed: readers share them,
/// and deletion frees them whole. A segment has at most [`LARGEST`] bytes, or one record.
// All fields but the open segment share one cache line, for the reason given at `List`.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Chain {
    tail: Position,
    /// The first record that is not deleted. If it is inside a segment, the segment stays.
    head: Position,
    open_at: Position,
    sealed: Segments,
    open: Segment,
}

/// The state of a list that prepares a deletion ([`Outline::cut`]) outside the list's lock.
/// Constant time to take.
#[derive(Debug)]
pub struct Outline {
    sealed: Segments,
    head: Position,
    open_at: Position,
}

/// A prepared deletion of a list's first records; after the deletion, the deleted records.
///
/// The list may change after the preparation. If a segment was sealed or records were deleted, the
/// deletion is prepared again under the lock.
#[derive(Debug)]
#[must_use = "deletes nothing by itself"]
pub struct Cut {
    n: u64,
    /// The chain's sealed segments when the deletion was prepared.
    sealed: Segments,
    /// The sealed segments that remain, and the new head if it is in one of them.
    rest: Segments,
    head: Option<Position>,
    /// Replaces the chain if all its records are deleted.
    spare: Spare,
    bytes: u64,
}

/// Memory for staging, allocated before the list is locked.
#[derive(Debug, Default)]
pub struct Spare(pub(crate) Box<Chain>);

/// A snapshot of consecutive records of a list. Records deleted later stay in memory until every
/// chunk that shares them is dropped.
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

/// Size limit of a segment of a short list, in bytes.
const SMALLEST: usize = 64 << 10;
/// Size limit of a segment of a long list, in bytes. Bounds the copy a reader makes of the open
/// segment.
const LARGEST: usize = 1 << 20;

/// The open segment grows in steps of this many bytes for each record in the chain. This bounds the
/// memory per record that is allocated and unused, or deleted and not yet freed.
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

    /// Appends a record. Time grows only with the record's length.
    pub(crate) fn push(&mut self, record: &[u8]) {
        let used = self.open.bytes.len();
        if self.open.bytes.capacity() - used < record.len() {
            let step = (self.records() * SLACK).clamp(1 << 10, LARGEST as u64) as usize;
            let full = step.max(SMALLEST);
            if used + record.len() > full {
                self.seal();
            }
            let free = full.saturating_sub(self.open.bytes.len());
            self.open.bytes.reserve_exact(step.min(free).max(record.len()));
        }
        self.open.push(record);
        self.tail.records += 1;
        self.tail.bytes += record.len() as u64;
        if self.open.bytes.len() >= LARGEST {
            self.seal();
        }
    }

    /// The state for [`Outline::cut`].
    #[inline]
    pub(crate) fn outline(&self) -> Outline {
        Outline { sealed: self.sealed.clone(), head: self.head, open_at: self.open_at }
    }

    /// Moves the number of records that `cut` states from the beginning into `cut`; all records if
    /// the chain has no more.
    ///
    /// Changes a few pointers if the sealed segments are those `cut` was prepared from; prepares
    /// `cut` again otherwise.
    #[inline]
    pub(crate) fn cut(self: &mut Box<Self>, cut: &mut Cut) {
        cut.bytes = self.size();
        if cut.n >= self.records() {
            mem::swap(self, &mut cut.spare.0);
            return;
        }
        if !self.sealed.is(&cut.sealed) {
            self.prepare_again(cut);
        }
        self.head = match cut.head {
            Some(head) => head,
            None => self.head_in_open(cut.n),
        };
        mem::swap(&mut self.sealed, &mut cut.rest);
        cut.bytes -= self.size();
    }

    #[cold]
    fn prepare_again(&self, cut: &mut Cut) {
        *cut = Cut { bytes: cut.bytes, ..self.outline().cut(cut.n) };
    }

    #[cold]
    fn head_in_open(&self, n: u64) -> Position {
        self.open_at.at(&self.open, self.head.records + n)
    }

    /// A snapshot of the records from index `from` on: as many whole records as fit in `max_bytes`,
    /// but at least one if one exists. Copies at most `max_bytes` (or that one record), and only
    /// from the open segment.
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

    /// Seals the open segment, unless it is empty, and opens a new one.
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
    /// Prepares the deletion of the first `n` records. Time and memory grow with the logarithm of
    /// the list's length.
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
    /// The number of records to delete, or deleted.
    #[inline]
    pub fn records(&self) -> u64 {
        self.n
    }

    /// The size of the deleted records in bytes, in the sha1 form.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Chunk {
    /// The number of records.
    #[inline]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The records' bytes in the sha1 form, in order. Each slice contains whole records;
    /// [`ima_log::Records`] parses them.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(|piece| match piece {
            Piece::Shared(segment, range) => &segment.bytes[range.clone()],
            Piece::Copied(bytes) => bytes,
        })
    }
}
