//! The algorithms by which limits count, behind one set of operations.
//!
//! Each is a pair: a pure file, whose state stands here as a variant, and a Lua file that does the same to the last bit
//! on what Redis keeps. Nothing else knows which there are: tables in memory hold a [`State`], the scripts find theirs
//! by [`Shape::code`].

use super::bucket;

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
}

/// What is kept of one identity.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// `bucket.rs`.
    TokenBucket(bucket::Bucket),
}

/// What must be known of a charge to give it back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mark {
    /// `bucket.rs`.
    TokenBucket(bucket::Mark),
}

/// What a state says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Whole requests left.
    pub remaining: u64,
    /// Milliseconds until one request of the same cost is there, rounded up; 0 if one is, [`NEVER_MS`] if none will be.
    pub wait_ms: u64,
    /// Milliseconds until all of it is there, rounded up.
    pub full_ms: u64,
}

impl Shape {
    /// The algorithm's number in the scripts.
    pub fn code(&self) -> u32 {
        match self {
            Self::TokenBucket(_) => 1,
        }
    }

    /// The algorithm's parameters, as the scripts take them.
    pub fn parameters(&self) -> [f64; PARAMETERS] {
        match self {
            Self::TokenBucket(shape) => [shape.accrual, shape.price, shape.capacity],
        }
    }

    /// Whether one request can cost so much and ever be admitted.
    pub fn can_grant(&self, cost: f64) -> bool {
        match self {
            Self::TokenBucket(shape) => cost * shape.price <= shape.capacity,
        }
    }

    /// One pod's part of it, with room for at least one request.
    pub fn divided(&self, pods: u32) -> Self {
        match self {
            Self::TokenBucket(shape) => Self::TokenBucket(shape.divided(pods)),
        }
    }

    /// The charge of a request, as a script made it at `at` and described it by two numbers.
    pub fn mark(&self, cost: f64, at: Micros, said: [f64; 2]) -> Mark {
        match self {
            Self::TokenBucket(shape) => {
                Mark::TokenBucket(bucket::Mark { at, room: said[0], paid: cost * shape.price, returned: said[1] })
            }
        }
    }
}

impl Mark {
    /// What `refund.lua` is told of it: what was paid, when, and the two numbers of [`Shape::mark`].
    pub fn parameters(&self) -> [f64; 4] {
        match self {
            Self::TokenBucket(mark) => [mark.paid, mark.at, mark.room, mark.returned],
        }
    }
}

impl State {
    /// That of an identity which nobody has seen.
    pub fn new(shape: &Shape, now: Micros) -> Self {
        match shape {
            Shape::TokenBucket(shape) => Self::TokenBucket(bucket::Bucket::full(shape, now)),
        }
    }

    /// Starts again from a clock that was set back; whether it was. To be kept whatever comes of the request: else
    /// who is denied would be denied until the clock is where it was.
    pub fn rewind(&mut self, shape: &Shape, now: Micros) -> bool {
        match (self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) => {
                bucket.is_ahead(now) && {
                    bucket.refill(shape, now);
                    true
                }
            }
        }
    }

    /// Whether a request that costs so much is in it.
    pub fn covers(&self, shape: &Shape, cost: f64, now: Micros) -> bool {
        match (self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) => bucket.at(shape, now).covers(shape, cost),
        }
    }

    /// Takes it, or what there is of it.
    pub fn charge(&mut self, shape: &Shape, cost: f64, now: Micros) -> Mark {
        match (self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) => {
                bucket.refill(shape, now);
                Mark::TokenBucket(bucket.charge(shape, cost, now))
            }
        }
    }

    /// Gives a charge back, but nothing beyond what would be there if it had never been made.
    pub fn refund(&mut self, shape: &Shape, mark: &Mark, now: Micros) {
        match (self, shape, mark) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape), Mark::TokenBucket(mark)) => {
                bucket.refill(shape, now);
                bucket.refund(shape, mark);
            }
        }
    }

    /// What it says of itself to a request that costs so much.
    pub fn level(&self, shape: &Shape, cost: f64, now: Micros) -> Level {
        match (self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) => bucket.at(shape, now).level(shape, cost, now),
        }
    }

    /// When it is as good as new, and may be forgotten.
    pub fn idle_at(&self, shape: &Shape) -> Micros {
        match (self, shape) {
            (Self::TokenBucket(bucket), Shape::TokenBucket(shape)) => bucket.full_at(shape),
        }
    }

    /// As Redis keeps it.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::TokenBucket(bucket) => bucket.bytes(),
        }
    }
}
