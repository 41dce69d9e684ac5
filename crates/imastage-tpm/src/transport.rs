//! Bytes to and from a TPM.
//!
//! `tpm2-device` has transports too, but links OpenSSL through `tpm2-crypto`; the build of this
//! project needs no C library, and what is needed of it is this page.

use std::{
    fmt,
    fs::File,
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with,
        sockopt::{self, Timeout},
    },
};
use tpm2_protocol::data::TpmCc;

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

/// How long it may take to connect to a socket, and a TPM behind one to answer a command. A device
/// needs no such limit, its driver has one (drivers/char/tpm/tpm2-cmd.c).
const PATIENCE: Duration = Duration::from_secs(30);

/// The same for commands that look for primes, or test or clear the TPM: on discrete TPMs they may
/// take minutes.
const LONG_PATIENCE: Duration = Duration::from_secs(300);

/// A connection that commands go out on and responses come back on.
pub(crate) struct Transport {
    peer: Peer,
    frames: Frames,
    /// How long a command may take.
    limit: fn(&[u8]) -> Duration,
    /// A command went out whose response did not come back whole. Whatever comes next would be
    /// taken for the answer to another command.
    broken: bool,
}

/// Cuts what a peer sends into commands or responses, holding at most one whole.
pub(crate) struct Frames {
    bytes: Box<[u8; MAX_FRAME]>,
    /// Bytes received.
    filled: usize,
    /// Bytes of the frame that was received last.
    size: usize,
}

enum Peer {
    Device(File),
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A peer of which nothing is expected any more after a certain moment.
struct Until<'a> {
    peer: &'a mut Peer,
    end: Instant,
}

impl Endpoint {
    /// The TPM of this machine, if it has one: the kernel's resource manager.
    pub fn system() -> Option<Endpoint> {
        let path = PathBuf::from("/dev/tpmrm0");
        path.exists().then_some(Endpoint::Device(path))
    }

    pub(crate) fn connect(&self) -> io::Result<Transport> {
        let peer = match self {
            Endpoint::Device(path) => {
                Peer::Device(File::options().read(true).write(true).open(path)?)
            }
            Endpoint::Unix(path) => Peer::Unix(connect_unix(path, PATIENCE)?),
            Endpoint::Tcp(address) => {
                let stream = connect_tcp(address)?;
                stream.set_nodelay(true)?;
                Peer::Tcp(stream)
            }
        };
        Ok(Transport::over(peer))
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
    pub(crate) fn over_unix(stream: UnixStream) -> Transport {
        Transport::over(Peer::Unix(stream))
    }

    /// Sends a whole command and receives the whole response, within the time that such a command
    /// may take.
    pub(crate) fn exchange(&mut self, command: &[u8]) -> io::Result<&[u8]> {
        if self.broken {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the connection to the TPM broke at an earlier command and has to be made anew",
            ));
        }
        self.broken = true;
        let limit = (self.limit)(command);
        let mut peer = Until { peer: &mut self.peer, end: Instant::now() + limit };
        let sent = peer.write_all(command);
        let answered = sent.and_then(|()| self.frames.receive(&mut peer));
        let answered = answered.map_err(|error| match error.kind() {
            // What a socket's timeout looks like.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => silent(limit),
            _ => error,
        })?;
        if !answered {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the TPM closed the connection",
            ));
        }
        if self.frames.more() {
            return Err(malformed("bytes behind the response"));
        }
        self.broken = false;
        Ok(self.frames.frame())
    }

    fn over(peer: Peer) -> Transport {
        Transport { peer, frames: Frames::new(), limit, broken: false }
    }
}

impl Frames {
    pub(crate) fn new() -> Frames {
        Frames { bytes: Box::new([0; MAX_FRAME]), filled: 0, size: 0 }
    }

    /// Receives the next frame. `false` if the peer closed before it began.
    pub(crate) fn receive(&mut self, peer: &mut impl Read) -> io::Result<bool> {
        self.bytes.copy_within(self.size..self.filled, 0);
        self.filled -= self.size;
        self.size = 0;
        loop {
            if let Some(size) = frame_size(&self.bytes[..self.filled])?
                && size <= self.filled
            {
                self.size = size;
                return Ok(true);
            }
            // There is room: no frame is larger than the buffer.
            match peer.read(&mut self.bytes[self.filled..]) {
                Ok(0) if self.filled == 0 => return Ok(false),
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("a TPM frame ends after {} bytes", self.filled),
                    ));
                }
                Ok(n) => self.filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The frame that was received last.
    pub(crate) fn frame(&self) -> &[u8] {
        &self.bytes[..self.size]
    }

    /// Whether bytes came with the last frame that are not of it.
    fn more(&self) -> bool {
        self.size < self.filled
    }
}

impl Until<'_> {
    /// What is left of the time, at least a little: a socket takes no limit of zero.
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left.max(Duration::from_millis(1)))),
        }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left()?;
        match self.peer {
            Peer::Device(device) => device.read(buffer),
            Peer::Unix(stream) => {
                stream.set_read_timeout(left)?;
                stream.read(buffer)
            }
            Peer::Tcp(stream) => {
                stream.set_read_timeout(left)?;
                stream.read(buffer)
            }
        }
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left()?;
        match self.peer {
            Peer::Device(device) => device.write(bytes),
            Peer::Unix(stream) => {
                stream.set_write_timeout(left)?;
                stream.write(bytes)
            }
            Peer::Tcp(stream) => {
                stream.set_write_timeout(left)?;
                stream.write(bytes)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects within a limit: the queue of a server that hangs may be full, and connect(2) would block.
fn connect_unix(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    let address = SocketAddrUnix::new(path)?;
    // With a limit, the kernel does not restart it after a signal.
    match rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address)) {
        Err(Errno::AGAIN) => Err(silent(patience)),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(socket.into()),
    }
}

