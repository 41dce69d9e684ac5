//! What is counted for metrics alone.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use crate::{drain::round::Round, durations::Durations};

/// Counters that are not part of the status.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Counted>);

#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    pub(crate) drains: Durations,
    pub(crate) holds: Durations,
    pub(crate) failed: u64,
    /// When the list was last drained to its end.
    pub(crate) last: Option<SystemTime>,
}

impl Metrics {
    /// Takes what a drain did, and whether it failed. Gives how long the list's files were held by
    /// all drains: p50, p99 and the longest, in microseconds.
    pub(crate) fn drained(&self, round: &Round, has_failed: bool) -> [u64; 3] {
        let mut counted = self.counted();
        if round.stored > 0 {
            counted.drains.add(round.took);
        }
        round.holds.iter().for_each(|held| counted.holds.add(*held));
        if has_failed {
            counted.failed += 1;
        } else {
            counted.last = Some(SystemTime::now());
        }
        let holds = &counted.holds;
        [holds.percentile_us(50), holds.percentile_us(99), holds.longest_us()]
    }

    pub(crate) fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
