//! Appraises the records of a list against a verified quote.

use ima_log::{BankPcrs, Digest, ListReplay, PcrSet, Record, Template};

use crate::{
    AppraisalError, BootAggregate, ClockInfo, Moved, PcrValues, Reason, Requirements, Token,
    ValuesGiven, VerifiedQuote, boot, requirements::covered, target::Target,
};

/// Finds the records that a quote covers: the shortest prefix that replays, in all quoted banks, to
/// the quoted values of every PCR that records name.
///
/// Requires the records from [`Token::next`] on, or from 0 without a token. Each record costs the
/// check of its printed digest and, per bank, a template digest and an extend; until it is known
/// how a bank is extended, all ways are followed ([`ListReplay`]). If the value of a PCR that
/// records name is not given, each record costs one more hash over the values of all quoted PCRs,
/// times the combinations of unknowns. Records after the covered ones cost nothing.
#[derive(Clone, Debug)]
pub struct Appraiser {
    quote: VerifiedQuote,
    token: Option<Token>,
    requirements: Requirements,
    target: Target,
    replay: ListReplay,
    state: State,
    /// The list's own PCR, once it is known.
    pcr: Option<u32>,
    pushed: u64,
    counts: Unprotected,
    first_named: [Option<u64>; PcrSet::LIMIT as usize],
    /// The digest in the epoch's first record.
    boot_aggregate: Option<Digest>,
}

/// The result of an appraisal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appraisal {
    /// Whether the records replay to the quote.
    pub verdict: Verdict,
    /// The reason of a failure.
    pub reason: Option<Reason>,
    /// The number of records that the quote covers, from the epoch's first; on `Fail`, that of
    /// earlier rounds.
    pub records: u64,
    /// The number of given records after these, which were not examined; give them again with the
    /// next quote.
    pub excess: u64,
    /// The number of violations among `records`. The PCR proves their number and positions, not
    /// their content, because a violation extends all ones whatever its template data.
    pub violations: u64,
    /// Properties of this round's covered records that the quote does not protect.
    pub unprotected: Unprotected,
    /// The list's own PCR; `None` without a record and a token.
    pub pcr: Option<u32>,
    /// The PCRs that records name, after `records`, in each quoted bank, and how it is extended;
    /// empty on `Fail`.
    pub banks: Vec<BankPcrs>,
    /// Whether the list starts with the digest of the quoted PCRs of firmware and boot loader.
    pub boot_aggregate: BootAggregate,
    /// [`crate::PublicKey::fingerprint`] of the key that signed the quote.
    pub key: Digest,
    /// The TPM's clock and counters when it made the quote.
    pub clock: ClockInfo,
    /// The token for the next round; `None` on `Fail`: keep the old one.
    pub token: Option<Token>,
}

/// Properties of covered records that the PCRs do not protect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unprotected {
    /// The number of records that name a PCR that is not quoted. They lie between proven records,
    /// but are not proven themselves.
    pub not_quoted: u64,
    /// The PCRs that they name, those below 32.
    pub not_quoted_pcrs: PcrSet,
    /// Violations: their number is proven, their content is not.
    pub violations: u64,
    /// The number of records with an unknown template: template names are not protected.
    pub unknown_templates: u64,
    /// The index of the first of them.
    pub first_unknown_template: Option<u64>,
}

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The records replay to the quote.
    Pass,
    /// They do not, or the quote does not continue earlier rounds, or does not cover enough.
    Fail,
}

#[derive(Clone, Debug)]
enum State {
    Searching,
    Found(Found),
    Failed(Reason),
}

#[derive(Clone, Debug)]
struct Found {
    banks: Vec<BankPcrs>,
    /// Of this round.
    records: u64,
    counts: Unprotected,
    named: PcrSet,
    /// Whether a record after these extended one of their PCRs: no longer prefix can match the
    /// quote.
    is_last: bool,
    /// The first record after these whose digest is wrong.
    altered: Option<u64>,
}

