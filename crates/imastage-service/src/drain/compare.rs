//! Whether store and TPM agree, and since when not.

use ima_log::{Bank, ListReplay, PcrSet, PcrTarget, Record};
use imastage_client::{
    text::names,
    wire::{Cause, Divergence, Verdict},
};

use crate::{clock::now, drain::banks::Banks};

/// Compares what is stored with the TPM, drain after drain.
#[derive(Clone, Debug)]
pub struct Comparison {
    banks: Banks,
    verdict: Verdict,
    /// How many records led to the TPM's PCR when it was last compared.
    consistent: u64,
    /// How many records were stored when the list was last turned to: others may have deleted some
    /// there, and nowhere after.
    boundary: u64,
    /// The first `boot_aggregate` but the epoch's own, of the records of this drain.
    rebooted: Option<u64>,
    /// Where the kernel's own count tells that others deleted records, and how many.
    gap: Option<(u64, u64)>,
    is_asked: bool,
    /// Records before an anchor were not read since the service started.
    is_resumed: bool,
}

/// What the end of a drain has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing that is to be kept.
    Nothing,
    /// TPM and store have diverged: to be noted for good.
    Diverged(Divergence),
    /// All that is stored leads to the TPM's PCR in every bank: what was noted of a divergence before
    /// is refuted (a file that was restored, for one).
    Refuted,
}

/// What is known about how a list and the TPM may have diverged.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// Nobody can delete records of this list.
    pub nobody_deletes: bool,
    /// Others who delete records are noticed by more than the PCR: see [`Comparison::gap`].
    pub gaps_are_seen: bool,
    /// Who has the list's files open, in words; empty if nobody is seen.
    pub holders: String,
}

impl Comparison {
    /// `banks` have replayed all that is stored; `verdict` is what is known of the epoch, and
    /// `consistent` how many records once led to the TPM's PCR.
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

    /// Says that all stored records were read, and are whole.
    pub fn verified(&mut self) {
        self.is_resumed = false;
    }

    /// Whether TPM and store agree.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// How many records led to the TPM's PCR when it was last compared.
    pub fn consistent(&self) -> u64 {
        self.consistent
    }

    /// The PCRs as the TPM had them last.
    pub fn tpm(&self) -> &[PcrTarget] {
        self.banks.targets()
    }

    /// The PCRs as stored records replay.
    pub fn replay(&self) -> &ListReplay {
        self.banks.replay()
    }

    /// The list's own PCR, once there is a record.
    pub fn own_pcr(&self) -> Option<u32> {
        self.banks.replay().pcr()
    }

    /// The PCRs that are compared.
    pub fn compared(&self) -> PcrSet {
        self.banks.compared()
    }

    /// The ways in which the next records may extend banks, bank by bank, the most telling first.
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

    /// Whether a drain that ended now would find that store and TPM part.
    pub fn diverges(&self) -> bool {
        let agrees = |records| self.banks.apart(records).is_empty();
        let diverges = self.is_asked && !self.banks.agreed().is_some_and(agrees);
        !self.has_diverged() && !self.is_damaged() && (self.gap.is_some() || diverges)
    }

    /// Begins a drain. `pcrs` was read before the list was touched, so whatever the TPM was extended
    /// with by then is stored or will be pushed; `None` if there is no TPM to ask.
    pub fn begin(&mut self, pcrs: Option<Vec<PcrTarget>>) {
        self.turn();
        self.rebooted = None;
        self.is_asked = pcrs.is_some();
        if let Some(pcrs) = pcrs {
            self.banks.look_for(pcrs);
        }
    }

    /// Says that the list is turned to now, for the next records.
    pub fn turn(&mut self) {
        self.boundary = self.banks.records();
    }

    /// Says that others deleted `count` records that would have come next.
    pub fn gap(&mut self, count: u64) {
        self.gap = self.gap.or(Some((self.banks.records(), count)));
    }

    /// Takes records that were stored.
    pub fn push(&mut self, records: &[Record<'_>]) {
        for (at, record) in (self.banks.records()..).zip(records) {
            if at > 0 && self.rebooted.is_none() && record.begins_kernel() {
                self.rebooted = Some(at);
            }
        }
        self.banks.push(records);
    }

    /// Ends a drain that stored everything there was: decides. `now` reads the TPM again; `None` if
    /// it does not answer.
    pub fn judge(
        &mut self,
        circumstances: &Circumstances,
        now: impl FnOnce() -> Option<Vec<PcrTarget>>,
    ) -> Judgement {
        if self.is_damaged() {
            // What is not there cannot be told from what others deleted.
            return Judgement::Nothing;
        }
        if matches!(self.verdict, Verdict::Altered { .. } | Verdict::NotExtended { .. }) {
            // This time it was read as it was measured, and the TPM was extended.
            self.verdict = Verdict::Unchecked;
        }
        if self.gap.is_some() && !self.has_diverged() {
            // Sooner or later the PCR will show it.
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
                // Where no bank agrees it is no matter of banks.
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

    /// When nothing is measured at the moment, the TPM's value is that of the last record.
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

    /// Says that the list's own PCR is zero in every bank although there are records: nothing is
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

    /// Says that the store is damaged: nothing is concluded from it any more.
    pub fn damaged(&mut self, why: String) {
        self.verdict = Verdict::Damaged { why };
    }

    /// TPM and store have diverged, in `apart` alone if that is not empty.
    fn part(&mut self, apart: Vec<(Bank, u32)>, circumstances: &Circumstances) -> Divergence {
        // A list loses records only at its beginning: what is missing is missing where records
        // that were taken together follow what was stored, or where earlier ones did since the
        // TPM last agreed.
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
            // One bank alone has nothing to do with records.
            _ if !apart.is_empty() => (Cause::UnloggedExtend, end, unlogged.to_owned()),
            // A kernel that gets no list, or not all of it, begins its own after what it got.
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
