use std::{io, path::PathBuf};

use tpm2_protocol::{TpmError as ProtocolError, data::TpmRc};

use crate::Endpoint;

/// Why a TPM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// Nobody answers at the endpoint.
    #[error("{endpoint}: {error}{}", hint(endpoint, error))]
    Connect {
        /// The endpoint.
        endpoint: Endpoint,
        /// What the system said.
        error: io::Error,
    },
    /// The connection broke.
    #[error("{command}: {error}")]
    Io {
        /// What was asked.
        command: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The TPM refused.
    #[error("{command}: the TPM answers {code}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// The response code.
        code: TpmRc,
    },
    /// The response is none, or says something else than was asked.
    #[error("{command}: the response is malformed: {why}")]
    Malformed {
        /// What was asked.
        command: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The command cannot be written down.
    #[error("{command}: {error}")]
    Command {
        /// What was asked.
        command: &'static str,
        /// What is wrong with it.
        error: ProtocolError,
    },
    /// The TPM has none of the banks that are known.
    #[error("the TPM has no PCR bank of sha1, sha256, sha384 or sha512")]
    NoBanks,
    /// PCRs kept changing while they were read.
    #[error("PCRs changed each time they were read; try again when less is measured")]
    Unsteady,
    /// swtpm cannot be run.
    #[error("swtpm: {error}; install it with: apt-get install swtpm")]
    SwtpmMissing {
        /// What the system said.
        error: io::Error,
    },
    /// swtpm ended or does not answer.
    #[error("swtpm with its state in {}: {why}", state.display())]
    SwtpmFailed {
        /// Its state directory.
        state: PathBuf,
        /// What happened.
        why: String,
    },
}

fn hint(endpoint: &Endpoint, error: &io::Error) -> &'static str {
    match (endpoint, error.kind()) {
        (Endpoint::Device(_), io::ErrorKind::PermissionDenied) => {
            "; run as root, or join the device's group (mostly tss)"
        }
        (Endpoint::Device(_), io::ErrorKind::NotFound) => "; this machine has no such TPM",
        (Endpoint::Device(_), io::ErrorKind::ResourceBusy) => {
            "; another process uses it, try /dev/tpmrm0"
        }
        _ => "",
    }
}