impl Appraiser {
    /// Starts a round. `values` must contain the values of the quoted PCRs that firmware extends;
    /// with those of all quoted PCRs the search is faster. They are not trusted: the quote's digest
    /// decides.
    ///
    /// # Errors
    /// [`AppraisalError`] if input is missing. A quote that does not continue `token`, or does not
    /// cover the required PCRs, is not an error but a [`Verdict::Fail`].
    pub fn new(
        quote: VerifiedQuote,
        values: PcrValues,
        token: Option<&Token>,
        requirements: Requirements,
    ) -> Result<Appraiser, AppraisalError> {
        let pcr = token.map(|token| token.pcr);
        let unmet = pcr.and_then(|pcr| requirements.unmet(&quote, token, pcr));
        let refused = token.and_then(|token| discontinued(&quote, token)).or(unmet);
        // What is refused already needs no values.
        let target = match &refused {
            Some(_) => Target::refused(&quote),
            None => Target::new(&quote, &values)?,
        };
        let mut appraiser = Appraiser {
            replay: ListReplay::new([]),
            state: State::Searching,
            target,
            pcr,
            pushed: 0,
            counts: Unprotected::default(),
            first_named: [None; PcrSet::LIMIT as usize],
            boot_aggregate: token.and_then(|token| token.boot_aggregate),
            token: token.cloned(),
            requirements,
            quote,
        };
        if let Some(reason) = refused {
            appraiser.state = State::Failed(reason);
        } else if let Some(token) = token {
            appraiser.replay = continued(&appraiser.quote, token)?;
            appraiser.compare();
        }
        Ok(appraiser)
    }

    /// Adds the next record.
    pub fn push(&mut self, record: &Record<'_>) {
        let index = self.from().saturating_add(self.pushed);
        if self.pushed == 0 && self.token.is_none() {
            self.begin(record);
        }
        self.pushed += 1;
        match &mut self.state {
            State::Searching => self.search(index, record),
            State::Found(found) if !found.is_last => self.look_behind(index, record),
            State::Found(_) | State::Failed(_) => {}
        }
    }

    /// Ends the round: there are no more records.
    pub fn finish(mut self) -> Appraisal {
        let from = self.from();
        match std::mem::replace(&mut self.state, State::Searching) {
            State::Failed(reason) => self.failed(reason),
            State::Searching => {
                let reason = self.no_match();
                self.failed(reason)
            }
            // A token implies records, so only a round without one can be empty.
            State::Found(found) if from.saturating_add(found.records) == 0 => {
                self.failed(Reason::NoRecords)
            }
            State::Found(found) => {
                let named = self.replay.named();
                let value = |bank, pcr| self.target.value(bank, pcr);
                match boot::compare(self.boot_aggregate, named, value) {
                    Ok(BootAggregate::Absent) if self.covers_firmware() => {
                        self.failed(Reason::NoBootAggregate)
                    }
                    Ok(boot_aggregate) => self.passed(found, boot_aggregate),
                    Err(error) => self.failed(Reason::BootAggregate(error)),
                }
            }
        }
    }

    /// The index of the round's first record.
    fn from(&self) -> u64 {
        self.token.as_ref().map_or(0, Token::next)
    }

    /// Starts with the epoch's first record, which determines the list's own PCR.
    fn begin(&mut self, first: &Record<'_>) {
        let pcr = first.pcr();
        self.pcr = Some(pcr);
        self.boot_aggregate = boot::recorded(first);
        if matches!(self.state, State::Failed(_)) {
            return;
        }
        if let Some(reason) = self.requirements.unmet(&self.quote, None, pcr) {
            self.state = State::Failed(reason);
            return;
        }
        let banks = self.quote.selection().iter().filter(|selection| selection.mask != 0);
        let ways = banks.flat_map(|selection| BankPcrs::ways(selection.bank));
        self.replay = ListReplay::resume(ways, 0, Some(pcr));
        self.compare();
        let is_zero = match self.target.given() {
            ValuesGiven::Proven => {
                let covered = covered(&self.quote, pcr);
                covered
                    .iter()
                    .all(|bank| self.target.value(*bank, pcr) == Some(Digest::reset(*bank, pcr)))
            }
            _ => matches!(self.state, State::Found(_)),
        };
        if is_zero {
            let kernel_had_none = self.boot_aggregate.is_some_and(|digest| digest.is_zero());
            self.state = State::Failed(Reason::NeverExtended { pcr, kernel_had_none });
        }
    }

