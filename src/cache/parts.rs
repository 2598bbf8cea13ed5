//! Parts of representations that are not stored whole: how they are told from what is no part, joined, and completed
//! (RFC 9111 sections 3.3 and 3.4, RFC 9110 sections 14.4 and 15.3.7.3).
//!
//! A part answers what lies wholly within it. Two become one only where a strong entity tag says that they are of the
//! same bytes; a part without one is used as it is.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_RANGE, ETAG, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::conditional;
use super::entry::{Entry, Part};
use super::freshness::Freshness;
use super::ranges::{self, Selection};

/// A part is joined with one that has up to so many times its bytes: with a larger one, each byte of it would cost more to
/// copy than to fetch.
const LEAST_SHARE: u64 = 16;

/// Where the parts of `primary` are stored: no key of anything else ends like this, since every part of one has its length
/// in front.
pub fn key(primary: &[u8]) -> Vec<u8> {
    [primary, SUFFIX].concat()
}

const SUFFIX: &[u8] = b"part";

/// The primary key that a part's [`key`] was made of.
pub fn primary(key: &[u8]) -> &[u8] {
    key.strip_suffix(SUFFIX).unwrap_or(key)
}

/// Which bytes of how many an answer with status 206 holds, if it says so once and readably, and knows the whole's length.
/// A `multipart/byteranges` says it in its body, which is not looked into.
pub fn described(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let mut lines = headers.get_all(CONTENT_RANGE).iter();
    let (Some(only), None) = (lines.next(), lines.next()) else { return None };
    let (unit, rest) = only.as_bytes().split_at_checked("bytes ".len())?;
    if !unit.eq_ignore_ascii_case(b"bytes ") {
        return None;
    }
    let (range, complete) = std::str::from_utf8(rest).ok()?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let digits = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (first, last, complete) = (digits(first)?, digits(last)?, digits(complete)?);
    (first <= last && last < complete).then(|| (first..last + 1, complete))
}

/// What a GET selects of a part; nothing if it asks for anything beyond it, or for nothing in particular.
pub fn select(request: &HeaderMap, entry: &Entry) -> Option<Selection> {
    let part = entry.part?;
    let complete = usize::try_from(part.complete).ok()?;
    let first = usize::try_from(part.first).ok()?;
    let here = first..first + entry.body.len();
    let lies_here = |range: &Range<usize>| here.start <= range.start && range.end <= here.end;
    match ranges::select_of(request, entry, complete) {
        Selection::One(range) if lies_here(&range) => Some(Selection::One(range)),
        Selection::Several(ranges) if ranges.iter().all(lies_here) => Some(Selection::Several(ranges)),
        _ => None,
    }
}

/// Whether an answer's part is of the same bytes as `entry`, by a strong entity tag.
pub fn is_of_the_same(answer: &HeaderMap, entry: &Entry) -> bool {
    let mut tags = answer.get_all(ETAG).iter();
    match (tags.next(), tags.next()) {
        (Some(tag), None) => Some(tag.as_bytes()) == entry.strong_etag(),
        _ => false,
    }
}

/// Whether a part of so many bytes is worth being joined with `earlier`: all of them are copied for it.
pub fn is_worth_joining(bytes: u64, earlier: &Entry) -> bool {
    bytes.saturating_mul(LEAST_SHARE) >= earlier.body.len() as u64
}

/// The fields of an answer with a part, as they are kept: over those of an earlier part of the same bytes, since an upstream
/// may leave out what it thinks the client has (RFC 9110 sections 15.3.7 and 15.3.7.3); without those that sum up the bytes
/// of one message (RFC 9530 section 2), or say where they stand.
pub fn fields(answer: &HeaderMap, earlier: Option<&Entry>) -> HeaderMap {
    let earlier = earlier.filter(|earlier| is_of_the_same(answer, earlier));
    let mut fields = earlier.map_or_else(|| answer.clone(), |earlier| earlier.merged(answer));
    for name in [CONTENT_RANGE, HeaderName::from_static("content-digest"), HeaderName::from_static("content-md5")] {
        fields.remove(name);
    }
    fields
}

