//! The token bucket, pure: `now` is an argument, and `bucket.lua` is its twin to the last bit.
//!
//! Tokens are counted in whole units so that nothing is ever rounded: for a rate of `amount / period`, reduced to
//! lowest terms in microseconds, a bucket gains `accrual` units a microsecond, a request costs `price` units, and
//! `burst * price` fill it. All three are integers held in `f64`, the only number that Lua has; they are exact below
//! 2^53 units (a burst of 100,000 at a rate by the day, far more at others), and beyond that both twins still round alike.
//!
//! In every window `w`: admitted <= burst + rate * w, refunds and clock steps included; where costs are known afterwards,
//! charged <= burst + rate * w + what is owed at its end.

use super::algorithm::{CLOCK_BACK_MAX_US, FAR_US, Level, Micros, NEVER_MS};
use crate::syntax::rate::Rate;

/// What a limit makes of its buckets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Units gained in a microsecond.
    pub accrual: f64,
    /// Units that one request costs.
    pub price: f64,
    /// Units in a full bucket.
    pub capacity: f64,
}

impl Shape {
    /// The shape of `rate` with room for `burst` requests, at least one.
    pub fn new(rate: Rate, burst: u32) -> Self {
        let (amount, period_us) = (u64::from(rate.amount.max(1)), u64::from(rate.period_ms.max(1)) * 1000);
        let common = gcd(amount, period_us);
        let price = (period_us / common) as f64;
        Self { accrual: (amount / common) as f64, price, capacity: f64::from(burst.max(1)) * price }
    }

    /// One pod's part of it: rate and burst divided by `pods`, but room for at least one request.
    pub fn divided(self, pods: u32) -> Self {
        let price = self.price * f64::from(pods.max(1));
        Self { accrual: self.accrual, price, capacity: self.capacity.max(price) }
    }

    /// Seconds to fill an empty bucket, rounded up.
    pub fn window_secs(&self) -> u64 {
        (self.capacity / self.accrual / 1e6).ceil() as u64
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One identity's tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Units in it at `stamp`.
    credit: f64,
    /// When `credit` was true.
    stamp: Micros,
    /// The price in whose units `credit` counts, so that a reload that changes the rate keeps the tokens.
    unit: f64,
    /// Units given back so far.
    returned: f64,
}

/// What must be known of a charge to give it back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    /// When it was made.
    pub at: Micros,
    /// How long after `at` the bucket would have been full if it had not been made.
    pub room: Micros,
    /// Units taken.
    pub paid: f64,
    /// What the bucket had been given back by then.
    pub returned: f64,
}

impl Mark {
    /// What of the charge is beyond so much, as if the two had been made one behind the other.
    pub fn beyond(self, shape: &Shape, cost: f64) -> Self {
        let kept = self.paid.min(cost * shape.price);
        Self { paid: self.paid - kept, room: (self.room + (kept / shape.accrual).floor()).min(FAR_US), ..self }
    }
}

impl Bucket {
    /// A bucket nobody has taken from.
    pub fn full(shape: &Shape, now: Micros) -> Self {
        Self { credit: shape.capacity, stamp: now, unit: shape.price, returned: 0.0 }
    }

    /// One that will be full at `full_at`, and counts as having been given back `returned` units so far.
    pub fn owing(shape: &Shape, now: Micros, full_at: Micros, returned: f64) -> Self {
        let credit = shape.capacity - (full_at - now).max(0.0) * shape.accrual;
        // Times are rounded up to the microsecond: less than none by less than that is none.
        let credit = if credit > -shape.accrual { credit.max(0.0) } else { credit };
        Self { credit, stamp: now, unit: shape.price, returned }
    }

    /// Requests given back so far.
    pub fn returned(&self) -> f64 {
        self.returned / self.unit
    }

