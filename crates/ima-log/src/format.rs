//! The form of a binary list: bank, byte order, and the limits on sizes.

use crate::Bank;

/// The longest template name taken, in bytes. The kernel builds names of at most 15 field ids of
/// at most 16 characters with a separator between them.
pub const MAX_NAME: usize = 15 * 17;

/// The largest template data taken, in bytes. The kernel sets no limit; its largest fields are
/// kexec command lines, keys and signatures of a few KiB, so this leaves room and still keeps a
/// lying length from claiming memory.
pub const MAX_TEMPLATE_DATA: usize = 16 << 20;

/// The largest template data taken from a list in a text form or a Canonical Event Log, in bytes: such
/// a list comes from a file that anybody may have written, not from a kernel, and is in memory more
/// than once while it is read.
pub const MAX_TEXT_DATA: usize = 1 << 20;

/// The most fields taken from such a list for one record. The kernel's templates have at most 15.
pub const MAX_FIELDS: usize = 64;

/// The byte order of the integers in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endian {
    /// Least significant byte first: x86, Arm, RISC-V, POWER LE; anything with `ima_canonical_fmt`.
    Little,
    /// Most significant byte first: s390x and other big-endian kernels.
    Big,
}

/// What must be known about a binary list to read it, since nothing in it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    /// Which bank's file it is: the width of the template digests. `binary_runtime_measurements`
    /// is the sha1 form.
    pub bank: Bank,
    /// The byte order.
    pub endian: Endian,
}

impl Endian {
    /// This machine's byte order, which is the byte order of its kernel's lists.
    pub const fn native() -> Endian {
        if cfg!(target_endian = "big") { Endian::Big } else { Endian::Little }
    }

    /// Tells the byte order from the beginning of a list: its first four bytes are a PCR index,
    /// and a TPM has no PCR that is the same small number in both orders. `None` if there are
    /// fewer than four bytes or the index is no PCR of a TPM (0 to 23) in either order.
    pub fn detect(list: &[u8]) -> Option<Endian> {
        let first = list.first_chunk::<4>()?;
        [Endian::Little, Endian::Big].into_iter().find(|endian| endian.u32(*first) < 24)
    }

    /// Reads an integer.
    pub const fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Endian::Little => u32::from_le_bytes(bytes),
            Endian::Big => u32::from_be_bytes(bytes),
        }
    }

    /// Writes an integer.
    pub const fn bytes(self, value: u32) -> [u8; 4] {
        match self {
            Endian::Little => value.to_le_bytes(),
            Endian::Big => value.to_be_bytes(),
        }
    }
}

impl Format {
    /// The file of `bank` as this machine's kernel writes it.
    pub const fn native(bank: Bank) -> Format {
        Format { bank, endian: Endian::native() }
    }
}

/// Takes integers and slices off the front, `None` at the end.
pub(crate) struct Cursor<'a> {
    pub(crate) rest: &'a [u8],
    pub(crate) endian: Endian,
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(crate) fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        Some(self.endian.u32(*head))
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }
}
