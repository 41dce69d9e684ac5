//! Segments of whole records, and the tree of sealed segments whose shared nodes never change.

use alloc::{sync::Arc, vec, vec::Vec};
use core::ptr;

/// Counted from a chain's first record and byte ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// Segments that take no more records, in order, each with where it begins.
///
/// A tree of which nothing that is shared is ever changed. So a clone, which costs one step, stays
/// what it is; and to leave out the first segments takes a new node on each level, which can be
/// made while others use the tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segments {
    root: Option<Arc<Node>>,
}

#[derive(Clone, Debug)]
struct Node {
    /// Levels below this one.
    height: u32,
    /// At least one, at most [`FANOUT`].
    children: Vec<(Position, Child)>,
}

#[derive(Clone, Debug)]
enum Child {
    Node(Arc<Node>),
    Segment(Arc<Segment>),
}

const FANOUT: usize = 16;

impl Position {
    /// Where `record` begins, which is in `segment`, which begins here.
    pub(crate) fn at(self, segment: &Segment, record: u64) -> Position {
        let bytes = self.bytes + segment.start(record.saturating_sub(self.records)) as u64;
        Position { records: record, bytes }
    }
}

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
    /// Adds one behind the others. Allocates on each level at most.
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

    /// The segment that holds `record`, or would if it had no end, and where it begins.
    pub(crate) fn find(&self, record: u64) -> Option<(Position, &Arc<Segment>)> {
        let mut node = self.root.as_deref()?;
        loop {
            match node.children.get(node.child(record))? {
                (_, Child::Node(below)) => node = below,
                (at, Child::Segment(segment)) => return Some((*at, segment)),
            }
        }
    }

    /// The segments from the one on that holds `record`, or would if it had no end.
    pub(crate) fn from(&self, record: u64) -> Segments {
        Segments { root: self.root.as_ref().map(|root| Arc::new(root.from(record))) }
    }

    /// Whether nothing was added or left out between this one and `other`, of which one is a clone.
    #[inline]
    pub(crate) fn is(&self, other: &Segments) -> bool {
        let root = |segments: &Segments| segments.root.as_ref().map_or(ptr::null(), Arc::as_ptr);
        root(self) == root(other)
    }
}

impl Node {
    /// Gives the segment back if there is no room left.
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

    /// Which child holds `record`, or would if it had no end.
    fn child(&self, record: u64) -> usize {
        self.children.partition_point(|(at, _)| at.records <= record).saturating_sub(1)
    }
}

impl Child {
    /// A segment as the child of a node of `height`.
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

    /// Of so many records.
    fn segment(records: u64) -> Segment {
        let mut segment = Segment::default();
        (0..records).for_each(|_| segment.push(b"record"));
        segment
    }

    /// What is found for every record is what a list of (first record, records) says.
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
        fn segments_are_a_list_and_a_clone_stays_what_it_was(
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
    fn the_tree_is_as_high_as_it_must_be_however_often_it_is_cut() {
        let mut segments = Segments::default();
        for i in 0..5_000 {
            segments.push(Position { records: i, bytes: 0 }, segment(1));
            segments = segments.from(i.saturating_sub(100));
            // Two full nodes fewer than there must be for another level, one on each side.
            assert!(segments.root.as_ref().unwrap().height <= 2, "{i}");
        }
    }
}
