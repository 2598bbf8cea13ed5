//! Durations (`"250ms"`), sizes (`"64KiB"`) and percentages (`"10%"`).

use std::time::Duration;

use super::SyntaxError;

/// Longest duration that a setting may hold: ten years, so that no sum of a few of them overflows a clock.
pub const LONGEST: Duration = Duration::from_secs(3650 * 86_400);

/// Decimal places that count in a number.
const PLACES: usize = 9;
/// One, as [`number`] counts.
const ONE: u128 = 10_u128.pow(PLACES as u32);
/// Longest number, in digits before the point; what is longer is beyond every bound anyway.
const DIGITS: usize = 20;

/// Units of time, in nanoseconds.
const TIMES: [(&str, u128); 5] = [
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
    ("d", 86_400 * 1_000_000_000),
];

/// Units of size, in bytes.
const SIZES: [(&str, u128); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Reads `250ms`, `10s`, `5m`, `2h`, `1d` (a whole or decimal number and one unit).
///
/// # Errors
/// No number, no unit, another unit, or more than [`LONGEST`].
pub fn duration(text: &str) -> Result<Duration, SyntaxError> {
    let example = "write a number and one of ms, s, m, h, d, such as \"250ms\" or \"10s\"";
    let (amount, unit) = number(text).ok_or_else(|| SyntaxError::new(format!("`{text}` is no duration"), example))?;
    let Some(nanos) = scale(unit, &TIMES) else {
        let problem = if unit.is_empty() { "has no unit".to_owned() } else { format!("has an unknown unit `{unit}`") };
        return Err(SyntaxError::new(format!("`{text}` {problem}"), example));
    };
    let nanos = amount.saturating_mul(nanos) / ONE;
    if nanos > LONGEST.as_nanos() {
        return Err(SyntaxError::new(format!("`{text}` is too long"), "write at most \"3650d\""));
    }
    let second = Duration::from_secs(1).as_nanos();
    Ok(Duration::new((nanos / second) as u64, (nanos % second) as u32))
}

/// Reads `0`, `512B`, `64KiB`, `256MiB`, `1GiB`, `10KB`, ...: bytes.
///
/// # Errors
/// No number, no unit (but for `0`), another unit, not a whole number of bytes, or more than this machine can address.
pub fn size(text: &str) -> Result<usize, SyntaxError> {
    let example = "write a number and one of B, KiB, MiB, GiB (or KB, MB, GB), such as \"64KiB\"";
    let (amount, unit) = number(text).ok_or_else(|| SyntaxError::new(format!("`{text}` is no size"), example))?;
    if unit.is_empty() && amount == 0 {
        return Ok(0);
    }
    let Some(bytes) = scale(unit, &SIZES) else {
        let problem = if unit.is_empty() { "has no unit".to_owned() } else { format!("has an unknown unit `{unit}`") };
        return Err(SyntaxError::new(format!("`{text}` {problem}"), example));
    };
    let scaled = amount.saturating_mul(bytes);
    if scaled % ONE != 0 {
        return Err(SyntaxError::new(format!("`{text}` is no whole number of bytes"), example));
    }
    usize::try_from(scaled / ONE)
        .ok()
        .filter(|bytes| *bytes <= isize::MAX as usize)
        .ok_or_else(|| SyntaxError::new(format!("`{text}` is more than this machine can address"), example))
}

/// Reads `10%`: a share from 0.0 to 1.0.
///
/// # Errors
/// No number, no percent sign, or more than 100%.
pub fn percentage(text: &str) -> Result<f64, SyntaxError> {
    let example = "write a number from 0 to 100 and a percent sign, such as \"10%\"";
    match number(text) {
        Some((amount, "%")) if amount <= 100 * ONE => Ok(amount as f64 / (100 * ONE) as f64),
        Some((_, "%")) => Err(SyntaxError::new(format!("`{text}` is more than everything"), example)),
        _ => Err(SyntaxError::new(format!("`{text}` is no percentage"), example)),
    }
}

/// A leading number in units of 1/[`ONE`], and the unit behind it.
fn number(text: &str) -> Option<(u128, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let (whole, fraction) = match digits.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (digits, ""),
    };
    if whole.is_empty() || whole.len() > DIGITS || fraction.len() > PLACES || fraction.contains('.') {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let fraction: u128 = format!("{fraction:0<PLACES$}").parse().ok()?;
    Some((whole * ONE + fraction, unit.trim_start()))
}

fn scale(unit: &str, units: &[(&str, u128)]) -> Option<u128> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_durations() {
        for (text, ms) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("0s", 0),
            ("1.5s", 1_500),
            ("0.25h", 900_000),
            (" 3 s ", 3_000),
            ("3650d", 315_360_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("0.5ms"), Ok(Duration::from_micros(500)));
    }

    #[test]
    fn refuses_what_is_no_duration() {
        for text in ["", "s", "10", "10 seconds", "-1s", "1.s", ".5s", "1.2.3s", "1e3s", "3651d", "1s5m", "10S"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration("99999999999999999999999999d").is_err());
    }

    #[test]
    fn reads_sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("0B", 0),
            ("512B", 512),
            ("64KiB", 65_536),
            ("256MiB", 268_435_456),
            ("1GiB", 1 << 30),
            ("10KB", 10_000),
            ("1.5KiB", 1_536),
            ("2MB", 2_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_size() {
        for text in ["", "512", "64kib", "1.5B", "-1B", "KiB", "1e3B", "99999999999TiB", "0x10B"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_percentages() {
        for (text, share) in [("0%", 0.0), ("10%", 0.1), ("12.5%", 0.125), ("100%", 1.0), ("10 %", 0.1)] {
            assert_eq!(percentage(text), Ok(share), "{text}");
        }
        for text in ["", "10", "%", "101%", "100.1%", "-1%", "1%%", "0.1"] {
            assert!(percentage(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(text in ".*") {
            prop_assert!(duration(&text).map_or(true, |value| value <= LONGEST));
            let _ = size(&text);
            prop_assert!(percentage(&text).map_or(true, |share| (0.0..=1.0).contains(&share)));
        }

        #[test]
        fn whole_numbers_are_exact(ms in 0_u64..1_000_000_000, bytes in 0_usize..1 << 40) {
            prop_assert_eq!(duration(&format!("{ms}ms")), Ok(Duration::from_millis(ms)));
            prop_assert_eq!(size(&format!("{bytes}B")), Ok(bytes));
        }
    }
}
