//! What a command prints: text or JSON, colours and progress only where a person looks.

use std::{
    fmt::{self, Write as _},
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, IsTerminal, Write},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use ima_log::Printable;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tracing::Level;

use crate::{
    exit::{Fail, Failure},
    journal::{self, Journal},
};

/// Where a command prints its answer.
///
/// What it prints holds text that others wrote: names from lists, notes from state directories, what
/// services say. Whoever puts such text into a line makes it [`Printable`]; all text is once more
/// when it is printed, so that a place that was forgotten cannot command a terminal either.
pub struct Output {
    json: bool,
    colour: bool,
    /// Begins a colour in text that is not printed yet. No text of others has it: it is drawn anew for
    /// each run.
    mark: String,
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
        let mark = format!("\x1b{:016x};", RandomState::new().build_hasher().finish());
        Output { json, colour: !no_colour && !json && io::stdout().is_terminal(), mark }
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

    /// Prints a line, or several.
    pub fn line(&self, line: impl fmt::Display) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let line = self.shown(&line.to_string());
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
        format!("{mark}{code}m{word}{mark}0m", mark = self.mark)
    }

    /// Text as it is printed: colours made real, everything else of it printable.
    fn shown(&self, text: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        for (at, piece) in text.split(&self.mark).enumerate() {
            let (code, plain) = match at {
                0 => (None, piece),
                _ => piece.split_once('m').map_or((None, piece), |(code, rest)| (Some(code), rest)),
            };
            let plain = Printable::new(plain).keep_line_breaks();
            let plain = if self.json { plain.in_json() } else { plain };
            let colour = code.map(|code| format!("\x1b[{code}m")).unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = write!(shown, "{colour}{plain}");
        }
        shown
    }

    /// Prints a remark for people, beside the answer.
    pub fn note(&self, note: &str) {
        // If not even this can be printed, the answer says it, too.
        let _ = writeln!(io::stderr(), "imastage: {}", Printable::new(note));
    }

    /// Prints an error.
    pub fn error(&self, error: &str) {
        let line = if self.json {
            self.shown(&serde_json::json!({ "error": error }).to_string())
        } else {
            let priority = if journal::is_there() { journal::priority(Level::ERROR) } else { "" };
            // One line, whatever it is about: another could pass for an answer.
            format!("{priority}imastage: {}", Printable::new(error))
        };
        // If not even this can be printed, the exit code still tells.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// The level that was chosen with `--log-level`.
static LOG_LEVEL: OnceLock<Level> = OnceLock::new();

/// Parses the name of a level.
pub fn log_level() -> impl TypedValueParser<Value = Level> {
    let levels = PossibleValuesParser::new(["error", "warn", "info", "debug", "trace"]);
    levels.try_map(|level| level.parse::<Level>())
}

/// Gives the level that was chosen to a process of ours that is about to be started.
pub fn pass_log_level(command: &mut Command) {
    if let Some(level) = LOG_LEVEL.get() {
        command.env("RUST_LOG", level.as_str());
    }
}

/// Sends the log to standard error. `level` decides what is logged; if it is absent, `RUST_LOG` does
/// (default: warnings).
pub fn init_log(level: Option<Level>) {
    use tracing_subscriber::{EnvFilter, field::MakeExt, fmt, fmt::format::debug_fn, prelude::*};
    let filter = match level {
        Some(level) => EnvFilter::new(LOG_LEVEL.get_or_init(|| level).as_str()),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")),
    };
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    // What a field says may come from anywhere, and a line break would begin an entry of the log.
    let fields = debug_fn(|writer, field, value| {
        let value = format!("{value:?}");
        let value = Printable::new(&value);
        match field.name() {
            "message" => write!(writer, "{value}"),
            name => write!(writer, "{name}={value}"),
        }
    });
    let layer = fmt::layer().with_writer(io::stderr).fmt_fields(fields.delimited(" "));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_09_only_our_own_colours_reach_a_terminal() {
        let mut out = Output::new(false);
        out.colour = true;
        let bad = out.paint(Tone::Bad, "a\x1b[2Kb\r");
        assert_eq!(out.shown(&bad), "\x1b[1;31ma\\x1b[2Kb\\r\x1b[0m");
        let spoofed = "\x1b[32mpass\x1b[0m\n\u{202e}";
        assert_eq!(out.shown(spoofed), "\\x1b[32mpass\\x1b[0m\n\\u{202e}");
        let of_another_run =
            Output { colour: true, ..Output::new(false) }.paint(Tone::Good, "pass");
        assert!(!out.shown(&of_another_run).contains('\x1b'));
        let json = Output::new(true);
        assert_eq!(json.shown("{\"a\":\"\u{9b}ä\"}"), "{\"a\":\"\\u009bä\"}");
    }
}
