//! HTTP/2, frame by frame (H1 to H4): what is malformed is reset, refused, or ends the connection; what is taken reaches the
//! upstream in the one form that HTTP/1 has for it.

use super::{ROUTES, TARGET};
use crate::harness::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITISED, PRIORITY,
    PUSH_PROMISE, RST_STREAM, SETTINGS, Said, WINDOW_UPDATE, block, frame,
};
use crate::harness::{Recorder, Seen, Weir, eventually, recorder, weir};

/// A request's first and last flags.
const ALL: u8 = END_STREAM | END_HEADERS;

/// What must become of a request.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Its stream is reset, or it is refused with 400; the connection goes on.
    Stream,
    /// It is refused with this status.
    Status(u16),
    /// The connection ends.
    Connection,
    /// One or the other: what matters is that nothing arrives.
    Either,
    /// It is taken, with this `Host`, and with these fields and values among others.
    Taken(&'static str, &'static [(&'static str, &'static str)]),
}

use Fate::{Connection, Either, Status, Stream, Taken};

type Pair = (&'static [u8], &'static [u8]);

/// Name, frames behind the preface and empty SETTINGS, fate.
type Case = (&'static str, Vec<Piece>, Fate);

/// What a case is written of.
enum Piece {
    /// Bytes as they are.
    Raw(Vec<u8>),
    /// A HEADERS frame: stream, flags, fields, in which [`TARGET`] stands for the case's own target.
    Head(u32, u8, Vec<Pair>),
}

use Piece::{Head, Raw};

const METHOD: Pair = (b":method", b"GET");
const SCHEME: Pair = (b":scheme", b"http");
const AUTHORITY: Pair = (b":authority", b"a");
const PATH: Pair = (b":path", TARGET.as_bytes());

/// A GET on stream 1, whole, with these fields behind the pseudo-fields.
fn with(fields: &[Pair]) -> Vec<Piece> {
    only(&[&[METHOD, SCHEME, AUTHORITY, PATH], fields].concat())
}

/// A request on stream 1, whole, of these fields alone.
fn only(fields: &[Pair]) -> Vec<Piece> {
    vec![Head(1, ALL, fields.to_vec())]
}

/// A GET with another path.
fn path(path: &'static [u8]) -> Vec<Piece> {
    only(&[METHOD, SCHEME, AUTHORITY, (b":path", path)])
}

/// A GET with another authority.
fn authority(authority: &'static [u8]) -> Vec<Piece> {
    only(&[METHOD, SCHEME, (b":authority", authority), PATH])
}

/// A GET with another method.
fn method(method: &'static [u8]) -> Vec<Piece> {
    only(&[(b":method", method), SCHEME, AUTHORITY, PATH])
}

/// A POST on stream 1 whose head has these fields, and this behind it.
fn post(fields: &[Pair], behind: Vec<Vec<u8>>) -> Vec<Piece> {
    let head = [&[(&b":method"[..], &b"POST"[..]), SCHEME, AUTHORITY, PATH], fields].concat();
    let mut pieces = vec![Head(1, END_HEADERS, head)];
    pieces.extend(behind.into_iter().map(Raw));
    pieces
}

fn data(flags: u8, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, 1, bytes)
}

