//! The epoch to which the records of this boot belong.

use std::{
    thread,
    time::{Duration, Instant},
};

use ima_log::{Bank, ListReplay, Record};
use imastage_source::{Source, SourceError};
use imastage_store::{Epoch, EpochId, Note, Store};

use crate::{
    clock::now,
    drain::{
        align::{Alignment, Question, align},
        round::{DrainError, parse},
    },
};

/// The kind of a note about another boot in the epoch; its text is the boot ID.
const KEXEC: &str = "kexec";

/// The banks whose PCR 10 the store keeps.
const BANKS: [Bank; 2] = [Bank::Sha1, Bank::Sha256];

/// Continues the stored epoch or starts a new one; returns its number.
///
/// The TPM's reset counter shows whether its PCRs are those of the epoch. Without a TPM, each boot
/// is an epoch, except for a kexec that passed the list on, which its records show.
pub fn enter(
    store: &mut Store,
    id: EpochId,
    notes: &[Note],
    source: &mut dyn Source,
) -> Result<u64, DrainError> {
    let goes_on = match store.epoch() {
        Some(epoch) if epoch.id.is_same(&id) || is_known(epoch, &id, notes) => true,
        Some(epoch) if epoch.id.tpm.is_none() && id.tpm.is_none() && is_carried(store, source)? => {
            let (index, text) = (store.len(), id.boot_id.clone());
            let after = index.checked_sub(1);
            store.note(&Note { index, after, time: now(), kind: KEXEC.to_owned(), text })?;
            true
        }
        _ => false,
    };
    if !goes_on {
        store.begin_epoch(id, &BANKS)?;
    }
    Ok(store.epoch().map_or(0, |epoch| epoch.number))
}

/// Whether an earlier service noted that this boot belongs to the epoch.
fn is_known(epoch: &Epoch, id: &EpochId, notes: &[Note]) -> bool {
    let tells = |note: &Note| note.kind == KEXEC && note.text == id.boot_id;
    epoch.id.tpm.is_none() && id.tpm.is_none() && notes.iter().any(tells)
}

/// Whether the list was carried over from the kernel whose records are stored.
fn is_carried(store: &Store, source: &mut dyn Source) -> Result<bool, DrainError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_millis(50);
    let since = Instant::now();
    let mut bytes = Vec::new();
    loop {
        match source.look() {
            Ok(mut look) => {
                look.read(&mut |chunk| bytes.extend_from_slice(chunk))?;
                break;
            }
            Err(SourceError::Busy { .. }) if since.elapsed() < PATIENCE => thread::sleep(PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(continues(&store.tail(parse(&bytes)?.len())?, &parse(&bytes)?))
}

/// Whether `list` begins with the last of the records stored, and another kernel begins after them.
/// Boots that measure the same begin alike, but the first `boot_aggregate` of a list is no kexec's.
fn continues(tail: &[Vec<u8>], list: &[Record<'_>]) -> bool {
    let running = &ListReplay::new([]);
    let question = Question { tail, running, list, before_pcr: list.len(), pcrs: &[] };
    match align(&question) {
        Alignment::Continues { stored, .. } if stored > 0 => {
            list[stored..].iter().any(Record::begins_kernel)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ima_list::{Duplicates, Options, SharedList};
    use ima_log::{Digest, RecordBuf};
    use imastage_source::{DeleteMode, InProcess};
    use std::sync::Arc;

    fn list(names: &[&str]) -> InProcess {
        let options = Options { duplicates: Duplicates::Off, ..Options::default() };
        let list = SharedList::new(options);
        for name in names {
            let digest = Digest::zero(Bank::Sha256);
            let record = RecordBuf::ima_ng(10, &digest, name.as_bytes());
            list.append(&record, &record.record().template_digest(Bank::Sha256), || {}).unwrap();
        }
        InProcess::new(Arc::new(list), DeleteMode::Stage)
    }

    fn id(boot: &str) -> EpochId {
        EpochId { boot_id: boot.to_owned(), ..EpochId::default() }
    }

    #[test]
    fn without_a_tpm_a_carried_list_goes_on_with_the_epoch() {
        let boot = "boot_aggregate";
        for (stored, found, epoch) in [
            // Carried, all of it or what was not deleted.
            (&[boot, "a", "b"][..], &[boot, "a", "b", boot, "c"][..], 1),
            (&[boot, "a", "b"], &["b", "c", boot], 1),
            // Another boot that measures the same.
            (&[boot, "a", "b"], &[boot, "a", "b", "c"], 2),
            (&[boot], &[boot, "a"], 2),
            // Nothing was carried, or nothing is there.
            (&[boot, "a", "b"], &[boot, "c"], 2),
            (&[boot, "a", "b"], &[], 2),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut store = Store::open(dir.path()).unwrap();
            enter(&mut store, id("first"), &[], &mut list(stored)).unwrap();
            let mut bytes = Vec::new();
            list(stored).look().unwrap().read(&mut |chunk| bytes.extend_from_slice(chunk)).unwrap();
            for record in parse(&bytes).unwrap() {
                store.append(&record).unwrap();
            }
            store.commit().unwrap();

            let entered = enter(&mut store, id("second"), &[], &mut list(found)).unwrap();
            assert_eq!(entered, epoch, "{stored:?} {found:?}");
            // It is remembered, whatever the list shows later.
            let notes = imastage_store::notes(dir.path()).unwrap();
            let again = enter(&mut store, id("second"), &notes, &mut list(&[])).unwrap();
            assert_eq!(again, epoch, "{stored:?} {found:?}");
        }
    }
}
