//! A request's head: bytes in, a request and its framing out, or the refusal that they earn.
//!
//! There is one parser, so nothing can be read two ways; what another server might read differently is refused here
//! (RFC 9112 sections 2 to 6, RFC 9110 section 7.2). Pure: no I/O and no clock.

use std::mem::MaybeUninit;
use std::net::Ipv6Addr;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri, Version, request};

/// Fields in one head; more is 431.
const FIELDS_MAX: usize = 100;

/// Bytes of a request target, which is what `http::Uri` can hold; more is 414.
const TARGET_MAX: usize = u16::MAX as usize - 1;

/// The first line of HTTP/2's connection preface, which reads as an HTTP/1 head (RFC 9113 section 3.4).
pub(super) const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// What a 405 names as allowed (RFC 9110 section 15.5.6).
pub(super) const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

const UPGRADE_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

const BAD_HOST: Refusal = Refusal::bad("the Host is malformed");

/// See [`stands_once`].
pub(super) const TWICE: Refusal = Refusal::bad("a field that has one value is there twice");

/// See [`mimics_framing`].
pub(super) const MIMIC: Refusal = Refusal::bad("a field would frame the body where _ is read as -");

/// Bytes of a registered name (RFC 3986 section 3.2.2) but the comma, which would make a list of it, and the percent sign,
/// behind which some servers would find any other byte.
const NAME_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    loop {
        table[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*')
            || matches!(byte, b'+' | b';' | b'=');
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Status of the answer.
    pub status: StatusCode,
    /// The reason, for the answer's body and the log.
    pub why: &'static str,
}

impl Refusal {
    pub(super) const fn bad(why: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }

    pub(super) const fn new(status: StatusCode, why: &'static str) -> Self {
        Self { status, why }
    }
}

/// Where a request's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// After this many bytes.
    Length(u64),
    /// With the last chunk and the trailers.
    Chunked,
}

/// A request's head and what it says about the connection.
#[derive(Debug)]
pub(super) struct Head {
    /// Method, target in origin form (or `*`), version and fields; `Host` is there exactly once, on HTTP/1.1.
    pub parts: request::Parts,
    /// Where the body ends.
    pub framing: Framing,
    /// Whether another request may follow.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether the client takes trailers.
    pub takes_trailers: bool,
}

/// How far a block of lines has been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    /// The empty line ends here.
    End(usize),
    /// No empty line yet.
    Partial,
    /// A line feed without its carriage return.
    BareLineFeed,
}

/// Looks for the empty line that ends a head or a trailer section, from `scanned` on, which it moves.
///
/// Each byte is looked at once, however slowly the block arrives, and every line end is checked on the way.
pub(super) fn scan(block: &[u8], scanned: &mut usize) -> Scan {
    let from = *scanned;
    for at in memchr::memchr_iter(b'\n', &block[from..]) {
        let at = from + at;
        if at == 0 || block[at - 1] != b'\r' {
            return Scan::BareLineFeed;
        }
        if at == 1 || (at >= 3 && block[at - 2] == b'\n') {
            return Scan::End(at + 1);
        }
    }
    *scanned = block.len();
    Scan::Partial
}

/// Parses `head`, which [`scan`] found to be whole. `fields` is an empty map whose room is used again.
pub(super) fn parse(head: &Bytes, fields: HeaderMap) -> Result<Head, Refusal> {
    let mut room = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut room) {
        Ok(httparse::Status::Complete(end)) if end == head.len() => {}
        Ok(_) => return Err(Refusal::bad("the head ends in an unexpected place")),
        Err(error) => return Err(malformed(error, head)),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Refusal::bad("the request line is incomplete"));
    };
    let method = match method {
        "GET" => Method::GET,
        other => {
            let method = Method::from_bytes(other.as_bytes()).map_err(|_| Refusal::bad("the method is malformed"))?;
            check_method(&method)?;
            method
        }
    };
    let http11 = minor == 1;
    let mut notes = Notes::new(fields, parsed.headers.len());
    for field in parsed.headers.iter() {
        notes.take(field, head)?;
    }
    let (uri, authority) = target_uri(&method, target, head)?;
    notes.host(http11, authority)?;
    let framing = notes.framing(http11)?;
    let expects_continue = notes.expectation(http11)?;
    notes.upgrade(http11);
    let keep_alive = !notes.close && (http11 || notes.keep_alive);
    let mut parts = request::Request::new(()).into_parts().0;
    parts.method = method;
    parts.uri = uri;
    parts.version = if http11 { Version::HTTP_11 } else { Version::HTTP_10 };
    parts.headers = notes.fields;
    let takes_trailers = notes.trailers && http11;
    Ok(Head { parts, framing, keep_alive, expects_continue, takes_trailers })
}