fn pseudo_fields() -> Vec<Case> {
    let status: Pair = (b":status", b"200");
    vec![
        ("no method", only(&[SCHEME, AUTHORITY, PATH]), Stream),
        ("no scheme", only(&[METHOD, AUTHORITY, PATH]), Stream),
        ("no path", only(&[METHOD, SCHEME, AUTHORITY]), Stream),
        ("no authority and no Host", only(&[METHOD, SCHEME, PATH]), Stream),
        ("no fields at all", only(&[]), Stream),
        ("two methods", only(&[METHOD, METHOD, SCHEME, AUTHORITY, PATH]), Stream),
        ("two schemes", only(&[METHOD, SCHEME, SCHEME, AUTHORITY, PATH]), Stream),
        ("two authorities", only(&[METHOD, SCHEME, AUTHORITY, AUTHORITY, PATH]), Stream),
        ("two paths", only(&[METHOD, SCHEME, AUTHORITY, PATH, (b":path", b"/smuggled")]), Stream),
        ("a path behind fields", only(&[METHOD, SCHEME, AUTHORITY, (b"x", b"y"), PATH]), Stream),
        ("an authority behind fields", only(&[METHOD, SCHEME, PATH, (b"x", b"y"), AUTHORITY]), Stream),
        ("an unknown pseudo-field", with(&[(b":unknown", b"x")]), Either),
        ("a pseudo-field without a name", with(&[(b":", b"x")]), Either),
        ("a status", only(&[status, METHOD, SCHEME, AUTHORITY, PATH]), Stream),
        ("a protocol without CONNECT", only(&[METHOD, SCHEME, AUTHORITY, PATH, (b":protocol", b"websocket")]), Stream),
        (
            "extended CONNECT",
            only(&[(b":method", b"CONNECT"), SCHEME, AUTHORITY, PATH, (b":protocol", b"websocket")]),
            Either,
        ),
        ("CONNECT", only(&[(b":method", b"CONNECT"), (b":authority", b"a:443")]), Status(405)),
        ("CONNECT with a path", method(b"CONNECT"), Stream),
        ("TRACE", method(b"TRACE"), Status(405)),
        ("PRI", method(b"PRI"), Status(405)),
        ("a method in lower case", method(b"get"), Status(400)),
        ("an empty method", method(b""), Either),
        ("a method with a space", method(b"GET /smuggled HTTP/1.1"), Either),
        ("a method with a line end", method(b"GET / HTTP/1.1\r\nx: "), Either),
        ("an empty path", path(b""), Stream),
        ("a path without slash", path(b"x"), Stream),
        ("a path of a query", path(b"?x"), Stream),
        ("an asterisk", path(b"*"), Status(400)),
        ("an absolute path", path(b"http://b/x"), Stream),
        ("a path with a space", path(b"/x HTTP/1.1"), Stream),
        ("a path with a line end", path(b"/x HTTP/1.1\r\nhost: b\r\n\r\nGET /smuggled"), Stream),
        ("a path with NUL", path(b"/\0"), Stream),
        ("a path with a tab", path(b"/\t"), Stream),
        ("a path with DEL", path(b"/\x7f"), Stream),
        ("a path with a byte over 127", path(b"/\xe4"), Either),
        ("a path with UTF-8", path("/\u{e4}".as_bytes()), Status(400)),
        ("a query with UTF-8", path("/?\u{e4}".as_bytes()), Status(400)),
        // The library drops it before anybody sees it, as every server that reads it would.
        ("a path with a fragment", path(b"{T}#x"), Taken("a", &[])),
        ("a path with dots", path(b"/../x"), Status(400)),
        ("a path with an escaped slash", path(b"/a%2f..%2fb"), Status(400)),
        ("a scheme that is none", only(&[METHOD, (b":scheme", b"http\r\n"), AUTHORITY, PATH]), Stream),
        ("another scheme", only(&[METHOD, (b":scheme", b"ftp"), AUTHORITY, PATH]), Status(400)),
        ("an empty scheme", only(&[METHOD, (b":scheme", b""), AUTHORITY, PATH]), Stream),
        ("a scheme with a path", only(&[METHOD, (b":scheme", b"http://b/?"), AUTHORITY, PATH]), Stream),
    ]
}

