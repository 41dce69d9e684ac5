//! Where a list continues the store, found out by looking at all of it.

use std::{thread, time::Duration};

use ima_log::{Bank, Digest, Extend, Record, Replay};
use imastage_source::Source;
use imastage_store::{Store, StoreError};

use crate::{
    align::{Alignment, Question, align},
    compare::Comparison,
    drain::{AskTpm, DrainError, parse},
};

/// A list that was looked at.
pub struct Place {
    /// All of it.
    pub bytes: Vec<u8>,
    /// How many of its first records are stored already.
    pub stored: usize,
    /// PCR 10 when all that it was extended with was in `bytes` or stored; `None` without a TPM.
    pub pcrs: Option<Vec<Digest>>,
}

/// Looks at the list, without deleting anything. Linear in the list, in a kernel quadratic.
pub fn find(
    source: &mut dyn Source,
    store: &Store,
    comparison: &Comparison,
    tpm: &mut Option<Box<dyn AskTpm>>,
) -> Result<Place, DrainError> {
    const TRIES: u32 = 5;
    const WAIT: Duration = Duration::from_millis(50);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut bytes = Vec::new();
        let mut look = source.look()?;
        look.read(&mut |chunk| bytes.extend_from_slice(chunk))?;
        let before_pcr = parse(&bytes)?.len();
        // A list's last record may be in it a moment before the PCR is extended with it; then no
        // answer fits, and all is asked again.
        let pcrs = match tpm {
            Some(tpm) => Some(tpm.pcrs().map_err(DrainError::Tpm)?),
            None => None,
        };
        look.read(&mut |chunk| bytes.extend_from_slice(chunk))?;
        drop(look);

        let list = parse(&bytes)?;
        let asked = pcrs.as_deref().unwrap_or_default();
        let stored = match align_in_any(store, comparison, &list, before_pcr, asked)? {
            Alignment::Continues { stored, .. } => stored,
            // No PCR is reached any more: it was noted before, and not refuted now.
            Alignment::Parted { stored } if comparison.has_parted() => stored,
            Alignment::Parted { .. } | Alignment::Ambiguous if attempt < TRIES => {
                thread::sleep(WAIT);
                continue;
            }
            // Who compares next will say so.
            Alignment::Parted { stored } => stored,
            Alignment::Ambiguous => return Err(DrainError::NoPlace),
        };
        tracing::info!(stored, in_list = list.len(), "found the list's place in the store");
        return Ok(Place { bytes, stored, pcrs });
    }
}

/// How `list` continues the store, in the first bank that tells.
fn align_in_any(
    store: &Store,
    comparison: &Comparison,
    list: &[Record<'_>],
    before_pcr: usize,
    pcrs: &[Digest],
) -> Result<Alignment, StoreError> {
    let tail = store.tail(list.len())?;
    let question = |running, pcr| Question { tail: &tail, running, list, before_pcr, pcr };
    let mut best = None;
    for running in comparison.candidates() {
        let bank = running.value().bank();
        let Some(pcr) = pcrs.iter().find(|pcr| pcr.bank() == bank) else { continue };
        let answer = align(&question(running, Some(*pcr)));
        match answer {
            Alignment::Continues { .. } => return Ok(answer),
            Alignment::Ambiguous => best = Some(answer),
            Alignment::Parted { .. } => best = best.or(Some(answer)),
        }
    }
    let by_content = || align(&question(Replay::new(Bank::Sha256, Extend::Own), None));
    Ok(best.unwrap_or_else(by_content))
}
