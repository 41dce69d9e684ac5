//! A list after what is stored already: records that were drained are no longer in it.

use std::path::Path;

use ima_log::{Digest, IMA_PCR, PcrTarget, Record, Replay};
use imastage_store::Reader;

/// What is stored, and where its PCR goes from there.
pub(crate) struct Stored {
    records: u64,
    /// The PCR that its first record names.
    pcr: u32,
    /// That PCR after the last record, by bank and by how banks may be extended.
    end: Vec<Replay>,
    /// The last record.
    last: Vec<u8>,
    targets: Vec<Digest>,
    chains: Vec<Chain>,
}

/// The list from some record on, after what is stored.
struct Chain {
    replays: Vec<Replay>,
    /// For each target, whether it was met.
    met: Vec<bool>,
}

/// The list may begin with records that are stored; each that equals the last one may be it. More
/// equal records than this are not expected at the beginning of a list.
const MOST_CHAINS: usize = 16;

impl Stored {
    /// `None` if nothing is stored there, or nothing that can be read.
    pub(crate) fn open(state: &Path) -> Option<Stored> {
        let reader = Reader::open(state).ok()?;
        let records = reader.len();
        let end = reader.running_at(records).ok()?;
        let mut cursor = reader.records(records.checked_sub(1)?).ok()?;
        let last = cursor.next_record().ok()??.as_bytes().to_vec();
        let pcr = reader.pcr().unwrap_or(IMA_PCR);
        Some(Stored { records, pcr, end, last, targets: Vec::new(), chains: Vec::new() })
    }

    pub(crate) fn pcr(&self) -> u32 {
        self.pcr
    }

    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Looks for these values, of those banks that the store keeps.
    pub(crate) fn seek(&mut self, targets: &[PcrTarget]) {
        let is_kept = |bank| self.end.iter().any(|replay| replay.value().bank() == bank);
        let of_pcr = targets.iter().filter(|target| target.pcr == self.pcr);
        let values = of_pcr.map(|target| target.value);
        self.targets = values.filter(|value| is_kept(value.bank())).collect();
        self.begin();
    }

    /// Takes the list's next record.
    pub(crate) fn push(&mut self, record: &Record<'_>) {
        if record.pcr() == self.pcr {
            for chain in &mut self.chains {
                chain.replays.iter_mut().for_each(|replay| replay.extend(record));
                chain.compare(&self.targets);
            }
        }
        if record.as_bytes() == self.last && self.chains.len() < MOST_CHAINS {
            self.begin();
        }
    }

    /// Whether every value that was looked for was met, and there is one.
    pub(crate) fn leads_to_all(&self) -> bool {
        !self.targets.is_empty() && self.chains.iter().any(|chain| chain.met.iter().all(|met| *met))
    }

    fn begin(&mut self) {
        let met = vec![false; self.targets.len()];
        let mut chain = Chain { replays: self.end.clone(), met };
        chain.compare(&self.targets);
        self.chains.push(chain);
    }
}

impl Chain {
    fn compare(&mut self, targets: &[Digest]) {
        for (target, met) in targets.iter().zip(&mut self.met) {
            *met |= self.replays.iter().any(|replay| replay.value() == *target);
        }
    }
}
