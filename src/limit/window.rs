//! What fixed windows, sliding windows and sliding logs are told: so many requests a period.

use super::algorithm::Micros;
use crate::syntax::rate::Rate;

/// So many requests a period.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Requests; whole, at least one.
    pub amount: f64,
    /// Length of the period.
    pub period: Micros,
}

/// The charge of a window that counts: given back to the same window only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    /// When the window began.
    pub start: Micros,
    /// Requests counted.
    pub paid: f64,
}

impl Window {
    /// That of `rate`.
    pub fn new(rate: Rate) -> Self {
        Self { amount: f64::from(rate.amount.max(1)), period: f64::from(rate.period_ms.max(1)) * 1000.0 }
    }

    /// One pod's part of it: whole requests, at least one.
    pub fn divided(self, pods: u32) -> Self {
        Self { amount: (self.amount / f64::from(pods.max(1))).floor().max(1.0), ..self }
    }

    /// The window of the clock's that `now` lies in.
    pub fn start(&self, now: Micros) -> Micros {
        (now / self.period).floor() * self.period
    }
}
