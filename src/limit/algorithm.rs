//! The algorithms by which limits count, behind one set of operations.
//!
//! Each is a pair: a pure file, whose state stands here as a variant, and a Lua file that does the same to the last bit
//! on what Redis keeps. Nothing else knows which there are: tables in memory hold a [`State`], the scripts find theirs
//! by [`Shape::code`].

use super::bucket::{self, Bucket};
use super::concurrency::{Held, Slots};
use super::fixed_window::FixedWindow;
use super::sliding_log::SlidingLog;
use super::sliding_window::SlidingWindow;
use super::window::{self, Window};
use crate::config::Quota;

/// Microseconds on the clock that a state lives by: Redis' own, or the steady clock in memory.
pub type Micros = f64;

/// A clock that goes back by at most this is waited for (concurrent readers, a slewed clock); by more, it has been
/// set, and a state starts again from it without gaining anything.
pub const CLOCK_BACK_MAX_US: Micros = 1_000_000.0;

/// Largest time that is reported: what an `f64` counts exactly.
pub const FAR_US: Micros = 9_007_199_254_740_992.0;

/// The wait of a request that costs more than there ever is.
pub const NEVER_MS: u64 = 9_007_199_254_740;

/// Numbers that say to a script what a shape is, behind its code.
pub const PARAMETERS: usize = 3;

/// What a limit makes of its states: the algorithm and its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// `bucket.rs`.
    TokenBucket(bucket::Shape),
    /// `fixed_window.rs`.
    FixedWindow(Window),
    /// `sliding_window.rs`.
    SlidingWindow(Window),
    /// `sliding_log.rs`.
    SlidingLog(Window),
    /// `concurrency.rs`.
    Concurrency(Slots),
}

/// What is kept of one identity. Small: what is not is behind a pointer.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// `bucket.rs`.
    TokenBucket(Bucket),
    /// `fixed_window.rs`.
    FixedWindow(FixedWindow),
    /// `sliding_window.rs`.
    SlidingWindow(SlidingWindow),
    /// `sliding_log.rs`.
    SlidingLog(Box<SlidingLog>),
    /// `concurrency.rs`.
    Concurrency(Held),
}

/// What must be known of a charge to give it back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mark {
    /// Of a token bucket.
    Tokens(bucket::Mark),
    /// Of a window that counts.
    Window(window::Mark),
    /// Of what is kept by the request's id.
    Request {
        /// Which.
        id: u64,
        /// How much of it there is.
        paid: f64,
    },
}

/// What a state says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Level {
    /// Whole requests left.
    pub remaining: u64,
    /// Milliseconds until one request of the same cost is there, rounded up; 0 if one is, [`NEVER_MS`] if none will be.
    pub wait_ms: u64,
    /// Milliseconds until all of it is there, rounded up.
    pub full_ms: u64,
}

impl Shape {
    /// That of a limit's rate, or of its requests in flight.
    pub fn new(quota: &Quota) -> Self {
        match *quota {
            Quota::TokenBucket { rate, burst } => Self::TokenBucket(bucket::Shape::new(rate, burst)),
            Quota::FixedWindow(rate) => Self::FixedWindow(Window::new(rate)),
            Quota::SlidingWindow(rate) => Self::SlidingWindow(Window::new(rate)),
            Quota::SlidingLog(rate) => Self::SlidingLog(Window::new(rate)),
            Quota::Concurrency { max } => Self::Concurrency(Slots::new(max)),
        }
    }

    /// The algorithm's number in the scripts.
    pub fn code(&self) -> u32 {
        match self {
            Self::TokenBucket(_) => 1,
            Self::FixedWindow(_) => 2,
            Self::SlidingWindow(_) => 3,
            Self::SlidingLog(_) => 4,
            Self::Concurrency(_) => 5,
        }
    }

    /// The algorithm's parameters, as the scripts take them.
    pub fn parameters(&self) -> [f64; PARAMETERS] {
        match self {
            Self::TokenBucket(shape) => [shape.accrual, shape.price, shape.capacity],
            Self::FixedWindow(window) | Self::SlidingWindow(window) | Self::SlidingLog(window) => {
                [window.amount, window.period, 0.0]
            }
            Self::Concurrency(slots) => [slots.max, slots.lease, 0.0],
        }
    }

    /// The most that one request can cost and ever be admitted; whole requests.
    pub fn capacity(&self) -> f64 {
        match self {
            Self::TokenBucket(shape) => (shape.capacity / shape.price).floor(),
            Self::FixedWindow(window) | Self::SlidingWindow(window) | Self::SlidingLog(window) => window.amount,
            Self::Concurrency(slots) => slots.max,
        }
    }

    /// One pod's part of it in memory, with room for at least one request.
    pub fn divided(&self, pods: u32) -> Self {
        match self {
            Self::TokenBucket(shape) => Self::TokenBucket(shape.divided(pods)),
            Self::FixedWindow(window) => Self::FixedWindow(window.divided(pods)),
            Self::SlidingWindow(window) => Self::SlidingWindow(window.divided(pods)),
            Self::SlidingLog(window) => Self::SlidingLog(window.divided(pods)),
            Self::Concurrency(slots) => Self::Concurrency(slots.divided(pods)),
        }
    }

