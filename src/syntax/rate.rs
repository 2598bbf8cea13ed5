//! Rates: `100/s`, `5000/m`, `10/h`.

use std::fmt;

use super::SyntaxError;

/// A sustained rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Requests in one period; at least 1.
    pub amount: u32,
    /// Length of the period in milliseconds: 1000, 60000, 3600000 or 86400000.
    pub period_ms: u32,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.amount, self.unit())
    }
}

impl Rate {
    /// Reads `amount/unit`, unit one of `s`, `m`, `h`, `d`.
    ///
    /// # Errors
    /// No slash, another unit, or an amount that is not a whole number from 1 to 4294967295.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let Some((amount, unit)) = text.split_once('/') else {
            return Err(SyntaxError::new(
                format!("`{text}` has no period"),
                "write requests and period, such as \"100/s\" or \"5000/m\"",
            ));
        };
        let period_ms = match unit.trim() {
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            other => {
                return Err(SyntaxError::new(
                    format!("`{other}` is no period"),
                    "write one of s, m, h, d behind the slash: \"100/s\"",
                ));
            }
        };
        let amount = amount.trim();
        let digits = !amount.is_empty() && amount.bytes().all(|byte| byte.is_ascii_digit());
        match amount.parse() {
            Ok(0) => Err(SyntaxError::new("the rate is zero", "write at least one request a period, such as \"1/d\"")),
            Ok(amount) if digits => Ok(Self { amount, period_ms }),
            _ => Err(SyntaxError::new(
                format!("`{amount}` is no number of requests"),
                format!("write a whole number from 1 to {}, such as \"100/s\"", u32::MAX),
            )),
        }
    }

    /// The period as it is written: `s`, `m`, `h` or `d`.
    pub fn unit(&self) -> &'static str {
        match self.period_ms {
            1_000 => "s",
            60_000 => "m",
            3_600_000 => "h",
            _ => "d",
        }
    }

    /// Requests a millisecond.
    pub fn per_ms(&self) -> f64 {
        f64::from(self.amount) / f64::from(self.period_ms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_every_period() {
        for (text, amount, period_ms) in
            [("100/s", 100, 1_000), ("5000/m", 5000, 60_000), ("10/h", 10, 3_600_000), (" 1 / d ", 1, 86_400_000)]
        {
            assert_eq!(Rate::parse(text), Ok(Rate { amount, period_ms }), "{text}");
        }
        assert!((Rate::parse("60/m").unwrap().per_ms() - 0.001).abs() < 1e-12);
    }

    #[test]
    fn refuses_what_is_no_rate() {
        for text in ["", "/", "10", "10/", "/s", "0/s", "-1/s", "+1/s", "1.5/s", "10/min", "10/s/s", "4294967296/s"] {
            let error = Rate::parse(text).unwrap_err();
            assert!(!error.problem.is_empty() && !error.remedy.is_empty(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(text in ".*") {
            if let Ok(rate) = Rate::parse(&text) {
                prop_assert!(rate.amount >= 1 && rate.per_ms() > 0.0);
            }
        }
    }
}
