//! Request parsing compared with an independent model of the rules.

use ima_securityfs::{Bank, Dialect, Errno, FileName, Form, Grammar, Part, Request};
use proptest::prelude::*;

/// The rules in order, implemented independently of the crate.
fn model(write: &[u8], file: FileName, position: u64, grammar: Grammar) -> Result<String, Errno> {
    let Grammar { dialect, flush } = grammar;
    if dialect != Dialect::Linux72 && position != 0 {
        return Err(Errno::EINVAL);
    }
    let part = match (dialect, file) {
        (Dialect::Trim, FileName::TrimLog) => return trim_model(write, flush),
        (Dialect::Trim, _) => return Err(Errno::EINVAL),
        (_, FileName::Measurements { part, .. }) => part,
        _ => return Err(Errno::EINVAL),
    };
    if write.len() < 2 || write.len() > 21 || write[write.len() - 1] != b'\n' {
        return Err(Errno::EINVAL);
    }
    if part == Part::Staged && write.len() == 2 && "AD".contains(char::from(write[0])) {
        return Ok(char::from(write[0]).into());
    }
    if flush || (part == Part::Staged) != (dialect == Dialect::V4) {
        return Err(Errno::EINVAL);
    }
    // A C string without its last byte: up to the first NUL; one newline may end it.
    let mut text: String = write[..write.len() - 1]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
        .iter()
        .map(|byte| char::from(*byte))
        .collect();
    if text.ends_with('\n') {
        text.pop();
    }
    if text.starts_with('+') {
        text.remove(0);
    }
    if text.is_empty() || text.chars().any(|c| !c.is_ascii_digit()) {
        return Err(Errno::EINVAL);
    }
    let digits = text.trim_start_matches('0');
    if digits.is_empty() {
        return Err(Errno::EINVAL);
    }
    // Numbers of equal length compare as text.
    if digits.len() > 20 || digits.len() == 20 && digits > "18446744073709551615" {
        return Err(Errno::ERANGE);
    }
    Ok(digits.into())
}

/// As [`model`], for the trim log.
fn trim_model(write: &[u8], flush: bool) -> Result<String, Errno> {
    if flush || write.len() < 2 || write.len() > 31 {
        return Err(Errno::EINVAL);
    }
    let text: String = write.iter().map(|byte| char::from(*byte)).collect();
    let text = text.split('\0').next().unwrap_or_default();
    let (t, n) = text.split_once(':').ok_or(Errno::EINVAL)?;
    let n = n.strip_suffix('\n').unwrap_or(n);
    let n = n.strip_prefix('+').unwrap_or(n);
    let lower = n.to_ascii_lowercase();
    let (n, radix) = match lower.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None if n.starts_with('0') => (n, 8),
        None => (n, 10),
    };
    let number = |digits: &str, radix| {
        if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
            return Err(Errno::EINVAL);
        }
        i64::from_str_radix(digits, radix).map_err(|_| Errno::ERANGE)
    };
    Ok(format!("{}:{}", number(t, 10)?, number(n, radix)?))
}

fn to_text(request: Request) -> String {
    match request {
        Request::Stage => "A".into(),
        Request::DeleteStaged => "D".into(),
        Request::DeleteFirst(n) => n.to_string(),
        Request::Trim { trimmed, n } => format!("{trimmed}:{n}"),
    }
}

fn measurements(part: Part) -> FileName {
    FileName::Measurements { form: Form::Ascii, bank: Some(Bank::SHA1), part }
}

fn file() -> impl Strategy<Value = FileName> {
    prop_oneof![
        3 => Just(measurements(Part::Current)),
        3 => Just(measurements(Part::Staged)),
        3 => Just(FileName::TrimLog),
        1 => Just(FileName::Count),
    ]
}

fn grammar() -> impl Strategy<Value = Grammar> {
    (prop::sample::select(&Dialect::ALL[..]), prop::bool::weighted(0.2))
        .prop_map(|(dialect, flush)| Grammar { dialect, flush })
}

fn position() -> impl Strategy<Value = u64> {
    prop_oneof![9 => Just(0), 1 => any::<u64>()]
}

/// Writes of bytes that are significant to the grammar.
fn near() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![6 => b'0'..=b'9', 1 => prop::sample::select(&b"+-\n\0AD xX"[..])];
    let sign = prop_oneof![3 => Just(&b""[..]), 1 => Just(&b"+"[..])];
    let end = prop_oneof![8 => Just(&b"\n"[..]), 2 => Just(&b"\n\n"[..]), 1 => Just(&b""[..])];
    (sign, prop::collection::vec(byte, 0..22), end)
        .prop_map(|(sign, middle, end)| [sign, &middle, end].concat())
}

/// `T:N` and near misses.
fn near_trim() -> impl Strategy<Value = Vec<u8>> {
    let t = prop_oneof![6 => "[0-9]{1,20}", 1 => "[+ ]?[0-9]{0,2}", 1 => "0x[0-9a-f]{1,3}"];
    let n = prop_oneof![
        4 => "[+]?[0-9]{0,20}",
        2 => "[+]?0[xX][0-9a-fA-F]{0,17}",
        1 => "0[0-9]{0,23}",
        1 => "[-+ ]{0,2}[0-9xb]{0,3}",
    ];
    let end = prop::sample::select(&["", "\n", "\0", "\0junk\n", "\n\n", " \n"][..]);
    (t, prop_oneof![9 => Just(":"), 1 => Just("")], n, end)
        .prop_map(|(t, colon, n, end)| [&t, colon, &n, end].concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn near_requests_match_the_model(
        write in near(),
        file in file(),
        at in position(),
        grammar in grammar(),
    ) {
        let found = Request::parse(&write, file, at, grammar).map(to_text);
        prop_assert_eq!(found, model(&write, file, at, grammar));
    }

    #[test]
    fn near_trims_match_the_model(
        write in near_trim(),
        at in position(),
        flush in prop::bool::weighted(0.05),
    ) {
        let grammar = Grammar { dialect: Dialect::Trim, flush };
        let found = Request::parse(&write, FileName::TrimLog, at, grammar).map(to_text);
        prop_assert_eq!(found, model(&write, FileName::TrimLog, at, grammar));
    }

    #[test]
    fn numbers_match_the_model(
        n in any::<u128>(),
        shift in 60u32..128,
        file in file(),
        grammar in grammar(),
    ) {
        let write = format!("{}\n", n >> shift);
        let write = write.as_bytes();
        let found = Request::parse(write, file, 0, grammar).map(to_text);
        prop_assert_eq!(found, model(write, file, 0, grammar));
    }

    #[test]
    fn arbitrary_bytes_match_the_model(
        write in prop::collection::vec(any::<u8>(), 0..35),
        file in file(),
        grammar in grammar(),
    ) {
        let found = Request::parse(&write, file, 0, grammar).map(to_text);
        prop_assert_eq!(found, model(&write, file, 0, grammar));
    }
}

#[test]
fn every_write_of_up_to_two_bytes_matches_the_model() {
    for dialect in Dialect::ALL {
        let grammar = Grammar { dialect, flush: false };
        for file in [measurements(Part::Current), measurements(Part::Staged), FileName::TrimLog] {
            let all = (0..=u16::MAX).map(|bytes| bytes.to_le_bytes().to_vec());
            for write in all.chain([vec![], b"\n".to_vec()]) {
                let found = Request::parse(&write, file, 0, grammar).map(to_text);
                assert_eq!(found, model(&write, file, 0, grammar), "{write:?}");
            }
        }
    }
}
