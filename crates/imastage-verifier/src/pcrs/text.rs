//! PCR values as text: [`PcrValues::parse_text`] has the forms.

use std::collections::BTreeMap;

use ima_log::{Bank, Digest};

use super::{LineProblem, PcrFileError, PcrHint, PcrValues, index, is_bank_name, value};

pub(super) fn parse(text: &str, hint: PcrHint) -> Result<PcrValues, PcrFileError> {
    let mut reader = Reader { hint, section: None, values: BTreeMap::new(), unknown: None };
    for (n, line) in text.lines().enumerate() {
        reader.line(n + 1, line).map_err(|problem| PcrFileError::Line { line: n + 1, problem })?;
    }
    match reader.unknown {
        Some(bank) if reader.values.is_empty() => Err(PcrFileError::UnknownBanks { bank }),
        _ => Ok(PcrValues {
            values: reader.values.into_iter().map(|(pcr, (value, _))| (pcr, value)).collect(),
        }),
    }
}

/// A bank as a line names it.
#[derive(Clone)]
enum Named {
    Known(Bank),
    Unknown(String),
}

struct Reader {
    hint: PcrHint,
    /// The bank of the last line that was only a bank's name.
    section: Option<Named>,
    /// Each with its line.
    values: BTreeMap<(Bank, u32), (Digest, usize)>,
    /// The first bank that was skipped.
    unknown: Option<String>,
}

/// Lines of what tpm2_quote and tpm2_checkquote print that have no PCR values: these words, a colon,
/// and perhaps hex after it.
const OTHER_KEYS: [&str; 6] = ["pcrs", "quoted", "signature", "alg", "sig", "calcdigest"];

impl Reader {
    fn line(&mut self, number: usize, line: &str) -> Result<(), LineProblem> {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() || line == "---" || line == "..." {
            return Ok(());
        }
        if let Some((key, _)) = line.split_once(':')
            && OTHER_KEYS.iter().any(|other| key.trim().eq_ignore_ascii_case(other))
        {
            return Ok(());
        }
        let is_separator = |c: char| c.is_whitespace() || ":=/[]\"',".contains(c);
        let mut words: Vec<&str> =
            line.split(is_separator).filter(|word| !word.is_empty()).collect();
        // A path of sysfs: what is before its `pcr-BANK` says nothing.
        if line.contains('/') {
            let start = words.iter().position(|word| prefixed(word).is_some());
            words.drain(..start.ok_or(LineProblem::Form)?);
        }
        let mut words = words.as_slice();
        if let [pcr, rest @ ..] = words
            && pcr.eq_ignore_ascii_case("pcr")
        {
            words = rest;
        }
        let Some((first, rest)) = words.split_first() else { return Err(LineProblem::Form) };
        let first = prefixed(first).unwrap_or(first);
        if !line.ends_with(':') && is_hex(words) && (rest.is_empty() || self.is_value(words)) {
            return self.add(number, None, None, words);
        }
        match (named(first), rest) {
            (Some(bank), []) => {
                self.section = Some(bank);
                Ok(())
            }
            (Some(bank), [pcr, hex @ ..]) if is_hex(hex) => {
                self.add(number, Some(bank), Some(pcr), hex)
            }
            (None, [bank, hex @ ..]) if is_hex(hex) && named(bank).is_some() => {
                self.add(number, named(bank), Some(first), hex)
            }
            (None, hex) if is_hex(hex) => self.add(number, self.section.clone(), Some(first), hex),
            _ => Err(LineProblem::Form),
        }
    }

    /// Whether the words are a value with blanks between its digits, and not an index and a value.
    fn is_value(&self, words: &[&str]) -> bool {
        let digits = joined(words).len();
        match self.hint.bank {
            Some(bank) => digits == 2 * bank.size(),
            None => Bank::ALL.iter().any(|bank| digits == 2 * bank.size()),
        }
    }

