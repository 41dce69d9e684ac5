//! Every quote of the corpus, with the list it belongs to and with lists it does not belong to.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use common::*;
use ima_log::{Bank, Extend};
use imastage_verifier::{
    AppraisalError, Appraiser, BootAggregate, KeyError, PcrValues, PublicKey, QuoteError, Reason,
    Requirements, Token, UnverifiedQuote, ValuesGiven, Verdict,
};

fn requirements() -> Requirements {
    Requirements::default()
}

#[test]
fn every_quote_covers_its_whole_list() {
    for folder in FOLDERS {
        let list = list(folder);
        let records = records(&list);
        let count = number(&format!("{folder}/count"));
        let all_values = PcrValues::parse(&read(&format!("{folder}/pcrs")), None).unwrap();
        for name in QUOTES {
            // With PCR 10 known, from both kinds of files, and with PCR 10 to be searched for.
            for pcrs in [quoted_pcrs(folder, name), all_values.clone(), other_pcrs(folder)] {
                let quote = quote(folder, name);
                assert!(quote.pcrs().all(|(bank, index)| all_values.get(bank, index).is_some()));
                let appraisal = appraise(quote.clone(), pcrs, None, &records);
                assert_eq!(appraisal.verdict, Verdict::Pass, "{folder} {name:?}");
                assert_eq!(appraisal.reason, None);
                assert_eq!((appraisal.records, appraisal.excess), (count, 0), "{folder} {name:?}");
                assert_eq!(appraisal.unprotected.not_quoted, 0);
                assert_eq!(appraisal.unprotected.unknown_templates, 0);
                // Of `ima`, the aggregate is of the sha1 bank.
                let is_firmware_quoted = name == QUOTES[2] && folder != "legacy-ima";
                let matches = matches!(appraisal.boot_aggregate, BootAggregate::Matches(_));
                assert_eq!(matches, is_firmware_quoted, "{folder} {:?}", appraisal.boot_aggregate);
                // The counter starts at 0 in the second kernel.
                if folder != "kexec/2-after" {
                    assert_eq!(appraisal.violations, number(&format!("{folder}/violations")));
                }
                for state in &appraisal.banks {
                    assert_eq!(state.extend_kind(), Extend::Own);
                    assert_eq!(all_values.get(state.bank(), 10), Some(state.value(10)));
                }
                let token = appraisal.token.unwrap();
                assert_eq!((token.next(), token.rounds()), (count, 1));
                assert_eq!(token.banks(), appraisal.banks);
                assert_eq!(token.key_fingerprint(), quote.key_fingerprint());
                assert_eq!(Token::from_json(token.to_json().as_bytes()), Ok(token));
            }
        }
        let multi = quote(folder, QUOTES[2]);
        assert_eq!(multi.pcrs().count(), 12);
        assert_eq!(multi.pcrs().next(), Some((Bank::Sha1, 10)));
    }
}

#[test]
fn the_list_of_another_bank_will_do() {
    let folder = "debian-6.12-violations";
    for bank in [Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512] {
        let list = read(&format!("{folder}/binary_{bank}"));
        let format = ima_log::Format { bank, endian: ima_log::Endian::Little };
        let mut appraiser =
            Appraiser::new(quote(folder, QUOTES[2]), other_pcrs(folder), None, requirements())
                .unwrap();
        for record in ima_log::Records::new(&list, format) {
            appraiser.push(&record.unwrap());
        }
        let appraisal = appraiser.finish();
        assert_eq!((appraisal.reason, appraisal.records), (None, 466), "{bank}");
    }
}

#[test]
fn records_after_the_quote_are_left_for_the_next_round() {
    let list = [list("violations"), list("signed")].concat();
    let records = records(&list);
    let count = number("violations/count");
    let appraisal = appraise(quote("violations", QUOTES[0]), PcrValues::default(), None, &records);
    assert_eq!((appraisal.reason, appraisal.records), (None, count));
    assert_eq!(appraisal.excess, records.len() as u64 - count);
}

#[test]
fn no_bit_of_a_quote_can_be_flipped() {
    let folder = "debian-6.1";
    for (name, key_file) in QUOTES {
        let (message, signature) =
            (read(&format!("{folder}/{name}.msg")), read(&format!("{folder}/{name}.sig")));
        let key = key(&format!("{folder}/{key_file}"));
        verify(&message, &signature, &key).unwrap();
        for bit in 0..message.len() * 8 {
            let mut message = message.clone();
            message[bit / 8] ^= 1 << (bit % 8);
            let error = verify(&message, &signature, &key).unwrap_err();
            // Where the bit makes something else of it, nobody is accused.
            let expected = match (bit, &error) {
                (0..32, _) => matches!(error, QuoteError::OtherMessage(_)),
                (32..48, _) => matches!(error, QuoteError::NotAQuote(_)),
                (_, QuoteError::MessageFormat(_) | QuoteError::Trailing { .. }) => true,
                _ => error == QuoteError::Signature { key: key.fingerprint() },
            };
            assert!(expected, "bit {bit}: {error}");
        }
        for bit in 0..signature.len() * 8 {
            let mut signature = signature.clone();
            signature[bit / 8] ^= 1 << (bit % 8);
            verify(&message, &signature, &key).unwrap_err();
        }
        for cut in 0..signature.len() {
            let error = verify(&message, &signature[..cut], &key).unwrap_err();
            match cut {
                0..4 => assert!(matches!(error, QuoteError::OtherSignature { .. }), "{error}"),
                _ => assert!(matches!(error, QuoteError::SignatureFormat(_)), "{error}"),
            }
        }
        let longer = [&signature[..], &[0]].concat();
        let error = verify(&message, &longer, &key).unwrap_err();
        assert_eq!(error, QuoteError::Trailing { what: "signature", count: 1 });
    }
}

