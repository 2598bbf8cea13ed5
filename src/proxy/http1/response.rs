//! A response's head: bytes in, head and framing out, or why it is none (RFC 9112 sections 4 to 6).
//!
//! What another reader could take in another way is no response: the exchange fails, and the connection goes with it. Pure:
//! no I/O and no clock.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header};
use smallvec::SmallVec;

use super::Framing;
use crate::message::chunked::ChunkDecoder;
use crate::proxy::upstream::Failure;

/// Largest response head.
const HEAD_BYTES: usize = 64 * 1024;

/// Most response fields.
const FIELDS: usize = 128;

/// Fields for which reading a head needs no allocation of its own.
const USUAL_FIELDS: usize = 24;

/// Fields that Weir adds to a response: `Via`, `Cache-Status`, limits.
const FIELDS_ADDED: usize = 4;

/// The head at the input's front, once it is whole; the input then starts behind it.
pub(super) fn parse(input: &mut BytesMut, is_head: bool) -> Result<Option<(Response<()>, Framing, bool)>, Failure> {
    match input.first() {
        None => return Ok(None),
        Some(b'H') => {}
        // The parser would pass over empty lines, which may be the end of something that belongs to no response.
        Some(_) => return Err(Failure::Malformed("it begins with no status line")),
    }
    let mut slots = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, input, &mut slots) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() >= HEAD_BYTES => {
            return Err(Failure::Malformed("its head is too large"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Failure::Malformed("it has too many fields")),
        Err(_) => return Err(Failure::Malformed("its head cannot be read")),
    };
    // The parser takes a line feed alone for a line's end, as not everybody does (RFC 9112 section 2.2).
    if memchr::memchr_iter(b'\n', &input[..length]).any(|at| input[at - 1] != b'\r') {
        return Err(Failure::Malformed("a line ends without a carriage return"));
    }
    let base = input.as_ptr() as usize;
    let code = parsed.code.unwrap_or_default();
    let status = StatusCode::from_u16(code).map_err(|_| Failure::Malformed("its status is no number"))?;
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut named: SmallVec<[(HeaderName, Range<usize>); USUAL_FIELDS]> = SmallVec::new();
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let start = field.value.as_ptr() as usize - base;
        named.push((
            name.map_err(|_| Failure::Malformed("a field has no valid name"))?,
            start..start + field.value.len(),
        ));
    }
    let head = input.split_to(length).freeze();
    let mut fields = HeaderMap::with_capacity(named.len() + FIELDS_ADDED);
    for (name, place) in named {
        let value = HeaderValue::from_maybe_shared(head.slice(place));
        fields.append(name, value.map_err(|_| Failure::Malformed("a field has no valid value"))?);
    }
    let framing = framing(status, version, &fields, is_head)?;
    let closes = fields
        .get_all(header::CONNECTION)
        .iter()
        .any(|v| v.as_bytes().split(|b| *b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"close")));
    let is_suspect = status == StatusCode::NO_CONTENT && announces_body(&fields);
    let keep_alive = version == Version::HTTP_11 && !closes && !is_suspect && !matches!(framing, Framing::Close);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = fields;
    Ok(Some((response, framing, keep_alive)))
}

/// Whether content is announced: of a response that can have none, by somebody who may be about to send it all the same.
fn announces_body(fields: &HeaderMap) -> bool {
    let is_zero = |length: &HeaderValue| length.as_bytes().iter().all(|digit| *digit == b'0');
    fields.contains_key(header::TRANSFER_ENCODING) || !fields.get_all(header::CONTENT_LENGTH).iter().all(is_zero)
}

fn framing(status: StatusCode, version: Version, fields: &HeaderMap, is_head: bool) -> Result<Framing, Failure> {
    let coded = fields.contains_key(header::TRANSFER_ENCODING);
    // RFC 9112 section 6.1: whoever wrote this does not know what it means.
    if coded && version == Version::HTTP_10 {
        return Err(Failure::Malformed("Transfer-Encoding in HTTP/1.0"));
    }
    // What comes behind would be read as the next response.
    if status.is_informational() && announces_body(fields) {
        return Err(Failure::Malformed("an interim response with a body"));
    }
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if coded && length.is_some() {
        return Err(Failure::Malformed("Content-Length beside Transfer-Encoding"));
    }
    if lengths.next().is_some() {
        return Err(Failure::Malformed("two Content-Length fields"));
    }
    let length = length.map(|value| content_length(value).ok_or(Failure::Malformed("a malformed Content-Length")));
    let length = length.transpose()?;
    if is_head || status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        return Ok(Framing::Length(0));
    }
    if coded {
        let mut codings = fields.get_all(header::TRANSFER_ENCODING).iter();
        let only = codings.next().is_some_and(|c| c.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !only || codings.next().is_some() {
            return Err(Failure::Malformed("a Transfer-Encoding other than chunked"));
        }
        return Ok(Framing::Chunked(ChunkDecoder::default()));
    }
    Ok(length.map_or(Framing::Close, Framing::Length))
}

fn content_length(value: &HeaderValue) -> Option<u64> {
    let digits = value.as_bytes();
    let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if valid { std::str::from_utf8(digits).ok()?.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, is_head: bool) -> Result<Option<(StatusCode, Framing, bool)>, Failure> {
        let parsed = parse(&mut BytesMut::from(text), is_head)?;
        Ok(parsed.map(|(response, framing, keep_alive)| (response.status(), framing, keep_alive)))
    }

    #[test]
    fn what_could_be_read_two_ways_is_no_response() {
        for text in [
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "\nHTTP/1.1 200 OK\r\n\r\n",
            " HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\n\n",
            "HTTP/1.1 200 OK\r\nx: a\ny: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\r\n\n",
            "HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx : a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\rb\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 1000 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            assert!(matches!(read(text, false), Err(Failure::Malformed(_))), "{text:?}: {:?}", read(text, false));
        }
    }

    #[test]
    fn a_connection_is_kept_where_the_end_is_sure() {
        for (text, is_head, keeps) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 005\r\n\r\n", false, true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n", false, true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", true, true),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", false, true),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", false, true),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", false, false),
            ("HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n", false, false),
            ("HTTP/1.1 200 OK\r\n\r\n", false, false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: x, Close\r\n\r\n", false, false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", false, false),
        ] {
            let (_, _, keep_alive) = read(text, is_head).expect("a response").expect("it is whole");
            assert_eq!(keep_alive, keeps, "{text:?}");
        }
        assert!(matches!(read("", false), Ok(None)));
        assert!(matches!(read("HTTP/1.1 200 OK\r\nx: a\r\n", false), Ok(None)));
    }
}
