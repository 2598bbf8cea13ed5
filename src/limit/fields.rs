//! `RateLimit-Policy`, `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10), the `X-RateLimit` fields that came before them,
//! and `Retry-After` (RFC 9110 section 10.2.3).
//!
//! In the draft's terms, a token bucket's quota `q` is the burst and its window `w` the time that refills it; a window's
//! are the amount and the period; requests in flight have a unit of quota, and no window. `RateLimit` tells of the
//! tightest limit only: `r` requests left, and `t` seconds until the quota is whole again or, where it is too short for
//! another request of the same cost, until that is there, so that `t` never lies beyond `Retry-After`.

use std::fmt::Write;
use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};

use super::algorithm::{Level, NEVER_MS, Shape};
use super::bounds::Bound;
use crate::config::FieldEdits;
use crate::message::Lines;

/// `RateLimit-Policy`.
pub const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// `RateLimit`.
pub const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// `X-RateLimit-Limit`: the quota.
pub const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");

/// `X-RateLimit-Remaining`: requests left.
pub const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");

/// `X-RateLimit-Reset`: seconds from now, as `t` of `RateLimit`.
pub const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// A limit's name as a string of RFC 9651 section 3.3.3; what such a string cannot hold is `?`.
pub fn quoted(name: &str) -> Box<str> {
    let mut text = String::with_capacity(name.len() + 2);
    text.push('"');
    for letter in name.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            ' '..='~' => text.push(letter),
            _ => text.push('?'),
        }
    }
    text.push('"');
    text.into()
}

/// The value of `RateLimit-Policy` for these limits, as far as clients are told of them there, behind what it was `before`;
/// `None` for none, or if they do not fit a field.
pub(super) fn policy_beyond<'a>(
    before: Option<&HeaderValue>,
    bounds: impl Iterator<Item = &'a Bound>,
) -> Option<HeaderValue> {
    let mut text = before.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    for bound in bounds.filter(|bound| !bound.limit.dry_run && bound.limit.headers.is_draft()) {
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}{};q={}", bound.quoted, bound.shape.capacity());
        let _ = match bound.shape {
            Shape::TokenBucket(shape) => write!(text, ";w={}", shape.window_secs().max(1)),
            Shape::FixedWindow(window) | Shape::SlidingWindow(window) | Shape::SlidingLog(window) => {
                write!(text, ";w={}", (window.period / 1e6).ceil())
            }
            Shape::Concurrency(_) => text.write_str(";qu=\"concurrent-requests\""),
        };
    }
    if text.is_empty() { None } else { HeaderValue::try_from(text).ok() }
}

/// Adds both fields beside what the upstream may say of limits of its own: they are lists.
pub fn append(policy: Option<&HeaderValue>, tightest: Option<(&str, &Shape, &Level)>, fields: &mut HeaderMap) {
    if let Some(policy) = policy {
        fields.append(RATELIMIT_POLICY, policy.clone());
    }
    let Some((quoted, shape, level)) = tightest else { return };
    let mut buffers = Digits::default();
    if let Ok(value) = HeaderValue::from_bytes(&limit(quoted, shape, level, &mut buffers).concat()) {
        fields.append(RATELIMIT, value);
    }
}

/// The same as lines of an answer that has no other fields yet: nothing is allocated. Whether there is room for them.
pub fn push(policy: Option<&HeaderValue>, tightest: Option<(&str, &Shape, &Level)>, lines: &mut Lines) -> bool {
    let mut buffers = Digits::default();
    let policy: [&[u8]; 3] =
        policy.map_or_else(Default::default, |policy| [b"ratelimit-policy: ", policy.as_bytes(), b"\r\n"]);
    let Some((quoted, shape, level)) = tightest else { return lines.push_all(&policy) };
    let [a, b, c, d, e] = limit(quoted, shape, level, &mut buffers);
    lines.push_all(&[policy[0], policy[1], policy[2], b"ratelimit: ", a, b, c, d, e, b"\r\n"])
}

/// Where numbers are written.
type Digits = [itoa::Buffer; 2];

