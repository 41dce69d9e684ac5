//! What a service finds in its state directory when it starts, and after a repair.

use std::path::Path;

use ima_log::{Bank, BankPcrs, Extend, ListReplay};
use imastage_client::wire::{Cause, Divergence, Verdict};
use imastage_store::{EpochId, Note, Reader, Recovery, Store, StoreError};

use crate::{
    attester::Attester,
    drain::{
        banks::{Banks, RECENT},
        last_compared::LastCompared,
    },
};

/// Says what an interrupted commit had left.
pub(crate) fn report(recovery: &Recovery) {
    let Recovery { commit_bytes, record_bytes, kept } = recovery;
    if *commit_bytes + *record_bytes > 0 {
        tracing::info!("truncated an interrupted commit: {record_bytes} bytes of records");
    }
    if let Some(kept) = kept {
        tracing::warn!(
            "the last commit is torn or damaged; a copy of the records behind it is in {}",
            kept.display()
        );
    }
}

/// Replays what is stored in every bank of the TPM: linear in the records after the anchor. Says in
/// `progress` how many of how many records were read.
///
/// # Errors
/// [`StoreError`] if they cannot be read any more.
pub(crate) fn replayed(
    state: &Path,
    banks: &[Bank],
    anchor: Option<ListReplay>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Banks, StoreError> {
    /// Records between two calls of `progress`.
    const STEP: u64 = 4096;
    let reader = Reader::open(state)?;
    if banks.is_empty() {
        return Ok(Banks::resume(Vec::new(), reader.len(), reader.pcr()));
    }
    let first = reader.records(0)?.next_record()?.is_some_and(|record| record.says_no_tpm());
    let mut replay = anchor.unwrap_or_else(|| ListReplay::new(banks.iter().copied()));
    let mut cursor = reader.records(replay.records())?;
    // Remembering each record's values costs more than computing them.
    let recent = reader.len().saturating_sub(RECENT as u64);
    while replay.records() < recent
        && let Some(record) = cursor.next_record()?
    {
        replay.push(&record);
        if replay.records().is_multiple_of(STEP) {
            progress(replay.records(), reader.len());
        }
    }
    let mut banks = Banks::of(replay).beginning_without_tpm(first);
    while let Some(record) = cursor.next_record()? {
        banks.push(&[record]);
    }
    Ok(banks)
}

/// Where the replay of an epoch is resumed; `None` if all of it is to be read first, because it is short
/// or nothing proven is known.
///
/// # Errors
/// [`StoreError`] if what is stored cannot be read.
pub(crate) fn anchored(
    state: &Path,
    banks: &[Bank],
    known: &LastCompared,
    read_first: u64,
) -> Result<Option<ListReplay>, StoreError> {
    let Some(anchor) = &known.anchor else { return Ok(None) };
    let reader = Reader::open(state)?;
    if reader.len() <= read_first || banks.is_empty() {
        return Ok(None);
    }
    anchor.resume(&reader, banks)
}

/// The PCRs that were written down with the last commit, of as many banks of the TPM as the store
/// keeps: where records cannot be read any more.
pub(crate) fn committed(store: &Store, banks: &[Bank]) -> Banks {
    let kept = banks.iter().filter_map(|bank| {
        let value = store.running(*bank)?;
        Some(BankPcrs::resume(*bank, Extend::Own, [(store.pcr()?, value)]))
    });
    Banks::resume(kept.collect(), store.len(), store.pcr())
}

/// Reads everything that is stored again, and says in words what is damaged.
pub(crate) fn damage(
    state: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<String>, StoreError> {
    let damage = imastage_store::check_with(state, progress)?.damage;
    Ok(damage.iter().map(ToString::to_string).collect())
}

/// Whether TPM and store diverged before, as was noted then: no later PCR of the epoch is reached,
/// unless the evidence refutes the note. Gives the notes that say so, too.
pub(crate) fn diverged(state: &Path) -> Result<(Verdict, Vec<Note>), StoreError> {
    let mut notes = imastage_store::notes(state)?;
    notes.retain(|note| cause(&note.kind).is_some());
    let verdict = notes.first().and_then(|note| {
        Some(Verdict::Diverged(Divergence {
            after: note.after,
            before: note.index,
            cause: cause(&note.kind)?,
            time: note.time,
            text: note.text.clone(),
        }))
    });
    Ok((verdict.unwrap_or_default(), notes))
}

/// The cause that a note tells, if it tells of a divergence.
fn cause(kind: &str) -> Option<Cause> {
    serde_json::from_value(kind.into()).ok()
}

/// What tells the epoch of this boot from others.
pub(crate) fn epoch_id(attester: Option<&Attester>) -> EpochId {
    EpochId {
        tpm: attester.map(|attester| attester.identity().to_string()),
        reset_count: attester.map(|attester| attester.clock().reset_count),
        // Linux gives each boot a random one (Documentation/admin-guide/sysctl/kernel.rst).
        boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .unwrap_or_default(),
    }
}
