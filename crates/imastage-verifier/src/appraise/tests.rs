//! Tests of the appraisal.

use super::*;
use crate::PcrSelection;
use ima_log::{Bank, Extend, Format, RecordBuf, Records};
use proptest::prelude::*;

/// A machine: the PCRs of its TPM, of which others than IMA extended some.
#[derive(Clone)]
struct Machine {
    banks: Vec<BankPcrs>,
    firmware: PcrSet,
}

impl Machine {
    fn new(banks: &[(Bank, Extend)]) -> Machine {
        let banks = banks.iter().map(|(bank, extend)| BankPcrs::new(*bank, *extend)).collect();
        Machine { banks, firmware: (0..=7).collect() }
    }

    fn extend(&mut self, record: &RecordBuf) {
        self.banks.iter_mut().for_each(|bank| bank.extend(&record.record()));
    }

    fn value(&self, bank: Bank, pcr: u32) -> Digest {
        let led = self.banks.iter().find(|state| state.bank() == bank).unwrap().value(pcr);
        if self.firmware.contains(pcr) {
            led.extended_with(&bank.hash(&[b"firmware"]))
        } else {
            led
        }
    }

    fn quote(&self, pcrs: PcrSet) -> VerifiedQuote {
        let select = |state: &BankPcrs| PcrSelection { bank: state.bank(), mask: pcrs.mask() };
        let selection = self.banks.iter().map(select).collect();
        VerifiedQuote::of(selection, |bank, pcr| self.value(bank, pcr))
    }

    /// The values of the quoted PCRs among `pcrs`.
    fn values(&self, quote: &VerifiedQuote, pcrs: PcrSet) -> PcrValues {
        let given = quote.pcrs().filter(|(_, pcr)| pcrs.contains(*pcr));
        let lines = given.map(|(bank, pcr)| format!("{bank} {pcr} {}\n", self.value(bank, pcr)));
        let lines = lines.collect::<String>();
        // A file without values is an error, not no values.
        if lines.is_empty() {
            return PcrValues::default();
        }
        PcrValues::parse(lines.as_bytes(), None).unwrap()
    }
}

fn record(pcr: u32, name: &str) -> RecordBuf {
    RecordBuf::ima_ng(pcr, &Bank::Sha256.hash(&[name.as_bytes()]), name.as_bytes())
}

fn all() -> PcrSet {
    PcrSet::from_mask(u32::MAX)
}

fn appraise(
    quote: VerifiedQuote,
    values: PcrValues,
    token: Option<&Token>,
    records: &[RecordBuf],
) -> Appraisal {
    let mut appraiser = Appraiser::new(quote, values, token, Requirements::default()).unwrap();
    records.iter().for_each(|record| appraiser.push(&record.record()));
    appraiser.finish()
}

/// Lists of records that name several PCRs, each with a violation or not.
fn lists() -> impl Strategy<Value = Vec<RecordBuf>> {
    let pcr = prop::sample::select(vec![10u32, 10, 10, 11, 12, 16]);
    proptest::collection::vec((pcr, any::<bool>()), 1..12).prop_map(|kinds| {
        let mut list = vec![record(10, "boot_aggregate")];
        list.extend(kinds.into_iter().enumerate().map(|(at, (pcr, violates))| {
            if violates && at % 3 == 0 {
                RecordBuf::ima_ng_violation(pcr, Bank::Sha256, format!("/v{at}").as_bytes())
            } else {
                record(pcr, &format!("/{at}"))
            }
        }));
        list
    })
}

fn machines() -> impl Strategy<Value = Vec<(Bank, Extend)>> {
    let extend = prop::sample::select(Extend::ALL.to_vec());
    proptest::collection::vec(extend, 3).prop_map(|ways| {
        vec![(Bank::Sha1, Extend::Own), (Bank::Sha256, ways[0]), (Bank::Sha512, ways[1])]
    })
}

