//! The PCR values of every bank to which records replay, and those of the TPM.

use ima_log::{Bank, BankPcrs, IMA_PCR, ListReplay, PcrSet, PcrTarget, Record};

/// Replays records in every bank of the TPM to every PCR that they name. The way in which the
/// kernel extends a bank is determined by comparison ([`ListReplay`]).
#[derive(Clone, Debug)]
pub struct Banks {
    replay: ListReplay,
    targets: Vec<PcrTarget>,
    /// Whether the list starts with a zero `boot_aggregate`: its kernel found no TPM.
    began_without_tpm: bool,
}

/// An upper limit of the number of records by which list and PCR can differ at one moment.
pub const RECENT: usize = 64;

impl Banks {
    /// PCRs after `records` records, the first of which named `pcr`.
    pub fn resume(states: Vec<BankPcrs>, records: u64, pcr: Option<u32>) -> Banks {
        Banks::of(ListReplay::resume(states, records, pcr))
    }

    /// From a replay that includes at least the list's last [`RECENT`] records.
    pub fn of(replay: ListReplay) -> Banks {
        Banks { replay: replay.remember(RECENT), targets: Vec::new(), began_without_tpm: false }
    }

    /// Sets whether the list's first record, which was replayed already, shows that its kernel
    /// found no TPM.
    #[must_use]
    pub fn beginning_without_tpm(self, began_without_tpm: bool) -> Banks {
        Banks { began_without_tpm, ..self }
    }

    /// The replay.
    pub fn replay(&self) -> &ListReplay {
        &self.replay
    }

    /// The number of replayed records.
    pub fn records(&self) -> u64 {
        self.replay.records()
    }

    /// The list's own PCR: the one that its first record names.
    pub fn pcr(&self) -> u32 {
        self.replay.pcr().unwrap_or(IMA_PCR)
    }

    /// Whether the list's kernel found no TPM.
    pub fn began_without_tpm(&self) -> bool {
        self.began_without_tpm
    }

    /// The PCRs to be compared: the list's own, and all that records name.
    pub fn compared(&self) -> PcrSet {
        comparable(self.pcr(), self.replay.named())
    }

    /// The TPM's last known values.
    pub fn targets(&self) -> &[PcrTarget] {
        &self.targets
    }

    /// Looks for these values, also among those after the last records.
    pub fn look_for(&mut self, targets: Vec<PcrTarget>) {
        self.replay.look_for(&targets);
        self.targets = targets;
    }

