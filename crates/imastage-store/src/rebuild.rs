//! Rebuilding the file `checkpoints` from the records.

use std::{path::Path, sync::Arc};

use ima_log::Bank;

use crate::{
    StoreError,
    checkpoints::Checkpoints,
    commits::{self, HEADER, extend},
    disk::{Disk, Mode},
    files::{self, At},
    reader::Reader,
};

impl Checkpoints {
    /// Opens the file for writing, or makes it, and makes what is missing of it. Reads all of it, and
    /// the records from the first entry on that is missing: after a crash those of the last segment,
    /// because the file is synced when a segment begins.
    pub(crate) fn complete(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        distance: u64,
    ) -> Result<Checkpoints, StoreError> {
        let reader = Reader::open_epoch(Arc::clone(disk), dir)?;
        let epoch = reader.epoch();
        let checkpoints = match Checkpoints::open(disk.as_ref(), dir, epoch, Mode::Write) {
            Some(checkpoints) => checkpoints,
            None => Checkpoints::create(disk.as_ref(), dir, epoch, distance)?,
        };
        let due = checkpoints.due(reader.len());
        // Entries after the end are those of records that were cut off.
        let (file, path) = (checkpoints.file.as_ref(), &checkpoints.path);
        files::cut(file, checkpoints.offset(due), path)?;
        // Not more than there are, whatever the commits claim.
        let size = file.size().at(path, "look at")?;
        let there = due.min(size.saturating_sub(HEADER) / commits::entry_len(&checkpoints.reset));
        let missing = (0..there).find(|at| checkpoints.read(*at).is_none()).unwrap_or(there);
        if missing < due {
            match checkpoints.make(&reader, missing, due) {
                // Where records are damaged there are none, and after that the next ones are due.
                Err(StoreError::Damaged { .. } | StoreError::Unreadable { .. }) => {}
                made => made?,
            }
        }
        Ok(checkpoints)
    }

    /// Makes the entries `from..to` from the records.
    fn make(&self, reader: &Reader, from: u64, to: u64) -> Result<(), StoreError> {
        let Some(pcr) = reader.pcr() else { return Ok(()) };
        let mut state = reader.start(from * self.distance)?;
        state.pcr = Some(pcr);
        let mut cursor = reader.cursor(&state, to * self.distance)?;
        while let Some(record) = cursor.next_record()? {
            extend(&mut state.pcrs, pcr, &record, &record.template_digest(Bank::Sha1));
            state.records += 1;
            state.violations += u64::from(record.is_violation());
            state.bytes += record.as_bytes().len() as u64;
            (state.segment, state.segment_len) = cursor.place();
            if state.records.is_multiple_of(self.distance) {
                state.crc = reader.crc_of_commit_with(state.records - 1)?;
                self.write(&state)?;
            }
        }
        self.file.sync().at(&self.path, "sync")
    }
}
