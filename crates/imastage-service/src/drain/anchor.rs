//! Where the next service resumes the replay of what is stored, so that its start does not grow with the
//! records.
//!
//! An anchor is a hint that is checked before it is used: its own checksum finds accidents, and the
//! PCR values that the store keeps with its commits must agree. It is taken only where the TPM's PCRs
//! proved the values, and a service that resumed from one reads all records again before it reports
//! that store and TPM are consistent, or that they diverge.

use std::collections::BTreeSet;

use ima_log::{Bank, BankPcrs, Digest, Extend, ListReplay};
use imastage_store::{Reader, StoreError};
use serde::{Deserialize, Serialize};

use crate::drain::banks::RECENT;

/// The PCRs of all banks, in each way that is not ruled out, after some of the records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Records replayed.
    pub(super) records: u64,
    /// The list's own PCR.
    pcr: u32,
    banks: Vec<State>,
    /// SHA-256 of all of the above as JSON, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    sha256: String,
}

/// One bank's PCRs in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    bank: String,
    extended_with: String,
    /// Index and value, hex; the list's own PCR first.
    pcrs: Vec<(u32, String)>,
}

impl Anchor {
    /// The state of a replay; `None` before the first record.
    pub fn of(replay: &ListReplay) -> Option<Anchor> {
        let state = |pcrs: &BankPcrs| State {
            bank: pcrs.bank().to_string(),
            extended_with: pcrs.extend_kind().name().to_owned(),
            pcrs: pcrs.values().map(|(pcr, value)| (pcr, value.to_string())).collect(),
        };
        let banks = replay.banks().iter().flat_map(|bank| bank.ways().map(state)).collect();
        let records = replay.records();
        let mut anchor = Anchor { records, pcr: replay.pcr()?, banks, sha256: String::new() };
        anchor.sha256 = anchor.checksum();
        Some(anchor)
    }

    /// The replay, if this is an anchor of what `reader` has, in all of `banks`. Replays about a
    /// thousand records at most.
    ///
    /// # Errors
    /// [`StoreError`] if the records before it cannot be read.
    pub fn resume(
        &self,
        reader: &Reader,
        banks: &[Bank],
    ) -> Result<Option<ListReplay>, StoreError> {
        let is_known = self.sha256 == self.checksum() && Some(self.pcr) == reader.pcr();
        if !is_known || self.records == 0 || self.records + RECENT as u64 > reader.len() {
            return Ok(None);
        }
        let Some(states) = self.states() else { return Ok(None) };
        let has: BTreeSet<Bank> = states.iter().map(BankPcrs::bank).collect();
        if has != banks.iter().copied().collect() {
            return Ok(None);
        }
        let mut compared = false;
        for kept in reader.running_at(self.records)? {
            let (value, extend) = (kept.value(), kept.extend_kind());
            let is_it =
                |state: &&BankPcrs| (state.bank(), state.extend_kind()) == (value.bank(), extend);
            // The way may be ruled out by now.
            let Some(state) = states.iter().find(is_it) else { continue };
            if state.value(self.pcr) != value {
                return Ok(None);
            }
            compared = true;
        }
        Ok(compared.then(|| ListReplay::resume(states, self.records, Some(self.pcr))))
    }

    fn states(&self) -> Option<Vec<BankPcrs>> {
        let state = |state: &State| {
            let bank: Bank = state.bank.parse().ok()?;
            let extend: Extend = state.extended_with.parse().ok()?;
            let value = |(pcr, hex): &(u32, String)| Some((*pcr, Digest::from_hex(bank, hex)?));
            let values: Option<Vec<_>> = state.pcrs.iter().map(value).collect();
            Some(BankPcrs::resume(bank, extend, values?))
        };
        self.banks.iter().map(state).collect()
    }

    fn checksum(&self) -> String {
        let bare = Anchor { sha256: String::new(), ..self.clone() };
        let json = serde_json::to_vec(&bare).unwrap_or_default();
        Bank::Sha256.hash(&[&json]).to_string()
    }
}