    /// Replays the next records: two hashes per record, bank and way.
    pub fn push(&mut self, records: &[Record<'_>]) {
        if let (0, Some(first)) = (self.records(), records.first()) {
            self.began_without_tpm = first.says_no_tpm();
        }
        self.replay.push_all(records);
    }

    /// The number of records that replays to most of the values looked for.
    pub fn agreed(&self) -> Option<u64> {
        match self.replay.agreement() {
            Some(prefix) => Some(prefix.to),
            None => self.replay.best(),
        }
    }

    /// The PCRs in which `agreed` records do not replay to the value looked for.
    pub fn apart(&self, agreed: u64) -> Vec<(Bank, u32)> {
        self.replay.apart(agreed)
    }

    /// Whether the list's own PCR differs in every bank, so that records are wrong, and not a bank.
    pub fn is_all_diverging(&self, apart: &[(Bank, u32)]) -> bool {
        let own = self.pcr();
        let mut banks = self.targets.iter().filter(|target| target.pcr == own);
        banks.all(|target| apart.contains(&(target.value.bank(), own)))
    }

    /// Rules out the ways to extend banks that do not match the TPM. Nothing is proven before the
    /// first record.
    pub fn settle(&mut self, records: u64) {
        if records > 0 {
            self.replay.settle(records);
        }
    }

    /// Each bank's PCRs in all remaining ways, starting with the bank whose hash is strongest for
    /// its cost.
    pub fn candidates(&self) -> Vec<ListReplay> {
        let mut banks: Vec<_> = self.replay.banks().iter().collect();
        banks.sort_by_key(|bank| match bank.bank() {
            Bank::Sha256 => 0,
            Bank::Sha1 => 2,
            _ => 1,
        });
        let alone = |bank: &&ima_log::BankReplay| {
            ListReplay::resume(bank.ways().cloned(), self.records(), self.replay.pcr())
        };
        banks.iter().map(alone).collect()
    }
}

/// The PCRs of a TPM that can be compared with a list: its own, and of the others that its records
/// name those that only the kernel extends or sets. Firmware and boot loaders extend 0 to 9 (TCG PC
/// Client Platform Firmware Profile, PCR usage), a dynamic launch sets 17 to 22.
pub fn comparable(own: u32, named: PcrSet) -> PcrSet {
    let others = named.iter().filter(|pcr| matches!(pcr, 10..=16 | 23));
    others.chain([own]).collect()
}

/// Whether PCR `own` was never extended in any bank.
pub fn is_reset(own: u32, targets: &[PcrTarget]) -> bool {
    let mut own = targets.iter().filter(|target| target.pcr == own).peekable();
    own.peek().is_some() && own.all(|target| target.value.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ima_log::{Digest, Extend, RecordBuf};

    fn target(pcr: u32, value: Digest) -> PcrTarget {
        PcrTarget { pcr, value }
    }

    #[test]
    fn firmware_extends_what_is_not_compared() {
        let named: PcrSet = [0, 7, 9, 10, 12, 17, 23, 31].into_iter().collect();
        assert_eq!(comparable(8, named).iter().collect::<Vec<_>>(), [8, 10, 12, 23]);
    }

    #[test]
    fn case_03_a_list_is_compared_in_the_pcr_it_names() {
        let list: Vec<RecordBuf> =
            (0..4u8).map(|n| RecordBuf::ima_ng(11, &Bank::Sha256.hash(&[]), &[b'a' + n])).collect();
        let mut tpm = BankPcrs::new(Bank::Sha256, Extend::Own);
        let mut banks = Banks::of(ListReplay::new([Bank::Sha256]));
        banks.push(&list.iter().map(RecordBuf::record).collect::<Vec<_>>());
        assert_eq!((banks.pcr(), banks.compared().iter().collect::<Vec<_>>()), (11, vec![11]));
        banks.look_for(vec![target(11, tpm.value(11))]);
        assert!(is_reset(banks.pcr(), banks.targets()));
        list.iter().for_each(|record| tpm.extend(&record.record()));
        banks.look_for(vec![target(11, tpm.value(11))]);
        assert!(!is_reset(banks.pcr(), banks.targets()));
        assert_eq!((banks.agreed(), banks.apart(4)), (Some(4), vec![]));
    }

    #[test]
    fn case_02_a_record_of_another_pcr_is_proven_or_refuted() {
        let file = Bank::Sha256.hash(&[]);
        let list =
            [(10, b"a"), (11, b"b"), (10, b"c")].map(|(pcr, n)| RecordBuf::ima_ng(pcr, &file, n));
        let mut tpm = BankPcrs::new(Bank::Sha256, Extend::Own);
        list.iter().for_each(|record| tpm.extend(&record.record()));
        let mut banks = Banks::of(ListReplay::new([Bank::Sha256]));
        banks.push(&list.iter().map(RecordBuf::record).collect::<Vec<_>>());
        let right = [10, 11].map(|pcr| target(pcr, tpm.value(pcr)));
        banks.look_for(right.to_vec());
        assert_eq!((banks.agreed(), banks.apart(3)), (Some(3), vec![]));
        let wrong = target(11, tpm.value(11).extended_with(&Digest::zero(Bank::Sha256)));
        banks.look_for(vec![right[0], wrong]);
        let agreed = banks.agreed().unwrap();
        let apart = banks.apart(agreed);
        assert_eq!((agreed, &apart), (3, &vec![(Bank::Sha256, 11)]));
        assert!(!banks.is_all_diverging(&apart));
    }

    #[test]
    fn before_the_first_record_nothing_is_ruled_out() {
        let mut banks = Banks::of(ListReplay::new([Bank::Sha256]));
        banks.look_for(vec![target(10, Digest::zero(Bank::Sha256))]);
        assert_eq!(banks.agreed(), Some(0));
        banks.settle(0);
        assert_eq!(banks.replay().extend_kind(Bank::Sha256), None);
    }
}