    fn search(&mut self, index: u64, record: &Record<'_>) {
        if !record.digest_is_right() {
            self.state = State::Failed(Reason::Altered { record: index });
            return;
        }
        self.count(index, record);
        if !self.target.covers(record.pcr()) {
            return;
        }
        self.replay.push_checked(record);
        self.compare();
    }

    /// Records after the covered ones are later than the quote, so a PCR that they extend must not
    /// have been extended before.
    fn look_behind(&mut self, index: u64, record: &Record<'_>) {
        self.count(index, record);
        let is_altered = !record.digest_is_right();
        let State::Found(found) = &mut self.state else { return };
        if is_altered {
            found.altered = found.altered.or(Some(index));
        }
        let pcr = record.pcr();
        if !self.target.covers(pcr) {
            return;
        }
        if found.named.contains(pcr) || self.target.is_reset(pcr) {
            found.is_last = true;
            return;
        }
        // Quoted and extended, but no covered record names it: the prefix must be longer.
        self.state = match found.altered {
            Some(record) => State::Failed(Reason::Altered { record }),
            None => State::Searching,
        };
        if matches!(self.state, State::Searching) {
            self.replay.push_checked(record);
            self.compare();
        }
    }

    fn count(&mut self, index: u64, record: &Record<'_>) {
        let pcr = record.pcr();
        if let Some(first) = self.first_named.get_mut(pcr as usize) {
            first.get_or_insert(index);
        }
        let counts = &mut self.counts;
        counts.violations += u64::from(record.is_violation());
        if matches!(record.template(), Template::Unknown(_)) {
            counts.unknown_templates += 1;
            counts.first_unknown_template.get_or_insert(index);
        }
        if !self.target.covers(pcr) {
            counts.not_quoted += 1;
            counts.not_quoted_pcrs.insert(pcr);
        }
    }

    fn compare(&mut self) {
        if let Some(banks) = self.target.matching(&self.replay) {
            self.state = State::Found(Found {
                banks,
                records: self.pushed,
                counts: self.counts,
                named: self.replay.named(),
                is_last: false,
                altered: None,
            });
        }
    }

    /// Whether the quote covers the PCRs that a `boot_aggregate` is a digest of.
    fn covers_firmware(&self) -> bool {
        self.quote.selection().iter().any(|selection| selection.mask & 0xff == 0xff)
    }

    fn no_match(&self) -> Reason {
        if self.pushed == 0 && self.token.is_none() {
            return Reason::NoRecords;
        }
        let missed = match self.target.given() {
            ValuesGiven::Proven => self.target.missed(&self.replay),
            _ => Vec::new(),
        };
        let pcr = self.pcr.unwrap_or(ima_log::IMA_PCR);
        if let Some((bank, other)) =
            missed.first().filter(|_| missed.iter().all(|(_, p)| *p != pcr))
        {
            let record = self.first_named.get(*other as usize).copied().flatten();
            return Reason::PcrMismatch { pcr: *other, bank: *bank, record };
        }
        let restarts =
            |token: &Token| self.quote.clock().restart_count.wrapping_sub(token.restart_count);
        Reason::NoMatch {
            pcr,
            replayed: self.pushed,
            from: self.from(),
            moved: match (&self.token, self.target.given()) {
                (None, _) => Moved::NoToken,
                (Some(_), ValuesGiven::Proven) => Moved::Yes,
                (Some(_), _) if self.quote.pcrs().all(|(_, index)| index == pcr) => Moved::Yes,
                (Some(_), _) => Moved::Unknown,
            },
            restarts: self.token.as_ref().map_or(0, restarts),
            given: self.target.given(),
            unknown: self.target.unknown().into_iter().filter(|(_, p)| *p != pcr).collect(),
        }
    }

