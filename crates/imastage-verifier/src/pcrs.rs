use std::collections::BTreeMap;

use ima_log::{Bank, Digest};

/// Values of PCRs as a file tells them. Not authenticated: a quote's digest says whether they are
/// the TPM's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PcrValues {
    values: BTreeMap<(Bank, u32), Digest>,
}

/// Why a file of PCR values cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PcrFileError {
    /// A line of a text file is wrong.
    #[error("line {line}: {problem}")]
    Line {
        /// The line, first 1.
        line: usize,
        /// What is wrong with it.
        problem: LineProblem,
    },
    /// The file is neither text nor as long as tpm2-tools' PCR files are.
    #[error(
        "{0} bytes: neither text nor tpm2-tools' PCR file (tpm2_quote -o, tpm2_pcrread -o with \
         --format=serialized), which has {SELECTION_BYTES} + 4 bytes and {LIST_BYTES} for every 8 \
         PCRs"
    )]
    Size(usize),
    /// A field of a binary file is wrong.
    #[error("byte {offset}: {field} is {found}, expected {expected}")]
    Field {
        /// Where it begins.
        offset: usize,
        /// What it is.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: &'static str,
    },
    /// A binary file holds more or fewer values than it selects PCRs.
    #[error("the file selects {selected} PCRs and holds {found} values")]
    Count {
        /// PCRs selected.
        selected: usize,
        /// Values.
        found: usize,
    },
}

/// What is wrong with a line of PCR values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineProblem {
    /// Neither of the two forms.
    #[error("expected `BANK INDEX HEX` or `PCR-NN: HEX`")]
    Form,
    /// `PCR-NN` lines name no bank, and none was given.
    #[error("`PCR-NN` lines do not say which bank they are of: give the bank (--bank)")]
    NoBank,
    /// No such bank.
    #[error("unknown bank (known: sha1, sha256, sha384, sha512)")]
    Bank,
    /// No such PCR.
    #[error("expected a PCR index from 0 to {MAX_INDEX}")]
    Index,
    /// The value does not have the bank's size.
    #[error("expected a value of bank {0} in hex, {digits} digits", digits = 2 * .0.size())]
    Value(Bank),
    /// An earlier line has a value for it.
    #[error("a second value for PCR {1} of bank {0}")]
    Twice(Bank, u32),
}

/// PCRs of a TPM are fewer; a selection has room for these.
const MAX_INDEX: u32 = 31;

impl PcrValues {
    /// Reads whichever form `file` has: text if it is UTF-8 without NUL, else tpm2-tools' binary.
    ///
    /// # Errors
    /// As [`PcrValues::parse_text`] and [`PcrValues::parse_tpm2_tools`].
    pub fn parse(file: &[u8], bank: Option<Bank>) -> Result<PcrValues, PcrFileError> {
        match std::str::from_utf8(file) {
            Ok(text) if !file.contains(&0) => PcrValues::parse_text(text, bank),
            _ => PcrValues::parse_tpm2_tools(file),
        }
    }

    /// Reads lines `BANK INDEX HEX`, or `PCR-NN: HEX` as evmctl takes them, which are of `bank`. In
    /// the second form blanks between the digits are allowed. Blank lines are skipped.
    ///
    /// # Errors
    /// [`PcrFileError::Line`] names the first line that is wrong, and says why.
    pub fn parse_text(text: &str, bank: Option<Bank>) -> Result<PcrValues, PcrFileError> {
        let mut values = PcrValues::default();
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            values
                .add_line(line, bank)
                .map_err(|problem| PcrFileError::Line { line: n + 1, problem })?;
        }
        Ok(values)
    }

    /// Reads the PCR file of tpm2-tools 5 (`tpm2_quote -o`), the C structures as they lie in memory,
    /// integers least significant byte first:
    ///
    /// | bytes | what |
    /// |---|---|
    /// | 4 | number of banks, at most 16 |
    /// | 16 × 8 | for each: `TPM_ALG_ID` (2), bytes of the bitmap used (1), bitmap (4), unused (1) |
    /// | 4 | number of lists |
    /// | 532 each | number of values, at most 8 (4); 8 × size (2), value (64) |
    ///
    /// The values stand in the order of the selection: bank by bank, ascending.
    ///
    /// # Errors
    /// [`PcrFileError`] when the file is not exactly that.
    pub fn parse_tpm2_tools(file: &[u8]) -> Result<PcrValues, PcrFileError> {
        let pcrs = selected(file)?;
        let lists = file.get(SELECTION_BYTES + 4..).unwrap_or_default();
        let mut values = PcrValues::default();
        let mut found = 0;
        for (n, list) in lists.chunks_exact(LIST_BYTES).enumerate() {
            let start = SELECTION_BYTES + 4 + n * LIST_BYTES;
            let count = u32_at(file, start);
            if count > LIST_VALUES as u32 {
                return Err(field(start, "number of values in the list", count, "at most 8"));
            }
            for (slot, bytes) in
                list[4..].chunks_exact(VALUE_BYTES).take(count as usize).enumerate()
            {
                let offset = start + 4 + slot * VALUE_BYTES;
                let pcr = pcrs.get(found).copied();
                found += 1;
                let Some((bank, index)) = pcr else { continue };
                let size = usize::from(u16_at(file, offset));
                let value = bytes.get(2..2 + size).map(|value| Digest::from_slice(bank, value));
                let Some(Ok(value)) = value else {
                    return Err(field(offset, "size of the value", size as u32, "the bank's"));
                };
                values.values.insert((bank, index), value);
            }
        }
        match pcrs.len() {
            selected if selected == found => Ok(values),
            selected => Err(PcrFileError::Count { selected, found }),
        }
    }

    /// The value of a PCR, if the file has it.
    pub fn get(&self, bank: Bank, index: u32) -> Option<Digest> {
        self.values.get(&(bank, index)).copied()
    }

    fn add_line(&mut self, line: &str, bank: Option<Bank>) -> Result<(), LineProblem> {
        let line = line.trim();
        let (bank, index, value) = match line.strip_prefix("PCR-") {
            Some(rest) => {
                let (index, value) = rest.split_once(':').ok_or(LineProblem::Form)?;
                (bank.ok_or(LineProblem::NoBank)?, index, value.split_whitespace().collect())
            }
            None => {
                let mut words = line.split_whitespace();
                let (Some(bank), Some(index), Some(value), None) =
                    (words.next(), words.next(), words.next(), words.next())
                else {
                    return Err(LineProblem::Form);
                };
                let bank = bank.parse().map_err(|_| LineProblem::Bank)?;
                (bank, index, String::from(value))
            }
        };
        let index: u32 = index.parse().map_err(|_| LineProblem::Index)?;
        if index > MAX_INDEX {
            return Err(LineProblem::Index);
        }
        let value = Digest::from_hex(bank, &value).ok_or(LineProblem::Value(bank))?;
        match self.values.insert((bank, index), value) {
            None => Ok(()),
            Some(_) => Err(LineProblem::Twice(bank, index)),
        }
    }
}

