//! A clock for times shorter than reading the system's clock takes.

use std::{
    hint::black_box,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// Ticks of the processor's counter where there is one that can be read, else nanoseconds. All
/// that is before it in the program is done when it is read.
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_mm_lfence, _rdtsc};
        // SAFETY: every processor of this architecture has both instructions; they touch no memory.
        unsafe {
            _mm_lfence();
            let ticks = _rdtsc();
            _mm_lfence();
            ticks
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// What was found out about the clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Nanoseconds a tick.
    pub tick: f64,
    /// What is measured of a lock under which nothing is done, in ticks.
    pub nothing: u64,
}

impl Clock {
    /// Found out once.
    pub fn get() -> Clock {
        static CLOCK: OnceLock<Clock> = OnceLock::new();
        *CLOCK.get_or_init(|| {
            let (start, first) = (Instant::now(), ticks());
            while start.elapsed() < Duration::from_millis(50) {}
            let tick = start.elapsed().as_nanos() as f64 / (ticks() - first) as f64;
            let lock = Mutex::new(());
            let mut empty: Vec<_> = (0..20_001)
                .map(|_| {
                    let guard = black_box(&lock).lock().unwrap_or_else(PoisonError::into_inner);
                    let start = ticks();
                    drop(guard);
                    ticks() - start
                })
                .collect();
            empty.sort_unstable();
            Clock { tick, nothing: empty[empty.len() / 2] }
        })
    }

    /// Some ticks in nanoseconds.
    pub fn nanoseconds(self, ticks: u64) -> f64 {
        ticks as f64 * self.tick
    }
}
