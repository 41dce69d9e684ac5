//! Requests to a guest, one method each.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

use crate::{
    error::LabError,
    machine::{Machine, Ran},
    wire::{Answer, Ask, Files, Program},
};

/// A consistent copy of all files of the list, the counters and the PCR values (`pcrs`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(pub BTreeMap<String, Vec<u8>>);

/// The number of measured files, and times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The number of files.
    pub count: u64,
    /// The time needed.
    pub took: Duration,
    /// The time to open a file for reading, which measures it: p50, p99, p99.9.
    pub open: [Duration; 3],
}

impl Snapshot {
    /// The content of a file; empty if the file does not exist.
    pub fn file(&self, name: &str) -> &[u8] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// The list in its binary sha1 form, which all kernels have.
    pub fn list(&self) -> &[u8] {
        self.file("binary_runtime_measurements")
    }

    /// The staged list in its binary sha1 form; empty if nothing is staged.
    pub fn staged(&self) -> &[u8] {
        self.file("binary_runtime_measurements_staged")
    }

    /// The list in its ASCII sha1 form; bytes that are not UTF-8 are replaced.
    pub fn ascii(&self) -> String {
        String::from_utf8_lossy(self.file("ascii_runtime_measurements")).into_owned()
    }

    /// The PCR values as `BANK INDEX HEX` lines; empty without a TPM.
    pub fn pcrs(&self) -> String {
        String::from_utf8_lossy(self.file("pcrs")).into_owned()
    }
}

