//! The set of digests by which duplicates are detected.

use alloc::vec::Vec;
use core::hash::BuildHasher;

use foldhash::quality::RandomState;
use ima_log::Digest;

/// Which digests were recorded, each with its PCR: a set that grows by one small step at a time.
///
/// Linear hashing (Litwin, 1980): one bucket is split whenever there is one for every [`FILL`]
/// digests, so that an insertion never moves more than a bucket's entries. A hash table that
/// doubles would move all of them at once, under the list's lock.
///
/// Digests are kept whole, up to [`KEPT`] bytes: whoever could make two differ only in what is not
/// kept could keep a measurement out of the list. They stand one behind the other where nobody
/// looks until a bucket has an entry with the same hash: most digests are new, and in a long list
/// every line of memory that must be looked at to find that costs more than all else. Which bucket
/// they go to depends on a random seed, so that nobody can make files that crowd one bucket.
///
/// Memory: [`KEPT`] + 8 bytes a digest, about 2 for buckets, and about 2 that an allocator loses
/// between them.
#[derive(Debug, Default)]
pub(crate) struct DigestSet {
    seed: RandomState,
    /// All buckets, [`BLOCK`] in each element but the last: another level because a plain vector
    /// would have to be moved as a whole when it grows.
    blocks: Vec<Vec<Bucket>>,
    buckets: usize,
    keys: Keys,
}

/// Digests by number. None is ever moved.
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

/// What is kept of a digest, in bytes: all of SHA-256; half of SHA-512, which is as hard to
/// collide.
const KEPT: usize = 32;

/// Entries a bucket on average. More cost time to look through, fewer cost memory.
const FILL: usize = 16;

/// By how many entries a bucket grows.
const STEP: usize = 4;

const BLOCK: usize = 512;

type Bucket = Vec<Entry>;
type Key = [u8; KEPT];

impl DigestSet {
    /// Adds a digest; false if it was there already. Constant time. After four billion digests no
    /// more are remembered.
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

/// The page of a key, where it stands there, and how many the page has room for: few while there
/// are few pages, so that little is allocated in vain, but never so few that pages become many.
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

/// The bucket of a hash among `buckets`, at least one: as many of its low bits as number all
/// buckets, or one less where that bucket is not there yet.
fn index(hash: u32, buckets: usize) -> usize {
    let half = 1 << buckets.ilog2();
    let index = hash as usize & (2 * half - 1);
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
        assert_eq!(set.keys.count, 40_000);
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

    #[test]
    fn keys_stand_one_behind_the_other() {
        let mut before = place(0);
        assert_eq!(before, (0, 0, 64));
        // Up to the fourth size of pages.
        for number in 1..5_000_000 {
            let (page, at, size) = place(number);
            let next = if before.1 + 1 < before.2 {
                (before.0, before.1 + 1, before.2)
            } else {
                (before.0 + 1, 0, size)
            };
            assert_eq!((page, at, size), next, "{number}");
            // What a new page leaves unused, a 256th at most once there are many.
            assert!(number < 16_384 || size * 16 <= number, "{number}: {size}");
            before = next;
        }
    }
}
