//! Replay of a list to every PCR that it names.

use alloc::{collections::VecDeque, vec::Vec};

use crate::{Bank, BankPcrs, Digest, Event, Extend, PcrSet, Record};

/// Replays a measurement list to every PCR that its records name, in each bank, in each way in
/// which kernels extend a bank, and finds the number of records that replays to given PCR values.
///
/// A list does not show how its kernel extends a bank ([`Extend`]), so all ways are followed until
/// PCR values decide ([`ListReplay::settle`]). After a kexec, the next kernel may extend banks in
/// another way: at each `boot_aggregate` except the first, each way branches. A violation
/// distinguishes kernels before 5.8. At most [`ListReplay::MAX_WAYS`] are followed per bank; beyond
/// that, a kernel is assumed to extend it like the kernel before.
///
/// A record costs two hashes per bank and way. Memory does not grow with the list.
///
/// ```
/// use ima_log::{Bank, BankPcrs, Extend, ListReplay, PcrTarget, RecordBuf};
///
/// let file = Bank::Sha256.hash(&[]);
/// let list = [(10, b"/a"), (11, b"/b"), (10, b"/c")];
/// let list = list.map(|(pcr, name)| RecordBuf::ima_ng(pcr, &file, name));
/// let mut tpm = BankPcrs::new(Bank::Sha256, Extend::Sha1Padded);
/// list[..2].iter().for_each(|record| tpm.extend(&record.record()));
///
/// let mut replay = ListReplay::new([Bank::Sha256]);
/// replay.look_for(&[10, 11].map(|pcr| PcrTarget { pcr, value: tpm.value(pcr) }));
/// list.iter().for_each(|record| replay.push(&record.record()));
/// let found = replay.agreement().unwrap();
/// assert_eq!((found.from, found.to), (2, 2));
/// replay.settle(found.from);
/// assert_eq!(replay.extend_kind(Bank::Sha256), Some(Extend::Sha1Padded));
/// ```
#[derive(Clone, Debug)]
pub struct ListReplay {
    banks: Vec<BankReplay>,
    targets: Vec<PcrTarget>,
    /// The number of last records whose PCR values are kept.
    remembered: usize,
    records: u64,
    violations: u64,
    pcr: Option<u32>,
    named: PcrSet,
}

/// One bank's PCRs in each way in which they may have been extended.
#[derive(Clone, Debug)]
pub struct BankReplay {
    bank: Bank,
    /// Never empty; the most likely first.
    ways: Vec<Way>,
}

/// The value of a PCR of a TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcrTarget {
    /// The PCR's index.
    pub pcr: u32,
    /// Its value; the digest's bank is the PCR's.
    pub value: Digest,
}

/// The lengths of prefixes of the list that replay to given values: shorter and longer prefixes
/// replay to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The smallest number of records.
    pub from: u64,
    /// The largest number of records: those after [`Prefix::from`] extend none of the PCRs.
    pub to: u64,
}

#[derive(Clone, Debug)]
struct Way {
    pcrs: BankPcrs,
    /// Whether a violation has distinguished [`Extend::Sha1Padded`] and
    /// [`Extend::Sha1PaddedViolations`].
    seen_violation: bool,
    /// The one of these two that the kernel before used, unless this one is known to differ.
    likely: Extend,
    /// For each target of the bank, the records that replay to it; the end is open while they do.
    held: Vec<Option<Held>>,
    /// The values after the last records, the oldest first.
    recent: VecDeque<(u64, BankPcrs)>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    from: u64,
    to: Option<u64>,
}

impl ListReplay {
    /// The maximum number of ways that are followed per bank.
    pub const MAX_WAYS: usize = 32;

    /// Starts with PCRs after a TPM reset.
    pub fn new(banks: impl IntoIterator<Item = Bank>) -> ListReplay {
        ListReplay::resume(banks.into_iter().flat_map(BankPcrs::ways), 0, None)
    }

    /// As [`ListReplay::new`] for banks that are known, or assumed, to be extended with their own
    /// hash, at half the cost.
    pub fn with_own_hash(banks: impl IntoIterator<Item = Bank>) -> ListReplay {
        let own = |bank| BankPcrs::new(bank, Extend::Own);
        ListReplay::resume(banks.into_iter().map(own), 0, None)
    }

