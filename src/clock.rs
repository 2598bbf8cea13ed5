//! Time, behind one type: the only place that reads a clock.
//!
//! Two clocks, in milliseconds. [`Clock::now`] is the fleet's wall clock: this host's, moved by what Redis last said, so
//! that ages mean the same on every pod. [`Clock::steady`] never steps and goes on while the machine is suspended; it
//! measures waits, silences and proofs.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the Unix epoch, on the fleet's clock.
pub type WallMs = u64;

/// Milliseconds on the steady clock, whose zero means nothing.
pub type SteadyMs = u64;

/// The process's clock; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// What Redis' clock is ahead of this host's.
    offset_ms: AtomicI64,
    /// A test's own time; 0 reads the system's.
    fixed_ms: AtomicU64,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands at `at` until [`Clock::advance`] moves it.
    pub fn fixed(at: WallMs) -> Self {
        let clock = Self::default();
        clock.0.fixed_ms.store(at, Ordering::Relaxed);
        clock
    }

    /// Moves a fixed clock.
    pub fn advance(&self, by: Duration) {
        self.0.fixed_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }

    /// The fleet's time.
    pub fn now(&self) -> WallMs {
        self.host().saturating_add_signed(self.0.offset_ms.load(Ordering::Relaxed))
    }

    /// Time that never steps, suspension included.
    pub fn steady(&self) -> SteadyMs {
        match self.0.fixed_ms.load(Ordering::Relaxed) {
            0 => millis(ClockId::Boottime),
            fixed => fixed,
        }
    }

    /// Takes `fleet` (what Redis said its time was) as the fleet's time of this moment.
    pub fn adopt(&self, fleet: WallMs) {
        let offset = fleet as i64 - self.host() as i64;
        self.0.offset_ms.store(offset, Ordering::Relaxed);
    }

    fn host(&self) -> WallMs {
        match self.0.fixed_ms.load(Ordering::Relaxed) {
            0 => millis(ClockId::Realtime),
            fixed => fixed,
        }
    }
}

fn millis(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    (time.tv_sec.max(0) as u64) * 1000 + (time.tv_nsec as u64) / 1_000_000
}

/// Measures how long something took.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
