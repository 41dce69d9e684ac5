//! File signatures as `security.ima` and the list hold them: header, key identifier and version.

use core::fmt;

use crate::{Bank, FieldKind, Record};

/// The size of the header in bytes.
const HEADER: usize = 9;

/// A signature as in `security.ima` or `security.evm`, and in the fields `sig` and
/// `evmsig`: borrowed, its header read. Whether it is right is another matter; see the feature
/// `signatures`.
///
/// The header is: u8 type, u8 version, u8 hash function (the kernel's `enum hash_algo`), key id (4
/// bytes), u16 big-endian length, then that many bytes. RSA signatures are PKCS #1 v1.5; ECDSA ones
/// are DER (RFC 3279 2.2.3). Nothing but the key tells which of the two it is.
///
/// ```
/// use ima_log::{Signature, SignatureKind};
///
/// let signature = Signature::parse(&[3, 2, 4, 0x83, 0x9b, 0x98, 0x66, 0, 2, 0xab, 0xcd])?;
/// assert_eq!(signature.kind, SignatureKind::Ima);
/// assert_eq!(signature.hash_name(), Some("sha256"));
/// assert_eq!(signature.key_id.to_string(), "839b9866");
/// # Ok::<(), ima_log::SignatureError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature<'a> {
    /// What was signed.
    pub kind: SignatureKind,
    /// How it was signed.
    pub version: SignatureVersion,
    /// The number of the hash function in the kernel's `enum hash_algo`
    /// (`include/uapi/linux/hash_info.h`).
    pub hash: u8,
    /// Which key it claims to be by. Not authenticated.
    pub key_id: KeyId,
    /// The signature itself.
    pub bytes: &'a [u8],
}

/// What a signature is over: the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureKind {
    /// 3: the file's digest.
    Ima,
    /// 5: the inode's metadata and extended attributes, `security.ima` among them; portable.
    EvmPortable,
    /// 6: the digest of the file's fs-verity tree.
    Verity,
}

/// The version of the header, which tells what is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureVersion {
    /// 2: the digest itself is what is signed.
    V2,
    /// 3: signed is the hash of kind, hash function and digest, one after another, so that one
    /// kind cannot pass for another.
    V3,
}

/// The last four bytes of a key's identifier: those of the certificate's subject key identifier, or
/// of the SHA-1 of the public key's bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 4]);

/// Why bytes are no signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Shorter than a header and one byte.
    #[error(
        "a signature has a header of {HEADER} bytes and at least one byte behind it, found {0} bytes"
    )]
    Short(usize),
    /// Something else that `security.ima` or `security.evm` can hold, such as a digest.
    #[error("type {0:#04x} is no signature: expected 3 (IMA), 5 (EVM, portable) or 6 (fs-verity)")]
    Kind(u8),
    /// A version that is not known. Version 1 is that of Linux 3.x, which no kernel verifies
    /// that makes lists like these.
    #[error("signature version {0}: expected 2 or 3")]
    Version(u8),
    /// Another number of bytes than the header says.
    #[error("the header says {claimed} bytes of signature, found {found}")]
    Length {
        /// What the header says.
        claimed: u16,
        /// The bytes after the header.
        found: usize,
    },
}

impl<'a> Signature<'a> {
    /// Takes an extended attribute or a field apart.
    ///
    /// # Errors
    /// [`SignatureError`] when it is no signature, or not one and no more.
    pub fn parse(attribute: &'a [u8]) -> Result<Signature<'a>, SignatureError> {
        let Some((header, bytes)) =
            attribute.split_first_chunk::<HEADER>().filter(|(_, bytes)| !bytes.is_empty())
        else {
            return Err(SignatureError::Short(attribute.len()));
        };
        let [kind, version, hash, id0, id1, id2, id3, len0, len1] = *header;
        let kind = match kind {
            3 => SignatureKind::Ima,
            5 => SignatureKind::EvmPortable,
            6 => SignatureKind::Verity,
            other => return Err(SignatureError::Kind(other)),
        };
        let version = match version {
            2 => SignatureVersion::V2,
            3 => SignatureVersion::V3,
            other => return Err(SignatureError::Version(other)),
        };
        let claimed = u16::from_be_bytes([len0, len1]);
        if usize::from(claimed) != bytes.len() {
            return Err(SignatureError::Length { claimed, found: bytes.len() });
        }
        Ok(Signature { kind, version, hash, key_id: KeyId([id0, id1, id2, id3]), bytes })
    }

    /// The kernel's name of the hash function; `None` for a number that has none.
    pub fn hash_name(&self) -> Option<&'static str> {
        HASHES.get(usize::from(self.hash)).copied()
    }