proptest! {
    /// Whatever a list names: records of quoted PCRs are proven up to the quote, those of other PCRs
    /// are counted, and what came after the quote is left.
    #[test]
    fn honest_lists_pass_and_each_quoted_record_counts(
        list in lists(),
        machine in machines(),
        at: prop::sample::Index,
        more in any::<u32>(),
        given in prop::sample::select(vec![0u32, 0xff, 0x7ff, u32::MAX]),
        changed: prop::sample::Index,
    ) {
        let at = 1 + at.index(list.len());
        let mut tpm = Machine::new(&machine);
        list[..at].iter().for_each(|record| tpm.extend(record));
        let quoted = PcrSet::from_mask((more & 0x1_1800) | 1 << 10);
        let quote = tpm.quote(quoted);
        let values = tpm.values(&quote, PcrSet::from_mask(given));
        let appraisal = appraise(quote.clone(), values.clone(), None, &list);
        prop_assert_eq!(&appraisal.reason, &None);
        let last_quoted = list[..at].iter().rposition(|r| quoted.contains(r.record().pcr()));
        prop_assert_eq!(appraisal.records, last_quoted.unwrap() as u64 + 1);
        prop_assert_eq!(appraisal.records + appraisal.excess, list.len() as u64);
        let covered = &list[..appraisal.records as usize];
        let not_quoted = covered.iter().filter(|r| !quoted.contains(r.record().pcr())).count();
        prop_assert_eq!(appraisal.unprotected.not_quoted, not_quoted as u64);

        // Any other record of a quoted PCR in its place, and the quote refutes the list.
        let changed = changed.index(covered.len());
        let name = list[changed].record().pcr();
        let mut other = list.clone();
        other[changed] = record(name, "/other");
        let refuted = appraise(quote, values, None, &other);
        let expected = if quoted.contains(name) { Verdict::Fail } else { Verdict::Pass };
        prop_assert_eq!(refuted.verdict, expected, "{:?}", refuted.reason);
    }

    /// Two rounds prove what one proves, and neither banks nor PCRs can be left out of the second.
    #[test]
    fn rounds_join(
        list in lists(),
        machine in machines(),
        at: prop::sample::Index,
        given in prop::sample::select(vec![0xffu32, u32::MAX]),
    ) {
        let quoted: PcrSet = [10, 11, 12, 16].into_iter().collect();
        let mut tpm = Machine::new(&machine);
        let at = 1 + at.index(list.len());
        list[..at].iter().for_each(|record| tpm.extend(record));
        let quote = tpm.quote(quoted);
        let values = tpm.values(&quote, PcrSet::from_mask(given));
        let first = appraise(quote, values, None, &list[..at]);
        prop_assert_eq!(&first.reason, &None);
        let token = first.token.unwrap();
        prop_assert_eq!(Token::from_json(token.to_json().as_bytes()), Ok(token.clone()));
        list[at..].iter().for_each(|record| tpm.extend(record));
        let quote = tpm.quote(quoted);
        let values = tpm.values(&quote, PcrSet::from_mask(given));
        let second = appraise(quote.clone(), values.clone(), Some(&token), &list[at..]);
        let whole = appraise(quote, values, None, &list);
        prop_assert_eq!(&second.reason, &None);
        prop_assert_eq!((second.records, second.violations), (whole.records, whole.violations));
        prop_assert_eq!(&second.banks, &whole.banks);

        let fewer = Machine { banks: tpm.banks[1..].to_vec(), ..tpm.clone() };
        let shrunk = appraise(fewer.quote(quoted), PcrValues::default(), Some(&token), &list[at..]);
        let missing = vec![Bank::Sha1];
        let covered = vec![Bank::Sha256, Bank::Sha512];
        prop_assert_eq!(shrunk.reason, Some(Reason::TokenBanksNotCovered { missing, covered }));
        let ten = tpm.quote([10].into_iter().collect());
        let named: PcrSet = token.banks()[0].values().map(|(pcr, _)| pcr).collect();
        let lost = named.without([10].into_iter().collect());
        let shrunk = appraise(ten, PcrValues::default(), Some(&token), &list[at..]);
        if lost.is_empty() {
            prop_assert_eq!(shrunk.verdict, Verdict::Pass);
        } else {
            prop_assert_eq!(shrunk.reason, Some(Reason::TokenPcrsNotCovered { missing: lost }));
        }
    }
}

#[test]
fn a_pcr_that_firmware_extends_too_is_refuted_with_advice() {
    let list = [record(10, "boot_aggregate"), record(4, "/a"), record(10, "/b")];
    let mut tpm = Machine::new(&[(Bank::Sha256, Extend::Own)]);
    list.iter().for_each(|record| tpm.extend(record));
    let quote = tpm.quote([4, 10].into_iter().collect());
    let values = tpm.values(&quote, all());
    let reason = appraise(quote, values, None, &list).reason.unwrap();
    assert_eq!(reason, Reason::PcrMismatch { pcr: 4, bank: Bank::Sha256, record: Some(1) });
    assert!(reason.to_string().contains("firmware"), "{reason}");
    // Not quoted, such records are counted.
    let quote = tpm.quote([10].into_iter().collect());
    let appraisal = appraise(quote, PcrValues::default(), None, &list);
    assert_eq!((appraisal.reason, appraisal.unprotected.not_quoted), (None, 1));
}

#[test]
fn a_record_of_a_quoted_pcr_cannot_hide_behind_the_quote() {
    // The last record names PCR 11, which others extended: it is no excess.
    let list = [record(10, "boot_aggregate"), record(10, "/a"), record(11, "/b")];
    let mut tpm = Machine::new(&[(Bank::Sha256, Extend::Own)]);
    list.iter().for_each(|record| tpm.extend(record));
    tpm.extend(&record(11, "/hidden"));
    let quote = tpm.quote([10, 11].into_iter().collect());
    for given in [all(), PcrSet::EMPTY, [11].into_iter().collect()] {
        let values = tpm.values(&quote, given);
        let appraisal = appraise(quote.clone(), values, None, &list);
        assert_eq!(appraisal.verdict, Verdict::Fail, "{given}");
    }
    // Others may extend a PCR that no record names.
    let quote = tpm.quote([10, 11].into_iter().collect());
    let values = tpm.values(&quote, all());
    let appraisal = appraise(quote, values, None, &list[..2]);
    assert_eq!((appraisal.reason, appraisal.records), (None, 2));
}