    /// Brings it to `now`.
    pub fn refill(&mut self, shape: &Shape, now: Micros) {
        if self.unit != shape.price {
            self.credit = (self.credit / self.unit * shape.price).floor();
            self.returned = (self.returned / self.unit * shape.price).floor();
            self.unit = shape.price;
        }
        if now > self.stamp {
            self.credit += (now - self.stamp) * shape.accrual;
            self.stamp = now;
        } else if self.is_ahead(now) {
            self.stamp = now;
            // Charges from before are not given back any more: by their time, what they spilled cannot be told.
            self.returned += shape.capacity;
        }
        if self.credit > shape.capacity {
            self.credit = shape.capacity;
        }
    }

    /// As it is at `now`.
    pub fn at(mut self, shape: &Shape, now: Micros) -> Self {
        self.refill(shape, now);
        self
    }

    /// Whether the clock was set back.
    pub fn is_ahead(&self, now: Micros) -> bool {
        self.stamp - now > CLOCK_BACK_MAX_US
    }

    /// Whether a request that costs so much is in it. Only true to `now` after [`Bucket::refill`], like all below.
    pub fn covers(&self, shape: &Shape, cost: f64) -> bool {
        self.credit >= cost * shape.price
    }

    /// Takes such a request, or what there is of it.
    pub fn charge(&mut self, shape: &Shape, cost: f64, now: Micros) -> Mark {
        // One that owes has nothing.
        let paid = self.credit.max(0.0).min(cost * shape.price);
        let room = ((shape.capacity - self.credit) / shape.accrual).floor().min(FAR_US);
        self.credit -= paid;
        Mark { at: now, room, paid, returned: self.returned }
    }

    /// Takes so much whether it is there or not: what is lacking is owed, and gained again before anybody is admitted.
    pub fn owe(&mut self, shape: &Shape, cost: f64) {
        self.credit -= cost * shape.price;
    }

    /// Gives a charge back, less what a full bucket would have spilled since if the charge had never been made; else a
    /// window could admit more than its bound.
    ///
    /// Without it the bucket would have been full after `room`, and sooner by all that others were given back since:
    /// which of those had been charged first is not known, so that out of order a nearly full bucket may get back too
    /// little, never too much. How many units that was.
    pub fn refund(&mut self, shape: &Shape, mark: &Mark) -> f64 {
        let mut granted = 0.0;
        // A clock set back, or a bucket that began anew: nothing is known of what spilled.
        if self.stamp >= mark.at && self.returned >= mark.returned {
            let room = (mark.room - (self.stamp - mark.at)) * shape.accrual - (self.returned - mark.returned);
            granted = (mark.paid + room).clamp(0.0, mark.paid);
        }
        self.credit = (self.credit + granted).min(shape.capacity);
        self.returned += granted;
        granted
    }

    /// What it says of itself at `now`, to a request that costs so much.
    pub fn level(&self, shape: &Shape, cost: f64, now: Micros) -> Level {
        let price = cost * shape.price;
        let mut wait_ms = 0.0;
        if price > shape.capacity {
            wait_ms = NEVER_MS as f64;
        } else if self.credit < price {
            wait_ms = ((self.stamp - now + ((price - self.credit) / shape.accrual).ceil()) / 1000.0).ceil();
        }
        Level {
            remaining: (self.credit / shape.price).floor() as u64,
            wait_ms: wait_ms as u64,
            full_ms: self.full_ms(shape, now) as u64,
        }
    }

    /// When it will be full.
    pub fn full_at(&self, shape: &Shape) -> Micros {
        self.stamp + ((shape.capacity - self.credit) / shape.accrual).ceil().min(FAR_US)
    }

    /// As Redis keeps it.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.credit, self.stamp, self.unit, self.returned].iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn full_ms(&self, shape: &Shape, now: Micros) -> f64 {
        ((self.stamp - now + ((shape.capacity - self.credit) / shape.accrual).ceil().min(FAR_US)) / 1000.0).ceil()
    }
}

#[cfg(test)]
#[path = "bucket_tests.rs"]
mod tests;