fn hosts() -> Vec<Case> {
    vec![
        ("an empty authority", authority(b""), Stream),
        ("an authority with credentials", authority(b"u@a"), Status(400)),
        ("an authority with a password", authority(b"u:p@a"), Status(400)),
        ("an authority with a path", authority(b"a/b"), Stream),
        ("an authority with a space", authority(b"a b"), Stream),
        ("an authority with a line end", authority(b"a\r\nx: y"), Stream),
        ("an authority with a comma", authority(b"a,b"), Stream),
        ("an authority with an escape", authority(b"a%2fb"), Stream),
        ("an authority with a bad port", authority(b"a:b"), Stream),
        ("an authority with a large port", authority(b"a:65536"), Stream),
        ("an authority with two ports", authority(b"a:80:80"), Stream),
        ("an authority with empty labels", authority(b"a..b"), Status(400)),
        ("another Host", with(&[(b"host", b"b")]), Status(400)),
        ("a Host with another port", with(&[(b"host", b"a:81")]), Status(400)),
        ("two Hosts", with(&[(b"host", b"a"), (b"host", b"b")]), Status(400)),
        ("the same Host twice", with(&[(b"host", b"a"), (b"host", b"a")]), Status(400)),
        ("an empty Host", with(&[(b"host", b"")]), Status(400)),
        ("a Host alone that is malformed", only(&[METHOD, SCHEME, PATH, (b"host", b"a/b")]), Status(400)),
        ("the authority is the Host", with(&[(b"x-forwarded-host", b"b")]), Taken("a", &[("x-forwarded-host", "a")])),
        ("the same Host", with(&[(b"host", b"A")]), Taken("a", &[])),
        ("a Host alone", only(&[METHOD, SCHEME, PATH, (b"host", b"b")]), Taken("b", &[])),
        ("another scheme that is known", only(&[METHOD, (b":scheme", b"https"), AUTHORITY, PATH]), Taken("a", &[])),
    ]
}

