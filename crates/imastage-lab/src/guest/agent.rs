//! Another agent on the list, which stages or deletes until SIGTERM.

use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What an agent does, as on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Agent {
    /// Stages batches and reads them; leaves the deletion to others.
    Stage,
    /// Stages batches, reads and deletes them (A, D).
    StageAndDelete,
    /// Deletes the first 100 records of the list, without reading them.
    DeleteN,
}

/// What an agent has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The number of batches staged or deleted.
    pub batches: u64,
    /// The time that a file of the list was open for each, in microseconds.
    pub held: Vec<u64>,
}

/// EEXIST and ENOENT of a request mean that a batch is staged already or that the list has too few
/// records; EBUSY of an open means that another process uses the list.
const EXPECTED: [ErrorKind; 3] =
    [ErrorKind::AlreadyExists, ErrorKind::NotFound, ErrorKind::ResourceBusy];

/// Works on the list below `dir` until SIGTERM, with a pause after each request.
///
/// # Errors
/// [`io::Error`] of a request that the interface does not document.
pub fn run(agent: Agent, dir: &Path, pause: Duration) -> io::Result<Done> {
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop))?;
    let mut done = Done::default();
    while !stop.load(Ordering::Relaxed) {
        let since = Instant::now();
        match batch(agent, dir) {
            Ok(true) => {
                done.batches += 1;
                done.held.push(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
            Ok(false) => {}
            Err(error) if EXPECTED.contains(&error.kind()) => {}
            Err(error) => return Err(error),
        }
        thread::sleep(pause);
    }
    Ok(done)
}

/// Stages or deletes once; returns whether a batch was staged or deleted here. This process starts
/// no program: on Linux 7.2, a descriptor that is inherited while it is open for writing can lock
/// the list until reboot.
fn batch(agent: Agent, dir: &Path) -> io::Result<bool> {
    let name = match agent {
        Agent::Stage | Agent::StageAndDelete => "binary_runtime_measurements_staged",
        Agent::DeleteN => "binary_runtime_measurements",
    };
    let mut file = File::options().read(true).write(true).open(dir.join(name))?;
    if agent == Agent::DeleteN {
        return file.write(b"100\n").map(|_| true);
    }
    let staged = match file.write(b"A\n") {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    io::copy(&mut file, &mut io::sink())?;
    if agent == Agent::StageAndDelete {
        file.write_all(b"D\n")?;
    }
    Ok(staged)
}
