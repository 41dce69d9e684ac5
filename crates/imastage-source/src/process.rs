//! A list whose files are open in another process.
//!
//! A kernel's writer accounting can fail if a process forks while it has a list file open for
//! writing: the child has the descriptor too until it calls execve, even with O_CLOEXEC, and closes
//! it in another thread than the one that opened it (observed on Linux 7.2: writers get EBUSY until
//! reboot). The files are therefore open in a process that only runs [`serve`], has one thread and
//! starts no program. The service has a [`SourceProcess`] and opens no list file.

use std::{
    cell::RefCell,
    io::{self, BufReader, Write},
    num::NonZeroU64,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use crate::{
    Batch, Dialect, Holders, Look, Sink, Source, SourceError,
    message::{Answer, Ask, CHUNK, Malformed, receive, send},
};

/// The longest time each end waits for the other. A service manager's watchdog should expire first:
/// a kernel that takes minutes for one call hangs.
const LONGEST_SILENCE: Duration = Duration::from_secs(600);

/// The service's end: a list in another process.
#[derive(Debug)]
pub struct SourceProcess {
    link: RefCell<Link>,
    dialect: Dialect,
    others_may_delete: bool,
    name: String,
}

impl SourceProcess {
    /// Waits until the process at the other end of `socket` ([`serve`]) has opened the list.
    ///
    /// # Errors
    /// The error of that open; [`SourceError::Lost`] if the process does not answer.
    pub fn connect(socket: UnixStream) -> Result<SourceProcess, SourceError> {
        let lost = |error: io::Error| SourceError::Lost { why: error.to_string() };
        socket.set_read_timeout(Some(LONGEST_SILENCE)).map_err(lost)?;
        socket.set_write_timeout(Some(LONGEST_SILENCE)).map_err(lost)?;
        let mut link = Link { socket: BufReader::with_capacity(PIECE, socket), lost: None };
        match link.hear()? {
            Answer::Hello { dialect, others_may_delete, name } => {
                Ok(SourceProcess { link: RefCell::new(link), dialect, others_may_delete, name })
            }
            answer => Err(link.unexpected(answer)),
        }
    }
}

impl Source for SourceProcess {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        let link = self.link.get_mut();
        link.done(Ask::Look)?;
        Ok(Box::new(RemoteLook { link }))
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        let link = self.link.get_mut();
        match link.ask_for_bytes(Ask::Take, sink)? {
            Answer::Taken { was_pending, position } => {
                Ok(Some(Box::new(RemoteBatch { link: Some(link), was_pending, position })))
            }
            Answer::Nothing => Ok(None),
            answer => Err(link.unexpected(answer)),
        }
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        self.link.get_mut().done(Ask::TryOpen)
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        let link = self.link.get_mut();
        match link.ask(Ask::Count)? {
            Answer::Number(Some(count)) => Ok(count),
            answer => Err(link.unexpected(answer)),
        }
    }

    fn dialect(&self) -> Dialect {
        self.dialect
    }

    fn others_may_delete(&self) -> bool {
        self.others_may_delete
    }

    fn trimmed(&mut self) -> Result<Option<u64>, SourceError> {
        let link = self.link.get_mut();
        match link.ask(Ask::Trimmed)? {
            Answer::Number(number) => Ok(number),
            answer => Err(link.unexpected(answer)),
        }
    }

    fn holders(&self) -> Holders {
        match self.link.borrow_mut().ask(Ask::Holders) {
            Ok(Answer::Holders(holders)) => holders,
            // The next use of the list reports the error.
            _ => Holders::default(),
        }
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

struct RemoteLook<'a> {
    link: &'a mut Link,
}

impl Look for RemoteLook<'_> {
    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        match self.link.ask_for_bytes(Ask::Read, sink)? {
            Answer::Done => Ok(()),
            answer => Err(self.link.unexpected(answer)),
        }
    }
}

impl Drop for RemoteLook<'_> {
    fn drop(&mut self) {
        self.link.release();
    }
}

struct RemoteBatch<'a> {
    /// `None` after a deletion, successful or not.
    link: Option<&'a mut Link>,
    was_pending: bool,
    position: Option<u64>,
}

