//! An answer's head and framing over HTTP/1 (RFC 9112 sections 4 and 6). Pure: no I/O; the clock's value is an argument.

use std::cell::RefCell;
use std::io::Write;
use std::time::{Duration, SystemTime};

use http::header::{self, HeaderMap};
use http::{Method, StatusCode, Version};
use http_body::Body as _;

use crate::clock::WallMs;
use crate::message::Answer;

/// What of a request shapes its answer.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// The answer to HEAD has no body.
    pub head_only: bool,
    /// HTTP/1.0 knows no chunks.
    pub http10: bool,
    /// Whether trailers may be sent.
    pub takes_trailers: bool,
}

impl Asked {
    pub(super) fn new(method: &Method, version: Version, takes_trailers: bool) -> Self {
        Self { head_only: *method == Method::HEAD, http10: version == Version::HTTP_10, takes_trailers }
    }
}

/// Where an answer's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// There is none; the length that it would have had, where it is known.
    Absent(Option<u64>),
    /// After this many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// What an answer says about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// It stays; HTTP/1.0 has to be told.
    Keep,
    /// It ends.
    Close,
    /// It becomes a tunnel.
    Upgrade,
}

/// How the body of `answer` is framed.
pub(super) fn extent(answer: &Answer, asked: &Asked) -> Extent {
    let length = answer.body.size_hint().exact();
    let status = answer.status;
    if asked.head_only || status == StatusCode::NOT_MODIFIED {
        return Extent::Absent(length.filter(|length| *length > 0));
    }
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        return Extent::Absent(None);
    }
    match length {
        Some(length) => Extent::Length(length),
        None if asked.http10 => Extent::Close,
        None => Extent::Chunked,
    }
}

