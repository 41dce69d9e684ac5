//! Signs of life of the drain loop, for a watchdog.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use imastage_source::{Batch, Dialect, Holders, Look, Sink, Source, SourceError};

/// Counts signs of life, and keeps what was seen of the list last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pulse(Arc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    beats: AtomicU64,
    records: AtomicU64,
}

impl Pulse {
    pub(crate) fn beat(&self) {
        self.0.beats.fetch_add(1, Relaxed);
    }

    pub(crate) fn beats(&self) -> u64 {
        self.0.beats.load(Relaxed)
    }

    /// How many records were in the list when they were counted last.
    pub(crate) fn records(&self) -> u64 {
        self.0.records.load(Relaxed)
    }
}

/// A list whose use shows as life, chunk by chunk: a kernel may take minutes for a long list.
pub(crate) struct Watched {
    source: Box<dyn Source>,
    pulse: Pulse,
}

impl Watched {
    pub(crate) fn new(source: Box<dyn Source>, pulse: Pulse) -> Watched {
        Watched { source, pulse }
    }
}

impl Source for Watched {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        Ok(Box::new(WatchedLook { look: self.source.look()?, pulse: &self.pulse }))
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        let Watched { source, pulse } = self;
        let taken = source.take(&mut |chunk| {
            pulse.beat();
            sink(chunk);
        })?;
        // They are on their way.
        pulse.0.records.store(0, Relaxed);
        Ok(taken)
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        self.source.try_open()
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        let count = self.source.count()?;
        self.pulse.0.records.store(count, Relaxed);
        Ok(count)
    }

    fn dialect(&self) -> Dialect {
        self.source.dialect()
    }

    fn others_may_delete(&self) -> bool {
        self.source.others_may_delete()
    }

    fn trimmed(&mut self) -> Result<Option<u64>, SourceError> {
        self.source.trimmed()
    }

    fn holders(&self) -> Holders {
        self.source.holders()
    }

    fn is_private(&self) -> bool {
        self.source.is_private()
    }

    fn name(&self) -> String {
        self.source.name()
    }
}

struct WatchedLook<'a> {
    look: Box<dyn Look + 'a>,
    pulse: &'a Pulse,
}

impl Look for WatchedLook<'_> {
    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let WatchedLook { look, pulse } = self;
        look.read(&mut |chunk| {
            pulse.beat();
            sink(chunk);
        })
    }
}
