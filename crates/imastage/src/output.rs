//! What a command prints: text or JSON, colours and progress only where a person looks.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tracing::Level;

use crate::{
    exit::{Fail, Failure},
    journal::{self, Journal},
};

/// Where a command prints its answer.
pub struct Output {
    json: bool,
    colour: bool,
}

/// Colours for words.
#[derive(Clone, Copy)]
pub enum Tone {
    /// Good.
    Good,
    /// Bad.
    Bad,
    /// Less important.
    Dim,
    /// A heading.
    Strong,
}

impl Output {
    /// Colours are used on a terminal unless `NO_COLOR` is set (<https://no-color.org>).
    pub fn new(json: bool) -> Output {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Output { json, colour: !no_colour && !json && io::stdout().is_terminal() }
    }

    /// Whether the answer is to be JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the answer: `value` as JSON, or `text`.
    pub fn answer(&self, value: &impl Serialize, text: impl fmt::Display) -> Result<(), Failure> {
        let line = if self.json {
            serde_json::to_string(value).environment("JSON")?
        } else {
            text.to_string()
        };
        self.line(line)
    }

    /// Prints a line.
    pub fn line(&self, line: impl fmt::Display) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}").and_then(|()| stdout.flush()).environment("standard output")
    }

    /// Begins on an empty screen, if it is a terminal's and the answer is for people.
    pub fn clear(&self) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        if self.json || !stdout.is_terminal() {
            return Ok(());
        }
        stdout.write_all(b"\x1b[H\x1b[2J").environment("standard output")
    }

    /// A word in colour, on a terminal.
    pub fn paint(&self, tone: Tone, word: impl fmt::Display) -> String {
        if !self.colour {
            return word.to_string();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "1;31",
            Tone::Dim => "2",
            Tone::Strong => "1",
        };
        format!("\x1b[{code}m{word}\x1b[0m")
    }

    /// Prints an error.
    pub fn error(&self, error: &str) {
        let line = if self.json {
            serde_json::json!({ "error": error }).to_string()
        } else {
            let priority = if journal::is_there() { journal::priority(Level::ERROR) } else { "" };
            format!("{priority}imastage: {error}")
        };
        // If not even this can be printed, the exit code still tells.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// Sends the log to standard error; `RUST_LOG` chooses (default: warnings).
pub fn init_log() {
    use tracing_subscriber::{EnvFilter, fmt, prelude::*};
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let layer = fmt::layer().with_writer(io::stderr);
    let layer = if journal::is_there() {
        layer.event_format(Journal).with_ansi(false).boxed()
    } else {
        layer.with_target(false).with_ansi(!no_colour && io::stderr().is_terminal()).boxed()
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}

/// A progress bar that appears when something takes longer than a second, on a terminal.
pub struct Progress {
    bar: Option<ProgressBar>,
    total: Option<u64>,
    since: Instant,
    style: &'static str,
}

impl Progress {
    /// Counts bytes read, to `total` if that is known.
    pub fn bytes(total: Option<u64>) -> Progress {
        let style = match total {
            Some(_) => "[{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{bytes} {bytes_per_sec}",
        };
        Progress { bar: None, total, since: Instant::now(), style }
    }

    /// Counts files, however many there will be.
    pub fn files() -> Progress {
        Progress { bar: None, total: None, since: Instant::now(), style: "{pos} files {per_sec}" }
    }

    /// Says how far it is.
    pub fn at(&mut self, position: u64) {
        if self.bar.is_none() {
            if self.since.elapsed() < Duration::from_secs(1) {
                return;
            }
            // Hidden by itself where standard error is no terminal.
            let bar = match self.total {
                Some(total) => ProgressBar::new(total),
                None => ProgressBar::no_length(),
            };
            if let Ok(style) = ProgressStyle::with_template(self.style) {
                bar.set_style(style.progress_chars("=> "));
            }
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
