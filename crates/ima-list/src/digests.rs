use alloc::vec::Vec;
use core::hash::BuildHasher;

use foldhash::quality::RandomState;
use ima_log::Digest;

/// Which digests were recorded, each with its PCR: a set that grows by one small step at a time.
///
/// Linear hashing (Litwin, 1980): one bucket is split whenever there is one for every [`FILL`]
/// digests, so that an insertion never moves more than a bucket's digests. A hash table that
/// doubles would move all of them at once, under the list's lock.
///
/// Digests are kept whole, up to [`KEPT`] bytes: whoever could make two differ only in what is not
/// kept could keep a measurement out of the list. Which bucket they go to depends on a random seed,
/// so that nobody can make files that crowd one bucket.
///
/// Memory: [`KEPT`] bytes a digest, about 4 for buckets, and about 8 that an allocator loses between them.
#[derive(Debug, Default)]
pub(crate) struct DigestSet {
    seed: RandomState,
    /// All buckets, [`BLOCK`] in each element but the last: another level because a plain vector
    /// would have to be moved as a whole when it grows.
    blocks: Vec<Vec<Bucket>>,
    buckets: usize,
    digests: usize,
}

/// What is kept of a digest, in bytes: all of SHA-256; half of SHA-512, which is as hard to collide.
const KEPT: usize = 32;

/// Digests a bucket on average. More cost time to look through, fewer cost memory.
const FILL: usize = 32;

/// By how many digests a bucket grows.
const STEP: usize = 4;

const BLOCK: usize = 512;

type Bucket = Vec<Key>;
type Key = [u8; KEPT];

impl DigestSet {
    /// Adds a digest; false if it was there already. Constant time.
    pub(crate) fn insert(&mut self, digest: &Digest, pcr: u32) -> bool {
        if self.digests == self.buckets * FILL {
            self.split();
        }
        let key = key(digest, pcr);
        let index = self.index(&key);
        let bucket = &mut self.blocks[index / BLOCK][index % BLOCK];
        if bucket.contains(&key) {
            return false;
        }
        if bucket.len() == bucket.capacity() {
            bucket.reserve_exact(STEP);
        }
        bucket.push(key);
        self.digests += 1;
        true
    }

    /// Adds a bucket, and moves to it what belongs there from the one bucket where that is now.
    fn split(&mut self) {
        let new = self.buckets;
        if new.is_multiple_of(BLOCK) {
            self.blocks.push(Vec::new());
        }
        self.blocks[new / BLOCK].push(Bucket::new());
        self.buckets += 1;
        let Some(level) = new.checked_ilog2() else { return };
        let old = new - (1 << level);

        let mut staying = core::mem::take(&mut self.blocks[old / BLOCK][old % BLOCK]);
        let mut moving: Bucket =
            staying.extract_if(.., |key| index(&self.seed, new + 1, key) == new).collect();
        staying.shrink_to_fit();
        moving.shrink_to_fit();
        self.blocks[old / BLOCK][old % BLOCK] = staying;
        self.blocks[new / BLOCK][new % BLOCK] = moving;
    }

    fn index(&self, key: &Key) -> usize {
        index(&self.seed, self.buckets, key)
    }
}

/// The bucket of `key` among `buckets`, at least one: as many of the hash's low bits as number all
/// buckets, or one less where that bucket is not there yet.
fn index(seed: &RandomState, buckets: usize, key: &Key) -> usize {
    let hash = seed.hash_one(key) as usize;
    let half = 1 << buckets.ilog2();
    let index = hash & (2 * half - 1);
    if index < buckets { index } else { index & (half - 1) }
}

/// A digest and its PCR as one: flipping bits of a digest by the PCR's number keeps digests apart
/// as well as before, since to find two that differ in just those bits is as hard as to find two
/// that are equal.
fn key(digest: &Digest, pcr: u32) -> Key {
    let mut key = [0; KEPT];
    let kept = digest.as_bytes().len().min(KEPT);
    key[..kept].copy_from_slice(&digest.as_bytes()[..kept]);
    for (byte, pcr) in key[KEPT - 4..].iter_mut().zip(pcr.to_le_bytes()) {
        *byte ^= pcr;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use ima_log::Bank;

    #[test]
    fn every_digest_is_found_again_after_every_split() {
        let mut set = DigestSet::default();
        let digest = |i: u32| Bank::Sha256.hash(&[&i.to_le_bytes()]);
        for i in 0..20_000 {
            assert!(set.insert(&digest(i), 10), "{i}");
            assert!(!set.insert(&digest(i), 10), "{i}");
            assert!(!set.insert(&digest(i / 2), 10), "{i}");
        }
        assert!((0..20_000).all(|i| !set.insert(&digest(i), 10)));
        assert!((0..20_000).all(|i| set.insert(&digest(i), 11)));
        assert_eq!(set.digests, 40_000);
        let longest = set.blocks.iter().flatten().map(Vec::len).max().unwrap();
        assert!(longest < 8 * FILL, "{longest}");
    }

    #[test]
    fn every_kept_bit_and_the_pcr_count() {
        for bank in Bank::ALL {
            let mut set = DigestSet::default();
            assert!(set.insert(&Digest::zero(bank), 10), "{bank}");
            assert!(set.insert(&Digest::zero(bank), 11), "{bank}");
            assert!(!set.insert(&Digest::zero(bank), 10), "{bank}");
            let mut set = DigestSet::default();
            for bit in 0..bank.size().min(KEPT) * 8 {
                let mut bytes = [0; Digest::MAX];
                bytes[bit / 8] = 1 << (bit % 8);
                let digest = Digest::from_slice(bank, &bytes[..bank.size()]).unwrap();
                assert!(set.insert(&digest, 10), "{bank} bit {bit}");
                assert!(!set.insert(&digest, 10), "{bank} bit {bit}");
            }
        }
    }
}
