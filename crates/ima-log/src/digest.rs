//! PCR banks, and digests of the size of a bank.

use core::{fmt, str::FromStr};

use crate::hash::{Sha1, Sha256, Sha384, Sha512, extend, hash, sm3};

/// A TPM PCR bank, named by its hash algorithm. Each bank has its own PCR values and, since Linux
/// 6.10, its own files in securityfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bank {
    /// SHA-1, 20 bytes. Every list exists in this form, with or without a sha1 bank in the TPM.
    Sha1,
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-384, 48 bytes.
    Sha384,
    /// SHA-512, 64 bytes.
    Sha512,
    /// SM3 (GB/T 32905-2016), 32 bytes.
    Sm3,
}

/// A digest of one bank's size: a template digest, a file digest or a PCR value. The bytes are in
/// the order in which they are printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    bank: Bank,
    bytes: [u8; Digest::MAX],
}

/// The bytes do not have the bank's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {bank} digest has {} bytes, found {found}", bank.size())]
pub struct DigestLengthError {
    /// The bank the digest was meant for.
    pub bank: Bank,
    /// How many bytes there were.
    pub found: usize,
}

/// No bank has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown bank (known: {})", Bank::known())]
pub struct UnknownBankError;

impl Bank {
    /// All banks: those that TPMs have everywhere, smallest digest first, then SM3.
    pub const ALL: [Bank; 5] = [Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512, Bank::Sm3];

    /// The kernel's name: `sha1`, `sha256`, `sha384`, `sha512`, `sm3`.
    pub const fn name(self) -> &'static str {
        match self {
            Bank::Sha1 => "sha1",
            Bank::Sha256 => "sha256",
            Bank::Sha384 => "sha384",
            Bank::Sha512 => "sha512",
            Bank::Sm3 => "sm3",
        }
    }

    /// The size of a digest in bytes.
    pub const fn size(self) -> usize {
        match self {
            Bank::Sha1 => 20,
            Bank::Sha256 | Bank::Sm3 => 32,
            Bank::Sha384 => 48,
            Bank::Sha512 => 64,
        }
    }

    /// `TPM_ALG_ID` (TCG Algorithm Registry).
    pub const fn tpm_alg(self) -> u16 {
        match self {
            Bank::Sha1 => 0x0004,
            Bank::Sha256 => 0x000b,
            Bank::Sha384 => 0x000c,
            Bank::Sha512 => 0x000d,
            Bank::Sm3 => 0x0012,
        }
    }

    /// The bank with this `TPM_ALG_ID`, if it is one of [`Bank::ALL`].
    pub fn from_tpm_alg(alg: u16) -> Option<Bank> {
        Bank::ALL.into_iter().find(|bank| bank.tpm_alg() == alg)
    }

    /// The names of [`Bank::ALL`] as messages list them: `sha1, sha256, sha384, sha512, sm3`.
    pub fn known() -> impl fmt::Display {
        fmt::from_fn(|f| {
            for (n, bank) in Bank::ALL.into_iter().enumerate() {
                write!(f, "{}{bank}", if n == 0 { "" } else { ", " })?;
            }
            Ok(())
        })
    }

    /// Hashes the concatenation of `parts`.
    pub fn hash(self, parts: &[&[u8]]) -> Digest {
        let mut digest = Digest::zero(self);
        self.hash_into(parts, &mut digest.bytes);
        digest
    }

    /// As [`Bank::hash`], into the first [`Bank::size`] bytes of `out`.
    #[inline]
    fn hash_into(self, parts: &[&[u8]], out: &mut [u8; Digest::MAX]) {
        match self {
            Bank::Sha1 => hash::<Sha1, 64>(parts, &mut out[..20]),
            Bank::Sha256 => hash::<Sha256, 64>(parts, &mut out[..32]),
            Bank::Sha384 => hash::<Sha384, 128>(parts, &mut out[..48]),
            Bank::Sha512 => hash::<Sha512, 128>(parts, &mut out[..64]),
            Bank::Sm3 => sm3(parts, &mut out[..32]),
        }
    }
}

impl fmt::Display for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Bank {
    type Err = UnknownBankError;

    /// Accepts the kernel's name in either case, and `sm3_256`, which is what the TCG and tpm2-tools
    /// call `sm3`.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name.eq_ignore_ascii_case("sm3_256") {
            return Ok(Bank::Sm3);
        }
        Bank::ALL
            .into_iter()
            .find(|bank| bank.name().eq_ignore_ascii_case(name))
            .ok_or(UnknownBankError)
    }
}

impl Digest {
    /// The size of the largest digest in bytes.
    pub const MAX: usize = 64;

    /// All zero bits: a PCR after reset, a violation's template digest.
    pub const fn zero(bank: Bank) -> Digest {
        Digest { bank, bytes: [0; Digest::MAX] }
    }

    /// All one bits: what a violation extends the PCR with.
    pub fn ones(bank: Bank) -> Digest {
        let mut digest = Digest::zero(bank);
        digest.bytes[..bank.size()].fill(0xff);
        digest
    }

    /// Takes the bytes of a digest.
    ///
    /// # Errors
    /// [`DigestLengthError`] when they are not exactly [`Bank::size`] bytes.
    pub fn from_slice(bank: Bank, bytes: &[u8]) -> Result<Digest, DigestLengthError> {
        if bytes.len() == bank.size() {
            Ok(Digest::from_exact(bank, bytes))
        } else {
            Err(DigestLengthError { bank, found: bytes.len() })
        }
    }

