//! Errors and response codes of a TPM.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ima_log::Bank;
use tpm2_protocol::{
    TpmError as ProtocolError,
    data::{TpmRc, TpmRcBase},
};

use crate::Endpoint;

/// Why a request to a TPM failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// The endpoint does not answer.
    #[error("{endpoint}: {error}{}", connect_hint(endpoint, error))]
    Connect {
        /// The endpoint.
        endpoint: Endpoint,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The connection broke and cannot be used again.
    #[error("{command}: {error}")]
    Io {
        /// The request.
        command: &'static str,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The TPM returned an error.
    #[error("{command}: the TPM answers {code}{}", code.hint())]
    Refused {
        /// The request.
        command: &'static str,
        /// The response code.
        code: ResponseCode,
    },
    /// The owner hierarchy, in which the attestation key is created, has an authorization value.
    #[error(
        "{command}: the TPM answers {code}: the owner hierarchy has an authorization value, and the \
         attestation key is made in it without one; remove it (tpm2_changeauth -c owner -p OLD)"
    )]
    OwnerAuth {
        /// The request.
        command: &'static str,
        /// The response code.
        code: ResponseCode,
    },
    /// The response is malformed or does not match the request.
    #[error("{command}: the response is malformed: {why}")]
    Malformed {
        /// The request.
        command: &'static str,
        /// The defect.
        why: String,
    },
    /// The command cannot be encoded.
    #[error("{command}: the command cannot be written: {error:?}")]
    Command {
        /// The request.
        command: &'static str,
        /// The defect.
        error: ProtocolError,
    },
    /// The TPM has no such PCR.
    #[error("the TPM has no PCR {pcr} in a bank {bank} (see which it has: tpm2_getcap pcrs)")]
    NoPcr {
        /// The bank.
        bank: Bank,
        /// The PCR.
        pcr: u32,
    },
    /// The TPM has no known bank.
    #[error("the TPM has no PCR bank whose hash is known (see which it has: tpm2_getcap pcrs)")]
    NoBanks,
    /// PCRs kept changing while they were read.
    #[error("PCRs changed each time they were read; try again when less is measured")]
    Unsteady,
    /// swtpm is not installed.
    #[error("swtpm: {error}; install it with: apt-get install swtpm")]
    SwtpmMissing {
        /// The error of the operating system.
        error: io::Error,
    },
    /// swtpm did not start.
    #[error("swtpm with its state in {}: {why}", state.display())]
    SwtpmFailed {
        /// Its state directory.
        state: PathBuf,
        /// The cause.
        why: String,
    },
    /// The connection broke and could not be rebuilt yet. For callers that restore
    /// the connection themselves.
    #[error("{endpoint}: {why}; the connection is tried again until the TPM answers")]
    Lost {
        /// The endpoint.
        endpoint: Endpoint,
        /// The last failure.
        why: String,
    },
}

/// A response code of a TPM (TPM 2.0 Library, Part 2, 6.6). Displayed by name, if it has one, and
/// number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ResponseCode(pub u32);

impl ResponseCode {
    /// Bits 16 to 23 name the source: 0 is the TPM, this is the kernel's resource manager.
    const KERNEL: u32 = 11;

    /// Whether the TPM does not support a hash.
    pub(crate) fn is_unknown_hash(self) -> bool {
        self.tpm().is_some_and(|code| code.base() == TpmRcBase::Hash)
    }

    /// Whether a handle in the command is invalid, as after a TPM reset.
    pub fn is_lost_handle(self) -> bool {
        matches!(
            self.tpm().map(|code| code.base()),
            Some(TpmRcBase::ReferenceH0 | TpmRcBase::Handle)
        )
    }

    /// Whether an authorization value was wrong.
    pub(crate) fn is_wrong_auth(self) -> bool {
        let base = self.tpm().map(|code| code.base());
        matches!(base, Some(TpmRcBase::AuthFail | TpmRcBase::BadAuth))
    }

    /// The TPM's part of the code.
    fn tpm(self) -> Option<TpmRc> {
        TpmRc::try_from(self.0 & 0xffff).ok()
    }