/// Takes methods in capitals only, as every registered one is: `get` is another method than GET (RFC 9110 section 9.1), but
/// not to every server, and only one that is not told of it can be sure to agree.
pub(super) fn check_method(method: &Method) -> Result<(), Refusal> {
    if matches!(*method, Method::GET | Method::HEAD | Method::POST) {
        return Ok(());
    }
    let name = method.as_str();
    if matches!(name, "CONNECT" | "TRACE" | "PRI") {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method is not allowed"));
    }
    let is_plain = name.bytes().all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_'));
    if is_plain { Ok(()) } else { Err(Refusal::bad("the method is not in capitals")) }
}

/// Whether a field's name is one that frames the message, to a server that reads `_` as `-`, as CGI's variables make it.
pub(super) fn mimics_framing(name: &HeaderName) -> bool {
    matches!(name.as_str(), "content_length" | "transfer_encoding")
}

/// Whether a field that says what is done with the request has one value: of two, some servers take the first, others the
/// last, or both as a list.
pub(super) fn stands_once(name: &str) -> bool {
    const FIELDS: [&str; 8] = [
        "authorization",
        "content-range",
        "content-type",
        "if-modified-since",
        "if-range",
        "if-unmodified-since",
        "max-forwards",
        "range",
    ];
    FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field))
}

/// RFC 9112 section 3.2: what is no URI is not put right, since two servers would do it in two ways.
pub(super) fn check_target(target: &str) -> Result<(), Refusal> {
    if target.is_ascii() {
        Ok(())
    } else {
        Err(Refusal::bad("the request target has bytes that must be escaped (%XX)"))
    }
}

/// Parses a trailer section, empty line included.
pub(super) fn parse_trailers(block: &Bytes) -> Result<HeaderMap, Refusal> {
    let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let Ok(httparse::Status::Complete((end, trailers))) = httparse::parse_headers(block, &mut room) else {
        return Err(Refusal::bad("a trailer is malformed"));
    };
    if end != block.len() {
        return Err(Refusal::bad("the trailers end in an unexpected place"));
    }
    let mut fields = HeaderMap::with_capacity(trailers.len());
    for trailer in trailers {
        let (name, value) = field(trailer, block)?;
        fields.append(name, value);
    }
    Ok(fields)
}

/// Checks a `Host` (RFC 9110 section 7.2): a name or address and perhaps a port, nothing that a path, a list or
/// credentials could hide in.
pub(super) fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value.first() {
        None => return false,
        Some(b'[') => {
            let Some(end) = memchr::memchr(b']', value) else { return false };
            let inside = &value[1..end];
            if !std::str::from_utf8(inside).is_ok_and(|inside| inside.parse::<Ipv6Addr>().is_ok()) {
                return false;
            }
            (inside, &value[end + 1..])
        }
        Some(_) => {
            let (host, port) = value.split_at(memchr::memchr(b':', value).unwrap_or(value.len()));
            // An empty label, which some servers drop and others refuse; the last dot is the root's.
            let mut before = b'.';
            let is_name = host.iter().all(|b| {
                let follows_dot = std::mem::replace(&mut before, *b) == b'.';
                NAME_BYTES[usize::from(*b)] && !(follows_dot && *b == b'.')
            });
            if !is_name {
                return false;
            }
            (host, port)
        }
    };
    let port_is_fine = match port {
        [] | [b':'] => true,
        [b':', digits @ ..] => decimal(digits).is_some_and(|port| port <= u64::from(u16::MAX)),
        _ => false,
    };
    !host.is_empty() && port_is_fine
}

/// The values of a comma-separated field, trimmed.
pub(super) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

/// Digits only, as `Content-Length` and ports are; neither sign nor list nor overflow.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

