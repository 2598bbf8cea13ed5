//! Ranges of a stored answer (RFC 9110 section 14): which parts of it a request selects, and how they are sent.

use std::ops::Range;

use http::HeaderMap;
use http::header::{IF_RANGE, RANGE};

use super::entry::Entry;
use super::freshness::http_date_ms;

/// Most ranges that one request may select; one that asks for more gets the whole (RFC 9110 section 14.2 lets a server
/// ignore what wastes its work).
pub const MAX_RANGES: usize = 16;

/// What of a stored answer a request selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All of it: 200.
    Whole,
    /// One part: 206 with `Content-Range`.
    One(Range<usize>),
    /// Several that do not overlap, in the order in which they were asked for: 206 as `multipart/byteranges`.
    Several(Vec<Range<usize>>),
    /// None of what was asked for is there: 416.
    Nothing,
}

/// What a GET with these fields selects of `entry`, which is a whole answer with status 200.
///
/// A `Range` that cannot be read, or whose `If-Range` does not hold, selects the whole (section 14.2).
pub fn select(request: &HeaderMap, entry: &Entry) -> Selection {
    // A whole that calls itself a part has no meaning (section 14.4), and is not cut again.
    if entry.has(b"content-range") {
        return Selection::Whole;
    }
    select_of(request, entry, entry.body.len())
}

/// [`select`] of the representation that `entry` is of, which has `complete` bytes.
pub(super) fn select_of(request: &HeaderMap, entry: &Entry, complete: usize) -> Selection {
    let mut ranges = request.get_all(RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return Selection::Whole };
    if !same_representation(request, entry) {
        return Selection::Whole;
    }
    parse(range.as_bytes(), complete).unwrap_or(Selection::Whole)
}

/// Whether `If-Range`, if there is one, names what is stored: the same strong entity tag, or the same date where it is
/// a strong validator (sections 8.8.2.2 and 13.1.5).
fn same_representation(request: &HeaderMap, entry: &Entry) -> bool {
    let mut conditions = request.get_all(IF_RANGE).iter();
    let condition = match (conditions.next(), conditions.next()) {
        (None, _) => return true,
        (Some(condition), None) => condition.as_bytes(),
        (Some(_), Some(_)) => return false,
    };
    if condition.starts_with(b"\"") {
        return entry.etag() == Some(condition);
    }
    let is_strong = || entry.modified_at().is_some_and(|modified| modified + 1000 <= entry.date_at());
    http_date_ms(condition).is_some() && entry.last_modified() == Some(condition) && is_strong()
}

/// Reads a `Range` of bytes of a representation of `length` bytes; `None` is one that selects nothing in particular.
fn parse(value: &[u8], length: usize) -> Option<Selection> {
    let (unit, set) = value.split_at_checked("bytes=".len())?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut asked = 0;
    for spec in set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|spec| !spec.is_empty()) {
        asked += 1;
        if asked > MAX_RANGES {
            return None;
        }
        ranges.extend(one(spec, length)?);
    }
    match ranges.len() {
        0 if asked == 0 => return None,
        0 => return Some(Selection::Nothing),
        1 => {}
        _ => ranges = apart(ranges),
    }
    Some(if let [only] = &ranges[..] { Selection::One(only.clone()) } else { Selection::Several(ranges) })
}

/// One `first-last`, `first-` or `-suffix`; the outer `None` is no range at all, the inner one lies behind the end.
#[expect(clippy::option_option, reason = "the two are told apart one line above")]
fn one(spec: &[u8], length: usize) -> Option<Option<Range<usize>>> {
    let dash = memchr::memchr(b'-', spec)?;
    let (first, last) = (&spec[..dash], &spec[dash + 1..]);
    if first.is_empty() {
        let suffix = position(last)?;
        // Nothing is there to be a part of: an empty representation is sent whole.
        return if length == 0 { None } else { Some((suffix > 0).then(|| length - suffix.min(length)..length)) };
    }
    let first = position(first)?;
    let last = if last.is_empty() { usize::MAX } else { position(last)? };
    if last < first {
        return None;
    }
    Some((first < length).then(|| first..last.saturating_add(1).min(length)))
}

/// Digits; what is too large for a position is behind every end.
fn position(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_usize, |sum, digit| {
        digit.is_ascii_digit().then(|| sum.saturating_mul(10).saturating_add(usize::from(digit - b'0')))
    })
}

