//! The position of an open file.

/// Where an open file stands.
///
/// securityfs's files count only what was read: FUSE gives an offset that writes move, too, and
/// tells nobody about a seek until the next read or write.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Descriptor {
    /// Where the file is read next.
    position: u64,
    /// The offset that FUSE gives with the next read or write, unless the descriptor is moved.
    expected: u64,
}

impl Descriptor {
    /// Where the file stands when something comes with FUSE's `offset`.
    pub(crate) fn arrive(&mut self, offset: u64) -> u64 {
        if offset != self.expected {
            (self.position, self.expected) = (offset, offset);
        }
        self.position
    }

    /// So many bytes were read.
    pub(crate) fn read(&mut self, len: usize) {
        self.position += len as u64;
        self.expected += len as u64;
    }

    /// So many bytes were written: the file stands where it did.
    pub(crate) fn written(&mut self, len: usize) {
        self.expected += len as u64;
    }

    /// As if the descriptor were moved to the beginning.
    pub(crate) fn rewind(&mut self) {
        self.position = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_do_not_move_a_file_and_seeks_do() {
        let mut descriptor = Descriptor::default();
        assert_eq!(descriptor.arrive(0), 0);
        descriptor.written(2);
        assert_eq!(descriptor.arrive(2), 0);
        descriptor.read(100);
        assert_eq!(descriptor.arrive(102), 100);
        descriptor.written(2);
        assert_eq!(descriptor.arrive(0), 0);
        descriptor.read(50);
        // A read at another place, such as pread(2) makes, moves it as well: the next one that comes
        // from where the descriptor really stands moves it back.
        assert_eq!(descriptor.arrive(700), 700);
        assert_eq!(descriptor.arrive(50), 50);
    }
}
