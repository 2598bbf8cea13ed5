//! How old an answer is and whether it may be used: RFC 9111 section 4.2, RFC 5861.
//!
//! All times are the fleet's wall clock in milliseconds.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, header};

use super::directives::{MAX_SECONDS, RequestDirectives, delta_seconds};
use crate::clock::WallMs;

/// How far ahead of the reader's clock an answer may have been received: what two hosts' readings of one Redis clock
/// may differ by. Beyond it a clock has stepped back, and the answer's age is not known.
const FUTURE_TOLERANCE_MS: u64 = 2_000;

/// Shortest lifetime that is refreshed before it ends: below it the window of [`EARLY_FLOOR_MS`] would be most of the
/// lifetime.
const EARLY_MIN_LIFETIME_MS: u64 = 5_000;

/// Shortest window of early refresh, without the fill's own cost.
const EARLY_FLOOR_MS: u64 = 1_000;

/// What decides whether an answer may be used, as it was when it was received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freshness {
    /// When the answer's head was received.
    pub received_at: WallMs,
    /// Its age at that moment (RFC 9111 section 4.2.3, `corrected_initial_age`).
    pub initial_age_ms: u64,
    /// Age at which it becomes stale (section 4.2.1).
    pub lifetime_ms: u64,
    /// Time past the lifetime in which it may be used while it is refreshed.
    pub stale_while_revalidate_ms: u64,
    /// Time past the lifetime in which it may be used if the upstream fails.
    pub stale_if_error_ms: u64,
    /// Used stale by nobody's word but the upstream's, not even by a client's `max-stale` (sections 5.2.2.2 and 5.2.2.10).
    pub must_revalidate: bool,
    /// Never used without validation (section 5.2.2.4).
    pub no_cache: bool,
    /// The lifetime is the route's own (or a guess), not the upstream's: never for requests with credentials.
    pub by_rule: bool,
}

/// What may be done with a stored answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Used as it is.
    Fresh {
        /// For the `Age` field.
        age_s: u64,
        /// What is left of the lifetime.
        ttl_left_ms: u64,
    },
    /// Used as it is, and refreshed behind.
    StaleWhileRevalidate {
        /// For the `Age` field.
        age_s: u64,
        /// Time since the lifetime ended.
        stale_ms: u64,
    },
    /// Validated first; used as it is if the upstream fails.
    StaleIfError {
        /// For the `Age` field.
        age_s: u64,
        /// Time since the lifetime ended.
        stale_ms: u64,
    },
    /// Validated first, and not used otherwise.
    MustRevalidate,
}

impl Freshness {
    /// Age at `now` (RFC 9111 section 4.2.3, `current_age`).
    pub fn age_ms(&self, now: WallMs) -> u64 {
        self.initial_age_ms.saturating_add(now.saturating_sub(self.received_at))
    }

    /// Whether a clock has stepped back since it was received.
    pub fn is_from_the_future(&self, now: WallMs) -> bool {
        self.received_at > now.saturating_add(FUTURE_TOLERANCE_MS)
    }

    /// What may be done with the answer at `now`.
    ///
    /// `honoured` are the request's directives where the route honours them; `marked_stale` is a soft invalidation,
    /// which ends the lifetime and leaves the windows behind it.
    pub fn evaluate(&self, now: WallMs, honoured: Option<&RequestDirectives>, marked_stale: bool) -> State {
        if self.is_from_the_future(now) || self.no_cache || honoured.is_some_and(|wanted| wanted.no_cache) {
            return State::MustRevalidate;
        }
        let age_ms = self.age_ms(now);
        let age_s = age_ms / 1000;
        let ttl_left_ms = if marked_stale { 0 } else { self.lifetime_ms.saturating_sub(age_ms) };
        let stale_ms = age_ms.saturating_sub(self.lifetime_ms);
        let wanted = honoured.copied().unwrap_or_default();

        let too_old = wanted.max_age.is_some_and(|max_age| age_ms > seconds_ms(max_age));
        let fresh_enough = wanted.min_fresh.is_none_or(|least| ttl_left_ms >= seconds_ms(least));
        if ttl_left_ms > 0 && !too_old && fresh_enough {
            return State::Fresh { age_s, ttl_left_ms };
        }
        let asked_for_newer = too_old || !fresh_enough;
        let may_accept = !self.must_revalidate && !marked_stale;
        let accepted = wanted.max_stale.is_some_and(|most| may_accept && stale_ms <= seconds_ms(most));
        if !asked_for_newer && (stale_ms < self.stale_while_revalidate_ms || accepted) {
            return State::StaleWhileRevalidate { age_s, stale_ms };
        }
        let accepted_ms = wanted.stale_if_error.filter(|_| !self.must_revalidate).map_or(0, seconds_ms);
        let if_error_ms = self.stale_if_error_ms.max(accepted_ms);
        if stale_ms < if_error_ms {
            return State::StaleIfError { age_s, stale_ms };
        }
        State::MustRevalidate
    }