/// Ranges that overlap or touch become one (section 14.2 permits it, section 17.15 recommends it): no byte is sent twice.
fn apart(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut sorted = ranges.clone();
    sorted.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    if merged.len() == ranges.len() { ranges } else { merged }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::cache::entry::tests::entry;

    #[test]
    fn selections() {
        use Selection::{Nothing, One, Several};
        for (value, expected) in [
            ("bytes=0-0", Some(One(0..1))),
            ("bytes=0-", Some(One(0..10))),
            ("bytes=3-5", Some(One(3..6))),
            ("bytes=3-500", Some(One(3..10))),
            ("bytes=9-9", Some(One(9..10))),
            ("bytes=-1", Some(One(9..10))),
            ("bytes=-500", Some(One(0..10))),
            ("Bytes=1-2", Some(One(1..3))),
            ("bytes= 1-2 , ,", Some(One(1..3))),
            ("bytes=99999999999999999999999-", Some(Nothing)),
            ("bytes=0-99999999999999999999999", Some(One(0..10))),
            ("bytes=10-", Some(Nothing)),
            ("bytes=-0", Some(Nothing)),
            ("bytes=20-30, -0", Some(Nothing)),
            ("bytes=20-30, 1-2", Some(One(1..3))),
            ("bytes=0-1, 4-5", Some(Several(vec![0..2, 4..6]))),
            ("bytes=4-5, 0-1", Some(Several(vec![4..6, 0..2]))),
            ("bytes=4-8, 0-5", Some(One(0..9))),
            ("bytes=0-1, 2-3, 8-", Some(Several(vec![0..4, 8..10]))),
            ("bytes=", None),
            ("bytes=,", None),
            ("bytes", None),
            ("bytes=5-3", None),
            ("bytes=0-1, 5-3", None),
            ("bytes=a-b", None),
            ("bytes=-", None),
            ("bytes=1", None),
            ("bytes=+1-2", None),
            ("bytes=1-2-3", None),
            ("bytes 1-2", None),
            ("items=0-1", None),
        ] {
            assert_eq!(parse(value.as_bytes(), 10), expected, "{value}");
        }
        let many = format!("bytes={}", vec!["0-1"; MAX_RANGES + 1].join(","));
        assert_eq!(parse(many.as_bytes(), 10), None);
        assert_eq!(parse(b"bytes=-5", 0), None);
        assert_eq!(parse(b"bytes=0-", 0), Some(Nothing));
    }

    #[test]
    fn if_range_names_what_is_stored() {
        const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
        let asked = |condition: Option<&str>, fields: &[(&'static str, &str)]| {
            let mut request = HeaderMap::new();
            request.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
            if let Some(condition) = condition {
                request.insert(IF_RANGE, HeaderValue::from_str(condition).unwrap());
            }
            select(&request, &entry(200, fields, "body")) != Selection::Whole
        };
        let tagged = [("etag", "\"a\""), ("date", DATE), ("last-modified", MODIFIED)];
        assert!(asked(None, &tagged));
        assert!(asked(Some("\"a\""), &tagged));
        assert!(!asked(Some("\"b\""), &tagged));
        assert!(!asked(Some("W/\"a\""), &tagged));
        assert!(!asked(Some("W/\"a\""), &[("etag", "W/\"a\"")]));
        assert!(asked(Some(MODIFIED), &tagged));
        assert!(!asked(Some(DATE), &tagged));
        assert!(!asked(Some(DATE), &[("date", DATE), ("last-modified", DATE)]), "modified in the second it was sent");
        assert!(!asked(Some("yesterday"), &[("last-modified", "yesterday")]));
    }

    proptest! {
        #[test]
        fn what_is_selected_is_there_and_sent_once(value in "bytes=([0-9]{0,3}-[0-9]{0,3}[, ]{0,2}){0,6}", length in 0_usize..200) {
            let ranges = match parse(value.as_bytes(), length) {
                Some(Selection::One(range)) => vec![range],
                Some(Selection::Several(ranges)) => {
                    prop_assert!(ranges.len() > 1);
                    ranges
                }
                _ => Vec::new(),
            };
            let mut sent = vec![false; length];
            for at in ranges.into_iter().flat_map(|range| { assert!(!range.is_empty()); range }) {
                prop_assert!(!std::mem::replace(&mut sent[at], true));
            }
        }

        #[test]
        fn any_bytes_are_survived(value in prop::collection::vec(any::<u8>(), 0..64), length: usize) {
            let _ = parse(&[b"bytes=", &value[..]].concat(), length);
        }
    }
}
