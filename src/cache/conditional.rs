//! Conditional requests, both ways: the client's, answered from a stored entry (RFC 9110 section 13, RFC 9111 section
//! 4.3.2), and our own, which ask the upstream to confirm one (section 4.3.1).

use bytes::Bytes;
use http::header::{ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::entry::{Entry, opaque};
use super::fields::without;
use super::freshness::date_ms;

/// How a request is answered from an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The client has it already: 304 with [`not_modified_fields`].
    NotModified,
    /// With status, fields and body.
    Full,
}

/// Whether the client has what is stored. Only answers that went well are conditional (RFC 9110 section 13.2.1);
/// `If-Modified-Since` does not count beside `If-None-Match` (section 13.2.2).
pub fn evaluate(request: &HeaderMap, entry: &Entry) -> Reply {
    // Most requests have no condition, and one pass over their few fields costs less than two look-ups.
    let is_condition = |name: &HeaderName| *name == IF_NONE_MATCH || *name == IF_MODIFIED_SINCE;
    if !entry.status.is_success() || !request.keys().any(is_condition) {
        return Reply::Full;
    }
    let has_it = if request.contains_key(IF_NONE_MATCH) {
        request.get_all(IF_NONE_MATCH).iter().any(|value| names(value.as_bytes(), entry.etag()))
    } else {
        // The dates are read only if somebody asks about them: most requests do not.
        let modified_at = || entry.modified_at().unwrap_or_else(|| entry.date_at());
        date_ms(request, IF_MODIFIED_SINCE).is_some_and(|since| modified_at() / 1000 <= since / 1000)
    };
    if has_it { Reply::NotModified } else { Reply::Full }
}

/// Whether an `If-None-Match` value names the stored entity tag, compared weakly (RFC 9110 sections 8.8.3 and 13.1.2).
/// `*` names whatever is stored. What follows something that is no entity tag is not read.
fn names(list: &[u8], stored: Option<&[u8]>) -> bool {
    let mut rest = list.trim_ascii();
    if rest == b"*" {
        return true;
    }
    let Some(stored) = stored else { return false };
    loop {
        let start = rest.iter().position(|byte| !matches!(byte, b',' | b' ' | b'\t')).unwrap_or(rest.len());
        rest = &rest[start..];
        let Some(quoted) = opaque(rest).strip_prefix(b"\"") else { return false };
        let Some(close) = memchr::memchr(b'"', quoted) else { return false };
        let tag_length = rest.len() - quoted.len() + close + 1;
        if opaque(&rest[..tag_length]) == opaque(stored) {
            return true;
        }
        rest = &rest[tag_length..];
    }
}

/// The stored lines that a 304 carries: all but those that describe the body, which the client has (RFC 9110 section
/// 15.4.5). `Last-Modified` goes along only where there is no entity tag.
pub fn not_modified_fields(entry: &Entry) -> Bytes {
    let left_out = |name: &[u8]| match name {
        b"content-type" | b"content-encoding" | b"content-language" | b"content-range" | b"content-disposition" => true,
        b"last-modified" => entry.etag().is_some(),
        _ => false,
    };
    without(&entry.fields, left_out)
}

/// By what an entry may be confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Whatever it has.
    AnyValidator,
    /// A strong entity tag: the entry was invalidated, and `Last-Modified` and weak tags are too coarse to tell what it
    /// was before from what it is now.
    StrongTag,
}

/// Takes the client's conditions (and `Range`) off a request whose answer is to be stored: the cache needs all of it.
pub fn strip_conditions(request: &mut HeaderMap) {
    for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_MATCH, IF_UNMODIFIED_SINCE, IF_RANGE, RANGE] {
        request.remove(name);
    }
}

/// Puts the entry's validators on a request in the place of the client's conditions; whether it had any. If not, the
/// request asks for the whole answer.
pub fn ask_to_confirm(request: &mut HeaderMap, entry: &Entry, by: By) -> bool {
    strip_conditions(request);
    let strong = entry.etag().filter(|tag| tag.starts_with(b"\""));
    let (tag, date) = match by {
        By::AnyValidator => (entry.etag(), entry.last_modified()),
        By::StrongTag => (strong, None),
    };
    let mut any = false;
    for (name, validator) in [(IF_NONE_MATCH, tag), (IF_MODIFIED_SINCE, date)] {
        any |= validator.is_some_and(|value| insert(request, name, value));
    }
    any
}

