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
    let mut count = 0;
    while count < files.count && !stop.load(Ordering::Relaxed) {
        let number = files.first + count;
        content[..8].copy_from_slice(&number.to_le_bytes());
        let path = dir.join(number.to_string());
        fs::write(&path, &content)?;
        read.clear();
        File::open(&path)?.read_to_end(&mut read)?;
        fs::remove_file(&path)?;
        count += 1;
    }
    let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(Answer::Measured { count, micros })
}
