//! Drains: read, check, store, delete, and compare with the TPM.

use std::{num::NonZeroU64, time::Instant};

use ima_log::{IMA_PCR, PcrSet, PcrTarget, Record};
use imastage_client::wire::Verdict;
use imastage_source::{Dialect, Source, SourceError};
use imastage_store::{Note, Store, StoreError};

use crate::{
    clock::now,
    drain::{
        banks::is_reset,
        compare::{Circumstances, Comparison, Judgement},
        place::{self, Beginning, Place},
        round::{AskTpm, DrainError, Round, keep, parse},
    },
};

/// Drains one list into one store.
pub struct Drainer {
    source: Box<dyn Source>,
    store: Store,
    comparison: Comparison,
    tpm: Option<Box<dyn AskTpm>>,
    /// The reason that the TPM did not answer, if it was asked and did not.
    tpm_error: Option<String>,
    /// The time of its last answer, in seconds since 1970.
    compared: Option<u64>,
    /// The note of a divergence of store and TPM.
    diverged: Vec<Note>,
    /// Whether no record before the list's first is known to be missing.
    is_ours: bool,
    /// Delete from any list.
    adopt: bool,
    /// The reason that this epoch has ended, if it has.
    over: Option<(u32, u32)>,
    /// The number of the list's first records that are already stored; `None` until that is known.
    stored_in_list: Option<u64>,
    /// The kernel's count of records up to the last one that was read, if it has one.
    position: Option<u64>,
    /// Whether that is known since store and TPM were last consistent: then no deletion can have
    /// gone unnoticed.
    counts_since_step: bool,
    /// The number of current records when the whole list was copied, if that was the last action.
    copied: Option<u64>,
}

impl Drainer {
    /// Drains `source` into `store`, which has an epoch. `comparison` has replayed what is stored;
    /// `diverged` is the note of a divergence of store and TPM.
    pub fn new(
        source: Box<dyn Source>,
        store: Store,
        tpm: Option<Box<dyn AskTpm>>,
        comparison: Comparison,
        diverged: Vec<Note>,
    ) -> Drainer {
        let is_ours = source.is_private();
        Drainer {
            source,
            store,
            comparison,
            tpm,
            tpm_error: None,
            compared: None,
            diverged,
            is_ours,
            adopt: false,
            over: None,
            stored_in_list: None,
            position: None,
            counts_since_step: false,
            copied: None,
        }
    }

    /// Permits deletion from any list, including one whose earlier records are not in this store.
    #[must_use]
    pub fn adopting(self, adopt: bool) -> Drainer {
        Drainer { adopt, ..self }
    }

    /// Drains once: all records that are in the list when this is called are stored when it
    /// returns.
    ///
    /// # Errors
    /// [`DrainError`]; records that were not stored are still in the list.
    pub fn drain(&mut self) -> Result<Round, DrainError> {
        self.measured(Drainer::try_drain)
    }

    /// Stores the records of the list and leaves them there. For records that cannot be deleted,
    /// because other processes have the list open, the machine shuts down, or a permission is
    /// missing. Reads the whole list if it has a new record.
    ///
    /// # Errors
    /// [`DrainError`].
    pub fn copy(&mut self) -> Result<Round, DrainError> {
        self.measured(Drainer::try_copy)
    }

    /// Whether TPM and store agree, bank by bank.
    pub fn comparison(&self) -> &Comparison {
        &self.comparison
    }

    /// The reason that the TPM was not read at the last drain.
    pub fn tpm_error(&self) -> Option<&str> {
        self.tpm_error.as_deref()
    }

    /// The time of the TPM's last answer, in seconds since 1970.
    pub fn compared(&self) -> Option<u64> {
        self.compared
    }

    /// Replaces the comparison of a store that was damaged: `comparison` has replayed it again.
    pub fn compare_anew(&mut self, comparison: Comparison) {
        self.comparison = comparison;
        self.stored_in_list = None;
        self.copied = None;
    }

    /// Reports that all stored records were read and are intact.
    pub fn verified(&mut self) {
        self.comparison.verified();
    }