/// Whether a 304 is an answer to [`ask_to_confirm`] that may be believed: it is about this entry, and says so by its
/// entity tag, if it has one.
pub fn confirms(answer: &HeaderMap, entry: &Entry, by: By) -> bool {
    let one_tag_at_most = answer.get_all(ETAG).iter().count() <= 1;
    let strong_enough = match by {
        By::AnyValidator => true,
        By::StrongTag => answer.get(ETAG).is_none_or(|tag| tag.as_bytes().starts_with(b"\"")),
    };
    one_tag_at_most && strong_enough && entry.confirmed_by(answer)
}

fn insert(request: &mut HeaderMap, name: HeaderName, value: &[u8]) -> bool {
    HeaderValue::from_bytes(value).is_ok_and(|value| {
        request.insert(name, value);
        true
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use proptest::prelude::*;

    use super::*;
    use crate::cache::entry::tests::entry;

    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn reply(stored: &[(&'static str, &str)], request: &[(&'static str, &str)]) -> Reply {
        evaluate(&headers(request), &entry(200, stored, "body"))
    }

    #[test]
    fn entity_tags() {
        for (stored, list, expected) in [
            ("\"a\"", "\"a\"", Reply::NotModified),
            ("\"a\"", "W/\"a\"", Reply::NotModified),
            ("W/\"a\"", "\"a\"", Reply::NotModified),
            ("\"a\"", "\"b\"", Reply::Full),
            ("\"a\"", "\"b\", W/\"c\",\"a\"", Reply::NotModified),
            ("\"a,b\"", "\"a,b\"", Reply::NotModified),
            ("\"b\"", "\"a,\"b\"", Reply::Full),
            ("\"a\"", "*", Reply::NotModified),
            ("\"a\"", "\"*\"", Reply::Full),
            ("\"a\"", "a", Reply::Full),
            ("\"a\"", "\"a", Reply::Full),
            ("\"a\"", "w/\"a\"", Reply::Full),
            ("\"\"", "\"\"", Reply::NotModified),
            ("\"a\"", "", Reply::Full),
            ("\"a\"", " , ,\"a\"", Reply::NotModified),
        ] {
            assert_eq!(reply(&[("etag", stored)], &[("if-none-match", list)]), expected, "{stored} {list}");
        }
        assert_eq!(
            reply(&[("etag", "\"a\"")], &[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")]),
            Reply::NotModified
        );
        assert_eq!(reply(&[], &[("if-none-match", "\"a\"")]), Reply::Full);
        assert_eq!(reply(&[], &[("if-none-match", "*")]), Reply::NotModified);
    }

    #[test]
    fn dates() {
        for (stored, since, expected) in [
            (&[("last-modified", DATE)][..], DATE, Reply::NotModified),
            (&[("last-modified", DATE)], AFTER, Reply::NotModified),
            (&[("last-modified", DATE)], BEFORE, Reply::Full),
            (&[("last-modified", DATE)], "tomorrow", Reply::Full),
            (&[("last-modified", "x"), ("date", DATE)], DATE, Reply::NotModified),
            (&[("date", DATE)], BEFORE, Reply::Full),
        ] {
            assert_eq!(reply(stored, &[("if-modified-since", since)]), expected, "{stored:?} {since}");
        }
        assert_eq!(reply(&[], &[]), Reply::Full);
    }

    #[test]
    fn tags_come_before_dates_and_only_success_is_conditional() {
        let both = [("etag", "\"a\""), ("last-modified", DATE)];
        assert_eq!(reply(&both, &[("if-none-match", "\"b\""), ("if-modified-since", AFTER)]), Reply::Full);
        assert_eq!(reply(&both, &[("if-none-match", "\"a\""), ("if-modified-since", BEFORE)]), Reply::NotModified);
        let missing = entry(404, &both, "");
        assert_eq!(evaluate(&headers(&[("if-none-match", "\"a\"")]), &missing), Reply::Full);
        assert_eq!(missing.status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_304_says_nothing_of_the_body() {
        let stored = entry(
            200,
            &[
                ("content-type", "text/plain"),
                ("content-encoding", "gzip"),
                ("etag", "\"a\""),
                ("last-modified", DATE),
                ("vary", "accept"),
                ("date", DATE),
                ("content-location", "/a"),
            ],
            "body",
        );
        let lines = format!("etag: \"a\"\r\nvary: accept\r\ndate: {DATE}\r\ncontent-location: /a\r\n");
        assert_eq!(not_modified_fields(&stored), lines);
        let untagged = entry(200, &[("last-modified", DATE), ("date", DATE)], "body");
        assert_eq!(not_modified_fields(&untagged), format!("last-modified: {DATE}\r\ndate: {DATE}\r\n"));
    }

    #[test]
    fn what_the_upstream_is_asked() {
        let both = entry(200, &[("etag", "\"a\""), ("last-modified", DATE)], "");
        let weak = entry(200, &[("etag", "W/\"a\""), ("last-modified", DATE)], "");
        let none = entry(200, &[("last-modified", "x"), ("etag", "\"a\""), ("etag", "\"b\"")], "");
        let client =
            headers(&[("if-none-match", "\"z\""), ("if-range", "\"z\""), ("range", "bytes=0-"), ("accept", "x")]);
        for (entry, by, expected) in [
            (&both, By::AnyValidator, (Some("\"a\""), Some(DATE))),
            (&both, By::StrongTag, (Some("\"a\""), None)),
            (&weak, By::AnyValidator, (Some("W/\"a\""), Some(DATE))),
            (&weak, By::StrongTag, (None, None)),
            (&none, By::AnyValidator, (None, None)),
        ] {
            let mut request = client.clone();
            let any = ask_to_confirm(&mut request, entry, by);
            let value = |name| request.get(name).map(|value: &HeaderValue| value.to_str().unwrap());
            assert_eq!((value(IF_NONE_MATCH), value(IF_MODIFIED_SINCE)), expected);
            assert_eq!(any, expected != (None, None));
            assert!(!request.contains_key(RANGE) && !request.contains_key(IF_RANGE) && request.contains_key("accept"));
        }
    }

    #[test]
    fn which_304_is_believed() {
        let strong = entry(200, &[("etag", "\"a\""), ("last-modified", DATE)], "");
        let dated = entry(200, &[("last-modified", DATE)], "");
        for (entry, answer, by, expected) in [
            (&strong, &[("etag", "\"a\"")][..], By::StrongTag, true),
            (&strong, &[], By::StrongTag, true),
            (&strong, &[("etag", "W/\"a\"")], By::StrongTag, false),
            (&strong, &[("etag", "W/\"a\"")], By::AnyValidator, true),
            (&strong, &[("etag", "\"b\"")], By::AnyValidator, false),
            (&strong, &[("etag", "\"a\""), ("etag", "\"b\"")], By::AnyValidator, false),
            (&dated, &[("etag", "\"a\"")], By::AnyValidator, false),
            (&dated, &[("last-modified", DATE)], By::AnyValidator, true),
            (&dated, &[("last-modified", AFTER)], By::AnyValidator, false),
            (&dated, &[], By::AnyValidator, true),
        ] {
            assert_eq!(confirms(&headers(answer), entry, by), expected, "{answer:?} {by:?}");
        }
    }

    proptest! {
        #[test]
        fn any_condition_is_survived(list in "[ -~]{0,60}", date in "[ -~]{0,40}") {
            let _ = reply(&[("etag", "\"a\"")], &[("if-none-match", &list)]);
            let _ = reply(&[("last-modified", DATE)], &[("if-modified-since", &date)]);
        }

        #[test]
        fn a_listed_tag_is_found_wherever_it_stands(
            tags in prop::collection::vec("(W/)?\"[!a-z,]{0,4}\"", 1..6), at in 0_usize..6,
        ) {
            let stored = tags[at % tags.len()].clone();
            prop_assert_eq!(reply(&[("etag", &stored)], &[("if-none-match", &tags.join(", "))]), Reply::NotModified);
        }
    }
}
