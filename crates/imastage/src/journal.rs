//! The log as journald wants it: it knows the time itself, and takes the priority from the line's
//! beginning (sd-daemon(3)).

use std::{fmt, io};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Whether standard error leads to the journal. `JOURNAL_STREAM` alone does not tell: whoever
/// redirects a service's output leaves it set (systemd.exec(5)).
pub fn is_there() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    stream.to_str() == Some(&format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// What stands before a line of this level.
pub fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// Formats events for the journal.
pub struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let plain = tracing_subscriber::fmt::format()
            .with_target(false)
            .with_level(false)
            .with_ansi(false)
            .without_time();
        let mut text = String::new();
        plain.format_event(context, Writer::new(&mut text), event)?;
        // Every line is an entry of its own there.
        for line in text.trim().lines() {
            writeln!(writer, "{}{line}", priority(*event.metadata().level()))?;
        }
        Ok(())
    }
}
