//! Replay of a list after stored records: drained records are no longer in the list.

use std::path::Path;

use ima_log::{Digest, IMA_PCR, PcrTarget, Record, Replay};
use imastage_store::Reader;

/// The stored records, and the running PCR values after them.
pub(crate) struct Stored {
    records: u64,
    /// The PCR that its first record names.
    pcr: u32,
    /// The value of that PCR after the last record, by bank and way to extend it.
    end: Vec<Replay>,
    /// The last record.
    last: Vec<u8>,
    targets: Vec<Digest>,
    chains: Vec<Chain>,
}

/// A replay of the list, from some record on, after the stored records.
struct Chain {
    replays: Vec<Replay>,
    /// For each target, whether it was met.
    met: Vec<bool>,
}

/// The list can start with stored records; each one that equals the last stored one can be it. This
/// is the maximum number of such records at the beginning of a list.
const MOST_CHAINS: usize = 16;

impl Stored {
    /// `None` without stored records, or if they cannot be read.
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

    /// Adds the list's next record.
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

    /// Whether all values looked for were reached, and there is at least one.
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
