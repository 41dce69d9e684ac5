//! The protocol between host and guest on a virtio-serial port: a greeting of the guest, then
//! requests of the host, each with one answer.
//!
//! A message is two lengths (32 bits, little-endian), then JSON of the first length and bytes of
//! the second.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The name of the port.
pub const PORT: &str = "imastage.lab";

/// A request to the guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Read a file to its end, `step` bytes at a time: [`Answer::Bytes`].
    Read {
        /// Its path; not necessarily UTF-8.
        path: Vec<u8>,
        /// Bytes per read.
        step: usize,
    },
    /// List the names in a directory: [`Answer::Names`].
    Names {
        /// The directory.
        dir: String,
    },
    /// Write the bytes of the message into a file: [`Answer::Done`].
    Write {
        /// Its path; not necessarily UTF-8.
        path: Vec<u8>,
        /// Its permissions.
        mode: u32,
    },
    /// Run a program to its end: [`Answer::Ran`].
    Run(Program),
    /// Start a program: [`Answer::Started`].
    Start(Program),
    /// Send a signal to a started program: [`Answer::Done`].
    Signal {
        /// Its process ID.
        pid: u32,
        /// The number of the signal.
        signal: i32,
    },
    /// Wait for the end of a started program: [`Answer::Ran`].
    Wait {
        /// Its process ID.
        pid: u32,
    },
    /// Create and read files, so that each is measured: [`Answer::Measured`].
    Measure(Files),
    /// The same in the background until [`Ask::StopMeasuring`]: [`Answer::Done`].
    KeepMeasuring(Files),
    /// Stop [`Ask::KeepMeasuring`]: [`Answer::Measured`].
    StopMeasuring,
    /// Cause a violation with a file: [`Answer::Done`].
    Violate {
        /// The file.
        path: String,
        /// Open the file for writing while it is open for reading (a ToMToU violation), or the
        /// other way round (an open_writers violation).
        reader_first: bool,
    },
    /// Copy all files of the list, the counters and the PCR values consistently:
    /// [`Answer::Files`].
    Snapshot,
    /// Set an extended attribute of a file to the bytes of the message: [`Answer::Done`].
    SetAttribute {
        /// The file.
        path: String,
        /// The attribute's name.
        name: String,
    },
    /// Read the public areas of the TPM's endorsement and attestation keys: [`Answer::Identity`].
    Identify,
    /// Activate a credential with these keys; returns its secret: [`Answer::Bytes`].
    Activate {
        /// Contents of a TPM2B_ID_OBJECT.
        blob: Vec<u8>,
        /// Contents of a TPM2B_ENCRYPTED_SECRET.
        seed: Vec<u8>,
    },
    /// Quote PCRs with the TPM: [`Answer::Quoted`].
    Quote {
        /// Sign with an RSA key; otherwise with an ECC key.
        rsa: bool,
        /// The nonce.
        nonce: Vec<u8>,
        /// Banks, and the PCRs of each as a bitmap.
        pcrs: Vec<(String, u32)>,
    },
    /// Mount a file system: [`Answer::Done`].
    Mount {
        /// The device.
        source: String,
        /// The mount point.
        target: String,
        /// The type of the file system.
        kind: String,
    },
    /// Load a kernel for kexec: [`Answer::Done`].
    LoadKernel {
        /// The path of the kernel image.
        kernel: String,
        /// The path of its initramfs.
        initramfs: String,
        /// Its command line.
        command_line: String,
    },
    /// Sync the disks and power the machine off. No answer.
    PowerOff,
    /// Sync the disks and reset the machine. No answer.
    Reboot,
    /// Sync the disks and start the loaded kernel. No answer.
    Kexec,
}

/// A program to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    /// Its path.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
}

/// Files to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Files {
    /// Their directory; created if missing.
    pub dir: String,
    /// The name of the first file: a number; the others follow.
    pub first: u64,
    /// The maximum number of files.
    pub count: u64,
    /// The size of each file in bytes.
    pub size: usize,
}

