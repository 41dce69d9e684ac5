//! Text forms that several programs share.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

/// A time in the form of RFC 3339, `2026-11-25T17:23:54Z`, from `seconds` since 1970. Times after
/// the year 9999 are shown in seconds.
pub fn utc(seconds: u64) -> String {
    const YEAR_10000: u64 = 253_402_300_800;
    if seconds >= YEAR_10000 {
        return format!("{seconds} s after 1970-01-01T00:00:00Z");
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// An enumeration without duplicates, sorted: `10`, `10 and 11`, `10, 11 and 12`.
pub fn names<T: ToString>(things: impl IntoIterator<Item = T>) -> String {
    let names: BTreeSet<String> = things.into_iter().map(|thing| thing.to_string()).collect();
    let names: Vec<String> = names.into_iter().collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_form() {
        assert_eq!(utc(1_795_627_434), "2026-11-25T17:23:54Z");
        assert_eq!(utc(253_402_300_799), "9999-12-31T23:59:59Z");
        assert_eq!(utc(u64::MAX), "18446744073709551615 s after 1970-01-01T00:00:00Z");
    }

    #[test]
    fn enumerations_end_with_and() {
        assert_eq!(names([0; 0]), "none");
        assert_eq!(names([10]), "10");
        assert_eq!(names([11, 10, 11]), "10 and 11");
        assert_eq!(names(["c", "b", "a"]), "a, b and c");
    }
}