    /// The bank with the same hash function.
    pub fn hash_bank(&self) -> Option<Bank> {
        self.hash_name()?.parse().ok()
    }
}

impl<'a> Record<'a> {
    /// The signature in the field `sig`, or `evmsig` if there is no such field; `None` if there is
    /// neither, or the field is empty, as it is for a file without a signature.
    pub fn signature(&self) -> Option<Result<Signature<'a>, SignatureError>> {
        let field = |kind| self.fields().find(move |field| field.kind == Some(kind));
        let field = field(FieldKind::Sig).or_else(|| field(FieldKind::EvmSig))?;
        (!field.bytes.is_empty()).then(|| Signature::parse(field.bytes))
    }
}

impl SignatureKind {
    /// The byte that stands for it.
    pub const fn byte(self) -> u8 {
        match self {
            SignatureKind::Ima => 3,
            SignatureKind::EvmPortable => 5,
            SignatureKind::Verity => 6,
        }
    }
}

impl fmt::Display for KeyId {
    /// Hex, as `evmctl` and `/proc/keys` show the end of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// `enum hash_algo` of the kernel's `include/uapi/linux/hash_info.h`, by number.
const HASHES: [&str; 23] = [
    "md4",
    "md5",
    "sha1",
    "rmd160",
    "sha256",
    "sha384",
    "sha512",
    "sha224",
    "rmd128",
    "rmd256",
    "rmd320",
    "wp256",
    "wp384",
    "wp512",
    "tgr128",
    "tgr160",
    "tgr192",
    "sm3",
    "streebog256",
    "streebog512",
    "sha3-256",
    "sha3-384",
    "sha3-512",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, RecordBuilder};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn headers_that_are_none_are_told_why() {
        let whole = [3, 2, 4, 1, 2, 3, 4, 0, 2, 0xaa, 0xbb];
        assert!(Signature::parse(&whole).is_ok());
        for len in 0..10 {
            assert_eq!(Signature::parse(&whole[..len]), Err(SignatureError::Short(len)));
        }
        let with = |at: usize, byte: u8| {
            let mut bytes = whole;
            bytes[at] = byte;
            Signature::parse(&bytes).err()
        };
        assert_eq!(with(0, 4), Some(SignatureError::Kind(4)));
        assert_eq!(with(1, 1), Some(SignatureError::Version(1)));
        assert_eq!(with(7, 0xff), Some(SignatureError::Length { claimed: 0xff02, found: 2 }));
        assert_eq!(with(8, 1), Some(SignatureError::Length { claimed: 1, found: 2 }));
        assert_eq!(with(2, 99), None, "a hash without a name");
    }

    #[test]
    fn the_field_that_holds_it_is_found() {
        let file = Digest::zero(Bank::Sha256);
        let builder = RecordBuilder::new(10);
        let sig = builder.ima_sig(&file, b"f", &[5, 3, 20, 0, 0, 0, 1, 0, 1, 7]).unwrap();
        let signature = sig.record().signature().unwrap().unwrap();
        assert_eq!(signature.kind, SignatureKind::EvmPortable);
        assert_eq!(signature.version, SignatureVersion::V3);
        assert_eq!((signature.hash_name(), signature.hash_bank()), (Some("sha3-256"), None));
        assert_eq!(builder.ima_sig(&file, b"f", &[]).unwrap().record().signature(), None);
        assert_eq!(builder.ima_ng(&file, b"f").unwrap().record().signature(), None);
        let digest = builder.ima_sig(&file, b"f", &[4; 34]).unwrap();
        assert_eq!(digest.record().signature(), Some(Err(SignatureError::Kind(4))));
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_there(
            bytes in proptest::collection::vec(any::<u8>(), 0..40), right in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if right && bytes.len() > HEADER {
                let len = (bytes.len() - HEADER) as u8;
                (bytes[0], bytes[1], bytes[7], bytes[8]) = (6, 2 + bytes[1] % 2, 0, len);
            }
            match Signature::parse(&bytes) {
                Ok(signature) => {
                    let version = if signature.version == SignatureVersion::V2 { 2 } else { 3 };
                    let head = [signature.kind.byte(), version, signature.hash];
                    let len = (signature.bytes.len() as u16).to_be_bytes();
                    let written: Vec<u8> =
                        [&head[..], &signature.key_id.0, &len, signature.bytes].concat();
                    prop_assert_eq!(written, bytes);
                }
                Err(_) => prop_assert!(!right || bytes.len() <= HEADER),
            }
        }
    }
}