    fn add(
        &mut self,
        line: usize,
        bank: Option<Named>,
        pcr: Option<&str>,
        hex: &[&str],
    ) -> Result<(), LineProblem> {
        let hex = joined(hex);
        let pcr = match pcr {
            Some(pcr) => index(prefixed(pcr).unwrap_or(pcr)).ok_or(LineProblem::Index)?,
            None => self.hint.pcr(),
        };
        let bank = match bank.or(self.hint.bank.map(Named::Known)) {
            Some(Named::Known(bank)) => bank,
            Some(Named::Unknown(name)) if is_hex(&[&hex]) => {
                self.unknown.get_or_insert(name);
                return Ok(());
            }
            Some(Named::Unknown(_)) => return Err(LineProblem::Form),
            None => return Err(LineProblem::NoBank),
        };
        let value = value(bank, &hex)?;
        match self.values.insert((bank, pcr), (value, line)) {
            Some((other, first)) if other != value => {
                Err(LineProblem::Contradiction { bank, pcr, first })
            }
            _ => Ok(()),
        }
    }
}

/// What a name is of.
fn named(name: &str) -> Option<Named> {
    match name.parse() {
        Ok(bank) => Some(Named::Known(bank)),
        Err(_) => is_bank_name(name).then(|| Named::Unknown(name.to_owned())),
    }
}

/// The index or bank after `PCR-`, `PCR_` or `PCR`.
fn prefixed(word: &str) -> Option<&str> {
    let (pcr, rest) = word.split_at_checked(3)?;
    let rest = rest.trim_start_matches(['-', '_']);
    (pcr.eq_ignore_ascii_case("pcr") && !rest.is_empty()).then_some(rest)
}

/// The digits of a value, with neither blanks nor `0x`.
fn joined(words: &[&str]) -> String {
    let joined = words.concat();
    match joined.strip_prefix("0x").or_else(|| joined.strip_prefix("0X")) {
        Some(digits) => digits.to_owned(),
        None => joined,
    }
}

