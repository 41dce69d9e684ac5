//! Rounds that continue from a token, against the whole list at once.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::sync::LazyLock;

use common::*;
use ima_log::{Bank, Extend, Record, RecordBuf, Replay};
use imastage_verifier::{
    AppraisalError, Appraiser, Moved, PcrValues, Reason, Requirements, Token, ValuesGiven, Verdict,
    VerifiedQuote,
};
use proptest::prelude::*;

const FOLDER: &str = "debian-6.12-violations";

static LIST: LazyLock<Vec<u8>> = LazyLock::new(|| list(FOLDER));

/// What a round over the first `next` records would have left behind, one second ago.
fn token(quote: &VerifiedQuote, next: usize, banks: &[Bank]) -> String {
    let records = records(&LIST);
    let pcrs: Vec<String> = banks
        .iter()
        .map(|bank| {
            let mut replay = Replay::new(*bank, Extend::Own);
            records[..next].iter().for_each(|record| replay.extend(record));
            format!(r#"{{"bank":"{bank}","extend":"own","pcrs":{{"10":"{}"}}}}"#, replay.value())
        })
        .collect();
    let violations = records[..next].iter().filter(|record| record.is_violation()).count();
    let clock = quote.clock();
    format!(
        r#"{{"version":2,"next":{next},"pcr":10,"banks":[{}],"not_quoted":[],"boot_aggregate":{},"key":"{}","reset_count":{},"restart_count":{},"clock":{},"rounds":1,"violations":{violations}}}"#,
        pcrs.join(","),
        boot_aggregate(&records[0]),
        quote.key_fingerprint(),
        clock.reset_count,
        clock.restart_count,
        clock.clock - 1000,
    )
}

fn boot_aggregate(record: &Record<'_>) -> String {
    let digest = record.file_digest().unwrap();
    format!(r#"{{"hash":"{}","value":"{}"}}"#, digest.algorithm, hex::encode(digest.digest))
}

fn parse(json: &str) -> Token {
    Token::from_json(json.as_bytes()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_cut_gives_what_the_whole_list_gives(
        cut in 1..=466usize,
        excess in 0..5usize,
        which in 0..3usize,
        known in any::<bool>(),
    ) {
        let name = QUOTES[which];
        let quote = quote(FOLDER, name);
        let pcrs = if known { quoted_pcrs(FOLDER, name) } else { other_pcrs(FOLDER) };
        let list = records(&LIST);
        let more: Vec<Record<'_>> = list.iter().chain(&list[..excess]).copied().collect();

        let whole = appraise(quote.clone(), pcrs.clone(), None, &more);
        let banks: Vec<Bank> = quote.selection().iter().map(|selection| selection.bank).collect();
        let token = parse(&token(&quote, cut, &banks));
        let rest = appraise(quote, pcrs, Some(&token), &more[cut..]);
        prop_assert_eq!(&rest.reason, &None);
        prop_assert_eq!(rest.records, whole.records);
        prop_assert_eq!(rest.excess, whole.excess);
        prop_assert_eq!(rest.violations, whole.violations);
        prop_assert_eq!(&rest.banks, &whole.banks);
        let (rest, whole) = (rest.token.unwrap(), whole.token.unwrap());
        prop_assert_eq!((rest.next(), rest.violations()), (whole.next(), whole.violations()));
        prop_assert_eq!((rest.rounds(), whole.rounds()), (2, 1));
    }

    #[test]
    fn a_token_and_records_that_do_not_join_fail(
        cut in 1..=466usize,
        start in 0..=466usize,
        which in 0..3usize,
    ) {
        prop_assume!(cut != start && cut != 466);
        let quote = quote(FOLDER, QUOTES[which]);
        let banks: Vec<Bank> = quote.selection().iter().map(|selection| selection.bank).collect();
        let token = parse(&token(&quote, cut, &banks));
        let list = records(&LIST);
        let appraisal =
            appraise(quote, quoted_pcrs(FOLDER, QUOTES[which]), Some(&token), &list[start..]);
        prop_assert_eq!(
            appraisal.reason,
            Some(Reason::NoMatch {
                pcr: 10,
                replayed: (466 - start) as u64,
                from: cut as u64,
                moved: Moved::Yes,
                restarts: 0,
                given: ValuesGiven::Proven,
                unknown: vec![],
            })
        );
        prop_assert_eq!(appraisal.records, cut as u64);
    }
}

#[test]
fn no_news_passes_and_stays_where_it_is() {
    let quote = quote(FOLDER, QUOTES[0]);
    let before = parse(&token(&quote, 466, &[Bank::Sha256]));
    let list = records(&LIST);
    let appraisal = appraise(quote, PcrValues::default(), Some(&before), &list[..3]);
    assert_eq!((appraisal.verdict, appraisal.records), (Verdict::Pass, 466));
    assert_eq!((appraisal.excess, appraisal.violations), (3, 2));
    let after = appraisal.token.unwrap();
    assert_eq!((after.next(), after.rounds(), after.banks()), (466, 2, before.banks()));
}

#[test]
fn a_list_that_stands_still_while_the_pcr_moves_is_told() {
    let quote = quote(FOLDER, QUOTES[0]);
    let token = parse(&token(&quote, 400, &[Bank::Sha256]));
    let appraisal = appraise(quote, PcrValues::default(), Some(&token), &[]);
    let text = appraisal.reason.unwrap().to_string();
    assert_eq!(
        text,
        "PCR 10 has moved since the last round, but no records were given from index 400 on"
    );
}

#[test]
fn a_quote_that_does_not_continue_the_token_fails() {
    let quote = quote(FOLDER, QUOTES[0]);
    let clock = quote.clock();
    let json = token(&quote, 400, &[Bank::Sha256]);
    let list = records(&LIST);
    let reason = |from: &str, to: &str| {
        assert!(json.contains(from), "{from}");
        let token = parse(&json.replacen(from, to, 1));
        let appraisal = appraise(quote.clone(), PcrValues::default(), Some(&token), &list[400..]);
        assert_eq!((appraisal.records, appraisal.excess), (400, 66));
        appraisal.reason.unwrap()
    };
    assert_eq!((clock.reset_count, clock.restart_count), (2, 0));
    let reset = reason(r#""reset_count":2"#, r#""reset_count":1"#);
    assert_eq!(reset, Reason::Reset { before: 1, now: 2 });
    assert!(reset.to_string().starts_with("TPM was reset since"), "{reset}");
    assert!(reset.to_string().ends_with("start from record 0 without the token"), "{reset}");
    assert_eq!(
        reason(r#""restart_count":0"#, r#""restart_count":1"#),
        Reason::Restarts { before: 1, now: 0 }
    );
    assert_eq!(
        reason(&format!(r#""clock":{}"#, clock.clock - 1000), r#""clock":9999999"#),
        Reason::Clock { before: 9_999_999, now: clock.clock }
    );
    let key = quote.key_fingerprint();
    let other = Bank::Sha256.hash(&[b"another key"]);
    assert_eq!(
        reason(&key.to_string(), &other.to_string()),
        Reason::OtherKey { expected: other, found: key }
    );
}

#[test]
fn a_restart_between_the_rounds_is_no_reason_but_a_hint() {
    let quote = quote(FOLDER, QUOTES[0]);
    // The counter has gone from 2^32 - 1 to 0: keys may see it with something added.
    let json = token(&quote, 400, &[Bank::Sha256]);
    let token = parse(&json.replacen(r#""restart_count":0"#, r#""restart_count":4294967295"#, 1));
    let list = records(&LIST);
    let resumed = appraise(quote.clone(), PcrValues::default(), Some(&token), &list[400..]);
    assert_eq!((resumed.reason, resumed.records), (None, 466));
    let lost = appraise(quote, PcrValues::default(), Some(&token), &list[401..]);
    let text = lost.reason.unwrap().to_string();
    assert!(text.contains("restart counter rose by 1 since"), "{text}");
}

#[test]
fn a_token_without_a_quoted_bank_is_no_use() {
    let quote = quote(FOLDER, QUOTES[2]);
    let token = parse(&token(&quote, 466, &[Bank::Sha256]));
    let values = quoted_pcrs(FOLDER, QUOTES[2]);
    let error = Appraiser::new(quote, values, Some(&token), Requirements::default()).unwrap_err();
    assert_eq!(
        error,
        AppraisalError::TokenBanks { unknown: vec![Bank::Sha1], known: vec![Bank::Sha256] }
    );
}

#[test]
fn records_of_other_pcrs_are_counted_but_not_proven() {
    let quote = quote(FOLDER, QUOTES[0]);
    let stray = RecordBuf::ima_ng(11, &Bank::Sha256.hash(&[]), b"/stray");
    let mut list = records(&LIST);
    list.insert(100, stray.record());
    list.push(stray.record());
    let appraisal = appraise(quote, PcrValues::default(), None, &list);
    assert_eq!((appraisal.reason, appraisal.records), (None, 467));
    assert_eq!((appraisal.unprotected.not_quoted, appraisal.excess), (1, 1));
}
