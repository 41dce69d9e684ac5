//! How long things took.

use std::time::Duration;

/// Counts durations, by their logarithm: any number of them in the same memory, each known to a
/// sixteenth of itself.
#[derive(Clone, Debug)]
pub struct Durations {
    counts: Vec<u64>,
    total: u64,
    sum: Duration,
    longest: u64,
}

/// Buckets for each doubling.
const STEPS: u64 = 16;

impl Default for Durations {
    /// None so far.
    fn default() -> Durations {
        let counts = vec![0; bucket(u64::MAX) + 1];
        Durations { counts, total: 0, sum: Duration::ZERO, longest: 0 }
    }
}

impl Durations {
    /// Counts one.
    pub fn add(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(us)] += 1;
        self.total += 1;
        self.sum = self.sum.saturating_add(took);
        self.longest = self.longest.max(us);
    }

    /// How many.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// All together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// How many were shorter than 2 to the power of `exponent` microseconds, which is at least
    /// [`STEPS`] and where a bucket ends.
    pub fn shorter_than_power_of_two_us(&self, exponent: u32) -> u64 {
        let end = bucket(1 << exponent);
        self.counts.iter().take(end).sum()
    }

    /// The longest, in microseconds; 0 if there was none.
    pub fn longest_us(&self) -> u64 {
        self.longest
    }

    /// What `percent` of 100 were not longer than, in microseconds; 0 if there was none.
    pub fn percentile_us(&self, percent: u64) -> u64 {
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut counted = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            counted += count;
            if counted >= rank {
                return end(bucket).min(self.longest);
            }
        }
        0
    }
}

/// The bucket of a duration: exact below [`STEPS`].
fn bucket(us: u64) -> usize {
    if us < STEPS {
        return us as usize;
    }
    let doublings = u64::from(us.ilog2() - STEPS.ilog2());
    ((doublings + 1) * STEPS + (us >> doublings) - STEPS) as usize
}

/// The longest duration in a bucket.
fn end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    match (bucket / STEPS).checked_sub(1) {
        None => bucket,
        Some(doublings) => {
            let end = (u128::from(STEPS + bucket % STEPS) + 1) << doublings;
            u64::try_from(end - 1).unwrap_or(u64::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn percentiles_are_right_to_a_sixteenth(
            mut all in proptest::collection::vec(0u64..10_000_000, 1..200),
            percent in 1u64..=100,
        ) {
            let mut durations = Durations::default();
            all.iter().for_each(|us| durations.add(Duration::from_micros(*us)));
            all.sort_unstable();
            let right = all[(all.len() as u64 * percent).div_ceil(100) as usize - 1];
            let told = durations.percentile_us(percent);
            prop_assert!(told >= right && told <= right + right / 16, "{} for {}", told, right);
            prop_assert_eq!(durations.longest_us(), *all.last().unwrap());
            for exponent in 4..25 {
                let right = all.iter().filter(|us| **us < 1 << exponent).count() as u64;
                prop_assert_eq!(durations.shorter_than_power_of_two_us(exponent), right);
            }
        }
    }

    #[test]
    fn none_and_the_longest_there_can_be() {
        let mut durations = Durations::default();
        assert_eq!(durations.percentile_us(99), 0);
        durations.add(Duration::MAX);
        assert_eq!(durations.percentile_us(50), u64::MAX);
    }
}
