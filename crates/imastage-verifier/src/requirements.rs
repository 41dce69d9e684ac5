//! What a quote must cover.

use ima_log::{Bank, PcrSet};

use crate::{Reason, Token, VerifiedQuote};

/// What a quote must cover for a verdict to be positive, besides all that the token's rounds covered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// PCRs that must be quoted, in some bank, besides the list's own.
    pub pcrs: PcrSet,
    /// Banks in which the list's own PCR must be quoted. Empty: any, but not sha1 alone, because
    /// SHA-1 collisions can be computed.
    pub banks: Vec<Bank>,
}

impl Requirements {
    /// Why the quote does not cover what is required of a list whose own PCR is `pcr`.
    pub(crate) fn unmet(
        &self,
        quote: &VerifiedQuote,
        token: Option<&Token>,
        pcr: u32,
    ) -> Option<Reason> {
        let covered = covered(quote, pcr);
        let quoted: PcrSet = quote.pcrs().map(|(_, index)| index).collect();
        if covered.is_empty() {
            let bank = self.banks.first().copied().unwrap_or(Bank::Sha256);
            return Some(Reason::PcrNotQuoted { pcr, quoted, bank });
        }
        let missing = |banks: &[Bank]| -> Vec<Bank> {
            banks.iter().filter(|bank| !covered.contains(bank)).copied().collect()
        };
        let required = missing(&self.banks);
        if !required.is_empty() {
            return Some(Reason::BanksNotCovered { missing: required, covered, pcr });
        }
        let lacking = self.pcrs.without(quoted);
        if !lacking.is_empty() {
            return Some(Reason::PcrsNotCovered { missing: lacking });
        }
        if self.banks.is_empty() && covered == [Bank::Sha1] && token.is_none() {
            return Some(Reason::Sha1Alone { pcr });
        }
        let token = token?;
        let shrunk = missing(&token.banks.iter().map(|state| state.bank()).collect::<Vec<_>>());
        if !shrunk.is_empty() {
            return Some(Reason::TokenBanksNotCovered { missing: shrunk, covered });
        }
        let proven = token.banks.iter().flat_map(|state| state.values()).map(|(pcr, _)| pcr);
        let lost = proven.collect::<PcrSet>().without(quoted);
        (!lost.is_empty()).then_some(Reason::TokenPcrsNotCovered { missing: lost })
    }
}

/// The banks in which a PCR is quoted, in the order of the quote's selection.
pub(crate) fn covered(quote: &VerifiedQuote, pcr: u32) -> Vec<Bank> {
    quote.pcrs().filter(|(_, index)| *index == pcr).map(|(bank, _)| bank).collect()
}
