//! Quotes and PCR values in the form of the test corpus.

use ima_log::{Bank, Digest};
use imastage_verifier::PcrValues;

use crate::{
    ask::Snapshot,
    error::{LabError, must},
    machine::Machine,
    wire::{Answer, Ask},
};

/// The nonce of the corpus' quotes.
const NONCE: [u8; 8] = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];

/// PCRs of some banks: bit i of a mask is PCR i.
type Selection = &'static [(Bank, u32)];

/// The corpus' quotes: name, whether the key is RSA, the quoted PCRs.
const QUOTES: [(&str, bool, Selection); 3] = [
    ("quote", true, &[(Bank::Sha256, 1 << 10)]),
    ("quote_ecc", false, &[(Bank::Sha256, 1 << 10)]),
    ("quote_multi", true, &[(Bank::Sha1, 1 << 10), (Bank::Sha256, 0x7ff)]),
];

/// Quotes over a snapshot and their keys, by the file names of the corpus. Fails if anything is
/// measured meanwhile.
pub fn quotes(
    machine: &mut Machine,
    snapshot: &Snapshot,
) -> Result<Vec<(String, Vec<u8>)>, LabError> {
    let values = PcrValues::parse_text(&snapshot.pcrs(), None)
        .map_err(|error| LabError::Refuted(format!("pcrs: {error}")))?;
    let mut files = Vec::new();
    for (name, rsa, selection) in QUOTES {
        let pcrs = selection.iter().map(|(bank, mask)| (bank.to_string(), *mask)).collect();
        let ask = Ask::Quote { rsa, nonce: NONCE.to_vec(), pcrs };
        let (answer, mut message) = machine.ask(&ask, &[])?;
        let Answer::Quoted { key, size } = answer else {
            return Err(LabError::Refuted(format!("expected a quote, got {answer:?}")));
        };
        let signature = message.split_off(size.min(message.len()));
        let key_file = if rsa { "ak.pub.pem" } else { "akecc.pub.pem" };
        files.push((key_file.to_owned(), key.into_bytes()));
        files.push((format!("{name}.msg"), message));
        files.push((format!("{name}.sig"), signature));
        files.push((format!("{name}.pcrs"), pcr_file(selection, &values)?));
    }
    let now = machine.snapshot()?;
    must(now == *snapshot, || "records were added while the TPM quoted".to_owned())?;
    Ok(files)
}

/// PCR values as tpm2_quote writes them ([`PcrValues::parse_tpm2_tools`] has the layout).
fn pcr_file(selection: Selection, values: &PcrValues) -> Result<Vec<u8>, LabError> {
    const BANKS: usize = 16;
    const VALUES: usize = 8;
    /// Used bytes of a bitmap: 24 PCRs.
    const USED: u8 = 3;
    let mut file = u32_bytes(selection.len());
    for (bank, mask) in selection {
        file.extend(bank.tpm_alg().to_le_bytes());
        file.push(USED);
        file.extend(mask.to_le_bytes());
        file.push(0);
    }
    file.resize(4 + BANKS * 8, 0);
    let mut selected: Vec<Digest> = Vec::new();
    for (bank, mask) in selection {
        for pcr in (0..32).filter(|pcr| mask >> pcr & 1 == 1) {
            let value = values.get(*bank, pcr);
            selected.push(value.ok_or_else(|| {
                LabError::Refuted(format!("the TPM has no PCR {pcr} in bank {bank}"))
            })?);
        }
    }
    let lists = selected.chunks(VALUES);
    file.extend(u32_bytes(lists.len()));
    for list in lists {
        file.extend(u32_bytes(list.len()));
        let end = file.len() + VALUES * (2 + Digest::MAX);
        for value in list {
            let bytes = value.as_bytes();
            // Two bytes suffice for the size of a digest.
            file.extend(u32_bytes(bytes.len()).into_iter().take(2));
            file.extend(bytes);
            file.resize(file.len() + Digest::MAX - bytes.len(), 0);
        }
        file.resize(end, 0);
    }
    Ok(file)
}

/// A count as 4 bytes, little-endian.
fn u32_bytes(number: usize) -> Vec<u8> {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pcr_file_round_trips_through_the_tpm2_tools_parser() {
        let mut text = String::new();
        for pcr in 0..24 {
            text += &format!("sha1 {pcr} {:040x}\nsha256 {pcr} {:064x}\n", pcr + 1, pcr + 100);
        }
        let values = PcrValues::parse_text(&text, None).unwrap();
        for (name, _, selection) in QUOTES {
            let read = PcrValues::parse_tpm2_tools(&pcr_file(selection, &values).unwrap()).unwrap();
            for bank in [Bank::Sha1, Bank::Sha256] {
                let mask = selection.iter().find(|(b, _)| *b == bank).map_or(0, |(_, mask)| *mask);
                for pcr in 0..24 {
                    let expected = values.get(bank, pcr).filter(|_| mask >> pcr & 1 == 1);
                    assert_eq!(read.get(bank, pcr), expected, "{name} {bank} {pcr}");
                }
            }
        }
        assert!(pcr_file(&[(Bank::Sha512, 1)], &values).is_err());
    }

    #[test]
    fn pcr_file_equals_that_of_tpm2_quote() {
        let folder =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus/debian-6.1");
        let text = std::fs::read_to_string(folder.join("pcrs")).unwrap();
        let values = PcrValues::parse_text(&text, None).unwrap();
        for (name, _, selection) in QUOTES {
            let written = std::fs::read(folder.join(format!("{name}.pcrs"))).unwrap();
            let again = pcr_file(selection, &values).unwrap();
            assert_eq!(again.len(), written.len());
            let part = again.iter().zip(&written).position(|(a, b)| a != b);
            assert_eq!(part, None, "{name}");
        }
    }
}
