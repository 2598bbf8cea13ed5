//! The fixed window, pure: `now` is an argument, and `fixed_window.lua` is its twin to the last bit.
//!
//! At most `amount` requests from one multiple of the period on the clock to the next. So in every window of a period's
//! length, wherever it begins, at most twice as many: all of one at its end, all of the next at its beginning.
//!
//! A clock that is set back takes the window along: what is left of it still has to pass.

use super::algorithm::{CLOCK_BACK_MAX_US, Level, Micros, NEVER_MS};
use super::window::{Mark, Window};

/// One identity's count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FixedWindow {
    /// When the window began.
    start: Micros,
    /// The latest time that was seen.
    stamp: Micros,
    /// Requests admitted in it.
    count: f64,
}

impl FixedWindow {
    /// Nothing counted yet.
    pub fn new(shape: &Window, now: Micros) -> Self {
        Self { start: shape.start(now), stamp: now, count: 0.0 }
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
            self.count = 0.0;
        }
        self
    }

    /// Whether the clock was set back.
    pub fn is_ahead(&self, now: Micros) -> bool {
        self.stamp - now > CLOCK_BACK_MAX_US
    }

    /// Whether there is room for so much. Only true to `now` after [`FixedWindow::at`], like all below.
    pub fn covers(&self, shape: &Window, cost: f64) -> bool {
        self.count + cost <= shape.amount
    }

    /// Counts so much, or what there is room for.
    pub fn charge(&mut self, shape: &Window, cost: f64) -> Mark {
        let paid = cost.min((shape.amount - self.count).max(0.0));
        self.count += paid;
        Mark { start: self.start, paid }
    }

    /// Counts so much whether there is room for it or not; what is beyond the amount ends with the window.
    pub fn owe(&mut self, cost: f64) {
        self.count += cost;
    }

    /// Takes a charge off the window that it was made in; another's is over.
    pub fn refund(&mut self, mark: &Mark) {
        if self.start == mark.start {
            self.count = (self.count - mark.paid).max(0.0);
        }
    }

    /// What it says of itself at `now`, to a request that costs so much.
    pub fn level(&self, shape: &Window, cost: f64, now: Micros) -> Level {
        let end_ms = ((self.start + shape.period - now) / 1000.0).ceil() as u64;
        let wait_ms = if cost > shape.amount {
            NEVER_MS
        } else if self.covers(shape, cost) {
            0
        } else {
            end_ms
        };
        Level {
            remaining: (shape.amount - self.count).max(0.0) as u64,
            wait_ms,
            full_ms: if self.count > 0.0 { end_ms } else { 0 },
        }
    }

    /// How much it has counted beyond the amount.
    pub fn owed(&self, shape: &Window) -> u64 {
        (self.count - shape.amount).max(0.0) as u64
    }

    /// When it ends.
    pub fn ends_at(&self, shape: &Window) -> Micros {
        self.start + shape.period
    }

    /// As Redis keeps it.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.start, self.stamp, self.count].iter().flat_map(|number| number.to_le_bytes()).collect()
    }
}