/// One entry of two parts that touch: the later one's head over both bodies. It is a whole where nothing is missing any
/// more. `None` if they are not known to be of the same bytes, do not touch, or have more than `most` together.
pub fn joined(earlier: &Entry, later: &Entry, most: usize) -> Option<Entry> {
    let (before, after) = (earlier.part?, later.part?);
    let same = before.complete == after.complete && later.strong_etag().is_some();
    if !same || later.strong_etag() != earlier.strong_etag() {
        return None;
    }
    let (low, high) = if before.first <= after.first { (earlier, later) } else { (later, earlier) };
    let (low_part, high_part) = (low.part?, high.part?);
    let overlap = (low_part.first + low.body.len() as u64).checked_sub(high_part.first)?;
    let behind = high.body.get(usize::try_from(overlap).ok()?..).unwrap_or_default();
    if low.body.len() + behind.len() > most {
        return None;
    }
    let mut body = BytesMut::with_capacity(low.body.len() + behind.len());
    body.extend_from_slice(&low.body);
    body.extend_from_slice(behind);
    let by_rule = earlier.freshness.by_rule || later.freshness.by_rule;
    let freshness = Freshness { by_rule, ..later.freshness };
    Some(Entry { part: Some(low_part), freshness, ..later.clone() }.with_body(body.freeze()))
}

/// The whole that a part has become, under the primary key; `None` while something is missing.
pub fn whole(entry: &Entry, primary: &[u8]) -> Option<Entry> {
    let part = entry.part?;
    let is_whole = part.first == 0 && part.complete == entry.body.len() as u64;
    is_whole.then(|| Entry {
        key: Bytes::copy_from_slice(primary),
        status: StatusCode::OK,
        part: None,
        ..entry.clone()
    })
}

/// What a part lacks of the whole, where one more part would complete it and is sure to be of the same bytes.
pub fn rest(entry: &Entry) -> Option<Range<u64>> {
    let part = entry.part?;
    entry.strong_etag()?;
    let end = part.first + entry.body.len() as u64;
    match (part.first, end) {
        (0, end) if end < part.complete => Some(end..part.complete),
        (first, end) if end == part.complete && first > 0 => Some(0..first),
        _ => None,
    }
}

/// Makes a request for the whole one for what `entry` lacks, in the place of the client's conditions: should the
/// representation have changed, the whole comes (RFC 9110 section 13.1.5). Whether it could.
pub fn ask_for_rest(request: &mut HeaderMap, entry: &Entry) -> bool {
    let (Some(rest), Some(tag)) = (rest(entry), entry.strong_etag()) else { return false };
    // To the end is said without a number, as most clients do.
    let is_tail = rest.start > 0;
    let range = if is_tail { format!("bytes={}-", rest.start) } else { format!("bytes=0-{}", rest.end - 1) };
    let (Ok(range), Ok(tag)) = (HeaderValue::try_from(range), HeaderValue::from_bytes(tag)) else { return false };
    conditional::strip_conditions(request);
    request.insert(RANGE, range);
    request.insert(IF_RANGE, tag);
    true
}

/// Whether an answer is the rest that [`ask_for_rest`] asked for.
pub fn completes<B: http_body::Body>(answer: &Response<B>, entry: &Entry) -> bool {
    let is_as_long = |range: &Range<u64>| {
        let length = answer.body().size_hint().exact();
        length.is_none_or(|length| length == range.end - range.start)
    };
    let is_rest = described(answer.headers()).is_some_and(|(range, complete)| {
        let is_missing = is_as_long(&range) && Some(range) == rest(entry);
        is_missing && Some(complete) == entry.part.map(|part| part.complete)
    });
    answer.status() == StatusCode::PARTIAL_CONTENT && is_rest && is_of_the_same(answer.headers(), entry)
}