impl Batch for RemoteBatch<'_> {
    fn was_pending(&self) -> bool {
        self.was_pending
    }

    fn position(&self) -> Option<u64> {
        self.position
    }

    fn delete(mut self: Box<Self>, records: NonZeroU64) -> Result<(), SourceError> {
        match self.link.take() {
            Some(link) => link.done(Ask::Delete(records)),
            None => Ok(()),
        }
    }
}

impl Drop for RemoteBatch<'_> {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            link.release();
        }
    }
}

/// The connection to the other process.
#[derive(Debug)]
struct Link {
    socket: BufReader<UnixStream>,
    /// The reason that the connection is unusable.
    lost: Option<String>,
}

impl Link {
    fn ask(&mut self, ask: Ask) -> Result<Answer, SourceError> {
        self.check()?;
        if let Err(error) = send(self.socket.get_mut(), &ask.encode(), &[]) {
            return Err(self.lose(error.to_string()));
        }
        self.hear()
    }

    /// Passes chunks of the list to `sink`, and returns the answer that follows them.
    fn ask_for_bytes(&mut self, ask: Ask, sink: &mut Sink<'_>) -> Result<Answer, SourceError> {
        let mut answer = self.ask(ask)?;
        loop {
            match answer {
                Answer::Chunk(bytes) => sink(&bytes),
                answer => return Ok(answer),
            }
            answer = self.hear()?;
        }
    }

    fn done(&mut self, ask: Ask) -> Result<(), SourceError> {
        match self.ask(ask)? {
            Answer::Done => Ok(()),
            answer => Err(self.unexpected(answer)),
        }
    }

    /// Waits until the list's files are closed. If that fails, the next request returns the error.
    fn release(&mut self) {
        let _ = self.done(Ask::Release);
    }

    fn hear(&mut self) -> Result<Answer, SourceError> {
        self.check()?;
        let why = match receive(&mut self.socket) {
            Ok(Some(bytes)) => match Answer::decode(bytes) {
                Ok(Answer::Failed(error)) => return Err(error),
                Ok(answer) => return Ok(answer),
                Err(Malformed) => "malformed answer".to_owned(),
            },
            Ok(None) => "process ended".to_owned(),
            Err(error) if is_timeout(&error) => {
                format!("no answer for {} seconds", LONGEST_SILENCE.as_secs())
            }
            Err(error) => error.to_string(),
        };
        Err(self.lose(why))
    }

    fn unexpected(&mut self, answer: Answer) -> SourceError {
        let _ = answer;
        self.lose("answer to another request".to_owned())
    }

    fn check(&self) -> Result<(), SourceError> {
        match &self.lost {
            Some(why) => Err(SourceError::Lost { why: why.clone() }),
            None => Ok(()),
        }
    }

    fn lose(&mut self, why: String) -> SourceError {
        // Ends the other process if it is still running.
        let _ = self.socket.get_ref().shutdown(std::net::Shutdown::Both);
        self.lost = Some(why.clone());
        SourceError::Lost { why }
    }
}

/// The size of one chunk message, in bytes. The kernel returns a page at a time.
const PIECE: usize = 64 << 10;

/// The longest interval between chunk messages, which the receiver uses as a sign of life.
const LONGEST_PIECE: Duration = Duration::from_millis(500);

/// The other end: serves the requests of a [`SourceProcess`] on `source` until the peer closes the
/// socket. If `source` is an error, the peer receives that error.
///
/// # Errors
/// [`io::Error`] if a request cannot be received or decoded, or an answer cannot be sent.
pub fn serve(socket: UnixStream, source: Result<Box<dyn Source>, SourceError>) -> io::Result<()> {
    socket.set_write_timeout(Some(LONGEST_SILENCE))?;
    let mut server =
        Server { from: BufReader::new(socket.try_clone()?), to: socket, piece: Vec::new() };
    let mut source = match source {
        Ok(source) => source,
        Err(error) => return server.answer(&Answer::Failed(error)),
    };
    server.answer(&Answer::Hello {
        dialect: source.dialect(),
        others_may_delete: source.others_may_delete(),
        name: source.name(),
    })?;
    // An idle client is waited for without a time limit.
    while let Some(ask) = server.hear()? {
        server.serve(ask, source.as_mut())?;
    }
    Ok(())
}

struct Server {
    from: BufReader<UnixStream>,
    to: UnixStream,
    /// Bytes of the list that are not yet sent.
    piece: Vec<u8>,
}