const BANKS: usize = 16;
const BANK_BYTES: usize = 8;
const SELECTION_BYTES: usize = 4 + BANKS * BANK_BYTES;
const LIST_VALUES: usize = 8;
const VALUE_BYTES: usize = 2 + Digest::MAX;
const LIST_BYTES: usize = 4 + LIST_VALUES * VALUE_BYTES;

/// The PCRs that a binary file selects, in order; and that the file is as long as it should be.
fn selected(file: &[u8]) -> Result<Vec<(Bank, u32)>, PcrFileError> {
    let lists = file.len().checked_sub(SELECTION_BYTES + 4).filter(|rest| rest % LIST_BYTES == 0);
    let Some(lists) = lists.map(|rest| rest / LIST_BYTES) else {
        return Err(PcrFileError::Size(file.len()));
    };
    let claimed = u32_at(file, SELECTION_BYTES);
    if claimed as usize != lists {
        return Err(field(SELECTION_BYTES, "number of lists", claimed, "what the file holds"));
    }
    let banks = u32_at(file, 0);
    if banks as usize > BANKS {
        return Err(field(0, "number of banks", banks, "at most 16"));
    }
    let mut masks: Vec<(Bank, u32)> = Vec::new();
    for n in 0..banks as usize {
        let offset = 4 + n * BANK_BYTES;
        let alg = u16_at(file, offset);
        let bank = Bank::from_tpm_alg(alg)
            .filter(|bank| masks.iter().all(|(earlier, _)| earlier != bank))
            .ok_or(field(offset, "bank", alg.into(), "4, 11, 12 or 13, each once"))?;
        let used = file.get(offset + 2).copied().unwrap_or_default();
        if used > 4 {
            return Err(field(offset + 2, "size of the bitmap", used.into(), "at most 4"));
        }
        let bits = u64::from(u32_at(file, offset + 3)) & ((1 << (8 * used)) - 1);
        masks.push((bank, bits as u32));
    }
    Ok(masks
        .into_iter()
        .flat_map(|(bank, mask)| crate::PcrSelection { bank, mask }.pcrs())
        .collect())
}

fn field(offset: usize, field: &'static str, found: u32, expected: &'static str) -> PcrFileError {
    PcrFileError::Field { offset, field, found: found.into(), expected }
}