/// Appends the head of `answer` to `out`. `now` is asked for a date only where the answer has none.
pub(super) fn encode(
    out: &mut Vec<u8>,
    answer: &Answer,
    extent: Extent,
    persistence: Persistence,
    asked: &Asked,
    now: impl FnOnce() -> WallMs,
) {
    status_line(out, answer.status);
    out.extend_from_slice(&answer.prepared);
    out.extend_from_slice(answer.lines.as_bytes());
    let keeps_length = matches!(extent, Extent::Absent(_)) && answer.status != StatusCode::NO_CONTENT;
    fields(out, &answer.fields, keeps_length);
    match extent {
        Extent::Absent(Some(length)) if !has(answer, header::CONTENT_LENGTH, b"content-length:") => {
            content_length(out, length);
        }
        Extent::Length(length) => content_length(out, length),
        Extent::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Extent::Absent(_) | Extent::Close => {}
    }
    match persistence {
        Persistence::Keep if asked.http10 => out.extend_from_slice(b"connection: keep-alive\r\n"),
        Persistence::Keep => {}
        Persistence::Close => out.extend_from_slice(b"connection: close\r\n"),
        Persistence::Upgrade => out.extend_from_slice(b"connection: upgrade\r\n"),
    }
    if !has(answer, header::DATE, b"date:") {
        date(out, now());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends an interim response, which has neither framing nor a date of its own.
pub(super) fn interim(out: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap) {
    status_line(out, status);
    fields(out, headers, false);
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of a chunk of `size` bytes; `first` is whether no chunk came before it.
pub(super) fn chunk_head(out: &mut Vec<u8>, size: usize, first: bool) {
    const WRITTEN: &str = "a buffer takes everything";
    if !first {
        out.extend_from_slice(b"\r\n");
    }
    write!(out, "{size:x}\r\n").expect(WRITTEN);
}

/// Appends the last chunk, with `trailers` where the client takes them.
pub(super) fn last_chunk(out: &mut Vec<u8>, first: bool, trailers: Option<&HeaderMap>) {
    chunk_head(out, 0, first);
    if let Some(trailers) = trailers {
        fields(out, trailers, false);
    }
    out.extend_from_slice(b"\r\n");
}

fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    match status {
        StatusCode::OK => out.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
        StatusCode::NOT_MODIFIED => out.extend_from_slice(b"HTTP/1.1 304 Not Modified\r\n"),
        status => {
            out.extend_from_slice(b"HTTP/1.1 ");
            out.extend_from_slice(status.as_str().as_bytes());
            out.push(b' ');
            out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Appends `map`, but nothing that would contradict the framing.
fn fields(out: &mut Vec<u8>, map: &HeaderMap, keeps_length: bool) {
    for (name, value) in map {
        let framing = name == header::TRANSFER_ENCODING
            || name == header::CONNECTION
            || (name == header::CONTENT_LENGTH && !keeps_length);
        if !framing {
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Whether `answer` has the field `name`, whose line begins with `start`.
fn has(answer: &Answer, name: header::HeaderName, start: &[u8]) -> bool {
    let prepared = &answer.prepared;
    prepared.starts_with(start)
        || memchr::memchr_iter(b'\n', prepared).any(|end| prepared[end + 1..].starts_with(start))
        || answer.fields.contains_key(name)
}

/// Appends `Date` (RFC 9110 section 6.6.1), which is formatted once a second and thread.
fn date(out: &mut Vec<u8>, now: WallMs) {
    thread_local! {
        static LAST: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    LAST.with_borrow_mut(|(second, text)| {
        if *second != now / 1000 {
            *second = now / 1000;
            *text = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(*second));
        }
        out.extend_from_slice(b"date: ");
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(b"\r\n");
    });
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderValue;

    use super::*;
    use crate::message::Body;

    fn head(answer: &Answer, asked: &Asked, persistence: Persistence) -> String {
        let mut out = Vec::new();
        encode(&mut out, answer, extent(answer, asked), persistence, asked, || 784_111_777_000);
        String::from_utf8(out).expect("text")
    }

    const GET: Asked = Asked { head_only: false, http10: false, takes_trailers: false };
    const HEAD: Asked = Asked { head_only: true, ..GET };

    #[test]
    fn prepared_fields_come_as_they_are_and_a_date_is_added_once() {
        let mut answer = Answer::new(StatusCode::OK);
        answer.prepared = Bytes::from_static(b"etag: \"1\"\r\ndate: then\r\n");
        answer.fields.insert("age", HeaderValue::from_static("3"));
        answer.body = Bytes::from_static(b"hello").into();
        let expected = "HTTP/1.1 200 OK\r\netag: \"1\"\r\ndate: then\r\nage: 3\r\ncontent-length: 5\r\n\r\n";
        assert_eq!(head(&answer, &GET, Persistence::Keep), expected);
        answer.prepared = Bytes::from_static(b"x-date: then\r\n");
        let text = head(&answer, &GET, Persistence::Close);
        assert!(text.ends_with("connection: close\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"), "{text}");
    }

    #[test]
    fn an_absent_body_keeps_the_length_that_it_would_have_had() {
        let mut answer = Answer::new(StatusCode::OK);
        answer.fields.insert("content-length", HeaderValue::from_static("77"));
        assert!(head(&answer, &HEAD, Persistence::Keep).contains("content-length: 77\r\n"));
        assert!(head(&answer, &GET, Persistence::Keep).contains("content-length: 0\r\n"));
        answer.status = StatusCode::NO_CONTENT;
        assert!(!head(&answer, &GET, Persistence::Keep).contains("content-length"));
        let mut answer = Answer::new(StatusCode::OK);
        assert!(!head(&answer, &HEAD, Persistence::Keep).contains("content-length"), "the size is not known");
        answer.prepared = Bytes::from_static(b"content-length: 9\r\n");
        answer.body = Body::Full(Bytes::from_static(b"not sent"));
        assert_eq!(head(&answer, &HEAD, Persistence::Keep).matches("content-length").count(), 1);
    }

    #[test]
    fn framing_fields_of_the_service_are_not_sent() {
        let mut answer = Answer::new(StatusCode::OK);
        for name in ["content-length", "transfer-encoding", "connection"] {
            answer.fields.insert(name, HeaderValue::from_static("9"));
        }
        let text = head(&answer, &GET, Persistence::Keep);
        assert!(!text.contains(" 9\r\n"), "{text}");
    }

    #[test]
    fn chunks_and_trailers_are_framed() {
        let mut out = Vec::new();
        chunk_head(&mut out, 26, true);
        out.extend_from_slice(&[b'x'; 26]);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        last_chunk(&mut out, false, Some(&trailers));
        assert_eq!(out, format!("1a\r\n{}\r\n0\r\nx-sum: 1\r\n\r\n", "x".repeat(26)).as_bytes());
    }
}
