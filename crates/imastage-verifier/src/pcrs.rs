//! PCR values from files of common tools.

mod binary;
mod json;
mod text;

use std::collections::BTreeMap;

use ima_log::{Bank, Digest, IMA_PCR};

use binary::{LIST_BYTES, SELECTION_BYTES};

/// Values of PCRs from a file. Not authenticated: a quote's digest shows whether they are the
/// TPM's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PcrValues {
    values: BTreeMap<(Bank, u32), Digest>,
}

/// Defaults for a file of PCR values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PcrHint {
    /// The bank of values without one.
    pub bank: Option<Bank>,
    /// The PCR of values without one; `None`: PCR 10, the default of IMA.
    pub pcr: Option<u32>,
}

/// Why a file of PCR values cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PcrFileError {
    /// A line of a text file is wrong.
    #[error("line {line}: {problem}")]
    Line {
        /// The line, from 1 on.
        line: usize,
        /// The error.
        problem: LineProblem,
    },
    /// A file that starts like JSON and is malformed, or contains a wrong value.
    #[error("JSON: {0}")]
    Json(String),
    /// The file contains no value.
    #[error("no PCR value in it")]
    Empty,
    /// The file contains only values of unknown banks.
    #[error("only values of bank {bank}, which is not known (known: {})", Bank::known())]
    UnknownBanks {
        /// The first of them.
        bank: String,
    },
    /// The file has a size of no known format.
    #[error(
        "{0} bytes: neither text, nor the value of one PCR, nor a PCR file of tpm2-tools, which has \
         {SELECTION_BYTES} + 4 bytes and {LIST_BYTES} for every 8 PCRs: {SERIALIZED}"
    )]
    Size(usize),
    /// The file has the size of one or more values, and their PCRs are unknown.
    #[error(
        "{0} bytes: PCR values alone (tpm2_pcrread -o), which do not say of which PCRs and banks \
         they are: {SERIALIZED}; the value of a single PCR is read if its bank is given (--bank)"
    )]
    Ambiguous(usize),
    /// A field of a binary file is wrong.
    #[error("byte {offset}: {field} is {found}, expected {expected}")]
    Field {
        /// Its offset in bytes.
        offset: usize,
        /// The field.
        field: &'static str,
        /// The value found.
        found: u64,
        /// The value expected.
        expected: &'static str,
    },
    /// The numbers of values and of selected PCRs in a binary file differ.
    #[error("the file selects {selected} PCRs and holds {found} values")]
    Count {
        /// The number of selected PCRs.
        selected: usize,
        /// The number of values.
        found: usize,
    },
}

/// The way to create a file that names the PCRs of its values.
const SERIALIZED: &str =
    "make one with tpm2_pcrread -F serialized -o FILE (--pcrs_format=serialized)";

/// The error of a line of PCR values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineProblem {
    /// None of the forms.
    #[error(
        "expected `BANK INDEX HEX`, `PCR-NN: HEX`, the text that tpm2_pcrread prints, or a value \
         alone"
    )]
    Form,
    /// The line names no bank, and there is no default.
    #[error("the value does not say of which bank it is: give the bank (--bank)")]
    NoBank,
    /// No such PCR.
    #[error("expected a PCR index from 0 to {MAX_INDEX}")]
    Index,
    /// The value does not have the bank's size.
    #[error(
        "expected a value of bank {bank} in hex, {digits} digits, found {found}",
        digits = 2 * .bank.size()
    )]
    Value {
        /// The bank.
        bank: Bank,
        /// The number of characters found.
        found: usize,
    },
    /// An earlier line has another value of the same PCR.
    #[error("another value for PCR {pcr} of bank {bank} than line {first} has")]
    Contradiction {
        /// The bank.
        bank: Bank,
        /// The PCR.
        pcr: u32,
        /// The earlier line.
        first: usize,
    },
}

/// The maximum number of PCRs in a selection; a TPM has fewer.
const MAX_INDEX: u32 = 31;

impl From<Option<Bank>> for PcrHint {
    fn from(bank: Option<Bank>) -> PcrHint {
        PcrHint { bank, pcr: None }
    }
}

impl From<Bank> for PcrHint {
    fn from(bank: Bank) -> PcrHint {
        PcrHint { bank: Some(bank), pcr: None }
    }
}

impl PcrHint {
    fn pcr(self) -> u32 {
        self.pcr.unwrap_or(IMA_PCR)
    }
}