/// The integer at `offset`; 0 beyond the end.
fn u32_at(file: &[u8], offset: usize) -> u32 {
    let bytes = file.get(offset..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u16_at(file: &[u8], offset: usize) -> u16 {
    let bytes = file.get(offset..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_text_forms() {
        let sha1 = "3A3F780F11A4B49969FCAA80CD6E3957C33B2275";
        let spaced = "3A 3F 78 0F 11 A4 B4 99 69 FC AA 80 CD 6E 39 57 C3 3B 22 75";
        let value = Digest::from_hex(Bank::Sha1, sha1);
        let named = PcrValues::parse(format!("\nsha1 10  {sha1} \n").as_bytes(), None).unwrap();
        assert_eq!(named.get(Bank::Sha1, 10), value);
        assert_eq!((named.get(Bank::Sha1, 9), named.get(Bank::Sha256, 10)), (None, None));
        for digits in [sha1, spaced] {
            let file = format!("PCR-07: {digits}\nPCR-10: {digits}\n");
            let values = PcrValues::parse(file.as_bytes(), Some(Bank::Sha1)).unwrap();
            assert_eq!((values.get(Bank::Sha1, 7), values.get(Bank::Sha1, 10)), (value, value));
        }
        assert_eq!(PcrValues::parse(b"", None), Ok(PcrValues::default()));
    }

    #[test]
    fn wrong_lines_are_named() {
        let problem = |text: &str, bank| match PcrValues::parse_text(text, bank) {
            Err(PcrFileError::Line { line, problem }) => (line, problem),
            other => panic!("{other:?}"),
        };
        let sha1 = "3A3F780F11A4B49969FCAA80CD6E3957C33B2275";
        assert_eq!(problem("what", None), (1, LineProblem::Form));
        assert_eq!(problem("sha1 1 2 3", None), (1, LineProblem::Form));
        assert_eq!(problem("PCR-10 00", Some(Bank::Sha1)), (1, LineProblem::Form));
        assert_eq!(problem(&format!("\nPCR-10: {sha1}"), None), (2, LineProblem::NoBank));
        assert_eq!(problem(&format!("md5 10 {sha1}"), None), (1, LineProblem::Bank));
        assert_eq!(problem(&format!("sha1 32 {sha1}"), None), (1, LineProblem::Index));
        assert_eq!(problem(&format!("sha1 -1 {sha1}"), None), (1, LineProblem::Index));
        assert_eq!(
            problem(&format!("sha256 1 {sha1}"), None),
            (1, LineProblem::Value(Bank::Sha256))
        );
        assert_eq!(
            problem(&format!("sha1 1 {sha1}\nsha1 1 {sha1}"), None),
            (2, LineProblem::Twice(Bank::Sha1, 1))
        );
    }

    /// A file selecting PCRs 0 and 10 of sha256.
    fn binary() -> Vec<u8> {
        let mut file = vec![0; SELECTION_BYTES + 4 + LIST_BYTES];
        file[..9].copy_from_slice(&[1, 0, 0, 0, 11, 0, 3, 1, 4]);
        file[SELECTION_BYTES] = 1;
        file[SELECTION_BYTES + 4] = 2;
        for (slot, byte) in [(0, 0xaa), (1, 0xbb)] {
            let at = SELECTION_BYTES + 8 + slot * VALUE_BYTES;
            file[at] = 32;
            file[at + 2..at + 34].fill(byte);
        }
        file
    }

    #[test]
    fn binary_files_hold_what_they_say_or_are_refused() {
        let values = PcrValues::parse(&binary(), None).unwrap();
        assert_eq!(values.get(Bank::Sha256, 10).unwrap().as_bytes(), [0xbb; 32]);
        assert_eq!(values.values.len(), 2);

        assert_eq!(PcrValues::parse_tpm2_tools(b""), Err(PcrFileError::Size(0)));
        let refused = |at: usize, byte: u8| {
            let mut file = binary();
            file[at] = byte;
            PcrValues::parse_tpm2_tools(&file).unwrap_err()
        };
        assert!(matches!(refused(0, 17), PcrFileError::Field { offset: 0, .. }));
        assert!(matches!(refused(0, 2), PcrFileError::Field { offset: 12, found: 0, .. }));
        assert!(matches!(refused(4, 0x27), PcrFileError::Field { offset: 4, found: 0x27, .. }));
        assert!(matches!(refused(6, 5), PcrFileError::Field { offset: 6, found: 5, .. }));
        assert_eq!(refused(6, 1), PcrFileError::Count { selected: 1, found: 2 });
        assert_eq!(refused(7, 0), PcrFileError::Count { selected: 1, found: 2 });
        assert_eq!(refused(7, 3), PcrFileError::Count { selected: 3, found: 2 });
        assert!(matches!(refused(SELECTION_BYTES, 2), PcrFileError::Field { .. }));
        assert!(matches!(refused(SELECTION_BYTES + 4, 9), PcrFileError::Field { found: 9, .. }));
        assert!(matches!(refused(SELECTION_BYTES + 8, 31), PcrFileError::Field { found: 31, .. }));
        assert!(matches!(refused(SELECTION_BYTES + 9, 9), PcrFileError::Field { .. }));
    }

    proptest! {
        #[test]
        fn no_file_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..1400),
            flips in proptest::collection::vec((0..4usize + SELECTION_BYTES + LIST_BYTES, any::<u8>()), 0..4),
        ) {
            let _ = PcrValues::parse(&bytes, Some(Bank::Sha1));
            let _ = PcrValues::parse_tpm2_tools(&bytes);
            let mut file = binary();
            for (at, byte) in flips {
                file[at] = byte;
            }
            let _ = PcrValues::parse(&file, None);
        }

        #[test]
        fn no_text_panics(text in "(sha1|sha256|PCR-|[ :0-9a-f\n]{0,9}){0,9}") {
            let _ = PcrValues::parse_text(&text, Some(Bank::Sha1));
        }
    }
}
