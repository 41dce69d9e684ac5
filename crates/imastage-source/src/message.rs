//! The messages between a service and the process that has the list's files open: frames of a
//! length (u32, little-endian) and that many bytes, the first of which is the tag. Both ends are
//! the same program, so the protocol has no versions.

use std::{
    ffi::OsStr,
    io::{self, Read, Write},
    num::NonZeroU64,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};

use crate::{DeleteMode, Dialect, Holder, Holders, Request, Sight, SourceError, files};

/// The longest frame, in bytes.
pub(crate) const LONGEST: usize = 1 << 20;

/// The largest number of holders in a message.
const MOST_HOLDERS: usize = 1000;

/// A request of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Look,
    /// Read to the end, during a look.
    Read,
    Take,
    /// Delete the batch.
    Delete(NonZeroU64),
    /// Drop the batch, or end the look.
    Release,
    TryOpen,
    Count,
    Trimmed,
    Holders,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The first message: describes the list.
    Hello {
        dialect: Dialect,
        others_may_delete: bool,
        name: String,
    },
    /// Bytes of the list; more answers follow.
    Chunk(Vec<u8>),
    Done,
    Taken {
        was_pending: bool,
        position: Option<u64>,
    },
    Nothing,
    Number(Option<u64>),
    Holders(Holders),
    Failed(SourceError),
}

/// The message cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Ask {
    pub(crate) fn encode(self) -> Vec<u8> {
        let tag = match self {
            Ask::Look => 0,
            Ask::Read => 1,
            Ask::Take => 2,
            Ask::Delete(_) => 3,
            Ask::Release => 4,
            Ask::TryOpen => 5,
            Ask::Count => 6,
            Ask::Trimmed => 7,
            Ask::Holders => 8,
        };
        let mut out = vec![tag];
        if let Ask::Delete(records) = self {
            out.extend(records.get().to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Ask, Malformed> {
        let mut input = Input(bytes);
        let ask = match input.byte()? {
            0 => Ask::Look,
            1 => Ask::Read,
            2 => Ask::Take,
            3 => Ask::Delete(NonZeroU64::new(input.number()?).ok_or(Malformed)?),
            4 => Ask::Release,
            5 => Ask::TryOpen,
            6 => Ask::Count,
            7 => Ask::Trimmed,
            8 => Ask::Holders,
            _ => return Err(Malformed),
        };
        input.end(ask)
    }
}

/// The tag of [`Answer::Chunk`], which is sent without a copy into an [`Answer`].
pub(crate) const CHUNK: u8 = 1;

impl Answer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Answer::Hello { dialect, others_may_delete, name } => {
                out.extend([0, index(&DIALECTS, dialect), u8::from(*others_may_delete)]);
                text(&mut out, name.as_bytes());
            }
            Answer::Chunk(bytes) => {
                out.push(CHUNK);
                out.extend(bytes);
            }
            Answer::Done => out.push(2),
            Answer::Taken { was_pending, position } => {
                out.extend([3, u8::from(*was_pending)]);
                option(&mut out, *position);
            }
            Answer::Nothing => out.push(4),
            Answer::Number(number) => {
                out.push(5);
                option(&mut out, *number);
            }
            Answer::Holders(holders) => {
                out.push(6);
                encode_holders(&mut out, holders);
            }
            Answer::Failed(error) => {
                out.push(7);
                encode_error(&mut out, error);
            }
        }
        out
    }

    pub(crate) fn decode(mut bytes: Vec<u8>) -> Result<Answer, Malformed> {
        if bytes.first() == Some(&CHUNK) {
            bytes.remove(0);
            return Ok(Answer::Chunk(bytes));
        }
        let mut input = Input(&bytes);
        let answer = match input.byte()? {
            0 => Answer::Hello {
                dialect: of(&DIALECTS, input.byte()?)?,
                others_may_delete: input.boolean()?,
                name: input.string()?,
            },
            2 => Answer::Done,
            3 => Answer::Taken { was_pending: input.boolean()?, position: input.option()? },
            4 => Answer::Nothing,
            5 => Answer::Number(input.option()?),
            6 => Answer::Holders(input.holders()?),
            7 => Answer::Failed(input.error()?),
            _ => return Err(Malformed),
        };
        input.end(answer)
    }
}