/// A part's place as an entry has it.
pub fn place(range: &Range<u64>, complete: u64) -> Part {
    Part { first: range.start, complete }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;
    use crate::cache::entry::tests::entry;

    const WHOLE: &str = "0123456789";

    fn part(range: Range<usize>, fields: &[(&'static str, &str)]) -> Entry {
        let part = Part { first: range.start as u64, complete: WHOLE.len() as u64 };
        Entry { part: Some(part), ..entry(206, fields, &WHOLE[range]) }
    }

    fn tagged(range: Range<usize>) -> Entry {
        part(range, &[("etag", "\"a\"")])
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(line).collect()
    }

    #[test]
    fn descriptions() {
        for (value, expected) in [
            ("bytes 0-4/10", Some((0..5, 10))),
            ("Bytes 5-9/10", Some((5..10, 10))),
            ("bytes 5-10/10", None),
            ("bytes 5-4/10", None),
            ("bytes 0-4/*", None),
            ("bytes */10", None),
            ("bytes 0-4", None),
            ("bytes=0-4/10", None),
            ("bytes +0-4/10", None),
            ("bytes 0-4/99999999999999999999", None),
            ("lines 0-4/10", None),
            ("", None),
        ] {
            assert_eq!(described(&headers(&[("content-range", value)])), expected, "{value}");
        }
        let mut twice = headers(&[("content-range", "bytes 0-4/10")]);
        twice.append(CONTENT_RANGE, HeaderValue::from_static("bytes 0-4/10"));
        assert_eq!(described(&twice), None);
    }

    #[test]
    fn a_part_answers_what_lies_within_it() {
        let stored = tagged(2..8);
        for (range, expected) in [
            ("bytes=2-7", Some(Selection::One(2..8))),
            ("bytes=3-4", Some(Selection::One(3..5))),
            ("bytes=2-3, 6-7", Some(Selection::Several(vec![2..4, 6..8]))),
            ("bytes=1-4", None),
            ("bytes=3-8", None),
            ("bytes=3-", None),
            ("bytes=-3", None),
            ("bytes=2-3, 8-9", None),
            ("bytes=20-", None),
            ("bytes=5-3", None),
        ] {
            assert_eq!(select(&headers(&[("range", range)]), &stored), expected, "{range}");
        }
        assert_eq!(select(&headers(&[("range", "bytes=-3")]), &tagged(5..10)), Some(Selection::One(7..10)));
        let held = |tag| select(&headers(&[("range", "bytes=3-4"), ("if-range", tag)]), &stored).is_some();
        assert!(held("\"a\"") && !held("\"b\""));
        assert_eq!(select(&headers(&[]), &stored), None, "the whole is not here");
    }

    #[test]
    fn only_the_same_bytes_are_joined() {
        let other = part(4..10, &[("etag", "\"b\"")]);
        let weak = |range| part(range, &[("etag", "W/\"a\"")]);
        let untagged = |range| part(range, &[]);
        let longer = Entry { part: Some(Part { first: 4, complete: 11 }), ..tagged(4..10) };
        for (earlier, later) in [
            (tagged(0..5), other),
            (weak(0..5), weak(4..10)),
            (untagged(0..5), untagged(4..10)),
            (tagged(0..5), longer),
            (tagged(0..5), tagged(6..10)),
        ] {
            assert_eq!(joined(&earlier, &later, 100), None, "{:?} {:?}", earlier.part, later.part);
        }
        assert_eq!(joined(&tagged(0..5), &tagged(5..10), 9), None, "too large");
    }

    #[test]
    fn what_is_missing() {
        assert_eq!(rest(&tagged(0..4)), Some(4..10));
        assert_eq!(rest(&tagged(4..10)), Some(0..4));
        assert_eq!(rest(&tagged(4..6)), None, "two parts are missing");
        assert_eq!(rest(&part(0..4, &[])), None, "nothing would tell whether it is of the same bytes");
        for (stored, range) in [(tagged(0..4), "bytes=4-"), (tagged(4..10), "bytes=0-3")] {
            let mut request = headers(&[("if-none-match", "\"z\""), ("range", "bytes=1-1")]);
            assert!(ask_for_rest(&mut request, &stored));
            assert_eq!(request, headers(&[("range", range), ("if-range", "\"a\"")]));
        }
        let of = |status, fields| {
            let mut answer = Response::new(crate::message::Body::Full(Bytes::from_static(b"456789")));
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            *answer.headers_mut() = fields;
            answer
        };
        let answer = |described, tag| of(206, headers(&[("content-range", described), ("etag", tag)]));
        assert!(completes(&answer("bytes 4-9/10", "\"a\""), &tagged(0..4)));
        assert!(!completes(&answer("bytes 4-9/10", "\"b\""), &tagged(0..4)));
        assert!(!completes(&answer("bytes 5-9/10", "\"a\""), &tagged(0..4)));
        assert!(!completes(&answer("bytes 4-9/11", "\"a\""), &tagged(0..4)));
        assert!(!completes(&of(206, headers(&[("content-range", "bytes 4-9/10")])), &tagged(0..4)));
        let mut short = answer("bytes 4-9/10", "\"a\"");
        *short.body_mut() = crate::message::Body::Full(Bytes::from_static(b"45678"));
        assert!(!completes(&short, &tagged(0..4)));
        let whole = of(200, headers(&[("content-range", "bytes 4-9/10"), ("etag", "\"a\"")]));
        assert!(!completes(&whole, &tagged(0..4)));
    }

    #[test]
    fn a_lean_part_takes_the_fields_of_the_one_before() {
        let stored =
            part(0..4, &[("etag", "\"a\""), ("content-type", "text/plain"), ("surrogate-key", "t"), ("x-a", "1")]);
        let lean = headers(&[
            ("etag", "\"a\""),
            ("x-a", "2"),
            ("content-range", "bytes 4-9/10"),
            ("content-digest", "sha-256=:AA==:"),
        ]);
        let kept = fields(&lean, Some(&stored));
        let expected = [("etag", "\"a\""), ("content-type", "text/plain"), ("surrogate-key", "t"), ("x-a", "2")];
        assert_eq!(kept, headers(&expected));
        let other = part(0..4, &[("etag", "\"b\""), ("content-type", "text/plain")]);
        assert_eq!(fields(&lean, Some(&other)), headers(&[("etag", "\"a\""), ("x-a", "2")]));
        let by_rule = |by_rule| {
            let part = tagged(0..4);
            Entry { freshness: Freshness { by_rule, ..part.freshness }, ..part }
        };
        for (one, other) in [(true, false), (false, true), (true, true)] {
            let other = Entry { freshness: by_rule(other).freshness, ..tagged(4..10) };
            assert!(joined(&by_rule(one), &other, 100).unwrap().freshness.by_rule);
        }
    }

    proptest! {
        #[test]
        fn joining_keeps_every_byte_in_its_place(a in 0_usize..10, b in 0_usize..10, c in 0_usize..10, d in 0_usize..10) {
            let (one, other) = (a.min(b)..a.max(b) + 1, c.min(d)..c.max(d) + 1);
            let touches = one.start <= other.end && other.start <= one.end;
            match joined(&tagged(one.clone()), &tagged(other.clone()), 100) {
                None => prop_assert!(!touches),
                Some(both) => {
                    let span = one.start.min(other.start)..one.end.max(other.end);
                    prop_assert!(touches);
                    prop_assert_eq!(both.part.unwrap().first, span.start as u64);
                    prop_assert_eq!(&both.body[..], WHOLE[span.clone()].as_bytes());
                    let is_whole = span == (0..10);
                    prop_assert_eq!(whole(&both, b"key").map(|whole| (whole.status.as_u16(), whole.part)), is_whole.then_some((200, None)));
                }
            }
        }
    }
}