#[test]
fn a_quote_is_for_one_nonce_and_of_one_key() {
    let (message, signature) = (read("signed/quote.msg"), read("signed/quote.sig"));
    let quote = UnverifiedQuote { message: &message, signature: &signature };
    let own = key("signed/ak.pub.pem");
    for nonce in [&b""[..], &NONCE[..7], &[0; 8], &[0; 100]] {
        let error = quote.verify(&own, nonce).unwrap_err();
        let expected = QuoteError::Nonce { expected: nonce.to_vec(), found: NONCE.to_vec() };
        assert_eq!(error, expected);
    }
    for folder in FOLDERS.into_iter().filter(|folder| *folder != "signed") {
        let key = key(&format!("{folder}/ak.pub.pem"));
        let error = quote.verify(&key, &NONCE).unwrap_err();
        assert_eq!(error, QuoteError::Signature { key: key.fingerprint() });
    }
    let ecc = quote.verify(&key("signed/akecc.pub.pem"), &NONCE).unwrap_err();
    assert!(matches!(ecc, QuoteError::Scheme { key: "P-256", .. }), "{ecc}");
    let rsa = verify(&read("signed/quote_ecc.msg"), &read("signed/quote_ecc.sig"), &own);
    assert!(matches!(rsa, Err(QuoteError::Scheme { key: "RSA", .. })), "{rsa:?}");
}

#[test]
fn altered_lists_are_found_out() {
    let folder = "violations";
    let list = list(folder);
    let records = records(&list);
    let count = records.len();
    // What the values given are worth decides how the search is done and what can be said.
    let searches = [
        (QUOTES[0], PcrValues::default(), ValuesGiven::None),
        (QUOTES[0], quoted_pcrs(folder, QUOTES[0]), ValuesGiven::Proven),
        (QUOTES[2], quoted_pcrs(folder, QUOTES[2]), ValuesGiven::Proven),
        (QUOTES[2], other_pcrs(folder), ValuesGiven::Some),
    ];
    for (name, pcrs, given) in &searches {
        let fails = |records: &[ima_log::Record<'_>]| {
            let appraisal = appraise(quote(folder, *name), pcrs.clone(), None, records);
            assert_eq!(appraisal.verdict, Verdict::Fail);
            assert_eq!(appraisal.token, None);
            assert_eq!((appraisal.records, appraisal.excess), (0, records.len() as u64));
            appraisal.reason.unwrap()
        };
        let no_match = |replayed: usize| Reason::NoMatch {
            pcr: 10,
            unknown: vec![],
            replayed: replayed as u64,
            from: 0,
            moved: imastage_verifier::Moved::NoToken,
            restarts: 0,
            given: *given,
        };
        for at in [0, 1, count / 2, count - 1] {
            let mut dropped = records.clone();
            dropped.remove(at);
            assert_eq!(fails(&dropped), no_match(count - 1));

            // Another record that is sound in itself.
            let mut altered = records.clone();
            altered[at] = records[(at + 1) % count];
            assert_eq!(fails(&altered), no_match(count));

            let mut added = records.clone();
            added.insert(at, records[5]);
            assert_eq!(fails(&added), no_match(count + 1));
        }
        let mut swapped = records.clone();
        swapped.swap(10, 11);
        assert_eq!(fails(&swapped), no_match(count));
        assert_eq!(fails(&records[..count - 1]), no_match(count - 1));
        assert_eq!(fails(&records[1..]), no_match(count - 1));
        assert_eq!(fails(&[]), Reason::NoRecords);
    }
}

#[test]
fn a_record_with_a_wrong_digest_is_named_even_if_its_data_replays() {
    let (folder, at) = ("debian-6.1", 123);
    let mut list = list(folder);
    let offset: usize = records(&list)[..at].iter().map(|record| record.as_bytes().len()).sum();
    list[offset + 4] ^= 1;
    let records = records(&list);
    // The sha256 PCR is extended with the digest of the data, which is untouched.
    let appraisal = appraise(quote(folder, QUOTES[0]), PcrValues::default(), None, &records);
    let reason = appraisal.reason.unwrap();
    assert_eq!(reason, Reason::Altered { record: at as u64 });
    assert!(reason.to_string().starts_with("record 123 was altered"), "{reason}");
}