impl Server {
    fn serve(&mut self, ask: Ask, source: &mut dyn Source) -> io::Result<()> {
        match ask {
            Ask::Look => match source.look() {
                Ok(look) => self.serve_look(look),
                Err(error) => self.fail(error),
            },
            Ask::Take => {
                let batch = self.send_bytes(|sink| source.take(sink))?;
                match batch {
                    Ok(Some(batch)) => self.serve_batch(batch),
                    Ok(None) => self.answer(&Answer::Nothing),
                    Err(error) => self.fail(error),
                }
            }
            Ask::TryOpen => self.answer_with(source.try_open(), |()| Answer::Done),
            Ask::Count => self.answer_with(source.count(), |count| Answer::Number(Some(count))),
            Ask::Trimmed => self.answer_with(source.trimmed(), Answer::Number),
            Ask::Holders => {
                let holders = Answer::Holders(others(source.holders()));
                self.answer(&holders)
            }
            Ask::Read | Ask::Delete(_) | Ask::Release => Err(out_of_turn()),
        }
    }

    fn serve_look(&mut self, mut look: Box<dyn Look + '_>) -> io::Result<()> {
        self.answer(&Answer::Done)?;
        loop {
            match self.hear_while_holding()? {
                Ask::Read => {
                    let read = self.send_bytes(|sink| look.read(sink))?;
                    self.answer_with(read, |()| Answer::Done)?;
                }
                Ask::Release => {
                    drop(look);
                    return self.answer(&Answer::Done);
                }
                _ => return Err(out_of_turn()),
            }
        }
    }

    fn serve_batch(&mut self, batch: Box<dyn Batch + '_>) -> io::Result<()> {
        let (was_pending, position) = (batch.was_pending(), batch.position());
        self.answer(&Answer::Taken { was_pending, position })?;
        match self.hear_while_holding()? {
            Ask::Delete(records) => self.answer_with(batch.delete(records), |()| Answer::Done),
            Ask::Release => {
                drop(batch);
                self.answer(&Answer::Done)
            }
            _ => Err(out_of_turn()),
        }
    }

    /// Runs `read` and sends the bytes that it reads.
    fn send_bytes<T>(
        &mut self,
        read: impl FnOnce(&mut Sink<'_>) -> Result<T, SourceError>,
    ) -> io::Result<Result<T, SourceError>> {
        let mut sent = Ok(());
        let mut since = Instant::now();
        let result = read(&mut |bytes| {
            for bytes in bytes.chunks(PIECE) {
                self.piece.extend_from_slice(bytes);
                if self.piece.len() >= PIECE || since.elapsed() >= LONGEST_PIECE {
                    since = Instant::now();
                    // The read cannot be stopped; after an error nothing more is sent.
                    if sent.is_ok() {
                        sent = self.send_piece();
                    }
                    self.piece.clear();
                }
            }
        });
        sent?;
        if !self.piece.is_empty() {
            self.send_piece()?;
            self.piece.clear();
        }
        Ok(result)
    }

    fn send_piece(&mut self) -> io::Result<()> {
        send(&mut self.to, &[CHUNK], &self.piece)
    }

    fn answer(&mut self, answer: &Answer) -> io::Result<()> {
        send(&mut self.to, &answer.encode(), &[])?;
        self.to.flush()
    }

    fn answer_with<T>(
        &mut self,
        result: Result<T, SourceError>,
        answer: impl FnOnce(T) -> Answer,
    ) -> io::Result<()> {
        match result {
            Ok(value) => self.answer(&answer(value)),
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: SourceError) -> io::Result<()> {
        self.answer(&Answer::Failed(error))
    }

    fn hear(&mut self) -> io::Result<Option<Ask>> {
        match receive(&mut self.from)? {
            Some(bytes) => Ok(Some(Ask::decode(&bytes).map_err(|Malformed| out_of_turn())?)),
            None => Ok(None),
        }
    }

    /// An open list blocks other processes, so the service is waited for with a time limit.
    fn hear_while_holding(&mut self) -> io::Result<Ask> {
        self.from.get_ref().set_read_timeout(Some(LONGEST_SILENCE))?;
        let ask = self.hear()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.from.get_ref().set_read_timeout(None)?;
        Ok(ask)
    }
}

/// The holders without this process.
fn others(mut holders: Holders) -> Holders {
    holders.found.retain(|holder| holder.pid != std::process::id());
    holders
}

fn out_of_turn() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "request out of sequence")
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
