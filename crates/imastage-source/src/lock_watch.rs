//! Decides whether the kernel has lost the list's lock.

use std::time::{Duration, Instant};

/// The number of unexplained refusals after which the lock may be lost.
const REFUSALS: u32 = 12;

/// The time over which these refusals are spread: a process that opens and closes the list often is
/// found, or permits an open, within it.
const PERIOD: Duration = Duration::from_secs(3);

/// The refused opens for writing since the last one that succeeded.
///
/// A refusal is unexplained if no visible process has a file of the list open, and an open for
/// reading succeeds: unless a process is hidden, the kernel then counts a reader that does not
/// exist. On Linux 7.2 its accounting of writers can end in that state, until reboot.
#[derive(Debug, Default)]
pub(crate) struct LockWatch {
    /// The first unexplained refusal without an explained one since.
    since: Option<Instant>,
    refusals: u32,
    is_lost: bool,
    /// Whether searches cover threads and renamed files.
    is_thorough: bool,
}

impl LockWatch {
    /// Notes an open for writing that succeeded.
    pub(crate) fn granted(&mut self) {
        *self = LockWatch::default();
    }

    /// Notes a refused open for writing. Returns whether the refusals suffice for
    /// [`LockWatch::lose`].
    pub(crate) fn refused(&mut self, is_unexplained: bool, now: Instant) -> bool {
        if !is_unexplained {
            (self.since, self.refusals) = (None, 0);
            return false;
        }
        self.refusals = self.refusals.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        self.refusals >= REFUSALS && now.saturating_duration_since(since) >= PERIOD
    }

    /// Notes that the lock is lost. Only an open for writing that succeeds refutes that.
    pub(crate) fn lose(&mut self) {
        self.is_lost = true;
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Makes later searches thorough.
    pub(crate) fn search_thoroughly(&mut self) {
        self.is_thorough = true;
    }

    pub(crate) fn is_thorough(&self) -> bool {
        self.is_thorough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(500);

    /// The refusal, counted from 1, that suffices, if `is_unexplained` holds for each number.
    fn suffices_at(step: Duration, is_unexplained: impl Fn(u32) -> bool) -> Option<u32> {
        let (mut watch, begin) = (LockWatch::default(), Instant::now());
        (1..100).find(|n| watch.refused(is_unexplained(*n), begin + step * *n))
    }

    #[test]
    fn many_unexplained_refusals_over_some_time_are_needed() {
        assert_eq!(suffices_at(STEP, |_| true), Some(REFUSALS));
        // A burst of refusals says little.
        assert_eq!(suffices_at(Duration::from_millis(1), |_| true), None);
        assert_eq!(suffices_at(PERIOD * 2, |_| true), Some(REFUSALS));
    }

    #[test]
    fn explained_refusal_starts_the_count_again() {
        assert_eq!(suffices_at(STEP, |n| n != 5), Some(5 + REFUSALS));
        assert_eq!(suffices_at(STEP, |n| n % 10 > 0), None);
        assert_eq!(suffices_at(STEP, |_| false), None);
    }

    #[test]
    fn open_that_succeeds_refutes_a_lost_lock() {
        let mut watch = LockWatch::default();
        watch.lose();
        watch.refused(false, Instant::now());
        assert!(watch.is_lost());
        watch.granted();
        assert!(!watch.is_lost());
    }
}