/// The value of `RateLimit`, in pieces.
fn limit<'a>(quoted: &'a str, shape: &Shape, level: &Level, [left, wait]: &'a mut Digits) -> [&'a [u8]; 5] {
    let reset = reset(shape, level);
    let seconds = reset.map_or("", |seconds| wait.format(seconds));
    let t: &[u8] = if reset.is_some() { b";t=" } else { b"" };
    [quoted.as_bytes(), b";r=", left.format(level.remaining).as_bytes(), t, seconds.as_bytes()]
}

/// The fields of old of a limit, which are no lists: they stand in place of the upstream's own.
pub(super) fn x(shape: &Shape, level: &Level) -> FieldEdits {
    let mut set = vec![
        (X_RATELIMIT_LIMIT, HeaderValue::from(shape.capacity() as u64)),
        (X_RATELIMIT_REMAINING, HeaderValue::from(level.remaining)),
    ];
    set.extend(reset(shape, level).map(|seconds| (X_RATELIMIT_RESET, HeaderValue::from(seconds))));
    FieldEdits { set, remove: vec![X_RATELIMIT_RESET] }
}

/// Whole seconds, rounded up, until the quota is whole, or there is enough for another request of the same cost.
fn reset(shape: &Shape, level: &Level) -> Option<u64> {
    // Nobody knows when a request ends, and no time makes a request cheaper.
    if shape.is_held() || level.wait_ms == NEVER_MS {
        return None;
    }
    let reset_ms = if level.wait_ms > 0 { level.wait_ms } else { level.full_ms };
    Some(reset_ms.div_ceil(1000))
}

/// Sets `Retry-After`: whole seconds, rounded up, at least one.
pub fn retry_after(wait: Duration, fields: &mut HeaderMap) {
    fields.insert(RETRY_AFTER, HeaderValue::from(seconds(wait)));
}

/// Whole seconds, rounded up, at least one.
pub fn seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::concurrency::Slots;
    use crate::limit::window::Window;

    #[test]
    fn names_become_strings_that_a_field_can_hold() {
        assert_eq!(&*quoted("per-client"), r#""per-client""#);
        assert_eq!(&*quoted("a\"b\\c\r\né"), r#""a\"b\\c???""#);
    }

    #[test]
    fn an_empty_bucket_tells_when_the_next_request_is_there_and_another_when_it_is_full() {
        let mut fields = HeaderMap::new();
        let window = Shape::FixedWindow(Window { amount: 50.0, period: 1e6 });
        let slots = Shape::Concurrency(Slots::new(20));
        let levels = [
            ("\"a\"", &window, Level { remaining: 42, wait_ms: 0, full_ms: 1160 }),
            ("\"b\"", &window, Level { remaining: 0, wait_ms: 20, full_ms: 2000 }),
            ("\"c\"", &window, Level { remaining: 3, wait_ms: 1020, full_ms: 3000 }),
            ("\"d\"", &window, Level { remaining: 3, wait_ms: NEVER_MS, full_ms: 3000 }),
            ("\"e\"", &slots, Level { remaining: 0, wait_ms: 1000, full_ms: 0 }),
        ];
        for (name, shape, level) in &levels {
            append(None, Some((name, shape, level)), &mut fields);
        }
        let values: Vec<_> = fields.get_all(RATELIMIT).iter().collect();
        assert_eq!(values, [r#""a";r=42;t=2"#, r#""b";r=0;t=1"#, r#""c";r=3;t=2"#, r#""d";r=3"#, r#""e";r=0"#]);
        assert!(!fields.contains_key(RATELIMIT_POLICY));
    }

    #[test]
    fn retry_after_is_whole_seconds_rounded_up_and_never_0() {
        let cases = [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (86_400_000, "86400")];
        for (wait_ms, text) in cases {
            let mut fields = HeaderMap::new();
            retry_after(Duration::from_millis(wait_ms), &mut fields);
            assert_eq!(fields[RETRY_AFTER], text, "{wait_ms} ms");
        }
    }
}
