//! A packed segment: gzip (RFC 1952), one member per block. The first member is empty; its extra field
//! is an index of the others. Every gunzip restores the records, and a record is found without
//! decompressing those before it.

use std::{
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError},
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use crate::disk::Content;

/// A packed segment, to be read as if it were not.
#[derive(Debug)]
pub(crate) struct Packed {
    file: Arc<dyn Content>,
    /// Its size unpacked, in bytes.
    size: u64,
    /// Where each member ends, the one with the index first.
    ends: Vec<u64>,
    /// The block that was unpacked last: who reads on needs it again.
    last: Mutex<Option<(usize, Vec<u8>)>>,
}

/// Unpacked bytes in a block.
const BLOCK: usize = 256 << 10;
/// What fits into an extra field: four gigabytes.
const MOST_BLOCKS: u64 = 16_000;
/// What a block can grow to if it cannot be made smaller; a claim of more is not allocated.
const MOST_MEMBER: u32 = BLOCK as u32 + (BLOCK as u32 / 8);
/// Level 1: the others gain two percent and cost five times the time.
const LEVEL: Compression = Compression::fast();

/// The index's member: magic, deflate, an extra field; no time, no system.
const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
/// The extra field's name.
const ID: [u8; 2] = *b"IM";
/// Unpacked size, block size, the index's CRC.
const FIXED: usize = 8 + 4 + 4;
/// An empty deflate stream, its CRC and size.
const TAIL: [u8; 10] = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Whether a segment of this size can be packed.
pub(crate) fn fits(size: u64) -> bool {
    size.div_ceil(BLOCK as u64) <= MOST_BLOCKS
}

/// Packs `plain` into `to`, which is empty; gives the packed size. Nothing is synced.
pub(crate) fn pack(plain: &dyn Content, to: &dyn Content) -> io::Result<u64> {
    let size = plain.size()?;
    let blocks = size.div_ceil(BLOCK as u64) as usize;
    let mut end = index_len(blocks) as u64;
    let (mut lens, mut block) = (Vec::with_capacity(blocks), vec![0; BLOCK.min(size as usize)]);
    for at in 0..blocks {
        let read = plain.read_up_to(&mut block, (at * BLOCK) as u64)?;
        let mut encoder = GzEncoder::new(Vec::with_capacity(read), LEVEL);
        encoder.write_all(&block[..read])?;
        let member = encoder.finish()?;
        to.write_all(&member, end)?;
        end += member.len() as u64;
        lens.push(member.len() as u32);
    }
    to.write_all(&index(size, &lens), 0)?;
    Ok(end)
}

fn index_len(blocks: usize) -> usize {
    HEAD.len() + 2 + ID.len() + 2 + FIXED + 4 * blocks + TAIL.len()
}

fn index(size: u64, lens: &[u32]) -> Vec<u8> {
    let mut data = size.to_le_bytes().to_vec();
    data.extend_from_slice(&(BLOCK as u32).to_le_bytes());
    data.extend(lens.iter().flat_map(|len| len.to_le_bytes()));
    data.extend_from_slice(&crc32fast::hash(&data).to_le_bytes());
    let mut index = HEAD.to_vec();
    index.extend_from_slice(&(data.len() as u16 + 4).to_le_bytes());
    index.extend_from_slice(&ID);
    index.extend_from_slice(&(data.len() as u16).to_le_bytes());
    index.extend_from_slice(&data);
    index.extend_from_slice(&TAIL);
    index
}

impl Packed {
    pub(crate) fn open(file: Arc<dyn Content>) -> io::Result<Packed> {
        let mut head = [0; HEAD.len() + 2];
        file.read_up_to(&mut head, 0)?;
        let extra = usize::from(u16::from_le_bytes([head[10], head[11]]));
        let blocks = extra.saturating_sub(4 + FIXED) / 4;
        let mut found = vec![0; index_len(blocks)];
        let read = file.read_up_to(&mut found, 0)?;
        let data = found.get(16..).and_then(|data| data.get(..FIXED + 4 * blocks));
        let data = data.filter(|_| read == found.len()).ok_or_else(no_index)?;
        let size = data.first_chunk().map_or(0, |size| u64::from_le_bytes(*size));
        let lens: Vec<u32> = data[12..12 + 4 * blocks]
            .chunks_exact(4)
            .filter_map(|len| len.try_into().ok().map(u32::from_le_bytes))
            .collect();
        // Written again, it has to be the same: that compares every field and the CRC.
        let can_be = size.div_ceil(BLOCK as u64) == blocks as u64
            && lens.iter().all(|len| *len <= MOST_MEMBER);
        if !can_be || index(size, &lens) != found {
            return Err(no_index());
        }
        let mut ends = vec![found.len() as u64];
        for len in lens {
            ends.push(ends.last().map_or(0, |end| end + u64::from(len)));
        }
        let (there, expected) = (file.size()?, ends.last().copied().unwrap_or(0));
        if there != expected {
            return Err(damaged(format!("the file has {there} bytes, expected {expected}")));
        }
        Ok(Packed { file, size, ends, last: Mutex::new(None) })
    }