fn malformed(error: httparse::Error, head: &[u8]) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => {
            Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields")
        }
        httparse::Error::Version if names_version(head) => {
            Refusal::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "the HTTP version is not supported")
        }
        httparse::Error::HeaderName => Refusal::bad("a field name is malformed"),
        httparse::Error::HeaderValue => Refusal::bad("a field value is malformed"),
        _ => Refusal::bad("the request line or a line end is malformed"),
    }
}

/// Whether the request line is three words of which the last is a version.
fn names_version(head: &[u8]) -> bool {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    let (version, is_third) = (words.nth(2), words.next().is_none());
    is_third
        && matches!(version, Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// One field, its value a slice of `head` without a copy.
fn field(parsed: &httparse::Header<'_>, head: &Bytes) -> Result<(HeaderName, HeaderValue), Refusal> {
    let name = HeaderName::from_bytes(parsed.name.as_bytes()).map_err(|_| Refusal::bad("a field name is malformed"))?;
    let value = HeaderValue::from_maybe_shared(head.slice_ref(parsed.value))
        .map_err(|_| Refusal::bad("a field value is malformed"))?;
    Ok((name, value))
}

/// The target in origin form (or `*`), and the authority of one in absolute form (RFC 9112 section 3.2).
fn target_uri(method: &Method, target: &str, head: &Bytes) -> Result<(Uri, Option<HeaderValue>), Refusal> {
    const MALFORMED: Refusal = Refusal::bad("the request target is malformed");
    if target.len() > TARGET_MAX {
        return Err(Refusal::new(StatusCode::URI_TOO_LONG, "the request target is too long"));
    }
    if memchr::memchr(b'#', target.as_bytes()).is_some() {
        return Err(Refusal::bad("the request target has a fragment"));
    }
    check_target(target)?;
    let bytes = head.slice_ref(target.as_bytes());
    if target.starts_with('/') {
        let path = PathAndQuery::from_maybe_shared(bytes).map_err(|_| MALFORMED)?;
        return Ok((Uri::from(path), None));
    }
    if target == "*" {
        return if method == Method::OPTIONS {
            Ok((Uri::from(PathAndQuery::from_static("*")), None))
        } else {
            Err(Refusal::bad("the target * is for OPTIONS"))
        };
    }
    let uri = Uri::from_maybe_shared(bytes).map_err(|_| MALFORMED)?.into_parts();
    let (Some(scheme), Some(authority)) = (uri.scheme, uri.authority) else {
        return Err(Refusal::bad("the request target does not begin with a slash"));
    };
    if !["http", "https"].iter().any(|known| scheme.as_str().eq_ignore_ascii_case(known)) {
        return Err(Refusal::bad("the request target's scheme is not http or https"));
    }
    let authority = HeaderValue::from_str(authority.as_str()).map_err(|_| MALFORMED)?;
    let path = match uri.path_and_query {
        // RFC 9112 section 3.2.4: OPTIONS for a whole server that went through a proxy.
        Some(path) if path.as_str() == "/" && *method == Method::OPTIONS && !target.ends_with('/') => {
            PathAndQuery::from_static("*")
        }
        Some(path) if path.as_str().starts_with('/') => path,
        Some(path) => PathAndQuery::try_from(format!("/{}", path.as_str())).map_err(|_| MALFORMED)?,
        None => PathAndQuery::from_static("/"),
    };
    Ok((Uri::from(path), Some(authority)))
}

/// The fields, and what was seen among them.
struct Notes {
    fields: HeaderMap,
    lengths: usize,
    codings: usize,
    hosts: usize,
    expectations: usize,
    offers: usize,
    close: bool,
    keep_alive: bool,
    trailers: bool,
}

impl Notes {
    fn new(mut fields: HeaderMap, count: usize) -> Self {
        if fields.capacity() < count {
            fields = HeaderMap::with_capacity(count);
        }
        Self {
            fields,
            lengths: 0,
            codings: 0,
            hosts: 0,
            expectations: 0,
            offers: 0,
            close: false,
            keep_alive: false,
            trailers: false,
        }
    }

    fn take(&mut self, parsed: &httparse::Header<'_>, head: &Bytes) -> Result<(), Refusal> {
        let (name, value) = field(parsed, head)?;
        if name == header::HOST {
            self.hosts += 1;
            if !is_host(value.as_bytes()) {
                return Err(BAD_HOST);
            }
        } else if name == header::CONNECTION {
            for token in tokens(&value) {
                self.close |= token.eq_ignore_ascii_case(b"close");
                self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if name == header::CONTENT_LENGTH {
            self.lengths += 1;
        } else if name == header::TRANSFER_ENCODING {
            self.codings += 1;
        } else if name == header::EXPECT {
            self.expectations += 1;
        } else if name == header::UPGRADE {
            self.offers += 1;
        } else if name == header::TE {
            self.trailers |= tokens(&value).any(|token| token.eq_ignore_ascii_case(b"trailers"));
        } else if mimics_framing(&name) {
            return Err(MIMIC);
        }
        if self.fields.append(name, value) && stands_once(parsed.name) {
            return Err(TWICE);
        }
        Ok(())
    }

    /// RFC 9112 section 3.2: one valid `Host`; the authority of an absolute target replaces it.
    fn host(&mut self, http11: bool, authority: Option<HeaderValue>) -> Result<(), Refusal> {
        match self.hosts {
            0 if http11 => return Err(Refusal::bad("there is no Host")),
            0 | 1 => {}
            _ => return Err(Refusal::bad("there is more than one Host")),
        }
        if let Some(authority) = authority {
            if !is_host(authority.as_bytes()) {
                return Err(BAD_HOST);
            }
            self.fields.insert(header::HOST, authority);
        }
        Ok(())
    }

    /// RFC 9112 section 6: one length or one `chunked`, in a way that nobody can misread.
    fn framing(&mut self, http11: bool) -> Result<Framing, Refusal> {
        match (self.lengths, self.codings) {
            (0, 0) => Ok(Framing::None),
            (1, 0) => {
                let length = self.fields.get(header::CONTENT_LENGTH).and_then(|value| decimal(value.as_bytes()));
                match length.ok_or(Refusal::bad("Content-Length is malformed"))? {
                    0 => Ok(Framing::None),
                    length => Ok(Framing::Length(length)),
                }
            }
            (_, 0) => Err(Refusal::bad("there is more than one Content-Length")),
            (0, 1) if http11 => {
                let value = self.fields.remove(header::TRANSFER_ENCODING);
                let value = value.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
                if value.eq_ignore_ascii_case(b"chunked") {
                    Ok(Framing::Chunked)
                } else if !value.is_empty() && value.iter().all(u8::is_ascii_alphanumeric) {
                    Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "the transfer coding is not supported"))
                } else {
                    Err(Refusal::bad("Transfer-Encoding is not exactly chunked"))
                }
            }
            (0, 1) => Err(Refusal::bad("Transfer-Encoding is not part of HTTP/1.0")),
            (0, _) => Err(Refusal::bad("there is more than one Transfer-Encoding")),
            _ => Err(Refusal::bad("there are both Content-Length and Transfer-Encoding")),
        }
    }

    /// RFC 9110 section 10.1.1; the field goes, since the `100 Continue` is the server's own.
    fn expectation(&mut self, http11: bool) -> Result<bool, Refusal> {
        if self.expectations == 0 {
            return Ok(false);
        }
        for value in self.fields.get_all(header::EXPECT) {
            if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal::new(StatusCode::EXPECTATION_FAILED, "the expectation is unknown"));
            }
        }
        self.fields.remove(header::EXPECT);
        Ok(http11)
    }

    /// HTTP/2 is spoken by prior knowledge only, and HTTP/1.0 has no upgrades (RFC 9110 section 7.8): such an offer
    /// must not reach an upstream that would take it. Nor one of another HTTP, whose requests nobody here would read.
    fn upgrade(&mut self, http11: bool) {
        if self.offers == 0 {
            return;
        }
        let mut offers = self.fields.get_all(header::UPGRADE).iter();
        let begins = |token: &[u8], with: &[u8]| token.get(..with.len()).is_some_and(|t| t.eq_ignore_ascii_case(with));
        let to_http = |token: &[u8]| begins(token, b"h2") || begins(token, b"h3") || begins(token, b"http");
        if !http11 || offers.any(|offer| tokens(offer).any(to_http)) {
            self.fields.remove(header::UPGRADE);
            self.fields.remove(UPGRADE_SETTINGS);
        }
    }
}

#[cfg(test)]
mod tests;