    /// Resumes after `records` records, the first of which names PCR `pcr`. `states` are the
    /// possible states of the banks' PCRs: several of one bank are its ways, the most likely first.
    pub fn resume(
        states: impl IntoIterator<Item = BankPcrs>,
        records: u64,
        pcr: Option<u32>,
    ) -> ListReplay {
        let mut replay = ListReplay {
            banks: Vec::new(),
            targets: Vec::new(),
            remembered: 0,
            records,
            violations: 0,
            pcr,
            named: pcr.into_iter().collect(),
        };
        for pcrs in states {
            replay.named = replay.named.union(pcrs.values().map(|(pcr, _)| pcr).collect());
            let bank = pcrs.bank();
            let way = Way {
                likely: pcrs.extend_kind(),
                pcrs,
                seen_violation: false,
                held: Vec::new(),
                recent: VecDeque::new(),
            };
            match replay.banks.iter_mut().find(|replay| replay.bank == bank) {
                Some(known) if known.ways.len() < ListReplay::MAX_WAYS => known.ways.push(way),
                Some(_) => {}
                None => replay.banks.push(BankReplay { bank, ways: alloc::vec![way] }),
            }
        }
        replay
    }

    /// Keeps the PCR values after each of the last `records` records, so that
    /// [`ListReplay::look_for`] finds values that were reached before.
    #[must_use]
    pub fn remember(mut self, records: usize) -> ListReplay {
        self.remembered = records;
        self
    }

    /// Looks for these values instead of earlier ones: in the current state, among the kept values,
    /// and after each further record. Values of banks that are not replayed are ignored.
    pub fn look_for(&mut self, targets: &[PcrTarget]) {
        self.targets = targets.to_vec();
        for bank in &mut self.banks {
            let targets = targets_of(targets, bank.bank);
            for way in &mut bank.ways {
                way.held =
                    targets.clone().map(|target| way.reached(target, self.records)).collect();
            }
        }
    }

    /// Adds the list's next record.
    pub fn push(&mut self, record: &Record<'_>) {
        self.push_knowing(record, None, true);
    }