fn is_hex(words: &[&str]) -> bool {
    let digits = joined(words);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA1: &str = "3A3F780F11A4B49969FCAA80CD6E3957C33B2275";
    const SPACED: &str = "3A 3F 78 0F 11 A4 B4 99 69 FC AA 80 CD 6E 39 57 C3 3B 22 75";

    fn parse(text: &str, bank: Option<Bank>) -> Result<PcrValues, PcrFileError> {
        PcrValues::parse(text.as_bytes(), bank)
    }

    #[test]
    fn case_08_every_form_says_the_same() {
        let value = Digest::from_hex(Bank::Sha1, SHA1);
        let lower = SHA1.to_ascii_lowercase();
        let named = [
            format!("\nsha1 10  {SHA1} \n"),
            format!("SHA1 10 0x{lower}"),
            format!("sha1:10={SHA1}\r\n"),
            format!("sha1:10: {SPACED}\r\n"),
            format!("sha1 PCR-10 {SHA1}"),
            format!("10:sha1={SHA1}"),
            format!("sha1:\n  10: 0x{SHA1}\n"),
            format!("  sha1 :\r\n    10 : 0x{SHA1}\r\n  sha256 :\r\n"),
            format!("  sha1:\n    9 : 0x{lower}\n    10: 0X{SHA1}\n"),
            format!("---\npcrs:\n  sha1:\n    10: 0x{SHA1}  # IMA\n"),
            format!("pcrs:\n  sha1:\n    10: 0x{SHA1}\nsig: 00aabb\ncalcDigest: aabb"),
            format!("\u{feff}sha1:\n10: '{SHA1}',\n"),
            format!("pcr-sha1/10: {SHA1}"),
            format!("/sys/class/tpm/tpm0/pcr-sha1/10:{SHA1}\n"),
            format!("./tpm0/pcr-sha1/10: {SHA1}\n"),
            format!("sha1:\n{SHA1}"),
            format!("{{\"sha1\": {{\"10\": \"{SHA1}\"}}}}"),
            format!("\n{{\"pcrs\": {{\"SHA1\": {{\"10\": \"0x{SHA1}\"}}}}, \"n\": [1, null]}}"),
        ];
        for text in named {
            let hint = text.ends_with(&format!("sha1:\n{SHA1}")).then_some(Bank::Sha1);
            let values = parse(&text, hint).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(values.get(Bank::Sha1, 10), value, "{text}");
            assert_eq!((values.get(Bank::Sha1, 8), values.get(Bank::Sha256, 10)), (None, None));
        }
        let of_the_hint = [
            format!("PCR-10: {SHA1}"),
            format!("PCR-10: {SPACED}"),
            format!("pcr10 {SHA1}"),
            format!("PCR 10: {SHA1}"),
            format!("PCR[10] {SHA1}"),
            format!("10: 0x{SHA1}"),
            format!("10 {SPACED}"),
            SHA1.to_owned(),
            format!("0x{lower}\r\n"),
            SPACED.to_owned(),
            format!("{{\"10\": \"{lower}\"}}"),
        ];
        for text in of_the_hint {
            let values = parse(&text, Some(Bank::Sha1)).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(values.get(Bank::Sha1, 10), value, "{text}");
            assert!(parse(&text, None).unwrap_err().to_string().contains("--bank"), "{text}");
        }
    }

    #[test]
    fn wrong_lines_are_named() {
        let problem = |text: &str, bank| match PcrValues::parse_text(text, bank) {
            Err(PcrFileError::Line { line, problem }) => (line, problem),
            other => panic!("{text}: {other:?}"),
        };
        let wrong_size = |bank, found| LineProblem::Value { bank, found };
        let sha1 = Some(Bank::Sha1);
        for text in ["what", "sha1 10", "sha1 10 xyz", "PCR-10", "10:", "/sys/10: 00", "a/b", ":"] {
            assert_eq!(problem(text, None), (1, LineProblem::Form), "{text}");
        }
        assert_eq!(problem("PCR-10 00", sha1), (1, wrong_size(Bank::Sha1, 2)));
        assert_eq!(problem(&format!("\nPCR-10: {SHA1}"), None), (2, LineProblem::NoBank));
        assert_eq!(problem(&format!("sha1 32 {SHA1}"), None), (1, LineProblem::Index));
        assert_eq!(problem(&format!("sha1 -1 {SHA1}"), None), (1, LineProblem::Index));
        assert_eq!(problem(&format!("sha256 1 {SHA1}"), None), (1, wrong_size(Bank::Sha256, 40)));
        assert_eq!(problem(&SHA1[1..], sha1), (1, wrong_size(Bank::Sha1, 39)));
    }

    #[test]
    fn case_08_two_values_for_one_pcr_are_an_error_that_names_both_lines() {
        let other = SHA1.replace('A', "B");
        let text = format!("sha1 1 {SHA1}\n\nsha1:\n  1: 0x{other}");
        let error = parse(&text, None).unwrap_err();
        let problem = LineProblem::Contradiction { bank: Bank::Sha1, pcr: 1, first: 1 };
        assert_eq!(error, PcrFileError::Line { line: 4, problem });
        assert!(error.to_string().starts_with("line 4: ") && error.to_string().contains("line 1"));
        let json = format!("{{\"sha1\": {{\"1\": \"{SHA1}\", \"1\": \"{other}\"}}}}");
        assert!(matches!(parse(&json, None), Err(PcrFileError::Json(_))));
        // Said twice is said once.
        parse(&format!("sha1 1 {SHA1}\nsha1 1 0x{SHA1}"), None).unwrap();
    }

    #[test]
    fn case_11_unknown_banks_matter_only_if_there_is_nothing_else() {
        let sha3 = "11".repeat(32);
        for text in [
            format!("sha3_256 10 {sha3}\nsha1 10 {SHA1}"),
            format!("sha3_256:\n  10: 0x{sha3}\nsha1:\n  10: {SHA1}"),
            format!("0x27:\n  10: 0x{sha3}\nsha1:\n  10: {SHA1}"),
            format!("tpm_alg_27 10 {sha3}\nsha1 10 {SHA1}"),
            format!("pcr-sha3-256/10:{sha3}\npcr-sha1/10:{SHA1}"),
            format!("{{\"sha3_256\": {{\"10\": \"{sha3}\"}}, \"sha1\": {{\"10\": \"{SHA1}\"}}}}"),
        ] {
            let values = parse(&text, None).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(values.get(Bank::Sha1, 10), Digest::from_hex(Bank::Sha1, SHA1));
        }
        let only = parse(&format!("sha3_256 10 {sha3}"), None).unwrap_err();
        assert_eq!(only, PcrFileError::UnknownBanks { bank: "sha3_256".to_owned() });
        assert!(only.to_string().contains("sha1, sha256, sha384, sha512, sm3"), "{only}");
        let sm3 = parse(&format!("sm3_256:\n  10: 0x{sha3}"), None).unwrap();
        assert!(sm3.get(Bank::Sm3, 10).is_some());
    }
}
