//! A clock for intervals shorter than one read of the system clock.

use std::{
    hint::black_box,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// Ticks of the time-stamp counter on x86-64, nanoseconds elsewhere. On x86-64 all preceding
/// instructions complete before the read.
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_mm_lfence, _rdtsc};
        // SAFETY: every x86-64 processor has both instructions; they access no memory.
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

/// Calibration of the clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Nanoseconds per tick.
    pub tick: f64,
    /// The measured hold time of an empty critical section, in ticks.
    pub nothing: u64,
}

impl Clock {
    /// The calibration, measured once per process.
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

    /// Converts ticks to nanoseconds.
    pub fn nanoseconds(self, ticks: u64) -> f64 {
        ticks as f64 * self.tick
    }
}