    /// Entries beside the state itself that one identity may need in memory.
    pub fn entries(&self) -> usize {
        match self {
            Self::SlidingLog(window) => window.amount as usize,
            _ => 0,
        }
    }

    /// Whether a state is given back at the request's end, not with time.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Concurrency(_))
    }

    /// The charge of the request `id`, as a script made it at `at` and described it by two numbers.
    pub fn mark(&self, cost: f64, id: u64, at: Micros, said: [f64; 2]) -> Mark {
        match self {
            Self::TokenBucket(shape) => {
                Mark::Tokens(bucket::Mark { at, room: said[0], paid: cost * shape.price, returned: said[1] })
            }
            Self::FixedWindow(_) | Self::SlidingWindow(_) => Mark::Window(window::Mark { start: said[0], paid: cost }),
            Self::SlidingLog(_) | Self::Concurrency(_) => Mark::Request { id, paid: cost },
        }
    }
}

impl Mark {
    /// What of the charge is beyond so much, for whoever gives only that back. What is kept by the request's id comes
    /// back whole or not at all.
    pub fn beyond(self, shape: &Shape, cost: f64) -> Self {
        match (self, shape) {
            (Self::Tokens(mark), Shape::TokenBucket(shape)) => Self::Tokens(mark.beyond(shape, cost)),
            (Self::Window(mark), _) => Self::Window(window::Mark { paid: (mark.paid - cost).max(0.0), ..mark }),
            (mark, _) => mark,
        }
    }

    /// What `refund.lua` is told of it: what was paid, when, and the two numbers of [`Shape::mark`]; and the request.
    pub fn parameters(&self) -> ([f64; 4], u64) {
        match *self {
            Self::Tokens(mark) => ([mark.paid, mark.at, mark.room, mark.returned], 0),
            Self::Window(mark) => ([mark.paid, 0.0, mark.start, 0.0], 0),
            Self::Request { id, paid } => ([paid, 0.0, 0.0, 0.0], id),
        }
    }
}

impl State {
    /// That of an identity which nobody has seen.
    pub fn new(shape: &Shape, now: Micros) -> Self {
        match shape {
            Shape::TokenBucket(shape) => Self::TokenBucket(Bucket::full(shape, now)),
            Shape::FixedWindow(window) => Self::FixedWindow(FixedWindow::new(window, now)),
            Shape::SlidingWindow(window) => Self::SlidingWindow(SlidingWindow::new(window, now)),
            Shape::SlidingLog(_) => Self::SlidingLog(Box::default()),
            Shape::Concurrency(_) => Self::Concurrency(Held::default()),
        }
    }

