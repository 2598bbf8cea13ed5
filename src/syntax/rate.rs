//! Rates: `100/s`, `5000/m`, `10/h`.

use super::SyntaxError;

/// A sustained rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Requests in one period; at least 1.
    pub amount: u32,
    /// Length of the period in milliseconds: 1000, 60000, 3600000 or 86400000.
    pub period_ms: u32,
}

impl Rate {
    /// Reads `amount/unit`, unit one of `s`, `m`, `h`, `d`.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let _ = text;
        Err(SyntaxError::new("not yet", ""))
    }

    /// Requests a millisecond.
    pub fn per_ms(&self) -> f64 {
        f64::from(self.amount) / f64::from(self.period_ms)
    }
}