    /// Reports that the store is damaged: no conclusions are drawn from it, and nothing is deleted.
    pub fn damaged(&mut self, why: String) {
        self.comparison.damaged(why);
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The number of records in the list that are not yet drained.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn waiting(&mut self) -> Result<u64, SourceError> {
        self.source.count()
    }

    /// Reports that drains keep failing: store and TPM are no longer consistent.
    pub fn fall_behind(&mut self) {
        // What cannot be counted cannot be drained, either.
        let waiting = self.source.count().unwrap_or(0);
        if waiting > 0 {
            self.comparison.behind(waiting);
        }
    }

    /// One round and how long it took; a failed one is given up.
    fn measured(
        &mut self,
        work: impl FnOnce(&mut Drainer, &mut Round) -> Result<(), DrainError>,
    ) -> Result<Round, DrainError> {
        let since = Instant::now();
        let mut round = Round::default();
        if let Err(error) = work(self, &mut round) {
            self.give_up(&error);
            return Err(error);
        }
        round.took = since.elapsed();
        Ok(round)
    }

    fn try_drain(&mut self, round: &mut Round) -> Result<(), DrainError> {
        /// PCRs that records name for the first time were not read before the drain.
        const MOST_READS: u32 = 4;
        if let Some((was, now)) = self.over {
            return Err(DrainError::TpmReset { was, now });
        }
        if self.comparison.is_damaged() && !self.adopt {
            // What is stored after the damage is lost when the file is restored from a backup.
            return Err(DrainError::Damaged);
        }
        // A list that was not seen yet may name others than these.
        let mut own = self.comparison.own_pcr().unwrap_or(IMA_PCR);
        let mut asked_for = self.comparison.compared();
        if matches!(self.comparison.verdict(), Verdict::NotExtended { .. })
            && ask(&mut self.tpm, asked_for, &mut self.tpm_error)
                .is_none_or(|pcrs| is_reset(own, &pcrs))
        {
            return self.try_copy(round);
        }
        if self.stored_in_list.is_none() {
            let place = self.find()?;
            if place.is_reset {
                return self.keep_unproven(place, round);
            }
            (own, asked_for) = (place.own, place.named);
            self.stored_in_list = Some(place.stored as u64);
        }
        for _ in 0..MOST_READS {
            // Everything that extended the TPM by now is in the store or in the list. If it does
            // not answer, records are stored anyway.
            let pcrs = ask(&mut self.tpm, asked_for, &mut self.tpm_error);
            if let Some(pcrs) = &pcrs
                && is_reset(own, pcrs)
                && self.waiting()? + self.store.len() > 0
            {
                // Records that no PCR proves must not be deleted.
                (self.stored_in_list, self.copied) = (None, None);
                return self.try_copy(round);
            }
            self.copied = None;
            self.comparison.begin(pcrs);
            // Records that are already staged are older than all others, whichever process staged
            // them. After their deletion, the records of the current list are still to be read.
            while self.take(round)? {}
            if self.comparison.compared().without(asked_for).is_empty() {
                break;
            }
            asked_for = self.comparison.compared();
        }
        self.judge()
    }

    /// Determines where the list continues the store. Refuses a list whose beginning is in neither.
    fn find(&mut self) -> Result<Place, DrainError> {
        let Drainer { source, store, comparison, tpm, .. } = self;
        let place = place::find(source.as_mut(), store, comparison, tpm)?;
        let is_freed = source.dialect() != Dialect::Follow;
        match place.beginning {
            Beginning::Known => self.is_ours = true,
            Beginning::Foreign if is_freed && !self.is_ours && !self.adopt => {
                // The reason can be a TPM reset.
                self.check_reset()?;
                return Err(DrainError::Foreign { list: self.source.name() });
            }
            Beginning::Foreign | Beginning::Unseen => {}
        }
        Ok(place)
    }

    fn try_copy(&mut self, round: &mut Round) -> Result<(), DrainError> {
        if let Some((was, now)) = self.over {
            return Err(DrainError::TpmReset { was, now });
        }
        let waiting = self.source.count()?;
        if self.copied == Some(waiting) {
            return Ok(());
        }
        let place = self.find()?;
        self.keep_place(&place, round)?;
        self.copied = Some(waiting);
        if place.is_reset {
            self.check_reset()?;
            self.comparison.not_extended(self.store.len());
            return Ok(());
        }
        self.judge()
    }

    /// Stores the records of a list whose TPM was never extended. Nothing is deleted.
    fn keep_unproven(&mut self, place: Place, round: &mut Round) -> Result<(), DrainError> {
        self.check_reset()?;
        let waiting = self.source.count()?;
        self.keep_place(&place, round)?;
        self.copied = Some(waiting);
        self.comparison.not_extended(self.store.len());
        Ok(())
    }

    /// Stores what is new in a list that was looked at.
    fn keep_place(&mut self, place: &Place, round: &mut Round) -> Result<(), DrainError> {
        let Drainer { store, comparison, tpm, over, .. } = self;
        let records = parse(&place.bytes)?;
        let (_, new) = records.split_at(place.stored.min(records.len()));
        same_boot(store, new, tpm, over)?;
        comparison.begin(place.pcrs.clone());
        keep(store, new)?;
        comparison.push(new);
        round.stored += new.len() as u64;
        // What is stored now may be deleted by anybody.
        self.position = None;
        self.counts_since_step = false;
        Ok(())
    }

    /// Drains one batch; returns whether more records from before the batch may be left.
    fn take(&mut self, round: &mut Round) -> Result<bool, DrainError> {
        let list_name = self.source.name();
        let Drainer { source, store, comparison, tpm, over, .. } = self;
        comparison.turn();
        let is_freed = source.dialect() != Dialect::Follow;
        let since = Instant::now();
        let mut bytes = Vec::new();
        let batch = source.take(&mut |chunk| bytes.extend_from_slice(chunk))?;
        let Some(batch) = batch else { return Ok(false) };
        let (was_pending, position) = (batch.was_pending(), batch.position());
        let records = parse(&bytes)?;
        let Some(count) = NonZeroU64::new(records.len() as u64) else { return Ok(false) };

        let stored = self.stored_in_list.unwrap_or(0);
        let skip = stored.min(count.get());
        let (old, new) = records.split_at(skip as usize);
        if !old.is_empty() {
            let tail = store.tail(stored as usize)?;
            // Other processes may have deleted records meanwhile.
            if !old.iter().zip(&tail).all(|(record, stored)| record.as_bytes() == stored) {
                return Err(DrainError::Moved);
            }
        }
        same_boot(store, new, tpm, over)?;
        // List and store were empty, so nothing was known.
        if !self.is_ours && !self.adopt && is_freed {
            match records.first() {
                Some(first) if first.begins_kernel() => {}
                // With records, the TPM decides.
                _ if tpm.is_some() => return Err(DrainError::Moved),
                _ => return Err(DrainError::Foreign { list: list_name }),
            }
            self.is_ours = true;
        }
        // Before the first record of an epoch there is nothing that a kernel could have deleted.
        let taken = self.position.or(store.is_empty().then_some(0));
        keep(store, new)?;
        if let (Some(taken), Some(found)) = (taken, position)
            && found > taken
        {
            comparison.gap(found - taken);
        }
        self.position = position.map(|position| position + count.get());
        let deleted = batch.delete(count);
        round.holds.push(since.elapsed());
        // Last, because no caller waits for it.
        comparison.push(new);
        round.stored += new.len() as u64;
        round.already_stored += skip;
        match deleted {
            // They are gone, with or without memory for a new hash table.
            Ok(()) | Err(SourceError::NoMemory) => {}
            Err(error) => return Err(error.into()),
        }
        if is_freed {
            round.deleted += count.get();
            round.deleted_bytes += bytes.len() as u64;
        }
        self.stored_in_list = Some(stored - skip);
        Ok(was_pending)
    }

    fn judge(&mut self) -> Result<(), DrainError> {
        let deleted = self.source.trimmed()?;
        // Where nothing is left, no batch tells.
        if let (Some(taken), Some(deleted)) = (self.position, deleted)
            && deleted > taken
        {
            self.comparison.gap(deleted - taken);
            self.position = Some(deleted);
        }
        let circumstances = Circumstances {
            nobody_deletes: !self.source.others_may_delete(),
            gaps_are_seen: self.counts_since_step,
            holders: self.others(),
        };
        if self.comparison.diverges() {
            self.check_reset()?;
            if self.comparison.is_resumed() {
                // Altered records in the store would have the same effect, so they are read first.
                return Ok(());
            }
        }
        if self.tpm.is_some() && self.tpm_error.is_none() {
            self.compared = Some(now());
        }
        let Drainer { tpm, tpm_error, comparison, store, diverged, .. } = self;
        let pcrs = comparison.compared();
        match comparison.judge(&circumstances, || ask(tpm, pcrs, tpm_error)) {
            Judgement::Nothing => {}
            Judgement::Diverged(divergence) => {
                let note = Note {
                    index: divergence.before,
                    after: divergence.after,
                    time: divergence.time,
                    kind: divergence.cause.to_string(),
                    text: divergence.text,
                };
                store.note(&note)?;
                diverged.push(note);
            }
            Judgement::Refuted => {
                for note in diverged.drain(..) {
                    tracing::info!(
                        "all records replay to the TPM's PCRs: what was noted about index {} is \
                         withdrawn ({})",
                        note.index,
                        note.text
                    );
                    let why = "all records replay to the TPM's PCRs";
                    store.withdraw(&note, now(), why)?;
                }
            }
        }
        self.counts_since_step = self.position.is_some();
        Ok(())
    }

    /// A TPM that was reset is no reason to say that anything is missing.
    fn check_reset(&mut self) -> Result<(), DrainError> {
        let was = self.store.epoch().and_then(|epoch| epoch.id.reset_count);
        let (Some(was), Some(tpm)) = (was, &mut self.tpm) else { return Ok(()) };
        not_reset(was, tpm.reset_count().map_err(DrainError::Tpm)?, &mut self.over)
    }

    /// The other processes that have the list's files open, as text.
    fn others(&self) -> String {
        if !self.comparison.diverges() {
            return String::new();
        }
        let mut holders = self.source.holders();
        holders.found.retain(|holder| holder.pid != std::process::id());
        if holders.found.is_empty() { String::new() } else { holders.to_string() }
    }

    /// After a failure, it may be unknown whether the list was shortened; determine it before
    /// continuing.
    fn give_up(&mut self, error: &DrainError) {
        self.store.rollback();
        self.stored_in_list = None;
        self.copied = None;
        match error {
            DrainError::Store(StoreError::WrongDigest { index, .. }) => {
                self.comparison.altered(*index, error.to_string());
            }
            DrainError::Tpm(error) => self.tpm_error = Some(error.clone()),
            _ => {}
        }
    }
}

/// The current values of these PCRs, if there is a TPM and it answers.
fn ask(
    tpm: &mut Option<Box<dyn AskTpm>>,
    pcrs: PcrSet,
    error: &mut Option<String>,
) -> Option<Vec<PcrTarget>> {
    let answer = tpm.as_mut()?.pcrs(pcrs);
    *error = answer.as_ref().err().cloned();
    answer.ok()
}

/// A kernel begins with a `boot_aggregate`. If that kernel was not started by kexec, the TPM was
/// reset for it.
fn same_boot(
    store: &Store,
    new: &[Record<'_>],
    tpm: &mut Option<Box<dyn AskTpm>>,
    over: &mut Option<(u32, u32)>,
) -> Result<(), DrainError> {
    let was = store.epoch().and_then(|epoch| epoch.id.reset_count);
    let (Some(was), Some(tpm)) = (was, tpm) else { return Ok(()) };
    if !new.iter().any(Record::begins_kernel) {
        return Ok(());
    }
    not_reset(was, tpm.reset_count().map_err(DrainError::Tpm)?, over)
}

fn not_reset(was: u32, now: Option<u32>, over: &mut Option<(u32, u32)>) -> Result<(), DrainError> {
    match now {
        Some(now) if now != was => {
            *over = Some((was, now));
            Err(DrainError::TpmReset { was, now })
        }
        _ => Ok(()),
    }
}
