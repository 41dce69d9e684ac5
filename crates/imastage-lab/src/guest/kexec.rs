//! kexec_file_load(2), the one system call without a safe wrapper.
#![allow(unsafe_code)]

use std::{ffi::CString, fs::File, io, os::fd::AsRawFd, path::Path};

use crate::guest::files::named;

/// Loads a kernel for kexec (kexec_file_load(2)).
pub fn load_kernel(kernel: &Path, initramfs: &Path, command_line: &str) -> io::Result<()> {
    let kernel_file = File::open(kernel).map_err(|error| named(kernel, error))?;
    let initramfs_file = File::open(initramfs).map_err(|error| named(initramfs, error))?;
    let command_line = CString::new(command_line)?;
    // SAFETY: both descriptors and the command line outlive the call; the length covers the command
    // line with its NUL; the call only reads it and changes no memory of this process.
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
