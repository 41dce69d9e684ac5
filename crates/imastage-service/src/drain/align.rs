//! Where a list continues the store.
//!
//! After a crash the list may still hold records that are stored already: they were written and
//! synced, but not yet deleted. How many of them there are is decided by the chain, never by
//! content alone, because equal records are legal. Content only tells which answers are possible.

use ima_log::{ListReplay, PcrTarget, Record};

/// What is known when the question is asked.
pub struct Question<'a> {
    /// The last stored records, in order; at least as many as `list` has, or all there are.
    pub tail: &'a [Vec<u8>],
    /// PCRs after all stored records.
    pub running: &'a ListReplay,
    /// The records of the list: staged, then current.
    pub list: &'a [Record<'a>],
    /// How many of `list`, from the first, were in it before `pcrs` were read.
    pub before_pcr: usize,
    /// PCRs of the TPM, all that records name; none without a TPM. Must have been read before the
    /// end of `list` was.
    pub pcrs: &'a [PcrTarget],
}

/// How a list continues the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alignment {
    /// The first `stored` records of the list are stored already, and the TPM agrees (or nobody
    /// asked it) that `consistent` records of the list, counted from its first, lead to its PCR.
    Continues {
        /// How many of the list's first records are stored already.
        stored: usize,
        /// How many of the list's first records the TPM was extended with; `None` without a TPM.
        consistent: Option<usize>,
    },
    /// Several answers lead to the TPM's PCR: equal records were added while this was asked. Ask
    /// again.
    Ambiguous,
    /// No answer leads to the TPM's PCR: records between store and list are missing, or the PCR
    /// was extended without a record. The best guess by content is that `stored` of the list's
    /// first records are stored already.
    Diverged {
        /// As above, by content alone.
        stored: usize,
    },
}

/// Answers the question. Linear in the list, times the number of overlaps that content allows,
/// which is one or two unless records repeat.
pub fn align(question: &Question<'_>) -> Alignment {
    let list: Vec<&[u8]> = question.list.iter().map(Record::as_bytes).collect();
    let mut overlaps = overlaps(question.tail, &list);
    // What was added while this was asked cannot have been stored before.
    overlaps.retain(|stored| *stored <= question.before_pcr);
    let longest = overlaps.first().copied().unwrap_or(0);
    if question.pcrs.is_empty() {
        return Alignment::Continues { stored: longest, consistent: None };
    }
    let mut fits = Vec::new();
    for stored in overlaps {
        let mut replay = question.running.clone();
        replay.look_for(question.pcrs);
        replay.push_all(question.list.get(stored..).unwrap_or_default());
        let Some(led) = replay.agreement() else { continue };
        // The TPM was extended with at least what was in the list before its PCRs were read.
        let in_list =
            |records: u64| (records + stored as u64).checked_sub(question.running.records());
        if let Some(to) = in_list(led.to)
            && to >= question.before_pcr as u64
        {
            let from = in_list(led.from).unwrap_or(0).max(question.before_pcr as u64);
            fits.push(Alignment::Continues { stored, consistent: Some(from as usize) });
        }
    }
    match fits[..] {
        [] => Alignment::Diverged { stored: longest },
        [only] => only,
        _ => Alignment::Ambiguous,
    }
}

