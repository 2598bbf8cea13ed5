//! Stored field lines: made once when an answer is stored, read in place, sent as they are.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, header};

use super::freshness::http_date;
use crate::clock::WallMs;

/// The field lines of an answer as [`crate::message::Answer`] wants them prepared: names in lower case, each line ended by
/// CRLF, without what belongs to one connection or one message (RFC 9111 section 3.1), without `Age`, which the reader
/// computes, and with a `Date` (RFC 9110 section 6.6.1) of `received_at` where there was none.
pub fn prepare(headers: &HeaderMap, received_at: WallMs) -> Bytes {
    let named = headers.get_all(header::CONNECTION);
    let named_by_connection = |name: &HeaderName| {
        let mut members = named.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        members.any(|member| member.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    };
    let kept = |name: &HeaderName| !of_one_message(name) && (is_protected(name) || !named_by_connection(name));
    let date = (!headers.contains_key(header::DATE)).then(|| http_date(received_at));
    let dated = date.iter().map(|value| (&header::DATE, value));
    let all = || headers.iter().filter(|(name, _)| kept(name)).chain(dated.clone());

    let size = all().map(|(name, value)| name.as_str().len() + value.len() + LINE_EXTRA).sum();
    let mut out = BytesMut::with_capacity(size);
    for (name, value) in all() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.freeze()
}

/// Bytes of a line beside name and value.
const LINE_EXTRA: usize = ": \r\n".len();

/// Fields that are about one connection, one hop or one message's framing.
fn of_one_message(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "age"
            | "connection"
            | "content-length"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Fields that `Connection` may not name: without them a stored answer would be used where it must not.
fn is_protected(name: &HeaderName) -> bool {
    [header::CACHE_CONTROL, header::VARY, header::DATE, header::EXPIRES, header::CONTENT_ENCODING, header::CONTENT_TYPE]
        .contains(name)
}

/// Where name and value of each line are; ends at the first that is none.
pub fn lines(fields: &[u8]) -> Lines<'_> {
    Lines { fields, at: 0 }
}

/// See [`lines`].
pub struct Lines<'a> {
    fields: &'a [u8],
    at: usize,
}

impl Lines<'_> {
    /// How many bytes have been read as lines.
    pub fn read(&self) -> usize {
        self.at
    }
}

impl Iterator for Lines<'_> {
    type Item = (Range<usize>, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.fields[self.at..];
        let end = memchr::memchr(b'\r', rest)?;
        let colon = memchr::memchr(b':', &rest[..end])?;
        if rest.get(colon + 1) != Some(&b' ') || rest.get(end + 1) != Some(&b'\n') {
            return None;
        }
        let start = self.at;
        self.at += end + 2;
        Some((start..start + colon, start + colon + 2..start + end))
    }
}

/// The lines of `fields` whose names, in lower case, are not left out.
pub fn without(fields: &[u8], is_left_out: impl Fn(&[u8]) -> bool) -> Bytes {
    let mut out = BytesMut::with_capacity(fields.len());
    for (name, value) in lines(fields).filter(|(name, _)| !is_left_out(&fields[name.clone()])) {
        out.extend_from_slice(&fields[name.start..value.end + "\r\n".len()]);
    }
    out.freeze()
}

/// Whether these are whole field lines that can be sent as they are: names in lower case, and nothing in a value that
/// could begin another line (RFC 9110 section 5.5).
pub fn are_lines(fields: &[u8]) -> bool {
    let mut lines = lines(fields);
    let sound = lines.by_ref().all(|(name, value)| {
        !name.is_empty()
            && fields[name].iter().all(|byte| IS_NAME[usize::from(*byte)])
            && fields[value].iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
    });
    sound && lines.read() == fields.len()
}

/// Bytes of a token (RFC 9110 section 5.6.2) but for capitals.
static IS_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let bytes = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
    let mut at = 0;
    while at < bytes.len() {
        table[bytes[at] as usize] = true;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn what_is_of_one_message_is_left_out() {
        let prepared = prepare(
            &headers(&[
                ("content-type", "text/plain"),
                ("connection", "x-hop, Cache-Control"),
                ("x-hop", "1"),
                ("cache-control", "no-cache"),
                ("transfer-encoding", "chunked"),
                ("content-length", "4"),
                ("age", "7"),
                ("keep-alive", "1"),
                ("x-a", "1"),
                ("x-a", "caf\u{e9}"),
                ("x-empty", ""),
            ]),
            784_111_777_000,
        );
        let expected = "content-type: text/plain\r\ncache-control: no-cache\r\nx-a: 1\r\nx-a: caf\u{e9}\r\nx-empty: \r\n\
                        date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
        assert_eq!(prepared, expected);
    }

    #[test]
    fn reading_ends_at_what_is_no_line() {
        for (fields, count, read) in [
            ("a: b\r\nc: d\r\n", 2, 12),
            ("a: b\r\nc: d", 1, 6),
            ("a: b\r\nc:d\r\n", 1, 6),
            ("a: b\rc: d\r\n", 0, 0),
            ("a\r\n", 0, 0),
            ("", 0, 0),
        ] {
            let mut lines = lines(fields.as_bytes());
            assert_eq!((lines.by_ref().count(), lines.read()), (count, read), "{fields:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_a_line_is_what_the_http_crate_takes(name in any::<u8>(), value in any::<u8>()) {
            let text = [b"x-", &[name][..], b": a", &[value], b"\r\n"].concat();
            let sound = !name.is_ascii_uppercase()
                && HeaderName::from_bytes(&[b'x', b'-', name]).is_ok()
                && HeaderValue::from_bytes(&[b'a', value]).is_ok();
            prop_assert_eq!(are_lines(&text), sound, "{:?}", text);
        }

        #[test]
        fn lines_read_as_they_were_written(fields in prop::collection::vec(("x-[a-z]{1,5}", "[!-~]{0,9}"), 0..8)) {
            let given: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let headers = headers(&given);
            let prepared = prepare(&headers, 0);
            let read: Vec<_> = lines(&prepared).map(|(name, value)| (&prepared[name], &prepared[value])).collect();
            let written = headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
            let date = (&b"date"[..], &b"Thu, 01 Jan 1970 00:00:00 GMT"[..]);
            prop_assert_eq!(read, written.chain([date]).collect::<Vec<_>>());
        }
    }
}