fn fields() -> Vec<Case> {
    let lengths =
        |one, other| post(&[(b"content-length", one), (b"content-length", other)], vec![data(END_STREAM, b"hello")]);
    let length = |length, frames| post(&[(b"content-length", length)], frames);
    vec![
        ("connection", with(&[(b"connection", b"close")]), Stream),
        ("connection that names", with(&[(b"connection", b"x-forwarded-for"), (b"x", b"y")]), Stream),
        ("keep-alive", with(&[(b"keep-alive", b"timeout=5")]), Stream),
        ("proxy-connection", with(&[(b"proxy-connection", b"close")]), Stream),
        (
            "transfer-encoding",
            post(&[(b"transfer-encoding", b"chunked")], vec![data(END_STREAM, b"0\r\n\r\n")]),
            Stream,
        ),
        ("transfer-encoding identity", with(&[(b"transfer-encoding", b"identity")]), Stream),
        ("upgrade", with(&[(b"upgrade", b"websocket")]), Stream),
        ("te gzip", with(&[(b"te", b"gzip")]), Stream),
        ("te trailers, gzip", with(&[(b"te", b"trailers, gzip")]), Stream),
        ("a name in capitals", with(&[(b"X-A", b"1")]), Either),
        ("a name in part in capitals", with(&[(b"content-Length", b"1")]), Either),
        ("an empty name", with(&[(b"", b"1")]), Either),
        ("a name with a space", with(&[(b"x a", b"1")]), Either),
        ("a name with a colon", with(&[(b"x:a", b"1")]), Either),
        ("a name with a line end", with(&[(b"x: y\r\nhost: b\r\nz", b"1")]), Either),
        ("a name with NUL", with(&[(b"x\0", b"1")]), Either),
        ("a name with a byte over 127", with(&[(b"x\xff", b"1")]), Either),
        ("a name that ends with a space", with(&[(b"transfer-encoding ", b"chunked")]), Either),
        ("a value with a line end", with(&[(b"x", b"1\r\nhost: b")]), Either),
        ("a value with LF", with(&[(b"x", b"1\nhost: b")]), Either),
        ("a value with CR", with(&[(b"x", b"1\rhost: b")]), Either),
        ("a value with a request", with(&[(b"x", b"1\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")]), Either),
        ("a value with NUL", with(&[(b"x", b"\0")]), Either),
        ("a value with DEL", with(&[(b"x", b"\x7f")]), Either),
        ("a value with a control byte", with(&[(b"x", b"\x01")]), Either),
        ("a space before a value", with(&[(b"x", b" 1")]), Status(400)),
        ("a space behind a value", with(&[(b"x", b"1 ")]), Status(400)),
        ("a tab before a value", with(&[(b"x", b"\t1")]), Status(400)),
        ("a length with a space", length(b" 5", vec![data(END_STREAM, b"hello")]), Stream),
        ("a length with a sign", length(b"+5", vec![data(END_STREAM, b"hello")]), Stream),
        ("a length that is none", length(b"x", vec![data(END_STREAM, b"hello")]), Stream),
        ("an empty length", length(b"", vec![data(END_STREAM, b"hello")]), Stream),
        ("a length in a list", length(b"5, 5", vec![data(END_STREAM, b"hello")]), Stream),
        ("a length over 2^64", length(b"18446744073709551621", vec![data(END_STREAM, b"hello")]), Stream),
        ("two lengths", lengths(b"5", b"6"), Stream),
        ("the same length twice", lengths(b"5", b"5"), Stream),
        ("a length too large", length(b"6", vec![data(END_STREAM, b"hello")]), Stream),
        ("a length too small", length(b"4", vec![data(END_STREAM, b"hello")]), Stream),
        ("a length too small, in pieces", length(b"4", vec![data(0, b"hel"), data(END_STREAM, b"lo")]), Stream),
        ("a length and nothing", with(&[(b"content-length", b"5")]), Stream),
        ("a length and empty DATA", length(b"5", vec![data(END_STREAM, b"")]), Stream),
        ("an underscore", with(&[(b"transfer_encoding", b"chunked")]), Status(400)),
        ("content_length", post(&[(b"content_length", b"1")], vec![data(END_STREAM, b"hello")]), Status(400)),
        ("two Authorizations", with(&[(b"authorization", b"Basic x"), (b"authorization", b"Basic y")]), Status(400)),
        ("an unknown expectation", with(&[(b"expect", b"x")]), Status(417)),
        ("two expectations", with(&[(b"expect", b"100-continue"), (b"expect", b"x")]), Status(417)),
        (
            "split cookies",
            with(&[(b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")]),
            Taken("a", &[("cookie", "a=1; b=2"), ("x", "y")]),
        ),
        ("te trailers", with(&[(b"te", b"trailers")]), Taken("a", &[("te", "trailers"), ("connection", "te")])),
        (
            "a spoofed spelling",
            with(&[(b"x_forwarded_for", b"6.6.6.6")]),
            Taken("a", &[("x-forwarded-for", "127.0.0.1")]),
        ),
    ]
}

fn trailers() -> Vec<Case> {
    let behind =
        |flags, fields: &[(&[u8], &[u8])]| post(&[], vec![data(0, b"hello"), frame(HEADERS, flags, 1, &block(fields))]);
    vec![
        // The library drops these before anybody sees them: they change nothing, and go no further.
        ("a pseudo-field among the trailers", behind(ALL, &[(b":path", b"/smuggled")]), Taken("a", &[])),
        ("a status among the trailers", behind(ALL, &[(b":status", b"200")]), Taken("a", &[])),
        ("trailers that do not end the stream", behind(END_HEADERS, &[(b"x", b"y")]), Stream),
        ("a trailer in capitals", behind(ALL, &[(b"X", b"y")]), Either),
        ("a trailer with a line end", behind(ALL, &[(b"x", b"y\r\nz: 1")]), Either),
        ("a trailer with a space behind", behind(ALL, &[(b"x", b"y ")]), Stream),
        ("a trailer that names the connection", behind(ALL, &[(b"connection", b"close")]), Either),
        ("a coding among the trailers", behind(ALL, &[(b"transfer-encoding", b"chunked")]), Either),
    ]
}

fn framing() -> Vec<Case> {
    let raw = |bytes: Vec<u8>| vec![Raw(bytes)];
    let request = block(&[METHOD, SCHEME, AUTHORITY, (b":path", b"/smuggled")]);
    let head = |flags, payload: &[u8]| raw(frame(HEADERS, flags, 1, payload));
    let padded = |pad: u8| [&[pad][..], &request].concat();
    let depends = |on: u32| [&on.to_be_bytes()[..], &[16], &request].concat();
    let settings = |identifier: u16, value: u32| {
        raw(frame(SETTINGS, 0, 0, &[&identifier.to_be_bytes()[..], &value.to_be_bytes()].concat()))
    };
    let window = |stream, by: u32| raw(frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes()));
    let (half, rest) = request.split_at(10);
    let begun = || frame(HEADERS, END_STREAM, 1, half);
    let end = || frame(CONTINUATION, END_HEADERS, 1, rest);
    vec![
        ("DATA before HEADERS", raw(data(END_STREAM, b"x")), Connection),
        ("DATA on stream 0", raw(frame(DATA, 0, 0, b"x")), Connection),
        ("HEADERS on stream 0", raw(frame(HEADERS, ALL, 0, &request)), Connection),
        ("HEADERS on an even stream", raw(frame(HEADERS, ALL, 2, &request)), Connection),
        (
            "a stream lower than one before",
            raw([frame(HEADERS, END_HEADERS, 5, &block(&[(b":method", b"x")])), frame(HEADERS, ALL, 3, &request)]
                .concat()),
            Either,
        ),
        ("RST_STREAM on an idle stream", raw(frame(RST_STREAM, 0, 1, &[0; 4])), Connection),
        ("RST_STREAM on stream 0", raw(frame(RST_STREAM, 0, 0, &[0; 4])), Connection),
        ("RST_STREAM of another length", raw(frame(RST_STREAM, 0, 1, &[0; 3])), Connection),
        ("WINDOW_UPDATE on an idle stream", window(1, 1), Connection),
        ("WINDOW_UPDATE by 0", window(0, 0), Connection),
        ("WINDOW_UPDATE over 2^31", window(0, 0x7fff_ffff), Connection),
        ("WINDOW_UPDATE of another length", raw(frame(WINDOW_UPDATE, 0, 0, &[0; 3])), Connection),
        ("PING of another length", raw(frame(PING, 0, 0, &[0; 7])), Connection),
        ("PING on a stream", raw(frame(PING, 0, 1, &[0; 8])), Connection),
        ("SETTINGS on a stream", raw(frame(SETTINGS, 0, 1, &[])), Connection),
        ("SETTINGS of another length", raw(frame(SETTINGS, 0, 0, &[0; 5])), Connection),
        ("SETTINGS that answer and say something", raw(frame(SETTINGS, 1, 0, &[0; 6])), Connection),
        ("SETTINGS with a push of 2", settings(2, 2), Connection),
        ("SETTINGS with a window over 2^31", settings(4, 0x8000_0000), Connection),
        ("SETTINGS with small frames", settings(5, 100), Connection),
        ("SETTINGS with large frames", settings(5, 0x0100_0000), Connection),
        ("PUSH_PROMISE", raw(frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &request].concat())), Connection),
        ("PRIORITY of another length", raw(frame(PRIORITY, 0, 1, &[0; 4])), Either),
        ("PRIORITY on stream 0", raw(frame(PRIORITY, 0, 0, &[0; 5])), Connection),
        ("a stream that depends on itself", head(ALL | PRIORITISED, &depends(1)), Either),
        ("CONTINUATION without HEADERS", raw(end()), Connection),
        (
            "CONTINUATION of another stream",
            raw([begun(), frame(CONTINUATION, END_HEADERS, 3, rest)].concat()),
            Connection,
        ),
        ("DATA between HEADERS and CONTINUATION", raw([begun(), data(0, b"x"), end()].concat()), Connection),
        (
            "PING between HEADERS and CONTINUATION",
            raw([begun(), frame(PING, 0, 0, &[0; 8]), end()].concat()),
            Connection,
        ),
        (
            "HEADERS between HEADERS and CONTINUATION",
            raw([begun(), frame(HEADERS, ALL, 3, &request), end()].concat()),
            Connection,
        ),
        ("an unknown frame between them", raw([begun(), frame(0x42, 0, 1, b"x"), end()].concat()), Connection),
        ("more padding than there is", head(ALL | PADDED, &padded(255)), Connection),
        ("padding without a length", head(ALL | PADDED, &[]), Connection),
        ("DATA with more padding than there is", post(&[], vec![data(END_STREAM | PADDED, b"\xffx")]), Connection),
        ("a frame too large", raw(frame(DATA, 0, 1, &vec![0; 16_385])), Connection),
        ("an index of 0", head(ALL, &[0x80]), Connection),
        ("an index beyond the tables", head(ALL, &[0xff, 0x80, 0x80, 0x01]), Connection),
        ("an index without end", head(ALL, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Connection),
        ("an empty dynamic table", head(ALL, &[0xbe]), Connection),
        ("a length beyond the block", head(ALL, &[0, 0x7f, 0x7f, b'x']), Connection),
        ("a block that ends in the middle", head(ALL, &[0, 1, b'x', 5, b'a']), Connection),
        ("a table larger than agreed", head(ALL, &[0x3f, 0xff, 0xff, 0x7f]), Connection),
        ("a change of the table behind fields", head(ALL, &[0x82, 0x20]), Connection),
        ("Huffman with a long end", head(ALL, &[0, 1, b'x', 0x82, 0xff, 0xff]), Connection),
        ("Huffman with zeros at the end", head(ALL, &[0, 1, b'x', 0x81, 0b0001_1000]), Connection),
        ("Huffman with its end in it", head(ALL, &[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]), Connection),
    ]
}

/// Plays every case over a connection of its own and says what went wrong.
async fn check(cases: &[Case]) {
    let up = recorder();
    let weir = weir(ROUTES).to(up.url()).start().await;
    let mut wrong = Vec::new();
    for (number, (name, pieces, fate)) in cases.iter().enumerate() {
        let own = format!("/case/{number}");
        let mut frames = Frames::open(weir.proxy, PREFACE).await;
        let mut bytes = frame(SETTINGS, 0, 0, &[]);
        for piece in pieces {
            bytes.extend(written(piece, &own));
        }
        frames.write(&bytes).await;
        let said = match fate {
            Connection => frames.said(0).await,
            _ => frames.said(1).await,
        };
        if let Err(fault) = judged(&up, &own, said, *fate).await {
            wrong.push(format!("{name}: {fault}, not {fate:?}"));
        }
        if matches!(fate, Stream | Status(_) | Taken(..)) {
            frames.write(&frame(PING, 0, 0, &[7; 8])).await;
            let after = frames.said(0).await;
            if after != Said::Pong {
                wrong.push(format!("{name}: {after:?} where the connection was to go on"));
            }
        }
    }
    nothing_else_arrived(&up, &weir, &mut wrong).await;
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn written(piece: &Piece, own: &str) -> Vec<u8> {
    match piece {
        Raw(bytes) => bytes.clone(),
        Head(stream, flags, fields) => {
            let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, super::replaced(value, own))).collect();
            let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, &value[..])).collect();
            frame(HEADERS, *flags, *stream, &block(&fields))
        }
    }
}

