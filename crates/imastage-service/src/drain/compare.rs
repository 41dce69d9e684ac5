//! The comparison of store and TPM, and the place of a divergence.

use ima_log::{Bank, ListReplay, PcrSet, PcrTarget, Record};
use imastage_client::{
    text::names,
    wire::{Cause, Divergence, Verdict},
};

use crate::{clock::now, drain::banks::Banks};

/// Compares stored records with the TPM at each drain.
#[derive(Clone, Debug)]
pub struct Comparison {
    banks: Banks,
    verdict: Verdict,
    /// The number of records that replayed to the TPM's PCR at the last comparison.
    consistent: u64,
    /// The number of records stored when the list was last read: others can have deleted records
    /// there, and not after it.
    boundary: u64,
    /// The first `boot_aggregate` among the records of this drain, other than the epoch's own.
    rebooted: Option<u64>,
    /// The place at which others deleted records according to the kernel's counter, and their
    /// number.
    gap: Option<(u64, u64)>,
    is_asked: bool,
    /// Records before an anchor were not read since the service started.
    is_resumed: bool,
}

/// The result of a comparison at the end of a drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing to be noted.
    Nothing,
    /// TPM and store have diverged: to be noted permanently.
    Diverged(Divergence),
    /// All stored records replay to the TPM's PCR in every bank: an earlier note of a divergence is
    /// refuted (for example because a file was restored).
    Refuted,
}

/// Circumstances that determine the cause of a divergence.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// No process can delete records of this list.
    pub nobody_deletes: bool,
    /// Deletion by others is noticed independent of the PCR: see [`Comparison::gap`].
    pub gaps_are_seen: bool,
    /// The processes that have the list's files open, as text; empty if none is visible.
    pub holders: String,
}

impl Comparison {
    /// `banks` have replayed all stored records; `verdict` is the known one of the epoch, and `consistent` the
    /// number of records that once replayed to the TPM's PCR.
    pub fn new(banks: Banks, verdict: Verdict, consistent: u64) -> Comparison {
        Comparison {
            banks,
            verdict,
            consistent,
            boundary: 0,
            rebooted: None,
            gap: None,
            is_asked: false,
            is_resumed: false,
        }
    }

    /// As [`Comparison::new`], but `banks` resumed from an anchor: until the records before it are
    /// read, nothing that depends on them is reported.
    pub fn resumed(banks: Banks, verdict: Verdict, consistent: u64) -> Comparison {
        Comparison { is_resumed: true, ..Comparison::new(banks, verdict, consistent) }
    }

    /// Whether stored records were not read since the service started.
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Reports that all stored records were read and are intact.
    pub fn verified(&mut self) {
        self.is_resumed = false;
    }

    /// Whether TPM and store agree.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The number of records that replayed to the TPM's PCR at the last comparison.
    pub fn consistent(&self) -> u64 {
        self.consistent
    }

    /// The TPM's last known PCR values.
    pub fn tpm(&self) -> &[PcrTarget] {
        self.banks.targets()
    }

    /// The PCR values to which stored records replay.
    pub fn replay(&self) -> &ListReplay {
        self.banks.replay()
    }

    /// The list's own PCR; `None` without a record.
    pub fn own_pcr(&self) -> Option<u32> {
        self.banks.replay().pcr()
    }

    /// The PCRs that are compared.
    pub fn compared(&self) -> PcrSet {
        self.banks.compared()
    }

    /// The possible states of the banks after the stored records, the strongest bank first.
    pub fn candidates(&self) -> Vec<ListReplay> {
        self.banks.candidates()
    }

    /// Whether store and TPM diverged.
    pub fn has_diverged(&self) -> bool {
        matches!(self.verdict, Verdict::Diverged(_))
    }

    /// Whether the store is damaged.
    pub fn is_damaged(&self) -> bool {
        matches!(self.verdict, Verdict::Damaged { .. })
    }

    /// Whether store and TPM would diverge if the drain ended now.
    pub fn diverges(&self) -> bool {
        let agrees = |records| self.banks.apart(records).is_empty();
        let diverges = self.is_asked && !self.banks.agreed().is_some_and(agrees);
        !self.has_diverged() && !self.is_damaged() && (self.gap.is_some() || diverges)
    }

    /// Starts a drain. `pcrs` was read before the list, so everything that extended the TPM by then
    /// is stored or will be pushed; `None` without a TPM.
    pub fn begin(&mut self, pcrs: Option<Vec<PcrTarget>>) {
        self.turn();
        self.rebooted = None;
        self.is_asked = pcrs.is_some();
        if let Some(pcrs) = pcrs {
            self.banks.look_for(pcrs);
        }
    }

    /// Reports that the next records are read from the list now.
    pub fn turn(&mut self) {
        self.boundary = self.banks.records();
    }

    /// Reports that others deleted the next `count` records.
    pub fn gap(&mut self, count: u64) {
        self.gap = self.gap.or(Some((self.banks.records(), count)));
    }

