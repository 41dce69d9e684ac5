//! Creates and reads files, so that the kernel measures them.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use crate::wire::{Answer, Files};

/// A thread that creates and reads files.
pub struct Measuring {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Answer>>,
}

impl Measuring {
    /// Creates and reads all files.
    pub fn now(files: &Files) -> io::Result<Answer> {
        measure(files, &AtomicBool::new(false))
    }

    /// Starts the thread.
    pub fn start(files: Files) -> Measuring {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        Measuring { stop, thread: thread::spawn(move || measure(&files, &seen)) }
    }

    /// Stops the thread; returns the number of files and the time.
    pub fn stop(self) -> io::Result<Answer> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the measuring thread panicked")))
    }
}

fn measure(files: &Files, stop: &AtomicBool) -> io::Result<Answer> {
    fs::create_dir_all(&files.dir)?;
    let dir = Path::new(&files.dir);
    let mut content = vec![b'.'; files.size.max(8)];
    let mut read = Vec::with_capacity(content.len());
    let since = Instant::now();
    let mut opens = Vec::new();
    while (opens.len() as u64) < files.count && !stop.load(Ordering::Relaxed) {
        let number = files.first + opens.len() as u64;
        content[..8].copy_from_slice(&number.to_le_bytes());
        let path = dir.join(number.to_string());
        fs::write(&path, &content)?;
        read.clear();
        let opening = Instant::now();
        let mut file = File::open(&path)?;
        opens.push(nanos(opening));
        file.read_to_end(&mut read)?;
        fs::remove_file(&path)?;
    }
    let count = opens.len() as u64;
    let micros = nanos(since) / 1000;
    opens.sort_unstable();
    let permille = |part: usize| opens.get(opens.len() * part / 1000).copied().unwrap_or_default();
    let open_nanos = [permille(500), permille(990), permille(999)];
    Ok(Answer::Measured { count, micros, open_nanos })
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
