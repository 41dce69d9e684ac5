use ima_log::{Bank, Digest, Extend, IMA_PCR, Record};

use crate::{
    AppraisalError, BankState, Moved, PcrValues, Reason, Token, ValuesGiven, VerifiedQuote,
};

/// Finds the records that a quote covers: the fewest that lead, in all quoted banks at once, to the
/// quoted PCR 10.
///
/// Give it the records from [`Token::next`] on, or from 0 without a token. A record costs the check
/// of its printed digest and, in each bank, a template digest and an extend; as long as it is not
/// known whether a bank is extended with its own hash or with zero-padded SHA-1, both are followed.
/// Without a value of PCR 10 in the PCR values each record costs one more hash over the values of all
/// quoted PCRs, times the combinations of what is not known. Records behind those that are covered
/// cost nothing.
#[derive(Clone, Debug)]
pub struct Appraiser {
    quote: VerifiedQuote,
    token: Option<Token>,
    /// What PCR 10 of each quoted bank may be by now, in the order of the quote's selection.
    chains: Vec<Vec<BankState>>,
    target: Target,
    given: ValuesGiven,
    state: State,
    pushed: u64,
    /// Of this round's records.
    violations: u64,
    unproven: u64,
}

/// What became of the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appraisal {
    /// Whether the records lead to the quote.
    pub verdict: Verdict,
    /// Why not, if not.
    pub reason: Option<Reason>,
    /// How many records the quote covers, counted from the epoch's first; on `Fail`, those of the
    /// rounds before.
    pub records: u64,
    /// How many of the records given came after those: not looked at, so they must be given again
    /// with the next quote.
    pub excess: u64,
    /// Violations among `records`.
    pub violations: u64,
    /// How many of this round's covered records name another PCR than 10. They stand in the list
    /// between records that are proven, but the quote says nothing about themselves.
    pub unproven: u64,
    /// PCR 10 behind `records` in each quoted bank, and how it is extended; empty on `Fail`.
    pub banks: Vec<BankState>,
    /// What to give to the next round; `None` on `Fail`: keep the old one.
    pub token: Option<Token>,
}

/// The verifier's judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The records lead to the quote.
    Pass,
    /// They do not, or the quote does not continue the rounds before.
    Fail,
}

#[derive(Clone, Debug)]
enum State {
    Searching,
    Found { banks: Vec<BankState>, records: u64 },
    Failed(Reason),
}

#[derive(Clone, Debug)]
enum Target {
    /// PCR 10 of each quoted bank: given, and proven by the quote's digest.
    Values(Vec<Digest>),
    /// The quote's digest.
    Digest { digest: Digest, preimage: Vec<u8>, places: Vec<usize> },
}

impl Appraiser {
    /// Begins a round. `values` must hold the values of all quoted PCRs but PCR 10; with PCR 10 too
    /// the search is faster. They are not trusted: the quote's digest decides.
    ///
    /// # Errors
    /// [`AppraisalError`] when there is something to be supplied before anything can be said. A quote
    /// that does not continue `token` is no error but a [`Verdict::Fail`].
    pub fn new(
        quote: VerifiedQuote,
        values: PcrValues,
        token: Option<&Token>,
    ) -> Result<Appraiser, AppraisalError> {
        let banks: Vec<Bank> =
            quote.pcrs().filter(|(_, index)| *index == IMA_PCR).map(|(bank, _)| bank).collect();
        let refused = if banks.is_empty() {
            Some(Reason::Pcr10NotQuoted)
        } else {
            token.and_then(|token| discontinued(&quote, token))
        };
        let mut appraiser = Appraiser {
            chains: Vec::new(),
            target: Target::Values(Vec::new()),
            given: ValuesGiven::Proven,
            state: State::Searching,
            token: token.cloned(),
            quote,
            pushed: 0,
            violations: 0,
            unproven: 0,
        };
        if let Some(reason) = refused {
            appraiser.state = State::Failed(reason);
            return Ok(appraiser);
        }
        appraiser.chains = chains(&banks, token)?;
        (appraiser.target, appraiser.given) = target(&appraiser.quote, &banks, &values)?;
        appraiser.compare();
        Ok(appraiser)
    }

    /// Takes the next record.
    pub fn push(&mut self, record: &Record<'_>) {
        let index = self.from().saturating_add(self.pushed);
        self.pushed += 1;
        if !matches!(self.state, State::Searching) {
            return;
        }
        if !record.digest_is_right() {
            self.state = State::Failed(Reason::Altered { record: index });
            return;
        }
        self.violations += u64::from(record.is_violation());
        if record.pcr() != IMA_PCR {
            self.unproven += 1;
            return;
        }
        for candidate in self.chains.iter_mut().flatten() {
            let value = extend_value(candidate, record);
            candidate.value = candidate.value.extended_with(&value);
        }
        self.compare();
    }