/// Sends a frame whose bytes are in two parts.
pub(crate) fn send(to: &mut impl Write, head: &[u8], rest: &[u8]) -> io::Result<()> {
    let length = head.len() + rest.len();
    let Some(length) = u32::try_from(length).ok().filter(|_| length <= LONGEST) else {
        let why = format!("message of {length} bytes; the limit is {LONGEST}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    };
    let mut start = Vec::with_capacity(4 + head.len());
    start.extend(length.to_le_bytes());
    start.extend(head);
    if rest.is_empty() {
        return to.write_all(&start);
    }
    to.write_all(&start)?;
    to.write_all(rest)
}

/// Receives a frame; `None` if the other end is closed.
pub(crate) fn receive(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let mut filled = 0;
    while let Some(rest) = length.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST {
        let why = format!("message of {length} bytes; the limit is {LONGEST}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

const DIALECTS: [Dialect; 4] = [Dialect::Linux72, Dialect::V4, Dialect::Trim, Dialect::Follow];
const DELETE_MODES: [DeleteMode; 3] = [DeleteMode::Stage, DeleteMode::FirstN, DeleteMode::None];
const KINDS: [io::ErrorKind; 3] =
    [io::ErrorKind::Other, io::ErrorKind::InvalidData, io::ErrorKind::WriteZero];

/// The text of an error that is not in [`files::WHYS`] or [`files::DOINGS`].
const UNNAMED: &str = "the list's files";

fn index<T: PartialEq>(all: &[T], one: &T) -> u8 {
    let at = all.iter().position(|other| other == one);
    at.and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX)
}

fn of<T: Copy>(all: &[T], at: u8) -> Result<T, Malformed> {
    all.get(usize::from(at)).copied().ok_or(Malformed)
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    // Names and paths are shorter; a longer text is only for display.
    let text = text.get(..1 << 16).unwrap_or(text);
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text);
}

fn option(out: &mut Vec<u8>, number: Option<u64>) {
    out.push(u8::from(number.is_some()));
    out.extend(number.unwrap_or(0).to_le_bytes());
}

fn encode_holders(out: &mut Vec<u8>, holders: &Holders) {
    let mut free = LONGEST / 2;
    let fits = |holder: &&Holder| {
        let length = holder.name.len() + holder.path.as_os_str().len() + 16;
        let fits = length <= free;
        free = free.saturating_sub(length);
        fits
    };
    let named: Vec<_> = holders.found.iter().take(MOST_HOLDERS).take_while(fits).collect();
    let (sight, pid) = match holders.sight {
        Sight::Complete => (0, 0),
        Sight::NoProc => (1, 0),
        Sight::Namespace => (2, 0),
        Sight::NoPtrace => (3, 0),
        Sight::Denied { pid } => (4, pid),
    };
    out.push(sight);
    out.extend(pid.to_le_bytes());
    out.extend((named.len() as u32).to_le_bytes());
    for Holder { pid, name, fd, path } in named {
        out.extend(pid.to_le_bytes());
        out.extend(fd.to_le_bytes());
        text(out, name.as_bytes());
        text(out, path.as_os_str().as_bytes());
    }
}

fn encode_request(out: &mut Vec<u8>, request: Request) {
    let (tag, total, records) = match request {
        Request::Stage => (0, 0, 0),
        Request::DeleteStaged => (1, 0, 0),
        Request::DeleteFirst(records) => (2, 0, records),
        Request::Trim { total, records } => (3, total, records),
    };
    out.push(tag);
    out.extend(total.to_le_bytes());
    out.extend(records.to_le_bytes());
}

fn encode_error(out: &mut Vec<u8>, error: &SourceError) {
    let path_of = |out: &mut Vec<u8>, tag, path: &PathBuf| {
        out.push(tag);
        text(out, path.as_os_str().as_bytes());
    };
    match error {
        SourceError::Busy { path, holders } => {
            path_of(out, 0, path);
            encode_holders(out, holders);
        }
        SourceError::NotPermitted { path, why } => {
            path_of(out, 1, path);
            out.push(index(&files::WHYS, why));
        }
        SourceError::NoDeleteMode { path, dialect, mode } => {
            path_of(out, 2, path);
            out.extend([index(&DIALECTS, dialect), index(&DELETE_MODES, mode)]);
        }
        SourceError::Missing { path } => path_of(out, 3, path),
        SourceError::Pending => out.push(4),
        SourceError::Nothing(request) => {
            out.push(5);
            encode_request(out, *request);
        }
        SourceError::GoingDown(request) => {
            out.push(6);
            encode_request(out, *request);
        }
        SourceError::Overtaken => out.push(7),
        SourceError::NoMemory => out.push(8),
        SourceError::Refused(request) => {
            out.push(9);
            encode_request(out, *request);
        }
        SourceError::Io { path, doing, error } => {
            path_of(out, 10, path);
            out.push(index(&files::DOINGS, doing));
            let errno = error.raw_os_error();
            option(out, errno.and_then(|errno| u64::try_from(errno).ok()));
            out.push(index(&KINDS, &error.kind()));
            let words = if errno.is_some() { String::new() } else { error.to_string() };
            text(out, words.as_bytes());
        }
        SourceError::Served { path, pid, state } => {
            path_of(out, 11, path);
            option(out, pid.map(u64::from));
            out.push(u8::from(state.is_some()));
            let state = state.as_deref().map(|state| state.as_os_str().as_bytes());
            text(out, state.unwrap_or_default());
        }
        SourceError::Lost { why } => {
            out.push(12);
            text(out, why.as_bytes());
        }
        SourceError::DeadMount { path } => path_of(out, 13, path),
        SourceError::LockLost { path } => path_of(out, 14, path),
    }
}

/// The rest of a message.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.take(1)?.first().copied().ok_or(Malformed)
    }

    fn boolean(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn short(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| Malformed)?))
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Malformed)?))
    }

    fn option(&mut self) -> Result<Option<u64>, Malformed> {
        let is_there = self.boolean()?;
        let number = self.number()?;
        Ok(is_there.then_some(number))
    }

    fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.short()?;
        self.take(length as usize)
    }

    fn string(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.text()?.to_vec()).map_err(|_| Malformed)
    }

    fn path(&mut self) -> Result<PathBuf, Malformed> {
        Ok(PathBuf::from(OsStr::from_bytes(self.text()?)))
    }

    fn holders(&mut self) -> Result<Holders, Malformed> {
        let (sight, pid) = (self.byte()?, self.short()?);
        let sight = match sight {
            0 => Sight::Complete,
            1 => Sight::NoProc,
            2 => Sight::Namespace,
            3 => Sight::NoPtrace,
            4 => Sight::Denied { pid },
            _ => return Err(Malformed),
        };
        let count = self.short()? as usize;
        if count > MOST_HOLDERS {
            return Err(Malformed);
        }
        let mut found = Vec::new();
        for _ in 0..count {
            let (pid, fd) = (self.short()?, self.short()?);
            found.push(Holder { pid, fd, name: self.string()?, path: self.path()? });
        }
        Ok(Holders { found, sight })
    }

    fn request(&mut self) -> Result<Request, Malformed> {
        let (tag, total, records) = (self.byte()?, self.number()?, self.number()?);
        Ok(match tag {
            0 => Request::Stage,
            1 => Request::DeleteStaged,
            2 => Request::DeleteFirst(records),
            3 => Request::Trim { total, records },
            _ => return Err(Malformed),
        })
    }

    fn error(&mut self) -> Result<SourceError, Malformed> {
        Ok(match self.byte()? {
            0 => SourceError::Busy { path: self.path()?, holders: self.holders()? },
            1 => SourceError::NotPermitted {
                path: self.path()?,
                why: of(&files::WHYS, self.byte()?).unwrap_or(UNNAMED),
            },
            2 => SourceError::NoDeleteMode {
                path: self.path()?,
                dialect: of(&DIALECTS, self.byte()?)?,
                mode: of(&DELETE_MODES, self.byte()?)?,
            },
            3 => SourceError::Missing { path: self.path()? },
            4 => SourceError::Pending,
            5 => SourceError::Nothing(self.request()?),
            6 => SourceError::GoingDown(self.request()?),
            7 => SourceError::Overtaken,
            8 => SourceError::NoMemory,
            9 => SourceError::Refused(self.request()?),
            10 => {
                let path = self.path()?;
                let doing = of(&files::DOINGS, self.byte()?).unwrap_or(UNNAMED);
                let errno = self.option()?.and_then(|errno| i32::try_from(errno).ok());
                let kind = of(&KINDS, self.byte()?).unwrap_or(io::ErrorKind::Other);
                let words = self.string()?;
                let error = match errno {
                    Some(errno) => io::Error::from_raw_os_error(errno),
                    None => io::Error::new(kind, words),
                };
                SourceError::Io { path, doing, error }
            }
            11 => {
                let path = self.path()?;
                let pid = self.option()?.and_then(|pid| u32::try_from(pid).ok());
                let (is_there, state) = (self.boolean()?, self.path()?);
                SourceError::Served { path, pid, state: is_there.then_some(state) }
            }
            12 => SourceError::Lost { why: self.string()? },
            13 => SourceError::DeadMount { path: self.path()? },
            14 => SourceError::LockLost { path: self.path()? },
            _ => return Err(Malformed),
        })
    }

    /// Returns `value` if the message ends here.
    fn end<T>(self, value: T) -> Result<T, Malformed> {
        if self.0.is_empty() { Ok(value) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests;