async fn judged(up: &Recorder, own: &str, said: Said, fate: Fate) -> Result<(), String> {
    let fits = match (fate, said) {
        (Stream | Either, Said::Reset(_) | Said::Status(400 | 405)) => true,
        (Connection | Either, Said::Goaway(_) | Said::Closed) => true,
        (Status(expected), Said::Status(status)) => status == expected,
        (Taken(..), Said::Status(status)) => status == 200,
        _ => false,
    };
    let arrived = up.requests(own);
    if let (Taken(host, fields), [seen]) = (fate, &arrived[..]) {
        let is_there = |(name, value): &(&str, &str)| seen.field(name) == [*value];
        let is_told =
            seen.complete && seen.trailers.is_empty() && seen.field("host") == [host] && fields.iter().all(is_there);
        return if fits && is_told { Ok(()) } else { Err(format!("{said:?}, and the upstream saw {seen:?}")) };
    }
    let is_whole = arrived.iter().any(|seen| seen.complete);
    if fits && !is_whole && !matches!(fate, Taken(..)) {
        Ok(())
    } else {
        Err(format!("{said:?}, the upstream saw {arrived:?}"))
    }
}

async fn nothing_else_arrived(up: &Recorder, weir: &Weir, wrong: &mut Vec<String>) {
    assert_eq!(weir.get("/after").await.text(), "ok");
    eventually("the last request", || !up.requests("/after").is_empty()).await;
    wrong.extend(up.faults().into_iter().map(|fault| format!("the upstream read {fault}")));
    let is_known = |seen: &Seen| seen.target == "/after" || seen.target.starts_with("/case/");
    wrong.extend(up.seen().into_iter().filter(|seen| !is_known(seen)).map(|seen| format!("the upstream saw {seen:?}")));
}

