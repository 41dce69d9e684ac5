//! The position of an open file.

/// The position of an open file.
///
/// Only reads move the position of securityfs's files. FUSE's offset also moves on writes, and FUSE
/// reports a seek only with the next read or write.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Descriptor {
    /// The position of the next read.
    position: u64,
    /// FUSE's offset in the next read or write, unless there is a seek.
    expected: u64,
}

impl Descriptor {
    /// The position for a read or write with FUSE's `offset`.
    pub(crate) fn arrive(&mut self, offset: u64) -> u64 {
        if offset != self.expected {
            (self.position, self.expected) = (offset, offset);
        }
        self.position
    }

    /// Records a read of `len` bytes.
    pub(crate) fn read(&mut self, len: usize) {
        self.position += len as u64;
        self.expected += len as u64;
    }

    /// Records a write of `len` bytes, which does not move the position.
    pub(crate) fn written(&mut self, len: usize) {
        self.expected += len as u64;
    }

    /// Moves the position to the beginning.
    pub(crate) fn rewind(&mut self) {
        self.position = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeks_move_the_position_and_writes_do_not() {
        let mut descriptor = Descriptor::default();
        assert_eq!(descriptor.arrive(0), 0);
        descriptor.written(2);
        assert_eq!(descriptor.arrive(2), 0);
        descriptor.read(100);
        assert_eq!(descriptor.arrive(102), 100);
        descriptor.written(2);
        assert_eq!(descriptor.arrive(0), 0);
        descriptor.read(50);
        // A pread(2) at another offset also moves the position; the next read at the descriptor's
        // own offset moves it back.
        assert_eq!(descriptor.arrive(700), 700);
        assert_eq!(descriptor.arrive(50), 50);
    }
}
