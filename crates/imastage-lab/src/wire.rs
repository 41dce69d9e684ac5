//! What host and guest say to each other: the guest greets, then one question, one answer, over a virtio-serial port.
//!
//! A message is two lengths (little endian, 32 bits), JSON of the first, bytes of the second.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Name of the port.
pub const PORT: &str = "imastage.lab";

/// What the guest can be asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Read a file to its end, `step` bytes at a time: [`Answer::Bytes`].
    Read {
        /// Its path; any bytes.
        path: Vec<u8>,
        /// Bytes a read asks for.
        step: usize,
    },
    /// Tell the names in a directory: [`Answer::Names`].
    Names {
        /// The directory.
        dir: String,
    },
    /// Write the bytes that come with it into a new file: [`Answer::Done`].
    Write {
        /// Its path; any bytes.
        path: Vec<u8>,
        /// Its permissions.
        mode: u32,
    },
    /// Run a program to its end: [`Answer::Ran`].
    Run(Program),
    /// Start a program: [`Answer::Started`].
    Start(Program),
    /// Send a signal to a program that was started: [`Answer::Done`].
    Signal {
        /// Its process.
        pid: u32,
        /// The signal's number.
        signal: i32,
    },
    /// Wait for the end of a program that was started: [`Answer::Ran`].
    Wait {
        /// Its process.
        pid: u32,
    },
    /// Make files and read each, so that it is measured: [`Answer::Measured`].
    Measure(Files),
    /// The same in the background until told to stop: [`Answer::Done`].
    KeepMeasuring(Files),
    /// Stop that: [`Answer::Measured`].
    StopMeasuring,
    /// Commit a violation with a file: [`Answer::Done`].
    Violate {
        /// The file.
        path: String,
        /// Open it for writing while it is open for reading (time of measure, time of use), or the
        /// other way round (open writers).
        reader_first: bool,
    },
    /// The list in all its files, the counters and PCR values, of one moment: [`Answer::Files`].
    Snapshot,
    /// Give a file an extended attribute, whose value comes with it: [`Answer::Done`].
    SetAttribute {
        /// The file.
        path: String,
        /// The attribute's name.
        name: String,
    },
    /// Tell the public halves of the TPM's endorsement and attestation keys: [`Answer::Identity`].
    Identify,
    /// Read a credential's secret with those keys: [`Answer::Bytes`].
    Activate {
        /// Contents of a TPM2B_ID_OBJECT.
        blob: Vec<u8>,
        /// Contents of a TPM2B_ENCRYPTED_SECRET.
        seed: Vec<u8>,
    },
    /// Have the TPM quote PCRs: [`Answer::Quoted`].
    Quote {
        /// With an RSA key, not an ECC one.
        rsa: bool,
        /// The nonce.
        nonce: Vec<u8>,
        /// Banks, and in each the PCRs as bits.
        pcrs: Vec<(String, u32)>,
    },
    /// Mount a file system: [`Answer::Done`].
    Mount {
        /// The device.
        source: String,
        /// Where.
        target: String,
        /// Its kind.
        kind: String,
    },
    /// Load a kernel to be gone over to: [`Answer::Done`].
    LoadKernel {
        /// The kernel's file.
        kernel: String,
        /// Its first file system's.
        initramfs: String,
        /// Its command line.
        command_line: String,
    },
    /// Write everything to the disks and turn the machine off. Not answered.
    PowerOff,
    /// Write everything to the disks and reset the machine. Not answered.
    Reboot,
    /// Go over to the kernel that was loaded. Not answered.
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

/// Files to be measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Files {
    /// Where; made if it is not there.
    pub dir: String,
    /// The number in the first one's name.
    pub first: u64,
    /// How many at most.
    pub count: u64,
    /// Bytes in each.
    pub size: usize,
}

/// What the guest answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is there. Said once, by itself, when the guest is ready for questions.
    Hello {
        /// The kernel's release.
        release: String,
        /// What it was booted with.
        command_line: String,
    },
    /// It is done.
    Done,
    /// The bytes that come with it.
    Bytes {
        /// How long reading took, in microseconds.
        micros: u64,
    },
    /// How a program ended; what it printed comes with it, standard output first.
    Ran {
        /// Its exit code; -1 if it was killed.
        code: i32,
        /// How many of the bytes are standard output's.
        stdout: usize,
    },
    /// The TPM's keys, each a TPMT_PUBLIC.
    Identity {
        /// The endorsement key.
        endorsement: Vec<u8>,
        /// The attestation key.
        attestation: Vec<u8>,
    },
    /// The quote that comes with it, message and signature.
    Quoted {
        /// The key that signed it, in PEM.
        key: String,
        /// Bytes of the message.
        size: usize,
    },
    /// A program runs.
    Started {
        /// Its process.
        pid: u32,
    },
    /// Files were measured.
    Measured {
        /// How many.
        count: u64,
        /// How long that took, in microseconds.
        micros: u64,
    },
    /// Names of files, sorted.
    Names(Vec<String>),
    /// Names and sizes of files whose bytes come with it.
    Files(Vec<(String, usize)>),
    /// It could not be done.
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
/// [`io::Error`] of the reader; a message that is too long or none.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<(T, Vec<u8>)> {
    const LONGEST_JSON: u32 = 1 << 20;
    const MOST_BYTES: u32 = 1 << 29;
    let mut lengths = [[0; 4]; 2];
    for length in &mut lengths {
        from.read_exact(length)?;
    }
    let [json, bytes] = lengths.map(u32::from_le_bytes);
    if json > LONGEST_JSON || bytes > MOST_BYTES {
        let why = format!("a message of {json} and {bytes} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let message = serde_json::from_slice(&exactly(from, json)?)?;
    Ok((message, exactly(from, bytes)?))
}

/// Memory is taken as bytes arrive, not as a length promises.
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
    fn messages_come_out_as_they_went_in() {
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
