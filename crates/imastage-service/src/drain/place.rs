//! Where a list continues the store, found out by looking at all of it.

use std::{thread, time::Duration};

use ima_log::{IMA_PCR, ListReplay, PcrSet, PcrTarget, Record};
use imastage_source::Source;
use imastage_store::{Store, StoreError};

use crate::drain::{
    align::{Alignment, Question, align},
    banks::{comparable, is_reset},
    compare::Comparison,
    round::{AskTpm, DrainError, parse},
};

/// A list that was looked at.
pub struct Place {
    /// All of it.
    pub bytes: Vec<u8>,
    /// How many of its first records are stored already.
    pub stored: usize,
    /// The PCRs that records name, when all that they were extended with was in `bytes` or stored;
    /// `None` without a TPM.
    pub pcrs: Option<Vec<PcrTarget>>,
    /// The PCR that the first record names, stored or in the list.
    pub own: u32,
    /// The PCRs that its records name, of those that can be compared.
    pub named: PcrSet,
    /// Whether the list's beginning is known to be stored, or that nothing came before it.
    pub beginning: Beginning,
    /// There are records, and the list's own PCR was not extended with any of them.
    pub is_reset: bool,
}

/// What is known about a list's first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// It follows the records stored, is one of them, or is a kernel's first.
    Known,
    /// There is no record, and nobody to ask whether there were any.
    Unseen,
    /// Records before it are neither stored nor in the list.
    Foreign,
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
        let before = parse(&bytes)?;
        let before_pcr = before.len();
        let named = before.iter().map(Record::pcr).collect();
        let own = comparison.own_pcr().or(before.first().map(Record::pcr)).unwrap_or(IMA_PCR);
        let asked_for = match comparison.own_pcr() {
            Some(_) => comparable(own, comparison.compared().union(named)),
            None => comparable(own, named),
        };
        // A list's last record may be in it a moment before the PCR is extended with it; then no
        // answer fits, and all is asked again.
        let pcrs = match tpm {
            Some(tpm) => Some(tpm.pcrs(asked_for).map_err(DrainError::Tpm)?),
            None => None,
        };
        look.read(&mut |chunk| bytes.extend_from_slice(chunk))?;
        drop(look);

        let list = parse(&bytes)?;
        let asked = pcrs.as_deref().unwrap_or_default();
        let records = store.len() + before_pcr as u64;
        let is_reset = records > 0 && is_reset(own, asked);
        let alignment = align_in_any(store, comparison, &list, before_pcr, asked)?;
        let is_met = matches!(alignment, Alignment::Continues { .. });
        let stored = match alignment {
            Alignment::Continues { stored, .. } if !is_reset || attempt == TRIES => stored,
            // No PCR is reached any more: it was noted before, and not refuted now.
            Alignment::Diverged { stored } if comparison.has_diverged() => stored,
            _ if attempt < TRIES => {
                thread::sleep(WAIT);
                continue;
            }
            // Who compares next will say so.
            Alignment::Diverged { stored } | Alignment::Continues { stored, .. } => stored,
            Alignment::Ambiguous => return Err(DrainError::NoPlace),
        };
        let beginning = match list.first() {
            Some(first) if first.begins_kernel() || stored > 0 => Beginning::Known,
            // An earlier service has said that something is missing, or could not be told.
            _ if comparison.has_diverged() || comparison.is_damaged() || is_reset => {
                Beginning::Known
            }
            // It may measure into another PCR than was asked for.
            None if store.is_empty() && is_met => Beginning::Unseen,
            _ if !asked.is_empty() && is_met => Beginning::Known,
            // The epoch's first records are here. If others are missing, who compares will say so; it
            // was no other service, whose store would have been refused the list in the same way.
            _ if !store.is_empty() => Beginning::Known,
            _ if !asked.is_empty() => Beginning::Foreign,
            Some(_) => Beginning::Foreign,
            None => Beginning::Unseen,
        };
        tracing::info!(
            "{} records are stored; the list has {}, of which the first {stored} are stored already",
            store.len(),
            list.len()
        );
        return Ok(Place { bytes, stored, pcrs, own, named: asked_for, beginning, is_reset });
    }
}

/// How `list` continues the store, in the first bank that tells.
fn align_in_any(
    store: &Store,
    comparison: &Comparison,
    list: &[Record<'_>],
    before_pcr: usize,
    pcrs: &[PcrTarget],
) -> Result<Alignment, StoreError> {
    let tail = store.tail(list.len())?;
    let mut best = None;
    for running in &comparison.candidates() {
        let is_its = |pcr: &&PcrTarget| running.bank(pcr.value.bank()).is_some();
        let pcrs: Vec<PcrTarget> = pcrs.iter().filter(is_its).copied().collect();
        if pcrs.is_empty() {
            continue;
        }
        let answer = align(&Question { tail: &tail, running, list, before_pcr, pcrs: &pcrs });
        match answer {
            Alignment::Continues { .. } => return Ok(answer),
            Alignment::Ambiguous => best = Some(answer),
            Alignment::Diverged { .. } => best = best.or(Some(answer)),
        }
    }
    let running = &ListReplay::new([]);
    let by_content = || align(&Question { tail: &tail, running, list, before_pcr, pcrs: &[] });
    Ok(best.unwrap_or_else(by_content))
}