    /// Whether an answer that is fresh with `ttl_left_ms` to go should be refreshed by this read: in the last
    /// `max(10% of the time it was received for, 1 s + the fill's cost)`, but never in more than its second half, and
    /// never if it was received for less than five seconds, where every other read would refresh.
    pub fn refreshes_early(&self, ttl_left_ms: u64, fill_cost_ms: u64) -> bool {
        self.early_window_ms(fill_cost_ms).is_some_and(|window_ms| ttl_left_ms <= window_ms)
    }

    /// The last part of the lifetime, in which a read refreshes; `None` if none does.
    pub fn early_window_ms(&self, fill_cost_ms: u64) -> Option<u64> {
        let received_for_ms = self.lifetime_ms.saturating_sub(self.initial_age_ms);
        if received_for_ms < EARLY_MIN_LIFETIME_MS {
            return None;
        }
        let window_ms = (received_for_ms / 10).max(EARLY_FLOOR_MS.saturating_add(fill_cost_ms));
        Some(window_ms.min(received_for_ms / 2))
    }
}

/// The terms of an answer's age at its receipt (RFC 9111 section 4.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitialAge {
    /// `age_value`.
    pub age_field_ms: u64,
    /// `date_value`; `None` if it is absent or unreadable.
    pub date: Option<WallMs>,
    /// `apparent_age`: what `Date` shows.
    pub apparent_ms: u64,
    /// `response_delay`.
    pub delay_ms: u64,
}

impl InitialAge {
    /// The terms for an answer with these fields.
    pub fn of(headers: &HeaderMap, asked_at: WallMs, received_at: WallMs) -> Self {
        let date = date_ms(headers, header::DATE);
        // Date has whole seconds; measured in anything finer, every answer would arrive up to a second old.
        let whole_seconds_ms = received_at / 1000 * 1000;
        Self {
            age_field_ms: age_field_s(headers).saturating_mul(1000),
            date,
            apparent_ms: date.map_or(0, |date| whole_seconds_ms.saturating_sub(date)),
            delay_ms: received_at.saturating_sub(asked_at),
        }
    }

    /// `corrected_age_value`: what `Age` says, with the time that the answer took.
    pub fn corrected_ms(&self) -> u64 {
        self.age_field_ms.saturating_add(self.delay_ms)
    }

    /// `corrected_initial_age`: the greater of the two.
    pub fn ms(&self) -> u64 {
        self.apparent_ms.max(self.corrected_ms())
    }
}

/// `corrected_initial_age` (RFC 9111 section 4.2.3): the greater of what `Age` says, with the time the answer took, and
/// what `Date` shows. A `Date` that is absent or unreadable shows nothing.
pub fn initial_age_ms(headers: &HeaderMap, asked_at: WallMs, received_at: WallMs) -> u64 {
    InitialAge::of(headers, asked_at, received_at).ms()
}

/// Seconds in `Age`. One that is not exactly one number is as old as an answer can be, and so stale on arrival, as RFC
/// 9111 section 4.2.1 encourages: some cache on the way has lost count. Section 5.1 would permit the first member.
fn age_field_s(headers: &HeaderMap) -> u64 {
    let mut lines = headers.get_all(header::AGE).iter();
    match (lines.next(), lines.next()) {
        (None, _) => 0,
        (Some(only), None) => u64::from(delta_seconds(only.as_bytes().trim_ascii()).unwrap_or(MAX_SECONDS)),
        (Some(_), Some(_)) => u64::from(MAX_SECONDS),
    }
}

/// The date in a field (RFC 9110 section 5.6.7), if there is exactly one and it can be read.
pub fn date_ms(headers: &HeaderMap, name: header::HeaderName) -> Option<WallMs> {
    let mut values = headers.get_all(name).iter();
    let only = values.next()?;
    if values.next().is_some() {
        return None;
    }
    http_date_ms(only.as_bytes())
}

