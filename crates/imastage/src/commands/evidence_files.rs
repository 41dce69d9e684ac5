//! What a verifier is given in files and on the command line.

use std::{fs::File, io::Read, path::Path};

use imastage_verifier::{PcrHint, PcrValues, PublicKey};

use crate::exit::{Fail, Failure};

/// More than keys, quotes and PCR values have: a device or a wrong file would fill the memory.
const MAX_FILE: u64 = 1024 * 1024;

/// A nonce that is not guessed and does not come again by chance has this many bytes at least.
const NONCE_BYTES: usize = 16;

/// A TPM takes no more (`TPM2B_DATA`: a hash's number and a digest of 64 bytes).
const MAX_NONCE_BYTES: usize = 66;

/// The attestation key that is trusted, in any form.
pub fn read_key(path: &Path) -> Result<PublicKey, Failure> {
    PublicKey::from_bytes(&read(path)?).input(path.display())
}

/// A file of PCR values. A file of sysfs tells bank and PCR by its path, unless `hint` does.
pub fn read_pcrs(path: &Path, hint: impl Into<PcrHint>) -> Result<PcrValues, Failure> {
    let (hint, of_path) = (hint.into(), hint_of_path(path));
    let hint = PcrHint { bank: hint.bank.or(of_path.bank), pcr: hint.pcr.or(of_path.pcr) };
    PcrValues::parse(&read(path)?, hint).input(path.display())
}

/// A whole file of evidence, which is never large.
pub fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let file = File::open(path).input(path.display())?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).input(path.display())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Failure::input(format!(
            "{}: over {MAX_FILE} bytes: no key, quote or file of PCR values is as large as that",
            path.display()
        )));
    }
    Ok(bytes)
}

/// The nonce that was given to the attested machine, in hex.
pub fn parse_nonce(hex: &str, allow_short: bool) -> Result<Vec<u8>, Failure> {
    let nonce = hex::decode(hex.trim()).input("--nonce: expected hex digits, two for each byte")?;
    match nonce.len() {
        0..NONCE_BYTES if !allow_short => Err(Failure::input(format!(
            "--nonce: {} bytes, at least {NONCE_BYTES} are needed: with fewer, the quote may be a \
             replay of an old one; give each round {NONCE_BYTES} random bytes or more (openssl rand \
             -hex 32), or accept that risk with --allow-short-nonce",
            nonce.len()
        ))),
        0..=MAX_NONCE_BYTES => Ok(nonce),
        found => Err(Failure::input(format!(
            "--nonce: {found} bytes, and no quote has more than {MAX_NONCE_BYTES}"
        ))),
    }
}

/// Whether `verify` takes this nonce without being told to.
pub fn is_short_nonce(hex: &str) -> bool {
    hex.trim().len() < 2 * NONCE_BYTES
}

/// What `/sys/class/tpm/tpm0/pcr-sha256/10` says by its name.
fn hint_of_path(path: &Path) -> PcrHint {
    let bank = path
        .parent()
        .and_then(|parent| parent.file_name()?.to_str()?.strip_prefix("pcr-")?.parse().ok());
    let pcr = path.file_name().and_then(|name| name.to_str()?.parse().ok());
    PcrHint { bank, pcr: pcr.filter(|_| bank.is_some()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ima_log::Bank;

    #[test]
    fn case_08_a_file_of_sysfs_tells_bank_and_pcr() {
        let hint = |path: &str| hint_of_path(Path::new(path));
        let sysfs = hint("/sys/class/tpm/tpm0/pcr-sha256/11");
        assert_eq!(sysfs, PcrHint { bank: Some(Bank::Sha256), pcr: Some(11) });
        assert_eq!(hint("11"), PcrHint::default());
        assert_eq!(hint("pcr-what/11"), PcrHint::default());
        assert_eq!(hint("/"), PcrHint::default());
    }

    #[test]
    fn finding_15_short_nonces_need_to_be_allowed() {
        for short in ["", "00", "c0ffee", &"00".repeat(15)] {
            assert!(parse_nonce(short, false).is_err() && is_short_nonce(short));
            assert_eq!(parse_nonce(short, true).unwrap().len(), short.len() / 2);
        }
        let long = "00".repeat(16);
        assert_eq!(parse_nonce(&format!("{long}\n"), false).unwrap(), [0; 16]);
        assert!(!is_short_nonce(&long));
        assert!(parse_nonce("xyz", true).is_err() && parse_nonce("0", true).is_err());
        assert!(parse_nonce(&"00".repeat(67), true).is_err());
    }
}