    fn unpack(&self, at: usize) -> io::Result<Vec<u8>> {
        let (Some(begin), Some(end)) = (self.ends.get(at), self.ends.get(at + 1)) else {
            return Ok(Vec::new());
        };
        let expected = (self.size - (at * BLOCK) as u64).min(BLOCK as u64);
        let mut member = vec![0; (end - begin) as usize];
        let read = self.file.read_up_to(&mut member, *begin)?;
        let mut block = Vec::with_capacity(expected as usize);
        // It is compared with the CRC at its end, so one byte more than there should be is asked for.
        let unpacked = GzDecoder::new(&member[..read]).take(expected + 1).read_to_end(&mut block);
        let what = match unpacked {
            Ok(len) if len as u64 == expected => return Ok(block),
            Ok(len) => format!("{len} bytes come out of it, expected {expected}"),
            Err(error) => error.to_string(),
        };
        Err(damaged(format!("the packed block at byte {begin} is damaged: {what}")))
    }
}

impl Content for Packed {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let (at, within) = ((offset / BLOCK as u64) as usize, (offset % BLOCK as u64) as usize);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let block = match &mut *last {
            Some((number, block)) if *number == at => block,
            last => {
                let block = self.unpack(at)?;
                &mut last.insert((at, block)).1
            }
        };
        let from = block.get(within..).unwrap_or_default();
        let len = from.len().min(bytes.len());
        bytes[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn set_size(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn data_from(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.size).then_some(offset))
    }
}

fn no_index() -> io::Error {
    damaged("the packed segment's index is damaged".to_owned())
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        disk::{Disk, Mode},
        sim::SimDisk,
    };

    /// Bytes that can be packed a little, as records can.
    fn content(size: usize) -> Vec<u8> {
        (0..size as u64)
            .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (56 + i % 5)) as u8)
            .collect()
    }

    fn packed(content: &[u8]) -> (Arc<dyn Content>, u64) {
        let disk = SimDisk::new(1);
        let file = |name: &str| disk.open(Path::new(name), Mode::Create).unwrap();
        let (plain, to) = (file("/plain"), file("/packed"));
        plain.write_all(content, 0).unwrap();
        let size = pack(plain.as_ref(), to.as_ref()).unwrap();
        assert_eq!(size, to.size().unwrap());
        (to, size)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn any_part_reads_as_it_was(
            size in prop_oneof![0..9usize, BLOCK - 2..BLOCK + 2, 0..3 * BLOCK],
            parts in prop::collection::vec((any::<prop::sample::Index>(), 0..2 * BLOCK), 1..6),
        ) {
            let content = content(size);
            let packed = Packed::open(packed(&content).0).unwrap();
            prop_assert_eq!(packed.size().unwrap(), size as u64);
            let packed: &dyn Content = &packed;
            for (from, len) in parts {
                let from = from.index(size + 2);
                let mut found = vec![0; len];
                let read = packed.read_up_to(&mut found, from as u64).unwrap();
                let expected = content.get(from..).unwrap_or_default();
                prop_assert!(found[..read] == expected[..len.min(expected.len())]);
            }
        }

        /// What was altered is refused, whoever made the index' CRC right again.
        #[test]
        fn what_is_altered_is_never_taken_for_the_segment(
            at in any::<prop::sample::Index>(),
            bit in 0..8u8,
            in_index in any::<bool>(),
        ) {
            let content = content(BLOCK + 7_000);
            let (file, size) = packed(&content);
            let index = index_len(2);
            let at = at.index(if in_index { index } else { size as usize });
            let mut byte = [0];
            file.read_at(&mut byte, at as u64).unwrap();
            file.write_all(&[byte[0] ^ (1 << bit)], at as u64).unwrap();
            let mut head = vec![0; index];
            file.read_up_to(&mut head, 0).unwrap();
            let crc = crc32fast::hash(&head[16..36]).to_le_bytes();
            file.write_all(&crc, 36).unwrap();
            let mut found = vec![0; content.len() + 1];
            let read = Packed::open(file).and_then(|packed| {
                let packed: &dyn Content = &packed;
                packed.read_up_to(&mut found, 0)
            });
            // Bytes of a gzip header that mean nothing may be anything.
            prop_assert!(read.is_err() || found[..content.len()] == content);
        }
    }
}