impl Files {
    /// Up to `count` files of 50 bytes.
    pub fn new(dir: impl Into<String>, count: u64) -> Files {
        Files { dir: dir.into(), first: 0, count, size: 50 }
    }
}

/// An answer of the guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The greeting, sent once when the guest accepts requests.
    Hello {
        /// The kernel's release.
        release: String,
        /// The kernel's command line.
        command_line: String,
    },
    /// The request succeeded.
    Done,
    /// The bytes of the message.
    Bytes {
        /// The duration of the read in microseconds.
        micros: u64,
    },
    /// The end of a program; the message has its standard output, then its standard error.
    Ran {
        /// Its exit code; -1 if killed by a signal.
        code: i32,
        /// The number of bytes of standard output.
        stdout: usize,
    },
    /// The TPM's keys, each a TPMT_PUBLIC.
    Identity {
        /// The endorsement key.
        endorsement: Vec<u8>,
        /// The attestation key.
        attestation: Vec<u8>,
    },
    /// A quote; the message has the attestation data, then the signature.
    Quoted {
        /// The public key of the signature, in PEM.
        key: String,
        /// The number of bytes of attestation data.
        size: usize,
    },
    /// A program was started.
    Started {
        /// Its process ID.
        pid: u32,
    },
    /// Files were measured.
    Measured {
        /// The number of files.
        count: u64,
        /// The time needed in microseconds.
        micros: u64,
        /// The time to open a file for reading, which measures it, in nanoseconds: p50, p99, p99.9.
        open_nanos: [u64; 3],
    },
    /// File names, sorted.
    Names(Vec<String>),
    /// Names and sizes of files; the message has their contents.
    Files(Vec<(String, usize)>),
    /// The request failed with this error.
    Failed(String),
}

/// Writes a message.
///
/// # Errors
/// [`io::Error`] of the writer.
pub fn send(to: &mut impl Write, message: &impl Serialize, bytes: &[u8]) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = |bytes: &[u8]| {
        u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
    };
    to.write_all(&length(&json)?.to_le_bytes())?;
    to.write_all(&length(bytes)?.to_le_bytes())?;
    to.write_all(&json)?;
    to.write_all(bytes)?;
    to.flush()
}

/// Reads a message.
///
/// # Errors
/// [`io::Error`] of the reader; a message that is invalid or too long.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<(T, Vec<u8>)> {
    const LONGEST_JSON: u32 = 1 << 20;
    const MOST_BYTES: u32 = 1 << 29;
    let mut lengths = [[0; 4]; 2];
    for length in &mut lengths {
        from.read_exact(length)?;
    }
    let [json, bytes] = lengths.map(u32::from_le_bytes);
    if json > LONGEST_JSON || bytes > MOST_BYTES {
        let why = format!(
            "message with {json} bytes of JSON and {bytes} of data: at most {LONGEST_JSON} and \
             {MOST_BYTES}"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let message = serde_json::from_slice(&exactly(from, json)?)?;
    Ok((message, exactly(from, bytes)?))
}

/// Allocates memory as bytes arrive, not by the length that the message claims.
fn exactly(from: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut bytes)?;
    if bytes.len() == length as usize {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip_and_bad_lengths_are_refused() {
        let mut pipe = Vec::new();
        send(&mut pipe, &Ask::Read { path: vec![0xff, b'\n'], step: 7 }, b"bytes\0").unwrap();
        let (ask, bytes) = receive::<Ask>(&mut &pipe[..]).unwrap();
        assert!(matches!(ask, Ask::Read { path, step: 7 } if path == [0xff, b'\n']));
        assert_eq!(bytes, b"bytes\0");
        for cut in 0..pipe.len() {
            let error = receive::<Ask>(&mut &pipe[..cut]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{cut}");
        }
        pipe[..8].fill(0xff);
        let error = receive::<Ask>(&mut &pipe[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
