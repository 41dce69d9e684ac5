//! The options that say which closed epochs are kept.

use std::time::Duration;

use imastage_store::Retention;

/// Which closed epochs are kept. The one that is written to always is.
#[derive(clap::Args, Clone, Debug)]
pub struct RetentionArgs {
    /// Keep at most N closed epochs; the oldest are removed first.
    #[arg(long, value_name = "N")]
    keep_epochs: Option<u64>,
    /// Keep at most SIZE bytes in all epochs, with a suffix K, M or G.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_bytes: Option<u64>,
    /// Keep epochs that were closed within AGE, as 36h, 90d or 2w.
    #[arg(long, value_name = "AGE", value_parser = age)]
    max_age: Option<Duration>,
}

impl From<RetentionArgs> for Retention {
    fn from(args: RetentionArgs) -> Retention {
        Retention { epochs: args.keep_epochs, bytes: args.max_bytes, age: args.max_age }
    }
}

/// Bytes, with a unit or without.
fn size(text: &str) -> Result<u64, String> {
    let shift = match text.chars().last() {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        _ => 0,
    };
    let number = text.trim_end_matches(['K', 'M', 'G']);
    let number: Option<u64> = number.parse().ok().filter(|_| text.len() <= number.len() + 1);
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "expected bytes, as 500M (K, M or G may follow)".to_owned())
}

fn age(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; expected a number and a unit, as 36h, 90d or 2w"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_have_units() {
        assert_eq!((size("7"), size("3K"), size("2G")), (Ok(7), Ok(3 << 10), Ok(2 << 30)));
        for wrong in ["", "K", "1KK", "-1", "1T", "99999999999999999G", "1,5M"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(age("36h"), Ok(Duration::from_secs(36 * 3_600)));
        assert_eq!(age("2w"), Ok(Duration::from_secs(14 * 86_400)));
        for wrong in ["", "d", "7", "7dd", "-1d", "99999999999999999w", "é"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