/// The lengths of all beginnings of `list` that `tail` ends with, longest first, 0 last (the
/// borders that Knuth, Morris and Pratt's failure function walks through). Linear.
fn overlaps(tail: &[Vec<u8>], list: &[&[u8]]) -> Vec<usize> {
    let mut failure = vec![0; list.len()];
    let mut matched = 0;
    for i in 1..list.len() {
        while matched > 0 && list[i] != list[matched] {
            matched = failure[matched - 1];
        }
        matched += usize::from(list[i] == list[matched]);
        failure[i] = matched;
    }
    let mut matched = 0;
    for record in tail {
        while matched == list.len() || (matched > 0 && record != list[matched]) {
            if matched == 0 {
                break;
            }
            matched = failure[matched - 1];
        }
        matched += usize::from(list.get(matched).is_some_and(|first| record == first));
    }
    let mut overlaps = Vec::new();
    while matched > 0 {
        overlaps.push(matched);
        matched = failure[matched - 1];
    }
    overlaps.push(0);
    overlaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use ima_log::{Bank, BankPcrs, Extend, RecordBuf};
    use proptest::prelude::*;

    fn record(kind: u8) -> RecordBuf {
        let pcr = if kind == 2 { 11 } else { 10 };
        RecordBuf::ima_ng(pcr, &Bank::Sha256.hash(&[]), &[b'a' + kind])
    }

    /// Of many kinds some name another PCR.
    fn pcrs(records: &[RecordBuf]) -> Vec<PcrTarget> {
        let mut tpm = BankPcrs::new(Bank::Sha256, Extend::Own);
        records.iter().for_each(|r| tpm.extend(&r.record()));
        [10, 11].map(|pcr| PcrTarget { pcr, value: tpm.value(pcr) }).to_vec()
    }

    fn running(records: &[RecordBuf]) -> ListReplay {
        let mut replay = ListReplay::new([Bank::Sha256]);
        records.iter().for_each(|record| replay.push(&record.record()));
        replay
    }

    proptest! {
        /// A history of few kinds of records, so that they repeat a lot; the store has a beginning
        /// of it, the list an end that overlaps or touches; the TPM is somewhere in the list.
        #[test]
        fn finds_the_overlap_whatever_repeats(
            kinds in proptest::collection::vec(0u8..3, 1..40),
            cuts in any::<[proptest::sample::Index; 4]>(),
        ) {
            let history: Vec<RecordBuf> = kinds.into_iter().map(record).collect();
            let stored = cuts[0].index(history.len() + 1);
            let list_from = cuts[1].index(stored + 1);
            let list = &history[list_from..];
            let before_pcr = cuts[2].index(list.len() + 1);
            let extended = before_pcr + cuts[3].index(list.len() - before_pcr + 1);
            // What is stored was in the list before, and extended.
            let before_pcr = before_pcr.max(stored - list_from);
            let extended = extended.max(before_pcr);

            let running = running(&history[..stored]);
            let tail: Vec<Vec<u8>> =
                history[..stored].iter().map(|r| r.as_bytes().to_vec()).collect();
            let records: Vec<_> = list.iter().map(RecordBuf::record).collect();
            let answer = align(&Question {
                tail: &tail,
                running: &running,
                list: &records,
                before_pcr,
                pcrs: &pcrs(&history[..list_from + extended]),
            });
            let right =
                Alignment::Continues { stored: stored - list_from, consistent: Some(extended) };
            if before_pcr == list.len() {
                prop_assert_eq!(answer, right);
            } else {
                prop_assert!(answer == right || answer == Alignment::Ambiguous, "{:?}", answer);
            }
        }

        #[test]
        fn overlaps_are_all_there_are(
            tail in proptest::collection::vec(0u8..2, 0..20),
            list in proptest::collection::vec(0u8..2, 0..20),
        ) {
            let tail: Vec<Vec<u8>> = tail.into_iter().map(|b| vec![b]).collect();
            let list: Vec<Vec<u8>> = list.into_iter().map(|b| vec![b]).collect();
            let slices: Vec<&[u8]> = list.iter().map(Vec::as_slice).collect();
            let expected: Vec<usize> = (0..=tail.len().min(list.len()))
                .rev()
                .filter(|n| tail[tail.len() - n..] == list[..*n])
                .collect();
            prop_assert_eq!(overlaps(&tail, &slices), expected);
        }
    }

    #[test]
    fn missing_records_part_store_and_list() {
        let history: Vec<RecordBuf> = (0..6).map(record).collect();
        let (running, pcrs) = (running(&history[..2]), pcrs(&history));
        let tail: Vec<Vec<u8>> = history[..2].iter().map(|r| r.as_bytes().to_vec()).collect();
        let list: Vec<_> = history[4..].iter().map(RecordBuf::record).collect();
        let (running, pcrs) = (&running, &pcrs[..]);
        let question = Question { tail: &tail, running, list: &list, before_pcr: 2, pcrs };
        assert_eq!(align(&question), Alignment::Diverged { stored: 0 });
        assert_eq!(
            align(&Question { pcrs: &[], ..question }),
            Alignment::Continues { stored: 0, consistent: None }
        );
    }
}
