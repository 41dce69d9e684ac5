//! SHA-1 and SHA-2 straight on the compression functions of `sha1` and `sha2`; SM3 as it comes.
//!
//! What is hashed here is short: two blocks of template data, one or two of PCR values. On so
//! little, the buffer and the finalization of a general hasher cost as much as a block.

/// One hash function of FIPS 180-4 with blocks of `BLOCK` bytes.
pub(crate) trait Sha<const BLOCK: usize> {
    /// The words of the state, high-order first.
    type State: Copy;

    /// The size of the message length after the padding, in bytes.
    const LENGTH: usize = BLOCK / 8;

    /// The initial state: FIPS 180-4, section 5.3.
    const INITIAL: Self::State;

    /// Section 6: takes whole blocks.
    fn compress(state: &mut Self::State, blocks: &[[u8; BLOCK]]);

    /// Writes as many bytes of the state as fit.
    fn write(state: &Self::State, out: &mut [u8]);
}

/// Hashes the concatenation of `parts` and writes the digest, which `out` has the size of.
#[inline(always)]
pub(crate) fn hash<H: Sha<BLOCK>, const BLOCK: usize>(parts: &[&[u8]], out: &mut [u8]) {
    let mut state = H::INITIAL;
    let mut tail = [[0; BLOCK]; 2];
    let mut filled = 0;
    let mut total = 0u64;
    for part in parts {
        let mut rest = *part;
        total += rest.len() as u64;
        if filled > 0 {
            let (head, behind) = rest.split_at(rest.len().min(BLOCK - filled));
            tail[0][filled..filled + head.len()].copy_from_slice(head);
            filled += head.len();
            rest = behind;
            if filled < BLOCK {
                continue;
            }
            H::compress(&mut state, &tail[..1]);
            tail[0] = [0; BLOCK];
        }
        let (blocks, left) = rest.as_chunks::<BLOCK>();
        if !blocks.is_empty() {
            H::compress(&mut state, blocks);
        }
        tail[0][..left.len()].copy_from_slice(left);
        filled = left.len();
    }
    // Section 5.1: a one bit, zeros (which are there), the length in bits to the end of a block.
    tail[0][filled] = 0x80;
    let blocks = if filled < BLOCK - H::LENGTH { 1 } else { 2 };
    tail[blocks - 1][BLOCK - 8..].copy_from_slice(&(total * 8).to_be_bytes());
    H::compress(&mut state, &tail[..blocks]);
    H::write(&state, out);
}

/// Hashes the first `SIZE` bytes of `value` and as many that `write_with` writes, one after the
/// other, into `value`: how a PCR is extended.
#[inline(always)]
pub(crate) fn extend<H: Sha<BLOCK>, const BLOCK: usize, const SIZE: usize>(
    value: &mut [u8; 64],
    write_with: impl FnOnce(&mut [u8]),
) {
    // At most one block of message, so that all lengths are known when this is compiled.
    const { assert!(2 * SIZE <= BLOCK && SIZE <= 64) };
    let mut message = [[0; BLOCK]; 2];
    let bytes = message.as_flattened_mut();
    bytes[..SIZE].copy_from_slice(&value[..SIZE]);
    write_with(&mut bytes[SIZE..2 * SIZE]);
    bytes[2 * SIZE] = 0x80;
    let blocks = if 2 * SIZE < BLOCK - H::LENGTH { 1 } else { 2 };
    message[blocks - 1][BLOCK - 8..].copy_from_slice(&(16 * SIZE as u64).to_be_bytes());
    let mut state = H::INITIAL;
    H::compress(&mut state, &message[..blocks]);
    H::write(&state, &mut value[..SIZE]);
}

/// SM3 of the concatenation of `parts`. Its crate has no compression function to call, and few who
/// need it measure so much that it would matter.
pub(crate) fn sm3(parts: &[&[u8]], out: &mut [u8]) {
    use sm3::Digest;
    let mut state = sm3::Sm3::new();
    parts.iter().for_each(|part| state.update(part));
    out.copy_from_slice(&state.finalize());
}

macro_rules! sha {
    ($name:ident, $word:ty, $words:literal, $block:literal, $compress:path, $initial:expr) => {
        pub(crate) struct $name;

        impl Sha<$block> for $name {
            type State = [$word; $words];
            const INITIAL: Self::State = $initial;

            #[inline(always)]
            fn compress(state: &mut Self::State, blocks: &[[u8; $block]]) {
                $compress(state, blocks);
            }

            #[inline(always)]
            fn write(state: &Self::State, out: &mut [u8]) {
                for (bytes, word) in out.chunks_exact_mut(size_of::<$word>()).zip(state) {
                    bytes.copy_from_slice(&word.to_be_bytes());
                }
            }
        }
    };
}

sha!(
    Sha1,
    u32,
    5,
    64,
    sha1::block_api::compress,
    [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0]
);
sha!(
    Sha256,
    u32,
    8,
    64,
    sha2::block_api::compress256,
    [
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
        0x5be0cd19
    ]
);
sha!(
    Sha384,
    u64,
    8,
    128,
    sha2::block_api::compress512,
    [
        0xcbbb9d5dc1059ed8,
        0x629a292a367cd507,
        0x9159015a3070dd17,
        0x152fecd8f70e5939,
        0x67332667ffc00b31,
        0x8eb44a8768581511,
        0xdb0c2e0d64f98fa7,
        0x47b5481dbefa4fa4
    ]
);
sha!(
    Sha512,
    u64,
    8,
    128,
    sha2::block_api::compress512,
    [
        0x6a09e667f3bcc908,
        0xbb67ae8584caa73b,
        0x3c6ef372fe94f82b,
        0xa54ff53a5f1d36f1,
        0x510e527fade682d1,
        0x9b05688c2b3e6c1f,
        0x1f83d9abfb41bd6b,
        0x5be0cd19137e2179
    ]
);

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn ours<H: Sha<BLOCK>, const BLOCK: usize>(parts: &[&[u8]], size: usize) -> Vec<u8> {
        let mut out = alloc::vec![0; size];
        hash::<H, BLOCK>(parts, &mut out);
        out
    }

    /// That the general hashers of `sha1` and `sha2` say the same.
    fn check(parts: &[&[u8]]) {
        use sha2::Digest;
        let whole = parts.concat();
        assert_eq!(ours::<Sha1, 64>(parts, 20), sha1::Sha1::digest(&whole).to_vec());
        assert_eq!(ours::<Sha256, 64>(parts, 32), sha2::Sha256::digest(&whole).to_vec());
        assert_eq!(ours::<Sha384, 128>(parts, 48), sha2::Sha384::digest(&whole).to_vec());
        assert_eq!(ours::<Sha512, 128>(parts, 64), sha2::Sha512::digest(&whole).to_vec());
    }

    #[test]
    fn every_length_around_the_padding() {
        let bytes: Vec<u8> = (0..=255).cycle().take(400).collect();
        for len in 0..bytes.len() {
            check(&[&bytes[..len]]);
            check(&[&bytes[..len / 3], &[], &bytes[len / 3..len]]);
        }
    }

    proptest! {
        #[test]
        fn any_parts(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6)) {
            check(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
    }
}