impl Machine {
    /// Reads a file to its end.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, LabError> {
        self.read_in_steps(path, 1 << 16).map(|(bytes, _)| bytes)
    }

    /// Reads a file to its end with reads of `step` bytes; returns the content and the time.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn read_in_steps(
        &mut self,
        path: &str,
        step: usize,
    ) -> Result<(Vec<u8>, Duration), LabError> {
        let ask = Ask::Read { path: path.as_bytes().to_vec(), step };
        match self.ask(&ask, &[])? {
            (Answer::Bytes { micros }, bytes) => Ok((bytes, Duration::from_micros(micros))),
            (other, _) => Err(unexpected(&ask, &other)),
        }
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn names(&mut self, dir: &str) -> Result<Vec<String>, LabError> {
        let ask = Ask::Names { dir: dir.to_owned() };
        match self.ask(&ask, &[])? {
            (Answer::Names(names), _) => Ok(names),
            (other, _) => Err(unexpected(&ask, &other)),
        }
    }

    /// Writes a file; creates its directory if needed.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn write(&mut self, path: &[u8], mode: u32, bytes: &[u8]) -> Result<(), LabError> {
        self.done(&Ask::Write { path: path.to_vec(), mode }, bytes)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// [`LabError`]; a nonzero exit code is not an error.
    pub fn run(&mut self, path: &str, args: &[&str]) -> Result<Ran, LabError> {
        let ask = Ask::Run(program(path, args));
        self.ran(&ask)
    }

    /// Runs a program to its end; a nonzero exit code is an error.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn must_run(&mut self, path: &str, args: &[&str]) -> Result<Vec<u8>, LabError> {
        let ran = self.run(path, args)?;
        if ran.code == 0 {
            return Ok(ran.stdout);
        }
        let asked = format!("run {path} {}", args.join(" "));
        let said = String::from_utf8_lossy(&ran.stdout);
        Err(LabError::Guest { asked, said: format!("code {}: {said}{}", ran.code, ran.stderr) })
    }

    /// Runs `imastage --json`; returns its exit code and output.
    ///
    /// # Errors
    /// [`LabError`], also if the output is not JSON.
    pub fn imastage(&mut self, args: &[&str]) -> Result<(i32, Value), LabError> {
        let mut all = vec!["--json"];
        all.extend(args);
        let ran = self.run("/bin/imastage", &all)?;
        let json = serde_json::from_slice(&ran.stdout).map_err(|error| LabError::Guest {
            asked: format!("run imastage {}", args.join(" ")),
            said: format!("code {}, {error}: {}", ran.code, ran.stderr),
        })?;
        Ok((ran.code, json))
    }

    /// Starts a program.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn start(&mut self, path: &str, args: &[&str]) -> Result<u32, LabError> {
        let ask = Ask::Start(program(path, args));
        match self.ask(&ask, &[])? {
            (Answer::Started { pid }, _) => Ok(pid),
            (other, _) => Err(unexpected(&ask, &other)),
        }
    }

    /// Sends a signal to a started program.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn signal(&mut self, pid: u32, signal: i32) -> Result<(), LabError> {
        self.done(&Ask::Signal { pid, signal }, &[])
    }

    /// Waits for the end of a started program.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn wait(&mut self, pid: u32) -> Result<Ran, LabError> {
        self.ran(&Ask::Wait { pid })
    }

    /// Creates and reads files, so that they are measured.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn measure(&mut self, files: Files) -> Result<Measured, LabError> {
        self.measured(&Ask::Measure(files))
    }

    /// [`Machine::measure`] in the background, until [`Machine::stop_measuring`].
    ///
    /// # Errors
    /// [`LabError`].
    pub fn keep_measuring(&mut self, files: Files) -> Result<(), LabError> {
        self.done(&Ask::KeepMeasuring(files), &[])
    }

    /// Stops [`Machine::keep_measuring`].
    ///
    /// # Errors
    /// [`LabError`].
    pub fn stop_measuring(&mut self) -> Result<Measured, LabError> {
        self.measured(&Ask::StopMeasuring)
    }

    /// A consistent copy of all files of the list and the PCRs.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn snapshot(&mut self) -> Result<Snapshot, LabError> {
        let ask = Ask::Snapshot;
        let (answer, bytes) = self.ask(&ask, &[])?;
        let Answer::Files(names) = answer else { return Err(unexpected(&ask, &answer)) };
        let mut files = BTreeMap::new();
        let mut rest = &bytes[..];
        for (name, size) in names {
            let Some((content, after)) = rest.split_at_checked(size) else {
                let said = format!("{name}: expected {size} bytes, found {}", rest.len());
                return Err(LabError::Guest { asked: "snapshot".to_owned(), said });
            };
            files.insert(name, content.to_vec());
            rest = after;
        }
        Ok(Snapshot(files))
    }

    /// Makes a request whose answer is [`Answer::Done`].
    ///
    /// # Errors
    /// [`LabError`].
    pub fn done(&mut self, ask: &Ask, bytes: &[u8]) -> Result<(), LabError> {
        match self.ask(ask, bytes)? {
            (Answer::Done, _) => Ok(()),
            (other, _) => Err(unexpected(ask, &other)),
        }
    }

    fn measured(&mut self, ask: &Ask) -> Result<Measured, LabError> {
        match self.ask(ask, &[])? {
            (Answer::Measured { count, micros, open_nanos }, _) => Ok(Measured {
                count,
                took: Duration::from_micros(micros),
                open: open_nanos.map(Duration::from_nanos),
            }),
            (other, _) => Err(unexpected(ask, &other)),
        }
    }

    fn ran(&mut self, ask: &Ask) -> Result<Ran, LabError> {
        match self.ask(ask, &[])? {
            (Answer::Ran { code, stdout }, mut bytes) => {
                let stderr = bytes.split_off(stdout.min(bytes.len()));
                let stderr = String::from_utf8_lossy(&stderr).into_owned();
                Ok(Ran { code, stdout: bytes, stderr })
            }
            (other, _) => Err(unexpected(ask, &other)),
        }
    }
}

fn program(path: &str, args: &[&str]) -> Program {
    Program { path: path.to_owned(), args: args.iter().map(ToString::to_string).collect() }
}

fn unexpected(ask: &Ask, answer: &Answer) -> LabError {
    LabError::Guest { asked: format!("{ask:?}"), said: format!("{answer:?}") }
}
