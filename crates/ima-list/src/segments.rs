use alloc::{collections::VecDeque, sync::Arc, vec::Vec};
use core::mem;

/// Counted from a chain's first record and byte ever.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Position {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

/// Whole records, one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Segment {
    pub(crate) bytes: Vec<u8>,
    /// Where in `bytes` each record begins.
    starts: Vec<u32>,
}

/// A segment that takes no more records.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) at: Position,
    pub(crate) segment: Arc<Segment>,
}

/// Sealed segments in order, in blocks of at most [`BLOCK`]: so that dividing them moves few of
/// them, however many there are.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    blocks: VecDeque<Block>,
}

/// Memory that [`Segments::split`] needs, to be allocated before a list is locked.
#[derive(Debug, Default)]
pub(crate) struct Room {
    blocks: VecDeque<Block>,
    segments: VecDeque<Sealed>,
}

#[derive(Debug)]
struct Block {
    /// The record that the first segment begins with. Here, because the search for a record looks
    /// at many of these.
    first: u64,
    segments: VecDeque<Sealed>,
}

const BLOCK: usize = 32;

impl Segment {
    /// Adds a record.
    pub(crate) fn push(&mut self, record: &[u8]) {
        // Fits: a segment of more than one record has less than 4 GiB.
        self.starts.push(self.bytes.len() as u32);
        self.bytes.extend_from_slice(record);
    }

    pub(crate) fn records(&self) -> u64 {
        self.starts.len() as u64
    }

    /// Where the segment's `index`-th record begins; its end if there are not so many.
    pub(crate) fn start(&self, index: u64) -> usize {
        self.starts.get(index as usize).map_or(self.bytes.len(), |start| *start as usize)
    }

    /// How many records are wholly before byte `end`.
    pub(crate) fn records_before(&self, end: usize) -> u64 {
        if end >= self.bytes.len() {
            return self.records();
        }
        // A record ends where the next one begins.
        self.starts.partition_point(|start| *start as usize <= end).saturating_sub(1) as u64
    }

    pub(crate) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.starts.shrink_to_fit();
    }
}

impl Segments {
    pub(crate) fn push(&mut self, sealed: Sealed) {
        match self.blocks.back_mut() {
            Some(block) if block.segments.len() < BLOCK => block.segments.push_back(sealed),
            _ => {
                let first = sealed.at.records;
                let mut segments = VecDeque::with_capacity(BLOCK);
                segments.push_back(sealed);
                self.blocks.push_back(Block { first, segments });
            }
        }
    }

    pub(crate) fn first(&self) -> Option<&Sealed> {
        self.blocks.front()?.segments.front()
    }

    /// The segments from the one on that holds `record`, or would if it had no end.
    pub(crate) fn from(&self, record: u64) -> impl Iterator<Item = &Sealed> {
        let (block, index) = self.locate(record);
        self.blocks.range(block..).flat_map(|block| &block.segments).skip(index)
    }

    /// Takes off the segments before the one that holds `record`, or would if it had no end.
    pub(crate) fn split(&mut self, record: u64, room: &mut Room) -> Segments {
        let (block, index) = self.locate(record);
        let mut removed = split(&mut self.blocks, block, mem::take(&mut room.blocks));
        if let Some(divided) = self.blocks.front_mut() {
            let first = divided.first;
            let segments = split(&mut divided.segments, index, mem::take(&mut room.segments));
            divided.first = divided.segments.front().map_or(first, |sealed| sealed.at.records);
            removed.push_back(Block { first, segments });
        }
        Segments { blocks: removed }
    }

    /// How many blocks a [`Room`] must have room for.
    #[cfg(feature = "std")]
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Which block holds `record`, and which segment in that.
    fn locate(&self, record: u64) -> (usize, usize) {
        let block = self.blocks.partition_point(|block| block.first <= record).saturating_sub(1);
        let index = self.blocks.get(block).map_or(0, |block| {
            block.segments.partition_point(|sealed| sealed.at.records <= record).saturating_sub(1)
        });
        (block, index)
    }
}

#[cfg(feature = "std")]
impl Room {
    pub(crate) fn new(blocks: usize) -> Room {
        Room {
            // One more for the one that is divided, and one that may come up meanwhile.
            blocks: VecDeque::with_capacity(blocks / 2 + 2),
            segments: VecDeque::with_capacity(BLOCK / 2),
        }
    }
}

/// Takes the first `n` off, and moves those or the others into `room`, whichever are fewer.
fn split<T>(from: &mut VecDeque<T>, n: usize, mut room: VecDeque<T>) -> VecDeque<T> {
    if n <= from.len() / 2 {
        room.extend(from.drain(..n));
        room
    } else {
        room.extend(from.drain(n..));
        mem::replace(from, room)
    }
}