#[test]
fn the_first_record_is_tied_to_the_quoted_pcrs_of_firmware() {
    let mut tpm = Machine::new(&[(Bank::Sha256, Extend::Own)]);
    let values: Vec<Digest> = (0..=9).map(|pcr| tpm.value(Bank::Sha256, pcr)).collect();
    let digest = Bank::Sha256.hash(&values.iter().map(Digest::as_bytes).collect::<Vec<_>>());
    for (name, digest, expected) in [
        ("boot_aggregate", digest, Ok(BootAggregate::Matches(Bank::Sha256))),
        ("boot_aggregate_late", digest, Ok(BootAggregate::Matches(Bank::Sha256))),
        ("boot_aggregate", Bank::Sha256.hash(&[]), Err(())),
        ("boot_aggregate", Digest::zero(Bank::Sha256), Err(())),
        ("/boot_aggregate", digest, Err(())),
    ] {
        let mut tpm = tpm.clone();
        let list = [RecordBuf::ima_ng(10, &digest, name.as_bytes()), record(10, "/a")];
        list.iter().for_each(|record| tpm.extend(record));
        let quote = tpm.quote((0..=10).collect());
        let values = tpm.values(&quote, all());
        let appraisal = appraise(quote, values, None, &list);
        match expected {
            Ok(expected) => {
                assert_eq!((appraisal.reason, appraisal.boot_aggregate), (None, expected))
            }
            Err(()) => assert_eq!(appraisal.verdict, Verdict::Fail, "{name} {digest}"),
        }
        // Not quoted, it is not compared, and the verdict says so.
        let quote = tpm.quote([10].into_iter().collect());
        let appraisal = appraise(quote, PcrValues::default(), None, &list);
        assert_eq!(appraisal.verdict, Verdict::Pass);
        assert!(!matches!(appraisal.boot_aggregate, BootAggregate::Matches(_)));
    }
    // A later round compares it as well: the token knows it.
    let first = RecordBuf::ima_ng(10, &digest, b"boot_aggregate");
    tpm.extend(&first);
    let quote = tpm.quote([10].into_iter().collect());
    let token = appraise(quote, PcrValues::default(), None, &[first]).token.unwrap();
    let quote = tpm.quote((0..=10).collect());
    let values = tpm.values(&quote, all());
    let appraisal = appraise(quote, values, Some(&token), &[]);
    assert_eq!(appraisal.boot_aggregate, BootAggregate::Matches(Bank::Sha256));
    tpm.firmware.insert(8);
    let quote = tpm.quote((0..=10).collect());
    let values = tpm.values(&quote, all());
    let appraisal = appraise(quote, values, Some(&token), &[]);
    assert!(matches!(appraisal.reason, Some(Reason::BootAggregate(_))), "{:?}", appraisal.reason);
}

#[test]
fn what_the_quote_does_not_protect_is_counted() {
    let mut tpm = Machine::new(&[(Bank::Sha256, Extend::Own)]);
    let list = [
        record(10, "boot_aggregate"),
        RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v"),
        record(23, "/not-quoted"),
        record(10, "/relabelled"),
        record(10, "/last"),
    ];
    list.iter().for_each(|record| tpm.extend(record));
    let quote = tpm.quote([10].into_iter().collect());
    // One bit of a template's name: nothing the PCR would notice.
    let mut bytes: Vec<u8> = list.iter().flat_map(|record| record.as_bytes().to_vec()).collect();
    let start: usize = list[..3].iter().map(|record| record.as_bytes().len()).sum();
    bytes[start + 4 + 20 + 4 + 1] = b'l';
    let requirements = Requirements::default();
    let mut appraiser = Appraiser::new(quote, PcrValues::default(), None, requirements).unwrap();
    for record in Records::new(&bytes, Format::native(Bank::Sha1)) {
        appraiser.push(&record.unwrap());
    }
    let appraisal = appraiser.finish();
    assert_eq!(appraisal.reason, None);
    let expected = Unprotected {
        not_quoted: 1,
        not_quoted_pcrs: [23].into_iter().collect(),
        violations: 1,
        unknown_templates: 1,
        first_unknown_template: Some(3),
    };
    assert_eq!(appraisal.unprotected, expected);
    // A PCR that earlier records name cannot be quoted in a later round only.
    let token = appraisal.token.unwrap();
    let quote = tpm.quote([10, 23].into_iter().collect());
    let error = Appraiser::new(quote, PcrValues::default(), Some(&token), Requirements::default());
    assert!(matches!(error, Err(AppraisalError::TokenPcrs { .. })));
}
