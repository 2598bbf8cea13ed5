//! The breaker: while Redis is in trouble, requests do without it at no cost.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::{Clock, SteadyMs};

/// What one failure weighs; a success takes 1 off. More than one failure in five opens, sooner or later.
const FAILURE: u32 = 4;

/// Weight at which the breaker opens: three failures in a row.
const OPENS_AT: u32 = 3 * FAILURE;

/// The most that it comes to: what many failed at once is as soon made up for.
const MOST: u32 = 2 * OPENS_AT;

/// A failure that comes so long after the last one is the first of another trouble.
const QUIET: Duration = Duration::from_secs(10);

/// Trouble shorter than this is a hiccup: it fails many requests at once, and is over before a probe would know.
const HICCUP: Duration = Duration::from_millis(100);

/// Opens on lasting trouble, at once on a refused connection; only a probe closes it.
#[derive(Debug)]
pub struct Breaker {
    open: AtomicBool,
    weight: AtomicU32,
    /// When the present trouble began, and when something failed last.
    since: AtomicU64,
    last: AtomicU64,
    generation: AtomicU64,
    opened: Arc<Notify>,
    server: String,
    clock: Clock,
    cause: Mutex<String>,
}

impl Breaker {
    /// A closed one before `server`, which tells `opened` whenever it opens.
    pub fn new(server: String, opened: Arc<Notify>, clock: Clock) -> Self {
        Self {
            open: AtomicBool::new(false),
            weight: AtomicU32::new(0),
            since: AtomicU64::new(0),
            last: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            opened,
            server,
            clock,
            cause: Mutex::default(),
        }
    }

    /// Whether requests must do without the server.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Moves each time the breaker opens. Connections older than this are not trusted to have survived what opened it.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Why it opened last.
    pub fn cause(&self) -> String {
        self.cause.lock().expect("no panic while held").clone()
    }

    /// An answer came, in time.
    pub fn succeeded(&self) {
        if self.weight.load(Ordering::Relaxed) > 0 {
            let less = |weight: u32| weight.checked_sub(1);
            let _ = self.weight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    /// No answer came, or not in time, or one that says that Redis as a whole is of no use now.
    pub fn failed(&self, cause: &str) {
        let now = self.clock.steady();
        if now.saturating_sub(self.last.swap(now, Ordering::Relaxed)) >= QUIET.as_millis() as SteadyMs {
            self.weight.store(0, Ordering::Relaxed);
        }
        let more = |weight: u32| Some((weight + FAILURE).min(MOST));
        let before = self.weight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).unwrap_or_default();
        if before == 0 {
            self.since.store(now, Ordering::Relaxed);
        }
        if before + FAILURE >= OPENS_AT && self.lasted(now) {
            self.trip(cause);
        }
    }

    /// Nothing listens there: no further request need find that out.
    pub fn refused(&self, cause: &str) {
        self.trip(cause);
    }

    /// A probe was answered as fast as requests need it.
    pub fn close(&self) {
        self.weight.store(0, Ordering::Relaxed);
        if self.open.swap(false, Ordering::AcqRel) {
            tracing::info!(server = self.server, "Redis answers again: the breaker is closed");
        }
    }

    fn lasted(&self, now: SteadyMs) -> bool {
        now.saturating_sub(self.since.load(Ordering::Relaxed)) >= HICCUP.as_millis() as u64
    }

    fn trip(&self, cause: &str) {
        if self.open.swap(true, Ordering::AcqRel) {
            return;
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
        cause.clone_into(&mut self.cause.lock().expect("no panic while held"));
        self.opened.notify_one();
        tracing::warn!(cause, server = self.server, "Redis is in trouble: the breaker is open, requests do without it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> (Breaker, Clock) {
        let clock = Clock::fixed(1_000_000);
        (Breaker::new("redis:6379".to_owned(), Arc::default(), clock.clone()), clock)
    }

    #[test]
    fn a_hiccup_leaves_it_closed_and_lasting_trouble_opens_it() {
        let (breaker, clock) = breaker();
        for _ in 0..50 {
            breaker.failed("slow");
        }
        assert!(!breaker.is_open(), "all at once");
        clock.advance(HICCUP);
        breaker.failed("slow");
        assert!(breaker.is_open());
        assert_eq!((breaker.generation(), breaker.cause().as_str()), (1, "slow"));
        breaker.close();
        assert!(!breaker.is_open());
    }

    #[test]
    fn every_second_failing_opens_it_and_one_in_ten_does_not() {
        let (breaker, clock) = breaker();
        for round in 0..200 {
            clock.advance(Duration::from_millis(10));
            if round % 10 == 0 { breaker.failed("slow") } else { breaker.succeeded() }
        }
        assert!(!breaker.is_open());
        for _ in 0..20 {
            clock.advance(Duration::from_millis(10));
            breaker.failed("slow");
            breaker.succeeded();
        }
        assert!(breaker.is_open());
    }

    #[test]
    fn what_failed_long_ago_counts_no_more_and_what_failed_at_once_not_for_long() {
        let (breaker, clock) = breaker();
        for _ in 0..5 {
            for _ in 0..50 {
                breaker.failed("slow");
            }
            clock.advance(QUIET);
        }
        assert!(!breaker.is_open(), "apart");
        breaker.failed("slow");
        for _ in 0..MOST {
            breaker.succeeded();
        }
        for _ in 0..50 {
            breaker.failed("slow");
        }
        for _ in 0..MOST - FAILURE {
            breaker.succeeded();
        }
        clock.advance(HICCUP);
        breaker.failed("slow");
        assert!(!breaker.is_open(), "made up for");
    }

    #[test]
    fn a_refused_connection_opens_it_at_once() {
        let (breaker, _) = breaker();
        breaker.refused("connection refused");
        assert!(breaker.is_open());
    }
}
