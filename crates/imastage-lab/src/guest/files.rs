//! Files and mounts in the guest, with errors that name the path.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read},
    path::Path,
};

use rustix::mount::{MountFlags, mount};

/// Mounts a file system of type `kind`.
pub fn mount_at(source: &str, target: &str, kind: &str) -> io::Result<()> {
    let kind = CString::new(kind)?;
    let mounted = mount(source, target, kind.as_c_str(), MountFlags::empty(), None);
    mounted.map_err(|error| named(Path::new(target), error.into()))
}

/// Adds the path to an error.
pub fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Reads a file to its end, `step` bytes at a time.
pub fn read_all(path: &Path, step: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    let mut piece = vec![0; step.clamp(1, 1 << 24)];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(bytes),
            n => bytes.extend_from_slice(&piece[..n]),
        }
    }
}