impl PcrValues {
    /// Reads whichever form `file` has: text or JSON ([`PcrValues::parse_text`]), tpm2-tools'
    /// binary ([`PcrValues::parse_tpm2_tools`]), or the bytes of one PCR of the hint's bank.
    ///
    /// # Errors
    /// [`PcrFileError`]: the error and its place, or a file without values.
    pub fn parse(file: &[u8], hint: impl Into<PcrHint>) -> Result<PcrValues, PcrFileError> {
        let hint = hint.into();
        let values = match std::str::from_utf8(file) {
            Ok(text) if !text.contains(is_binary) => PcrValues::parse_text(text, hint)?,
            _ => binary::parse(file, hint)?,
        };
        if values.values.is_empty() {
            return Err(PcrFileError::Empty);
        }
        Ok(values)
    }

    /// Reads PCR values as text. One value a line, in any of these forms; upper and lower case,
    /// `0x` before a value and blanks between its digits make no difference:
    ///
    /// | line | written by |
    /// |---|---|
    /// | `BANK INDEX HEX` | `imastage-lab`, also with a colon or `=` between the parts |
    /// | `BANK:`, then lines `INDEX: 0xHEX` | tpm2_pcrread, also as part of what tpm2_checkquote prints |
    /// | `PCR-NN: HEX` | evmctl, a TPM 1.2's `pcrs` in sysfs; the bank is the hint's |
    /// | `pcr-BANK/INDEX: HEX`, with or without folders before it | `grep . /sys/class/tpm/tpm0/pcr-*/*` |
    /// | `HEX` | a file of `/sys/class/tpm/tpm0/pcr-BANK/`; bank and PCR are the hint's |
    ///
    /// Blank lines and what follows a `#` are skipped, and so are the values of banks that are
    /// not known. The same in JSON is an object of objects, `{"BANK": {"INDEX": "HEX"}}`.
    ///
    /// # Errors
    /// [`PcrFileError::Line`] names the first line that is wrong, and says why;
    /// [`PcrFileError::Json`] does for JSON.
    pub fn parse_text(text: &str, hint: impl Into<PcrHint>) -> Result<PcrValues, PcrFileError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        match text.trim_start().starts_with('{') {
            true => json::parse(text, hint.into()),
            false => text::parse(text, hint.into()),
        }
    }

    /// Reads the PCR file of tpm2-tools 5 (`tpm2_quote -o`, `tpm2_pcrread -F serialized -o`), the C
    /// structures as they lie in memory, integers least significant byte first:
    ///
    /// | bytes | what |
    /// |---|---|
    /// | 4 | number of banks, at most 16 |
    /// | 16 × 8 | for each: `TPM_ALG_ID` (2), bytes of the bitmap used (1), bitmap (4), unused (1) |
    /// | 4 | number of lists |
    /// | 532 each | number of values, at most 8 (4); 8 × size (2), value (64) |
    ///
    /// The values stand in the order of the selection: bank by bank, ascending. Values of banks
    /// that are not known are skipped.
    ///
    /// # Errors
    /// [`PcrFileError`] when the file is not exactly that.
    pub fn parse_tpm2_tools(file: &[u8]) -> Result<PcrValues, PcrFileError> {
        binary::parse_serialized(file)
    }

    /// The value of a PCR, if the file has it.
    pub fn get(&self, bank: Bank, index: u32) -> Option<Digest> {
        self.values.get(&(bank, index)).copied()
    }
}

/// What no text has.
fn is_binary(c: char) -> bool {
    c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r' | '\x0c')
}

/// A PCR index of text.
fn index(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|index| digits && *index <= MAX_INDEX)
}

/// The value of hex digits.
fn value(bank: Bank, hex: &str) -> Result<Digest, LineProblem> {
    Digest::from_hex(bank, hex)
        .ok_or_else(|| LineProblem::Value { bank, found: hex.chars().count() })
}

