//! Archives for an initramfs (format "newc", the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

/// Writes an archive. Directories must be added before their content.
pub struct Archive<W> {
    out: W,
    inode: u32,
    written: usize,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(out: W) -> Archive<W> {
        Archive { out, inode: 0, written: 0 }
    }

    /// Adds a directory. Names are relative to the root.
    ///
    /// # Errors
    /// [`io::Error`] of the writer.
    pub fn dir(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, 0o040_755, (0, 0), &[])
    }

    /// Adds a file with its permissions.
    ///
    /// # Errors
    /// [`io::Error`] of the writer; [`io::ErrorKind::FileTooLarge`] for 4 GiB or more.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, 0o100_000 | permissions, (0, 0), content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// [`io::Error`] of the writer.
    pub fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, 0o120_777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// [`io::Error`] of the writer.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, 0o020_600, (major, minor), &[])
    }

    /// Writes the trailer.
    ///
    /// # Errors
    /// [`io::Error`] of the writer.
    pub fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, name.to_owned()))?;
        self.inode += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        // Inode, mode, uid, gid, links, mtime, size, device of the file system (major, minor),
        // device (major, minor), size of the name with its NUL, checksum (0 in this format).
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(&format!("{:08x}{:08x}", name.len() + 1, 0));
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 4][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_sized() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.dir("bin").unwrap();
        archive.file("bin/x", 0o755, b"12345").unwrap();
        archive.link("bin/y", "x").unwrap();
        archive.finish().unwrap();
        // 110 bytes of header, name and NUL, padding.
        let file = 110 + 4 + 2;
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..114], b"bin\0");
        assert_eq!(&bytes[file..file + 6], b"070701");
        assert_eq!(&bytes[file + 6 + 6 * 8..][..8], b"00000005");
        let content = (file + 110 + 6).next_multiple_of(4);
        assert_eq!(&bytes[content..content + 8], b"12345\0\0\0");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