    /// Adds the list's next records; only values after the last ones are kept.
    pub fn push_all(&mut self, records: &[Record<'_>]) {
        for (at, record) in records.iter().enumerate() {
            self.push_knowing(record, None, records.len() - at <= self.remembered);
        }
    }

    /// As [`ListReplay::push`], for a record whose printed digest was checked
    /// ([`Record::digest_is_right`]): a SHA-1 digest is not computed again.
    pub fn push_checked(&mut self, record: &Record<'_>) {
        let is_sha1 = record.format().bank == Bank::Sha1;
        self.push_knowing(record, is_sha1.then(|| record.printed_digest()), true);
    }

    /// The number of records so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The number of violations among the added records.
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// The list's own PCR: the one that its first record names, and that its kernel extends
    /// (`CONFIG_IMA_MEASURE_PCR_IDX`) unless a policy rule has `pcr=`. `None` before the first
    /// record.
    pub fn pcr(&self) -> Option<u32> {
        self.pcr
    }

    /// Every PCR that records name.
    pub fn named(&self) -> PcrSet {
        self.named
    }

    /// The banks that are replayed.
    pub fn banks(&self) -> &[BankReplay] {
        &self.banks
    }

    /// One of them.
    pub fn bank(&self, bank: Bank) -> Option<&BankReplay> {
        self.banks.iter().find(|replay| replay.bank == bank)
    }

    /// The way in which the bank is extended now; `None` while that is unknown, or if the bank is
    /// not replayed.
    pub fn extend_kind(&self, bank: Bank) -> Option<Extend> {
        let ways = &self.bank(bank)?.ways;
        let first = ways.first()?.pcrs.extend_kind();
        ways.iter().all(|way| way.pcrs.extend_kind() == first).then_some(first)
    }

    /// The value of a PCR after all records: in the way that reached the value looked for,
    /// otherwise in the most likely way.
    pub fn value(&self, bank: Bank, pcr: u32) -> Option<Digest> {
        let led = self.leading(bank, pcr).map(|(way, _)| way);
        Some(led.or(self.bank(bank)?.ways.first())?.pcrs.value(pcr))
    }

    /// The records that replay to the value looked for in one PCR of one bank, independent of the
    /// others, and the way in which the bank is extended then.
    pub fn found(&self, bank: Bank, pcr: u32) -> Option<(Prefix, Extend)> {
        let (way, held) = self.leading(bank, pcr)?;
        let to = held.to.unwrap_or(self.records);
        Some((Prefix { from: held.from, to }, way.pcrs.extend_kind()))
    }

    /// The records that replay to all values looked for; `None` if none do, or if no values are
    /// looked for.
    pub fn agreement(&self) -> Option<Prefix> {
        let all = |records: &u64| self.apart(*records).is_empty();
        let (from, to) = self.ends();
        let prefix = Prefix {
            from: from.into_iter().filter(all).min()?,
            to: to.into_iter().filter(all).max()?,
        };
        Some(prefix)
    }

    /// The number of records that replays to most of the values looked for; of several such numbers
    /// the largest. `None` if none replays to any.
    pub fn best(&self) -> Option<u64> {
        let (mut from, to) = self.ends();
        from.extend(to);
        from.into_iter().min_by_key(|records| (self.apart(*records).len(), u64::MAX - records))
    }

    /// The PCRs in which `records` records do not replay to the values looked for.
    pub fn apart(&self, records: u64) -> Vec<(Bank, u32)> {
        let mut apart = Vec::new();
        for bank in &self.banks {
            let targets = || targets_of(&self.targets, bank.bank).enumerate();
            let missed = |way: &Way| -> Vec<(Bank, u32)> {
                let missed = targets().filter(|(at, _)| !way.holds(*at, records));
                missed.map(|(_, target)| (bank.bank, target.pcr)).collect()
            };
            apart.extend(bank.ways.iter().map(missed).min_by_key(Vec::len).unwrap_or_default());
        }
        apart
    }

    /// Rules out the ways in which `records` records do not replay to the values looked for, in
    /// each bank with a way in which they do.
    pub fn settle(&mut self, records: u64) {
        for bank in &mut self.banks {
            let targets = targets_of(&self.targets, bank.bank).count();
            let fits = |way: &Way| (0..targets).all(|at| way.holds(at, records));
            if bank.ways.iter().any(fits) {
                bank.ways.retain(fits);
            }
        }
    }

    fn push_knowing(&mut self, record: &Record<'_>, mut sha1: Option<Digest>, is_recent: bool) {
        let is_violation = record.is_violation();
        let begins_kernel = self.records > 0 && record.begins_kernel();
        self.pcr.get_or_insert(record.pcr());
        self.named.insert(record.pcr());
        self.records += 1;
        self.violations += u64::from(is_violation);
        for bank in &mut self.banks {
            if begins_kernel {
                bank.branch_at_kernel();
            }
            if is_violation {
                bank.branch_at_violation();
            }
            for way in &mut bank.ways {
                way.pcrs.extend_knowing(record, is_violation, &mut sha1);
                if !way.held.is_empty() {
                    let targets = targets_of(&self.targets, bank.bank);
                    way.compare(targets, record.pcr(), self.records);
                }
                if is_recent && self.remembered > 0 {
                    if way.recent.len() >= self.remembered {
                        way.recent.pop_front();
                    }
                    way.recent.push_back((self.records, way.pcrs.clone()));
                }
            }
        }
    }

    /// Of the ways that reached the value looked for in this PCR, the one that reached most others.
    fn leading(&self, bank: Bank, pcr: u32) -> Option<(&Way, Held)> {
        let at = targets_of(&self.targets, bank).position(|target| target.pcr == pcr)?;
        let leading = self.bank(bank)?.ways.iter().filter_map(|way| Some((way, way.held_at(at)?)));
        leading.min_by_key(|(way, _)| way.held.iter().filter(|held| held.is_none()).count())
    }

    /// The numbers of records at which some value begins and ends to be the one looked for.
    fn ends(&self) -> (Vec<u64>, Vec<u64>) {
        let ways = self.banks.iter().flat_map(|bank| &bank.ways);
        let held = ways.flat_map(|way| way.held.iter().flatten());
        held.map(|held| (held.from, held.to.unwrap_or(self.records))).unzip()
    }
}

impl BankReplay {
    /// The bank.
    pub fn bank(&self) -> Bank {
        self.bank
    }

    /// Its PCRs in each way that is not ruled out, the most likely first; never empty.
    pub fn ways(&self) -> impl ExactSizeIterator<Item = &BankPcrs> {
        self.ways.iter().map(|way| &way.pcrs)
    }

    /// Its PCRs in the most likely way.
    pub fn most_likely(&self) -> Option<&BankPcrs> {
        self.ways().next()
    }