    /// Ends the round: there are no more records.
    pub fn finish(self) -> Appraisal {
        let from = self.from();
        let before = self.token.as_ref().map_or(0, |token| token.violations);
        let reason = match self.state {
            State::Found { banks, records } => {
                let clock = self.quote.clock();
                let violations = before.saturating_add(self.violations);
                let records = from.saturating_add(records);
                let token = Token {
                    next: records,
                    pcrs: banks.clone(),
                    key: self.quote.key_fingerprint(),
                    reset_count: clock.reset_count,
                    restart_count: clock.restart_count,
                    clock: clock.clock,
                    rounds: self.token.map_or(0, |token| token.rounds).saturating_add(1),
                    violations,
                };
                return Appraisal {
                    verdict: Verdict::Pass,
                    reason: None,
                    records,
                    excess: from.saturating_add(self.pushed) - records,
                    violations,
                    unproven: self.unproven,
                    banks,
                    token: Some(token),
                };
            }
            State::Failed(reason) => reason,
            State::Searching => Reason::NoMatch {
                replayed: self.pushed,
                from,
                moved: match (&self.token, self.given) {
                    (None, _) => Moved::NoToken,
                    (Some(_), ValuesGiven::Assumed | ValuesGiven::Refuted { others: true }) => {
                        Moved::Unknown
                    }
                    (Some(_), _) => Moved::Yes,
                },
                restarts: self.token.as_ref().map_or(0, |token| {
                    self.quote.clock().restart_count.wrapping_sub(token.restart_count)
                }),
                given: self.given,
            },
        };
        Appraisal {
            verdict: Verdict::Fail,
            reason: Some(reason),
            records: from,
            excess: self.pushed,
            violations: before,
            unproven: 0,
            banks: Vec::new(),
            token: None,
        }
    }

    /// The index of the round's first record.
    fn from(&self) -> u64 {
        self.token.as_ref().map_or(0, Token::next)
    }

    fn compare(&mut self) {
        if let Some(banks) = self.target.matching(&self.chains) {
            self.state = State::Found { banks, records: self.pushed };
        }
    }
}

impl Target {
    /// The candidates, one of each chain, that are the target.
    fn matching(&mut self, chains: &[Vec<BankState>]) -> Option<Vec<BankState>> {
        match self {
            Target::Values(values) => chains
                .iter()
                .zip(values)
                .map(|(chain, value)| chain.iter().find(|state| state.value == *value).copied())
                .collect(),
            Target::Digest { digest, preimage, places } => {
                let combinations = chains.iter().map(Vec::len).product();
                (0..combinations).find_map(|combination| {
                    for (state, place) in choice(chains, combination).zip(places.iter()) {
                        let value = state.value.as_bytes();
                        preimage[*place..*place + value.len()].copy_from_slice(value);
                    }
                    (digest.bank().hash(&[preimage]) == *digest)
                        .then(|| choice(chains, combination).copied().collect())
                })
            }
        }
    }
}

/// One candidate of each chain: `combination` is a number whose digits, of the base of each chain's
/// length, choose them.
fn choice(chains: &[Vec<BankState>], mut combination: usize) -> impl Iterator<Item = &BankState> {
    chains.iter().filter_map(move |chain| {
        let digit = combination % chain.len();
        combination /= chain.len();
        chain.get(digit)
    })
}

/// What `record` extends a bank with. Where the record's own digest is the SHA-1 wanted, it is taken:
/// [`Appraiser::push`] has checked it.
fn extend_value(state: &BankState, record: &Record<'_>) -> Digest {
    let sha1 = state.bank == Bank::Sha1 || state.extend != Extend::Own;
    if sha1 && record.format().bank == Bank::Sha1 && !record.is_violation() {
        record.printed_digest().padded_to(state.bank)
    } else {
        state.extend.value(state.bank, record)
    }
}

/// Why a quote cannot be of the same epoch of the same TPM as the token's.
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

/// What PCR 10 of each bank may be, and may be extended with, before the round's first record.
fn chains(banks: &[Bank], token: Option<&Token>) -> Result<Vec<Vec<BankState>>, AppraisalError> {
    let both = |bank| {
        let state = |extend| BankState { bank, extend, value: Digest::zero(bank) };
        match bank {
            Bank::Sha1 => vec![state(Extend::Own)],
            _ => vec![state(Extend::Own), state(Extend::Sha1Padded)],
        }
    };
    let Some(token) = token else {
        return Ok(banks.iter().map(|bank| both(*bank)).collect());
    };
    let known = |bank: &Bank| token.pcrs.iter().find(|state| state.bank == *bank);
    let unknown: Vec<Bank> = banks.iter().filter(|bank| known(bank).is_none()).copied().collect();
    if !unknown.is_empty() {
        return Err(AppraisalError::TokenBanks {
            unknown,
            known: token.pcrs.iter().map(|state| state.bank).collect(),
        });
    }
    Ok(banks
        .iter()
        .filter_map(known)
        .map(|state| if state.value.is_zero() { both(state.bank) } else { vec![*state] })
        .collect())
}

/// What PCR 10 of `banks` is to be compared with.
fn target(
    quote: &VerifiedQuote,
    banks: &[Bank],
    values: &PcrValues,
) -> Result<(Target, ValuesGiven), AppraisalError> {
    let mut preimage = Vec::new();
    let mut places = Vec::new();
    let mut missing = Vec::new();
    for (bank, index) in quote.pcrs() {
        let value = values.get(bank, index);
        if index == IMA_PCR {
            places.push(preimage.len());
        } else if value.is_none() {
            missing.push((bank, index));
        }
        preimage.extend_from_slice(value.unwrap_or(Digest::zero(bank)).as_bytes());
    }
    if !missing.is_empty() {
        return Err(AppraisalError::MissingValues(missing));
    }
    let digest = quote.digest();
    let targets: Option<Vec<Digest>> =
        banks.iter().map(|bank| values.get(*bank, IMA_PCR)).collect();
    let others = quote.pcrs().any(|(_, index)| index != IMA_PCR);
    let given = match targets {
        Some(targets) if digest.bank().hash(&[&preimage]) == digest => {
            return Ok((Target::Values(targets), ValuesGiven::Proven));
        }
        Some(_) => ValuesGiven::Refuted { others },
        None if others => ValuesGiven::Assumed,
        None => ValuesGiven::NotNeeded,
    };
    Ok((Target::Digest { digest, preimage, places }, given))
}
