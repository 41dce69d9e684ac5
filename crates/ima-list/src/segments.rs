//! Segments of whole records, and the copy-on-write tree of sealed segments.

use alloc::{sync::Arc, vec, vec::Vec};
use core::ptr;

/// A position, counted from the first record and byte that a chain ever had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

/// Consecutive whole records.
#[derive(Debug, Default)]
pub(crate) struct Segment {
    pub(crate) bytes: Vec<u8>,
    /// The offset in `bytes` at which each record begins.
    starts: Vec<u32>,
}

/// Sealed segments in order, each with its position.
///
/// A copy-on-write tree: shared nodes never change. A clone takes constant time and keeps its
/// content. Removing the first segments makes one new node per level, without locking the tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segments {
    root: Option<Arc<Node>>,
}

#[derive(Clone, Debug)]
struct Node {
    /// The number of levels below this one.
    height: u32,
    /// 1 to [`FANOUT`] children.
    children: Vec<(Position, Child)>,
}

#[derive(Clone, Debug)]
enum Child {
    Node(Arc<Node>),
    Segment(Arc<Segment>),
}

const FANOUT: usize = 16;

impl Position {
    /// The position of `record` in `segment`, which begins at this position.
    pub(crate) fn at(self, segment: &Segment, record: u64) -> Position {
        let bytes = self.bytes + segment.start(record.saturating_sub(self.records)) as u64;
        Position { records: record, bytes }
    }
}

impl Segment {
    /// Appends a record.
    pub(crate) fn push(&mut self, record: &[u8]) {
        // No truncation: a segment of more than one record has less than 4 GiB.
        self.starts.push(self.bytes.len() as u32);
        self.bytes.extend_from_slice(record);
    }

    pub(crate) fn records(&self) -> u64 {
        self.starts.len() as u64
    }

    /// The offset of the record at `index`, or the segment's end if `index` is out of range.
    pub(crate) fn start(&self, index: u64) -> usize {
        self.starts.get(index as usize).map_or(self.bytes.len(), |start| *start as usize)
    }

    /// The number of records that end at or before byte `end`.
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
    /// Appends a segment. Allocates at most once per level.
    pub(crate) fn push(&mut self, at: Position, segment: Segment) {
        let segment = Child::Segment(Arc::new(segment));
        let Some(root) = &mut self.root else {
            self.root = Some(Arc::new(Node { height: 0, children: vec![(at, segment)] }));
            return;
        };
        if let Err(segment) = Arc::make_mut(root).push(at, segment) {
            let height = root.height + 1;
            let first = root.children.first().map_or(at, |child| child.0);
            let full = Child::Node(Arc::clone(root));
            let children = vec![(first, full), (at, segment.below(height - 1, at))];
            *root = Arc::new(Node { height, children });
        }
    }

    /// The last segment that begins at or before `record`, and its position.
    pub(crate) fn find(&self, record: u64) -> Option<(Position, &Arc<Segment>)> {
        let mut node = self.root.as_deref()?;
        loop {
            match node.children.get(node.child(record))? {
                (_, Child::Node(below)) => node = below,
                (at, Child::Segment(segment)) => return Some((*at, segment)),
            }
        }
    }

    /// The segments from the last one that begins at or before `record`.
    pub(crate) fn from(&self, record: u64) -> Segments {
        Segments { root: self.root.as_ref().map(|root| Arc::new(root.from(record))) }
    }

    /// Whether this and `other`, one of which is a clone of the other, are still the same tree.
    #[inline]
    pub(crate) fn is(&self, other: &Segments) -> bool {
        let root = |segments: &Segments| segments.root.as_ref().map_or(ptr::null(), Arc::as_ptr);
        root(self) == root(other)
    }
}

impl Node {
    /// Appends a segment; returns the segment if the node is full.
    fn push(&mut self, at: Position, mut segment: Child) -> Result<(), Child> {
        if let Some((_, Child::Node(last))) = self.children.last_mut() {
            match Arc::make_mut(last).push(at, segment) {
                Ok(()) => return Ok(()),
                Err(back) => segment = back,
            }
        }
        if self.children.len() == FANOUT {
            return Err(segment);
        }
        self.children.push((at, segment.below(self.height, at)));
        Ok(())
    }

    fn from(&self, record: u64) -> Node {
        let mut children = Vec::with_capacity(FANOUT);
        children.extend_from_slice(&self.children[self.child(record)..]);
        if let Some((_, Child::Node(node))) = children.first_mut() {
            *node = Arc::new(node.from(record));
        }
        Node { height: self.height, children }
    }

    /// The index of the last child that begins at or before `record`.
    fn child(&self, record: u64) -> usize {
        self.children.partition_point(|(at, _)| at.records <= record).saturating_sub(1)
    }
}

impl Child {
    /// Wraps a segment so that it can be the child of a node of `height`.
    fn below(self, height: u32, at: Position) -> Child {
        (0..height).fold(self, |below, height| {
            Child::Node(Arc::new(Node { height, children: vec![(at, below)] }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use proptest::prelude::*;

    /// A segment of `records` records.
    fn segment(records: u64) -> Segment {
        let mut segment = Segment::default();
        (0..records).for_each(|_| segment.push(b"record"));
        segment
    }

    /// Compares every lookup with a model of (first record, records) pairs.
    fn check(segments: &Segments, model: &VecDeque<(u64, u64)>) {
        assert_eq!(segments.find(0).is_none(), model.is_empty());
        for (at, records) in model {
            for record in *at..at + records {
                let (found, segment) = segments.find(record).unwrap();
                assert_eq!((found.records, segment.records()), (*at, *records), "{record}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn tree_matches_a_list_and_clones_never_change(
            ops in prop::collection::vec((1u64..400, prop::option::weighted(0.4, 0.0f64..1.0)), 1..12),
        ) {
            let mut segments = Segments::default();
            let mut model = VecDeque::new();
            let mut end = 0;
            let mut clones = Vec::new();
            for (pushes, cut) in ops {
                clones.push((segments.clone(), model.clone()));
                for i in 0..pushes {
                    let records = i % 3 + 1;
                    segments.push(Position { records: end, bytes: 6 * end }, segment(records));
                    model.push_back((end, records));
                    end += records;
                }
                prop_assert!(!segments.is(&clones[clones.len() - 1].0));
                if let Some(part) = cut {
                    let first = model[0].0;
                    let record = first + ((end - first) as f64 * part) as u64;
                    segments = segments.from(record);
                    while model[0].0 + model[0].1 <= record {
                        model.pop_front();
                    }
                }
                check(&segments, &model);
            }
            for (segments, model) in &clones {
                check(segments, model);
            }
        }
    }

    #[test]
    fn repeated_cuts_keep_the_tree_at_minimum_height() {
        let mut segments = Segments::default();
        for i in 0..5_000 {
            segments.push(Position { records: i, bytes: 0 }, segment(1));
            segments = segments.from(i.saturating_sub(100));
            // 101 segments, plus a partly filled node at each side, need at most three levels.
            assert!(segments.root.as_ref().unwrap().height <= 2, "{i}");
        }
    }
}
