//! PCR values as bytes: the two formats of tpm2-tools.

use ima_log::{Bank, Digest};

use super::{PcrFileError, PcrHint, PcrValues};

const BANKS: usize = 16;
const BANK_BYTES: usize = 8;
pub(super) const SELECTION_BYTES: usize = 4 + BANKS * BANK_BYTES;
const LIST_VALUES: usize = 8;
const VALUE_BYTES: usize = 2 + Digest::MAX;
pub(super) const LIST_BYTES: usize = 4 + LIST_VALUES * VALUE_BYTES;

/// All PCRs of the largest bank, of as many banks as a TPM selects. All sizes are multiples of 4.
const MOST_VALUES: usize = BANKS * 24 * Digest::MAX;

/// Reads tpm2-tools' PCR file, or the value of one PCR of the hint's bank.
pub(super) fn parse(file: &[u8], hint: PcrHint) -> Result<PcrValues, PcrFileError> {
    if lists(file).is_some() {
        return parse_serialized(file);
    }
    match hint.bank {
        Some(bank) if file.len() == bank.size() => {
            let value =
                Digest::from_slice(bank, file).map_err(|_| PcrFileError::Size(file.len()))?;
            Ok(PcrValues { values: [((bank, hint.pcr()), value)].into() })
        }
        // In which order values stand depends on what tpm2_pcrread was asked for: not even two of
        // different sizes can be told apart.
        _ if file.len() <= MOST_VALUES && file.len().is_multiple_of(4) => {
            Err(PcrFileError::Ambiguous(file.len()))
        }
        _ => Err(PcrFileError::Size(file.len())),
    }
}

/// As [`PcrValues::parse_tpm2_tools`].
pub(super) fn parse_serialized(file: &[u8]) -> Result<PcrValues, PcrFileError> {
    let pcrs = selected(file)?;
    let lists = file.get(SELECTION_BYTES + 4..).unwrap_or_default();
    let mut values = PcrValues::default();
    let mut unknown = None;
    let mut found = 0;
    for (n, list) in lists.chunks_exact(LIST_BYTES).enumerate() {
        let start = SELECTION_BYTES + 4 + n * LIST_BYTES;
        let count = u32_at(file, start);
        if count > LIST_VALUES as u32 {
            return Err(field(start, "number of values in the list", count, "at most 8"));
        }
        for (slot, bytes) in list[4..].chunks_exact(VALUE_BYTES).take(count as usize).enumerate() {
            let offset = start + 4 + slot * VALUE_BYTES;
            let pcr = pcrs.get(found).copied();
            found += 1;
            let size = usize::from(u16_at(file, offset));
            let value = bytes.get(2..2 + size);
            match (pcr, value) {
                (None, _) => {}
                (Some((Alg::Known(bank), index)), Some(value)) if size == bank.size() => {
                    if let Ok(value) = Digest::from_slice(bank, value) {
                        values.values.insert((bank, index), value);
                    }
                }
                // Its size is in the file, so what follows can be read.
                (Some((Alg::Unknown(alg), _)), Some(_)) => {
                    unknown.get_or_insert(alg);
                }
                _ => return Err(field(offset, "size of the value", size as u32, "the bank's")),
            }
        }
    }
    match (pcrs.len(), unknown) {
        (selected, _) if selected != found => Err(PcrFileError::Count { selected, found }),
        (_, Some(alg)) if values.values.is_empty() => {
            Err(PcrFileError::UnknownBanks { bank: format!("{alg:#06x}") })
        }
        _ => Ok(values),
    }
}

/// A bank's `TPM_ALG_ID`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alg {
    Known(Bank),
    Unknown(u16),
}

/// How many lists of values a file of this length has.
fn lists(file: &[u8]) -> Option<usize> {
    let rest = file.len().checked_sub(SELECTION_BYTES + 4)?;
    (rest % LIST_BYTES == 0).then_some(rest / LIST_BYTES)
}

/// The PCRs that a binary file selects, in order; and that the file is as long as it should be.
fn selected(file: &[u8]) -> Result<Vec<(Alg, u32)>, PcrFileError> {
    let Some(lists) = lists(file) else {
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
    let mut masks: Vec<(Alg, u32)> = Vec::new();
    for n in 0..banks as usize {
        let offset = 4 + n * BANK_BYTES;
        let alg = u16_at(file, offset);
        let bank = Bank::from_tpm_alg(alg).map_or(Alg::Unknown(alg), Alg::Known);
        if masks.iter().any(|(earlier, _)| *earlier == bank) {
            return Err(field(offset, "bank", alg.into(), "each bank once"));
        }
        let used = file.get(offset + 2).copied().unwrap_or_default();
        if used > 4 {
            return Err(field(offset + 2, "size of the bitmap", used.into(), "at most 4"));
        }
        let bits = u64::from(u32_at(file, offset + 3)) & ((1 << (8 * used)) - 1);
        masks.push((bank, bits as u32));
    }
    Ok(masks
        .into_iter()
        .flat_map(|(bank, mask)| crate::quote::set_bits(mask).map(move |index| (bank, index)))
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
        assert!(matches!(refused(6, 5), PcrFileError::Field { offset: 6, found: 5, .. }));
        assert_eq!(refused(6, 1), PcrFileError::Count { selected: 1, found: 2 });
        assert_eq!(refused(7, 0), PcrFileError::Count { selected: 1, found: 2 });
        assert_eq!(refused(7, 3), PcrFileError::Count { selected: 3, found: 2 });
        assert!(matches!(refused(SELECTION_BYTES, 2), PcrFileError::Field { .. }));
        assert!(matches!(refused(SELECTION_BYTES + 4, 9), PcrFileError::Field { found: 9, .. }));
        assert!(matches!(refused(SELECTION_BYTES + 8, 31), PcrFileError::Field { found: 31, .. }));
        assert!(matches!(refused(SELECTION_BYTES + 9, 9), PcrFileError::Field { .. }));
        // A bank twice.
        let mut file = binary();
        file[0] = 2;
        file[12] = 11;
        let error = PcrValues::parse_tpm2_tools(&file).unwrap_err();
        assert!(matches!(error, PcrFileError::Field { offset: 12, found: 11, .. }));
    }

    #[test]
    fn case_11_a_file_of_unknown_banks_only_says_so() {
        let mut file = binary();
        file[4] = 0x27;
        let error = PcrValues::parse_tpm2_tools(&file).unwrap_err();
        assert_eq!(error, PcrFileError::UnknownBanks { bank: "0x0027".to_owned() });
        // Beside a bank that is known, in either order, with values of a size of its own.
        file[4] = 0x29;
        file[0] = 2;
        file[7..9].copy_from_slice(&[0, 4]);
        file[12..17].copy_from_slice(&[11, 0, 3, 1, 0]);
        file[SELECTION_BYTES + 8] = 64;
        let values = PcrValues::parse(&file, None).unwrap();
        assert_eq!(values.get(Bank::Sha256, 0).unwrap().as_bytes(), [0xbb; 32]);
        assert_eq!(values.values.len(), 1);
    }

    proptest! {
        #[test]
        fn no_altered_file_panics(
            flips in proptest::collection::vec((0..4 + SELECTION_BYTES + LIST_BYTES, any::<u8>()), 0..4),
        ) {
            let mut file = binary();
            for (at, byte) in flips {
                file[at] = byte;
            }
            let _ = PcrValues::parse(&file, None);
        }
    }
}
