//! Text of others inside a line of ours: escaped so that it can neither end the line nor steer a terminal.

use crate::config::LogFormat;

/// Bytes of one field in a line; a longer one is cut and ends in `...`.
pub(super) const FIELD_BYTES: usize = 2048;

/// What is never written as it is: controls (C0, DEL and C1, where CSI is one character), the two further line ends of
/// Unicode, and the marks that reorder what stands around them.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Appends `text` inside JSON quotes' rules, cut to [`FIELD_BYTES`].
pub(super) fn json(out: &mut Vec<u8>, text: &str) {
    let (text, cut) = cut(text);
    let plain = |b: &u8| matches!(b, b' '..=b'~') && *b != b'"' && *b != b'\\';
    if text.as_bytes().iter().all(plain) {
        out.extend_from_slice(text.as_bytes());
    } else {
        for c in text.chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                c if steers(c) => json_escape(out, c),
                c => push(out, c),
            }
        }
    }
    out.extend_from_slice(cut);
}

/// Appends `text` as one word of a line for people, cut to [`FIELD_BYTES`]: spaces are escaped too, and nothing is `-`.
pub(super) fn word(out: &mut Vec<u8>, text: &str) {
    let (text, cut) = cut(text);
    if text.is_empty() {
        out.push(b'-');
    } else if text.as_bytes().iter().all(|b| matches!(b, b'!'..=b'~') && *b != b'\\') {
        out.extend_from_slice(text.as_bytes());
    } else {
        for c in text.chars() {
            match c {
                '\\' => out.extend_from_slice(b"\\\\"),
                c if steers(c) || c.is_whitespace() => out.extend(c.escape_unicode().map(|e| e as u8)),
                c => push(out, c),
            }
        }
    }
    out.extend_from_slice(cut);
}

/// Appends `text`, a whole line that a formatter made, with what steers escaped; in JSON that stands inside strings only.
pub(super) fn whole(out: &mut Vec<u8>, text: &str, format: LogFormat) {
    for c in text.chars() {
        match (steers(c), format) {
            (false, _) => push(out, c),
            (true, LogFormat::Json) => json_escape(out, c),
            (true, LogFormat::Text) => out.extend(c.escape_unicode().map(|e| e as u8)),
        }
    }
}

/// Appends `ms` since the epoch as RFC 3339 in UTC, to the millisecond.
pub(super) fn timestamp(out: &mut Vec<u8>, ms: u64) {
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days);
    let parts = [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day, 2, b'T'),
        (in_day / 3_600_000, 2, b':'),
        (in_day / 60_000 % 60, 2, b':'),
        (in_day / 1000 % 60, 2, b'.'),
        (in_day % 1000, 3, b'Z'),
    ];
    for (value, width, behind) in parts {
        digits(out, value, width);
        out.push(behind);
    }
}

/// Appends the last `width` decimal digits of `value`.
pub(super) fn digits(out: &mut Vec<u8>, value: u64, width: u32) {
    out.extend((0..width).rev().map(|place| b'0' + (value / 10u64.pow(place) % 10) as u8));
}

/// Year, month and day of a day since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March, so that the leap day is the last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Appends a character that steers; all of them lie in the basic plane, so one unit of UTF-16 names it.
fn json_escape(out: &mut Vec<u8>, c: char) {
    let hex = |place: u32| b"0123456789abcdef"[(u32::from(c) >> (4 * place) & 0xf) as usize];
    out.extend_from_slice(&[b'\\', b'u', hex(3), hex(2), hex(1), hex(0)]);
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn cut(text: &str) -> (&str, &'static [u8]) {
    if text.len() <= FIELD_BYTES {
        return (text, b"");
    }
    let end = (0..=FIELD_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    (&text[..end], b"...")
}
