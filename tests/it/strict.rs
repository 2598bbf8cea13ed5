//! The catalogue's S rows: what two parsers could read two ways is refused, and the upstream never hears of it.

use std::time::Duration;

use crate::harness::{Connection, PATIENCE, Upstream, Weir, get, raw, reply, request, upstream, weir};

/// Longest that a refused connection may stay silently open.
const SILENCE: Duration = Duration::from_secs(3);

const ROUTES: &str = r#"
[server.limits]
head = "16KiB"

[[route]]
name = "all"
path = "/{*path}"
cache.ttl = "60s"
"#;

async fn guarded() -> (Upstream, Weir) {
    let up = upstream();
    up.route("*", reply("from the upstream"));
    let weir = weir(ROUTES).to(up.url()).start().await;
    (up, weir)
}

/// The status of the one answer, if there was any.
fn status(received: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(received);
    text.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
}

/// Each is refused with one of `expected` (or closed without a word), the connection ends, and nothing goes out.
async fn refused(expected: &[u16], attacks: &[(&str, String)]) {
    let (up, weir) = guarded().await;
    let mut wrong = Vec::new();
    for (what, bytes) in attacks {
        let (received, closed) = raw(weir.proxy, bytes.as_bytes(), SILENCE).await;
        let status = status(&received);
        let heard: usize = up.total();
        let answers = received.windows(9).filter(|window| window.starts_with(b"HTTP/1.1 ")).count();
        if !closed || answers > 1 || heard > 0 || !status.is_none_or(|status| expected.contains(&status)) {
            let shown = String::from_utf8_lossy(&received).into_owned();
            wrong.push(format!(
                "{what}: status {status:?}, closed {closed}, {answers} answers, {heard} upstream\n{shown}"
            ));
            assert!(heard == 0, "{}", wrong.join("\n"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), attacks.len(), wrong.join("\n"));
    let after = weir.get("/fine").await;
    assert_eq!((after.status, after.text()), (200, "from the upstream"), "others are served as before");
    assert!(weir.metric(r#"weir_requests_total{outcome="refused"}"#).await > 0.0);
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /x HTTP/1.1\r\nhost: a\r\n{fields}\r\n{body}")
}

/// A request behind, which must never be read as one.
const NEXT: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn two_framings_at_once_are_refused() {
    let chunked = format!("0\r\n\r\n{NEXT}");
    let attacks = [
        ("S1 length, then chunked", post("content-length: 5\r\ntransfer-encoding: chunked\r\n", &chunked)),
        ("S1 chunked, then length", post("transfer-encoding: chunked\r\ncontent-length: 5\r\n", &chunked)),
        ("S1 in capitals", post("CONTENT-LENGTH: 5\r\nTRANSFER-ENCODING: Chunked\r\n", &chunked)),
        ("S1 length 0", post("content-length: 0\r\ntransfer-encoding: chunked\r\n", &chunked)),
        ("S2 chunked twice", post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", &chunked)),
        ("S2 chunked, chunked", post("transfer-encoding: chunked, chunked\r\n", &chunked)),
        ("S2 identity", post("transfer-encoding: identity\r\n", &chunked)),
        ("S2 identity beside chunked", post("transfer-encoding: identity, chunked\r\n", &chunked)),
        ("S2 gzip beside chunked", post("transfer-encoding: gzip, chunked\r\n", &chunked)),
        ("S2 chunked not last", post("transfer-encoding: chunked, gzip\r\n", &chunked)),
        ("S2 junk", post("transfer-encoding: xchunked\r\n", &chunked)),
        ("S2 with a tab", post("transfer-encoding:\tchunked\x0b\r\n", &chunked)),
        ("S2 quoted", post("transfer-encoding: \"chunked\"\r\n", &chunked)),
        ("S2 empty", post("transfer-encoding:\r\n", &chunked)),
        ("S3 HTTP/1.0", format!("POST /x HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunked}")),
    ];
    refused(&[400, 501], &attacks).await;
}

#[tokio::test]
async fn a_length_that_is_no_plain_number_is_refused() {
    let lengths = [
        ("two values", "content-length: 5\r\ncontent-length: 6\r\n"),
        ("a list", "content-length: 5, 6\r\n"),
        ("plus", "content-length: +5\r\n"),
        ("minus", "content-length: -5\r\n"),
        ("hex", "content-length: 0x5\r\n"),
        ("overflow", "content-length: 18446744073709551621\r\n"),
        ("fraction", "content-length: 5.0\r\n"),
        ("empty", "content-length:\r\n"),
        ("words", "content-length: five\r\n"),
        ("inner space", "content-length: 1 5\r\n"),
    ];
    let attacks = lengths.map(|(what, fields)| (what, post(fields, &format!("hello{NEXT}"))));
    refused(&[400, 413], &attacks).await;
}

#[tokio::test]
async fn a_head_that_is_not_plain_is_refused() {
    let head = |fields: &str| format!("GET /x HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n");
    let attacks = [
        ("S5 folded", head("x-a: 1\r\n  folded")),
        ("S5 space before colon", head("x-a : 1")),
        ("S5 NUL", head("x-a: 1\0")),
        ("S5 control byte", head("x-a: \x01")),
        ("S5 bare CR", head("x-a: 1\rx-b: 2")),
        ("S5 no name", head(": 1")),
        ("S5 no colon", head("nonsense")),
        ("S5 space first", "GET /x HTTP/1.1\r\n host: a\r\n\r\n".into()),
        ("S5 name in brackets", head("x[a]: 1")),
        ("S6 bare LF in the head", "GET /x HTTP/1.1\nhost: a\n\n".into()),
        ("S6 one bare LF", "GET /x HTTP/1.1\r\nhost: a\r\nx-a: 1\nx-b: 2\r\n\r\n".into()),
        ("two spaces in the line", "GET  /x HTTP/1.1\r\nhost: a\r\n\r\n".into()),
        ("no version", "GET /x\r\nhost: a\r\n\r\n".into()),
        ("HTTP/3.0", "GET /x HTTP/3.0\r\nhost: a\r\n\r\n".into()),
        ("not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\r\n\r\n".into()),
    ];
    refused(&[400, 505], &attacks).await;
}

#[tokio::test]
async fn a_malformed_chunk_is_refused() {
    let chunks = |body: &str| post("transfer-encoding: chunked\r\n", body);
    let attacks = [
        ("S7 LF in an extension", chunks(&format!("5;a\nhello\r\n0\r\n\r\n{NEXT}"))),
        ("S7 LF after the size", chunks(&format!("5\nhello\r\n0\r\n\r\n{NEXT}"))),
        ("S7 signed", chunks(&format!("+5\r\nhello\r\n0\r\n\r\n{NEXT}"))),
        ("S7 negative", chunks(&format!("-5\r\nhello\r\n0\r\n\r\n{NEXT}"))),
        ("S7 0x", chunks(&format!("0x5\r\nhello\r\n0\r\n\r\n{NEXT}"))),
        ("S7 overflow", chunks(&format!("10000000000000005\r\nhello\r\n0\r\n\r\n{NEXT}"))),
        ("S7 spills over", chunks(&format!("5\r\nhello!\r\n0\r\n\r\n{NEXT}"))),
        ("S7 no size", chunks(&format!("\r\nhello\r\n0\r\n\r\n{NEXT}"))),
        ("S7 junk size", chunks(&format!("five\r\nhello\r\n0\r\n\r\n{NEXT}"))),
    ];
    // The head was in order, so the upstream may have begun to hear of it: but never of a whole request.
    let (up, weir) = guarded().await;
    for (what, bytes) in &attacks {
        let (received, closed) = raw(weir.proxy, bytes.as_bytes(), SILENCE).await;
        assert!(status(&received).is_none_or(|status| (400..=502).contains(&status)) && closed, "{what}: {received:?}");
        assert!(up.requests("/x").iter().all(|seen| !seen.complete), "{what} looked whole");
        assert_eq!(up.count("/smuggled"), 0, "{what}");
    }
    assert_eq!(weir.get("/fine").await.status, 200);
}

#[tokio::test]
async fn hosts_and_targets_are_exact() {
    let with_host = |host: &str| format!("GET /x HTTP/1.1\r\n{host}\r\n");
    let line = |line: &str| format!("{line} HTTP/1.1\r\nhost: a\r\n\r\n");
    let attacks = [
        ("S13 no Host", with_host("")),
        ("S13 two Hosts", with_host("host: a\r\nhost: b\r\n")),
        ("S13 the same Host twice", with_host("host: a\r\nhost: a\r\n")),
        ("S13 Host with a path", with_host("host: a/b\r\n")),
        ("S13 Host with a space", with_host("host: a b\r\n")),
        ("S13 Host with a comma", with_host("host: a,b\r\n")),
        ("S13 Host with an @", with_host("host: a@b\r\n")),
        ("S15 target without slash", line("GET x")),
        ("S15 fragment", line("GET /x#y")),
        ("S15 CONNECT", line("CONNECT a:443")),
        ("S15 TRACE", line("TRACE /x")),
        ("S15 asterisk with GET", line("GET *")),
    ];
    refused(&[400, 405, 501], &attacks).await;
}

#[tokio::test]
async fn the_authority_of_an_absolute_target_wins_or_is_refused() {
    let (up, weir) = guarded().await;
    let (received, _) = raw(
        weir.proxy,
        b"GET http://real.example/x HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
        SILENCE,
    )
    .await;
    match status(&received) {
        Some(400) => assert_eq!(up.total(), 0),
        _ => {
            let seen = up.last("/x");
            assert_eq!((seen.target(), seen.header("host")), ("/x", Some("real.example")));
        }
    }
}

#[tokio::test]
async fn an_unknown_expectation_is_417() {
    let attacks = [("S16", post("expect: 200-ok\r\ncontent-length: 0\r\n", ""))];
    refused(&[417], &attacks).await;
}

#[tokio::test]
async fn a_head_or_target_over_the_bound_is_refused() {
    let long = "a".repeat(64 << 10);
    let many: String = (0..3000).map(|i| format!("x-{i}: 1\r\n")).collect();
    let attacks = [
        ("D5 field", format!("GET /x HTTP/1.1\r\nhost: a\r\nx-long: {long}\r\n\r\n")),
        ("D5 target", format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n")),
        ("D5 many fields", format!("GET /x HTTP/1.1\r\nhost: a\r\n{many}\r\n")),
        ("D5 endless", format!("GET /x HTTP/1.1\r\nhost: a\r\nx-long: {long}{long}")),
    ];
    refused(&[400, 414, 431], &attacks).await;
}

#[tokio::test]
async fn what_stands_in_an_unread_body_is_never_served() {
    let (up, weir) = guarded().await;
    assert_eq!(weir.get("/hit").await.status, 200);
    let inner = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let outer = format!("GET /hit HTTP/1.1\r\nhost: service.test\r\ncontent-length: {}\r\n\r\n{inner}", inner.len());
    raw(weir.proxy, outer.as_bytes(), Duration::from_millis(500)).await;
    // A denial, an own answer, a hit: whatever came before, the next request is the next one.
    for target in ["/a//b", "/hit"] {
        let outer =
            format!("POST {target} HTTP/1.1\r\nhost: service.test\r\ncontent-length: {}\r\n\r\n{inner}", inner.len());
        let mut connection = Connection::open(weir.proxy).await;
        connection.write(outer.as_bytes()).await;
        let first = connection.read(false).await.unwrap();
        if !first.headers("connection").contains(&"close") {
            connection.write(b"GET /after HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
            assert_eq!(connection.read(false).await.unwrap().text(), "from the upstream");
        }
    }
    assert_eq!(up.count("/smuggled"), 0);
}

#[tokio::test]
async fn refusals_say_what_was_wrong_and_count_as_one_outcome() {
    let (up, weir) = guarded().await;
    let (received, _) = raw(weir.proxy, b"GET /x HTTP/1.1\r\n\r\n", SILENCE).await;
    let text = String::from_utf8_lossy(&received).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 400") && text.contains("connection: close") && text.contains("host"), "{text}");
    let answer = weir.send(request("GET", "/a//b")).await;
    assert!(answer.header("cache-status").is_some() && answer.text().contains("//"), "{answer:?}");
    weir.metric_reaches(r#"weir_requests_total{outcome="refused"}"#, 2.0).await;
    assert_eq!(up.total(), 0);
    let mut ended = Connection::open(weir.proxy).await;
    assert_eq!(ended.send(&get("/ok").header("connection", "close")).await.status, 200);
    assert!(ended.closes_within(PATIENCE).await);
}
