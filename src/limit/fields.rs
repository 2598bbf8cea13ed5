//! `RateLimit-Policy`, `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10) and `Retry-After` (RFC 9110 section 10.2.3).
//!
//! A token bucket in the draft's terms: the quota `q` is the burst, the window `w` the time that refills it. `RateLimit`
//! tells of the tightest limit only: `r` requests left, and `t` seconds until the quota is whole again or, where `r` is
//! 0, until the next request is there, so that `t` never lies beyond `Retry-After`.

use std::fmt::Write;
use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};

use super::algorithm::Level;
use super::bucket::Shape;
use crate::config::Limit;

/// `RateLimit-Policy`.
pub const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// `RateLimit`.
pub const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

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

/// The value of `RateLimit-Policy` for these limits; `None` for none, or if they do not fit a field.
pub fn policy<'a>(limits: impl Iterator<Item = &'a Limit>) -> Option<HeaderValue> {
    let mut text = String::new();
    for limit in limits {
        let comma = if text.is_empty() { "" } else { ", " };
        let window = Shape::new(limit.rate, limit.burst).window_secs().max(1);
        let _ = write!(text, "{comma}{};q={};w={window}", quoted(&limit.name), limit.burst);
    }
    if text.is_empty() { None } else { HeaderValue::try_from(text).ok() }
}

/// Adds both fields beside what the upstream may say of limits of its own: they are lists.
pub fn append(policy: Option<&HeaderValue>, tightest: Option<(&str, &Level)>, fields: &mut HeaderMap) {
    if let Some(policy) = policy {
        fields.append(RATELIMIT_POLICY, policy.clone());
    }
    let Some((quoted, level)) = tightest else { return };
    let reset_ms = if level.remaining == 0 { level.wait_ms } else { level.full_ms };
    let text = format!("{quoted};r={};t={}", level.remaining, reset_ms.div_ceil(1000));
    if let Ok(value) = HeaderValue::try_from(text) {
        fields.append(RATELIMIT, value);
    }
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

    #[test]
    fn names_become_strings_that_a_field_can_hold() {
        assert_eq!(&*quoted("per-client"), r#""per-client""#);
        assert_eq!(&*quoted("a\"b\\c\r\né"), r#""a\"b\\c???""#);
    }

    #[test]
    fn an_empty_bucket_tells_when_the_next_request_is_there_and_another_when_it_is_full() {
        let mut fields = HeaderMap::new();
        append(None, Some(("\"a\"", &Level { remaining: 42, wait_ms: 0, full_ms: 1160 })), &mut fields);
        append(None, Some(("\"b\"", &Level { remaining: 0, wait_ms: 20, full_ms: 2000 })), &mut fields);
        let values: Vec<_> = fields.get_all(RATELIMIT).iter().collect();
        assert_eq!(values, [r#""a";r=42;t=2"#, r#""b";r=0;t=1"#]);
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
