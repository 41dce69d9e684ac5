//! What a service finds in its state directory when it starts, and after a repair.

use std::path::Path;

use ima_log::{Bank, BankPcrs, Extend};
use imastage_client::wire::{Cause, Divergence, Verdict};
use imastage_store::{EpochId, Note, Reader, Recovery, Store, StoreError};

use crate::{attester::Attester, drain::banks::Banks, pulse::Pulse};

/// Says what an interrupted commit had left.
pub(crate) fn report(recovery: &Recovery) {
    let Recovery { commit_bytes, record_bytes, kept } = recovery;
    if *commit_bytes + *record_bytes > 0 {
        tracing::info!("cut off what a crash interrupted: {record_bytes} bytes of records");
    }
    if let Some(kept) = kept {
        tracing::warn!(
            "the last commit was torn or damaged; what it may have covered is kept in {}",
            kept.display()
        );
    }
}

/// Replays what is stored in every bank of the TPM. Linear in the records.
///
/// # Errors
/// [`StoreError`] if they cannot be read any more.
pub(crate) fn replayed(state: &Path, banks: &[Bank], pulse: &Pulse) -> Result<Banks, StoreError> {
    const BEAT: u64 = 4096;
    let mut replays = Banks::new(banks);
    if banks.is_empty() {
        let reader = Reader::open(state)?;
        return Ok(Banks::resume(Vec::new(), reader.len(), reader.pcr()));
    }
    let mut cursor = Reader::open(state)?.records(0)?;
    while let Some(record) = cursor.next_record()? {
        replays.push(&[record]);
        if replays.records().is_multiple_of(BEAT) {
            pulse.beat();
        }
    }
    Ok(replays)
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
pub(crate) fn damage(state: &Path) -> Result<Vec<String>, StoreError> {
    let damage = imastage_store::check(state)?.damage;
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