#[tokio::test]
async fn pseudo_fields_are_exact() {
    check(&pseudo_fields()).await;
}

#[tokio::test]
async fn the_authority_is_the_host() {
    check(&hosts()).await;
}

#[tokio::test]
async fn fields_can_be_said_in_http_1() {
    check(&fields()).await;
}

#[tokio::test]
async fn trailers_are_fields_and_no_more() {
    check(&trailers()).await;
}

#[tokio::test]
async fn frames_are_exact() {
    check(&framing()).await;
}

#[tokio::test]
async fn a_preface_is_exact_and_comes_first() {
    let up = recorder();
    let weir = weir(ROUTES).to(up.url()).start().await;
    let request = frame(HEADERS, ALL, 1, &block(&[METHOD, SCHEME, AUTHORITY, (b":path", b"/smuggled")]));
    for preface in [
        &b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\nhost: a\r\n\r\nSM\r\n\r\n",
        b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\nSM",
        b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let settings = frame(SETTINGS, 0, 0, &[]);
        let mut frames = Frames::open(weir.proxy, &[preface, &settings, &request].concat()).await;
        let said = frames.said(1).await;
        assert!(matches!(said, Said::Goaway(_) | Said::Closed), "{}: {said:?}", preface.escape_ascii());
    }
    // The first frame must be SETTINGS (RFC 9113 section 3.4).
    for first in [request.clone(), frame(PING, 0, 0, &[0; 8]), frame(GOAWAY, 0, 0, &[0; 8])] {
        let mut frames = Frames::open(weir.proxy, &[PREFACE, &first, &request].concat()).await;
        let said = frames.said(1).await;
        assert!(!matches!(said, Said::Nothing), "{said:?}");
    }
    assert!(up.faults().is_empty(), "{:?}", up.faults());
}