    /// Adds records that were stored.
    pub fn push(&mut self, records: &[Record<'_>]) {
        for (at, record) in (self.banks.records()..).zip(records) {
            if at > 0 && self.rebooted.is_none() && record.begins_kernel() {
                self.rebooted = Some(at);
            }
        }
        self.banks.push(records);
    }

    /// Ends a drain that stored the whole list, and determines the verdict. `now` reads the TPM
    /// again; `None` if it does not answer.
    pub fn judge(
        &mut self,
        circumstances: &Circumstances,
        now: impl FnOnce() -> Option<Vec<PcrTarget>>,
    ) -> Judgement {
        if self.is_damaged() {
            // Unread records cannot be distinguished from deleted ones.
            return Judgement::Nothing;
        }
        if matches!(self.verdict, Verdict::Altered { .. } | Verdict::NotExtended { .. }) {
            // The record is intact now, and extended the TPM.
            self.verdict = Verdict::Unchecked;
        }
        if self.gap.is_some() && !self.has_diverged() {
            // The PCR will show it later.
            return Judgement::Diverged(self.part(Vec::new(), circumstances));
        }
        if !self.is_asked {
            return Judgement::Nothing;
        }
        let agreed = self.banks.agreed();
        let apart = agreed.map(|records| self.banks.apart(records)).unwrap_or_default();
        let records = match agreed {
            Some(records) if apart.is_empty() => records,
            // Once something is missing, no later PCR of this epoch can be reached.
            _ if self.has_diverged() => return Judgement::Nothing,
            _ => {
                // If no bank agrees, the cause is not a bank.
                let is_all = self.banks.is_all_diverging(&apart);
                let apart = if is_all { Vec::new() } else { apart };
                return Judgement::Diverged(self.part(apart, circumstances));
            }
        };
        self.banks.settle(records);
        let judgement = match self.has_diverged() {
            true => Judgement::Refuted,
            false => Judgement::Nothing,
        };
        self.gap = None;
        self.consistent = self.later(records, now());
        self.verdict = Verdict::Consistent { records: self.consistent };
        judgement
    }

    /// If nothing is measured at the moment, the TPM's value is that after the last record.
    fn later(&mut self, records: u64, now: Option<Vec<PcrTarget>>) -> u64 {
        let Some(now) = now else { return records };
        self.banks.look_for(now);
        let agreed = self.banks.agreed().filter(|agreed| self.banks.apart(*agreed).is_empty());
        agreed.map_or(records, |agreed| agreed.max(records))
    }

    /// Ends a drain that failed: `waiting` records are still in the list.
    pub fn behind(&mut self, waiting: u64) {
        if let Verdict::Consistent { records } | Verdict::Lagging { records, .. } = self.verdict {
            self.verdict = Verdict::Lagging { records, waiting };
        }
    }

    /// Ends a drain that found the record at `index` altered.
    pub fn altered(&mut self, index: u64, why: String) {
        if !self.has_diverged() && !self.is_damaged() {
            self.verdict = Verdict::Altered { index, why };
        }
    }

    /// Reports that the list's own PCR is zero in every bank although there are records: nothing is
    /// proven.
    pub fn not_extended(&mut self, records: u64) {
        if self.is_damaged() || self.has_diverged() {
            return;
        }
        let pcr = self.banks.pcr();
        let banks = self.banks.targets().iter().map(|target| target.value.bank());
        let cause = if self.banks.began_without_tpm() {
            "IMA found no TPM when it started (its boot_aggregate is zero): build the TPM's driver \
             into the kernel, or from Linux 7.3 on set CONFIG_IMA_INIT_LATE_SYNC=y"
        } else {
            "this is not the TPM that the kernel uses (give that one with --tpm), or its PCRs were \
             reset behind the kernel's back"
        };
        let why = format!(
            "the kernel does not extend this TPM: PCR {pcr} is zero in every bank ({}) and there are \
             {records} records: {cause}; no record is proven, and none is deleted from the list",
            names(banks)
        );
        self.verdict = Verdict::NotExtended { why };
    }

    /// Reports that the store is damaged: no conclusions are drawn from it.
    pub fn damaged(&mut self, why: String) {
        self.verdict = Verdict::Damaged { why };
    }

    /// The divergence of TPM and store, which is limited to `apart` if that is not empty.
    fn part(&mut self, apart: Vec<(Bank, u32)>, circumstances: &Circumstances) -> Divergence {
        // A list loses records only at its beginning. Missing records therefore lie before records
        // that were read together, of this drain or of an earlier one since the TPM last agreed.
        let (boundary, end) = (self.boundary, self.banks.records());
        let Circumstances { nobody_deletes, gaps_are_seen, holders } = circumstances;
        let pcrs = names(self.banks.compared().iter());
        let unlogged = &format!(
            "PCR {pcrs} was extended here and no record tells with what, or the TPM refused to \
             be extended with a record (`imastage replay` can tell which)"
        );
        let missing = "records are missing here: someone else deleted them";
        let (cause, before, mut text) = match (self.gap, self.rebooted) {
            (Some((at, count)), _) => (Cause::Missing, at, format!("{missing} ({count} records)")),
            // A divergence of one bank alone is not caused by records.
            _ if !apart.is_empty() => (Cause::UnloggedExtend, end, unlogged.to_owned()),
            // A kernel that receives no list, or a part of it, starts its own after that.
            (None, Some(boot)) => {
                let text = "records are missing here: another kernel was started, by kexec, and it \
                            did not get them";
                (Cause::LostAtKexec, boot, text.to_owned())
            }
            (None, None) if *nobody_deletes || *gaps_are_seen => {
                (Cause::UnloggedExtend, end, unlogged.to_owned())
            }
            (None, None) => {
                let text = format!(
                    "{missing}; or PCR {pcrs} was extended, here or before index {end}, and no record \
                     tells with what"
                );
                (Cause::MissingOrUnloggedExtend, boundary, text)
            }
        };
        let after = match self.gap {
            Some((at, _)) => at,
            None => self.consistent,
        };
        if !apart.is_empty() {
            let which = names(apart.iter().map(|(bank, pcr)| format!("PCR {pcr} of bank {bank}")));
            text += &format!(" ({which} alone)");
        }
        if !holders.is_empty() {
            text += &format!("; the list's files are open in {holders}");
        }
        let divergence =
            Divergence { after: after.checked_sub(1), before, cause, time: now(), text };
        self.verdict = Verdict::Diverged(divergence.clone());
        divergence
    }
}