    /// Starts again from a clock that was set back; whether it was. To be kept whatever comes of the request: else
    /// who is denied would be denied until the clock is where it was.
    pub fn rewind(&mut self, shape: &Shape, now: Micros) -> bool {
        match (&mut *self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) if bucket.is_ahead(now) => {
                bucket.refill(shape, now);
            }
            (Self::FixedWindow(state), Shape::FixedWindow(window)) if state.is_ahead(now) => {
                *state = state.at(window, now);
            }
            (Self::SlidingWindow(state), Shape::SlidingWindow(window)) if state.is_ahead(now) => {
                *state = state.at(window, now);
            }
            (Self::SlidingLog(log), Shape::SlidingLog(_)) => return log.rewind(now),
            (Self::Concurrency(held), Shape::Concurrency(slots)) => return held.rewind(slots, now),
            _ => return false,
        }
        true
    }

    /// Whether a request that costs so much is in it.
    pub fn covers(&self, shape: &Shape, cost: f64, now: Micros) -> bool {
        match (self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) => bucket.at(shape, now).covers(shape, cost),
            (Self::FixedWindow(state), Shape::FixedWindow(window)) => state.at(window, now).covers(window, cost),
            (Self::SlidingWindow(state), Shape::SlidingWindow(window)) => state.at(window, now).covers(window, cost),
            (Self::SlidingLog(log), Shape::SlidingLog(window)) => log.covers(window, cost, now),
            (Self::Concurrency(held), Shape::Concurrency(slots)) => held.covers(slots, cost, now),
            _ => cost <= shape.capacity(),
        }
    }

    /// Takes it for the request `id`, or what there is of it.
    pub fn charge(&mut self, shape: &Shape, cost: f64, now: Micros, id: u64) -> Mark {
        match (&mut *self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) => {
                bucket.refill(shape, now);
                Mark::Tokens(bucket.charge(shape, cost, now))
            }
            (Self::FixedWindow(state), Shape::FixedWindow(window)) => {
                *state = state.at(window, now);
                Mark::Window(state.charge(window, cost))
            }
            (Self::SlidingWindow(state), Shape::SlidingWindow(window)) => {
                *state = state.at(window, now);
                Mark::Window(state.charge(window, cost))
            }
            (Self::SlidingLog(log), Shape::SlidingLog(window)) => {
                Mark::Request { id, paid: log.charge(window, cost, now, id) }
            }
            (Self::Concurrency(held), Shape::Concurrency(slots)) => {
                held.charge(slots, now, id);
                Mark::Request { id, paid: cost }
            }
            // Another algorithm's, which its name rules out: it begins anew.
            _ => {
                *self = Self::new(shape, now);
                self.charge(shape, cost, now, id)
            }
        }
    }

    /// Takes so much whether it is there or not; of an algorithm that keeps no debts, what there is of it.
    pub fn owe(&mut self, shape: &Shape, cost: f64, now: Micros) {
        match (&mut *self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) => {
                bucket.refill(shape, now);
                bucket.owe(shape, cost);
            }
            (Self::FixedWindow(state), Shape::FixedWindow(window)) => {
                *state = state.at(window, now);
                state.owe(cost);
            }
            _ => {
                self.charge(shape, cost, now, 0);
            }
        }
    }

    /// Gives a charge back, but nothing beyond what would be there if it had never been made. How much of it, from 0 to 1,
    /// that was; `None` if it was not this state's, as far as that can be known.
    pub fn refund(&mut self, shape: &Shape, mark: &Mark, now: Micros) -> Option<f64> {
        self.rewind(shape, now);
        match (self, shape, mark) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape), Mark::Tokens(mark)) => {
                bucket.refill(shape, now);
                let granted = bucket.refund(shape, mark);
                return Some(if mark.paid > 0.0 { granted / mark.paid } else { 1.0 });
            }
            (Self::FixedWindow(state), Shape::FixedWindow(window), Mark::Window(mark)) => {
                *state = state.at(window, now);
                state.refund(mark);
            }
            (Self::SlidingWindow(state), Shape::SlidingWindow(window), Mark::Window(mark)) => {
                *state = state.at(window, now);
                state.refund(window, mark);
            }
            (Self::SlidingLog(log), _, Mark::Request { id, .. }) => return log.refund(*id).then_some(1.0),
            (Self::Concurrency(held), _, Mark::Request { id, .. }) => return held.refund(*id).then_some(1.0),
            _ => return None,
        }
        Some(1.0)
    }

    /// What it says of itself to a request that costs so much.
    pub fn level(&self, shape: &Shape, cost: f64, now: Micros) -> Level {
        match (self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) => bucket.at(shape, now).level(shape, cost, now),
            (Self::FixedWindow(state), Shape::FixedWindow(window)) => state.at(window, now).level(window, cost, now),
            (Self::SlidingWindow(state), Shape::SlidingWindow(window)) => {
                state.at(window, now).level(window, cost, now)
            }
            (Self::SlidingLog(log), Shape::SlidingLog(window)) => log.level(window, cost, now),
            (Self::Concurrency(held), Shape::Concurrency(slots)) => held.level(slots, cost, now),
            _ => Level { remaining: shape.capacity() as u64, wait_ms: 0, full_ms: 0 },
        }
    }

    /// Whole requests that it is below nothing by, begun ones included.
    pub fn owed(&self, shape: &Shape, now: Micros) -> u64 {
        match (self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) => {
                // Full times are rounded up to the microsecond.
                let lacking = (bucket.at(shape, now).full_at(shape) - now - 1.0) * shape.accrual;
                ((lacking - shape.capacity) / shape.price).ceil().max(0.0) as u64
            }
            (Self::FixedWindow(state), Shape::FixedWindow(window)) => state.at(window, now).owed(window),
            _ => 0,
        }
    }

    /// When it is as good as new, and may be forgotten.
    pub fn idle_at(&self, shape: &Shape) -> Micros {
        match (self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) => bucket.full_at(shape),
            (Self::FixedWindow(state), Shape::FixedWindow(window)) => state.ends_at(window),
            (Self::SlidingWindow(state), Shape::SlidingWindow(window)) => state.idle_at(window),
            (Self::SlidingLog(log), Shape::SlidingLog(window)) => log.idle_at(window),
            (Self::Concurrency(held), Shape::Concurrency(_)) => held.idle_at(),
            _ => 0.0,
        }
    }

    /// Entries that are set aside for it.
    pub fn reserved(&self) -> usize {
        match self {
            Self::SlidingLog(log) => log.reserved,
            _ => 0,
        }
    }

    /// Sets as many aside as it may need by now; how many that are more.
    pub fn reserve(&mut self, shape: &Shape) -> usize {
        let Self::SlidingLog(log) = self else { return 0 };
        let more = shape.entries().saturating_sub(log.reserved);
        log.reserved += more;
        more
    }

    /// As Redis keeps it, where that is a string.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::TokenBucket(bucket) => Some(bucket.bytes()),
            Self::FixedWindow(state) => Some(state.bytes()),
            Self::SlidingWindow(state) => Some(state.bytes()),
            Self::SlidingLog(_) | Self::Concurrency(_) => None,
        }
    }
}

#[cfg(test)]
#[path = "algorithm_tests.rs"]
mod tests;
