//! The hash set of template digests for duplicate detection.

use alloc::vec::Vec;
use core::hash::BuildHasher;

use foldhash::quality::RandomState;
use ima_log::Digest;

/// The recorded digests, each with its PCR, in a hash set that grows in small steps.
///
/// Linear hashing (Litwin, 1980): one bucket is split for every [`FILL`] digests inserted, so an
/// insertion never moves more than one bucket's entries. A hash table that doubles would move all
/// entries at once, under the list's lock.
///
/// Digests are stored whole, up to [`KEPT`] bytes: two digests that differed only in dropped bytes
/// could suppress a measurement. They are stored apart from the buckets and read only if a bucket
/// has an entry with the same hash: most digests are new, and in a long list the cache misses of
/// that lookup dominate its cost. Bucket selection is seeded randomly, so crafted files cannot
/// crowd one bucket.
///
/// Memory: [`KEPT`] + 8 bytes per digest, about 2 for buckets, and about 2 of allocator overhead.
#[derive(Debug, Default)]
pub(crate) struct DigestSet {
    seed: RandomState,
    /// All buckets, [`BLOCK`] in each element but the last. A flat vector would move as a whole
    /// when it grows.
    blocks: Vec<Vec<Bucket>>,
    buckets: usize,
    keys: Keys,
}

/// Digests by index. A stored digest never moves.
#[derive(Debug, Default)]
struct Keys {
    pages: Vec<Vec<Key>>,
    count: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u32,
    key: u32,
}

/// The stored length of a digest in bytes: all of SHA-256, or half of SHA-512, which is as
/// collision resistant.
const KEPT: usize = 32;

/// Average entries per bucket. More cost lookup time, fewer cost memory.
const FILL: usize = 16;

/// The number of entries by which a bucket grows.
const STEP: usize = 4;

const BLOCK: usize = 512;

type Bucket = Vec<Entry>;
type Key = [u8; KEPT];

impl DigestSet {
    /// Inserts a digest; false if it was present. Constant time. At most 2^32 digests are stored;
    /// later ones are reported as new.
    pub(crate) fn insert(&mut self, digest: &Digest, pcr: u32) -> bool {
        if self.keys.count == self.buckets * FILL {
            self.split();
        }
        let key = key(digest, pcr);
        let hash = self.seed.hash_one(key) as u32;
        let index = index(hash, self.buckets);
        let bucket = &mut self.blocks[index / BLOCK][index % BLOCK];
        let equal = |entry: &Entry| entry.hash == hash && *self.keys.get(entry.key) == key;
        if bucket.iter().any(equal) {
            return false;
        }
        if let Ok(number) = u32::try_from(self.keys.count) {
            push(bucket, Entry { hash, key: number });
            self.keys.push(key);
        }
        true
    }

    /// Adds a bucket and moves the entries that belong in it from the bucket that is split.
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
        let moving = &mut self.blocks[new / BLOCK][new % BLOCK];
        let belongs = |entry: &Entry| index(entry.hash, new + 1) == new;
        moving.reserve_exact(staying.iter().filter(|entry| belongs(entry)).count());
        moving.extend(staying.extract_if(.., |entry| belongs(entry)));
        staying.shrink_to_fit();
        self.blocks[old / BLOCK][old % BLOCK] = staying;
    }
}

impl Keys {
    fn get(&self, number: u32) -> &Key {
        let (page, place, _) = place(number as usize);
        &self.pages[page][place]
    }

    fn push(&mut self, key: Key) {
        let (page, _, size) = place(self.count);
        if page == self.pages.len() {
            self.pages.push(Vec::with_capacity(size));
        }
        self.pages[page].push(key);
        self.count += 1;
    }
}

/// The page of a key, its index there, and the page's capacity. Capacity grows with the number of
/// pages: this bounds both the unused memory and the number of pages.
fn place(number: usize) -> (usize, usize, usize) {
    const SMALL: usize = 64;
    const PAGES: usize = 256;
    let mut size = SMALL;
    let (mut page, mut number) = (0, number);
    while number >= PAGES * size && size < SMALL << 12 {
        page += PAGES;
        number -= PAGES * size;
        size <<= 4;
    }
    (page + number / size, number % size, size)
}

fn push(bucket: &mut Bucket, entry: Entry) {
    if bucket.len() == bucket.capacity() {
        bucket.reserve_exact(STEP);
    }
    bucket.push(entry);
}

/// The bucket of a hash among `buckets` (at least 1): the low bits that number all buckets, or one
/// bit fewer if that bucket does not exist yet.
fn index(hash: u32, buckets: usize) -> usize {
    let half = 1 << buckets.ilog2();
    let index = hash as usize & (2 * half - 1);
    if index < buckets { index } else { index & (half - 1) }
}

/// Combines a digest with its PCR: the PCR number is XORed into the digest. This keeps collision
/// resistance: two digests that differ in just those bits are as hard to find as two equal ones.
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
    fn inserted_digests_are_found_after_every_split() {
        let mut set = DigestSet::default();
        let digest = |i: u32| Bank::Sha256.hash(&[&i.to_le_bytes()]);
        for i in 0..20_000 {
            assert!(set.insert(&digest(i), 10), "{i}");
            assert!(!set.insert(&digest(i), 10), "{i}");
            assert!(!set.insert(&digest(i / 2), 10), "{i}");
        }
        assert!((0..20_000).all(|i| !set.insert(&digest(i), 10)));
        assert!((0..20_000).all(|i| set.insert(&digest(i), 11)));
        assert_eq!(set.keys.count, 40_000);
        let longest = set.blocks.iter().flatten().map(Vec::len).max().unwrap();
        assert!(longest < 8 * FILL, "{longest}");
    }

    #[test]
    fn digests_that_differ_in_one_stored_bit_or_the_pcr_are_distinct() {
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

    #[test]
    fn keys_are_placed_consecutively() {
        let mut before = place(0);
        assert_eq!(before, (0, 0, 64));
        // Covers four page sizes.
        for number in 1..5_000_000 {
            let (page, at, size) = place(number);
            let next = if before.1 + 1 < before.2 {
                (before.0, before.1 + 1, before.2)
            } else {
                (before.0 + 1, 0, size)
            };
            assert_eq!((page, at, size), next, "{number}");
            // A new page leaves at most 1/16 of the stored keys' memory unused.
            assert!(number < 16_384 || size * 16 <= number, "{number}: {size}");
            before = next;
        }
    }
}