#[test]
fn a_wrong_value_of_another_pcr_is_suspected() {
    let folder = "debian-6.1";
    let list = list(folder);
    let text = String::from_utf8(read(&format!("{folder}/pcrs"))).unwrap();
    let wrong: Vec<String> = text
        .lines()
        .map(|line| match line.strip_prefix("sha256 7 ") {
            Some(value) => format!("sha256 7 {}", value.chars().rev().collect::<String>()),
            None => line.to_owned(),
        })
        .collect();
    let pcrs = PcrValues::parse_text(&wrong.join("\n"), None).unwrap();
    let appraisal = appraise(quote(folder, QUOTES[2]), pcrs, None, &records(&list));
    let reason = appraisal.reason.unwrap();
    let Reason::NoMatch { given: ValuesGiven::Refuted, .. } = reason else {
        panic!("{reason:?}");
    };
    assert!(reason.to_string().contains("a value given is not the quoted one"), "{reason}");
}

#[test]
fn a_wrong_value_of_pcr_10_is_overruled() {
    let folder = "debian-6.1";
    let text = String::from_utf8(read(&format!("{folder}/pcrs"))).unwrap();
    let stale: Vec<String> = text
        .lines()
        .map(|line| match line.strip_prefix("sha256 10 ") {
            Some(value) => format!("sha256 10 {}", "0".repeat(value.len())),
            None => line.to_owned(),
        })
        .collect();
    let pcrs = PcrValues::parse_text(&stale.join("\n"), None).unwrap();
    let list = list(folder);
    let appraisal = appraise(quote(folder, QUOTES[2]), pcrs, None, &records(&list));
    assert_eq!((appraisal.reason, appraisal.records), (None, 461));
}

#[test]
fn missing_values_are_named() {
    let error =
        Appraiser::new(quote("signed", QUOTES[2]), PcrValues::default(), None, requirements())
            .unwrap_err();
    let AppraisalError::MissingValues(missing) = &error else { panic!("{error:?}") };
    assert_eq!(missing.len(), 8);
    let text = error.to_string();
    assert!(text.contains("sha256:0,1,2,3,4,5,6,7)") && text.contains("--pcrs"), "{text}");
}

/// The two kernels were attested with keys of their own, so the second round cannot continue the
/// first; but the list as a whole, carried over, is proven.
#[test]
fn a_new_key_after_kexec_starts_anew() {
    let before = list("kexec/1-before");
    let after = list("kexec/2-after");
    assert!(after.starts_with(&before));
    for name in QUOTES {
        let first = appraise(
            quote("kexec/1-before", name),
            other_pcrs("kexec/1-before"),
            None,
            &records(&before),
        );
        let token = first.token.unwrap();
        let rest = &records(&after)[token.next() as usize..];
        let second =
            appraise(quote("kexec/2-after", name), other_pcrs("kexec/2-after"), Some(&token), rest);
        assert_eq!(second.verdict, Verdict::Fail);
        let expected = token.key_fingerprint();
        let found = quote("kexec/2-after", name).key_fingerprint();
        assert_eq!(second.reason, Some(Reason::OtherKey { expected, found }));
        // Kept: what was verified before.
        assert_eq!((second.records, second.excess), (token.next(), rest.len() as u64));

        // With the key of the second kernel in the token the rounds join: the PCRs went on.
        let json = token.to_json().replace(&expected.to_string(), &found.to_string());
        let rejoined = Token::from_json(json.as_bytes()).unwrap();
        let second = appraise(
            quote("kexec/2-after", name),
            other_pcrs("kexec/2-after"),
            Some(&rejoined),
            rest,
        );
        assert_eq!((second.reason, second.records), (None, number("kexec/2-after/count")));
        assert_eq!(second.token.unwrap().rounds(), 2);
    }
}

#[test]
fn what_is_no_key_is_refused() {
    let refused = |pem: &str| PublicKey::from_pem(pem).unwrap_err();
    assert_eq!(refused(""), KeyError::Other("empty"));
    assert!(matches!(refused("-----BEGIN PUBLIC KEY-----\n"), KeyError::Pem(_)));
    let pem = String::from_utf8(read("signed/ak.pub.pem")).unwrap();
    let private = pem.replace("PUBLIC KEY", "PRIVATE KEY");
    assert_eq!(refused(&private), KeyError::Private);
    let short = "-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n";
    assert!(matches!(refused(short), KeyError::Key(_)));
    let rsa_1024 = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDcGAYt1C6QiufDng+iqeoubC8b
bTN/RQ9J1zlJ5d5GBmGnj5OGaXZIzqL0sSnWHmUDbzapmGJg1s4EYorYKqf47hz+
wNcRHTWn2Nbznz8vOfrX0y2TQ6xS5xDoCZb0s5rq/aS8nywjddO7UPNuonQp7s8X
OhKV4rtJUHZ5e2wANwIDAQAB
-----END PUBLIC KEY-----
";
    assert_eq!(refused(rsa_1024), KeyError::Short(1024));
    // openssl pkey -pubin -in ak.pub.pem -outform DER | sha256sum
    assert_eq!(
        key("signed/ak.pub.pem").fingerprint().to_string(),
        "fb0ab02548acc23a16bdbf47f937856b11bc85b4311644b817cc35787cbae898"
    );
}