    /// Reads hex digits in either case; `None` unless they are exactly the bank's size.
    pub fn from_hex(bank: Bank, text: &str) -> Option<Digest> {
        let mut digest = Digest::zero(bank);
        hex::decode_to_slice(text, &mut digest.bytes[..bank.size()]).ok()?;
        Some(digest)
    }

    /// `self`, cut or zero-padded to the size of `bank`: how a bank is extended whose hash the
    /// kernel could not use.
    pub fn padded_to(&self, bank: Bank) -> Digest {
        let mut padded = Digest::zero(bank);
        let n = self.bank.size().min(bank.size());
        padded.bytes[..n].copy_from_slice(&self.bytes[..n]);
        padded
    }

    /// What a PCR holding `self` holds after being extended with `value`
    /// (`TPM2_PCR_Extend`: hash of old value and new).
    pub fn extended_with(&self, value: &Digest) -> Digest {
        let mut extended = *self;
        extended.extend_with(value);
        extended
    }

    /// As [`Digest::extended_with`], in place.
    #[inline]
    pub(crate) fn extend_with(&mut self, value: &Digest) {
        if value.bank != self.bank {
            *self = self.bank.hash(&[self.as_bytes(), value.as_bytes()]);
            return;
        }
        let (ours, with) = (&mut self.bytes, &value.bytes);
        match self.bank {
            Bank::Sha1 => extend::<Sha1, 64, 20>(ours, |out| out.copy_from_slice(&with[..20])),
            Bank::Sha256 => extend::<Sha256, 64, 32>(ours, |out| out.copy_from_slice(&with[..32])),
            Bank::Sha384 => extend::<Sha384, 128, 48>(ours, |out| out.copy_from_slice(&with[..48])),
            Bank::Sha512 => extend::<Sha512, 128, 64>(ours, |out| out.copy_from_slice(&with[..64])),
            Bank::Sm3 => {
                let old = *ours;
                sm3(&[&old[..32], &with[..32]], &mut ours[..32]);
            }
        }
    }

    /// As [`Digest::extended_with`] the digest of `data` in the same bank, in place and faster:
    /// nothing is moved about between the two hashes.
    #[inline]
    pub(crate) fn extend_with_hash_of(&mut self, data: &[u8]) {
        let value = &mut self.bytes;
        match self.bank {
            Bank::Sha1 => extend::<Sha1, 64, 20>(value, |out| hash::<Sha1, 64>(&[data], out)),
            Bank::Sha256 => extend::<Sha256, 64, 32>(value, |out| hash::<Sha256, 64>(&[data], out)),
            Bank::Sha384 => {
                extend::<Sha384, 128, 48>(value, |out| hash::<Sha384, 128>(&[data], out));
            }
            Bank::Sha512 => {
                extend::<Sha512, 128, 64>(value, |out| hash::<Sha512, 128>(&[data], out));
            }
            Bank::Sm3 => self.extend_with(&Bank::Sm3.hash(&[data])),
        }
    }

    /// The bank this digest belongs to.
    pub const fn bank(&self) -> Bank {
        self.bank
    }

    /// The [`Bank::size`] bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.bank.size()]
    }

    /// Whether every bit is zero.
    pub fn is_zero(&self) -> bool {
        self.as_bytes().iter().all(|byte| *byte == 0)
    }

    fn from_exact(bank: Bank, bytes: &[u8]) -> Digest {
        let mut digest = Digest::zero(bank);
        digest.bytes[..bank.size()].copy_from_slice(bytes);
        digest
    }
}

impl fmt::Display for Digest {
    /// Lower-case hex.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.as_bytes() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.bank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn hashes_known_answers() {
        // FIPS 180-4 examples, "abc".
        let abc: &[&[u8]] = &[b"a", b"bc"];
        assert_eq!(Bank::Sha1.hash(abc).to_string(), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            Bank::Sha256.hash(abc).to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(Bank::Sha384.hash(abc).to_string().starts_with("cb00753f45a35e8bb5a03d699ac65007"));
        assert!(Bank::Sha512.hash(abc).to_string().starts_with("ddaf35a193617abacc417349ae204131"));
        // GB/T 32905-2016, example A.1.
        assert_eq!(
            Bank::Sm3.hash(abc).to_string(),
            "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
        );
    }

    #[test]
    fn hex_round_trip_and_wrong_sizes() {
        for bank in Bank::ALL {
            let digest = bank.hash(&[b"x"]);
            assert_eq!(Digest::from_hex(bank, &digest.to_string()), Some(digest));
            assert_eq!(Digest::from_hex(bank, "00"), None);
            assert!(Digest::from_slice(bank, &[0; 19]).is_err());
            assert_eq!(bank.name().parse(), Ok(bank));
            assert_eq!(Bank::from_tpm_alg(bank.tpm_alg()), Some(bank));
        }
        assert_eq!("md5".parse::<Bank>(), Err(UnknownBankError));
    }

    #[test]
    fn case_11_banks_have_tpm2_tools_names_too_and_one_list_names_them() {
        assert_eq!("sm3_256".parse(), Ok(Bank::Sm3));
        assert_eq!("SM3_256".parse(), Ok(Bank::Sm3));
        assert_eq!("sha3_256".parse::<Bank>(), Err(UnknownBankError));
        let known = "unknown bank (known: sha1, sha256, sha384, sha512, sm3)";
        assert_eq!(UnknownBankError.to_string(), known);
    }

    #[test]
    fn padding_keeps_the_head_and_zeroes_the_tail() {
        let padded = Digest::ones(Bank::Sha1).padded_to(Bank::Sha256);
        assert_eq!(&padded.as_bytes()[..20], &[0xff; 20]);
        assert_eq!(&padded.as_bytes()[20..], &[0; 12]);
    }
}
