//! The accepted requests are exactly those of a model that knows no more than the rules.

use ima_securityfs::{Errno, Part, Request};
use proptest::prelude::*;

/// The rules, one after the other, by other means than the crate's.
fn model(write: &[u8], part: Part, flush: bool) -> Result<String, Errno> {
    if write.len() < 2 || write.len() > 21 || write[write.len() - 1] != b'\n' {
        return Err(Errno::EINVAL);
    }
    if part == Part::Staged {
        let known = write.len() == 2 && "AD".contains(char::from(write[0]));
        return known.then(|| char::from(write[0]).into()).ok_or(Errno::EINVAL);
    }
    if flush {
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
    // Numbers of as many digits compare as text.
    if digits.len() > 20 || digits.len() == 20 && digits > "18446744073709551615" {
        return Err(Errno::ERANGE);
    }
    Ok(digits.into())
}

fn told(request: Request) -> String {
    match request {
        Request::Stage => "A".into(),
        Request::DeleteStaged => "D".into(),
        Request::DeleteFirst(n) => n.to_string(),
    }
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![Just(Part::Current), Just(Part::Staged)]
}

/// Bytes that mean something to the grammar.
fn near() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![6 => b'0'..=b'9', 1 => prop::sample::select(&b"+-\n\0AD xX"[..])];
    let sign = prop_oneof![3 => Just(&b""[..]), 1 => Just(&b"+"[..])];
    let end = prop_oneof![8 => Just(&b"\n"[..]), 2 => Just(&b"\n\n"[..]), 1 => Just(&b""[..])];
    (sign, prop::collection::vec(byte, 0..22), end)
        .prop_map(|(sign, middle, end)| [sign, &middle, end].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn near_requests(write in near(), part in part(), flush in any::<bool>()) {
        prop_assert_eq!(Request::parse(&write, part, flush).map(told), model(&write, part, flush));
    }

    #[test]
    fn numbers(n in any::<u128>(), shift in 60u32..128, part in part()) {
        let write = format!("{}\n", n >> shift);
        let write = write.as_bytes();
        prop_assert_eq!(Request::parse(write, part, false).map(told), model(write, part, false));
    }

    #[test]
    fn any_bytes(write in prop::collection::vec(any::<u8>(), 0..30), part in part()) {
        prop_assert_eq!(Request::parse(&write, part, false).map(told), model(&write, part, false));
    }
}

#[test]
fn every_write_of_up_to_two_bytes() {
    for part in [Part::Current, Part::Staged] {
        let all = (0..=u16::MAX).map(u16::to_le_bytes);
        for write in all.clone().map(|bytes| bytes.to_vec()).chain([vec![], b"\n".to_vec()]) {
            let found = Request::parse(&write, part, false).map(told);
            assert_eq!(found, model(&write, part, false), "{write:?}");
        }
    }
}