/// Whether a bank that is not known could have this name: a hash algorithm's, or the number that
/// stands for one.
fn is_bank_name(name: &str) -> bool {
    const BEGINNINGS: [&str; 6] = ["sha", "sm", "md5", "streebog", "tpm_alg_", "0x"];
    let name = name.to_ascii_lowercase();
    BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn case(name: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cases");
        std::fs::read(format!("{folder}/{name}")).unwrap()
    }

    const SHA1: &str = "75c1241743b2a82489977f9489a20159c0ca414d";
    const SHA256: &str = "0368678d8bd3b11bcb31fb00cf82f19d4120179cc26ed5b50887c4a524e609ab";

    #[test]
    fn case_08_files_of_tpm2_pcrread_and_sysfs_are_read() {
        for (file, both) in
            [("pcrread-4.txt", true), ("pcrread-5.txt", true), ("lines-0x.txt", false)]
        {
            let values = PcrValues::parse(&case(&format!("08-pcr-values/{file}")), None).unwrap();
            assert_eq!(values.get(Bank::Sha256, 10), Digest::from_hex(Bank::Sha256, SHA256));
            let sha1 = Digest::from_hex(Bank::Sha1, SHA1).filter(|_| both);
            assert_eq!(values.get(Bank::Sha1, 10), sha1, "{file}");
        }
        let file = case("08-pcr-values/sysfs-pcr-sha256-10");
        let sha256 = Digest::from_hex(Bank::Sha256, SHA256).unwrap();
        for (pcr, found) in [(None, 10), (Some(11), 11)] {
            let hint = PcrHint { bank: Some(Bank::Sha256), pcr };
            for file in [file.as_slice(), sha256.as_bytes()] {
                let values = PcrValues::parse(file, hint).unwrap();
                assert_eq!(values.values, [((Bank::Sha256, found), sha256)].into());
            }
        }
        let problem = LineProblem::NoBank;
        assert_eq!(PcrValues::parse(&file, None), Err(PcrFileError::Line { line: 1, problem }));
        let short = PcrValues::parse(&file, Some(Bank::Sha384)).unwrap_err();
        let problem = LineProblem::Value { bank: Bank::Sha384, found: 64 };
        assert_eq!(short, PcrFileError::Line { line: 1, problem });
    }

    #[test]
    fn case_08_values_that_could_be_of_several_pcrs_are_refused_with_advice_that_works() {
        // sha1 and sha256, or the other way round: what was asked for is not in the file.
        let file = case("08-pcr-values/values.bin");
        for bank in [None, Some(Bank::Sha256), Some(Bank::Sha1)] {
            let error = PcrValues::parse(&file, bank).unwrap_err();
            assert_eq!(error, PcrFileError::Ambiguous(52));
            let text = error.to_string();
            assert!(text.contains("tpm2_pcrread -F serialized -o"), "{text}");
        }
        // Two PCRs, or one of another bank.
        for (size, bank) in [(64, Bank::Sha256), (32, Bank::Sha1), (40, Bank::Sha1)] {
            let error = PcrValues::parse(&vec![0; size], Some(bank)).unwrap_err();
            assert_eq!(error, PcrFileError::Ambiguous(size));
        }
        assert_eq!(PcrValues::parse(&[0; 33], None), Err(PcrFileError::Size(33)));
        assert_eq!(PcrValues::parse(b"\n# nothing\n", None), Err(PcrFileError::Empty));
        assert_eq!(PcrValues::parse(b"", None), Err(PcrFileError::Empty));
    }

    #[test]
    fn case_11_values_of_unknown_banks_are_skipped() {
        for file in ["all-banks.pcrs", "all-banks.txt"] {
            let file = case(&format!("11-unknown-bank/{file}"));
            let values = PcrValues::parse(&file, None).unwrap();
            assert_eq!(values.values.len(), 2);
            assert_eq!(values.get(Bank::Sha1, 10), Digest::from_hex(Bank::Sha1, SHA1));
            assert_eq!(values.get(Bank::Sha256, 10), Digest::from_hex(Bank::Sha256, SHA256));
        }
    }

    proptest! {
        #[test]
        fn no_file_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..1400),
            bank in prop::sample::select(&Bank::ALL[..]),
        ) {
            let _ = PcrValues::parse(&bytes, bank);
            let _ = PcrValues::parse(&bytes, None);
            let _ = PcrValues::parse_tpm2_tools(&bytes);
        }

        #[test]
        fn no_text_panics(
            text in "((sha1|sha256|sha3_256|0x|PCR-|pcr|10|[{}\"/=\\[]|\u{e9}|[ :0-9a-f\n]{0,9}){0,12})",
        ) {
            let _ = PcrValues::parse_text(&text, Some(Bank::Sha1));
            let _ = PcrValues::parse_text(&text, None);
        }
    }
}