    /// Another kernel begins: it may have other hashes.
    fn branch_at_kernel(&mut self) {
        if self.bank == Bank::Sha1 {
            return;
        }
        let room = 2 * self.ways.len() <= ListReplay::MAX_WAYS;
        let others = self.ways.iter().map(|way| {
            let other = match way.pcrs.extend_kind() {
                Extend::Own => Extend::Sha1Padded,
                Extend::Sha1Padded | Extend::Sha1PaddedViolations => Extend::Own,
            };
            let pcrs = way.pcrs.with_extend(other);
            Way { pcrs, seen_violation: false, likely: other, ..way.clone() }
        });
        let others: Vec<Way> = if room { others.collect() } else { Vec::new() };
        for way in &mut self.ways {
            way.likely = way.pcrs.extend_kind();
            // Which of the two it is, the next violation tells.
            if way.likely == Extend::Sha1PaddedViolations {
                way.pcrs = way.pcrs.with_extend(Extend::Sha1Padded);
            }
            way.seen_violation = false;
        }
        self.ways.extend(others);
    }

    /// A violation tells kernels before 5.8 from others that pad.
    fn branch_at_violation(&mut self) {
        for at in 0..self.ways.len() {
            let room = self.ways.len() < ListReplay::MAX_WAYS;
            let Some(way) = self.ways.get_mut(at) else { return };
            if way.seen_violation || way.pcrs.extend_kind() != Extend::Sha1Padded {
                continue;
            }
            way.seen_violation = true;
            let older = way.pcrs.with_extend(Extend::Sha1PaddedViolations);
            if room {
                let older = Way { pcrs: older, ..way.clone() };
                self.ways.push(older);
            } else if way.likely == Extend::Sha1PaddedViolations {
                way.pcrs = older;
            }
        }
    }
}

impl Way {
    fn held_at(&self, target: usize) -> Option<Held> {
        self.held.get(target).copied().flatten()
    }

    fn holds(&self, target: usize, records: u64) -> bool {
        self.held_at(target)
            .is_some_and(|held| held.from <= records && held.to.is_none_or(|to| records <= to))
    }

    /// Compares the PCR that the last record extended.
    fn compare<'t>(
        &mut self,
        targets: impl Iterator<Item = &'t PcrTarget>,
        pcr: u32,
        records: u64,
    ) {
        for (target, held) in targets.zip(&mut self.held).filter(|(target, _)| target.pcr == pcr) {
            match held {
                _ if self.pcrs.value(pcr) == target.value => {
                    *held = Some(Held { from: records, to: None });
                }
                Some(Held { to: to @ None, .. }) => *to = Some(records - 1),
                _ => {}
            }
        }
    }

    /// The records, of those remembered and all there are, that lead to a value.
    fn reached(&self, target: &PcrTarget, records: u64) -> Option<Held> {
        let has = |pcrs: &BankPcrs| pcrs.value(target.pcr) == target.value;
        let mut from = has(&self.pcrs).then_some(records);
        let mut to = None;
        for (records, pcrs) in self.recent.iter().rev() {
            match (has(pcrs), from) {
                (true, Some(_)) => from = Some(*records),
                (true, None) => (from, to) = (Some(*records), Some(*records)),
                (false, Some(_)) => break,
                (false, None) => {}
            }
        }
        from.map(|from| Held { from, to })
    }
}

fn targets_of(targets: &[PcrTarget], bank: Bank) -> impl Iterator<Item = &PcrTarget> + Clone {
    targets.iter().filter(move |target| target.value.bank() == bank)
}

impl Record<'_> {
    /// Whether a kernel began with this record: it is a `boot_aggregate`, or `boot_aggregate_late`.
    pub fn begins_kernel(&self) -> bool {
        // The names first: they are told at once.
        self.event_name().is_some_and(|name| name.starts_with(b"boot_aggregate"))
            && self.event() == Some(Event::BootAggregate)
    }

    /// Whether a kernel that began with this record found no TPM: the digest in its
    /// `boot_aggregate` is all zeros then (`ima_add_boot_aggregate`).
    pub fn says_no_tpm(&self) -> bool {
        let is_zero = |digest: &[u8]| digest.iter().all(|byte| *byte == 0);
        self.begins_kernel() && self.file_digest().is_some_and(|found| is_zero(found.digest))
    }
}

#[cfg(test)]
mod tests;
