//! Execution of the commands from the control socket.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use ima_log::{Decoder, Format, RecordBuf};
use imastage_tpm::PcrSelection;
use walkdir::WalkDir;

use crate::{
    Ima, Machine, Outcome,
    wire::{Answer, Command, Measured, Status},
};

/// Reports progress; an error means that the client has disconnected.
pub(crate) type Progress<'a> = dyn FnMut(&Measured) -> io::Result<()> + 'a;

/// Executes a command and returns its answer. `content` is the data after the command's line.
///
/// # Errors
/// [`io::Error`] with a message for the client.
pub(crate) fn execute(
    machine: &Machine,
    command: Command,
    content: &mut dyn Read,
    progress: &mut Progress<'_>,
) -> io::Result<Answer> {
    let ima = machine.ima();
    let mut measured = Measured::default();
    match command {
        Command::Measure { paths } => {
            measure(&|path| ima.measure_path(path), &paths, &mut measured, progress)?;
        }
        Command::MeasureInto { pcr, paths } => {
            if pcr >= PcrSelection::PCRS {
                return Err(io::Error::other(format!("PCR {pcr} does not exist; use PCR 0 to 23")));
            }
            let into = |path: &Path| ima.measure_path_into(pcr, path);
            measure(&into, &paths, &mut measured, progress)?;
        }
        Command::Violation { paths } => {
            for path in paths {
                measured.count(ima.violate(&path))?;
            }
        }
        Command::CriticalData { name, data } => {
            let data = hex::decode(data).map_err(|error| io::Error::other(error.to_string()))?;
            measured.count(ima.measure_data(name.as_bytes(), &data)?)?;
        }
        Command::Replay { path, rate } => {
            replay(ima, content, rate, &mut measured, progress)
                .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
        }
        Command::Suspend { dump } => {
            machine.suspend(dump);
            return Ok(Answer::Status(status(ima)));
        }
        Command::Kexec(kexec) => {
            return machine.kexec(kexec).map(Answer::Kexec).map_err(io::Error::other);
        }
        Command::Reboot => {
            machine.reboot().map_err(io::Error::other)?;
            return Ok(Answer::Status(status(ima)));
        }
        Command::Status => return Ok(Answer::Status(status(ima))),
    }
    Ok(Answer::Done(measured))
}

impl Measured {
    fn count(&mut self, outcome: Outcome) -> io::Result<()> {
        match outcome {
            Outcome::Added => self.added += 1,
            Outcome::Known => self.known += 1,
            Outcome::Refused => {
                let why = "the list is suspended and accepts no more records; reboot the sandbox";
                return Err(io::Error::other(why));
            }
        }
        Ok(())
    }

    fn unreadable(&mut self, why: String) {
        const EXAMPLES: usize = 5;
        self.unreadable += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(why);
        }
    }

    fn report(&self, progress: &mut Progress<'_>) -> io::Result<()> {
        const EVERY: u64 = 100;
        if (self.added + self.known).is_multiple_of(EVERY) { progress(self) } else { Ok(()) }
    }
}

fn measure(
    one: &dyn Fn(&Path) -> io::Result<Outcome>,
    paths: &[PathBuf],
    measured: &mut Measured,
    progress: &mut Progress<'_>,
) -> io::Result<()> {
    for path in paths {
        for entry in WalkDir::new(path).sort_by_file_name() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    measured.unreadable(error.to_string());
                    continue;
                }
            };
            if !entry.file_type().is_file() {
                continue;
            }
            match one(entry.path()) {
                Ok(outcome) => measured.count(outcome)?,
                Err(error) => {
                    measured.unreadable(format!("{}: {error}", entry.path().display()));
                }
            }
            measured.report(progress)?;
        }
    }
    Ok(())
}

/// Appends the records of a binary list, at most `rate` per second.
fn replay(
    ima: &Ima,
    list: &mut dyn Read,
    rate: Option<u64>,
    measured: &mut Measured,
    progress: &mut Progress<'_>,
) -> io::Result<()> {
    const CHUNK: u64 = 256 << 10;
    let mut chunk = Vec::new();
    list.take(CHUNK).read_to_end(&mut chunk)?;
    let format = Format::detect(&chunk).ok_or_else(|| {
        io::Error::other("not a binary measurement list; ASCII cannot be replayed")
    })?;
    let mut decoder = Decoder::new(format);
    let begin = Instant::now();
    while !chunk.is_empty() {
        decoder.feed(&chunk);
        while let Some(record) = decoder.next_record().map_err(io::Error::other)? {
            let record = RecordBuf::from_record(&record)
                .ok_or_else(|| io::Error::other("the list is not in the sha1 form"))?;
            if let Some(rate) = rate.filter(|rate| *rate > 0) {
                let due = Duration::from_secs_f64(measured.added as f64 / rate as f64);
                thread::sleep(due.saturating_sub(begin.elapsed()));
            }
            measured.count(ima.add(&record))?;
            measured.report(progress)?;
        }
        chunk.clear();
        list.take(CHUNK).read_to_end(&mut chunk)?;
    }
    decoder.finish().map_err(io::Error::other)
}

fn status(ima: &Ima) -> Status {
    let list = ima.list();
    let counts = list.counts();
    Status {
        pid: std::process::id(),
        total: counts.total,
        current: counts.current,
        staged: counts.staged,
        trimmed: list.trimmed(),
        violations: counts.violations,
        freed_bytes: counts.freed_bytes,
        held_bytes: counts.held_bytes,
        failed_extends: ima.failed_extends(),
    }
}
