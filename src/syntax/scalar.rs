//! Durations (`"250ms"`), sizes (`"64KiB"`) and percentages (`"10%"`).

use std::time::Duration;

use super::SyntaxError;

/// Reads `250ms`, `10s`, `5m`, `2h`, `1d` (a whole or decimal number and one unit).
pub fn duration(text: &str) -> Result<Duration, SyntaxError> {
    let _ = text;
    Err(SyntaxError::new("not yet", ""))
}

/// Reads `0`, `512B`, `64KiB`, `256MiB`, `1GiB`, `10KB`, ...: bytes.
pub fn size(text: &str) -> Result<usize, SyntaxError> {
    let _ = text;
    Err(SyntaxError::new("not yet", ""))
}

/// Reads `10%`: a share from 0.0 to 1.0.
pub fn percentage(text: &str) -> Result<f64, SyntaxError> {
    let _ = text;
    Err(SyntaxError::new("not yet", ""))
}