/// Reads an HTTP date.
pub fn http_date_ms(text: &[u8]) -> Option<WallMs> {
    let date = httpdate::parse_http_date(std::str::from_utf8(text).ok()?).ok()?;
    let since = date.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// Last moment that an HTTP date can name: the end of the year 9999.
const LAST_DATE_MS: WallMs = 253_402_300_799_000;

/// Writes an HTTP date, as a field's value.
pub fn http_date(at: WallMs) -> HeaderValue {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(at.min(LAST_DATE_MS));
    HeaderValue::try_from(httpdate::fmt_http_date(time)).expect("an HTTP date is visible ASCII")
}

/// Delta-seconds in milliseconds; above the cap ([`MAX_SECONDS`]) stands only what has no end.
pub fn seconds_ms(seconds: u32) -> u64 {
    if seconds > MAX_SECONDS { u64::MAX } else { u64::from(seconds) * 1000 }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT.
    const DATE_MS: WallMs = 784_111_777_000;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn freshness() -> Freshness {
        Freshness {
            received_at: 1_000_000,
            initial_age_ms: 2_000,
            lifetime_ms: 60_000,
            stale_while_revalidate_ms: 10_000,
            stale_if_error_ms: 30_000,
            must_revalidate: false,
            no_cache: false,
            by_rule: false,
        }
    }

    #[test]
    fn initial_age_takes_the_greater_of_age_and_date() {
        const OLDEST_MS: u64 = MAX_SECONDS as u64 * 1000 + 500;
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (fields, expected_ms) in [
            (&[("date", date)][..], 500),
            (&[("date", date), ("age", "10")], 10_500),
            (&[("date", "Sun, 06 Nov 1994 08:49:07 GMT"), ("age", "10")], 30_000),
            (&[("date", "Sun, 06 Nov 1994 09:49:37 GMT")], 500),
            (&[("date", "yesterday"), ("age", "7")], 7_500),
            (&[("age", "007 ")], 7_500),
            (&[("age", "0")], 500),
            (&[("age", "99999999999999999999")], OLDEST_MS),
            (&[("age", "7, 100")], OLDEST_MS),
            (&[("age", "0, 0")], OLDEST_MS),
            (&[("age", "7"), ("age", "7")], OLDEST_MS),
            (&[("age", "-7")], OLDEST_MS),
            (&[("age", "+7")], OLDEST_MS),
            (&[("age", "7s")], OLDEST_MS),
            (&[("age", "7;a=1")], OLDEST_MS),
            (&[("age", "7.0")], OLDEST_MS),
            (&[("age", "\"7\"")], OLDEST_MS),
            (&[("age", "")], OLDEST_MS),
            (&[], 500),
        ] {
            assert_eq!(initial_age_ms(&headers(fields), DATE_MS, DATE_MS + 500), expected_ms, "{fields:?}");
        }
    }

    #[test]
    fn a_date_within_its_own_second_is_no_age() {
        assert_eq!(
            initial_age_ms(&headers(&[("date", "Sun, 06 Nov 1994 08:49:37 GMT")]), DATE_MS + 999, DATE_MS + 999),
            0
        );
    }

    #[test]
    fn states_in_order_of_age() {
        let at = |now_ms: u64| freshness().evaluate(1_000_000 + now_ms, None, false);
        assert_eq!(at(0), State::Fresh { age_s: 2, ttl_left_ms: 58_000 });
        assert_eq!(at(57_999), State::Fresh { age_s: 59, ttl_left_ms: 1 });
        assert_eq!(at(58_000), State::StaleWhileRevalidate { age_s: 60, stale_ms: 0 });
        assert_eq!(at(68_000), State::StaleIfError { age_s: 70, stale_ms: 10_000 });
        assert_eq!(at(88_000), State::MustRevalidate);
    }

    #[test]
    fn what_forbids_stale_use() {
        let own = Freshness { must_revalidate: true, ..freshness() };
        let strict = Freshness { stale_while_revalidate_ms: 0, stale_if_error_ms: 0, ..own };
        assert!(matches!(strict.evaluate(1_000_000, None, false), State::Fresh { .. }));
        assert_eq!(strict.evaluate(1_058_000, None, false), State::MustRevalidate);
        let any = RequestDirectives { max_stale: Some(u32::MAX), stale_if_error: Some(60), ..Default::default() };
        assert_eq!(strict.evaluate(1_058_000, Some(&any), false), State::MustRevalidate);
        assert!(matches!(own.evaluate(1_058_000, Some(&any), false), State::StaleWhileRevalidate { .. }));
        assert!(matches!(own.evaluate(1_068_000, Some(&any), false), State::StaleIfError { .. }));
        assert_eq!(own.evaluate(1_088_000, Some(&any), false), State::MustRevalidate);
        let always = Freshness { no_cache: true, ..freshness() };
        assert_eq!(always.evaluate(1_000_000, None, false), State::MustRevalidate);
    }

    #[test]
    fn a_soft_invalidation_ends_the_lifetime_only() {
        assert_eq!(freshness().evaluate(1_000_000, None, true), State::StaleWhileRevalidate { age_s: 2, stale_ms: 0 });
        let no_window = Freshness { stale_while_revalidate_ms: 0, ..freshness() };
        assert!(matches!(no_window.evaluate(1_000_000, None, true), State::StaleIfError { .. }));
        let any = RequestDirectives { max_stale: Some(u32::MAX), ..Default::default() };
        assert!(matches!(no_window.evaluate(1_000_000, Some(&any), true), State::StaleIfError { .. }));
    }

    #[test]
    fn a_clock_that_stepped_back_is_noticed() {
        assert!(matches!(freshness().evaluate(1_000_000 - FUTURE_TOLERANCE_MS, None, false), State::Fresh { .. }));
        assert_eq!(freshness().evaluate(999_999 - FUTURE_TOLERANCE_MS, None, false), State::MustRevalidate);
    }

    #[test]
    fn honoured_directives() {
        let evaluate = |wanted: RequestDirectives, now| freshness().evaluate(now, Some(&wanted), false);
        let fresh = 1_008_000;
        assert_eq!(evaluate(RequestDirectives { no_cache: true, ..Default::default() }, fresh), State::MustRevalidate);
        for (max_age, hit) in [(9, false), (10, true), (0, false)] {
            let state = evaluate(RequestDirectives { max_age: Some(max_age), ..Default::default() }, fresh);
            assert_eq!(matches!(state, State::Fresh { .. }), hit, "{max_age}");
            assert!(hit || matches!(state, State::StaleIfError { .. }));
        }
        for (min_fresh, hit) in [(50, true), (51, false)] {
            let state = evaluate(RequestDirectives { min_fresh: Some(min_fresh), ..Default::default() }, fresh);
            assert_eq!(matches!(state, State::Fresh { .. }), hit, "{min_fresh}");
        }
        for (max_stale, used) in [(40, true), (39, false), (u32::MAX, true)] {
            let state = evaluate(RequestDirectives { max_stale: Some(max_stale), ..Default::default() }, 1_098_000);
            assert_eq!(matches!(state, State::StaleWhileRevalidate { .. }), used, "{max_stale}");
        }
        let state = evaluate(RequestDirectives { stale_if_error: Some(41), ..Default::default() }, 1_098_000);
        assert!(matches!(state, State::StaleIfError { .. }));
    }

    #[test]
    fn early_refresh_is_a_share_of_the_lifetime() {
        let lasting = |lifetime_ms| Freshness { initial_age_ms: 0, lifetime_ms, ..freshness() };
        assert!(!lasting(1_000).refreshes_early(1, 0));
        assert!(!lasting(4_999).refreshes_early(1, 0));
        assert!(lasting(5_000).refreshes_early(1_000, 0));
        assert!(!lasting(5_000).refreshes_early(1_001, 0));
        assert!(lasting(60_000).refreshes_early(6_000, 200));
        assert!(!lasting(60_000).refreshes_early(6_001, 200));
        assert!(lasting(10_000).refreshes_early(3_000, 2_000));
        assert!(!lasting(10_000).refreshes_early(5_001, 60_000), "never over half");
    }

    proptest! {
        #[test]
        fn waiting_never_makes_an_answer_fresher(
            lifetime_ms in 0_u64..100_000, swr in 0_u64..50_000, sie in 0_u64..50_000, age in 0_u64..50_000,
            first in 0_u64..200_000, later in 0_u64..200_000, must_revalidate: bool,
        ) {
            let freshness = Freshness {
                received_at: 1_000_000, initial_age_ms: age, lifetime_ms, stale_while_revalidate_ms: swr,
                stale_if_error_ms: sie, must_revalidate, no_cache: false, by_rule: false,
            };
            let rank = |at| match freshness.evaluate(1_000_000 + at, None, false) {
                State::Fresh { .. } => 0,
                State::StaleWhileRevalidate { .. } => 1,
                State::StaleIfError { .. } => 2,
                State::MustRevalidate => 3,
            };
            prop_assert!(rank(first) <= rank(first + later));
        }

        #[test]
        fn extremes_do_not_overflow(values in prop::array::uniform5(any::<u64>()), now: u64, max_age: u32) {
            let freshness = Freshness {
                received_at: values[0], initial_age_ms: values[1], lifetime_ms: values[2],
                stale_while_revalidate_ms: values[3], stale_if_error_ms: values[4],
                must_revalidate: false, no_cache: false, by_rule: false,
            };
            let wanted = RequestDirectives { max_age: Some(max_age), max_stale: Some(max_age), ..Default::default() };
            let _ = freshness.evaluate(now, Some(&wanted), false);
            let _ = freshness.refreshes_early(now, values[4]);
        }

        #[test]
        fn dates_survive_the_way_there_and_back(at in 0..LAST_DATE_MS) {
            prop_assert_eq!(http_date_ms(http_date(at).as_bytes()), Some(at / 1000 * 1000));
        }
    }
}
