#![allow(unsafe_code)]
//! The one system call that no safe library has.

use std::{ffi::CString, fs::File, io, os::fd::AsRawFd, path::Path};

use crate::guest::named;

/// Loads a kernel to be gone over to (kexec_file_load(2)).
pub fn load_kernel(kernel: &Path, initramfs: &Path, command_line: &str) -> io::Result<()> {
    let kernel_file = File::open(kernel).map_err(|error| named(kernel, error))?;
    let initramfs_file = File::open(initramfs).map_err(|error| named(initramfs, error))?;
    let command_line = CString::new(command_line)?;
    // SAFETY: both descriptors are open until the call returns; the pointer is to so many bytes, the
    // last of them zero, which live until then, too; the call only reads them. It changes no memory
    // of this process.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            libc::c_long::from(kernel_file.as_raw_fd()),
            libc::c_long::from(initramfs_file.as_raw_fd()),
            command_line.as_bytes_with_nul().len(),
            command_line.as_ptr(),
            0usize,
        )
    };
    if result == 0 { Ok(()) } else { Err(named(kernel, io::Error::last_os_error())) }
}
