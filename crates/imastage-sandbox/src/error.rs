//! The errors of starting a sandbox.

use std::{io, path::PathBuf};

use imastage_tpm::TpmError;

/// Why a sandbox could not start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A directory or socket could not be made.
    #[error("{}: {error}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The TPM does not do what it should.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// FUSE cannot be had.
    #[error(
        "{}: cannot mount through FUSE: {error}; it needs /dev/fuse, and without root fusermount3 \
         (apt-get install fuse3)",
        path.display()
    )]
    Fuse {
        /// Where it was to be mounted.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}