#[tokio::test]
async fn a_stream_that_has_ended_takes_no_more() {
    let up = recorder();
    let weir = weir(ROUTES).to(up.url()).start().await;
    let fields = [METHOD, SCHEME, AUTHORITY, (&b":path"[..], &b"/once"[..])];
    let request = frame(HEADERS, ALL, 1, &block(&fields));
    let more = [
        data(END_STREAM, b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"),
        frame(HEADERS, ALL, 1, &block(&[METHOD, SCHEME, AUTHORITY, (b":path", b"/smuggled")])),
        frame(HEADERS, ALL, 1, &block(&[(b"x", b"y")])),
        frame(CONTINUATION, END_HEADERS, 1, &block(&[(b"x", b"y")])),
    ];
    for (turn, more) in more.iter().enumerate() {
        for before_the_answer in [true, false] {
            let mut frames = Frames::open(weir.proxy, &[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
            if before_the_answer {
                frames.write(&[&request[..], more].concat()).await;
            } else {
                frames.write(&request).await;
                assert_eq!(frames.said(1).await, Said::Status(200));
                frames.write(more).await;
            }
            frames.write(&frame(PING, 0, 0, &[7; 8])).await;
            assert_ne!(frames.said(1).await, Said::Nothing, "{turn}");
        }
    }
    assert!(up.faults().is_empty(), "{:?}", up.faults());
    assert!(up.seen().iter().all(|seen| seen.target == "/once" && seen.body.is_empty()), "{:?}", up.seen());
}
