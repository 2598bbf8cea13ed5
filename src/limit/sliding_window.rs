//! The sliding window of two counters, pure: `now` is an argument, and `sliding_window.lua` is its twin to the last bit.
//!
//! The window before counts by the share of it that a period back from now still covers: a request is admitted if
//! `current + cost + previous * (period - elapsed) / period <= amount`.
//!
//! In every window `w`: admitted <= amount * (1 + w / period), that is less than twice the amount in one period; what it
//! takes for granted is that the requests of the window before were spread over it. The proof, with `e` what has passed
//! of the last window that `w` touches, at its last admission, and `n` what was admitted in the one before: the last has
//! admitted at most `amount - n * (period - e) / period`, so that these two have admitted at most
//! `amount + n * e / period`; `n` is at most the amount, and so is what any earlier window has admitted; and `w` lasts at
//! least `e` and a period for each window that lies within it.
//!
//! Counts and times are whole, and their products exact below 2^53 (100,000 requests a day, far more of shorter periods).

use super::algorithm::{CLOCK_BACK_MAX_US, Level, Micros, NEVER_MS};
use super::window::{Mark, Window};

/// One identity's counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlidingWindow {
    /// When the current window began.
    start: Micros,
    /// The latest time that was seen.
    stamp: Micros,
    /// Requests admitted in it.
    current: f64,
    /// Requests admitted in the one before.
    previous: f64,
}

impl SlidingWindow {
    /// Nothing counted yet.
    pub fn new(shape: &Window, now: Micros) -> Self {
        Self { start: shape.start(now), stamp: now, current: 0.0, previous: 0.0 }
    }

    /// As it is at `now`.
    pub fn at(mut self, shape: &Window, now: Micros) -> Self {
        if now > self.stamp {
            self.stamp = now;
        } else if self.is_ahead(now) {
            self.start -= self.stamp - now;
            self.stamp = now;
        }
        let passed = ((self.stamp - self.start) / shape.period).floor();
        if passed >= 1.0 {
            self.start += passed * shape.period;
            self.previous = if passed == 1.0 { self.current } else { 0.0 };
            self.current = 0.0;
        }
        self
    }

    /// Whether the clock was set back.
    pub fn is_ahead(&self, now: Micros) -> bool {
        self.stamp - now > CLOCK_BACK_MAX_US
    }

    /// What there is room for, in requests times the period. Only true to `now` after [`SlidingWindow::at`], like all
    /// below.
    fn room(&self, shape: &Window) -> f64 {
        let left = shape.period - (self.stamp - self.start);
        (shape.amount - self.current) * shape.period - self.previous * left
    }

    /// Whether there is room for so much.
    pub fn covers(&self, shape: &Window, cost: f64) -> bool {
        cost * shape.period <= self.room(shape)
    }

    /// Counts so much, or what there is room for.
    pub fn charge(&mut self, shape: &Window, cost: f64) -> Mark {
        let room = (self.room(shape) / shape.period).floor().max(0.0);
        // What is covered is taken whole, however the quotient was rounded.
        let paid = if self.covers(shape, cost) { cost } else { cost.min(room) };
        self.current += paid;
        Mark { start: self.start, paid }
    }

    /// Takes a charge off the window that it was made in, while that counts.
    pub fn refund(&mut self, shape: &Window, mark: &Mark) {
        if self.start == mark.start {
            self.current = (self.current - mark.paid).max(0.0);
        } else if self.start - shape.period == mark.start {
            self.previous = (self.previous - mark.paid).max(0.0);
        }
    }

    /// What it says of itself at `now`, to a request that costs so much.
    pub fn level(&self, shape: &Window, cost: f64, now: Micros) -> Level {
        let wait_ms = if cost > shape.amount {
            NEVER_MS
        } else if self.covers(shape, cost) {
            0
        } else {
            ((self.covers_at(shape, cost) - now) / 1000.0).ceil() as u64
        };
        let until_full = if self.current > 0.0 || self.previous > 0.0 { self.idle_at(shape) - now } else { 0.0 };
        Level {
            remaining: (self.room(shape) / shape.period).floor().max(0.0) as u64,
            wait_ms,
            full_ms: (until_full / 1000.0).ceil() as u64,
        }
    }

    /// When there is room for so much if nobody else comes; at most the amount.
    fn covers_at(&self, shape: &Window, cost: f64) -> Micros {
        // In this window, while what it has counted itself leaves room; else in the next, where that counts by its share.
        if self.current + cost <= shape.amount {
            self.start + elapsed(shape, shape.amount - self.current - cost, self.previous)
        } else {
            self.start + shape.period + elapsed(shape, shape.amount - cost, self.current)
        }
    }

    /// When nothing counts any more.
    pub fn idle_at(&self, shape: &Window) -> Micros {
        let windows = if self.current > 0.0 { 2.0 } else { 1.0 };
        self.start + windows * shape.period
    }

    /// As Redis keeps it.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let numbers = [self.start, self.stamp, self.current, self.previous];
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }
}

/// How much of a window has to pass until what is left of `before` is at most `room`.
fn elapsed(shape: &Window, room: f64, before: f64) -> Micros {
    let mut left = (room * shape.period / before).floor().min(shape.period);
    // Rounding may have made it one too many.
    if before * left > room * shape.period {
        left -= 1.0;
    }
    shape.period - left
}