    fn passed(self, found: Found, boot_aggregate: BootAggregate) -> Appraisal {
        let from = self.from();
        let before = self.token.as_ref();
        let clock = self.quote.clock();
        let records = from.saturating_add(found.records);
        let violations =
            before.map_or(0, |token| token.violations).saturating_add(found.counts.violations);
        let pcr = self.pcr.unwrap_or(ima_log::IMA_PCR);
        let token = Token {
            next: records,
            pcr,
            banks: found.banks.clone(),
            not_quoted: before
                .map_or(PcrSet::EMPTY, |token| token.not_quoted)
                .union(found.counts.not_quoted_pcrs),
            boot_aggregate: self.boot_aggregate,
            key: self.quote.key_fingerprint(),
            reset_count: clock.reset_count,
            restart_count: clock.restart_count,
            clock: clock.clock,
            rounds: before.map_or(0, |token| token.rounds).saturating_add(1),
            violations,
        };
        Appraisal {
            verdict: Verdict::Pass,
            reason: None,
            records,
            excess: from.saturating_add(self.pushed) - records,
            violations,
            unprotected: found.counts,
            pcr: self.pcr,
            banks: found.banks,
            boot_aggregate,
            key: self.quote.key_fingerprint(),
            clock,
            token: Some(token),
        }
    }

    fn failed(self, reason: Reason) -> Appraisal {
        Appraisal {
            verdict: Verdict::Fail,
            reason: Some(reason),
            records: self.from(),
            excess: self.pushed,
            violations: self.token.as_ref().map_or(0, |token| token.violations),
            unprotected: Unprotected::default(),
            pcr: self.pcr,
            banks: Vec::new(),
            boot_aggregate: BootAggregate::NotCompared,
            key: self.quote.key_fingerprint(),
            clock: self.quote.clock(),
            token: None,
        }
    }
}

/// Why a quote is not from the same epoch of the same TPM as the token.
fn discontinued(quote: &VerifiedQuote, token: &Token) -> Option<Reason> {
    let clock = quote.clock();
    if quote.key_fingerprint() != token.key {
        return Some(Reason::OtherKey { expected: token.key, found: quote.key_fingerprint() });
    }
    if clock.reset_count != token.reset_count {
        return Some(Reason::Reset { before: token.reset_count, now: clock.reset_count });
    }
    // The counter may have something added to it modulo 2^32, see `ClockInfo`.
    if clock.restart_count.wrapping_sub(token.restart_count) > u32::MAX / 2 {
        return Some(Reason::Restarts { before: token.restart_count, now: clock.restart_count });
    }
    if clock.clock < token.clock {
        return Some(Reason::Clock { before: token.clock, now: clock.clock });
    }
    None
}

/// Continues where the token's rounds ended, in every quoted bank.
fn continued(quote: &VerifiedQuote, token: &Token) -> Result<ListReplay, AppraisalError> {
    let named: PcrSet =
        token.banks.iter().flat_map(|state| state.values()).map(|(pcr, _)| pcr).collect();
    let mut states = Vec::new();
    let mut unknown = Vec::new();
    let mut skipped = PcrSet::EMPTY;
    for selection in quote.selection().iter().filter(|selection| selection.mask != 0) {
        let quoted = PcrSet::from_mask(selection.mask);
        skipped =
            skipped.union(quoted.iter().filter(|pcr| token.not_quoted.contains(*pcr)).collect());
        match token.banks.iter().find(|state| state.bank() == selection.bank) {
            Some(state) => states.push(state.clone()),
            None if quoted.iter().any(|pcr| named.contains(pcr)) => unknown.push(selection.bank),
            None => states.extend(BankPcrs::ways(selection.bank)),
        }
    }
    if !unknown.is_empty() {
        let known = token.banks.iter().map(BankPcrs::bank).collect();
        return Err(AppraisalError::TokenBanks { unknown, known });
    }
    if !skipped.is_empty() {
        return Err(AppraisalError::TokenPcrs { unknown: skipped });
    }
    Ok(ListReplay::resume(states, token.next, Some(token.pcr)))
}

#[cfg(test)]
mod tests;
