//! The errors of starting a sandbox.

use std::{io, path::PathBuf};

use imastage_tpm::TpmError;

/// The reason a sandbox could not start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A directory or socket could not be created.
    #[error("{}: {error}", path.display())]
    Path {
        /// The directory or socket.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A TPM operation failed.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The FUSE mount failed.
    #[error(
        "{}: cannot mount through FUSE: {error}; check that /dev/fuse exists and, without root, \
         that fusermount3 is installed (apt-get install fuse3)",
        path.display()
    )]
    Fuse {
        /// The mount point.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}