    fn hint(self) -> &'static str {
        match self.tpm().map(|code| code.base()) {
            Some(TpmRcBase::Initialize) => {
                "; it was reset and is not started up: reboot, or for a software TPM tpm2_startup -c"
            }
            // Codes for handles 1 to 7 of a command; ours name one or two.
            Some(TpmRcBase::ReferenceH0 | TpmRcBase::ReferenceH1) => {
                "; what was loaded is gone, so the TPM was reset or cleared; connect again"
            }
            Some(TpmRcBase::Lockout) => {
                "; it is locked after wrong passwords: wait, or tpm2_dictionarylockout -c"
            }
            Some(TpmRcBase::Retry | TpmRcBase::Testing) => "; it is busy, try again",
            Some(TpmRcBase::ObjectMemory | TpmRcBase::ObjectHandles) => {
                "; no free object slots: flush unused keys (tpm2_flushcontext -t)"
            }
            Some(TpmRcBase::SessionMemory | TpmRcBase::SessionHandles) => {
                "; no free session slots: flush unused sessions (tpm2_flushcontext -l)"
            }
            Some(TpmRcBase::AuthFail | TpmRcBase::BadAuth) => "; the hierarchy has a password",
            Some(TpmRcBase::Hierarchy) => "; the hierarchy is switched off",
            Some(TpmRcBase::Hash) => "; it does not know the hash (see tpm2_getcap pcrs)",
            Some(TpmRcBase::Failure) => {
                "; it is in failure mode and answers nothing else until it is reset: power the \
                 machine off and on; if that does not help the TPM is broken"
            }
            _ => "",
        }
    }
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tpm() {
            Some(TpmRc::Fmt1(code)) => {
                write!(f, "{}", code.base)?;
                if let Some(index) = code.index {
                    write!(f, " of {index}")?;
                }
            }
            Some(code) => write!(f, "{code}")?,
            None => write!(f, "an unknown code")?,
        }
        match self.0 >> 16 {
            0 => {}
            ResponseCode::KERNEL => write!(f, " (from the kernel's resource manager)")?,
            layer => write!(f, " (from software layer {layer})")?,
        }
        write!(f, " ({:#x})", self.0)
    }
}

impl fmt::Debug for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn connect_hint(endpoint: &Endpoint, error: &io::Error) -> String {
    match (endpoint, error.kind()) {
        (Endpoint::Device(path), io::ErrorKind::PermissionDenied) => match group(path) {
            Some(group) => format!("; run as root, or join the device's group: {group}"),
            None => "; run as root".to_owned(),
        },
        (Endpoint::Device(_), io::ErrorKind::NotFound) => "; this machine has no such TPM".into(),
        (Endpoint::Device(_), io::ErrorKind::ResourceBusy) => {
            "; another process uses it, try /dev/tpmrm0".into()
        }
        (Endpoint::Unix(_) | Endpoint::Tcp(_), io::ErrorKind::NotFound)
        | (Endpoint::Unix(_) | Endpoint::Tcp(_), io::ErrorKind::ConnectionRefused) => {
            "; no TPM is served there".into()
        }
        (Endpoint::Unix(path), io::ErrorKind::PermissionDenied) => match group(path) {
            Some(group) => format!("; run as the socket's owner, root, or in its group: {group}"),
            None => "; run as root".to_owned(),
        },
        _ => String::new(),
    }
}

/// The group of a file, by name if it has one.
fn group(path: &Path) -> Option<String> {
    let gid = fs::metadata(path).ok()?.gid().to_string();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(&gid)).then(|| name.to_owned())
    });
    Some(name.unwrap_or(gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_named() {
        for (code, text) in [
            (0x184, "TPM_RC_VALUE of handle[1] (0x184)"),
            (0x1d5, "TPM_RC_SIZE of parameter[1] (0x1d5)"),
            (0x902, "TPM_RC_OBJECT_MEMORY (0x902)"),
            (0xb0143, "TPM_RC_COMMAND_CODE (from the kernel's resource manager) (0xb0143)"),
            (0x5_0001, "an unknown code (from software layer 5) (0x50001)"),
            (0xffff_fffe, "an unknown code (from software layer 65535) (0xfffffffe)"),
        ] {
            assert_eq!(ResponseCode(code).to_string(), text);
        }
    }

    #[test]
    fn refused_connections_say_what_is_missing() {
        let denied = || io::ErrorKind::PermissionDenied.into();
        // Root's own group has the number 0 everywhere.
        let error = TpmError::Connect { endpoint: Endpoint::Device("/".into()), error: denied() };
        assert!(error.to_string().contains("join the device's group: root"), "{error}");
        let endpoint = Endpoint::Unix("/nonexistent/tpm.sock".into());
        let error = TpmError::Connect { endpoint, error: io::ErrorKind::NotFound.into() };
        let error = error.to_string();
        assert!(error.contains("/nonexistent/tpm.sock") && error.contains("no TPM is"), "{error}");
    }
}
