//! Bytes to and from a TPM.
//!
//! `tpm2-device` has transports too, but links OpenSSL through `tpm2-crypto`; the build of this
//! project needs no C library, and what is needed of it is this page.

use std::{
    fmt,
    fs::File,
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::PathBuf,
    str::FromStr,
};

/// Where a TPM answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A character device, such as `/dev/tpmrm0`.
    Device(PathBuf),
    /// `unix:PATH`, a stream of commands and responses, as swtpm speaks it.
    Unix(PathBuf),
    /// `tcp:HOST:PORT`, the same.
    Tcp(String),
}

/// No endpoint is written like this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: expected a device's path such as /dev/tpmrm0, unix:PATH or tcp:HOST:PORT")]
pub struct EndpointError(String);

/// The largest command or response, in bytes: what TPMs on PCs take (TPM2_PT_MAX_COMMAND_SIZE).
pub(crate) const MAX_FRAME: usize = 4096;

/// Tag, size and code, which commands and responses begin with.
pub(crate) const HEADER: usize = 10;

/// A connection that commands go out on and responses come back on.
pub(crate) enum Transport {
    /// The kernel gives a whole response to one read.
    Device(File),
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Endpoint {
    /// The TPM of this machine, if it has one: the kernel's resource manager.
    pub fn system() -> Option<Endpoint> {
        let path = PathBuf::from("/dev/tpmrm0");
        path.exists().then_some(Endpoint::Device(path))
    }

    pub(crate) fn connect(&self) -> io::Result<Transport> {
        match self {
            Endpoint::Device(path) => {
                File::options().read(true).write(true).open(path).map(Transport::Device)
            }
            Endpoint::Unix(path) => UnixStream::connect(path).map(Transport::Unix),
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Ok(Transport::Tcp(stream))
            }
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            Ok(Endpoint::Unix(path.into()))
        } else if let Some(address) = text.strip_prefix("tcp:") {
            let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            match port {
                Some(Ok(_)) => Ok(Endpoint::Tcp(address.to_owned())),
                _ => Err(EndpointError(text.to_owned())),
            }
        } else if text.starts_with('/') {
            Ok(Endpoint::Device(text.into()))
        } else {
            Err(EndpointError(text.to_owned()))
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Device(path) => write!(f, "{}", path.display()),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl Transport {
    /// Sends a whole command and receives the whole response into `response`.
    pub(crate) fn exchange(&mut self, command: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Transport::Device(device) => {
                device.write_all(command)?;
                response.resize(MAX_FRAME, 0);
                let len = device.read(response)?;
                response.truncate(len);
                match frame_size(response) {
                    Ok(size) if size == len => Ok(()),
                    _ => Err(malformed("the response's size field does not fit its size")),
                }
            }
            Transport::Unix(stream) => {
                stream.write_all(command)?;
                read_frame(stream, response).map(drop)
            }
            Transport::Tcp(stream) => {
                stream.write_all(command)?;
                read_frame(stream, response).map(drop)
            }
        }
    }
}

/// Reads one command or response. `false` if the stream ended before it began.
pub(crate) fn read_frame(stream: &mut impl Read, frame: &mut Vec<u8>) -> io::Result<bool> {
    frame.resize(HEADER, 0);
    let mut filled = 0;
    while filled < HEADER {
        match stream.read(&mut frame[filled..]) {
            Ok(0) if filled == 0 => {
                frame.clear();
                return Ok(false);
            }
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let size = frame_size(frame)?;
    frame.resize(size, 0);
    stream.read_exact(&mut frame[HEADER..])?;
    Ok(true)
}

/// The size that a header says its frame has.
fn frame_size(header: &[u8]) -> io::Result<usize> {
    let size = header
        .get(2..6)
        .and_then(|size| size.first_chunk())
        .map(|size| u32::from_be_bytes(*size) as usize);
    match size {
        Some(size @ HEADER..=MAX_FRAME) => Ok(size),
        Some(size) => Err(malformed(&format!(
            "a TPM frame of {size} bytes: expected {HEADER} to {MAX_FRAME}"
        ))),
        None => Err(malformed("a TPM frame without a header")),
    }
}

fn malformed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_written_as_they_are_read() {
        for text in ["/dev/tpmrm0", "unix:/run/tpm.sock", "tcp:localhost:2321"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "tcp:localhost", "tcp:host:99999", "tpm0"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn frames_are_bounded() {
        let mut frame = Vec::new();
        let huge = [0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert!(read_frame(&mut &huge[..], &mut frame).is_err());
        let small = [0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0];
        assert!(read_frame(&mut &small[..], &mut frame).is_err());
        let whole = [0x80, 1, 0, 0, 0, 11, 0, 0, 0, 0, 7];
        assert!(read_frame(&mut &whole[..], &mut frame).unwrap());
        assert_eq!(frame, whole);
        assert!(!read_frame(&mut &[][..], &mut frame).unwrap());
        assert!(read_frame(&mut &whole[..5], &mut frame).is_err());
    }
}