fn connect_tcp(address: &str) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// How long a command may take.
fn limit(command: &[u8]) -> Duration {
    const LONG: [TpmCc; 5] =
        [TpmCc::Clear, TpmCc::Create, TpmCc::CreateLoaded, TpmCc::CreatePrimary, TpmCc::SelfTest];
    let code = command.get(6..HEADER).and_then(|code| code.first_chunk());
    let code = code.map(|code| u32::from_be_bytes(*code));
    if LONG.iter().any(|long| Some(*long as u32) == code) { LONG_PATIENCE } else { PATIENCE }
}

/// The size that a header says its frame has; `None` if the header is not whole.
fn frame_size(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let [_, _, a, b, c, d, ..] = *header;
    match u32::from_be_bytes([a, b, c, d]) as usize {
        size @ HEADER..=MAX_FRAME => Ok(Some(size)),
        size => Err(malformed(&format!(
            "a TPM frame of {size} bytes: expected {HEADER} to {MAX_FRAME}"
        ))),
    }
}

fn silent(limit: Duration) -> io::Error {
    let why = format!(
        "no answer in {} s; see whether what serves the TPM still runs, and whether another program \
         holds it (swtpm serves one connection at a time)",
        limit.as_secs()
    );
    io::Error::new(io::ErrorKind::TimedOut, why)
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

    /// Gives bytes in the pieces they were sent in.
    struct Pieces<'a>(Vec<&'a [u8]>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(piece) = self.0.first_mut() else { return Ok(0) };
            let n = piece.read(buffer)?;
            if piece.is_empty() {
                self.0.remove(0);
            }
            Ok(n)
        }
    }

    const FRAME: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 0, 0, 7, 8];

    #[test]
    fn frames_are_cut_whatever_the_pieces() {
        let two: Vec<u8> = [FRAME, FRAME].concat();
        for cut in 0..=two.len() {
            let mut peer = Pieces(vec![&two[..cut], &two[cut..]]);
            peer.0.retain(|piece| !piece.is_empty());
            let mut frames = Frames::new();
            for _ in 0..2 {
                assert!(frames.receive(&mut peer).unwrap(), "cut at {cut}");
                assert_eq!(frames.frame(), FRAME);
            }
            assert!(!frames.receive(&mut peer).unwrap());
        }
    }

    #[test]
    fn frames_are_bounded() {
        for size in [0, 9, MAX_FRAME as u32 + 1, u32::MAX] {
            let mut frame = FRAME;
            frame[2..6].copy_from_slice(&size.to_be_bytes());
            let error = Frames::new().receive(&mut &frame[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{size}");
        }
        let mut largest = vec![0xaa; MAX_FRAME + 1];
        largest[2..6].copy_from_slice(&(MAX_FRAME as u32).to_be_bytes());
        let mut frames = Frames::new();
        assert!(frames.receive(&mut &largest[..]).unwrap());
        assert_eq!(frames.frame(), &largest[..MAX_FRAME]);
        for len in 1..FRAME.len() {
            let error = Frames::new().receive(&mut &FRAME[..len]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{len}");
        }
    }

    /// Otherwise the second command would be given the first one's late answer.
    #[test]
    fn a_broken_connection_answers_nothing_more() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut transport = Transport::over_unix(ours);
        theirs.write_all(&[FRAME, FRAME].concat()).unwrap();
        let error = transport.exchange(&FRAME).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        theirs.write_all(&FRAME).unwrap();
        let error = transport.exchange(&FRAME).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    }
    /// A limit of each read alone would be none: there may be thousands.
    #[test]
    fn a_tpm_that_answers_for_ever_is_not_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut transport = Transport::over_unix(ours);
        transport.limit = |_| Duration::from_millis(200);
        let dribble = std::thread::spawn(move || {
            let mut frame = FRAME.to_vec();
            frame[2..6].copy_from_slice(&(MAX_FRAME as u32).to_be_bytes());
            frame.resize(MAX_FRAME, 0);
            // Ends when the other side is closed.
            while let Some((byte, rest)) = frame.split_first() {
                if theirs.write_all(&[*byte]).is_err() {
                    return;
                }
                frame = rest.to_vec();
                std::thread::sleep(Duration::from_millis(25));
            }
        });
        let error = transport.exchange(&FRAME).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        drop(transport);
        dribble.join().unwrap();
    }

    #[test]
    fn a_server_that_accepts_nobody_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let listener = listener.unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect_unix(&path, Duration::from_millis(50)) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100);
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }

    #[test]
    fn keys_may_take_longer_than_all_else() {
        let command = |code: TpmCc| [&FRAME[..6], &(code as u32).to_be_bytes()].concat();
        assert_eq!(limit(&command(TpmCc::CreatePrimary)), LONG_PATIENCE);
        assert_eq!(limit(&command(TpmCc::Quote)), PATIENCE);
        assert_eq!(limit(&[]), PATIENCE);
    }
}
